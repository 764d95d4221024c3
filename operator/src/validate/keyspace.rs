//! Checks a keyspace's resource, and converts it into [`Names`] and options.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Resource as _;
use shardkv_client::{AutoCompaction, KeyspaceOptions};

use super::{Cluster, is_service_name};
use crate::crd::{CompactionSpec, DeletionPolicy, ShardKvKeyspace};

/// Maximum length of the name of a service.
const MAX_SERVICE_NAME: usize = 63;

/// Names of a keyspace's resource and of what belongs to it.
///
/// Invariant: the keyspace's name is the resource's name and namespace with a dot between. Neither has a dot that counts: the last dot
/// separates them, and namespaces have none. So no two resources name one keyspace, and no keyspace that people name belongs to one.
#[derive(Clone, Debug, PartialEq)]
pub struct Names {
    /// Name of the resource and of its service.
    pub name: String,
    /// Namespace of the resource and of its service.
    pub namespace: String,
    /// Name of the keyspace in the store.
    pub keyspace: String,
    /// Makes the resource the owner of its service.
    pub owner: OwnerReference,
    /// Namespace and name of the cluster.
    pub cluster: (String, String),
    /// The end of the keyspace.
    pub policy: DeletionPolicy,
}

/// Reason why a keyspace's resource is invalid. An API server with the operator's definition refuses such a resource.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKeyspace {
    /// The name can't be the name of a service.
    #[error(
        "a service can't have the name `{0}`: begin with a letter, use a-z, 0-9 and '-', and at most 63 characters"
    )]
    Name(String),
    /// The quota isn't a number of bytes.
    #[error("spec.quota is `{0}` and must be a number of bytes such as 512Mi or 2Gi")]
    Quota(String),
    /// The retention isn't a time.
    #[error("spec.compaction.retention is `{0}` and must be a time such as 30m or 24h")]
    Retention(String),
    /// The number of revisions is out of range.
    #[error("spec.compaction.revisions is {0} and must be at least 1")]
    Revisions(i64),
    /// Two kinds of compaction.
    #[error("spec.compaction has a retention and a number of revisions: keep one of them")]
    TwoCompactions,
}

/// Returns the names of a resource; `None` if no API server has stored it.
pub fn names(resource: &ShardKvKeyspace) -> Option<Names> {
    let (meta, spec) = (&resource.metadata, &resource.spec);
    let (name, namespace) = (meta.name.clone()?, meta.namespace.clone()?);
    let cluster = &spec.cluster_ref;
    let of = cluster.namespace.as_ref().unwrap_or(&namespace).clone();
    Some(Names {
        keyspace: format!("{name}.{namespace}"),
        owner: resource.controller_owner_ref(&())?,
        cluster: (of, cluster.name.clone()),
        policy: spec.deletion_policy,
        name,
        namespace,
    })
}

/// Checks a resource, and returns the options of its keyspace.
pub fn options(resource: &ShardKvKeyspace) -> Result<KeyspaceOptions, InvalidKeyspace> {
    let name = resource.metadata.name.as_deref().unwrap_or_default();
    if !is_service_name(name) || name.len() > MAX_SERVICE_NAME {
        return Err(InvalidKeyspace::Name(name.to_owned()));
    }
    let spec = &resource.spec;
    let quota = bytes(&spec.quota).ok_or_else(|| InvalidKeyspace::Quota(spec.quota.clone()))?;
    Ok(KeyspaceOptions {
        quota_bytes: Some(quota),
        auto_compaction: compaction(&spec.compaction)?,
    })
}

/// Returns true if a cluster admits keyspaces of a namespace.
pub fn admits(cluster: &Cluster, namespace: &str) -> bool {
    let listed = &cluster.spec.keyspace_namespaces;
    cluster.namespace == namespace || listed.iter().any(|it| it == namespace || it == "*")
}

fn compaction(spec: &CompactionSpec) -> Result<AutoCompaction, InvalidKeyspace> {
    Ok(match (&spec.retention, spec.revisions) {
        (None, None) => AutoCompaction::None,
        (Some(_), Some(_)) => return Err(InvalidKeyspace::TwoCompactions),
        (Some(text), None) => {
            let time = time(text).ok_or_else(|| InvalidKeyspace::Retention(text.clone()))?;
            AutoCompaction::Retention(time)
        }
        (None, Some(number)) => {
            let kept = u64::try_from(number).ok().filter(|kept| *kept > 0);
            AutoCompaction::Revisions(kept.ok_or(InvalidKeyspace::Revisions(number))?)
        }
    })
}

/// Returns a number of bytes that is greater than 0.
fn bytes(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit());
    let (number, unit) = text.split_at(end.unwrap_or(text.len()));
    let unit = match unit {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => return None,
    };
    let bytes = number.parse::<u64>().ok()?.checked_mul(unit)?;
    (bytes > 0).then_some(bytes)
}

