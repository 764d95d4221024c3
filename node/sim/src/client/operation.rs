//! The operations of a client.

use bytes::Bytes;
use request::{Repeat, Time};
use shardkv::{Query, Write};
use types::{ShardSet, shard_of};

use crate::history::RecordId;
use crate::queue::Micros;

/// The duration of an answered request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timing {
    /// The key.
    pub key: Bytes,
    /// The time of its start.
    pub began: Micros,
    /// The time until its answer.
    pub took: Micros,
}

/// An operation that a scripted client does, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScriptedOperation {
    /// A write.
    Write(Write),
    /// A read of a key.
    Get(Bytes),
}

/// An operation in flight.
#[derive(Debug)]
pub(super) struct Operation {
    pub(super) body: Body,
    pub(super) records: Vec<(Bytes, RecordId)>,
    pub(super) began: Micros,
}

/// The write or the query of an operation.
#[derive(Clone, Debug)]
pub(super) enum Body {
    /// A write, with a session or without.
    Write(Write, Repeat),
    /// A query.
    Read(Query),
}

/// An operation as the engine sees it.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) number: u64,
    pub(super) hash: u64,
    pub(super) repeat: Repeat,
    pub(super) deadline: Micros,
    pub(super) abandoned: bool,
}

impl request::Call for Call {
    fn hash(&self) -> u64 {
        self.hash
    }

    fn cost(&self) -> usize {
        1
    }

    fn repeat(&self) -> Repeat {
        self.repeat
    }

    fn deadline(&self) -> Time {
        Time::from_micros(self.deadline)
    }

    fn is_abandoned(&self) -> bool {
        self.abandoned
    }
}

/// Returns true if a query covers a key.
pub(super) fn covers(query: &Query, key: &[u8], shards: u32) -> bool {
    match query {
        Query::Page(scan) => scan_covers(scan.shards.as_ref(), key, shards),
        _ => true,
    }
}

/// Returns true if a scan of these shards covers a key.
pub(super) fn scan_covers(scanned: Option<&ShardSet>, key: &[u8], shards: u32) -> bool {
    scanned.is_none_or(|scanned| scanned.contains(shard_of(key, shards)))
}

/// Returns the key with this number.
pub fn key(number: u64) -> Bytes {
    Bytes::from(format!("key{number:02}"))
}
