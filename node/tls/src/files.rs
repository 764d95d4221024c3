//! Reads PEM files.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::error::LoadError;

/// The most bytes of a file. A bundle of the web's authorities has a quarter of it.
pub(crate) const MAX_FILE_BYTES: u64 = 1 << 20;

/// Reads the certificates of a file, in their order. There is at least one.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, LoadError> {
    let text = read(path)?;
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let found = parsed.map_err(|error| not_pem(path, &error))?;
    if found.is_empty() {
        return Err(LoadError::NoCertificate(path.to_owned()));
    }
    Ok(found)
}

/// Reads the first private key of a file.
pub(crate) fn key(path: &Path) -> Result<PrivateKeyDer<'static>, LoadError> {
    let text = read(path)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| match error {
        pem::Error::NoItemsFound => LoadError::NoKey(path.to_owned()),
        error => not_pem(path, &error),
    })
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
