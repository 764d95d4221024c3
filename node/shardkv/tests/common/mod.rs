//! A replica without a log: a machine over a store in memory, driven entry by entry.

// Each test binary uses a part of it. A helper of tests may panic as tests do.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::missing_panics_doc
)]

pub mod clients;
pub mod replicas;

use bytes::Bytes;
use raft::{EntryId, Index, Term};
use replica::memory::MemoryState;
use replica::{Applied, Applying, Digest, StateMachine, StateStore, Transaction};
use shardkv::{Bug, Command, Genesis, Query, Response, SessionRef, ShardKv, Write};
use types::{ClientId, LogTime, Sequence};

/// A small group, so that limits are reached.
pub const GENESIS: Genesis = Genesis {
    kind: shardkv::GroupKind::Standalone,
    shards: 5,
    session_ttl_ms: 10_000,
    max_sessions_per_shard: 6,
    max_results_per_session: 4,
};

/// A group that owns what a controller gives it.
pub const SHARDS_GENESIS: Genesis = Genesis {
    kind: shardkv::GroupKind::Shards,
    ..GENESIS
};

/// One operation at its place in the log.
#[derive(Clone, Debug)]
pub struct Step {
    pub index: u64,
    pub time: u64,
    pub max_value_bytes: u32,
    pub operation: Bytes,
}

pub struct Replica {
    pub machine: ShardKv,
    pub state: MemoryState,
    /// The group's feature level.
    pub level: u32,
    bug: Option<Bug>,
}

#[cfg(feature = "bugs")]
fn machine(bug: Option<Bug>) -> ShardKv {
    ShardKv::with_bug(bug)
}

#[cfg(not(feature = "bugs"))]
fn machine(bug: Option<Bug>) -> ShardKv {
    assert_eq!(bug, None, "this build shows no bugs");
    ShardKv::new()
}

impl Replica {
    pub fn new(genesis: Genesis) -> Self {
        Self::with_bug(genesis, None)
    }

    /// One that shows a known bug, in the build that can.
    pub fn with_bug(genesis: Genesis, bug: Option<Bug>) -> Self {
        let mut state = MemoryState::new();
        let beginning = Applied {
            digest: Some(Digest::begin(Index(0))),
            ..Applied::default()
        };
        state.commit(genesis.to_batch(), beginning).unwrap();
        let mut replica = Self {
            machine: machine(bug),
            state,
            level: 0,
            bug,
        };
        replica.restart();
        replica
    }

    /// Forgets all but the state.
    pub fn restart(&mut self) {
        self.machine = machine(self.bug);
        self.machine.reload(&self.state).unwrap();
    }

    /// Applies steps as one batch.
    pub fn batch(&mut self, steps: &[Step]) -> Vec<Response> {
        let mut applied = self.state.applied();
        let mut transaction = Transaction::new(&self.state);
        transaction.set_digest(applied.digest);
        let mut responses = Vec::new();
        for step in steps {
            let at = Applying {
                entry: EntryId::new(Term(1), Index(step.index)),
                time: LogTime(step.time),
                feature_level: self.level,
                max_value_bytes: step.max_value_bytes,
                awaited: true,
            };
            let operation = step.operation.clone();
            responses.push(self.machine.apply(at, operation, &mut transaction).unwrap());
            applied.digest = transaction.end_entry(at.entry);
            applied.last = at.entry;
            applied.time = at.time;
        }
        transaction.set_digest(None);
        self.machine.finish_batch(&mut transaction).unwrap();
        let batch = transaction.into_batch();
        self.state.commit(batch, applied).unwrap();
        responses
    }

    /// Applies one step of a move as the next entry.
    pub fn step(&mut self, time: u64, step: &shardkv::Step) -> Response {
        self.apply_bytes(time, 100, step.encode())
    }

    /// Applies one write as the next entry.
    pub fn apply(&mut self, time: u64, session: Option<SessionRef>, write: Write) -> Response {
        self.apply_bytes(time, 100, Command { session, write }.encode())
    }

    pub fn apply_bytes(&mut self, time: u64, max_value_bytes: u32, operation: Bytes) -> Response {
        let index = self.state.applied().last.index.0 + 1;
        let step = Step {
            index,
            time,
            max_value_bytes,
            operation,
        };
        self.batch(&[step]).remove(0)
    }

    pub fn query(&self, query: &Query) -> Response {
        self.machine.query(query, &self.state).unwrap()
    }

    pub fn get(&self, key: &str) -> Option<String> {
        match self.query(&Query::Get { key: bytes(key) }) {
            Response::Value(value) => value.map(|v| String::from_utf8(v.to_vec()).unwrap()),
            other => panic!("{other:?}"),
        }
    }
}

pub fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

pub fn put(key: &str, value: &str) -> Write {
    Write::Put {
        key: bytes(key),
        value: bytes(value),
    }
}

pub fn append(key: &str, suffix: &str) -> Write {
    Write::Append {
        key: bytes(key),
        suffix: bytes(suffix),
    }
}

pub fn delete(key: &str) -> Write {
    Write::Delete { key: bytes(key) }
}

pub fn cas(key: &str, expected: Option<&str>, new: Option<&str>) -> Write {
    Write::CompareAndSwap {
        key: bytes(key),
        expected: expected.map(bytes),
        new: new.map(bytes),
    }
}

// As a command has it.
#[allow(clippy::unnecessary_wraps)]
pub fn session(birth: u64, sequence: u64, acked_below: u64) -> Option<SessionRef> {
    Some(SessionRef {
        client: ClientId {
            birth: LogTime(birth),
            nonce: 7,
        },
        sequence: Sequence(sequence),
        acked_below: Sequence(acked_below),
    })
}

/// `SplitMix64`: small, and the same everywhere.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}
