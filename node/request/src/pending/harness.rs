//! Pending calls with a clock, for tests: without a socket, and with answers that the test gives.

use types::{ConfigNum, hash_key, shard_of};

use super::*;
use crate::StreamOptions;
use crate::backoff::Jitter;
use crate::refusal::{Refusal, Refused};

pub(crate) const GROUP: Gid = Gid(1);

pub(crate) const OTHER: Gid = Gid(2);

/// A call with a key and a size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    number: u64,
    hash: u64,
    cost: usize,
    repeat: Repeat,
    deadline: Time,
    holds_budget: bool,
}

impl Item {
    pub(crate) fn new(key: &str, repeat: Repeat) -> Self {
        Self {
            number: 0,
            hash: hash_key(key.as_bytes()),
            cost: 130,
            repeat,
            deadline: Duration::from_secs(1_010),
            holds_budget: true,
        }
    }

    pub(crate) fn get(key: &str) -> Self {
        Self::new(key, Repeat::Freely)
    }

    pub(crate) fn put(key: &str) -> Self {
        Self::new(key, Repeat::ByName)
    }

    pub(crate) fn tracked(self) -> Tracked<Self> {
        Tracked {
            call: self,
            attempts: Attempts::default(),
        }
    }
}

impl Call for Item {
    fn hash(&self) -> u64 {
        self.hash
    }

    fn cost(&self) -> usize {
        self.cost
    }

    fn repeat(&self) -> Repeat {
        self.repeat
    }

    fn deadline(&self) -> Time {
        self.deadline
    }

    fn release_budget(&mut self) {
        self.holds_budget = false;
    }
}

/// Four shards with these owners.
pub(crate) fn config(num: u64, owners: &[(u32, Gid)]) -> Arc<ShardConfig> {
    let address = |gid: &Gid| (*gid, vec![format!("{gid}:1")]);
    let groups = [GROUP, OTHER].iter().map(address).collect();
    Arc::new(ShardConfig::new(ConfigNum(num), groups, owners.iter().copied()).unwrap())
}

/// A configuration in which only the shard of `key` is the other group's.
pub(crate) fn without(num: u64, key: &str) -> Arc<ShardConfig> {
    let shard = shard_of(key.as_bytes(), 4).0;
    let runs = [(shard, GROUP), (1, OTHER), (3 - shard, GROUP)];
    config(num, &runs)
}

pub(crate) const LIMITS: Limits = Limits {
    max_in_flight: 1_024,
    max_unacknowledged: 512,
    max_batch_items: 256,
    max_batch_bytes: 1 << 20,
};

pub(crate) fn options() -> StreamOptions {
    StreamOptions {
        limits: LIMITS,
        min_backoff: Duration::from_millis(2),
        max_backoff: Duration::from_millis(250),
        silence_timeout: Duration::from_millis(250),
        bugs: Bugs::default(),
    }
}

/// The pending calls of a group, with a clock and with a record of every call's end by its number.
pub(crate) struct Harness {
    pub(crate) calls: PendingCalls<Item>,
    pub(crate) now: Time,
    admitted: u64,
    pub(crate) answered: BTreeMap<u64, usize>,
    pub(crate) failed: BTreeMap<u64, Failure>,
    pub(crate) moved: Vec<Tracked<Item>>,
}

pub(crate) type Sent = (u64, Option<(Bytes, u64)>);

impl Harness {
    pub(crate) fn of(limits: Limits, gid: Gid, config: Arc<ShardConfig>, bugs: Bugs) -> Self {
        let options = options();
        let jitter = Jitter::new(1);
        let backoff = Backoff::new(options.min_backoff, options.max_backoff, jitter);
        Self {
            calls: PendingCalls::new(limits, backoff, gid, config, bugs),
            now: Duration::from_secs(1_000),
            admitted: 0,
            answered: BTreeMap::new(),
            failed: BTreeMap::new(),
            moved: Vec::new(),
        }
    }

