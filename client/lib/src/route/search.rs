//! Finds the leader of a group: keeps a guess, and searches when the guess fails.
//!
//! All known nodes of the group are asked for their status at the same time; [`LeaderSearch`] evaluates the answers. Groups are
//! searched independently of each other.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::v1::admin_client::AdminClient;
use api::v1::{GroupKind, StatusRequest, StatusResponse};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use request::{GroupLeader, LeaderSearch, Report, SUPERSEDED, Time};
use tokio::time::{sleep, timeout, timeout_at};
use tonic::Status;
use types::{Gid, Incarnation};

use super::{Leader, RouteError, Router, Slot, StatusError, plausible, short};

/// The known facts of a group beside the configuration.
pub(super) struct Group {
    incarnation: Incarnation,
    addresses: Vec<String>,
    state: Mutex<State>,
    /// Held during a search for the leader, so that many calls share one search.
    searching: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    leader: GroupLeader,
    /// The beginning of the latest search that found no leader, and its result.
    fruitless: Option<(Time, RouteError)>,
}

impl State {
    /// Returns the result of a search that found no leader and began at `asked` or later.
    fn fruitless_since(&self, asked: Time) -> Option<&RouteError> {
        let (began, error) = self.fruitless.as_ref()?;
        (*began >= asked).then_some(error)
    }
}

impl Group {
    /// Creates the state of a group of which only the configuration is known.
    pub(super) fn new(known: &types::Group) -> Self {
        Self {
            incarnation: known.incarnation,
            addresses: known.addresses.clone(),
            state: Mutex::default(),
            searching: tokio::sync::Mutex::default(),
        }
    }

