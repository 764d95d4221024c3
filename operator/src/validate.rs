//! From a resource to a cluster that makes sense: the second of reconcile's five steps.
//!
//! The API server has checked all of this already, if it has the definition that belongs to this operator. It may have an older
//! one, and what slips through must become a condition for people, and no panic, endless loop or half-built cluster.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Resource;

use crate::crd::{Amount, ShardKvCluster, ShardKvClusterSpec};

/// A cluster to build. The fields that need no check are read from `spec`.
///
/// Invariants: names and uid are not empty; `groups` and `shards` are at least 1; `replicas` and `controllers` are 1, 3, 5 or 7.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// The resource's name.
    pub name: String,
    /// The namespace of the resource and all of its objects.
    pub namespace: String,
    /// Makes the resource the owner of its objects, so that they go with it.
    pub owner: OwnerReference,
    /// How many groups are asked for.
    pub groups: u32,
    /// How many nodes a group has.
    pub replicas: i32,
    /// How many controllers there are.
    pub controllers: i32,
    /// How many shards there are.
    pub shards: u32,
    /// Everything else.
    pub spec: ShardKvClusterSpec,
}

/// Why a resource is no cluster.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// The object has never been stored by an API server.
    #[error("metadata.{0} is missing: is this object stored?")]
    Incomplete(&'static str),
    /// The name can't be part of a service's name.
    #[error("`{0}` can't be the name of services: begin with a letter, then a-z, 0-9 and '-'")]
    Name(String),
    /// A number is out of its bounds.
    #[error("{field} is {value} and must be {expected}")]
    Number {
        /// Where, as a path in the resource.
        field: &'static str,
        /// What stands there.
        value: i32,
        /// What may.
        expected: &'static str,
    },
    /// An amount is none.
    #[error("{field} is `{value}` and must be an amount such as 500m, 2 or 4Gi")]
    Amount {
        /// Where, as a path in the resource.
        field: String,
        /// What stands there.
        value: String,
    },
}

/// Checks a resource.
pub fn validate(resource: &ShardKvCluster) -> Result<Cluster, Invalid> {
    let meta = &resource.metadata;
    let spec = &resource.spec;
    let name = meta.name.clone().ok_or(Invalid::Incomplete("name"))?;
    if !is_service_name(&name) {
        return Err(Invalid::Name(name));
    }
    amounts(spec)?;
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

/// What a resource's objects are called, for one that is to be deleted, however little sense its numbers make: those that make
/// none are the least that there can be.
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

/// The API server can't say what is wrong with an amount that it meets in a pod's template.
fn amounts(spec: &ShardKvClusterSpec) -> Result<(), Invalid> {
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

fn is_service_name(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(inner)
        && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(spec: ShardKvClusterSpec) -> ShardKvCluster {
        let mut resource = ShardKvCluster::new("demo", spec);
        resource.metadata.namespace = Some("ns".to_owned());
        resource.metadata.uid = Some("u".to_owned());
        resource
    }

    #[test]
    fn the_defaults_are_a_cluster() {
        let cluster = validate(&stored(ShardKvClusterSpec::default())).unwrap();
        assert_eq!(
            (cluster.groups, cluster.replicas, cluster.shards),
            (1, 3, 64)
        );
        assert_eq!(cluster.owner.controller, Some(true));
    }

    #[test]
    fn what_an_older_definition_lets_through_is_refused() {
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
        bad(|it| it.metadata.uid = None, "metadata.uid");
        bad(
            |it| it.metadata.name = Some("a.b".to_owned()),
            "begin with a letter",
        );
    }
}
