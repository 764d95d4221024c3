//! Names and labels.
//!
//! Every object is called after the resource with a suffix of its own: `-controller`, `-group-<gid>`, `-client`, `-node`,
//! `-config`. No suffix is the end of another, and nothing is called like the resource alone; so two resources of a
//! namespace can't want the same name, whatever they are called (`a` and `a-group-1`, say).
//!
//! The tightest limit is that of a StatefulSet, 52 characters: its pods carry its name and a hash of ten in a label of
//! at most 63. A resource's name that is too long for that is cut, and told apart by a hash of the whole.

use std::collections::BTreeMap;

use crate::validate::Cluster;

/// The longest part that the resource's name has in other names: 52, less `-group-` and a gid of ten digits.
const MAX_BASE: usize = 35;

/// The name of the claim of a node's volume.
pub(super) const CLAIM: &str = "data";

/// The label of a group's number.
pub const GID_LABEL: &str = "shardkv.io/gid";

/// Who keeps what: the part of a cluster that pods belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    /// The controllers.
    Controller,
    /// A group, by its gid.
    Group(u64),
}

impl Component {
    fn component(self) -> &'static str {
        match self {
            Self::Controller => "controller",
            Self::Group(_) => "group",
        }
    }
}

/// What names begin with.
pub fn base(cluster: &Cluster) -> String {
    let name = &cluster.name;
    if name.len() <= MAX_BASE {
        return name.clone();
    }
    let hash = fnv1a(name.as_bytes());
    let kept: String = name.chars().take(MAX_BASE - 11).collect();
    format!("{}-{:010x}", kept.trim_end_matches('-'), hash >> 24)
}

/// FNV-1a: stable for ever, which `std`'s hasher doesn't promise to be.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Of a StatefulSet, its headless service and its disruption budget.
pub fn part(cluster: &Cluster, part: Component) -> String {
    match part {
        Component::Controller => format!("{}-controller", base(cluster)),
        Component::Group(gid) => format!("{}-group-{gid}", base(cluster)),
    }
}

/// The part that an object is called after; the reverse of [`part`].
pub fn part_of(cluster: &Cluster, name: &str) -> Option<Component> {
    let suffix = name.strip_prefix(&base(cluster))?.strip_prefix('-')?;
    let found = match suffix.strip_prefix("group-") {
        Some(gid) => Component::Group(gid.parse().ok()?),
        None => Component::Controller,
    };
    // No other spelling of a number, and nothing behind.
    (part(cluster, found) == name).then_some(found)
}

/// The part that a volume belongs to, by the name that Kubernetes gives it: the claim's, the StatefulSet's and the ordinal.
pub fn part_of_volume(cluster: &Cluster, name: &str) -> Option<Component> {
    let pod = name.strip_prefix(CLAIM)?.strip_prefix('-')?;
    part_of_pod(cluster, pod)
}

/// The part that a pod belongs to, by its name.
pub fn part_of_pod(cluster: &Cluster, name: &str) -> Option<Component> {
    let (set, ordinal) = name.rsplit_once('-')?;
    let number: u32 = ordinal.parse().ok()?;
    (number.to_string() == ordinal).then(|| part_of(cluster, set))?
}

/// Of the service for clients.
pub fn client(cluster: &Cluster) -> String {
    format!("{}-client", base(cluster))
}

/// Of what all pods share: account and network policy.
pub fn node(cluster: &Cluster) -> String {
    format!("{}-node", base(cluster))
}

/// Of the options file.
pub fn config(cluster: &Cluster) -> String {
    format!("{}-config", base(cluster))
}

/// The addresses of a part's nodes, in the order of their pods.
pub fn addresses(cluster: &Cluster, of: Component) -> Vec<String> {
    let count = match of {
        Component::Controller => cluster.controllers,
        Component::Group(_) => cluster.replicas,
    };
    let set = part(cluster, of);
    let pod = |ordinal| address(cluster, &set, &format!("{set}-{ordinal}"));
    (0..count).map(pod).collect()
}

/// The address of one pod. Without the cluster's domain, so that it needn't be known.
pub(super) fn address(cluster: &Cluster, service: &str, pod: &str) -> String {
    format!(
        "{pod}.{service}.{}.svc:{}",
        cluster.namespace,
        super::CLIENT_PORT
    )
}

