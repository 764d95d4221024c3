//! Authorities: keys that sign certificates.

use std::fmt;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData as _, SanType, date_time_ymd,
};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::{Request, Usage, Validity};

/// An authority: it signs certificates, and its own certificate is the anchor that others trust. Keys are ECDSA on P-256.
pub struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key, both as PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// The private key: PKCS #8.
    pub key: String,
}

/// The reason why an authority or a certificate could not be made or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IssueError {
    /// A name can't stand in a certificate.
    #[error(
        "{0:?} can't stand in a certificate: names are ASCII, and DNS names have no empty part"
    )]
    Name(String),
    /// The validity ends before it begins, or lies outside of the years 1970 to 9999.
    #[error("a certificate must end after it begins, in the years 1970 to 9999")]
    Validity,
    /// The text is no certificate of an authority.
    #[error(
        "the certificate of the authority can't be read: give the PEM that was written with its key"
    )]
    Certificate,
    /// The authority's subject isn't a single common name, so it wasn't made here.
    #[error(
        "the authority's subject isn't a single common name: only authorities that ShardKV made can be used"
    )]
    Subject,
    /// The text is no key that fits.
    #[error("the key of the authority can't be read: give an ECDSA or Ed25519 key as PKCS #8 PEM")]
    Key,
    /// Certificate and key don't belong together.
    #[error(
        "the certificate of the authority has another key: give the two that were written together"
    )]
    OtherKey,
    /// The cryptography provider failed.
    #[error("the certificate could not be made: {0}")]
    Crypto(String),
}

impl Authority {
    /// Makes an authority with a new key. It may have intermediate authorities below it, but those none of their own.
    pub fn make(name: &str, validity: Validity) -> Result<Self, IssueError> {
        let mut params = params(name, validity)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.pem();
        let issuer = Issuer::new(params, key);
        Ok(Self {
            certificate,
            issuer,
        })
    }

    /// Reads an authority that was made by [`Authority::make`].
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, IssueError> {
        let der = CertificateDer::from_pem_slice(certificate.as_bytes());
        let der = der.map_err(|_| IssueError::Certificate)?;
        let mut anchors = RootCertStore::empty();
        anchors.add(der).map_err(|_| IssueError::Certificate)?;
        let anchor = anchors.roots.first().ok_or(IssueError::Certificate)?;
        let name = common_name(&anchor.subject).ok_or(IssueError::Subject)?;
        let key = KeyPair::from_pem(key).map_err(|_| IssueError::Key)?;
        // The anchor has the content of the sequence only.
        let public = key.subject_public_key_info();
        if !public.ends_with(&anchor.subject_public_key_info) {
            return Err(IssueError::OtherKey);
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(name)?;
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok(Self {
            certificate: certificate.to_owned(),
            issuer: Issuer::new(params, key),
        })
    }

    /// Returns the certificate as PEM: the anchor of all that the authority issues.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Returns the private key as PEM (PKCS #8). Whoever has it can issue certificates.
    pub fn key(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Issues a certificate with a new key.
    pub fn issue(&self, request: &Request, validity: Validity) -> Result<Issued, IssueError> {
        let mut params = params(&request.common_name, validity)?;
        params.subject_alt_names = alternative_names(request)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match request.usage {
            Usage::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Usage::ServerAndClient => vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
        };
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Issued {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let certificate = &self.certificate;
        f.debug_struct("Authority")
            .field("certificate", certificate)
            .finish_non_exhaustive()
    }
}

/// Shows no key.
impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let certificate = &self.certificate;
        f.debug_struct("Issued")
            .field("certificate", certificate)
            .finish_non_exhaustive()
    }
}

impl From<rcgen::Error> for IssueError {
    fn from(error: rcgen::Error) -> Self {
        Self::Crypto(error.to_string())
    }
}

fn params(name: &str, validity: Validity) -> Result<CertificateParams, IssueError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(name)?;
    let (begin, end) = (
        since_epoch(validity.not_before)?,
        since_epoch(validity.not_after)?,
    );
    if end <= begin {
        return Err(IssueError::Validity);
    }
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + begin;
    params.not_after = epoch + end;
    Ok(params)
}

/// The end of the year 9998, in seconds.
const LATEST: u64 = 253_370_764_799;

fn since_epoch(time: SystemTime) -> Result<Duration, IssueError> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    let since = since.map_err(|_| IssueError::Validity)?;
    // A certificate counts whole seconds.
    let since = Duration::from_secs(since.as_secs());
    (since.as_secs() <= LATEST)
        .then_some(since)
        .ok_or(IssueError::Validity)
}

/// The longest common name, in bytes: X.520's bound of 64 characters.
const MAX_COMMON_NAME_BYTES: usize = 64;

fn subject(name: &str) -> Result<DistinguishedName, IssueError> {
    if !(1..=MAX_COMMON_NAME_BYTES).contains(&name.len()) || !name.is_ascii() {
        return Err(IssueError::Name(name.to_owned()));
    }
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    Ok(subject)
}

fn alternative_names(request: &Request) -> Result<Vec<SanType>, IssueError> {
    let mut names = Vec::new();
    for uri in &request.uris {
        let text = uri.as_str().try_into();
        names.push(SanType::URI(
            text.map_err(|_| IssueError::Name(uri.clone()))?,
        ));
    }
    for name in &request.dns_names {
        let empty_part = name.split('.').any(str::is_empty);
        let text = name.as_str().try_into().ok().filter(|_| !empty_part);
        names.push(SanType::DnsName(
            text.ok_or_else(|| IssueError::Name(name.clone()))?,
        ));
    }
    names.extend(request.addresses.iter().copied().map(SanType::IpAddress));
    Ok(names)
}

/// Returns the common name of a subject that consists of nothing else, as [`subject`] writes it: a set of one sequence of the
/// attribute's id (2.5.4.3) and a UTF-8 string.
fn common_name(subject: &[u8]) -> Option<&str> {
    const ID: [u8; 5] = [6, 3, 85, 4, 3];
    let set = content(subject, 0x31)?;
    let attribute = content(set, 0x30)?;
    let text = content(attribute.strip_prefix(&ID)?, 0x0c)?;
    std::str::from_utf8(text).ok()
}

/// Returns the content of the only DER value, which has this tag and fewer than 128 bytes.
fn content(der: &[u8], expected: u8) -> Option<&[u8]> {
    let (&[tag, length], content) = der.split_first_chunk()?;
    let whole = usize::from(length) == content.len() && length < 0x80;
    (tag == expected && whole).then_some(content)
}
