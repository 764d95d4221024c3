//! The replica itself.

use raft::{Envelope, LogStore, Membership, StoreError};
use types::{LogTime, NodeId};

use crate::{Options, Outlet, Request, RequestId, StateMachine, StateStore, Status, WriteBatch};

/// Why a replica can't start from what its stores hold. It must not vote then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoverError {
    /// The stores failed or contradict each other.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The settings contradict each other.
    #[error(transparent)]
    Options(#[from] raft::OptionsError),
}

/// Writes a group's beginning into empty stores, durably: the first membership, and the state machine's
/// genesis. The beginning counts as a snapshot at index 1, so that a member that joins later with an empty disk
/// gets it by a snapshot and never by replay.
pub fn initialise(
    _log: &mut dyn LogStore,
    _state: &mut dyn StateStore,
    _membership: &Membership,
    _genesis: WriteBatch,
) -> Result<(), StoreError> {
    todo!()
}

/// One member of a group: a log, a state machine, and the requests that wait for them.
pub struct Replica<M: StateMachine> {
    machine: M,
}

impl<M: StateMachine> Replica<M> {
    /// Starts from what the stores hold. Empty stores (not initialised) give a replica that never votes and asks
    /// to join with [`raft::Message::JoinRequest`] to `NodeId(0)`: "whoever is at the configured peers".
    ///
    /// `seed` feeds election timeouts only; it must differ between members.
    pub fn recover(
        _options: Options,
        _node: NodeId,
        _log: Box<dyn LogStore + Send>,
        _state: Box<dyn StateStore>,
        _machine: M,
        _seed: u64,
    ) -> Result<Self, RecoverError> {
        todo!()
    }

    /// Takes a request in. It is answered through the outlet of this or a later [`Replica::poll`].
    pub fn submit(&mut self, _id: RequestId, _request: Request<M::Query>) {
        todo!()
    }

    /// Takes a message of a peer in.
    pub fn receive(&mut self, _envelope: Envelope) {
        todo!()
    }

    /// Lets one tick of time pass. `now` is the wall clock in milliseconds, which only a leader uses, and only to
    /// stamp its log.
    pub fn tick(&mut self, _now: LogTime) {
        todo!()
    }

    /// The connection to `node` broke: if it leads, pre-vote soon.
    pub fn peer_disconnected(&mut self, _node: NodeId) {
        todo!()
    }

    /// Whether a disk is nearly full: then writes that don't free space are refused.
    pub fn set_disk_low(&mut self, _low: bool) {
        todo!()
    }

    /// Does all the work that is due: sends, makes durable with one write, sends what waited for that, applies,
    /// answers. An error other than `Full` is final: the replica must not be used any more, and its node stops.
    /// After `Full` nothing of the write happened; a later poll tries it again.
    pub fn poll(&mut self, _outlet: &mut dyn Outlet<M::Response>) -> Result<(), StoreError> {
        todo!()
    }

    /// Whether `poll` left work that needs no input: call it again, after looking at the inbox.
    pub fn has_work(&self) -> bool {
        todo!()
    }

    /// Refuses new requests from now on with `Stopping`, answers all that wait, and makes the state durable.
    pub fn stop(&mut self, _outlet: &mut dyn Outlet<M::Response>) -> Result<(), StoreError> {
        todo!()
    }

    /// How things stand.
    pub fn status(&self) -> Status {
        todo!()
    }

    /// The state as of the last applied entry, for checks and metrics.
    pub fn state(&self) -> &dyn StateStore {
        todo!()
    }

    /// The state machine.
    pub fn machine(&self) -> &M {
        &self.machine
    }
}