    pub(crate) fn new(limits: Limits) -> Self {
        Self::of(limits, GROUP, config(1, &[(4, GROUP)]), Bugs::default())
    }

    pub(crate) fn with_session() -> Self {
        Self::with(Bugs::NONE)
    }

    /// A harness with an open session.
    pub(crate) fn with(bugs: Bugs) -> Self {
        let mut harness = Self::of(LIMITS, GROUP, config(1, &[(4, GROUP)]), bugs);
        harness.open_session("first");
        harness
    }

    /// The stamps of the next batch.
    pub(crate) fn stamps(&mut self) -> Vec<Stamp> {
        self.calls.advance(self.now);
        let stamps = self.calls.next_batch(|_, _, stamp| stamp);
        stamps.into_iter().flatten().collect()
    }

    pub(crate) fn open_session(&mut self, name: &'static str) {
        let ttl = Duration::from_mins(10);
        self.calls.session_opened(self.now, Bytes::from(name), ttl);
    }

    /// Admits a call and returns its number.
    pub(crate) fn admit(&mut self, mut item: Item) -> u64 {
        self.admitted += 1;
        item.number = self.admitted;
        item.deadline = self.now + Duration::from_secs(10);
        self.calls.admit(item.tracked());
        self.settle();
        self.admitted
    }

    pub(crate) fn put(&mut self) -> u64 {
        self.admit(Item::put(HERE))
    }

    pub(crate) fn get(&mut self) -> u64 {
        self.admit(Item::get(HERE))
    }

    pub(crate) fn put_of(&mut self, cost: usize) -> u64 {
        self.admit(Item {
            cost,
            ..Item::put(HERE)
        })
    }

    /// The next batch as (id, session and sequence of a write).
    pub(crate) fn send(&mut self) -> Vec<Sent> {
        self.calls.advance(self.now);
        self.calls.next_batch(|id, _, stamp| {
            let name = stamp.map(|it| (it.client_id, it.sequence));
            (id, name)
        })
    }

    pub(crate) fn result(&mut self, id: u64, result: Result<(), Refused>) -> Consequence {
        let (answered, consequence) = self.calls.handle_results(self.now, [(id, result)]);
        for (item, ()) in answered {
            *self.answered.entry(item.number).or_default() += 1;
        }
        self.settle();
        consequence
    }

    pub(crate) fn done(&mut self, id: u64) -> Consequence {
        self.result(id, Ok(()))
    }

    pub(crate) fn refuse(&mut self, id: u64, refusal: Refusal) -> Consequence {
        let message = "said so".to_owned();
        self.result(id, Err(Refused { refusal, message }))
    }

    pub(crate) fn lose_connection(&mut self) {
        self.calls.connection_lost("gone");
        self.settle();
    }

    pub(crate) fn sweep(&mut self) {
        self.calls.sweep(self.now);
        self.settle();
    }

    pub(crate) fn settle(&mut self) {
        for ended in self.calls.take_ended() {
            self.failed.insert(ended.call.number, ended.failure);
        }
        self.moved.extend(self.calls.take_moved());
    }

    pub(crate) fn holding_budget(&self) -> usize {
        self.calls.iter().filter(|it| it.call.holds_budget).count()
    }
}

pub(crate) fn name(session: &'static str, sequence: u64) -> (Bytes, u64) {
    (Bytes::from(session), sequence)
}

pub(crate) fn not_leader(hint: &str) -> Refusal {
    Refusal::NotLeader {
        hint: (!hint.is_empty()).then(|| hint.into()),
    }
}

pub(crate) fn not_ready(ms: u64) -> Refusal {
    Refusal::ShardNotReady {
        retry_after: Duration::from_millis(ms),
    }
}

pub(crate) fn wrong_group(num: u64) -> Refusal {
    Refusal::WrongGroup {
        config_num: ConfigNum(num),
    }
}

/// Two keys of different shards.
pub(crate) const HERE: &str = "k";

pub(crate) const AWAY: &str = "b";
