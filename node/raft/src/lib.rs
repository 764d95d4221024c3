//! The Raft consensus library: sans-IO and deterministic.

mod bug;
mod change;
mod election;
mod entry;
mod log;
mod membership;
mod message;
mod options;
mod output;
mod position;
mod progress;
mod raft;
mod reads;
mod ready;
mod replication;
mod store;

pub use bug::{BUGS_COMPILED_IN, Bug, Bugs};
pub use change::ChangeError;
pub use election::TransferError;
pub use entry::{Entry, Payload};
pub use membership::{
    MAX_ADDRESS_BYTES, MAX_MEMBERS, Member, MemberKind, Membership, MembershipChange,
    MembershipError,
};
pub use message::{Envelope, Message, SnapshotChunk, SnapshotMeta, SnapshotStatus};
pub use options::{Options, OptionsError};
pub use position::{EntryId, Index, Term};
pub use raft::{Raft, RecoverError, StepError, Stepped};
pub use reads::ReadError;
pub use ready::{Persist, Persisted, ReadGrant, ReadTicket, Ready};
pub use replication::ProposeError;
pub use store::{HardState, LogBatch, LogReader, LogState, LogStore, StoreError};

/// What a member does at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Follows a leader, or waits for one. Learners stay here.
    #[default]
    Follower,
    /// Asks whether an election could be won, without a new term (thesis §9.6).
    PreCandidate,
    /// Asks for votes in a new term.
    Candidate,
    /// Leads.
    Leader,
}

/// How a leader sends entries to a follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgressState {
    /// One append at a time, to find where the logs agree.
    Probe,
    /// A window of appends, sent ahead of their answers.
    Replicate,
    /// The entries it needs are compacted; a snapshot is on its way.
    Snapshot,
}