/// Returns a time in whole seconds that is greater than 0.
fn time(text: &str) -> Option<Duration> {
    let unit = match text.chars().last()? {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        _ => return None,
    };
    let number = text.get(..text.len() - 1)?;
    let digits = number.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = number.parse::<u64>().ok()?.checked_mul(unit)?;
    (digits && seconds > 0).then(|| Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::crd::{ClusterRef, ShardKvClusterSpec};
    use crate::validate::tests::stored;
    use crate::validate::validate;

    fn keyspace(spec: &Value) -> ShardKvKeyspace {
        let mut whole = json!({"clusterRef": {"name": "demo"}});
        let fields = spec.as_object().unwrap().clone();
        whole.as_object_mut().unwrap().extend(fields);
        let mut resource = ShardKvKeyspace::new("orders", serde_json::from_value(whole).unwrap());
        resource.metadata.namespace = Some("team-x".to_owned());
        resource.metadata.uid = Some("u".to_owned());
        resource
    }

    #[test]
    fn names_come_from_name_and_namespace() {
        let mut resource = keyspace(&json!({}));
        let named = names(&resource).unwrap();
        assert_eq!(named.keyspace, "orders.team-x");
        assert_eq!(named.cluster, ("team-x".to_owned(), "demo".to_owned()));
        assert_eq!(named.owner.controller, Some(true));
        resource.spec.cluster_ref = ClusterRef {
            name: "big".to_owned(),
            namespace: Some("stores".to_owned()),
        };
        let named = names(&resource).unwrap();
        assert_eq!(named.cluster, ("stores".to_owned(), "big".to_owned()));
        resource.metadata.uid = None;
        assert_eq!(names(&resource), None);
    }

    #[test]
    fn options_are_read_from_the_spec() {
        let of = |spec: Value| options(&keyspace(&spec)).unwrap();
        let plain = of(json!({}));
        assert_eq!(plain.quota_bytes, Some(2 << 30));
        assert_eq!(plain.auto_compaction, AutoCompaction::None);
        for (quota, expected) in [
            ("1", 1),
            ("3k", 3_000),
            ("512Mi", 512 << 20),
            ("1T", 10_u64.pow(12)),
        ] {
            assert_eq!(
                of(json!({"quota": quota})).quota_bytes,
                Some(expected),
                "{quota}"
            );
        }
        let kept = of(json!({"compaction": {"revisions": 7}}));
        assert_eq!(kept.auto_compaction, AutoCompaction::Revisions(7));
        for (text, seconds) in [("1s", 1), ("30m", 1_800), ("24h", 86_400)] {
            let kept = of(json!({"compaction": {"retention": text}}));
            let expected = AutoCompaction::Retention(Duration::from_secs(seconds));
            assert_eq!(kept.auto_compaction, expected, "{text}");
        }
    }

    #[test]
    fn resources_that_an_older_definition_accepts_are_refused() {
        for (spec, needle) in [
            (json!({"quota": "0"}), "spec.quota is `0`"),
            (json!({"quota": "many"}), "spec.quota is `many`"),
            (json!({"quota": "1.5Gi"}), "spec.quota is `1.5Gi`"),
            (json!({"quota": "999999999999Ti"}), "such as 512Mi"),
            (
                json!({"compaction": {"retention": "0m"}}),
                "retention is `0m`",
            ),
            (
                json!({"compaction": {"retention": "+1m"}}),
                "retention is `+1m`",
            ),
            (json!({"compaction": {"retention": "é"}}), "such as 30m"),
            (json!({"compaction": {"retention": ""}}), "such as 30m"),
            (json!({"compaction": {"revisions": -1}}), "revisions is -1"),
            (
                json!({"compaction": {"revisions": 1, "retention": "1h"}}),
                "keep one of them",
            ),
        ] {
            let text = options(&keyspace(&spec)).unwrap_err().to_string();
            assert!(text.contains(needle), "{text}");
        }
        for name in ["a.b", "1a", "a-", "A", &"a".repeat(64)] {
            let mut resource = keyspace(&json!({}));
            resource.metadata.name = Some(name.to_owned());
            let refused = options(&resource);
            assert_eq!(refused, Err(InvalidKeyspace::Name(name.to_owned())));
        }
    }

    #[test]
    fn a_cluster_admits_its_own_namespace_and_those_that_it_lists() {
        let admitted = |listed: &[&str], namespace: &str| {
            let listed = listed.iter().copied().map(str::to_owned).collect();
            let cluster = validate(&stored(ShardKvClusterSpec {
                keyspace_namespaces: listed,
                ..ShardKvClusterSpec::default()
            }));
            admits(&cluster.unwrap(), namespace)
        };
        assert!(admitted(&[], "ns"));
        assert!(!admitted(&[], "team-x"));
        assert!(admitted(&["team-x"], "team-x"));
        assert!(!admitted(&["team"], "team-x"));
        assert!(admitted(&["*"], "team-x"));
    }
}
