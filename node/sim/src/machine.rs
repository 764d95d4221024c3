//! One type for the two state machines of a cluster, so that the world drives all hosts alike.

use std::sync::Arc;

use bytes::Bytes;
use changes::Renewal;
use keyspace::{LeaseId, Place, Range, RangeAnswer, Refusal};
use raft::StoreError;
use replica::{Answer, Applying, Request, StateMachine, StateReader, Transaction};
use shardctrler::{HistoryLimits, Shardctrler};
use shardkv::{JournalLimits, KeyspaceChanges, Ownership, ShardKv};
use types::{LogTime, ShardConfig};

use crate::bug::Bug;

/// A query to a node of any group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// A query to a replica group.
    Kv(shardkv::Query),
    /// A query to the controllers.
    Ctrl(shardctrler::Query),
    /// A read of a keyspace, which a process answers beside its replica.
    Keyspace(KeyspaceRead),
    /// The renewal of a lease, which a process answers beside its replica.
    Renew(LeaseOf),
}

/// A read of a keyspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyspaceRead {
    /// The keyspace.
    pub place: Place,
    /// The range.
    pub range: Range,
}

/// A lease of a keyspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeaseOf {
    /// The keyspace.
    pub place: Place,
    /// The lease.
    pub id: LeaseId,
}

/// The answer of a node of any group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Of a replica group.
    Kv(shardkv::Response),
    /// Of the controllers.
    Ctrl(shardctrler::Response),
    /// Of a process that read a keyspace.
    Keyspace(Result<RangeAnswer, Refusal>),
    /// Of a process that renewed a lease, or couldn't.
    Renewal(Renewal),
}

/// The result of a request to a replica.
pub type Outcome = Result<Answer<Reply>, replica::Refusal>;

/// A group's state machine.
#[derive(Debug)]
pub enum Machine {
    /// Of a replica group.
    Kv(Box<ShardKv>),
    /// Of the controllers.
    Ctrl(Box<Shardctrler>),
}

impl Machine {
    /// Creates the state machine of a replica group.
    pub fn kv(bug: Option<Bug>, journals: JournalLimits) -> Self {
        let machine = ShardKv::with_bug(bug.and_then(Bug::shardkv)).collecting_keyspace_changes();
        Self::Kv(Box::new(machine.with_journal_limits(journals)))
    }

    /// Creates the state machine of the controllers.
    pub fn ctrl(bug: Option<Bug>, limits: HistoryLimits) -> Self {
        let machine = Shardctrler::with_limits(limits);
        Self::Ctrl(Box::new(machine.with_bug(bug.and_then(Bug::shardctrler))))
    }

    /// Returns the shard ownership of a replica group, or `None` for the controllers.
    pub fn ownership(&self) -> Option<Arc<Ownership>> {
        match self {
            Self::Kv(machine) => Some(machine.ownership()),
            Self::Ctrl(_) => None,
        }
    }

    /// Takes what a replica group has changed in its keyspaces, with its ownership; `None` for the controllers.
    pub fn take_keyspace_changes(&mut self) -> Option<(KeyspaceChanges, Arc<Ownership>)> {
        match self {
            Self::Kv(machine) => Some((machine.take_keyspace_changes(), machine.ownership())),
            Self::Ctrl(_) => None,
        }
    }

    /// Returns the number of sessions that a replica group's machine has in memory, or `None` for the controllers.
    pub fn session_count(&self) -> Option<usize> {
        match self {
            Self::Kv(machine) => Some(machine.session_count()),
            Self::Ctrl(_) => None,
        }
    }

    /// Returns the controllers' latest configuration, or `None` for a replica group.
    pub fn latest(&self) -> Option<Arc<ShardConfig>> {
        match self {
            Self::Kv(_) => None,
            Self::Ctrl(machine) => Some(machine.latest()),
        }
    }

