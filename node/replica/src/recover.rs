//! The start of a replica: with empty stores, with a group's first membership, or from the stores of an earlier process.
//!
//! The state and the log are two stores that can't be written together. An install marks the log, replaces the state, and
//! resets the log, in this order. A compaction cuts the log only below the index that the state holds durably. So when a
//! node opens its disk, the state's position must lie in the log. If it lies after the log's end, there are two cases. A
//! mark in the log says that a crash interrupted an install; the replica finishes it. Without the mark, entries that this
//! node may have acknowledged are lost; the node must not vote, and doesn't start.

use raft::{
    EntryId, HardState, Index, LogBatch, LogState, LogStore, Membership, Raft, SnapshotMeta,
    StoreError, Term,
};
use types::NodeId;

use crate::bug::Bug;
use crate::level::check_state;
use crate::{Applied, Options, Replica, StateMachine, StateStore, WriteBatch};

/// The last entry of the snapshot from which every group seems to be restored. A member that joins later with an empty
/// disk therefore gets the genesis by a snapshot, never by replay.
const BEGINNING: EntryId = EntryId::new(Term(1), Index(1));

/// The reason that a replica can't start from its stores. It must not vote then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoverError {
    /// The stores failed or contradict each other.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The settings contradict each other.
    #[error(transparent)]
    Options(#[from] raft::OptionsError),
}

impl From<raft::RecoverError> for RecoverError {
    fn from(error: raft::RecoverError) -> Self {
        match error {
            raft::RecoverError::Store(error) => Self::Store(error),
            raft::RecoverError::Options(error) => Self::Options(error),
        }
    }
}

/// Writes the first membership and the state machine's genesis into empty stores, durably.
pub fn initialise(
    log: &mut dyn LogStore,
    state: &mut dyn StateStore,
    membership: &Membership,
    genesis: WriteBatch,
) -> Result<(), StoreError> {
    let stored = log.load()?;
    let half_done = stored.installing == Some(BEGINNING) && stored.last_index == Index(0);
    if stored != LogState::default() && !half_done {
        return Err(StoreError::Damaged(
            "a group can only begin in an empty log".to_owned(),
        ));
    }
    log.begin_install(BEGINNING)?;
    state.commit(
        genesis,
        Applied {
            last: BEGINNING,
            membership: membership.clone(),
            ..Applied::default()
        },
    )?;
    state.flush()?;
    let meta = SnapshotMeta {
        last: BEGINNING,
        membership: membership.clone(),
    };
    let hard_state = HardState {
        term: BEGINNING.term,
        vote: None,
    };
    log.write(&LogBatch {
        hard_state: Some(hard_state),
        reset: Some(meta),
        entries: Vec::new(),
    })
}

impl<M: StateMachine> Replica<M> {
    /// Starts a replica from its stores. With empty stores (not initialised) the replica never votes, and asks to join with
    /// [`raft::Message::JoinRequest`] to `NodeId(0)`, which stands for the nodes at the configured peers.
    ///
    /// `seed` feeds election timeouts and the numbers of a follower's questions; it must differ between members and between starts.
    pub fn recover(
        options: Options,
        node: NodeId,
        mut log: Box<dyn LogStore + Send>,
        state: Box<dyn StateStore>,
        machine: M,
        seed: u64,
    ) -> Result<Self, RecoverError> {
        options.validate()?;
        let applied = state.applied();
        check_state(&applied, options.raft.feature_level)?;
        let mut stored = log.load()?;
        if applied.last.index < stored.base.last.index {
            return Err(damaged(format!(
                "the log starts after {}, but the state has only come to {}",
                stored.base.last, applied.last
            ))
            .into());
        }
        let start = |stored: &LogState, log: &dyn LogStore| {
            let raft = raft::Options {
                tick_ms: options.tick_ms,
                ..options.raft.clone()
            };
            Raft::recover(
                raft,
                node,
                stored,
                applied.last.index.min(stored.last_index),
                seed,
                log,
            )
        };
        let mut raft = start(&stored, &*log)?;
        if !raft.holds(applied.last) {
            if options.bugs.has(Bug::InstallForgetsVote) {
                stored.hard_state.vote = None;
            }
            finish_install(&mut *log, &mut stored, &applied)?;
            raft = start(&stored, &*log)?;
        }
        Ok(Self::from_parts(options, raft, log, state, machine)?)
    }
}

/// Finishes an install that a crash interrupted after the state was replaced.
fn finish_install(
    log: &mut dyn LogStore,
    stored: &mut LogState,
    applied: &Applied,
) -> Result<(), StoreError> {
    if stored.installing != Some(applied.last) {
        return Err(damaged(format!(
            "the state has come to {}, but the log ends at index {} without it: acknowledged entries are gone",
            applied.last, stored.last_index
        )));
    }
    let meta = SnapshotMeta {
        last: applied.last,
        membership: applied.membership.clone(),
    };
    let term = stored.hard_state.term.max(applied.last.term);
    let vote = if term == stored.hard_state.term {
        stored.hard_state.vote
    } else {
        None
    };
    let hard_state = HardState { term, vote };
    log.write(&LogBatch {
        hard_state: Some(hard_state),
        reset: Some(meta.clone()),
        entries: Vec::new(),
    })?;
    *stored = LogState {
        hard_state,
        last_index: meta.last.index,
        base: meta,
        installing: None,
    };
    Ok(())
}

fn damaged(what: String) -> StoreError {
    StoreError::Damaged(what)
}
