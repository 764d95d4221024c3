//! Golden tests of the built objects: `tests/clusters/<scenario>.yaml` holds a resource, `tests/objects/<scenario>.yaml` its
//! objects. After a change of the builders, regenerate the files with `UPDATE_GOLDENFILES=1` and review the difference.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::*;
use crate::crd::{ShardKvCluster, ShardKvClusterSpec};
use crate::validate::validate;
use crate::yaml;

/// Returns a cluster with the default spec.
pub(crate) fn named(name: &str) -> Cluster {
    let mut resource = ShardKvCluster::new(name, ShardKvClusterSpec::default());
    resource.metadata.namespace = Some("default".to_owned());
    resource.metadata.uid = Some("0".to_owned());
    validate(&resource).unwrap()
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests")
        .join(name)
}

fn add<T: Serialize>(out: &mut String, object: &T) {
    *out += "---\n";
    *out += &yaml::write(object).unwrap();
}

fn add_nodes(out: &mut String, nodes: &Nodes) {
    add(out, &nodes.service);
    add(out, &nodes.set);
    if let Some(budget) = &nodes.budget {
        add(out, budget);
    }
}

fn objects(cluster: &Cluster) -> String {
    let Common {
        config,
        account,
        network,
        client,
    } = common(cluster);
    let mut out = String::new();
    add(&mut out, &config);
    if let Some(account) = account {
        add(&mut out, &account);
    }
    add(&mut out, &network);
    add(&mut out, &client);
    add_nodes(&mut out, &controllers(cluster));
    // One group is enough: groups differ only in their gid, which another test checks.
    add_nodes(&mut out, &group(cluster, 7, Stage::Member));
    out
}

#[test]
fn objects_match_the_golden_files() {
    let update = std::env::var_os("UPDATE_GOLDENFILES").is_some();
    let mut scenarios = 0;
    for entry in std::fs::read_dir(folder("clusters")).unwrap() {
        let path = entry.unwrap().path();
        let resource: ShardKvCluster =
            yaml::read(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let text = objects(&validate(&resource).unwrap());
        let golden = folder("objects").join(path.file_name().unwrap());
        if update {
            std::fs::write(&golden, &text).unwrap();
        }
        let expected = std::fs::read_to_string(&golden).unwrap_or_default();
        let at = text
            .lines()
            .zip(expected.lines())
            .position(|(new, old)| new != old);
        assert!(
            text == expected,
            "{} differs at line {}: UPDATE_GOLDENFILES=1 regenerates it",
            golden.display(),
            at.map_or(0, |at| at + 1),
        );
        scenarios += 1;
    }
    let goldens = std::fs::read_dir(folder("objects")).unwrap().count();
    assert!(
        scenarios > 0 && goldens == scenarios,
        "a golden file has no scenario"
    );
}

#[test]
fn groups_differ_only_in_their_gid() {
    let cluster = named("demo");
    let text = |gid| {
        let mut out = String::new();
        add_nodes(&mut out, &group(&cluster, gid, Stage::New));
        out
    };
    let renamed = text(4711).replace("4711", "8");
    assert_eq!(renamed, text(8));
}

#[test]
fn a_selector_matches_only_its_own_pods() {
    let (one, two) = (named("demo"), named("demo-2"));
    let parts = [
        Component::Controller,
        Component::Group(1),
        Component::Group(11),
    ];
    let selects = |selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>| {
        selector
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
    };
    for (at, part) in parts.into_iter().enumerate() {
        let set = stateful_set::build(&one, part, None).spec.unwrap();
        let selector = set.selector.match_labels.unwrap();
        for (other_at, other) in parts.into_iter().enumerate() {
            let pods = |cluster| {
                stateful_set::build(cluster, other, None)
                    .spec
                    .unwrap()
                    .template
                    .metadata
                    .unwrap()
                    .labels
                    .unwrap()
            };
            assert_eq!(
                selects(&selector, &pods(&one)),
                at == other_at,
                "{part:?} {other:?}"
            );
            assert!(!selects(&selector, &pods(&two)), "{part:?} {other:?}");
        }
    }
}

/// An autoscaler multiplies the number of selected pods: that must be the number of groups.
#[test]
fn the_scale_selector_finds_one_pod_of_each_group() {
    let cluster = named("demo");
    let selector = names::scale_selector(&cluster);
    let selected = |part: Component| {
        let set = stateful_set::build(&cluster, part, None).spec.unwrap();
        let labels = set.template.metadata.unwrap().labels.unwrap();
        let ordinals = (0..set.replicas.unwrap()).filter(|ordinal| {
            let mut labels = labels.clone();
            // The StatefulSet controller adds it.
            let index = "apps.kubernetes.io/pod-index".to_owned();
            labels.insert(index, ordinal.to_string());
            let has = |(key, value): (&String, &String)| labels.get(key) == Some(value);
            selector.iter().all(has)
        });
        ordinals.count()
    };
    assert_eq!(selected(Component::Group(1)), 1);
    assert_eq!(selected(Component::Group(11)), 1);
    assert_eq!(selected(Component::Controller), 0);
}

#[test]
fn changed_options_change_the_pods() {
    let mut cluster = named("demo");
    let template = |cluster: &Cluster| {
        stateful_set::build(cluster, Component::Group(1), None)
            .spec
            .unwrap()
            .template
    };
    let before = template(&cluster);
    cluster.spec.options.lease_reads = Some(true);
    assert_ne!(before, template(&cluster));
}

#[test]
fn nodes_take_the_options_of_the_pods() {
    let table = Path::new(env!("CARGO_MANIFEST_DIR")).join("../node/options/src/table.rs");
    let table = std::fs::read_to_string(table).unwrap();
    let resource: ShardKvCluster =
        yaml::read(&std::fs::read_to_string(folder("clusters").join("everything.yaml")).unwrap())
            .unwrap();
    let cluster = validate(&resource).unwrap();
    let file = cluster.spec.options.file();
    assert_eq!(file.lines().count(), 1 + 18, "everything.yaml sets all");
    for (part, count) in [(Component::Controller, 11), (Component::Group(1), 13)] {
        let set = stateful_set::build(&cluster, part, None);
        let pod = set.spec.unwrap().template.spec.unwrap();
        let variables = pod.containers[0].env.clone().unwrap();
        let options: Vec<(String, String)> = variables
            .into_iter()
            .filter(|it| it.name.starts_with("SHARDKV_"))
            .map(|it| (it.name, it.value.unwrap().replace("$(POD_NAME)", "pod")))
            .collect();
        assert_eq!(options.len(), count, "{part:?}");
        for (name, _) in &options {
            let option = name["SHARDKV_".len()..].to_ascii_lowercase();
            assert!(table.contains(&format!(", \"{option}\", ")), "{option}");
        }
        let options = options.iter().map(|(name, value)| (&**name, &**value));
        assert_eq!(node_options::check("node.yaml", &file, options), Ok(()));
    }
}
