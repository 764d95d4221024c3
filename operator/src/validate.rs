//! Checks a resource and converts it into a [`Cluster`].
//!
//! An API server whose definition matches this operator has checked all of this already. It may have an older definition; an
//! invalid resource then becomes a condition of the resource, not a panic, an endless loop or a half-built cluster.

pub mod keyspace;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Resource;

use crate::crd::{Amount, ShardKvCluster, ShardKvClusterSpec};

/// A valid cluster. Fields that need no check are read from `spec`.
///
/// Invariants: names and uid are not empty; `groups` and `shards` are at least 1; `replicas` and `controllers` are 1, 3, 5 or 7.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Name of the resource.
    pub name: String,
    /// Namespace of the resource and all of its objects.
    pub namespace: String,
    /// Makes the resource the owner of its objects, so that Kubernetes deletes them with it.
    pub owner: OwnerReference,
    /// Number of groups that the spec asks for.
    pub groups: u32,
    /// Number of nodes of a group.
    pub replicas: i32,
    /// Number of controllers.
    pub controllers: i32,
    /// Number of shards.
    pub shards: u32,
    /// The whole spec.
    pub spec: ShardKvClusterSpec,
}

/// Goal that a resource sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// Run this many groups; at least 1.
    Run(u32),
    /// Change nothing but the finalizer.
    Pause,
    /// Delete the cluster.
    Delete,
}

/// The cluster that a resource asks for, and the goal for it.
#[derive(Clone, Debug)]
pub struct Desired {
    /// The cluster. If the resource is invalid, only its names are used.
    pub cluster: Cluster,
    /// The goal.
    pub intent: Intent,
    /// The reason why nothing is changed, if the resource is invalid. A resource that is being deleted counts as valid.
    pub invalid: Option<Invalid>,
}

/// Reason why a resource is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// The object has never been stored by an API server.
    #[error("metadata.{0} is missing: the API server has not stored this object")]
    Incomplete(&'static str),
    /// The name can't be part of the name of a service.
    #[error("services can't be named after `{0}`: begin with a letter, and use a-z, 0-9 and '-'")]
    Name(String),
    /// A number is out of bounds.
    #[error("{field} is {value} and must be {expected}")]
    Number {
        /// Path of the field in the resource.
        field: &'static str,
        /// Value of the field.
        value: i32,
        /// Allowed values.
        expected: &'static str,
    },
    /// The nodes would refuse the options.
    #[error("the nodes refuse spec.options: {0}")]
    Options(node_options::OptionError),
    /// A text isn't a quantity of Kubernetes.
    #[error("{field} is `{value}` and must be an amount such as 500m, 2 or 4Gi")]
    Amount {
        /// Path of the field in the resource.
        field: String,
        /// Value of the field.
        value: String,
    },
}

/// Checks a resource and returns its cluster.
pub fn validate(resource: &ShardKvCluster) -> Result<Cluster, Invalid> {
    let meta = &resource.metadata;
    let spec = &resource.spec;
    let name = meta.name.clone().ok_or(Invalid::Incomplete("name"))?;
    if !is_service_name(&name) {
        return Err(Invalid::Name(name));
    }
    check_amounts(spec)?;
    check_options(spec)?;
    Ok(Cluster {
        name,
        namespace: meta
            .namespace
            .clone()
            .ok_or(Invalid::Incomplete("namespace"))?,
        owner: resource
            .controller_owner_ref(&())
            .ok_or(Invalid::Incomplete("uid"))?,
        groups: positive("spec.groups", spec.groups)?,
        replicas: odd("spec.replicasPerGroup", spec.replicas_per_group)?,
        controllers: odd("spec.controllers.replicas", spec.controllers.replicas)?,
        shards: positive("spec.shards", spec.shards)?,
        spec: spec.clone(),
    })
}

/// Returns the cluster of a resource that is being deleted, so that its objects can be found by name. Accepts invalid
/// numbers and replaces each by the least valid one.
pub fn identify(resource: &ShardKvCluster) -> Result<Cluster, Invalid> {
    let meta = &resource.metadata;
    let spec = &resource.spec;
    let missing = Invalid::Incomplete;
    Ok(Cluster {
        name: meta.name.clone().ok_or(missing("name"))?,
        namespace: meta.namespace.clone().ok_or(missing("namespace"))?,
        owner: resource.controller_owner_ref(&()).ok_or(missing("uid"))?,
        groups: positive("spec.groups", spec.groups).unwrap_or(1),
        replicas: odd("spec.replicasPerGroup", spec.replicas_per_group).unwrap_or(1),
        controllers: odd("spec.controllers.replicas", spec.controllers.replicas).unwrap_or(1),
        shards: positive("spec.shards", spec.shards).unwrap_or(1),
        spec: spec.clone(),
    })
}

