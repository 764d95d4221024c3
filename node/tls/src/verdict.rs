//! The caller that a chain of certificates proves, under the three bundles of authorities.

use std::fmt;
use std::sync::Arc;

use access::{Caller, Name, Role};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::{CertificateError, Error, OtherError};

use crate::anchors::Anchors;
use crate::certificate;

/// The authorities of each role.
#[derive(Clone, Debug)]
pub(crate) struct Authorities {
    pub(crate) peers: Anchors,
    pub(crate) operator: Option<Anchors>,
    pub(crate) clients: Option<Anchors>,
}

/// The reason why a certificate of a known authority is refused.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Misnamed {
    /// Its name is that of another cluster.
    #[error("its certificate is of {0}, and this node belongs to the cluster {1}")]
    OtherCluster(Name, String),
    /// It names a role that its authority may not give.
    #[error("its certificate names {0}, and its authority is not the one of that role")]
    OtherRole(Name),
    /// It names no role, and its authority gives nothing else.
    #[error(
        "its certificate has no name of a node of the cluster {0}, and its authority is not one of clients"
    )]
    NoRole(String),
    /// A node of another group answered.
    #[error("its certificate is of {found}, and {expected} was dialed")]
    OtherGroup { found: Name, expected: Name },
    /// It can't be read.
    #[error(transparent)]
    Malformed(#[from] certificate::Malformed),
}

impl Authorities {
    /// Returns the caller that a chain proves to a node of `cluster`.
    pub(crate) fn caller(
        &self,
        cluster: &str,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Caller, Error> {
        let Some(end) = chain.first() else {
            return Ok(Caller::Anonymous);
        };
        let peers = self.peers.check_caller(chain, now);
        let operator = check(self.operator.as_ref(), chain, now);
        let clients = check(self.clients.as_ref(), chain, now);
        if peers.is_err() && operator.is_err() && clients.is_err() {
            return Err(best([peers, operator, clients]));
        }
        // Only a certificate with a known authority is read.
        let names = certificate::read(end)
            .map_err(|error| refused(error.into()))?
            .names;
        let name = certificate::name(&names);
        if let Some(name) = &name
            && name.cluster == cluster
        {
            match name.role {
                Role::Member(gid) if peers.is_ok() => return Ok(Caller::Member(gid)),
                Role::Operator if operator.is_ok() => return Ok(Caller::Operator),
                Role::Member(_) | Role::Operator => {}
            }
        }
        let of_members = peers.is_ok() || operator.is_ok();
        match name {
            // Clusters may share their authorities.
            Some(name) if of_members && name.cluster != cluster => {
                Err(refused(Misnamed::OtherCluster(name, cluster.to_owned())))
            }
            _ if clients.is_ok() => Ok(Caller::Client(Arc::new(names))),
            Some(name) => Err(refused(Misnamed::OtherRole(name))),
            None => Err(refused(Misnamed::NoRole(cluster.to_owned()))),
        }
    }
}

fn check(
    anchors: Option<&Anchors>,
    chain: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<(), Error> {
    match anchors {
        Some(anchors) => anchors.check_caller(chain, now),
        None => Err(CertificateError::UnknownIssuer.into()),
    }
}

/// Returns the error that says most: one other than that of an unknown authority, if there is one.
fn best(results: [Result<(), Error>; 3]) -> Error {
    let unknown = Error::from(CertificateError::UnknownIssuer);
    let mut errors = results.into_iter().filter_map(Result::err);
    errors.find(|error| *error != unknown).unwrap_or(unknown)
}

/// Returns the error of the handshake for a certificate with a wrong name. The other end gets the alert `certificate_unknown`.
pub(crate) fn refused(reason: Misnamed) -> Error {
    CertificateError::Other(OtherError(Arc::new(reason))).into()
}

/// Says in words why a certificate is refused. The words continue "... because".
pub(crate) struct Words<'a>(pub(crate) &'a Error);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use CertificateError as C;
        let Error::InvalidCertificate(error) = self.0 else {
            return write!(f, "{}", self.0);
        };
        match error {
            C::UnknownIssuer => f.write_str("its certificate is signed by none of the authorities"),
            C::Expired | C::ExpiredContext { .. } => {
                f.write_str("its certificate, or that of an authority above it, has expired")
            }
            C::NotValidYet | C::NotValidYetContext { .. } => f.write_str(
                "its certificate is not valid yet: a clock is wrong, or it was made with a later date",
            ),
            C::InvalidPurpose | C::InvalidPurposeContext { .. } => f.write_str(
                "its certificate is not made for this purpose: a node needs the extended key usages serverAuth and clientAuth, \
                 a client needs clientAuth",
            ),
            C::NotValidForName | C::NotValidForNameContext { .. } => {
                write!(f, "its certificate is that of another host ({error})")
            }
            C::Other(other) => write!(f, "{}", other.0),
            error => write!(f, "its certificate is not valid ({error})"),
        }
    }
}
