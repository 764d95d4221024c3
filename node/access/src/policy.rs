//! Policies: what callers are granted, and whose tokens are accepted.

use std::fmt;

use crate::Tokens;

/// The most grants of a policy.
pub const MAX_GRANTS: usize = 10_000;
/// The most bytes of an encoded policy: one entry of the controllers' log, and one message of their Watch.
pub const MAX_POLICY_BYTES: usize = 1 << 20;
/// The most keyspaces and the most prefixes of one grant.
const MAX_NAMES: usize = 256;
/// The most bytes of a name of a subject, as long as a URI may be.
const MAX_NAME_BYTES: usize = 2_048;
/// The most bytes of a prefix.
const MAX_PREFIX_BYTES: usize = 4_096;
/// The groups of service accounts, as Kubernetes names them.
const ACCOUNTS: &str = "system:serviceaccounts";

/// The number of a policy. The controllers number policies from 1; 0 is a policy from a file, or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PolicyNum(pub u64);

impl fmt::Display for PolicyNum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "policy {}", self.0)
    }
}

/// A numbered list of grants, and the issuers whose tokens are accepted.
///
/// Invariant: [`Policy::new`] has checked all parts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    pub(crate) num: PolicyNum,
    pub(crate) grants: Vec<Grant>,
    pub(crate) tokens: Option<Tokens>,
}

/// A permission: what a subject may do, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The callers.
    pub subject: Subject,
    /// The permitted kinds of calls; at least one.
    pub verbs: Verbs,
    /// The keyspaces: names, or beginnings of names that end with `*`. Without any, the grant is for the flat map.
    pub keyspaces: Vec<String>,
    /// The prefixes of the keys. Without any, the grant is for all keys.
    pub prefixes: Vec<String>,
}

/// The callers that a grant is for. Names are compared byte by byte.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A service account of Kubernetes, by its token.
    ServiceAccount {
        /// The namespace.
        namespace: String,
        /// The name.
        name: String,
        /// The UID. With it, an account that is made again under the same name is another one.
        uid: Option<String>,
    },
    /// A certificate of clients with this common name.
    CommonName(String),
    /// A certificate of clients with this DNS name.
    DnsName(String),
    /// A certificate of clients with this URI, for example a SPIFFE id.
    Uri(String),
    /// All service accounts whose tokens are accepted, or those of one namespace.
    Accounts {
        /// The namespace; `None` is all of them.
        namespace: Option<String>,
    },
    /// Every caller with a certificate of clients or an accepted token.
    AnyAuthenticated,
}

/// Kinds of calls. None includes another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verbs {
    /// Shows keys or values.
    pub read: bool,
    /// Changes keys.
    pub write: bool,
    /// Changes or shows the cluster: configurations, memberships, keyspaces, grants.
    pub admin: bool,
}

/// The reason why a policy can't be taken: the field, and what is valid there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct PolicyError {
    /// The path of the field, for example `grants[2].verbs`.
    pub field: String,
    /// The mistake, and a valid value.
    pub reason: String,
}

impl PolicyError {
    pub(crate) fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        let (field, reason) = (field.into(), reason.into());
        Self { field, reason }
    }
}

impl Policy {
    /// Makes a policy, or says which part isn't valid.
    pub fn new(
        num: PolicyNum,
        grants: Vec<Grant>,
        tokens: Option<Tokens>,
    ) -> Result<Self, PolicyError> {
        if grants.len() > MAX_GRANTS {
            let reason = format!(
                "{} grants, and {MAX_GRANTS} are the limit: use groups, patterns or fewer grants",
                grants.len()
            );
            return Err(PolicyError::new("grants", reason));
        }
        for (at, grant) in grants.iter().enumerate() {
            grant.check().map_err(|(field, reason)| {
                PolicyError::new(format!("grants[{at}].{field}"), reason)
            })?;
        }
        if let Some(tokens) = &tokens {
            tokens.check()?;
        }
        let policy = Self {
            num,
            grants,
            tokens,
        };
        let bytes = policy.encode().len();
        if bytes > MAX_POLICY_BYTES {
            let reason = format!(
                "{bytes} bytes in all, and {MAX_POLICY_BYTES} are the limit: use fewer or shorter grants"
            );
            return Err(PolicyError::new("grants", reason));
        }
        Ok(policy)
    }

