//! A call and the memory of its attempts, the bounds of a stream, and the consequences of results.

use std::sync::Arc;

use types::ConfigNum;

use crate::Time;
use crate::attempts::Attempts;
use crate::refusal::{Failure, Repeat};

/// A caller's request, as far as the engine needs to know it.
pub trait Call {
    /// Returns the hash of the key, which decides the shard.
    fn hash(&self) -> u64;
    /// Returns the number of bytes that the call counts against the bounds.
    fn cost(&self) -> usize;
    /// Returns the right to make the call again.
    fn repeat(&self) -> Repeat;
    /// Returns the moment after which the caller expects an error.
    fn deadline(&self) -> Time;
    /// Returns true if the caller has gone away.
    fn is_abandoned(&self) -> bool {
        false
    }
    /// Gives back the call's share of the bytes in flight, because it waits for its shard. The driver bounds the bytes of calls
    /// that did so. Called each time that the call begins to wait.
    fn release_budget(&mut self) {}
}

/// A call and the memory of its attempts.
#[derive(Debug)]
pub struct Tracked<C> {
    /// The call.
    pub call: C,
    /// Its attempts so far.
    pub attempts: Attempts,
}

/// A call that ended without an answer.
#[derive(Debug)]
pub struct Ended<C> {
    /// The call.
    pub call: C,
    /// The reason.
    pub failure: Failure,
}

/// The bounds of one stream.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most calls that are sent and not answered.
    pub max_in_flight: usize,
    /// The most sequences of a session from the oldest unfinished write to the newest.
    pub max_unacknowledged: usize,
    /// The most calls in one batch.
    pub max_batch_items: usize,
    /// A batch ends before the call that would exceed this many bytes.
    pub max_batch_bytes: usize,
}

/// The consequences of a batch of results for the connection.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Consequence {
    /// True if the node served at least one call, or refused it as a leader does.
    pub served: bool,
    /// Set if this node is the wrong one.
    pub reroute: Option<Reroute>,
    /// A later configuration than the known one, which the node has.
    pub behind: Option<ConfigNum>,
}

/// The order to ask another node: the one at this address, if the node named one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reroute(pub Option<Arc<str>>);
