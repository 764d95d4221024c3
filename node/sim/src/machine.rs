//! The state machines of a cluster behind one type, so that all hosts of a world are driven alike.

use bytes::Bytes;
use raft::{Bug, StoreError};
use replica::{Answer, Applying, Request, StateMachine, StateReader, Transaction};
use shardkv::ShardKv;

/// A question to a node, whatever its group is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// To a replica group.
    Kv(shardkv::Query),
    /// To the controllers.
    Ctrl(shardctrler::Query),
}

/// A node's answer, whatever its group is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Of a replica group.
    Kv(shardkv::Response),
    /// Of the controllers.
    Ctrl(shardctrler::Response),
}

/// The result of a request, as a replica gives it.
pub type Outcome = Result<Answer<Reply>, replica::Refusal>;

/// A group's state machine.
#[derive(Debug)]
pub enum Machine {
    /// Of a replica group.
    Kv(Box<ShardKv>),
}

impl Machine {
    /// The machine of a replica group.
    pub fn kv(bug: Option<Bug>) -> Self {
        Self::Kv(Box::new(ShardKv::with_bug(bug)))
    }
}

/// A request to a replica group.
pub fn to_kv(request: Request<shardkv::Query>) -> Request<Question> {
    wrap(request, Question::Kv)
}

/// A request to the controllers.
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
        Request::ReadLocal(query) => Request::ReadLocal(question(query)),
        Request::LogTime => Request::LogTime,
        Request::ChangeMembership(change) => Request::ChangeMembership(change),
        Request::TransferLeadership(target) => Request::TransferLeadership(target),
    }
}

/// A question that went to a group of the wrong kind: the world doesn't do that.
fn misdirected() -> StoreError {
    StoreError::Io("a question to a group of another kind".to_owned())
}

impl StateMachine for Machine {
    type Query = Question;
    type Response = Reply;

    fn reload(&mut self, state: &dyn StateReader) -> Result<(), StoreError> {
        match self {
            Self::Kv(machine) => machine.reload(state),
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
        }
    }

    fn finish_batch(&mut self, state: &mut Transaction<'_>) -> Result<(), StoreError> {
        match self {
            Self::Kv(machine) => machine.finish_batch(state),
        }
    }

    fn query(&self, query: &Question, state: &dyn StateReader) -> Result<Reply, StoreError> {
        match (self, query) {
            (Self::Kv(machine), Question::Kv(query)) => machine.query(query, state).map(Reply::Kv),
            (Self::Kv(_), Question::Ctrl(_)) => Err(misdirected()),
        }
    }
}
