//! Names and labels.
//!
//! The name of every object is the resource's name with a suffix: `-controller`, `-group-<gid>`, `-client`, `-node`, `-config-<hash>`.
//! No suffix ends with another suffix, and no object has the resource's name alone. So the objects of two resources in a
//! namespace never have the same name, even for resources such as `a` and `a-group-1`.
//!
//! A StatefulSet has the shortest limit, 52 characters: a label of its pods, at most 63 characters long, holds its name and a
//! hash of ten. A resource's name that is too long is cut and gets a hash of the whole name.

use std::collections::BTreeMap;

use super::ports::CLIENT_PORT;
use crate::parts::Component;
use crate::validate::Cluster;

/// Maximum length of [`base`]: 52, less `-group-` and a gid of ten digits.
const MAX_BASE: usize = 35;

/// Name of the claim of a node's volume.
pub(super) const CLAIM: &str = "data";

/// Label with a group's gid.
pub const GID_LABEL: &str = "shardkv.io/gid";

/// Annotation of a group's StatefulSet with the group's [`Stage`](crate::plan::Stage).
pub const STAGE_ANNOTATION: &str = "shardkv.io/stage";

/// Returns the value of the label for the part's kind.
fn component(part: Component) -> &'static str {
    match part {
        Component::Controller => "controller",
        Component::Group(_) => "group",
    }
}

/// Returns the common prefix of all names of a cluster's objects.
pub fn base(cluster: &Cluster) -> String {
    let name = &cluster.name;
    if name.len() <= MAX_BASE {
        return name.clone();
    }
    let hash = fnv1a(name.as_bytes());
    let kept: String = name.chars().take(MAX_BASE - 11).collect();
    format!("{}-{:010x}", kept.trim_end_matches('-'), hash >> 24)
}

/// Returns the FNV-1a hash. Its values never change, which the standard library's hasher doesn't guarantee.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Returns the name of a part's StatefulSet, headless service and disruption budget.
pub fn part(cluster: &Cluster, part: Component) -> String {
    match part {
        Component::Controller => format!("{}-controller", base(cluster)),
        Component::Group(gid) => format!("{}-group-{gid}", base(cluster)),
    }
}

/// Returns the part that an object's name belongs to: the inverse of [`part`].
pub fn part_of(cluster: &Cluster, name: &str) -> Option<Component> {
    let suffix = name.strip_prefix(&base(cluster))?.strip_prefix('-')?;
    let found = match suffix.strip_prefix("group-") {
        Some(gid) => Component::Group(gid.parse().ok()?),
        None => Component::Controller,
    };
    // Refuses other spellings of the number, and further suffixes.
    (part(cluster, found) == name).then_some(found)
}

/// Returns the part that a volume belongs to. Kubernetes names a volume after the claim, the StatefulSet and the ordinal.
pub fn part_of_volume(cluster: &Cluster, name: &str) -> Option<Component> {
    let pod = name.strip_prefix(CLAIM)?.strip_prefix('-')?;
    part_of_pod(cluster, pod)
}

/// Returns the part that a pod belongs to, from its name.
pub fn part_of_pod(cluster: &Cluster, name: &str) -> Option<Component> {
    let (set, ordinal) = name.rsplit_once('-')?;
    let number: u32 = ordinal.parse().ok()?;
    (number.to_string() == ordinal).then(|| part_of(cluster, set))?
}

/// Returns the name of the service for clients.
pub fn client(cluster: &Cluster) -> String {
    format!("{}-client", base(cluster))
}

/// Returns the full names of the services that lead to a part's pods, without the domain of the Kubernetes cluster.
pub(super) fn services(cluster: &Cluster, of: Component) -> [String; 2] {
    [client(cluster), part(cluster, of)].map(|name| format!("{name}.{}.svc", cluster.namespace))
}

/// Returns the name of the pods' service account and network policy.
pub fn node(cluster: &Cluster) -> String {
    format!("{}-node", base(cluster))
}

/// Returns the name of the config map with this options file.
pub fn config(cluster: &Cluster, file: &str) -> String {
    format!(
        "{}-config-{:09x}",
        base(cluster),
        fnv1a(file.as_bytes()) >> 28
    )
}

