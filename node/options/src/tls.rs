//! Options of TLS.

use std::path::PathBuf;

use crate::read::{OptionError, Values};

/// The files of TLS, and the treatment of connections without it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the table explains each option")]
pub struct Tls {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub peers_ca: PathBuf,
    pub operator_ca: Option<PathBuf>,
    pub clients_ca: Option<PathBuf>,
    /// True if calls over connections without TLS are served.
    pub accepts_plain: bool,
}

/// Reads the options; `None` if no certificate is given.
pub(super) fn tls(values: &mut Values) -> Result<Option<Tls>, OptionError> {
    let mut path = |key| values.text(key).map(PathBuf::from);
    let (cert, key, peers_ca) = (path("tls_cert"), path("tls_key"), path("tls_peers_ca"));
    let (operator_ca, clients_ca) = (path("tls_operator_ca"), path("tls_clients_ca"));
    let accepts_plain = match values.text_or_default("tls_plain").as_str() {
        "refuse" => false,
        "accept" => true,
        other => {
            let reason = format!("`{other}` is neither accept nor refuse");
            return Err(values.error("tls_plain", reason));
        }
    };
    let given = [
        ("tls_cert", cert.is_some()),
        ("tls_key", key.is_some()),
        ("tls_peers_ca", peers_ca.is_some()),
        ("tls_operator_ca", operator_ca.is_some()),
        ("tls_clients_ca", clients_ca.is_some()),
    ];
    match (cert, key, peers_ca) {
        (Some(cert), Some(key), Some(peers_ca)) => Ok(Some(Tls {
            cert,
            key,
            peers_ca,
            operator_ca,
            clients_ca,
            accepts_plain,
        })),
        _ => match given.into_iter().find(|(_, is_given)| *is_given) {
            None => Ok(None),
            // A node that lacks a part must not serve without TLS.
            Some((key, _)) => {
                let reason = "TLS needs --tls-cert, --tls-key and --tls-peers-ca together";
                Err(values.error(key, reason))
            }
        },
    }
}
