//! The content of a certificate.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use access::{Name, Role};

/// The time before its making from which a certificate is valid, because clocks differ.
const DATED_BACK: Duration = Duration::from_hours(1);
/// The lifetime of a root: ten years.
const ROOT_LIFETIME: Duration = Duration::from_hours(24 * 3_652);

/// The time during which a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The first moment.
    pub not_before: SystemTime,
    /// The last moment.
    pub not_after: SystemTime,
}

impl Validity {
    /// Returns the validity of a certificate that is made `now` and lives for `lifetime`. It begins an hour earlier, because clocks
    /// differ.
    pub fn starting(now: SystemTime, lifetime: Duration) -> Self {
        Self {
            not_before: now - DATED_BACK,
            not_after: now + lifetime,
        }
    }

    /// Returns the validity of an authority that is made `now`: ten years.
    pub fn root(now: SystemTime) -> Self {
        Self::starting(now, ROOT_LIFETIME)
    }
}

/// The purpose of a certificate: its extended key usage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// Dials only (`clientAuth`).
    Client,
    /// Serves and dials (`serverAuth` and `clientAuth`).
    ServerAndClient,
}

/// The names and the purpose of a certificate that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The common name of the subject.
    pub common_name: String,
    /// The alternative names that are URIs.
    pub uris: Vec<String>,
    /// The alternative names that are DNS names. One may begin with `*.`.
    pub dns_names: Vec<String>,
    /// The alternative names that are IP addresses.
    pub addresses: Vec<IpAddr>,
    /// The purpose.
    pub usage: Usage,
}

impl Request {
    /// Asks for the certificate of a node. It serves and dials, so it needs the DNS names and addresses by which clients reach the
    /// node, too.
    pub fn member(name: &Name) -> Self {
        let common_name = match name.role {
            Role::Member(types::Gid::NONE) => "ShardKV controller".to_owned(),
            Role::Member(gid) => format!("ShardKV node of {gid}"),
            Role::Operator => "ShardKV operator".to_owned(),
        };
        Self {
            uris: vec![name.to_string()],
            usage: Usage::ServerAndClient,
            ..Self::client(&common_name)
        }
    }

    /// Asks for the certificate of the operator of `cluster`.
    pub fn operator(cluster: &str) -> Self {
        let name = Name {
            cluster: cluster.to_owned(),
            role: Role::Operator,
        };
        Self {
            usage: Usage::Client,
            ..Self::member(&name)
        }
    }

    /// Asks for the certificate of an application or a person.
    pub fn client(common_name: &str) -> Self {
        Self {
            common_name: common_name.to_owned(),
            uris: Vec::new(),
            dns_names: Vec::new(),
            addresses: Vec::new(),
            usage: Usage::Client,
        }
    }
}
