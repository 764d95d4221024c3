//! Answers and events of a keyspace.

use bytes::Bytes;

use crate::{KeyspaceId, LeaseId, Place};

/// A key with its value at some revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// The value, unless only keys were asked for.
    pub value: Bytes,
    /// The revision that created the key.
    pub create_revision: i64,
    /// The revision that wrote this value.
    pub mod_revision: i64,
    /// The number of puts since the key was created.
    pub version: i64,
    /// The lease that the key is attached to; 0 is none.
    pub lease: LeaseId,
}

/// The answer to a range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeAnswer {
    /// The newest revision when the range was read.
    pub revision: i64,
    /// The pairs.
    pub kvs: Vec<KeyValue>,
    /// True if the limit left out pairs.
    pub more: bool,
    /// The number of keys of the span, regardless of limit and filters.
    pub count: i64,
}

/// The answer to one operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpAnswer {
    /// Of a range.
    Range(RangeAnswer),
    /// Of a put.
    Put(PutAnswer),
    /// Of a deletion.
    DeleteRange(DeleteRangeAnswer),
    /// Of a nested transaction.
    Txn(TxnAnswer),
}

/// The answer to a put.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PutAnswer {
    /// The revision of the put.
    pub revision: i64,
    /// The pair before, if it was asked for and existed.
    pub prev_kv: Option<KeyValue>,
}

/// The answer to a deletion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteRangeAnswer {
    /// The revision of the deletion, or the newest if nothing was deleted.
    pub revision: i64,
    /// The number of deleted keys.
    pub deleted: i64,
    /// The pairs before, if they were asked for.
    pub prev_kvs: Vec<KeyValue>,
}

/// The answer to a transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TxnAnswer {
    /// The newest revision after the transaction. As in etcd, it is 0 in the answer to a nested one.
    pub revision: i64,
    /// True if all conditions held.
    pub succeeded: bool,
    /// The answers of the operations that were carried out.
    pub responses: Vec<OpAnswer>,
}

/// The answer to an operation of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Of a put.
    Put(PutAnswer),
    /// Of a deletion.
    DeleteRange(DeleteRangeAnswer),
    /// Of a transaction.
    Txn(TxnAnswer),
    /// Of a compaction, a revoke, an expiry or a change of options: the newest revision.
    Done {
        /// The newest revision.
        revision: i64,
    },
    /// Of a granted lease.
    Granted {
        /// The newest revision.
        revision: i64,
        /// The lease.
        id: LeaseId,
        /// Its time to live, in seconds.
        ttl: i64,
        /// The number of the grant, which no other grant of the keyspace has.
        grant: u64,
    },
    /// Of a step of clearing.
    Cleared {
        /// True if there is more to clear.
        more: bool,
    },
    /// Of a created keyspace.
    Created {
        /// Its id.
        id: KeyspaceId,
    },
}

/// A change of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The pair after a put. After a deletion it has only the key and the revision of the deletion.
    pub kv: KeyValue,
    /// True if the key was deleted.
    pub deleted: bool,
    /// The position among the changes of its revision.
    pub position: u32,
}

/// A change that an operation made, for those who follow a keyspace: watch hubs, lease timers and the steps of clearing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The keyspace was created.
    Created,
    /// Keys were changed. The events have the outcome's revision, and are in the order of their positions.
    Changed(Vec<Event>),
    /// A lease was granted.
    Granted {
        /// The lease.
        id: LeaseId,
        /// Its time to live, in seconds.
        ttl: i64,
        /// The number of the grant.
        grant: u64,
    },
    /// A lease was revoked, or it has expired.
    Revoked {
        /// The lease.
        id: LeaseId,
    },
    /// Users, roles or permissions have changed, or whether they are enforced.
    AuthChanged,
    /// History was compacted, so there is something to clear.
    Compacted {
        /// The compacted revision.
        compacted: i64,
    },
    /// The keyspace was deleted: its watches and leases end, and its rows are to be cleared.
    Deleted,
}

/// The outcome of an operation of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The answer. Replicas that were told that nobody waits leave out the pairs of ranges.
    pub answer: Result<Answer, crate::Refusal>,
    /// The keyspace; `None` if the operation names none: it couldn't be read, or a creation was refused.
    pub place: Option<Place>,
    /// The newest revision of the keyspace; 0 if there is none.
    pub revision: i64,
    /// The effects, in order; none after a refusal.
    pub effects: Vec<Effect>,
}

impl Outcome {
    /// Returns the outcome of a refusal.
    pub(crate) fn refused(refusal: crate::Refusal, place: Option<Place>) -> Self {
        Self {
            answer: Err(refusal),
            place,
            revision: 0,
            effects: Vec::new(),
        }
    }

    /// Returns the changes of keys, which all have the same revision.
    pub fn events(&self) -> &[Event] {
        let mut effects = self.effects.iter();
        let events = effects.find_map(|effect| match effect {
            Effect::Changed(events) => Some(events.as_slice()),
            _ => None,
        });
        events.unwrap_or_default()
    }
}
