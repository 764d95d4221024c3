//! A bundle of authorities, and the check of a chain of certificates against it.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};

use crate::error::LoadError;
use crate::files::Pem;

static PROVIDER: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(ring::default_provider()));

/// Returns the one provider of cryptography.
pub(crate) fn provider() -> &'static Arc<CryptoProvider> {
    &PROVIDER
}

/// A bundle of authorities.
#[derive(Clone, Debug)]
pub(crate) struct Anchors {
    pub(crate) roots: Arc<RootCertStore>,
    of_clients: Arc<dyn ClientCertVerifier>,
}

impl Anchors {
    /// Reads a bundle. There is at least one authority.
    pub(crate) fn load(path: &Path) -> Result<Self, LoadError> {
        Self::new(&Pem::read(path)?)
    }

    /// Reads a bundle. There is at least one authority.
    pub(crate) fn new(pem: &Pem) -> Result<Self, LoadError> {
        let bad = |reason: String| LoadError::BadCertificate {
            path: pem.path().to_owned(),
            reason,
        };
        let mut roots = RootCertStore::empty();
        for certificate in pem.certificates()? {
            roots
                .add(certificate)
                .map_err(|error| bad(error.to_string()))?;
        }
        let roots = Arc::new(roots);
        let builder =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(provider()));
        let of_clients = builder.build().map_err(|error| bad(error.to_string()))?;
        Ok(Self { roots, of_clients })
    }

    /// Checks a chain that a caller showed: the caller's certificate, then the intermediate ones.
    pub(crate) fn check_caller(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let (end, rest) = chain
            .split_first()
            .ok_or(rustls::Error::NoCertificatesPresented)?;
        self.of_clients.verify_client_cert(end, rest, now)?;
        Ok(())
    }

    /// Checks a chain that a server showed, without its names.
    pub(crate) fn check_server(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let (end, rest) = chain
            .split_first()
            .ok_or(rustls::Error::NoCertificatesPresented)?;
        let end = ParsedCertificate::try_from(end)?;
        let algorithms = provider().signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&end, &self.roots, rest, now, algorithms)
    }
}
