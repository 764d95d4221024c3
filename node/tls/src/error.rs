//! Errors of loading certificates and keys.

use std::io;
use std::path::PathBuf;

use crate::files::MAX_FILE_BYTES;

/// The reason why a certificate, a key or a bundle of authorities can't be used. Each names the file and the cure.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file can't be read.
    #[error("{path}: {source}. The file must exist, and this process must be allowed to read it")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file is far too large.
    #[error("{0}: it has more than {MAX_FILE_BYTES} bytes, so it is no bundle of certificates")]
    TooLarge(PathBuf),
    /// The file is no PEM text.
    #[error("{path}: it is no PEM text ({reason}): write it again from its source")]
    NotPem {
        /// The file.
        path: PathBuf,
        /// The defect.
        reason: String,
    },
    /// The file has no certificate.
    #[error("{0}: it has no certificate: it must have PEM blocks with the heading CERTIFICATE")]
    NoCertificate(PathBuf),
    /// The file has no private key.
    #[error(
        "{0}: it has no private key: it must have a PEM block with the heading PRIVATE KEY, without a password"
    )]
    NoKey(PathBuf),
    /// A certificate in the file is malformed.
    #[error(
        "{path}: it has a certificate that can't be used ({reason}): write it again from its source"
    )]
    BadCertificate {
        /// The file.
        path: PathBuf,
        /// The defect.
        reason: String,
    },
    /// The private key is of an unknown kind.
    #[error(
        "{path}: the private key can't be used ({reason}): use ECDSA with P-256 or P-384, Ed25519 or RSA"
    )]
    UnusableKey {
        /// The file.
        path: PathBuf,
        /// The defect.
        reason: String,
    },
    /// The private key is that of another certificate.
    #[error(
        "{key}: this is not the private key of the certificate in {cert}: replace both files together"
    )]
    KeyOfAnother {
        /// The file of the key.
        key: PathBuf,
        /// The file of the certificate.
        cert: PathBuf,
    },
    /// The certificate doesn't name a member.
    #[error(
        "{0}: the certificate is not that of a node: among its alternative names there must be exactly one URI of the form \
         shardkv://<cluster>/group/<number> or shardkv://<cluster>/controllers"
    )]
    NotAMember(PathBuf),
    /// Other nodes would refuse the certificate.
    #[error(
        "{cert}: other nodes would refuse this certificate, because {reason}. The authorities are those in {ca}"
    )]
    Refused {
        /// The file of the certificate.
        cert: PathBuf,
        /// The bundle of authorities.
        ca: PathBuf,
        /// The reason.
        reason: String,
    },
}
