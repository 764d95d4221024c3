//! The messages between members: one variant a message, with named fields.

use bytes::Bytes;
use types::NodeId;

use crate::{Entry, EntryId, Index, Membership, Term};

/// A message with its sender, its receiver, and the sender's term when it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The sender.
    pub from: NodeId,
    /// The receiver.
    pub to: NodeId,
    /// The sender's own term, which a pre-candidate has not raised yet.
    pub term: Term,
    /// The content.
    pub message: Message,
}

/// A Raft message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Asks whether the receiver would vote for the sender in `next_term`. Changes nothing at the receiver (thesis
    /// §9.6).
    PreVote {
        /// The term that the sender would campaign in.
        next_term: Term,
        /// The last entry of the sender's log.
        last: EntryId,
    },
    /// The answer to a `PreVote`.
    PreVoteReply {
        /// The term in the `PreVote`.
        next_term: Term,
        /// True if the receiver would grant the vote.
        granted: bool,
    },
    /// Asks for a vote in the envelope's term (Raft §5.2).
    Vote {
        /// The last entry of the candidate's log.
        last: EntryId,
        /// True if the leader asked for this election, so that its lease doesn't prevent it (thesis §3.10).
        transfer: bool,
    },
    /// The answer to a `Vote`.
    VoteReply {
        /// True if the vote was granted.
        granted: bool,
    },
    /// Carries entries to append after `prev` (Raft §5.3); none in a probe.
    Append {
        /// The entry that must precede `entries`.
        prev: EntryId,
        /// Contiguous entries after `prev`.
        entries: Vec<Entry>,
        /// The leader's commit index.
        commit: Index,
    },
    /// Reports that all entries up to `match_index` equal the leader's and are durable at the sender.
    AppendAccepted {
        /// The highest index known to match.
        match_index: Index,
    },
    /// Reports that the follower's log doesn't contain `prev`.
    AppendRejected {
        /// The index of the refused `prev`, by which the leader detects a stale answer.
        refused: Index,
        /// The highest entry that might match: the follower's last entry at or before `prev` whose term is at most
        /// `prev`'s. With it the leader skips whole terms (Raft §5.3, fast backtracking).
        hint: EntryId,
    },
    /// Shows that the leader is alive; also asks for the confirmation of a read round (thesis §6.4).
    Heartbeat {
        /// The leader's commit index, at most the receiver's match index.
        commit: Index,
        /// The number of the latest read round, echoed by the reply.
        read_round: u64,
        /// True if the leader serves reads by lease: then a broken connection must not start an election early.
        lease: bool,
        /// True if the heartbeat only tells a commit index, so that the leader needs no answer.
        quiet: bool,
        /// The comparison of states that the leader makes now.
        comparison: Option<Comparison>,
        /// True if the leader answers `ReadIndex`.
        answers_reads: bool,
    },
    /// The answer to a `Heartbeat`.
    HeartbeatReply {
        /// The read round of the heartbeat.
        read_round: u64,
        /// The highest feature level that the sender supports ([`Options::feature_level`](crate::Options)).
        feature_level: u32,
        /// The sender's promise to leaders with leases.
        lease: LeasePromise,
        /// The sender's digest for the leader's comparison, if it has one.
        digest: Option<StateDigest>,
    },
    /// A chunk of a snapshot, for a follower whose next entry is compacted (Raft §7).
    SnapshotChunk(SnapshotChunk),
    /// Reports the receiver's progress with a snapshot.
    SnapshotReply {
        /// The last entry that the snapshot covers, which identifies the snapshot.
        snapshot: EntryId,
        /// The serial of the chunk that this answers.
        serial: u64,
        /// The number of the next chunk that the receiver needs; the sender resumes there.
        next_chunk: u64,
        /// The state of the transfer.
        status: SnapshotStatus,
    },
    /// Asks the leader for a read index: its commit index, confirmed by a quorum after this message came (thesis §6.4).
    ReadIndex {
        /// The number of the question.
        question: u64,
    },
    /// The answer to a `ReadIndex`.
    ReadIndexReply {
        /// The number in the `ReadIndex`.
        question: u64,
        /// The read index.
        index: Index,
    },
    /// Tells the receiver to campaign at once, as the target of a leadership transfer (thesis §3.10).
    TimeoutNow,
    /// Asks the leader to add the sender, which is no member (for example after its disk was wiped).
    JoinRequest {
        /// The sender's address.
        address: String,
    },
}

/// A member's promise to leaders that serve reads by lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeasePromise {
    /// The time in milliseconds for which the member helps to elect no other leader, after it heard a leader with a lease and
    /// after its own start. Zero if it promises nothing.
    pub election_ms: u32,
    /// The member's own option [`Options::lease_reads`](crate::Options).
    pub lease_reads: bool,
}

/// The digest of a state after an entry. Opaque to Raft.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateDigest {
    /// The entry after which the digest begins. Only digests that begin at the same entry can be compared.
    pub since: Index,
    /// The last entry that the digest covers.
    pub index: Index,
    /// The digest.
    pub value: u64,
}

/// A leader's comparison of its members' states after an entry. Opaque to Raft.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// The entry after which the digests begin.
    pub since: Index,
    /// The last entry that the digests cover.
    pub index: Index,
    /// The digest that a quorum of the voters has, once the leader knows it.
    pub agreed: Option<u64>,
}

/// A chunk of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotChunk {
    /// The snapshot's last entry and membership.
    pub meta: SnapshotMeta,
    /// The chunk's number, from zero.
    pub number: u64,
    /// The number of this sending, from zero. A chunk that is sent again gets a new one, and the answer repeats it.
    pub serial: u64,
    /// True if this is the last chunk.
    pub done: bool,
    /// CRC-32 of `data`.
    pub checksum: u32,
    /// The feature level of the group's log at the snapshot's end. Opaque to Raft.
    pub feature_level: u32,
    /// The content; opaque to Raft.
    pub data: Bytes,
}

/// The last entry that a snapshot covers, and the membership at that entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// The last entry whose effect the snapshot holds.
    pub last: EntryId,
    /// The membership in force at that entry.
    pub membership: Membership,
}

/// A receiver's view of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotStatus {
    /// The sender should continue from `next_chunk`.
    Receiving,
    /// The snapshot is durable and in force.
    Installed,
    /// The receiver can't take the snapshot (a bad checksum, no space); the sender should start again later.
    Failed,
}
