//! TLS for nodes and clients: certificates, the callers that they prove, and connections.
//!
//! A node has one certificate, which it shows to all that connect to it and to all nodes that it dials. Its name in the certificate
//! ([`access::Name`]) says its cluster and its group. [`Credentials`] holds the certificate, its key, and three bundles of
//! authorities: of members, of the operator, and of clients. [`Shared`] holds the credentials in force.
//!
//! - [`accept()`] makes a connection of an accepted socket. It says who the caller is: a member or the operator needs an authority
//!   *and* a name of this cluster, and a certificate of no authority fails the handshake. A caller without a certificate is accepted as
//!   [`access::Caller::Anonymous`].
//! - [`Connector`] makes connections for channels of gRPC. A node checks the cluster and the group that it dials, and no host name.
//!   A client checks the host name.
//!
//! - The module `issue`, behind a feature, makes authorities and certificates.
//!
//! The protocol is TLS 1.3 only. Sessions are never resumed, because a resumed session would keep a certificate that has been
//! replaced since.
//!
//! This crate does not decide what a caller may do, and it never falls back to a connection without TLS.

mod accept;
mod anchors;
mod certificate;
mod client;
mod connect;
mod credentials;
mod error;
mod files;
#[cfg(feature = "issue")]
pub mod issue;
mod member;
mod verdict;

pub use accept::{HandshakeError, Peer, Reason, ServerStream, accept};
pub use client::ClientCredentials;
pub use connect::{ConnectError, Connector, Stream};
pub use credentials::{Credentials, Files, Shared};
pub use error::LoadError;
pub use files::Pem;

#[cfg(test)]
mod tests;
