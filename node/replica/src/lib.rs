//! A replicated log and a state machine become a service.

pub mod chunk;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod machine;
pub mod memory;
mod options;
mod replica;
mod service;
pub mod session;
mod status;
mod store;

pub use machine::{Applying, StateMachine, Transaction};
pub use options::Options;
pub use replica::{RecoverError, Replica, initialise};
pub use service::{Answer, Outlet, Refusal, Request, RequestId};
pub use status::Status;
pub use store::{
    Applied, Keyspace, SNAPSHOT_CHUNK_BYTES, SnapshotSource, StateReader, StateStore, WriteBatch,
};
