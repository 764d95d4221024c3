//! Who leads a group: the guess, and the search for one.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::v1::admin_client::AdminClient;
use api::v1::{GroupKind, StatusRequest, StatusResponse};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tonic::Status;
use types::Gid;

use super::{Leader, Router, Slot, plausible, short};

/// The most addresses of a group that are learnt beside those of the configuration.
const MAX_LEARNT: usize = 32;

/// How long a claim to lead waits for one of a higher term, when it brings no news by itself.
const GRACE: Duration = Duration::from_millis(5);

/// The least time that slower nodes get after the first has answered.
const PATIENCE: Duration = Duration::from_millis(20);

/// What a call is told whose leader fell silent and was replaced.
pub(crate) const SUPERSEDED: &str = "the leader fell silent, and another leads";

/// What is known of a group beside the configuration.
#[derive(Default)]
pub(super) struct Group {
    state: Mutex<State>,
    /// Held while a leader is looked for, so that many calls ask once.
    looking: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    guess: Option<Leader>,
    epoch: u64,
    /// The highest term in which a leader was found.
    term: u64,
    learnt: BTreeSet<Arc<str>>,
    /// When the latest search that found no leader began, and what it was told.
    fruitless: Option<(Instant, String)>,
}

impl State {
    fn learn(&mut self, addresses: impl IntoIterator<Item = Arc<str>>) {
        for address in addresses {
            if self.learnt.len() < MAX_LEARNT && plausible(&address) {
                self.learnt.insert(address);
            }
        }
    }
}

impl Group {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing is left half done under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn learnt(&self) -> Vec<Arc<str>> {
        self.state().learnt.iter().cloned().collect()
    }

    /// The guess, or whom a search finds. An error tells what the nodes said.
    pub(super) async fn leader(
        &self,
        router: &Router,
        gid: Gid,
        outage: Duration,
    ) -> Result<Leader, String> {
        let before = {
            let state = self.state();
            if let Some(guess) = &state.guess {
                return Ok(guess.clone());
            }
            state.epoch
        };
        let asked = Instant::now();
        let _one_at_a_time = self.looking.lock().await;
        {
            let state = self.state();
            if let Some(guess) = state.guess.as_ref().filter(|it| it.epoch > before) {
                return Ok(guess.clone());
            }
            if let Some((_, said)) = state
                .fruitless
                .as_ref()
                .filter(|(began, _)| *began >= asked)
            {
                return Err(said.clone());
            }
        }
        let began = Instant::now();
        match self.search(router, gid, outage).await {
            Ok((address, term)) => Ok(self.believe(gid, address, term)),
            Err(said) => {
                self.state().fruitless = Some((began, said.clone()));
                Err(said)
            }
        }
    }

    /// Looks whether another node leads than `current`, in a later term. `None`: as far as can be told, no.
    async fn newer_leader(&self, router: &Router, current: &Leader) -> Option<Leader> {
        let asked = Instant::now();
        let _one_at_a_time = self.looking.lock().await;
        {
            let state = self.state();
            let newer = |it: &&Leader| it.epoch > current.epoch && it.address != current.address;
            if let Some(guess) = state.guess.as_ref().filter(newer) {
                return Some(guess.clone());
            }
            if state
                .fruitless
                .as_ref()
                .is_some_and(|(began, _)| *began >= asked)
            {
                return None;
            }
        }
        let began = Instant::now();
        let found = self.search(router, current.gid, Duration::ZERO).await;
        match found {
            Ok((address, term)) if address != current.address && term > current.term => {
                Some(self.believe(current.gid, address, term))
            }
            _ => {
                let said = "the leader is silent, and no other leads".to_owned();
                self.state().fruitless = Some((began, said));
                None
            }
        }
    }

    fn believe(&self, gid: Gid, address: Arc<str>, term: u64) -> Leader {
        let mut state = self.state();
        state.term = state.term.max(term);
        state.epoch += 1;
        let leader = Leader {
            gid,
            address,
            term,
            epoch: state.epoch,
            mark: gid.0.into(),
        };
        state.guess = Some(leader.clone());
        leader
    }

    /// The guess does not lead or can't be reached. `hint` is who does, as it said.
    pub(super) fn failed(&self, leader: &Leader, hint: Option<&str>) {
        let mut state = self.state();
        if state
            .guess
            .as_ref()
            .is_some_and(|it| it.epoch > leader.epoch)
        {
            return;
        }
        let old = state.guess.take();
        let Some(address) = hint.map(short) else {
            return;
        };
        if !plausible(&address) || old.is_some_and(|it| it.address == address) {
            return;
        }
        state.learn([Arc::clone(&address)]);
        state.epoch += 1;
        state.guess = Some(Leader {
            gid: leader.gid,
            address,
            term: 0,
            epoch: state.epoch,
            mark: leader.mark.clone(),
        });
    }

