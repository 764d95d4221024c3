//! The check of a node by a node that dials it.

use access::Name;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, SignatureScheme};

use crate::anchors::{Anchors, provider};
use crate::certificate;
use crate::verdict::{Misnamed, refused};

/// Accepts the nodes of one group. The host name doesn't count: the address of a node says nothing about the group that it belongs
/// to.
#[derive(Debug)]
pub(crate) struct MemberVerifier {
    pub(crate) peers: Anchors,
    pub(crate) expected: Name,
}

impl ServerCertVerifier for MemberVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain: Vec<_> = std::iter::once(end_entity)
            .chain(intermediates)
            .cloned()
            .collect();
        self.peers.check_server(&chain, now)?;
        let names = certificate::read(end_entity)
            .map_err(|error| refused(error.into()))?
            .names;
        let expected = self.expected.clone();
        match certificate::name(&names) {
            Some(found) if found == expected => Ok(ServerCertVerified::assertion()),
            Some(found) if found.cluster != expected.cluster => {
                Err(refused(Misnamed::OtherCluster(found, expected.cluster)))
            }
            Some(found) => Err(refused(Misnamed::OtherGroup { found, expected })),
            None => Err(refused(Misnamed::NoRole(expected.cluster))),
        }
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
