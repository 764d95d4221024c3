//! The Raft consensus library: one member of one group as a deterministic state machine without I/O.
//!
//! [`Raft`] has no clock, thread, socket or disk. A *driver* owns those. It passes inputs in (messages, ticks, proposals),
//! takes a [`Ready`] out, and carries it out. Equal inputs in equal order, with an equal seed, give equal outputs, so a
//! simulator can run whole clusters from one number.
//!
//! "Raft" in references means the extended paper of Ongaro and Ousterhout, "thesis" Ongaro's dissertation.
//!
//! # The driver loop
//!
//! 1. Open the store, call [`LogStore::load`] once, and pass the result to [`Raft::recover`] with the index that the state
//!    machine holds durably.
//! 2. Pass inputs in, as many as are there:
//!    - [`Raft::step`] for each message that arrived;
//!    - [`Raft::tick`] at a fixed interval; the driver chooses its length, [`Options`] counts in ticks;
//!    - [`Raft::propose`], [`Raft::read_index`], [`Raft::change_membership`], [`Raft::transfer_leadership`] for callers;
//!    - [`Raft::handle_disconnect`] when a connection broke, [`Raft::handle_pause`] when time passed without ticks.
//! 3. While [`Raft::needs_poll`] is true, call [`Raft::poll_ready`] and carry the [`Ready`] out, in the order of the next
//!    section.
//! 4. Go to 2. What gathered between two polls shares one write, so a busy member needs one fsync for many proposals.
//!
//! This is a whole group of one voter, from its first membership to a committed entry:
//!
//! ```
//! use std::ops::RangeInclusive;
//!
//! use bytes::Bytes;
//! use raft::{
//!     Entry, EntryId, Envelope, Index, LogBatch, LogReader, LogState, LogStore, Membership, Options, Payload, Raft, Role,
//!     SnapshotMeta, StoreError,
//! };
//! use types::NodeId;
//!
//! /// A log in memory. A real store returns from `write` when the batch survives a power cut.
//! #[derive(Default)]
//! struct Disk {
//!     state: LogState,
//!     entries: Vec<Entry>,
//! }
//!
//! impl LogReader for Disk {
//!     fn entries(&self, range: RangeInclusive<Index>, _max_bytes: usize) -> Result<Vec<Entry>, StoreError> {
//!         let wanted = self.entries.iter().filter(|entry| range.contains(&entry.id.index));
//!         Ok(wanted.cloned().collect())
//!     }
//! }
//!
//! impl LogStore for Disk {
//!     fn load(&mut self) -> Result<LogState, StoreError> {
//!         Ok(self.state.clone())
//!     }
//!
//!     fn write(&mut self, batch: &LogBatch) -> Result<(), StoreError> {
//!         if let Some(hard_state) = batch.hard_state {
//!             self.state.hard_state = hard_state;
//!         }
//!         if let Some(first) = batch.entries.first() {
//!             self.entries.retain(|entry| entry.id.index < first.id.index);
//!             self.entries.extend(batch.entries.iter().cloned());
//!         }
//!         if let Some(last) = self.entries.last() {
//!             self.state.last_index = last.id.index;
//!         }
//!         Ok(())
//!     }
//!
//!     fn compact(&mut self, _base: &SnapshotMeta) -> Result<(), StoreError> {
//!         Ok(())
//!     }
//!
//!     fn begin_install(&mut self, _last: EntryId) -> Result<(), StoreError> {
//!         Ok(())
//!     }
//! }
//!
//! /// A group of one has nobody to send to.
//! fn send(messages: Vec<Envelope>) {
//!     assert!(messages.is_empty());
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let node = NodeId(1);
//! let mut disk = Disk::default();
//! // Bootstrap: the empty log starts after a base that carries the first membership.
//! disk.state.base.membership = Membership::of_voters([(node, "localhost:7000")]);
//!
//! let state = disk.load()?;
//! let mut raft = Raft::recover(Options::default(), node, &state, Index(0), 42, &disk)?;
//! let (mut proposed, mut applied) = (None, Vec::new());
//! for _ in 0..200 {
//!     raft.tick();
//!     if raft.role() == Role::Leader && proposed.is_none() {
//!         proposed = Some(raft.propose(Bytes::from_static(b"x = 1"))?);
//!     }
//!     while raft.needs_poll() {
//!         let ready = raft.poll_ready(&disk)?;
//!         send(ready.messages);
//!         if let Some(persist) = ready.persist {
//!             let persisted = persist.write(&mut disk).map_err(|(_persist, error)| error)?;
//!             send(raft.handle_persisted(persisted));
//!         }
//!         for entry in ready.committed {
//!             if let Payload::Command(command) = entry.payload {
//!                 applied.push((entry.id, command));
//!             }
//!         }
//!     }
//! }
//! assert_eq!(applied, [(proposed.unwrap(), Bytes::from_static(b"x = 1"))]);
//! # Ok(())
//! # }
//! ```
//!
//! # What `Ready` orders
//!
//! 1. **Send `messages`.** They promise nothing about this member's disk, so they leave before the write. A leader's
//!    appends are among them: followers write while the leader writes (thesis §10.2.1).
//! 2. **Write `persist`** with [`Persist::write`], and pass the [`Persisted`] that it returns to
//!    [`Raft::handle_persisted`]. **Send the messages that this returns.** They are votes, acknowledgements and whatever
//!    else must not leave before the write is durable.
//! 3. **Apply `committed`**, in order, each entry once. They are durable here already.
//! 4. **Answer `reads`**: all reads with a ticket of at most [`ReadGrant::ticket`], when [`ReadGrant::index`] is applied.
//! 5. **Send snapshots** to `snapshots_wanted`. A follower stays in that list until it has one.
//!
//! Messages wait for the disk for two reasons, and no other:
//!
//! - The term or the vote isn't durable. Then every message waits, because a member that forgets its term must not have
//!   spoken in it (Raft §5.2).
//! - The message acknowledges entries, or an installed snapshot, that aren't durable (Raft §5.3).
//!
//! The compiler enforces the order: the waiting messages are private to [`Persist`], and only a store that returned `Ok`
//! turns it into [`Persisted`]. At most one write is out at a time. While it is, the driver may pass inputs in and poll, so a
//! write may run on another thread; the next `persist` comes after [`Raft::handle_persisted`].
//!
//! # Roles
//!
//! - A **follower** ([`Role::Follower`]) takes entries from the leader. If it hears none for a random time between one and
//!   two election timeouts, it becomes a pre-candidate. Learners stay followers.
//! - A **pre-candidate** asks whether it could win, without raising its term (`PreVote`, thesis §9.6). So a member that was cut
//!   off doesn't depose a leader that works when it returns.
//! - A **candidate** raises its term and asks for votes.
//! - The **leader** appends a no-op first; committing it commits all entries before it (Raft §5.4.2). It steps down when no
//!   quorum answered for an election timeout (`CheckQuorum`), so that it doesn't hold callers that it can't serve.
//!
//! The role is a field of one struct, so an error can't leave a member without one.
//!
//! # Guarantees
//!
//! - At most one leader per term. Committed entries are in the log of every later leader, at the same index.
//! - Every member is given the same entries to apply, in the same order, without gaps.
//! - A proposal that returned an [`EntryId`] takes effect if and only if the entry with this id is committed. Another leader's
//!   entry may be committed at the same index, so compare the whole id. After a loss of leadership the outcome is unknown
//!   until an entry is applied at that index.
//! - A message that contradicts itself or a committed entry gives a [`StepError`] and changes nothing but, perhaps, the term.
//!   Lost, repeated, delayed and reordered messages are harmless.
//!
//! # Membership
//!
//! A [`MembershipChange`] adds, promotes or removes one member at a time, so that every quorum before it shares a member with
//! every quorum after it (thesis §4.1). It is in force from when it is *appended*; a truncated change is undone. A new
//! member starts as a learner, which counts for no quorum, and may be promoted once it has nearly caught up. The leader
//! accepts a change only when the one before and an entry of its own term are committed. A leader that removes itself leads
//! until that is committed, then names a successor. Every entry of kind [`Payload::Membership`] carries the whole membership,
//! so the driver needs no history to know the addresses.
//!
//! # Snapshots and compaction
//!
//! [`Raft::compact`] forgets a prefix of the log whose effects the state machine holds durably. A follower that needs a
//! forgotten entry appears in [`Ready::snapshots_wanted`]. Raft doesn't read or write snapshots. The driver sends chunks with
//! [`Raft::send_snapshot_message`], gets chunks and replies back as [`Stepped::Snapshot`], and reports
//! [`Raft::handle_snapshot_installed`] or [`Raft::handle_snapshot_failed`] on the leader. The receiver stores the whole
//! snapshot durably, and only then calls [`Raft::install`].
//!
//! # Reads
//!
//! [`Raft::read_index`] gives a ticket without a log entry (thesis §6.4). The leader asks a quorum once, for all reads that
//! wait, whether it still leads; the grant carries the commit index of the moment of asking. A new leader refuses
//! ([`ReadError::NotReady`]) until it has committed an entry of its term. With [`Options::lease_reads`] a quorum's answer
//! serves reads for half an election timeout, without a round trip: half of the shortest that a voter has. That is right only
//! while no clock runs twice as fast as another, so it is off by default. Each voter must hold its votes back for that time, also after
//! a restart; voters tell with their answers to heartbeats, and until all have told, there is no lease.
//!
//! # What the driver must never do
//!
//! - Call [`Raft::recover`] with an index that the state machine doesn't hold durably, or [`Raft::compact`] beyond one that
//!   it does: entries would be lost.
//! - Go on after a [`StoreError`] other than `Full`. An fsync that failed says nothing about the disk. Stop the process.
//! - Drop a [`Persist`]. After `Full` it comes back for another try; until it is written this member can promise nothing.
//! - Start an empty disk under the id of an old one. It forgot its votes. A lost disk comes back as a new member.
//! - Apply entries of `committed` twice, out of order, or only in part.
//! - Use one seed for all members: their elections would collide.
//! - Let time pass without ticks and without [`Raft::handle_pause`] when leases are on.
//!
//! # What it doesn't do
//!
//! It doesn't encode messages, find peers, retry proposals, batch callers or make exactly-once out of at-least-once. The
//! crate `replica` does the last three on top of this one.

