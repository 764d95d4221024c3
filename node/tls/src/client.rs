//! The authorities and the certificate of a client.

use std::sync::Arc;

use rustls::ClientConfig;
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;

use crate::anchors::{Anchors, provider};
use crate::credentials::{for_grpc, pair};
use crate::error::LoadError;
use crate::files::Pem;

/// The authorities that a client accepts, and its certificate if it has one. A client checks the host name that it dials.
#[derive(Clone, Debug)]
pub struct ClientCredentials(pub(crate) Arc<ClientConfig>);

impl ClientCredentials {
    /// Reads the texts of a client: the authorities, and the certificate and its key if the client has one.
    pub fn new(ca: &Pem, identity: Option<(&Pem, &Pem)>) -> Result<Self, LoadError> {
        let roots = Anchors::new(ca)?.roots;
        let unusable = |error: rustls::Error| LoadError::BadCertificate {
            path: ca.path().to_owned(),
            reason: error.to_string(),
        };
        let builder = ClientConfig::builder_with_provider(Arc::clone(provider()))
            .with_protocol_versions(&[&TLS13])
            .map_err(unusable)?
            .with_root_certificates(roots);
        let config = match identity {
            Some((cert, key)) => {
                let resolver = SingleCertAndKey::from(pair(cert, key)?);
                builder.with_client_cert_resolver(Arc::new(resolver))
            }
            None => builder.with_no_client_auth(),
        };
        Ok(Self(Arc::new(for_grpc(config))))
    }
}