/// Interprets a resource. Fails only if the resource was never stored by an API server.
pub fn desired(resource: &ShardKvCluster) -> Result<Desired, Invalid> {
    let names = identify(resource)?;
    if resource.metadata.deletion_timestamp.is_some() {
        return Ok(Desired {
            cluster: names,
            intent: Intent::Delete,
            invalid: None,
        });
    }
    let (cluster, intent, invalid) = match validate(resource) {
        Ok(cluster) if cluster.spec.paused => (cluster, Intent::Pause, None),
        Ok(cluster) => {
            let groups = cluster.groups;
            (cluster, Intent::Run(groups), None)
        }
        Err(why) => (names, Intent::Pause, Some(why)),
    };
    Ok(Desired {
        cluster,
        intent,
        invalid,
    })
}

fn positive(field: &'static str, value: i32) -> Result<u32, Invalid> {
    let expected = "from 1 to 1000000";
    let number = u32::try_from(value)
        .ok()
        .filter(|number| (1..=1_000_000).contains(number));
    number.ok_or(Invalid::Number {
        field,
        value,
        expected,
    })
}

fn odd(field: &'static str, value: i32) -> Result<i32, Invalid> {
    let expected = "1, 3, 5 or 7";
    let good = matches!(value, 1 | 3 | 5 | 7);
    good.then_some(value).ok_or(Invalid::Number {
        field,
        value,
        expected,
    })
}

/// Checks all amounts. For an invalid amount in a pod template the API server's error would not name the field.
fn check_amounts(spec: &ShardKvClusterSpec) -> Result<(), Invalid> {
    let size = |field: &str, size: &str| (field.to_owned(), Amount(size.to_owned()));
    let sizes = [
        size("spec.storage.size", &spec.storage.size),
        size("spec.controllers.size", &spec.controllers.size),
    ];
    let resources = [
        ("spec.resources", &spec.resources),
        ("spec.controllers.resources", &spec.controllers.resources),
    ];
    let resources = resources.into_iter().flat_map(|(field, resources)| {
        let kinds = [
            ("requests", &resources.requests),
            ("limits", &resources.limits),
        ];
        let amounts = kinds.into_iter().flat_map(|(kind, map)| {
            map.iter()
                .map(move |(name, amount)| (kind, name, amount.clone()))
        });
        amounts.map(move |(kind, name, amount)| (format!("{field}.{kind}.{name}"), amount))
    });
    let mut all = sizes.into_iter().chain(resources);
    match all.find(|(_, amount)| !amount.is_valid()) {
        Some((field, Amount(value))) => Err(Invalid::Amount { field, value }),
        None => Ok(()),
    }
}

/// Checks the options by the parser of the nodes, so that no pod gets options that it would refuse.
fn check_options(spec: &ShardKvClusterSpec) -> Result<(), Invalid> {
    // The options of the resource depend on no variable; a node only requires this one.
    let environment = [("SHARDKV_DATA_DIR", "/data")];
    let checked = node_options::check("node.yaml", &spec.options.file(), environment);
    checked.map_err(Invalid::Options)
}

fn is_service_name(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(inner)
        && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
    mod options;

    use super::*;

    pub(super) fn stored(spec: ShardKvClusterSpec) -> ShardKvCluster {
        let mut resource = ShardKvCluster::new("demo", spec);
        resource.metadata.namespace = Some("ns".to_owned());
        resource.metadata.uid = Some("u".to_owned());
        resource
    }

    #[test]
    fn the_defaults_are_valid() {
        let cluster = validate(&stored(ShardKvClusterSpec::default())).unwrap();
        assert_eq!(
            (cluster.groups, cluster.replicas, cluster.shards),
            (1, 3, 64)
        );
        assert_eq!(cluster.owner.controller, Some(true));
    }

    #[test]
    fn resources_that_an_older_definition_accepts_are_refused() {
        let bad = |change: fn(&mut ShardKvCluster), needle: &str| {
            let mut resource = stored(ShardKvClusterSpec::default());
            change(&mut resource);
            let text = validate(&resource).unwrap_err().to_string();
            assert!(text.contains(needle), "{text}");
            let stored = resource.metadata.uid.is_some();
            assert_eq!(identify(&resource).is_ok(), stored, "{text}");
        };
        bad(|it| it.spec.groups = 0, "spec.groups is 0");
        bad(|it| it.spec.shards = -1, "spec.shards is -1");
        bad(|it| it.spec.replicas_per_group = 4, "1, 3, 5 or 7");
        bad(
            |it| it.spec.controllers.replicas = 9,
            "controllers.replicas is 9",
        );
        bad(
            |it| it.spec.storage.size = "10 GB".to_owned(),
            "spec.storage.size is `10 GB`",
        );
        bad(
            |it| {
                it.spec
                    .controllers
                    .resources
                    .limits
                    .insert("cpu".to_owned(), Amount("many".to_owned()));
            },
            "spec.controllers.resources.limits.cpu is `many`",
        );
        bad(
            |it| it.spec.options.log_filter = Some("info,shardkv_server=debgu".to_owned()),
            "the nodes refuse spec.options: node.yaml line 2: log_filter: `info,shardkv_server=debgu`",
        );
        bad(
            |it| it.spec.options.heartbeat_interval_ms = Some(200),
            "--election-timeout-ms: must be at least 3 times heartbeat_interval_ms",
        );
        bad(|it| it.metadata.uid = None, "metadata.uid");
        bad(
            |it| it.metadata.name = Some("a.b".to_owned()),
            "begin with a letter",
        );
    }
}