mod backlog;
mod bug;
mod change;
mod election;
mod entry;
mod follower_reads;
mod growth;
mod leading;
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
mod step;
mod store;
mod told;

pub use bug::{BUGS_COMPILED_IN, Bug, Bugs};
pub use change::ChangeError;
pub use election::TransferError;
pub use entry::{Entry, Payload};
pub use membership::{
    MAX_ADDRESS_BYTES, MAX_MEMBERS, Member, MemberKind, Membership, MembershipChange,
    MembershipError,
};
pub use message::{
    Comparison, Envelope, LeasePromise, Message, SnapshotChunk, SnapshotMeta, SnapshotStatus,
    StateDigest,
};
pub use options::{Options, OptionsError};
pub use position::{EntryId, Index, Term};
pub use raft::{Raft, RecoverError};
pub use reads::ReadError;
pub use ready::{Persist, Persisted, ReadGrant, ReadTicket, Ready};
pub use replication::ProposeError;
pub use step::{StepError, Stepped};
pub use store::{HardState, LogBatch, LogReader, LogState, LogStore, StoreError};

/// The role of a member in its group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Takes entries from a leader, or waits for one. Learners stay in this role.
    #[default]
    Follower,
    /// Asks whether it could win an election, without a new term (thesis §9.6).
    PreCandidate,
    /// Asks for votes in a new term.
    Candidate,
    /// Appends entries and replicates them.
    Leader,
}

/// The mode in which a leader sends entries to a follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgressState {
    /// One append at a time, to find where the logs agree.
    Probe,
    /// A window of appends, sent ahead of their answers.
    Replicate,
    /// The entries it needs are compacted; a snapshot is on its way.
    Snapshot,
}
