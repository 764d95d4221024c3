//! Makes authorities and certificates: for the playground, the operator and tests. Needs the feature `issue`.
//!
//! ```
//! use std::time::{Duration, SystemTime};
//! use tls::issue::{Authority, Request, Validity};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let now = SystemTime::now();
//! let peers = Authority::make("peers of c1", Validity::root(now))?;
//! let request = Request {
//!     addresses: vec!["127.0.0.1".parse()?],
//!     ..Request::member(&"shardkv://c1/group/1".parse()?)
//! };
//! let node = peers.issue(&request, Validity::starting(now, Duration::from_hours(24 * 90)))?;
//! assert!(node.certificate.starts_with("-----BEGIN CERTIFICATE-----"));
//! # Ok(())
//! # }
//! ```

mod authority;
mod request;
#[cfg(test)]
mod tests;

pub use authority::{Authority, IssueError, Issued};
pub use request::{Request, Usage, Validity};
