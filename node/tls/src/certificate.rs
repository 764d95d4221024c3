//! Reads the names and the end of a certificate.

use std::time::{Duration, SystemTime};

use access::{Certificate, Name};
use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

const SCHEME: &str = "shardkv://";

/// The content of a certificate, as far as it is of use here.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    pub(crate) names: Certificate,
    /// The time after which it is not valid any more.
    pub(crate) expires: SystemTime,
}

/// The reason why a certificate can't be read.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the certificate is malformed: {0}")]
pub(crate) struct Malformed(String);

/// Reads a certificate.
pub(crate) fn read(certificate: &CertificateDer<'_>) -> Result<Content, Malformed> {
    let malformed = |error: &dyn std::fmt::Display| Malformed(error.to_string());
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| malformed(&error))?;
    let mut names = Certificate::default();
    let common = parsed.subject().iter_common_name().next();
    names.common_name = common
        .and_then(|name| name.as_str().ok())
        .map(str::to_owned);
    let alternatives = parsed
        .subject_alternative_name()
        .map_err(|error| malformed(&error))?;
    for name in alternatives.iter().flat_map(|it| &it.value.general_names) {
        match name {
            GeneralName::DNSName(name) => names.dns_names.push((*name).to_owned()),
            GeneralName::URI(uri) => names.uris.push((*uri).to_owned()),
            _ => {}
        }
    }
    // A time before 1970 is long over.
    let seconds = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
    Ok(Content {
        names,
        expires: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
    })
}

/// Returns the name of a member or an operator. There must be exactly one URI of the scheme, so that a certificate can't have two
/// roles.
pub(crate) fn name(names: &Certificate) -> Option<Name> {
    let mut ours = names.uris.iter().filter(|uri| uri.starts_with(SCHEME));
    match (ours.next(), ours.next()) {
        (Some(uri), None) => uri.parse().ok(),
        _ => None,
    }
}