    /// One round of questions: who leads, and in which term? The leader's own address is believed before one at which it was
    /// met, unless that is the only one at which it is reached.
    async fn search(
        &self,
        router: &Router,
        gid: Gid,
        outage: Duration,
    ) -> Result<(Arc<str>, u64), String> {
        let patience = router.options().connect_timeout;
        let mut addresses = router.addresses_of(gid);
        addresses.extend(self.learnt());
        let known = addresses.clone();
        let mut asked: FuturesUnordered<_> = addresses
            .into_iter()
            .map(|address| async move {
                let answer = timeout(patience, self.member(router, gid, &address)).await;
                let answer = answer.unwrap_or_else(|_| Err("no answer".to_owned()));
                (address, answer)
            })
            .collect();
        let start = Instant::now();
        let known_term = self.state().term;
        let mut deadline = start + patience;
        let mut best: Option<(Arc<str>, u64)> = None;
        // An address that several nodes share leads elsewhere with the next connection.
        let mut shared: Option<(u64, Arc<str>)> = None;
        let mut said = Vec::new();
        while let Ok(Some((address, answer))) = timeout_at(deadline, asked.next()).await {
            let status = match answer {
                Ok(status) => status,
                Err(error) => {
                    said.push(format!("{address}: {error}"));
                    continue;
                }
            };
            let now = Instant::now();
            deadline = deadline.min(now + (now - start).max(PATIENCE) + outage / 4);
            let own = short(&status.address);
            if status.role() == api::v1::Role::Leader && own != address && known.contains(&own) {
                shared = shared.max(Some((status.term, address)));
            } else if status.role() == api::v1::Role::Leader {
                if best.as_ref().is_none_or(|(_, term)| status.term > *term) {
                    best = Some((Arc::clone(&address), status.term));
                }
                if status.term > known_term {
                    break;
                }
                deadline = deadline.min(now + GRACE);
            } else if status.trouble.is_empty() {
                said.push(format!(
                    "{address}: knows no leader but {:?}",
                    status.leader_address
                ));
            } else {
                said.push(format!("{address}: {}", status.trouble));
            }
        }
        let shared = shared.map(|(term, address)| (address, term));
        // Of the same term, the leader's own address.
        let found = shared.into_iter().chain(best).max_by_key(|it| it.1);
        found.ok_or_else(|| {
            if said.is_empty() {
                format!("no node of {gid} answered")
            } else {
                format!("no node leads {gid} ({})", said.join("; "))
            }
        })
    }

    /// Learns the members that a node of this group tells of.
    fn hear(&self, router: &Router, gid: Gid, status: &StatusResponse) {
        let members = status.members.iter().map(|it| it.address.as_str());
        let heard = members.chain([status.leader_address.as_str()]);
        let known = router.addresses_of(gid);
        let heard = heard.filter(|it| !it.is_empty()).map(short);
        let heard: Vec<Arc<str>> = heard.filter(|it| !known.contains(it)).collect();
        let mut state = self.state();
        if status.role() == api::v1::Role::Leader {
            // A leader knows best: who is no member any more is forgotten.
            state.learnt.clear();
        }
        state.learn(heard);
    }

    /// The status of a node that must be of this group.
    async fn member(
        &self,
        router: &Router,
        gid: Gid,
        address: &Arc<str>,
    ) -> Result<StatusResponse, String> {
        let status = router.status(address).await?;
        if !router.speaks_for(gid, &status) {
            return Err(format!("is a node of {}, not of {gid}", Gid(status.gid)));
        }
        self.hear(router, gid, &status);
        Ok(status)
    }
}

impl Router {
    /// Who leads the group now, as it says itself.
    pub(crate) async fn confirmed_leader(
        &self,
        gid: Gid,
        outage: Duration,
    ) -> Result<Arc<str>, String> {
        let group = self.group(gid)?;
        let (address, term) = group.search(self, gid, outage).await?;
        let current = group.state().guess.clone();
        if current.is_none_or(|it| it.address != address) {
            group.believe(gid, Arc::clone(&address), term);
        }
        Ok(address)
    }

    /// Looks whether another node leads than `current`, in a later term. `None`: as far as can be told, no.
    pub(crate) async fn newer_leader(&self, current: &Leader) -> Option<Leader> {
        let group = self.group(current.gid).ok()?;
        let newer = group.newer_leader(self, current).await;
        if newer.is_none() {
            // Perhaps its shards are elsewhere by now, and it was to tell us.
            self.doubt();
        }
        newer
    }

