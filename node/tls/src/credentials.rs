//! The certificate of a node, its key, and the authorities that it accepts.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use access::{Caller, Name, Role};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{ClientConfig, Error, ServerConfig};
use tokio::sync::watch;
use types::Gid;

use crate::accept::CallerVerifier;
use crate::anchors::{Anchors, provider};
use crate::certificate;
use crate::error::LoadError;
use crate::files::Pem;
use crate::member::MemberVerifier;
use crate::verdict::{Authorities, Words};

/// The files of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The node's certificate, then the intermediate ones.
    pub cert: PathBuf,
    /// The private key of the certificate.
    pub key: PathBuf,
    /// The authorities of members.
    pub peers_ca: PathBuf,
    /// The authorities of the operator.
    pub operator_ca: Option<PathBuf>,
    /// The authorities of clients.
    pub clients_ca: Option<PathBuf>,
}

/// The certificate of a node, its key, and the authorities that it accepts. They are checked: key and certificate belong together,
/// and other nodes with the same authorities accept the certificate at this moment.
#[derive(Clone, Debug)]
pub struct Credentials {
    name: Name,
    gid: Gid,
    expires: SystemTime,
    pair: Arc<CertifiedKey>,
    authorities: Arc<Authorities>,
    server: Arc<ServerConfig>,
}

impl Credentials {
    /// Reads the files of a node.
    pub fn load(files: &Files) -> Result<Self, LoadError> {
        let authorities = Arc::new(Authorities {
            peers: Anchors::load(&files.peers_ca)?,
            operator: files
                .operator_ca
                .as_deref()
                .map(Anchors::load)
                .transpose()?,
            clients: files.clients_ca.as_deref().map(Anchors::load).transpose()?,
        });
        let pair = Arc::new(pair(&Pem::read(&files.cert)?, &Pem::read(&files.key)?)?);
        let end = pair.end_entity_cert().map_err(|error| bad(files, &error))?;
        let content = certificate::read(end).map_err(|error| bad(files, &error))?;
        let not_a_member = || LoadError::NotAMember(files.cert.clone());
        let name = certificate::name(&content.names).ok_or_else(not_a_member)?;
        let Role::Member(gid) = name.role else {
            return Err(not_a_member());
        };
        check_own(files, &authorities, &pair.cert)?;
        let cluster = Arc::from(name.cluster.as_str());
        let server =
            server_config(&authorities, cluster, &pair).map_err(|error| bad(files, &error))?;
        Ok(Self {
            name,
            gid,
            expires: content.expires,
            pair,
            authorities,
            server: Arc::new(server),
        })
    }

    /// Returns the node's name. Its role is that of a member.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Returns the node's group, [`Gid::NONE`] for a controller.
    pub fn gid(&self) -> Gid {
        self.gid
    }

    /// Returns the time at which the node's certificate expires.
    pub fn expires(&self) -> SystemTime {
        self.expires
    }

    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    pub(crate) fn caller(&self, chain: &[CertificateDer<'_>]) -> Result<Caller, Error> {
        self.authorities
            .caller(&self.name.cluster, chain, UnixTime::now())
    }

    /// Returns the configuration for dialing the nodes of a group.
    pub(crate) fn to_member(&self, gid: Gid) -> Result<ClientConfig, Error> {
        let expected = Name {
            cluster: self.name.cluster.clone(),
            role: Role::Member(gid),
        };
        let verifier = MemberVerifier {
            peers: self.authorities.peers.clone(),
            expected,
        };
        let resolver = SingleCertAndKey::from(Arc::clone(&self.pair));
        let config = ClientConfig::builder_with_provider(Arc::clone(provider()))
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(resolver));
        Ok(for_grpc(config))
    }
}

/// Sets the options of all clients.
pub(crate) fn for_grpc(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    config
}

/// Reads a certificate and its key.
pub(crate) fn pair(cert: &Pem, key: &Pem) -> Result<CertifiedKey, LoadError> {
    let chain = cert.certificates()?;
    let der: PrivateKeyDer<'static> = key.key()?;
    let (cert, key) = (cert.path(), key.path());
    let provider: &CryptoProvider = provider();
    CertifiedKey::from_der(chain, der, provider).map_err(|error| match error {
        Error::InconsistentKeys(_) => LoadError::KeyOfAnother {
            key: key.to_owned(),
            cert: cert.to_owned(),
        },
        Error::InvalidCertificate(_) => LoadError::BadCertificate {
            path: cert.to_owned(),
            reason: error.to_string(),
        },
        error => LoadError::UnusableKey {
            path: key.to_owned(),
            reason: error.to_string(),
        },
    })
}

fn bad(files: &Files, error: &dyn std::fmt::Display) -> LoadError {
    LoadError::BadCertificate {
        path: files.cert.clone(),
        reason: error.to_string(),
    }
}

/// Checks that other nodes with the same authorities accept this node, as a server and as a caller.
fn check_own(
    files: &Files,
    authorities: &Authorities,
    chain: &[CertificateDer<'_>],
) -> Result<(), LoadError> {
    let now = UnixTime::now();
    let peers = &authorities.peers;
    let checked = peers
        .check_caller(chain, now)
        .and_then(|()| peers.check_server(chain, now));
    checked.map_err(|error| LoadError::Refused {
        cert: files.cert.clone(),
        ca: files.peers_ca.clone(),
        reason: Words(&error).to_string(),
    })
}

fn server_config(
    authorities: &Arc<Authorities>,
    cluster: Arc<str>,
    pair: &Arc<CertifiedKey>,
) -> Result<ServerConfig, Error> {
    let verifier = CallerVerifier {
        authorities: Arc::clone(authorities),
        cluster,
    };
    let resolver = SingleCertAndKey::from(Arc::clone(pair));
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The credentials in force. They are replaced while the node runs; each new connection uses the latest.
#[derive(Debug)]
pub struct Shared(watch::Sender<Arc<Credentials>>);

impl Shared {
    /// Puts the first credentials in force.
    pub fn new(credentials: Credentials) -> Self {
        Self(watch::Sender::new(Arc::new(credentials)))
    }

    /// Returns the credentials in force.
    pub fn current(&self) -> Arc<Credentials> {
        Arc::clone(&self.0.borrow())
    }

    /// Replaces the credentials.
    pub fn replace(&self, credentials: Credentials) {
        self.0.send_replace(Arc::new(credentials));
    }

    /// Subscribes to new credentials.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Credentials>> {
        self.0.subscribe()
    }
}
