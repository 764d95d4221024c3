//! A seeded simulator of whole clusters under faults.
#![allow(
    clippy::indexing_slicing,
    reason = "hosts and clients are numbered by the world itself; a wrong number is a bug of the simulator, which should stop the run at once"
)]

pub mod client;
pub mod dice;
pub mod disk;
mod faults;
mod finale;
pub mod history;
mod host;
pub mod linear;
pub mod network;
pub mod oracle;
pub mod queue;
pub mod runner;
pub mod scenario;
pub mod script;
pub mod watched;
pub mod world;
