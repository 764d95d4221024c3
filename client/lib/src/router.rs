//! Where calls go.
//!
//! Today there is one group, and the router knows its addresses and has a guess who leads. When keys are routed
//! by the shard map, this is the room for it: a guess for each group.
//!
//! # How a leader is found
//!
//! All known nodes are asked for their status at the same time, and a node that says that *it* leads is believed, the
//! one of the highest term if there are several. What nodes say of others is only a hint: it adds an address to
//! ask, because a follower goes on naming a dead leader until it notices. A node that hangs does not hold up the
//! others: a round ends soon after the first answers.
//!
//! # Invariants
//!
//! - A guess has an `epoch`, one more for each; a failure is reported with the epoch that failed, so that news of
//!   an old guess never drops a new one.
//! - The addresses of the options are always asked; learnt ones are bounded.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::v1::admin_client::AdminClient;
use api::v1::kv_client::KvClient;
use api::v1::{StatusRequest, StatusResponse};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::options::parse_address;
use crate::{ClientOptions, ConnectError};

/// The most addresses that are learnt beside those of the options.
const MAX_LEARNT: usize = 32;

/// How long a claim to lead waits for one of a higher term, when it brings no news by itself.
const GRACE: Duration = Duration::from_millis(5);

/// The least time that slower nodes get after the first has answered.
const PATIENCE: Duration = Duration::from_millis(20);

/// What a call is told whose leader fell silent and was replaced.
pub(crate) const SUPERSEDED: &str = "the leader fell silent, and another leads";

/// Which of a node's connections: bulk traffic must not stand before questions about leadership.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Slot {
    /// Status, scans and other traffic beside the calls.
    Control,
    /// The calls of one lane.
    Calls(usize),
}

/// A guess who leads.
#[derive(Clone, Debug)]
pub(crate) struct Leader {
    pub(crate) address: Arc<str>,
    /// Its term, or 0 from a hint.
    pub(crate) term: u64,
    pub(crate) epoch: u64,
}

pub(crate) struct Router {
    options: Arc<ClientOptions>,
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
    channels: BTreeMap<(Arc<str>, Slot), Channel>,
    /// When the latest search that found no leader began, and what it was told.
    fruitless: Option<(Instant, String)>,
}

