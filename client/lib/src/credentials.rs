//! TLS of a client: the authorities that it trusts, and its own certificate.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tls::{ClientCredentials, Connector, LoadError, Pem};
use tokio::task::spawn_blocking;

use crate::ConnectError;

/// The authorities that a client trusts, and its certificate if it has one, all as PEM.
///
/// A client with TLS never opens a connection without it. It checks each node's certificate under the authorities, and the host name
/// that it dials. Files are read again before each connection, so that a rotated certificate needs no restart. If new files can't be
/// used, for example because only one of two is replaced yet, the ones before are used.
///
/// ```
/// use shardkv_client::{ClientOptions, TlsOptions};
///
/// let tls = TlsOptions::ca_file("ca.crt").identity_files("tls.crt", "tls.key");
/// let options = ClientOptions {
///     tls: Some(tls),
///     ..ClientOptions::new(["db.example:7400"])
/// };
/// assert!(options.validate().is_ok());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsOptions {
    ca: Source,
    identity: Option<[Source; 2]>,
}

/// The place of a PEM text.
#[derive(Clone, PartialEq, Eq)]
enum Source {
    File(PathBuf),
    Text { name: &'static str, pem: Arc<str> },
}

impl TlsOptions {
    /// Trusts nodes whose certificates are signed by one of the authorities in a file.
    pub fn ca_file(path: impl Into<PathBuf>) -> Self {
        Self {
            ca: Source::File(path.into()),
            identity: None,
        }
    }

    /// Trusts nodes whose certificates are signed by one of these authorities.
    pub fn ca_pem(pem: &str) -> Self {
        Self {
            ca: Source::text("the authorities", pem),
            identity: None,
        }
    }

    /// Shows the nodes the certificate in the file `cert`, with its intermediate ones. The file `key` has its private key.
    #[must_use]
    pub fn identity_files(self, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        let identity = Some([Source::File(cert.into()), Source::File(key.into())]);
        Self { identity, ..self }
    }

    /// Shows the nodes the certificate `cert`, with its intermediate ones. Its private key is `key`.
    #[must_use]
    pub fn identity_pem(self, cert: &str, key: &str) -> Self {
        let cert = Source::text("the client's certificate", cert);
        let identity = Some([cert, Source::text("the client's private key", key)]);
        Self { identity, ..self }
    }

    fn has_files(&self) -> bool {
        let identity = self.identity.iter().flatten();
        let mut all = std::iter::once(&self.ca).chain(identity);
        all.any(|source| matches!(source, Source::File(_)))
    }

    fn read(&self) -> Result<Texts, LoadError> {
        let identity = match &self.identity {
            Some([cert, key]) => Some((cert.read()?, key.read()?)),
            None => None,
        };
        Ok(Texts {
            ca: self.ca.read()?,
            identity,
        })
    }
}

impl Source {
    fn text(name: &'static str, pem: &str) -> Self {
        let pem = pem.into();
        Self::Text { name, pem }
    }

    fn read(&self) -> Result<Pem, LoadError> {
        match self {
            Self::File(path) => Pem::read(path),
            Self::Text { name, pem } => Ok(Pem::new(Path::new(name), pem.as_bytes())),
        }
    }
}

/// Shows no key.
impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.fmt(f),
            Self::Text { name, .. } => f.write_str(name),
        }
    }
}

#[derive(Clone, PartialEq, Eq)]
struct Texts {
    ca: Pem,
    identity: Option<(Pem, Pem)>,
}

impl Texts {
    fn credentials(&self) -> Result<ClientCredentials, LoadError> {
        let identity = self.identity.as_ref().map(|(cert, key)| (cert, key));
        ClientCredentials::new(&self.ca, identity)
    }
}

/// The credentials of a client, read again for each connection.
pub(crate) struct Credentials {
    options: TlsOptions,
    loaded: Mutex<Loaded>,
}

#[derive(Clone)]
struct Loaded {
    texts: Texts,
    credentials: ClientCredentials,
    /// The reason why the files as they are now can't be used.
    trouble: Option<String>,
}

impl Credentials {
    pub(crate) fn load(options: &TlsOptions) -> Result<Self, ConnectError> {
        let unusable = |error: LoadError| ConnectError::Certificates(error.to_string());
        let texts = options.read().map_err(unusable)?;
        let loaded = Loaded {
            credentials: texts.credentials().map_err(unusable)?,
            texts,
            trouble: None,
        };
        Ok(Self {
            options: options.clone(),
            loaded: Mutex::new(loaded),
        })
    }

    /// Returns a connector with the certificates as they are now, or with the last ones that could be used.
    pub(crate) async fn connector(self: &Arc<Self>) -> Connector {
        let mut loaded = self.loaded();
        if self.options.has_files() {
            let this = Arc::clone(self);
            // Files may be on a slow disk. A task that can't run leaves the certificates as they are.
            if let Ok(refreshed) = spawn_blocking(move || this.refresh()).await {
                loaded = refreshed;
            }
        }
        Connector::to_host(loaded.credentials)
    }

    /// Returns the reason why the files as they are now can't be used.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.loaded().trouble
    }

    fn loaded(&self) -> Loaded {
        // The value is replaced as a whole, so a poisoned lock protects valid data.
        let loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.clone()
    }

    fn refresh(&self) -> Loaded {
        let mut loaded = self.loaded();
        let read = self.options.read();
        let changed = match read {
            Ok(texts) if texts == loaded.texts => Ok(None),
            Ok(texts) => texts.credentials().map(|it| Some((texts, it))),
            Err(error) => Err(error),
        };
        match changed {
            Ok(Some((texts, credentials))) => {
                loaded = Loaded {
                    texts,
                    credentials,
                    trouble: None,
                }
            }
            Ok(None) => loaded.trouble = None,
            Err(error) => loaded.trouble = Some(error.to_string()),
        }
        let mut kept = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        *kept = loaded.clone();
        loaded
    }
}