    /// Returns the number.
    pub fn num(&self) -> PolicyNum {
        self.num
    }

    /// Returns the same policy under another number.
    #[must_use]
    pub fn numbered(self, num: PolicyNum) -> Self {
        Self { num, ..self }
    }

    /// Returns the grants.
    pub fn grants(&self) -> &[Grant] {
        &self.grants
    }

    /// Returns the rules for tokens. Without them, no token is accepted.
    pub fn tokens(&self) -> Option<&Tokens> {
        self.tokens.as_ref()
    }
}

/// A field of a part, and what is wrong with it.
type Wrong = (String, String);

impl Grant {
    fn check(&self) -> Result<(), Wrong> {
        self.subject.check()?;
        let data = self.verbs.read || self.verbs.write;
        if !data && !self.verbs.admin {
            return Err(wrong("verbs", "name at least one of read, write and admin"));
        }
        if self.verbs.admin && !(self.keyspaces.is_empty() && self.prefixes.is_empty()) {
            let reason =
                "admin is for the whole cluster: give it in a grant without keyspaces and prefixes";
            return Err(wrong("verbs", reason));
        }
        for (field, names) in [("keyspaces", &self.keyspaces), ("prefixes", &self.prefixes)] {
            if names.len() > MAX_NAMES {
                let reason = format!(
                    "{} names, and {MAX_NAMES} are the limit: make several grants",
                    names.len()
                );
                return Err(wrong(field, &reason));
            }
        }
        for (at, name) in self.keyspaces.iter().enumerate() {
            if !is_keyspace(name) {
                let reason = "use the name of a keyspace, or a beginning of names that ends with `*`: lower-case letters, digits, dots and \
                              hyphens";
                return Err(wrong(&format!("keyspaces[{at}]"), reason));
            }
        }
        for (at, prefix) in self.prefixes.iter().enumerate() {
            if !(1..=MAX_PREFIX_BYTES).contains(&prefix.len()) {
                let reason = format!(
                    "use a prefix of 1 to {MAX_PREFIX_BYTES} bytes; for all keys, leave `prefixes` out"
                );
                return Err(wrong(&format!("prefixes[{at}]"), &reason));
            }
        }
        Ok(())
    }
}

/// The names of a keyspace as `keyspace::check_name` takes them, or the beginning of one with `*`.
fn is_keyspace(name: &str) -> bool {
    let (name, pattern) = match name.strip_suffix('*') {
        Some(beginning) => (beginning, true),
        None => (name, false),
    };
    let end = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    let ends = |at: Option<&u8>| at.map_or(pattern, |byte| end(*byte));
    let inner = bytes
        .iter()
        .all(|byte| end(*byte) || matches!(byte, b'-' | b'.'));
    bytes.len() <= 128 && inner && ends(bytes.first()) && (pattern || ends(bytes.last()))
}

impl Subject {
    fn check(&self) -> Result<(), Wrong> {
        match self {
            Self::ServiceAccount {
                namespace,
                name,
                uid,
            } => {
                named("subject.serviceAccount.namespace", namespace)?;
                named("subject.serviceAccount.name", name)?;
                uid.as_ref()
                    .map_or(Ok(()), |uid| named("subject.serviceAccount.uid", uid))
            }
            Self::CommonName(name) => named("subject.certificate.commonName", name),
            Self::DnsName(name) => named("subject.certificate.dnsName", name),
            Self::Uri(name) if name.starts_with("shardkv://") => Err(wrong(
                "subject.certificate.uri",
                "these names are those of nodes and operators, whose rights don't come from grants: use the URI of a client",
            )),
            Self::Uri(name) => named("subject.certificate.uri", name),
            Self::Accounts {
                namespace: Some(name),
            } => named("subject.group", name),
            Self::Accounts { namespace: None } | Self::AnyAuthenticated => Ok(()),
        }
    }

