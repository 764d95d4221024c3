mod calls;
mod files;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, SanType,
};

use crate::Files;

const DAY: Duration = Duration::from_hours(24);

/// An authority, and the folder of its files.
struct Authority {
    folder: PathBuf,
    name: &'static str,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// The content of a certificate.
#[derive(Clone)]
struct Asked {
    uris: Vec<&'static str>,
    hosts: Vec<&'static str>,
    begins: SystemTime,
    ends: SystemTime,
    purposes: Vec<ExtendedKeyUsagePurpose>,
}

/// The files of a certificate and its key.
struct Pair {
    cert: PathBuf,
    key: PathBuf,
}

impl Default for Asked {
    fn default() -> Self {
        let now = SystemTime::now();
        Self {
            uris: Vec::new(),
            hosts: vec!["localhost", "127.0.0.1"],
            begins: now - DAY,
            ends: now + DAY,
            purposes: vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
        }
    }
}

/// Returns the request of a node or an operator.
fn named(uri: &'static str) -> Asked {
    Asked {
        uris: vec![uri],
        ..Asked::default()
    }
}

impl Authority {
    fn new(folder: &Path, name: &'static str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let authority = Self {
            folder: folder.to_owned(),
            name,
            issuer,
        };
        fs::write(authority.bundle(), authority.issuer.pem()).unwrap();
        authority
    }

    fn bundle(&self) -> PathBuf {
        self.folder.join(format!("{}-ca.pem", self.name))
    }

    /// Issues a certificate and writes it with its key.
    fn issue(&self, file: &str, asked: &Asked) -> Pair {
        let mut params = CertificateParams::new(
            asked
                .hosts
                .iter()
                .map(|host| (*host).to_owned())
                .collect::<Vec<_>>(),
        )
        .unwrap();
        params.distinguished_name.push(DnType::CommonName, file);
        for uri in &asked.uris {
            let uri = SanType::URI((*uri).try_into().unwrap());
            params.subject_alt_names.push(uri);
        }
        params.not_before = asked.begins.into();
        params.not_after = asked.ends.into();
        params.extended_key_usages.clone_from(&asked.purposes);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let pair = Pair {
            cert: self.folder.join(format!("{file}.pem")),
            key: self.folder.join(format!("{file}.key")),
        };
        fs::write(&pair.cert, certificate.pem()).unwrap();
        fs::write(&pair.key, key.serialize_pem()).unwrap();
        pair
    }
}

/// Returns the files of a node with three authorities.
fn files(pair: &Pair, peers: &Authority, operator: &Authority, clients: &Authority) -> Files {
    Files {
        cert: pair.cert.clone(),
        key: pair.key.clone(),
        peers_ca: peers.bundle(),
        operator_ca: Some(operator.bundle()),
        clients_ca: Some(clients.bundle()),
    }
}
