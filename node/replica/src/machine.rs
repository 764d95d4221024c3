//! The state machine of a replica: the trait, and the position of an operation.

use bytes::Bytes;
use raft::{EntryId, StoreError};
use types::LogTime;

use crate::store::StateReader;
use crate::transaction::Transaction;

/// A deterministic state machine: the same operations in the same order give the same state and the same
/// responses on every replica, whatever the machine's options, clock or version. Only responses that nobody
/// waits for may differ ([`Applying::awaited`]).
///
/// The machine keeps its data in the [`StateReader`] that each method receives, and may cache parts of it.
pub trait StateMachine: Send {
    /// A query, which changes nothing.
    type Query: Send;
    /// The response to an operation or a query. A refusal is a response, too: `Err` reports a failure of the disk.
    type Response: Send;

    /// Rebuilds all caches: after a start and after a snapshot was installed.
    fn reload(&mut self, state: &dyn StateReader) -> Result<(), StoreError>;

    /// Returns a refusal of an operation that needs no log entry, judged by the state applied here. It saves the log from
    /// operations that would only be refused when applied. A machine may refuse only what it may refuse at any time,
    /// because later attempts of the operation are judged anew. Most machines refuse nothing early.
    fn refuse_early(&self, _operation: &Bytes) -> Option<Self::Response> {
        None
    }

    /// Returns the most work that applying the operation may take, beside that of its bytes: see
    /// [`Options::max_apply_work`](crate::Options::max_apply_work). It is 0 for operations that are bounded by their bytes. A value
    /// that an operation reads or makes has at most `max_value_bytes`.
    fn most_work(&self, _operation: &Bytes, _max_value_bytes: u32) -> u64 {
        0
    }

    /// Returns the bytes that the answer to a query takes in memory. The replica answers only as many queries in a poll as its work
    /// allows.
    fn answer_bytes(&self, _response: &Self::Response) -> usize {
        0
    }

    /// Returns the least birth of a session that is new to this machine (see [`crate::session`]). The leader gives new sessions no
    /// lesser one.
    fn min_birth(&self) -> LogTime {
        LogTime(0)
    }

    /// Returns an operation that is due at log time `now` although no client asks for it. The leader asks at times and proposes it; its
    /// response goes to nobody. Nothing may depend on when a replica is asked, or whether: only on the operation, where it is applied.
    /// Most machines need none.
    fn upkeep(&mut self, _now: LogTime) -> Option<Bytes> {
        None
    }

    /// Applies one operation. A malformed one is answered with a refusal and changes nothing. What it writes, and in which
    /// order, depends on the operations before it alone, and not on how they are cut into batches: replicas compare it
    /// ([`Digest`](crate::Digest)).
    fn apply(
        &mut self,
        at: Applying,
        operation: Bytes,
        state: &mut Transaction<'_>,
    ) -> Result<Self::Response, StoreError>;

    /// Writes the changes that `apply` kept in caches. The replica calls it once after the operations of a batch and before
    /// the commit, so that many operations of one session cost one record. These
    /// writes may depend on where the batch ends, and are no part of the digest.
    fn finish_batch(&mut self, state: &mut Transaction<'_>) -> Result<(), StoreError>;

    /// Answers a query from the state as of the last commit.
    fn query(
        &self,
        query: &Self::Query,
        state: &dyn StateReader,
    ) -> Result<Self::Response, StoreError>;
}

/// The log position and log time of an operation that is applied. All but `awaited` is the same on every replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applying {
    /// The entry that carries the operation.
    pub entry: EntryId,
    /// The log time that the leader stamped.
    pub time: LogTime,
    /// The group's feature level: the machine writes nothing that a version of this level can't read.
    pub feature_level: u32,
    /// The largest value that the leader's options allow, stamped into the log, so that replicas with
    /// other options decide alike.
    pub max_value_bytes: u32,
    /// True if this replica answers a request with the response. Where nobody waits, on followers and when a log is applied again, a
    /// machine may return any response, so that it needn't build a large one. The changes of the state and of caches must be the
    /// same.
    pub awaited: bool,
}