    /// Reads the name of a group. The groups of service accounts are all that a caller can prove to be in.
    pub(crate) fn group(name: &str) -> Option<Self> {
        let rest = name.strip_prefix(ACCOUNTS)?;
        let namespace = match rest.strip_prefix(':') {
            Some(namespace) => Some(namespace.to_owned()),
            None if rest.is_empty() => None,
            None => return None,
        };
        Some(Self::Accounts { namespace })
    }

    /// Returns the name of a group, if the subject is one.
    pub(crate) fn group_name(&self) -> Option<String> {
        match self {
            Self::Accounts { namespace: None } => Some(ACCOUNTS.to_owned()),
            Self::Accounts {
                namespace: Some(name),
            } => Some(format!("{ACCOUNTS}:{name}")),
            _ => None,
        }
    }
}

fn named(field: &str, name: &str) -> Result<(), Wrong> {
    if (1..=MAX_NAME_BYTES).contains(&name.len()) {
        return Ok(());
    }
    Err(wrong(
        field,
        &format!("use a name of 1 to {MAX_NAME_BYTES} bytes"),
    ))
}

fn wrong(field: &str, reason: &str) -> Wrong {
    (field.to_owned(), reason.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant() -> Grant {
        Grant {
            subject: Subject::AnyAuthenticated,
            verbs: Verbs {
                read: true,
                ..Verbs::default()
            },
            keyspaces: Vec::new(),
            prefixes: Vec::new(),
        }
    }

    fn fault(grant: Grant) -> String {
        Policy::new(PolicyNum(1), vec![self::grant(), grant], None)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn faults_name_the_grant_and_its_field() {
        let none = Grant {
            verbs: Verbs::default(),
            ..grant()
        };
        assert!(fault(none).starts_with("grants[1].verbs: name at least one"));
        let admin = Verbs {
            admin: true,
            ..Verbs::default()
        };
        let limited = Grant {
            verbs: admin,
            prefixes: vec!["a".into()],
            ..grant()
        };
        assert!(fault(limited).starts_with("grants[1].verbs: admin is for the whole cluster"));
        for keyspace in [
            "",
            "A",
            "-a",
            "a-",
            "a*b",
            "**",
            "-*",
            "a b",
            &"a".repeat(129),
        ] {
            let bad = Grant {
                keyspaces: vec!["ok".into(), keyspace.into()],
                ..grant()
            };
            assert!(
                fault(bad).starts_with("grants[1].keyspaces[1]: "),
                "{keyspace}"
            );
        }
        for keyspace in [
            "a",
            "a.b-c",
            "*",
            "a*",
            "team-*",
            "team.*",
            &"a".repeat(128),
        ] {
            let good = Grant {
                keyspaces: vec![keyspace.into()],
                ..grant()
            };
            assert!(
                Policy::new(PolicyNum(1), vec![good], None).is_ok(),
                "{keyspace}"
            );
        }
        let empty = Grant {
            prefixes: vec![String::new()],
            ..grant()
        };
        assert!(fault(empty).starts_with("grants[1].prefixes[0]: "));
        let operator = Subject::Uri("shardkv://c/operator".into());
        assert!(
            fault(Grant {
                subject: operator,
                ..grant()
            })
            .starts_with("grants[1].subject.certificate.uri: ")
        );
        let many = Grant {
            prefixes: vec!["a".into(); MAX_NAMES + 1],
            ..grant()
        };
        assert!(fault(many).starts_with("grants[1].prefixes: "));
    }

    #[test]
    fn policies_are_bounded() {
        let many = vec![grant(); MAX_GRANTS + 1];
        let error = Policy::new(PolicyNum(1), many, None).unwrap_err();
        assert!(error.to_string().contains("are the limit"));
        let prefixes = vec!["p".repeat(MAX_PREFIX_BYTES); MAX_NAMES];
        let large = vec![
            Grant {
                prefixes,
                ..grant()
            };
            2
        ];
        let error = Policy::new(PolicyNum(1), large, None).unwrap_err();
        assert!(error.to_string().contains("bytes in all"), "{error}");
    }
}