    /// Returns true if this is the state of `known`, not of an earlier group with its gid, nor of one with other nodes.
    pub(super) fn is(&self, known: &types::Group) -> bool {
        self.incarnation == known.incarnation && self.addresses == known.addresses
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No method leaves the state half changed, so a poisoned lock protects valid data.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn learnt(&self) -> Vec<Arc<str>> {
        self.state().leader.learnt().iter().cloned().collect()
    }

    /// Returns the guess, or the result of a search.
    pub(super) async fn leader(
        &self,
        router: &Router,
        gid: Gid,
        outage: Duration,
    ) -> Result<Leader, RouteError> {
        let clock = router.clock();
        let before = {
            let state = self.state();
            if let Some(guess) = state.leader.guess() {
                return Ok(guess.clone());
            }
            state.leader.epoch()
        };
        let asked = clock.now();
        let _one_at_a_time = self.searching.lock().await;
        {
            let state = self.state();
            if let Some(guess) = state.leader.guess().filter(|it| it.epoch > before) {
                return Ok(guess.clone());
            }
            if let Some(error) = state.fruitless_since(asked) {
                return Err(error.clone());
            }
        }
        let began = clock.now();
        match self.search(router, gid, outage).await {
            Ok((address, term)) => Ok(self.found(gid, address, term)),
            Err(error) => {
                self.state().fruitless = Some((began, error.clone()));
                Err(error)
            }
        }
    }

    /// Searches for a node other than `current` that leads in a later term. Returns `None` if there is none, as far as can be
    /// told.
    async fn newer_leader(&self, router: &Router, current: &Leader) -> Option<Leader> {
        let clock = router.clock();
        let asked = clock.now();
        let _one_at_a_time = self.searching.lock().await;
        {
            let state = self.state();
            let newer = |it: &&Leader| it.epoch > current.epoch && it.address != current.address;
            if let Some(guess) = state.leader.guess().filter(newer) {
                return Some(guess.clone());
            }
            if state.fruitless_since(asked).is_some() {
                return None;
            }
        }
        let began = clock.now();
        let found = self.search(router, current.gid, Duration::ZERO).await;
        match found {
            Ok((address, term)) if address != current.address && term > current.term => {
                Some(self.found(current.gid, address, term))
            }
            _ => {
                self.state().fruitless = Some((began, RouteError::NoNewerLeader));
                None
            }
        }
    }

    fn found(&self, gid: Gid, address: Arc<str>, term: u64) -> Leader {
        self.state().leader.found(gid, address, term)
    }

    /// Drops a guess that failed, and follows the hint if it can be an address. Returns true if it does.
    pub(super) fn failed(&self, leader: &Leader, hint: Option<&str>) -> bool {
        let hint = hint.map(short).filter(|hint| plausible(hint));
        self.state().leader.failed(leader, hint.as_ref())
    }

    /// Asks all known nodes once. Returns the leader's address and term.
    async fn search(
        &self,
        router: &Router,
        gid: Gid,
        outage: Duration,
    ) -> Result<(Arc<str>, u64), RouteError> {
        let clock = router.clock();
        let patience = router.options().connect_timeout;
        let mut addresses = router.addresses_of(gid);
        addresses.extend(self.learnt());
        let known_term = self.state().leader.term();
        let known = addresses.clone();
        let mut search = LeaderSearch::new(clock.now(), known, known_term, patience, outage);
        let mut asked: FuturesUnordered<_> = addresses
            .into_iter()
            .map(|address| async move {
                let answer = timeout(patience, self.member(router, gid, &address)).await;
                let answer = answer.unwrap_or(Err(StatusError::NoAnswer));
                (address, answer)
            })
            .collect();
        while !search.is_done() {
            let deadline = clock.instant(search.deadline());
            let Ok(Some((address, answer))) = timeout_at(deadline, asked.next()).await else {
                break;
            };
            search.handle_answer(clock.now(), address, answer.map(|it| report(&it)));
        }
        Ok(search.finish(gid)?)
    }

    /// Adds the members that a node of this group names.
    fn hear(&self, router: &Router, gid: Gid, status: &StatusResponse) {
        let members = status.members.iter().map(|it| it.address.as_str());
        let heard = members.chain([status.leader_address.as_str()]);
        let known = router.addresses_of(gid);
        let heard = heard.filter(|it| !it.is_empty()).map(short);
        let heard: Vec<Arc<str>> = heard.filter(|it| !known.contains(it)).collect();
        let mut state = self.state();
        if status.role() == api::v1::Role::Leader {
            // The leader knows all members, so addresses of former members are dropped.
            state.leader.forget_learnt();
        }
        state
            .leader
            .learn(heard.into_iter().filter(|it| plausible(it)));
    }

    /// Returns the status of a node, which must belong to this group.
    async fn member(
        &self,
        router: &Router,
        gid: Gid,
        address: &Arc<str>,
    ) -> Result<StatusResponse, StatusError> {
        let status = router.status(address).await?;
        if !router.speaks_for(gid, &status) {
            return Err(StatusError::OtherGroup {
                actual: Gid(status.gid),
                expected: gid,
            });
        }
        self.hear(router, gid, &status);
        Ok(status)
    }
}

/// Converts the part of a status that names the leader.
fn report(status: &StatusResponse) -> Report {
    Report {
        own_address: short(&status.address),
        leads: status.role() == api::v1::Role::Leader,
        term: status.term,
        leader_address: status.leader_address.clone(),
        trouble: status.trouble.clone(),
    }
}

impl Router {
    /// Returns the address of the group's leader, as the leader itself says now.
    pub(crate) async fn confirmed_leader(
        &self,
        gid: Gid,
        outage: Duration,
    ) -> Result<Arc<str>, RouteError> {
        let group = self.group(gid)?;
        let (address, term) = group.search(self, gid, outage).await?;
        let current = group.state().leader.guess().cloned();
        if current.is_none_or(|it| it.address != address) {
            group.found(gid, Arc::clone(&address), term);
        }
        Ok(address)
    }

