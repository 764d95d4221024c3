//! The events of a world.

use raft::Envelope;
use replica::{Request, RequestId};
use types::NodeId;

use crate::fault::Fault;
use crate::first_start::FirstEvent;
use crate::machine::{Outcome, Question};
use crate::network::HostId;
use crate::queue::Micros;

/// An event at a moment of virtual time.
#[derive(Debug)]
pub(crate) enum Event {
    /// The timer of a process ticks.
    Tick { host: HostId, incarnation: u64 },
    /// A process has finished its last step and has work.
    Work { host: HostId, incarnation: u64 },
    /// A message reaches an address.
    Arrive { host: HostId, envelope: Envelope },
    /// A request reaches an address.
    Ask {
        host: HostId,
        id: RequestId,
        request: Request<Question>,
    },
    /// A late request reaches a node that forwards it to the owner at that time.
    Forward {
        id: RequestId,
        request: Request<Question>,
    },
    /// A process reads the page of a scan.
    ReadPage {
        host: HostId,
        incarnation: u64,
        id: RequestId,
    },
    /// An answer reaches the sender of its request.
    Answer { id: RequestId, outcome: Outcome },
    /// A process learns that its connection to `node` broke.
    Disconnect {
        host: HostId,
        incarnation: u64,
        node: NodeId,
    },
    /// A client is due.
    Client { number: usize },
    /// A client of keyspaces is due.
    KeyspaceClient { number: usize },
    /// A config client is due.
    ConfigClient { number: usize },
    /// A mover is due.
    Mover { host: HostId, incarnation: u64 },
    /// A host starts for the first time, or something happens to its volume.
    First { host: HostId, event: FirstEvent },
    /// A process starts.
    Start { host: HostId, incarnation: u64 },
    /// A process is asked to stop. It starts again after `down`.
    Stop {
        host: HostId,
        incarnation: u64,
        down: Micros,
    },
    /// A request that another node forwarded reaches an address.
    Forwarded {
        host: HostId,
        id: RequestId,
        request: Request<Question>,
    },
    /// A paused process continues.
    Resume { host: HostId, incarnation: u64 },
    /// A fault begins and schedules its next occurrence.
    BeginFault(Fault),
    /// A fault ends.
    EndFault(Fault, HostId),
    /// The liveness phase checks the recovery.
    CheckRecovery,
}
