//! The result of a message.

use types::NodeId;

use crate::{EntryId, Envelope, Term};

/// The result of a message: done, or left for the driver to handle.
#[derive(Debug, PartialEq, Eq)]
pub enum Stepped {
    /// Raft handled the message.
    Done,
    /// A snapshot message of the current term, for the driver's snapshot transfer.
    Snapshot(Envelope),
    /// A node asks to be added to the group.
    JoinRequest {
        /// The node that asks.
        node: NodeId,
        /// The node's address.
        address: String,
    },
}

/// The reason for refusing a message. Nothing changed except, perhaps, the term.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// The message is for another node: the sender has a stale address.
    #[error("message for {to}, but this is {this}")]
    NotForThisNode {
        /// The receiver in the message.
        to: NodeId,
        /// This node.
        this: NodeId,
    },
    /// The message contradicts itself or facts that this node knows for certain.
    #[error("malformed message from {from}: {what}")]
    Malformed {
        /// The sender.
        from: NodeId,
        /// The contradiction.
        what: &'static str,
    },
    /// The message would overwrite a committed entry: the sender has another history. The operator should check that no
    /// disk was restored from a copy and no node id is used twice.
    #[error("{from} contradicts the committed entry {committed}")]
    ContradictsCommitted {
        /// The sender.
        from: NodeId,
        /// The committed entry.
        committed: EntryId,
    },
    /// The sender leads in a term in which another node leads: one of the voters voted twice. The operator should check
    /// that no disk was restored from a copy and no node id is used twice.
    #[error("{from} leads in {term}, in which {leader} leads")]
    TwoLeaders {
        /// The sender.
        from: NodeId,
        /// The term.
        term: Term,
        /// The node that leads in the term, as far as this node knows.
        leader: NodeId,
    },
    /// The message carries an entry, or a snapshot up to it, that this version can't read. What is stored here is whole;
    /// the node needs a newer version. Raft itself never returns this error: its driver knows what entries mean.
    #[error(
        "{from} sent the entry {entry}, which this version can't read ({what}): upgrade this node"
    )]
    Unreadable {
        /// The sender.
        from: NodeId,
        /// The entry.
        entry: EntryId,
        /// The reason.
        what: String,
    },
}