    /// Searches for a node other than `current` that leads in a later term. Returns `None` if there is none, as far as can be
    /// told.
    pub(crate) async fn newer_leader(&self, current: &Leader) -> Option<Leader> {
        let group = self.group(current.gid).ok()?;
        let newer = group.newer_leader(self, current).await;
        if newer.is_none() {
            // Other groups may own its shards now, and the lost node may have been the source of that news.
            self.doubt();
        }
        newer
    }

    /// Runs `call`, but gives up if the leader that it waits for is silent and superseded, or its group has left.
    pub(crate) async fn unless_superseded<T>(
        &self,
        leader: &Leader,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let superseded = async {
            loop {
                sleep(self.options().silence_timeout).await;
                // A group that left elects no other leader.
                if self.group(leader.gid).is_err() || self.newer_leader(leader).await.is_some() {
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            result = call => result,
            () = superseded => Err(Status::unavailable(SUPERSEDED)),
        }
    }

    /// Returns a node's status, and adds the members of its group that it names.
    pub(crate) async fn survey(&self, address: &Arc<str>) -> Result<StatusResponse, StatusError> {
        let status = self.status(address).await?;
        let gid = Gid(status.gid);
        if let Ok(group) = self.group(gid) {
            group.hear(self, gid, &status);
        }
        Ok(status)
    }

    /// Returns a node's status.
    async fn status(&self, address: &Arc<str>) -> Result<StatusResponse, StatusError> {
        let channel = self.channel(address, Slot::Control).await?;
        match AdminClient::new(channel).status(StatusRequest {}).await {
            Ok(status) => Ok(status.into_inner()),
            Err(status) => {
                self.discard(address, Slot::Control);
                Err(StatusError::Refused(status.message().to_owned()))
            }
        }
    }

    /// Returns true if the node is a member of the group.
    fn speaks_for(&self, gid: Gid, status: &StatusResponse) -> bool {
        let single = || {
            self.config()
                .is_some_and(|config| super::is_single(&config))
        };
        status.gid == gid.0 || (status.kind() != GroupKind::Controller && single())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tokio::sync::watch;
    use types::{ClusterId, ConfigDelta, ConfigNum, ShardConfig};

    use super::*;
    use crate::ClientOptions;

    const G: Gid = Gid(1);

    fn config(num: u64, groups: &[(u64, &str)]) -> Arc<ShardConfig> {
        let last = groups.last().unwrap().0;
        let groups: BTreeMap<Gid, Vec<String>> = groups
            .iter()
            .map(|(gid, address)| (Gid(*gid), vec![(*address).to_owned()]))
            .collect();
        Arc::new(ShardConfig::new(ConfigNum(num), groups, [(2, Gid(last))]).unwrap())
    }

    fn router(config: Arc<ShardConfig>) -> (watch::Sender<Option<Arc<ShardConfig>>>, Router) {
        let (configs, config) = watch::channel(Some(config));
        let options = ClientOptions::new(["http://a:1/", "b:2"]);
        (
            configs,
            Router::follow(options, ClusterId(7), config).unwrap(),
        )
    }

    fn one() -> Router {
        router(config(1, &[(1, "b:2")])).1
    }

    async fn guess(router: &Router) -> String {
        let leader = router.leader(G, Duration::ZERO).await;
        leader.unwrap().address.to_string()
    }

    fn found(router: &Router, address: &str, term: u64) -> Leader {
        router.group(G).unwrap().found(G, address.into(), term)
    }

    fn guessed(router: &Router) -> bool {
        router.group(G).unwrap().state().leader.guess().is_some()
    }

    fn all(router: &Router) -> Vec<String> {
        router.addresses().iter().map(ToString::to_string).collect()
    }

    #[tokio::test]
    async fn a_hint_is_followed_and_its_address_is_learnt() {
        let router = one();
        let old = found(&router, "a:1", 3);
        router.failed(&old, Some("c:3"));
        assert_eq!(guess(&router).await, "c:3");
        assert_eq!(all(&router), ["a:1", "b:2", "c:3"]);
    }

    #[tokio::test]
    async fn news_of_an_old_guess_does_not_drop_a_new_one() {
        let router = one();
        let old = found(&router, "a:1", 3);
        let new = found(&router, "b:2", 4);
        router.failed(&old, Some("c:3"));
        assert_eq!(guess(&router).await, "b:2");
        router.failed(&new, None);
        assert!(!guessed(&router));
    }

    #[test]
    fn hints_that_lead_nowhere_are_not_followed() {
        let router = one();
        let old = found(&router, "a:1", 3);
        router.failed(&old, Some("a:1"));
        assert!(!guessed(&router), "it just failed");
        let old = found(&router, "a:1", 3);
        router.failed(&old, Some("no address"));
        assert!(!guessed(&router));
    }

    #[test]
    fn learnt_addresses_are_bounded() {
        let router = one();
        let many = (0..1_000).map(|n| format!("host-{n}:1").as_str().into());
        router.group(G).unwrap().state().leader.learn(many);
        assert_eq!(all(&router).len(), 2 + request::MAX_LEARNT);
    }

    #[tokio::test]
    async fn groups_that_left_the_configuration_are_forgotten() {
        let (configs, router) = router(config(1, &[(1, "c:1"), (2, "d:1")]));
        let leader = found(&router, "e:1", 1);
        router.failed(&leader, Some("f:1"));
        assert_eq!(all(&router), ["a:1", "b:2", "c:1", "d:1", "f:1"]);
        let of_one: Vec<Arc<str>> = router.addresses_of(G).into_iter().collect();
        assert_eq!(
            of_one,
            ["c:1".into()],
            "the options' addresses may be another group's"
        );

        configs.send_replace(Some(config(2, &[(2, "d:1")])));
        let error = router.leader(G, Duration::ZERO).await.unwrap_err();
        assert_eq!(error.to_string(), "configuration 2 has no group g1");
        assert_eq!(all(&router), ["a:1", "b:2", "d:1"]);
        router.failed(&leader, Some("g:1"));
        assert_eq!(all(&router), ["a:1", "b:2", "d:1"], "the group has left");
        assert_eq!(router.addresses_of(Gid(2)).len(), 3, "the only group now");
    }

    #[test]
    fn the_leader_of_an_earlier_group_with_the_same_gid_is_not_asked() {
        let (configs, router) = router(config(1, &[(1, "c:1"), (2, "d:1")]));
        let leader = found(&router, "e:1", 1);
        let mut same = (*router.config().unwrap()).clone();
        let groups = [(G, vec!["c:1".to_owned()])].into();
        let delta = ConfigDelta::between(&same, &groups, &[G; 2]);
        same.apply(&delta).unwrap();
        configs.send_replace(Some(Arc::new(same)));
        assert!(guessed(&router), "the group is the same");
        configs.send_replace(Some(config(3, &[(1, "f:1")])));
        assert!(!guessed(&router));
        router.failed(&leader, Some("g:1"));
        let after: Vec<Arc<str>> = router.addresses_of(G).into_iter().collect();
        assert!(!after.contains(&"c:1".into()), "{after:?}");
    }

    #[test]
    fn a_node_speaks_for_its_group_only() {
        let status = |gid, kind: GroupKind| StatusResponse {
            gid,
            kind: kind.into(),
            ..StatusResponse::default()
        };
        let standalone = status(7, GroupKind::Unspecified);
        let controller = status(0, GroupKind::Controller);
        let router = one();
        assert!(!router.speaks_for(G, &standalone));
        assert!(router.speaks_for(Gid(7), &standalone));
        let (_configs, single) = self::router(config(0, &[(1, "a:1")]));
        assert!(single.speaks_for(G, &standalone), "older nodes know no gid");
        assert!(!single.speaks_for(G, &controller));
    }
}
