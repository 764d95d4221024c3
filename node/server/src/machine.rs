//! The two state machines behind one type, so that the replica's thread, the inbox and the services serve either.
//!
//! The kind of the group, which is chosen when the group is created, decides which machine a node runs. Services know the
//! kind of their node, and ask only queries that its machine understands.

use std::sync::Arc;

use bytes::Bytes;
use raft::StoreError;
use replica::{
    Answer, Applying, Genesis, GroupKind, Refusal, StateMachine, StateReader, Transaction,
};
use shardctrler::Shardctrler;
use shardkv::{KeyspaceChanges, Ownership, ShardKv};
use types::{LogTime, ShardConfig};

/// A request to the replica.
pub(crate) type MachineRequest = replica::Request<Query>;
/// The replica's answer to a request.
pub(crate) type MachineResult = Result<Answer<Response>, Refusal>;

/// A query of the node's state machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Query {
    Shards(shardkv::Query),
    Controller(shardctrler::Query),
}

/// An answer of the node's state machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Response {
    Shards(shardkv::Response),
    Controller(shardctrler::Response),
    /// The query was for the other state machine, which is a bug.
    Misplaced,
}

/// Returns the approximate memory that a request takes until it is answered, in bytes.
pub(crate) fn size(request: &MachineRequest) -> usize {
    128 + match request {
        replica::Request::Write { operation, .. } => operation.len(),
        replica::Request::Read(query)
        | replica::Request::ReadHere(query)
        | replica::Request::ReadLocal(query) => match query {
            Query::Shards(shardkv::Query::Get { key }) => key.len(),
            _ => 0,
        },
        _ => 0,
    }
}

/// The state that a machine publishes by itself. It is shared, and replaced only when it changes.
#[derive(Clone, Debug)]
pub(crate) enum Published {
    /// The group's ownership of shards.
    Ownership(Arc<Ownership>),
    /// The latest configuration.
    Config(Arc<ShardConfig>),
}

/// The state machine of a node.
#[derive(Debug)]
pub(crate) enum Machine {
    /// The state machine of a group that holds users' keys, with or without controllers.
    Shards(Box<ShardKv>),
    /// The state machine of the controllers.
    Controller(Box<Shardctrler>),
}

impl Machine {
    /// Creates the machine for a group of this kind.
    pub(crate) fn new(kind: GroupKind) -> Self {
        match kind {
            GroupKind::Standalone | GroupKind::Shards => {
                Self::Shards(Box::new(ShardKv::new().collecting_keyspace_changes()))
            }
            GroupKind::Controller => Self::Controller(Box::new(Shardctrler::new())),
        }
    }

    /// Returns the values that the group was created with; `None` while the state is empty.
    pub(crate) fn genesis(&self) -> Option<&Genesis> {
        match self {
            Self::Shards(machine) => machine.genesis(),
            Self::Controller(machine) => machine.genesis(),
        }
    }

    /// Returns the number of remembered sessions.
    pub(crate) fn session_count(&self) -> usize {
        match self {
            Self::Shards(machine) => machine.session_count(),
            Self::Controller(machine) => machine.session_count(),
        }
    }

    /// Returns true for a request for a shard that was cut for this group and isn't served yet.
    pub(crate) fn awaits(&self, request: &MachineRequest) -> bool {
        let Self::Shards(machine) = self else {
            return false;
        };
        match request {
            replica::Request::Write { operation, .. } => machine.awaits_write(operation),
            replica::Request::Read(Query::Shards(query)) => machine.awaits_read(query),
            _ => false,
        }
    }

    /// Returns the changes of keyspaces since the last call.
    pub(crate) fn take_keyspace_changes(&mut self) -> KeyspaceChanges {
        match self {
            Self::Shards(machine) => machine.take_keyspace_changes(),
            Self::Controller(_) => KeyspaceChanges::default(),
        }
    }

    /// Returns the published state as of the last applied entry.
    pub(crate) fn published(&self) -> Published {
        match self {
            Self::Shards(machine) => Published::Ownership(machine.ownership()),
            Self::Controller(machine) => Published::Config(machine.latest()),
        }
    }

    fn kind_fits(&self, kind: GroupKind) -> bool {
        matches!(self, Self::Controller(_)) == (kind == GroupKind::Controller)
    }
}

impl Published {
    /// Returns true if both are the same object. Comparing pointers is enough, because a machine creates a new object for
    /// each change.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Ownership(one), Self::Ownership(two)) => Arc::ptr_eq(one, two),
            (Self::Config(one), Self::Config(two)) => Arc::ptr_eq(one, two),
            _ => false,
        }
    }
}

impl StateMachine for Machine {
    type Query = Query;
    type Response = Response;

    fn reload(&mut self, state: &dyn StateReader) -> Result<(), StoreError> {
        // A snapshot may come from a group of another kind, if two groups were given the same gid.
        if let Some(genesis) = Genesis::load(state)?
            && !self.kind_fits(genesis.kind)
        {
            let what = format!(
                "the group's kind is {}: correct the option role",
                genesis.kind
            );
            return Err(StoreError::Damaged(what));
        }
        match self {
            Self::Shards(machine) => machine.reload(state),
            Self::Controller(machine) => machine.reload(state),
        }
    }

    fn refuse_early(&self, operation: &Bytes) -> Option<Response> {
        match self {
            Self::Shards(machine) => machine.refuse_early(operation).map(Response::Shards),
            Self::Controller(machine) => machine.refuse_early(operation).map(Response::Controller),
        }
    }

    fn most_work(&self, operation: &Bytes, max_value_bytes: u32) -> u64 {
        match self {
            Self::Shards(machine) => machine.most_work(operation, max_value_bytes),
            Self::Controller(machine) => machine.most_work(operation, max_value_bytes),
        }
    }

    fn answer_bytes(&self, response: &Response) -> usize {
        match (self, response) {
            (Self::Shards(machine), Response::Shards(response)) => machine.answer_bytes(response),
            _ => 0,
        }
    }

    fn min_birth(&self) -> LogTime {
        match self {
            Self::Shards(machine) => machine.min_birth(),
            Self::Controller(machine) => machine.min_birth(),
        }
    }

    fn upkeep(&mut self, now: LogTime) -> Option<Bytes> {
        match self {
            Self::Shards(machine) => machine.upkeep(now),
            Self::Controller(machine) => machine.upkeep(now),
        }
    }

    fn apply(
        &mut self,
        at: Applying,
        operation: Bytes,
        state: &mut Transaction<'_>,
    ) -> Result<Response, StoreError> {
        match self {
            Self::Shards(machine) => machine.apply(at, operation, state).map(Response::Shards),
            Self::Controller(machine) => machine
                .apply(at, operation, state)
                .map(Response::Controller),
        }
    }

    fn finish_batch(&mut self, state: &mut Transaction<'_>) -> Result<(), StoreError> {
        match self {
            Self::Shards(machine) => machine.finish_batch(state),
            Self::Controller(machine) => machine.finish_batch(state),
        }
    }

    fn query(&self, query: &Query, state: &dyn StateReader) -> Result<Response, StoreError> {
        match (self, query) {
            (Self::Shards(machine), Query::Shards(query)) => {
                machine.query(query, state).map(Response::Shards)
            }
            (Self::Controller(machine), Query::Controller(query)) => {
                machine.query(query, state).map(Response::Controller)
            }
            _ => Ok(Response::Misplaced),
        }
    }
}