/// Returns true if a config map of this name holds options of the cluster, whichever they are. Older operators wrote one
/// without a hash.
pub fn is_config(cluster: &Cluster, name: &str) -> bool {
    let rest = name.strip_prefix(&base(cluster));
    let hash = rest.and_then(|rest| rest.strip_prefix("-config"));
    hash.is_some_and(|hash| hash.is_empty() || hash.starts_with('-'))
}

/// Returns the addresses of a part's nodes, in the order of their pods.
pub fn addresses(cluster: &Cluster, of: Component) -> Vec<String> {
    let count = match of {
        Component::Controller => cluster.controllers,
        Component::Group(_) => cluster.replicas,
    };
    let set = part(cluster, of);
    let pod = |ordinal| address(cluster, &set, &format!("{set}-{ordinal}"));
    (0..count).map(pod).collect()
}

/// Returns the address of a pod. Leaves out the domain of the Kubernetes cluster, which the operator doesn't know.
pub(super) fn address(cluster: &Cluster, service: &str, pod: &str) -> String {
    format!("{pod}.{service}.{}.svc:{}", cluster.namespace, CLIENT_PORT)
}

/// Returns the labels that select all pods of a cluster. They must never change, because selectors are immutable.
pub fn selector(cluster: &Cluster) -> BTreeMap<String, String> {
    let pairs = [
        ("app.kubernetes.io/name", "shardkv".to_owned()),
        ("app.kubernetes.io/instance", base(cluster)),
    ];
    pairs.map(|(key, value)| (key.to_owned(), value)).into()
}

/// Returns the labels that select the pods of all groups.
pub fn groups_selector(cluster: &Cluster) -> BTreeMap<String, String> {
    let mut labels = selector(cluster);
    labels.insert("app.kubernetes.io/component".to_owned(), "group".to_owned());
    labels
}

/// Returns the labels that select the first pod of each group. An autoscaler multiplies the number of selected pods to get the
/// number of groups, so it must find one pod for each.
pub fn scale_selector(cluster: &Cluster) -> BTreeMap<String, String> {
    let mut labels = groups_selector(cluster);
    // Kubernetes sets it on the pods of StatefulSets.
    labels.insert("apps.kubernetes.io/pod-index".to_owned(), "0".to_owned());
    labels
}

/// Returns the labels that select the pods of a part.
pub fn part_selector(cluster: &Cluster, part: Component) -> BTreeMap<String, String> {
    let mut labels = selector(cluster);
    labels.insert(
        "app.kubernetes.io/component".to_owned(),
        component(part).to_owned(),
    );
    if let Component::Group(gid) = part {
        labels.insert(GID_LABEL.to_owned(), gid.to_string());
    }
    labels
}

/// Formats labels as a selector for the API server.
pub fn formatted(labels: &BTreeMap<String, String>) -> String {
    let pairs = labels.iter().map(|(key, value)| format!("{key}={value}"));
    pairs.collect::<Vec<_>>().join(",")
}

/// Adds the labels that mark an object as created by this operator.
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
            config(cluster, "tick_ms: 5\n"),
        ]
    }

    #[test]
    fn objects_of_similarly_named_resources_have_different_names() {
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
    fn each_options_file_has_a_name_of_its_own() {
        let cluster = named("a");
        let names = ["", "tick_ms: 5\n", "tick_ms: 50\n"].map(|file| config(&cluster, file));
        assert_eq!(BTreeSet::from(names.clone()).len(), 3, "{names:?}");
        for name in names.iter().map(String::as_str).chain(["a-config"]) {
            assert!(is_config(&cluster, name), "{name}");
        }
        for other in ["a", "a-configuration", "b-config", "a-client"] {
            assert!(!is_config(&cluster, other), "{other}");
        }
    }

    #[test]
    fn the_part_can_be_read_from_a_name() {
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
        // A cut name must not end with a dash before the dash of the hash.
        let dashed = named(&format!("{}-----{}", "x".repeat(20), "y".repeat(30)));
        assert!(!base(&dashed).contains("--"), "{}", base(&dashed));
    }
}
