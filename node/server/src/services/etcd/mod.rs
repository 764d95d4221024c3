//! etcd's API: what any client of etcd v3 says to a keyspace.
//!
//! - [`edge`] keeps the authority of a call, and [`naming`] decides which keyspace the call means.
//! - [`serve`] answers a call here, or at the node that can.
//! - [`store`] finds, reads and writes a keyspace of this node's group, and [`known`] remembers which there are.
//! - [`requests`] and [`answers`] convert messages, and [`status`] refusals.
//! - [`ranges`] bounds what reads take, and serves ranges in parts.
//! - [`streams`] opens streams here or elsewhere, and [`leader`] ends those that need one.
//! - [`watch_stream`] serves one watch stream, whose answers go through [`outgoing`], and [`keepalive`] one of renewals.
//! - [`credentials`] finds out who calls, and [`passwords`] makes and compares hashes.
//! - [`concurrency`] makes the calls that locks and elections consist of.
//! - [`kv`], [`watch`], [`lease`], [`maintenance`], [`cluster`], [`auth`], [`lock`] and [`election`] are the services.

mod answers;
pub(crate) mod auth;
pub(crate) mod cluster;
pub(crate) mod concurrency;
pub(crate) mod credentials;
pub(crate) mod edge;
pub(crate) mod election;
pub(crate) mod keepalive;
pub(crate) mod known;
pub(crate) mod kv;
mod leader;
pub(crate) mod lease;
pub(crate) mod lock;
pub(crate) mod maintenance;
pub(crate) mod naming;
mod outgoing;
pub(crate) mod passwords;
mod ranges;
mod requests;
pub(crate) mod serve;
pub(crate) mod status;
pub(crate) mod store;
mod streams;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub(crate) mod watch;
mod watch_access;
mod watch_messages;
mod watch_stream;