    /// Returns the controllers' state machine, or `None` for a replica group.
    pub fn as_ctrl(&self) -> Option<&Shardctrler> {
        match self {
            Self::Kv(_) => None,
            Self::Ctrl(machine) => Some(machine),
        }
    }
}

/// Converts a request to a replica group.
pub fn to_kv(request: Request<shardkv::Query>) -> Request<Question> {
    wrap(request, Question::Kv)
}

/// Converts a request to the controllers.
pub fn to_ctrl(request: Request<shardctrler::Query>) -> Request<Question> {
    wrap(request, Question::Ctrl)
}

fn wrap<Q>(request: Request<Q>, question: impl Fn(Q) -> Question) -> Request<Question> {
    match request {
        Request::Write {
            operation,
            frees_space,
        } => Request::Write {
            operation,
            frees_space,
        },
        Request::Read(query) => Request::Read(question(query)),
        Request::ReadHere(query) => Request::ReadHere(question(query)),
        Request::ReadLocal(query) => Request::ReadLocal(question(query)),
        Request::Birth { at_least } => Request::Birth { at_least },
        Request::ChangeMembership(change) => Request::ChangeMembership(change),
        Request::TransferLeadership(target) => Request::TransferLeadership(target),
    }
}

/// Returns the error for a query to a group of the wrong kind, which the world never sends.
fn misdirected() -> StoreError {
    StoreError::Io("a query to a group of another kind".to_owned())
}

impl StateMachine for Machine {
    type Query = Question;
    type Response = Reply;

    fn reload(&mut self, state: &dyn StateReader) -> Result<(), StoreError> {
        match self {
            Self::Kv(machine) => machine.reload(state),
            Self::Ctrl(machine) => machine.reload(state),
        }
    }

    fn refuse_early(&self, operation: &Bytes) -> Option<Reply> {
        match self {
            Self::Kv(machine) => machine.refuse_early(operation).map(Reply::Kv),
            Self::Ctrl(machine) => machine.refuse_early(operation).map(Reply::Ctrl),
        }
    }

    fn most_work(&self, operation: &Bytes, max_value_bytes: u32) -> u64 {
        match self {
            Self::Kv(machine) => machine.most_work(operation, max_value_bytes),
            Self::Ctrl(machine) => machine.most_work(operation, max_value_bytes),
        }
    }

    fn answer_bytes(&self, response: &Reply) -> usize {
        match (self, response) {
            (Self::Kv(machine), Reply::Kv(response)) => machine.answer_bytes(response),
            _ => 0,
        }
    }

    fn min_birth(&self) -> LogTime {
        match self {
            Self::Kv(machine) => machine.min_birth(),
            Self::Ctrl(machine) => machine.min_birth(),
        }
    }

    fn upkeep(&mut self, now: LogTime) -> Option<Bytes> {
        match self {
            Self::Kv(machine) => machine.upkeep(now),
            Self::Ctrl(machine) => machine.upkeep(now),
        }
    }

    fn apply(
        &mut self,
        at: Applying,
        operation: Bytes,
        state: &mut Transaction<'_>,
    ) -> Result<Reply, StoreError> {
        match self {
            Self::Kv(machine) => machine.apply(at, operation, state).map(Reply::Kv),
            Self::Ctrl(machine) => machine.apply(at, operation, state).map(Reply::Ctrl),
        }
    }

    fn finish_batch(&mut self, state: &mut Transaction<'_>) -> Result<(), StoreError> {
        match self {
            Self::Kv(machine) => machine.finish_batch(state),
            Self::Ctrl(machine) => machine.finish_batch(state),
        }
    }

    fn query(&self, query: &Question, state: &dyn StateReader) -> Result<Reply, StoreError> {
        match (self, query) {
            (Self::Kv(machine), Question::Kv(query)) => machine.query(query, state).map(Reply::Kv),
            (Self::Ctrl(machine), Question::Ctrl(query)) => {
                machine.query(query, state).map(Reply::Ctrl)
            }
            _ => Err(misdirected()),
        }
    }
}