impl Router {
    pub(crate) fn new(options: Arc<ClientOptions>) -> Self {
        Self {
            options,
            state: Mutex::default(),
            looking: tokio::sync::Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing is left half done under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The addresses of the options and of the members that nodes told of.
    pub(crate) fn addresses(&self) -> BTreeSet<Arc<str>> {
        let configured = self.options.addresses.iter().map(|it| short(it));
        configured
            .chain(self.state().learnt.iter().cloned())
            .collect()
    }

    /// The guess, or whom a search finds. An error tells what the nodes said.
    pub(crate) async fn leader(&self, outage: Duration) -> Result<Leader, String> {
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
        match self.search(outage).await {
            Ok((address, term)) => Ok(self.believe(address, term)),
            Err(said) => {
                self.state().fruitless = Some((began, said.clone()));
                Err(said)
            }
        }
    }

    /// Looks whether another node leads than `current`, in a later term. `None`: as far as can be told, no.
    pub(crate) async fn newer_leader(&self, current: &Leader) -> Option<Leader> {
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
        let found = self.search(Duration::ZERO).await;
        match found {
            Ok((address, term)) if address != current.address && term > current.term => {
                Some(self.believe(address, term))
            }
            _ => {
                let said = "the leader is silent, and no other leads".to_owned();
                self.state().fruitless = Some((began, said));
                None
            }
        }
    }

    /// Who says now that it leads.
    pub(crate) async fn confirmed_leader(&self, outage: Duration) -> Result<Arc<str>, String> {
        let (address, term) = self.search(outage).await?;
        let current = self.state().guess.clone();
        if current.is_none_or(|it| it.address != address) {
            self.believe(Arc::clone(&address), term);
        }
        Ok(address)
    }

    /// What `call` gives, unless the leader that it waits for turns out to be superseded.
    pub(crate) async fn unless_superseded<T>(
        &self,
        leader: &Leader,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let superseded = async {
            loop {
                sleep(self.options.silence_timeout).await;
                if self.newer_leader(leader).await.is_some() {
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

    fn believe(&self, address: Arc<str>, term: u64) -> Leader {
        let mut state = self.state();
        state.term = state.term.max(term);
        state.epoch += 1;
        let leader = Leader {
            address,
            term,
            epoch: state.epoch,
        };
        state.guess = Some(leader.clone());
        leader
    }

    /// The guess of `epoch` does not lead or can't be reached. `hint` is who does, as it said.
    pub(crate) fn failed(&self, epoch: u64, hint: Option<&str>) {
        let mut state = self.state();
        if state.guess.as_ref().is_some_and(|it| it.epoch > epoch) {
            return;
        }
        let old = state.guess.take();
        let Some(address) = hint.map(short) else {
            return;
        };
        if parse_address(&address).is_err() || old.is_some_and(|it| it.address == address) {
            return;
        }
        self.learn(&mut state, [Arc::clone(&address)]);
        state.epoch += 1;
        state.guess = Some(Leader {
            address,
            term: 0,
            epoch: state.epoch,
        });
    }

    fn learn(&self, state: &mut State, addresses: impl IntoIterator<Item = Arc<str>>) {
        for address in addresses {
            let known = self.options.addresses.iter().any(|it| short(it) == address);
            if !known && state.learnt.len() < MAX_LEARNT && parse_address(&address).is_ok() {
                state.learnt.insert(address);
            }
        }
    }

    /// One round of questions: who leads, and in which term?
    async fn search(&self, outage: Duration) -> Result<(Arc<str>, u64), String> {
        let mut asked: FuturesUnordered<_> = self
            .addresses()
            .into_iter()
            .map(|address| async move {
                let answer = timeout(self.options.connect_timeout, self.status(&address)).await;
                let answer = answer.unwrap_or_else(|_| Err("no answer".to_owned()));
                (address, answer)
            })
            .collect();
        let start = Instant::now();
        let known_term = self.state().term;
        let mut deadline = start + self.options.connect_timeout;
        let mut best: Option<(Arc<str>, u64)> = None;
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
            if status.role() == api::v1::Role::Leader {
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
        best.ok_or_else(|| {
            if said.is_empty() {
                "no node answered".to_owned()
            } else {
                format!("no node leads ({})", said.join("; "))
            }
        })
    }

    /// A node's status. Learns the members that it tells of.
    pub(crate) async fn status(&self, address: &Arc<str>) -> Result<StatusResponse, String> {
        let channel = self.channel(address, Slot::Control).await?;
        let status = match AdminClient::new(channel).status(StatusRequest {}).await {
            Ok(status) => status.into_inner(),
            Err(status) => {
                self.discard(address, Slot::Control);
                return Err(status.message().to_owned());
            }
        };
        let members = status.members.iter().map(|it| it.address.as_str());
        let heard = members.chain([status.leader_address.as_str()]);
        let heard: Vec<Arc<str>> = heard.filter(|it| !it.is_empty()).map(short).collect();
        let mut state = self.state();
        if status.role() == api::v1::Role::Leader {
            // A leader knows best: who is no member any more is forgotten.
            state.learnt.clear();
        }
        self.learn(&mut state, heard);
        drop(state);
        Ok(status)
    }

    /// An open connection to `address`: kept from before, or made now.
    pub(crate) async fn channel(&self, address: &Arc<str>, slot: Slot) -> Result<Channel, String> {
        let name = (Arc::clone(address), slot);
        if let Some(channel) = self.state().channels.get(&name) {
            return Ok(channel.clone());
        }
        let endpoint = endpoint(address, &self.options).map_err(|error| error.to_string())?;
        // The connector's own timeout covers TCP only; a peer that accepts and then is silent must not hold us.
        let channel = match timeout(self.options.connect_timeout, endpoint.connect()).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => return Err(root_cause(&error)),
            Err(_) => return Err("connecting took too long".to_owned()),
        };
        let mut state = self.state();
        Ok(state.channels.entry(name).or_insert(channel).clone())
    }

    /// The connection is broken: the next use makes another, and resolves the name again.
    pub(crate) fn discard(&self, address: &Arc<str>, slot: Slot) {
        self.state().channels.remove(&(Arc::clone(address), slot));
    }

    /// The `Kv` service at the other end of `channel`, with the bounds of the options.
    pub(crate) fn kv(&self, channel: Channel) -> KvClient<Channel> {
        KvClient::new(channel)
            .max_decoding_message_size(self.options.max_message_bytes)
            .max_encoding_message_size(self.options.max_message_bytes)
    }

    /// Whether any node accepts a connection.
    pub(crate) async fn reachable(&self) -> Result<(), ConnectError> {
        let mut dialled: FuturesUnordered<_> = self
            .addresses()
            .into_iter()
            .map(|address| async move {
                let channel = self.channel(&address, Slot::Control).await;
                channel.map_err(|error| format!("{address}: {error}"))
            })
            .collect();
        let mut said = Vec::new();
        while let Some(result) = dialled.next().await {
            match result {
                Ok(_) => return Ok(()),
                Err(error) => said.push(error),
            }
        }
        Err(ConnectError::Unreachable(said.join("; ")))
    }
}

/// An address without its scheme, so that one node has one name.
pub(crate) fn short(address: &str) -> Arc<str> {
    let address = address.strip_prefix("http://").unwrap_or(address);
    address.strip_suffix('/').unwrap_or(address).into()
}

fn endpoint(address: &str, options: &ClientOptions) -> Result<Endpoint, ConnectError> {
    Ok(Endpoint::from(parse_address(address)?)
        .connect_timeout(options.connect_timeout)
        .http2_keep_alive_interval(options.keepalive_interval)
        .keep_alive_timeout(options.keepalive_timeout)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true)
        // The defaults of 64 KB would stop a batch stream at every round trip.
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20))
}

/// The innermost cause, which says "connection refused" where the outer ones say "transport error".
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn router() -> Router {
        Router::new(Arc::new(ClientOptions::new(["http://a:1/", "b:2"])))
    }

    async fn guess(router: &Router) -> String {
        let outage = Duration::ZERO;
        router.leader(outage).await.unwrap().address.to_string()
    }

    #[tokio::test]
    async fn a_hint_is_followed_and_its_address_is_learnt() {
        let router = router();
        let old = router.believe("a:1".into(), 3);
        router.failed(old.epoch, Some("c:3"));
        assert_eq!(guess(&router).await, "c:3");
        let known: Vec<String> = router.addresses().iter().map(ToString::to_string).collect();
        assert_eq!(known, ["a:1", "b:2", "c:3"]);
    }

    #[tokio::test]
    async fn news_of_an_old_guess_does_not_drop_a_new_one() {
        let router = router();
        let old = router.believe("a:1".into(), 3);
        let new = router.believe("b:2".into(), 4);
        router.failed(old.epoch, Some("c:3"));
        assert_eq!(guess(&router).await, "b:2");
        router.failed(new.epoch, None);
        assert!(router.state().guess.is_none());
    }

    #[test]
    fn hints_that_lead_nowhere_are_not_followed() {
        let router = router();
        let old = router.believe("a:1".into(), 3);
        router.failed(old.epoch, Some("a:1"));
        assert!(router.state().guess.is_none(), "it just failed");
        let old = router.believe("a:1".into(), 3);
        router.failed(old.epoch, Some("no address"));
        assert!(router.state().guess.is_none());
    }

    #[test]
    fn learnt_addresses_are_bounded() {
        let router = router();
        let many = (0..1_000).map(|n| format!("host-{n}:1").as_str().into());
        router.learn(&mut router.state(), many);
        assert_eq!(router.addresses().len(), 2 + MAX_LEARNT);
    }
}
