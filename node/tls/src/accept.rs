//! The server's side of a connection.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use access::Caller;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    AlertDescription, CertificateError, DigitallySignedStruct, DistinguishedName, Error,
    SignatureScheme,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;

use crate::anchors::provider;
use crate::certificate;
use crate::credentials::Credentials;
use crate::verdict::{Authorities, Words};

/// An accepted connection.
pub type ServerStream<S> = tokio_rustls::server::TlsStream<S>;

/// The other end of an accepted connection.
#[derive(Clone, Debug)]
pub struct Peer {
    caller: Caller,
    expires: Option<SystemTime>,
    chain: Arc<[CertificateDer<'static>]>,
}

impl Peer {
    /// Returns the caller that the handshake has proven.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Returns the time at which the caller's certificate expires.
    pub fn expires(&self) -> Option<SystemTime> {
        self.expires
    }

    /// Returns true if `credentials` prove the same caller at this moment.
    pub fn is_still(&self, credentials: &Credentials) -> bool {
        let caller = credentials.caller(&self.chain);
        caller.is_ok_and(|caller| caller == self.caller)
    }
}

/// The reason why a handshake failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The caller's certificate is signed by none of the authorities.
    UnknownAuthority,
    /// The caller's certificate has expired.
    Expired,
    /// The caller's certificate is not valid yet.
    NotYetValid,
    /// The caller's certificate is of another cluster, or names a role that its authority may not give.
    WrongName,
    /// The caller's certificate is unfit for another reason.
    BadCertificate,
    /// The caller refused this node's certificate.
    RefusedByCaller,
    /// The caller closed the connection.
    Closed,
    /// The caller doesn't speak TLS 1.3.
    Protocol,
}

impl Reason {
    /// Returns the name for metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::UnknownAuthority => "unknown_authority",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::WrongName => "wrong_name",
            Self::BadCertificate => "bad_certificate",
            Self::RefusedByCaller => "refused_by_caller",
            Self::Closed => "closed",
            Self::Protocol => "protocol",
        }
    }
}

/// A handshake that failed.
#[derive(Clone, Debug)]
pub struct HandshakeError {
    /// The reason.
    pub reason: Reason,
    text: String,
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for HandshakeError {}

/// Makes the server's side of a handshake. The caller of this function bounds its time.
///
/// # Errors
///
/// The caller has got the alert that fits.
pub async fn accept<S>(
    credentials: &Credentials,
    stream: S,
) -> Result<(ServerStream<S>, Peer), HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let accepted = TlsAcceptor::from(credentials.server()).accept(stream).await;
    let stream = accepted.map_err(|error| understand(&error))?;
    let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
    // The handshake has checked the same chain under the same authorities.
    let caller = credentials.caller(shown).map_err(|error| refusal(&error))?;
    let expires = shown.first().and_then(|end| certificate::read(end).ok());
    let peer = Peer {
        caller,
        expires: expires.map(|content| content.expires),
        chain: shown
            .iter()
            .cloned()
            .map(CertificateDer::into_owned)
            .collect(),
    };
    Ok((stream, peer))
}

fn understand(error: &io::Error) -> HandshakeError {
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Error>());
    match inner {
        Some(inner) => refusal(inner),
        None => HandshakeError {
            reason: Reason::Closed,
            text: format!("the caller closed the connection during the handshake ({error})"),
        },
    }
}

fn refusal(error: &Error) -> HandshakeError {
    use CertificateError as C;
    let (reason, text) = match error {
        Error::InvalidCertificate(certificate) => {
            let reason = match certificate {
                C::UnknownIssuer => Reason::UnknownAuthority,
                C::Expired | C::ExpiredContext { .. } => Reason::Expired,
                C::NotValidYet | C::NotValidYetContext { .. } => Reason::NotYetValid,
                C::Other(_) => Reason::WrongName,
                _ => Reason::BadCertificate,
            };
            let words = Words(error);
            (reason, format!("the caller is refused, because {words}"))
        }
        Error::AlertReceived(alert) => (
            Reason::RefusedByCaller,
            format!(
                "the caller refused this node's certificate: {}",
                told(*alert)
            ),
        ),
        error => (
            Reason::Protocol,
            format!("the caller doesn't speak TLS 1.3 as it must ({error})"),
        ),
    };
    HandshakeError { reason, text }
}

fn told(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::UnknownCA => "it knows no authority of it".to_owned(),
        AlertDescription::CertificateExpired => {
            "it has expired, or is not valid yet, by the caller's clock".to_owned()
        }
        AlertDescription::CertificateUnknown | AlertDescription::BadCertificate => {
            "it expects a node of another name".to_owned()
        }
        alert => format!("alert {alert:?}"),
    }
}

/// Accepts callers without a certificate, and those whose certificate proves what they are.
#[derive(Debug)]
pub(crate) struct CallerVerifier {
    pub(crate) authorities: Arc<Authorities>,
    pub(crate) cluster: Arc<str>,
}

impl ClientCertVerifier for CallerVerifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Hints would tell anybody the names of the authorities.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let chain: Vec<_> = std::iter::once(end_entity)
            .chain(intermediates)
            .cloned()
            .collect();
        self.authorities.caller(&self.cluster, &chain, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &provider().signature_verification_algorithms;
        verify_tls12_signature(message, cert, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &provider().signature_verification_algorithms;
        verify_tls13_signature(message, cert, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
