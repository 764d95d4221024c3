//! The keyspace that a call means.
//!
//! etcd's API names none, so a call says it by the way it came. The first of these counts:
//!
//! 1. The keyspace that the listener is bound to.
//! 2. The metadata `shardkv-keyspace`.
//! 3. The authority: the name that the client dialled, as its user wrote it. An address, `localhost` and the cluster's own names
//!    name no keyspace.
//! 4. The fallback keyspace of the options.
//!
//! Kubernetes completes the name of a service, so the port, `.svc` and `.svc.<cluster domain>` don't count. A keyspace with `.svc.`
//! within its name can be named by metadata only.

use std::net::IpAddr;

use keyspace::check_name;

/// The metadata that names a keyspace.
pub(crate) const KEYSPACE_METADATA_KEY: &str = "shardkv-keyspace";

/// The names by which a call may mean its keyspace.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Said<'a> {
    /// The keyspace that the listener is bound to.
    pub(crate) bound: Option<&'a str>,
    /// The metadata [`KEYSPACE_METADATA_KEY`].
    pub(crate) metadata: Option<&'a [u8]>,
    /// The authority that the client dialled, with its port.
    pub(crate) authority: Option<&'a str>,
}

/// The names that mean no keyspace, and the keyspace of calls that name none.
#[derive(Clone, Debug, Default)]
pub(crate) struct Naming {
    own: Vec<String>,
    fallback: Option<String>,
}

/// A call that names no keyspace, or none that can exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NamingError {
    #[error(
        "the call names no keyspace: dial the name of one, or send it as metadata {KEYSPACE_METADATA_KEY}; or set the option fallback_keyspace"
    )]
    Missing,
    #[error("`{name}` is no keyspace, by {by}: {refusal}")]
    Invalid {
        name: String,
        by: &'static str,
        refusal: keyspace::Refusal,
    },
}

impl Naming {
    /// Creates the rules. `own` are addresses and names of the cluster itself.
    pub(crate) fn new<'a>(
        own: impl IntoIterator<Item = &'a str>,
        fallback: Option<String>,
    ) -> Self {
        let mut own: Vec<_> = own.into_iter().map(host).collect();
        own.sort_unstable();
        own.dedup();
        Self { own, fallback }
    }

    /// Returns the keyspace that a call means.
    pub(crate) fn keyspace_of(&self, said: Said<'_>) -> Result<String, NamingError> {
        if let Some(bound) = said.bound {
            return Ok(bound.to_owned());
        }
        if let Some(name) = said.metadata {
            return checked(String::from_utf8_lossy(name).into_owned(), "its metadata");
        }
        let dialled = said.authority.map(host).filter(|host| self.names(host));
        if let Some(name) = dialled {
            return checked(name, "the name that was dialled");
        }
        self.fallback.clone().ok_or(NamingError::Missing)
    }

    /// Returns true if a dialled host names a keyspace.
    fn names(&self, host: &str) -> bool {
        let address = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        !host.is_empty() && !address && host != "localhost" && !self.is_own(host)
    }

    /// Returns true for a name of the cluster itself, as a whole or without its last labels, which a resolver completes.
    fn is_own(&self, host: &str) -> bool {
        let completes = |own: &String| {
            let rest = own.strip_prefix(host);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        self.own.iter().any(completes)
    }
}

/// Returns the host of an authority or address in lower case, without what Kubernetes adds to the name of a service.
fn host(authority: &str) -> String {
    let after_user = authority.rsplit('@').next().unwrap_or_default();
    let port = after_user.rfind(':').filter(|colon| {
        // The colons of an IPv6 address stand in brackets.
        !after_user.get(*colon..).unwrap_or_default().contains(']')
    });
    let host = port.map_or(after_user, |colon| {
        after_user.get(..colon).unwrap_or_default()
    });
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let service = host.strip_suffix(".svc");
    let service = service.or_else(|| host.rsplit_once(".svc.").map(|(service, _)| service));
    service.unwrap_or(&host).to_owned()
}

