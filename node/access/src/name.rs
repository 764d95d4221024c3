//! The names of members and operators in their certificates.

use std::fmt;
use std::str::FromStr;

use types::Gid;

const SCHEME: &str = "shardkv://";
/// The most bytes of a cluster's name.
const MAX_CLUSTER_BYTES: usize = 253;

/// The role of a member or an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A node of the group with this id, or a controller if it is [`Gid::NONE`].
    Member(Gid),
    /// The operator.
    Operator,
}

/// The name of a member or an operator: `shardkv://<cluster>/group/<gid>`, `shardkv://<cluster>/controllers` or
/// `shardkv://<cluster>/operator`. A certificate has it as an alternative name of type URI.
///
/// The cluster's name is compared byte by byte. On Kubernetes it is the UID of the `ShardKvCluster`, so that a cluster that is made
/// again under the same name is another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// The cluster.
    pub cluster: String,
    /// The role in it.
    pub role: Role,
}

/// The reason why a URI is no [`Name`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the name of a node or an operator must be shardkv://<cluster>/group/<number>, shardkv://<cluster>/controllers or \
     shardkv://<cluster>/operator, with a cluster of 1 to {MAX_CLUSTER_BYTES} letters, digits, dots and hyphens"
)]
pub struct NameError;

impl FromStr for Name {
    type Err = NameError;

    fn from_str(uri: &str) -> Result<Self, NameError> {
        let rest = uri.strip_prefix(SCHEME).ok_or(NameError)?;
        let (cluster, path) = rest.split_once('/').ok_or(NameError)?;
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
        if !(1..=MAX_CLUSTER_BYTES).contains(&cluster.len()) || !cluster.bytes().all(allowed) {
            return Err(NameError);
        }
        let role = match path {
            "controllers" => Role::Member(Gid::NONE),
            "operator" => Role::Operator,
            _ => Role::Member(gid(path)?),
        };
        let cluster = cluster.to_owned();
        Ok(Self { cluster, role })
    }
}

/// Reads the path of a group. Each group has one spelling, so that two names are equal if and only if their texts are.
fn gid(path: &str) -> Result<Gid, NameError> {
    let text = path.strip_prefix("group/").ok_or(NameError)?;
    let gid = text.parse().map(Gid).map_err(|_| NameError)?;
    if gid == Gid::NONE || gid.0.to_string() != text {
        return Err(NameError);
    }
    Ok(gid)
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cluster = &self.cluster;
        match self.role {
            Role::Member(Gid::NONE) => write!(f, "{SCHEME}{cluster}/controllers"),
            Role::Member(Gid(gid)) => write!(f, "{SCHEME}{cluster}/group/{gid}"),
            Role::Operator => write!(f, "{SCHEME}{cluster}/operator"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_written() {
        for (uri, role) in [
            ("shardkv://c1/controllers", Role::Member(Gid::NONE)),
            ("shardkv://c1/group/7", Role::Member(Gid(7))),
            ("shardkv://c1/operator", Role::Operator),
        ] {
            let name: Name = uri.parse().unwrap();
            assert_eq!((name.cluster.as_str(), name.role), ("c1", role));
            assert_eq!(name.to_string(), uri);
        }
    }

    #[test]
    fn all_else_is_refused() {
        let long = format!("shardkv://{}/operator", "c".repeat(MAX_CLUSTER_BYTES + 1));
        for uri in [
            "",
            "shardkv://",
            "shardkv:///operator",
            "shardkv://c1",
            "shardkv://c1/",
            "shardkv://c1/operator/",
            "shardkv://c1/group/",
            "shardkv://c1/group/0",
            "shardkv://c1/group/07",
            "shardkv://c1/group/+7",
            "shardkv://c1/group/-1",
            "shardkv://c1/group/7/x",
            "shardkv://c1/group/99999999999999999999",
            "shardkv://c 1/operator",
            "shardkv://c1@x/operator",
            "SHARDKV://c1/operator",
            "https://c1/operator",
            &long,
        ] {
            assert_eq!(uri.parse::<Name>(), Err(NameError), "{uri}");
        }
    }
}
