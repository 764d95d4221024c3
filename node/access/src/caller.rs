//! The other end of a connection, as far as its certificate proves it.

use std::fmt;
use std::sync::Arc;

use types::Gid;

/// The other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A connection without TLS.
    Plain,
    /// A connection over TLS without a certificate.
    Anonymous,
    /// A node of this cluster: of the group with this id, or a controller if it is [`Gid::NONE`].
    Member(Gid),
    /// The operator of this cluster.
    Operator,
    /// An application or a person with a certificate of clients.
    Client(Arc<Certificate>),
}

/// The names in the certificate of a client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Certificate {
    /// The common name of the subject, if there is one.
    pub common_name: Option<String>,
    /// The alternative names that are DNS names.
    pub dns_names: Vec<String>,
    /// The alternative names that are URIs, for example SPIFFE ids.
    pub uris: Vec<String>,
}

/// The service account of Kubernetes that a verified token is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// The UID of this incarnation of the account.
    pub uid: String,
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the ServiceAccount {:?} of {:?}",
            self.name, self.namespace
        )
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain => f.write_str("a connection without TLS"),
            Self::Anonymous => f.write_str("a connection without a certificate"),
            Self::Member(Gid::NONE) => f.write_str("a controller"),
            Self::Member(gid) => write!(f, "a node of {gid}"),
            Self::Operator => f.write_str("the operator"),
            Self::Client(certificate) => write!(f, "the client {certificate}"),
        }
    }
}

impl fmt::Display for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.uris.iter().chain(&self.dns_names);
        match self.common_name.iter().chain(names).next() {
            // A name may hold line breaks.
            Some(name) => write!(f, "{name:?}"),
            None => f.write_str("without a name"),
        }
    }
}