fn checked(name: String, by: &'static str) -> Result<String, NamingError> {
    match check_name(&name) {
        Ok(()) => Ok(name),
        Err(refusal) => {
            // A text of a client, which goes into an error.
            let name = name.escape_debug().take(keyspace::MAX_NAME_BYTES).collect();
            Err(NamingError::Invalid { name, by, refusal })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naming() -> Naming {
        let own = [
            "0.0.0.0:7400",
            "db-g1-0.db-g1.prod.svc.cluster.local:7400",
            "db.prod",
            "Node-1:7400",
        ];
        Naming::new(own, Some("default".to_owned()))
    }

    #[test]
    fn the_first_that_names_a_keyspace_counts() {
        let table = [
            (Some("bound"), Some("meta"), Some("dialled:1"), "bound"),
            (None, Some("meta"), Some("dialled:1"), "meta"),
            (None, None, Some("dialled:1"), "dialled"),
            (None, None, None, "default"),
        ];
        for (bound, metadata, authority, expected) in table {
            let said = Said {
                bound,
                metadata: metadata.map(str::as_bytes),
                authority,
            };
            assert_eq!(naming().keyspace_of(said).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn an_authority_names_a_keyspace_unless_it_is_an_address_or_our_own() {
        let table = [
            ("tenant-a", "tenant-a"),
            ("tenant-a:2379", "tenant-a"),
            ("Tenant-A.team-x:2379", "tenant-a.team-x"),
            ("tenant-a.team-x.:2379", "tenant-a.team-x"),
            ("tenant-a.team-x.svc:2379", "tenant-a.team-x"),
            ("tenant-a.team-x.svc.cluster.local:2379", "tenant-a.team-x"),
            ("tenant-a.svc.team-x.svc", "tenant-a.svc.team-x"),
            ("user@tenant-a:2379", "tenant-a"),
            // The name of a unix socket.
            ("tenant-a.sock", "tenant-a.sock"),
            // Addresses.
            ("", "default"),
            (":2379", "default"),
            ("127.0.0.1:2379", "default"),
            ("10.0.0.7", "default"),
            ("[::1]:2379", "default"),
            ("[::1]", "default"),
            ("localhost:2379", "default"),
            ("LOCALHOST", "default"),
            // The cluster's own names, also those that a resolver completes.
            ("db-g1-0.db-g1.prod.svc.cluster.local:7400", "default"),
            ("db-g1-0.db-g1.prod.svc:7400", "default"),
            ("db-g1-0.db-g1:7400", "default"),
            ("db.prod.svc:2379", "default"),
            ("db.prod:2379", "default"),
            ("db:2379", "default"),
            ("node-1", "default"),
            // A part of a label is no name of ours.
            ("db-g:1", "db-g"),
            ("prod", "prod"),
        ];
        for (authority, expected) in table {
            let said = Said {
                authority: Some(authority),
                ..Said::default()
            };
            let named = naming().keyspace_of(said);
            assert_eq!(named.as_deref(), Ok(expected), "{authority}");
        }
    }

    #[test]
    fn a_name_that_can_not_exist_is_refused_and_no_name_needs_a_fallback() {
        for (metadata, authority) in [
            (Some(&b"No"[..]), None),
            (Some(b""), None),
            (Some(b"\xff"), None),
            (Some(b"a b"), Some("tenant-a")),
            (None, Some("tenant_a:2379")),
            (None, Some("-a")),
        ] {
            let said = Said {
                bound: None,
                metadata,
                authority,
            };
            let refused = naming().keyspace_of(said);
            assert!(
                matches!(refused, Err(NamingError::Invalid { .. })),
                "{said:?} gives {refused:?}"
            );
        }
        let strict = Naming::new([], None);
        assert_eq!(
            strict.keyspace_of(Said::default()),
            Err(NamingError::Missing)
        );
    }
}
