//! What members say to each other. One variant a message, with named fields.

use bytes::Bytes;
use types::NodeId;

use crate::{Entry, EntryId, Index, Membership, Term};

/// A message with its sender, receiver and the sender's term when it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Who sent it.
    pub from: NodeId,
    /// Who shall get it.
    pub to: NodeId,
    /// The sender's own term; a pre-candidate's is not yet raised.
    pub term: Term,
    /// What it says.
    pub message: Message,
}

/// A Raft message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// "Would you vote for me in `next_term`?" Changes nothing at the receiver (thesis §9.6).
    PreVote {
        /// The term that the sender would campaign in.
        next_term: Term,
        /// The last entry of the sender's log.
        last: EntryId,
    },
    /// The answer to a `PreVote`.
    PreVoteReply {
        /// The term that was asked about.
        next_term: Term,
        /// Whether the vote would be granted.
        granted: bool,
    },
    /// A candidate asks for a vote in the envelope's term (Raft §5.2).
    Vote {
        /// The last entry of the candidate's log.
        last: EntryId,
        /// The leader asked for this election, so its lease doesn't stand against it (thesis §3.10).
        transfer: bool,
    },
    /// The answer to a `Vote`.
    VoteReply {
        /// Whether the vote was granted.
        granted: bool,
    },
    /// Entries to append after `prev` (Raft §5.3). Empty to probe.
    Append {
        /// The entry that must precede `entries`.
        prev: EntryId,
        /// Contiguous entries after `prev`.
        entries: Vec<Entry>,
        /// The leader's commit index.
        commit: Index,
    },
    /// All entries up to `match_index` equal the leader's and are durable here.
    AppendAccepted {
        /// The highest index known to match.
        match_index: Index,
    },
    /// `prev` was not in the log.
    AppendRejected {
        /// The index of the `prev` that was refused, to tell a stale answer.
        refused: Index,
        /// The highest entry that might match: the follower's last entry whose term is at most
        /// `prev`'s. The leader skips whole terms with it (Raft §5.3, fast backtracking).
        hint: EntryId,
    },
    /// The leader lives; also a read round's question (thesis §6.4).
    Heartbeat {
        /// The leader's commit index, no higher than what it knows to match at the receiver.
        commit: Index,
        /// The number of the latest read round, echoed by the reply.
        read_round: u64,
        /// The leader serves reads by lease: a broken connection must not shorten its lease.
        lease: bool,
    },
    /// The answer to a `Heartbeat`.
    HeartbeatReply {
        /// The round of the heartbeat.
        read_round: u64,
    },
    /// A part of a snapshot, for a follower whose next entry is compacted (Raft §7).
    SnapshotChunk(SnapshotChunk),
    /// How far a snapshot has come at the receiver.
    SnapshotReply {
        /// The last entry that the snapshot covers: its name.
        snapshot: EntryId,
        /// The number of the next chunk that the receiver needs; a sender resumes there.
        next_chunk: u64,
        /// Whether it goes on.
        status: SnapshotStatus,
    },
    /// The leader hands over: campaign at once (thesis §3.10).
    TimeoutNow,
    /// A node that is no member (a wiped disk at a known address, say) asks to be let in.
    JoinRequest {
        /// Where the sender is reached.
        address: String,
    },
}

/// A part of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotChunk {
    /// What the snapshot covers.
    pub meta: SnapshotMeta,
    /// The chunk's number, from zero.
    pub number: u64,
    /// Whether it is the last.
    pub done: bool,
    /// CRC-32 of `data`.
    pub checksum: u32,
    /// The content; opaque here.
    pub data: Bytes,
}

/// What a snapshot covers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// The last entry whose effect it holds.
    pub last: EntryId,
    /// The membership in force at that entry.
    pub membership: Membership,
}

/// A receiver's view of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotStatus {
    /// Send on from `next_chunk`.
    Receiving,
    /// Durable and in force.
    Installed,
    /// It can't be taken (a bad checksum, no space); start over later.
    Failed,
}