    /// What `call` gives, unless the leader that it waits for is silent, and turns out to be superseded or its group to
    /// have left.
    pub(crate) async fn unless_superseded<T>(
        &self,
        leader: &Leader,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let superseded = async {
            loop {
                sleep(self.options().silence_timeout).await;
                // Of a group that left, nobody will lead.
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

    /// A node's status. Learns the members of its group that it tells of.
    pub(crate) async fn survey(&self, address: &Arc<str>) -> Result<StatusResponse, String> {
        let status = self.status(address).await?;
        let gid = Gid(status.gid);
        if let Ok(group) = self.group(gid) {
            group.hear(self, gid, &status);
        }
        Ok(status)
    }

    /// A node's status.
    async fn status(&self, address: &Arc<str>) -> Result<StatusResponse, String> {
        let channel = self.channel(address, Slot::Control).await?;
        match AdminClient::new(channel).status(StatusRequest {}).await {
            Ok(status) => Ok(status.into_inner()),
            Err(status) => {
                self.discard(address, Slot::Control);
                Err(status.message().to_owned())
            }
        }
    }

    /// Whether the node is one of the group.
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
    use types::{ConfigNum, ShardConfig};

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
        (configs, Router::follow(options, config).unwrap())
    }

    fn one() -> Router {
        router(config(1, &[(1, "b:2")])).1
    }

    async fn guess(router: &Router) -> String {
        let leader = router.leader(G, Duration::ZERO).await;
        leader.unwrap().address.to_string()
    }

    fn believe(router: &Router, address: &str, term: u64) -> Leader {
        router.group(G).unwrap().believe(G, address.into(), term)
    }

    fn guessed(router: &Router) -> bool {
        router.group(G).unwrap().state().guess.is_some()
    }

    fn all(router: &Router) -> Vec<String> {
        router.addresses().iter().map(ToString::to_string).collect()
    }

    #[tokio::test]
    async fn a_hint_is_followed_and_its_address_is_learnt() {
        let router = one();
        let old = believe(&router, "a:1", 3);
        router.failed(&old, Some("c:3"));
        assert_eq!(guess(&router).await, "c:3");
        assert_eq!(all(&router), ["a:1", "b:2", "c:3"]);
    }

    #[tokio::test]
    async fn news_of_an_old_guess_does_not_drop_a_new_one() {
        let router = one();
        let old = believe(&router, "a:1", 3);
        let new = believe(&router, "b:2", 4);
        router.failed(&old, Some("c:3"));
        assert_eq!(guess(&router).await, "b:2");
        router.failed(&new, None);
        assert!(!guessed(&router));
    }

    #[test]
    fn hints_that_lead_nowhere_are_not_followed() {
        let router = one();
        let old = believe(&router, "a:1", 3);
        router.failed(&old, Some("a:1"));
        assert!(!guessed(&router), "it just failed");
        let old = believe(&router, "a:1", 3);
        router.failed(&old, Some("no address"));
        assert!(!guessed(&router));
    }

    #[test]
    fn learnt_addresses_are_bounded() {
        let router = one();
        let many = (0..1_000).map(|n| format!("host-{n}:1").as_str().into());
        router.group(G).unwrap().state().learn(many);
        assert_eq!(all(&router).len(), 2 + MAX_LEARNT);
    }

    #[tokio::test]
    async fn what_left_the_configuration_is_forgotten() {
        let (configs, router) = router(config(1, &[(1, "c:1"), (2, "d:1")]));
        let leader = believe(&router, "e:1", 1);
        router.failed(&leader, Some("f:1"));
        assert_eq!(all(&router), ["a:1", "b:2", "c:1", "d:1", "f:1"]);
        let of_one: Vec<Arc<str>> = router.addresses_of(G).into_iter().collect();
        assert_eq!(
            of_one,
            ["c:1".into()],
            "the options' may be another group's"
        );

        configs.send_replace(Some(config(2, &[(2, "d:1")])));
        let error = router.leader(G, Duration::ZERO).await.unwrap_err();
        assert_eq!(error, "configuration 2 has no group g1");
        assert_eq!(all(&router), ["a:1", "b:2", "d:1"]);
        router.failed(&leader, Some("g:1"));
        assert_eq!(
            all(&router),
            ["a:1", "b:2", "d:1"],
            "no news of a lost group"
        );
        assert_eq!(router.addresses_of(Gid(2)).len(), 3, "the only group now");
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
