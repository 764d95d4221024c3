//! A keyspace in memory whose changes are noted, late or lost, as a replica would.

// Each test binary uses a part of it. A helper of tests may panic as tests do.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap
)]

use std::collections::VecDeque;
use std::num::NonZeroU64;

use bytes::Bytes;
use changes::{Feed, FeedLimits};
use keyspace::memory::MemoryStore;
use keyspace::{
    Action, Answer, Applying, Effect, Event, KeyspaceOptions, LeaseId, Limits, Operation, Outcome,
    Place, Put, Span, Write, apply,
};
use raft::Term;
use types::{ConfigNum, ShardId};

pub const LIMITS: FeedLimits = FeedLimits {
    events: 24,
    bytes: 4 << 10,
};

pub fn key(name: &str) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}

pub fn span(start: &str, end: &str) -> Span {
    Span::new(key(start), key(end))
}

/// Random numbers from a seed.
pub struct Source(pub u64);

impl Source {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    pub fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }
}

/// A keyspace, its feed, and the changes that the feed has not heard of.
pub struct World {
    pub store: MemoryStore,
    pub place: Place,
    pub feed: Feed,
    pub unheard: VecDeque<(i64, Vec<Effect>)>,
    /// All events since the creation.
    pub log: Vec<Event>,
    pub revision: i64,
    pub compacted: i64,
}

impl World {
    pub fn new() -> Self {
        let mut store = MemoryStore::default();
        let create = Operation {
            cluster_id: None,
            shard: ShardId(3),
            limits: Limits::default(),
            action: Action::Create {
                name: "a".to_owned(),
                options: KeyspaceOptions::default(),
                nonce: NonZeroU64::MIN,
            },
        };
        let created = run(&mut store, &create);
        Self {
            store,
            place: created.place.unwrap(),
            feed: Feed::default(),
            unheard: VecDeque::new(),
            log: Vec::new(),
            revision: 1,
            compacted: -1,
        }
    }

    /// Applies a write. The feed hears of it later.
    pub fn write(&mut self, write: Write) -> Outcome {
        let operation = Operation {
            cluster_id: None,
            shard: self.place.shard,
            limits: Limits::default(),
            action: Action::In(self.place.id, write),
        };
        let outcome = run(&mut self.store, &operation);
        if outcome.answer.is_ok() {
            self.revision = outcome.revision;
            self.log.extend_from_slice(outcome.events());
            self.unheard
                .push_back((outcome.revision, outcome.effects.clone()));
        }
        outcome
    }

    pub fn put(&mut self, name: &str, value: &str) -> i64 {
        let put = Put {
            key: key(name),
            value: key(value),
            ..Put::default()
        };
        self.write(Write::Put(put)).revision
    }

    pub fn delete(&mut self, start: &str, end: &str) -> i64 {
        let request = keyspace::DeleteRange {
            span: span(start, end),
            prev_kv: false,
        };
        self.write(Write::DeleteRange(request)).revision
    }

    pub fn compact(&mut self, revision: i64) {
        if self.write(Write::Compact { revision }).answer.is_ok() {
            self.compacted = revision;
            loop {
                let cleared = self.write(Write::Clear).answer;
                if cleared == Ok(Answer::Cleared { more: false }) {
                    break;
                }
            }
        }
    }

    pub fn grant(&mut self, id: i64, ttl: i64) {
        let id = LeaseId(id);
        self.write(Write::Grant { id, ttl });
    }

    /// Tells the feed of the next change.
    pub fn hear(&mut self) {
        if let Some((revision, effects)) = self.unheard.pop_front() {
            self.feed.note(revision, &effects, LIMITS);
        }
    }

    pub fn hear_all(&mut self) {
        while !self.unheard.is_empty() {
            self.hear();
        }
    }

    /// Installs a snapshot of the state: the feed doesn't hear of the changes in it.
    pub fn install_snapshot(&mut self) {
        self.unheard.clear();
        self.feed.reset();
    }

    /// Tells the feed what the record says.
    pub fn learn(&mut self) {
        let record = keyspace::record(&self.store, self.place).unwrap().unwrap();
        let generation = self.feed.generation();
        self.feed
            .learn(generation, record.revision, record.compacted);
    }
}

fn run(store: &mut MemoryStore, operation: &Operation) -> Outcome {
    let at = Applying {
        term: Term(7),
        config: ConfigNum(4),
        answer: false,
    };
    apply(operation.encode(), at, store).unwrap()
}
