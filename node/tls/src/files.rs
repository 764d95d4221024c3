//! Reads PEM texts.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::error::LoadError;

/// The most bytes of a file. A bundle of the web's authorities has a quarter of it.
pub(crate) const MAX_FILE_BYTES: u64 = 1 << 20;

/// A text that is to be PEM, with the path of its file. A text that comes from elsewhere has a name in place of the path.
#[derive(Clone, PartialEq, Eq)]
pub struct Pem {
    path: PathBuf,
    text: Vec<u8>,
}

impl Pem {
    /// Makes a text that errors call `name`.
    pub fn new(name: &Path, text: impl Into<Vec<u8>>) -> Self {
        Self {
            path: name.to_owned(),
            text: text.into(),
        }
    }

    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, LoadError> {
        Ok(Self::new(path, read(path)?))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the certificates in their order. There is at least one.
    pub(crate) fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, LoadError> {
        let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.text).collect();
        let found = parsed.map_err(|error| not_pem(&self.path, &error))?;
        if found.is_empty() {
            return Err(LoadError::NoCertificate(self.path.clone()));
        }
        Ok(found)
    }

    /// Returns the first private key.
    pub(crate) fn key(&self) -> Result<PrivateKeyDer<'static>, LoadError> {
        PrivateKeyDer::from_pem_slice(&self.text).map_err(|error| match error {
            pem::Error::NoItemsFound => LoadError::NoKey(self.path.clone()),
            error => not_pem(&self.path, &error),
        })
    }
}

/// Shows no key.
impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.fmt(f)
    }
}

fn not_pem(path: &Path, error: &pem::Error) -> LoadError {
    LoadError::NotPem {
        path: path.to_owned(),
        reason: error.to_string(),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    let unreadable = |source| LoadError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    let most = MAX_FILE_BYTES + 1;
    file.take(most)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 == most {
        return Err(LoadError::TooLarge(path.to_owned()));
    }
    Ok(bytes)
}