/// What selects all pods of a cluster. Never changes: selectors can't.
pub fn selector(cluster: &Cluster) -> BTreeMap<String, String> {
    let pairs = [
        ("app.kubernetes.io/name", "shardkv".to_owned()),
        ("app.kubernetes.io/instance", base(cluster)),
    ];
    pairs.map(|(key, value)| (key.to_owned(), value)).into()
}

/// What selects the pods of all groups.
pub fn groups_selector(cluster: &Cluster) -> BTreeMap<String, String> {
    let mut labels = selector(cluster);
    labels.insert("app.kubernetes.io/component".to_owned(), "group".to_owned());
    labels
}

/// What selects the pods of a part.
pub fn part_selector(cluster: &Cluster, part: Component) -> BTreeMap<String, String> {
    let mut labels = selector(cluster);
    labels.insert(
        "app.kubernetes.io/component".to_owned(),
        part.component().to_owned(),
    );
    if let Component::Group(gid) = part {
        labels.insert(GID_LABEL.to_owned(), gid.to_string());
    }
    labels
}

/// These labels, and those that say who made the object.
pub(super) fn owned(mut labels: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let more = [("part-of", "shardkv"), ("managed-by", "shardkv-operator")];
    labels.extend(more.map(|(key, value)| (format!("app.kubernetes.io/{key}"), value.to_owned())));
    labels
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::build::tests::named;

    const GREATEST_GID: u64 = 9_999_999_999;

    fn all(cluster: &Cluster) -> [String; 7] {
        [
            part(cluster, Component::Controller),
            part(cluster, Component::Group(1)),
            part(cluster, Component::Group(11)),
            part(cluster, Component::Group(GREATEST_GID)),
            client(cluster),
            node(cluster),
            config(cluster),
        ]
    }

    #[test]
    fn resources_that_look_like_each_others_objects_share_no_name() {
        let long = "a".repeat(60);
        let resources = [
            "a",
            "a-group",
            "a-group-1",
            "a-client",
            "a-controller",
            "a-group-1-client",
            "a-node",
            "a-config",
            long.as_str(),
            &long[..36],
            &long[..35],
        ];
        let mut seen = BTreeSet::new();
        for resource in resources {
            for name in all(&named(resource)) {
                assert!(seen.insert(name.clone()), "{name} of {resource} is taken");
            }
        }
    }

    #[test]
    fn names_tell_their_parts() {
        for resource in ["a", "a-group-1", "controller", &"x".repeat(60)] {
            let cluster = named(resource);
            for of in [
                Component::Controller,
                Component::Group(1),
                Component::Group(GREATEST_GID),
            ] {
                let name = part(&cluster, of);
                assert_eq!(part_of(&cluster, &name), Some(of));
                assert_eq!(part_of_pod(&cluster, &format!("{name}-2")), Some(of));
                let volume = format!("data-{name}-0");
                assert_eq!(part_of_volume(&cluster, &volume), Some(of));
            }
        }
        let cluster = named("a");
        for other in [
            "",
            "a",
            "a-",
            "a-client",
            "a-group",
            "a-group-",
            "a-group-01",
            "a-group-+1",
            "a-group-1-controller",
            "a-group-1-group-1",
            "ab-group-1",
            "b-group-1",
            "a-group-99999999999999999999",
        ] {
            assert_eq!(part_of(&cluster, other), None, "{other}");
        }
        for other in ["data-a-group-1", "data-a-group-1-01", "a-group-1-0", "data"] {
            assert_eq!(part_of_volume(&cluster, other), None, "{other}");
        }
    }

    #[test]
    fn no_name_is_too_long() {
        for length in [1, 34, 35, 36, 63, 253] {
            let cluster = named(&"x".repeat(length));
            for name in all(&cluster) {
                assert!(name.len() <= 52, "{name}");
            }
            let selector = part_selector(&cluster, Component::Group(u64::MAX));
            assert!(
                selector.values().all(|value| value.len() <= 63),
                "{selector:?}"
            );
            let longest = addresses(&cluster, Component::Group(GREATEST_GID));
            assert!(longest.iter().all(|address| address.len() <= 512));
        }
        // Where it is cut, a dash must not stand before the dash of the hash.
        let dashed = named(&format!("{}-----{}", "x".repeat(20), "y".repeat(30)));
        assert!(!base(&dashed).contains("--"), "{}", base(&dashed));
    }
}
