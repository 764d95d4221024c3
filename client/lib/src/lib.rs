//! The Rust client library of `ShardKV`.

mod admin;
mod client;
mod error;
mod options;
mod scan;

pub use admin::{Admin, MemberStatus, MembershipChange, NodeStatus, Role};
pub use client::Client;
pub use error::{ConnectError, Error};
pub use options::{ClientOptions, Mode};
pub use scan::{Pair, Scan, ScanOptions};
pub use types::{Gid, NodeId};
