//! A keyspace over a store in memory, a source of random numbers, and builders of requests.

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

mod counted;
pub mod model;
pub mod source;

use std::num::NonZeroU64;

use bytes::Bytes;
use counted::Counted;
use keyspace::memory::MemoryStore;
use keyspace::{
    Action, Answer, Applying, KeyspaceId, KeyspaceOptions, LeaseId, Limits, Op, Operation, Outcome,
    Place, Put, Range, RangeAnswer, Record, Refusal, Span, Txn, Write, apply,
};
use raft::Term;
use types::{ConfigNum, ShardId};

pub const SHARD: ShardId = ShardId(3);

pub const APPLYING: Applying = Applying {
    term: Term(7),
    config: ConfigNum(4),
    answer: true,
};

pub fn key(name: &str) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}

pub fn span(key: &str, end: &str) -> Span {
    Span::new(self::key(key), self::key(end))
}

pub fn put(name: &str, value: &str) -> Put {
    Put {
        key: key(name),
        value: key(value),
        ..Put::default()
    }
}

pub fn txn(success: Vec<Op>) -> Txn {
    Txn {
        success,
        ..Txn::default()
    }
}

pub fn nested(success: Vec<Op>) -> Op {
    Op::Txn(txn(success))
}

pub fn delete(start: &str, end: &str) -> keyspace::DeleteRange {
    keyspace::DeleteRange {
        span: span(start, end),
        prev_kv: false,
    }
}

/// A keyspace that is alone in its store.
#[derive(Clone)]
pub struct Keyspace {
    pub store: MemoryStore,
    pub place: Place,
    pub limits: Limits,
    pub applying: Applying,
    /// The number that the next keyspace gets.
    pub nonce: NonZeroU64,
}

impl Keyspace {
    pub fn new(options: KeyspaceOptions) -> Self {
        let mut keyspace = Self {
            store: MemoryStore::default(),
            place: Place {
                shard: SHARD,
                id: KeyspaceId(0),
            },
            limits: Limits::default(),
            applying: APPLYING,
            nonce: NonZeroU64::MIN,
        };
        keyspace.place.id = keyspace.create("tenant", options).unwrap();
        keyspace
    }

    pub fn create(&mut self, name: &str, options: KeyspaceOptions) -> Result<KeyspaceId, Refusal> {
        let action = Action::Create {
            name: name.to_owned(),
            options,
            nonce: self.nonce,
        };
        // Stands for a random number.
        self.nonce = self.nonce.checked_add(1).unwrap();
        match self.apply(action).answer {
            Ok(Answer::Created { id }) => Ok(id),
            Err(refusal) => Err(refusal),
            Ok(other) => panic!("{other:?}"),
        }
    }

    pub fn apply(&mut self, action: Action) -> Outcome {
        let operation = Operation {
            cluster_id: None,
            shard: self.place.shard,
            limits: self.limits,
            action,
        };
        let entry = operation.encode();
        assert_eq!(Operation::decode(entry.clone()).as_ref(), Ok(&operation));
        let most = Operation::most_work(entry.clone());
        let mut store = Counted::new(&mut self.store);
        let outcome = apply(entry, self.applying, &mut store).unwrap();
        let work = store.work();
        assert!(work <= most, "{operation:?} did {work} of {most}");
        outcome
    }

    pub fn write(&mut self, write: Write) -> Outcome {
        self.apply(Action::In(self.place.id, write))
    }

    /// Carries out a write, and returns its refusal.
    pub fn refusal(&mut self, write: Write) -> Option<Refusal> {
        self.write(write).answer.err()
    }

    /// Carries out a write that must succeed.
    pub fn ok(&mut self, write: Write) -> Answer {
        self.write(write).answer.unwrap()
    }

    pub fn put(&mut self, name: &str, value: &str) -> i64 {
        match self.ok(Write::Put(put(name, value))) {
            Answer::Put(answer) => answer.revision,
            other => panic!("{other:?}"),
        }
    }

    pub fn delete(&mut self, start: &str, end: &str) -> i64 {
        match self.ok(Write::DeleteRange(delete(start, end))) {
            Answer::DeleteRange(answer) => answer.revision,
            other => panic!("{other:?}"),
        }
    }

    pub fn grant(&mut self, id: i64, ttl: i64) -> Result<i64, Refusal> {
        let id = LeaseId(id);
        match self.write(Write::Grant { id, ttl }).answer {
            Ok(Answer::Granted { ttl, .. }) => Ok(ttl),
            Err(refusal) => Err(refusal),
            Ok(other) => panic!("{other:?}"),
        }
    }

    /// Clears until nothing is left to clear, and returns the number of steps.
    pub fn clear(&mut self) -> usize {
        let mut steps = 1;
        while self.ok(Write::Clear) == (Answer::Cleared { more: true }) {
            steps += 1;
        }
        steps
    }

    pub fn compact(&mut self, revision: i64) -> Result<(), Refusal> {
        self.write(Write::Compact { revision }).answer.map(|_| ())
    }

    pub fn range(&self, request: &Range) -> Result<RangeAnswer, Refusal> {
        keyspace::range(&self.store, self.place, request, u64::MAX).unwrap()
    }

    /// Reads keys with values, as of a revision.
    pub fn pairs(&self, start: &str, end: &str, revision: i64) -> Vec<(String, String)> {
        let range = Range {
            revision,
            ..Range::new(span(start, end))
        };
        let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        let kvs = self.range(&range).unwrap().kvs;
        kvs.iter()
            .map(|kv| (text(&kv.key), text(&kv.value)))
            .collect()
    }

    pub fn record(&self) -> Record {
        keyspace::record(&self.store, self.place).unwrap().unwrap()
    }
}
