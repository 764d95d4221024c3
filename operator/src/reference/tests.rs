use std::collections::BTreeSet;
use std::path::Path;

use super::*;

#[test]
fn the_pages_are_fresh() {
    for (file, text) in pages().unwrap() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
        let stored = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            stored == text,
            "{file} is stale: cargo run -p shardkv-operator --bin crdgen"
        );
    }
}

/// Returns the code of a file of `src/reconcile`, without its tests.
fn code(file: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/reconcile");
    let text = std::fs::read_to_string(folder.join(file)).unwrap();
    let tests = "#[cfg(test)]\nmod tests {";
    text.split(tests).next().unwrap_or_default().to_owned()
}

#[test]
fn the_catalog_lists_exactly_the_reported_reasons() {
    for (subject, file) in [
        (&CLUSTER, "conditions.rs"),
        (&KEYSPACE, "keyspace/conditions.rs"),
    ] {
        let explained = subject.reasons.iter().flat_map(|(.., reasons)| *reasons);
        let explained: BTreeSet<String> = explained
            .map(|(_, reason, _)| (*reason).to_owned())
            .collect();
        let code = code(file);
        let quoted = code.split('"').skip(1).step_by(2);
        let is_word = |text: &&str| {
            text.len() > 3
                && text.starts_with(|c: char| c.is_ascii_uppercase())
                && text.chars().all(|c| c.is_ascii_alphabetic())
        };
        let reported: BTreeSet<String> = quoted.filter(is_word).map(str::to_owned).collect();
        assert_eq!(reported, explained, "{file}");
    }
}

#[test]
fn the_catalog_lists_exactly_the_reported_events() {
    for (subject, file) in [(&CLUSTER, "notes.rs"), (&KEYSPACE, "keyspace/notes.rs")] {
        let explained = subject.events.iter();
        let explained = explained.filter(|(_, reason, _)| !reason.contains(' '));
        let explained: BTreeSet<(String, String)> = explained
            .map(|(kind, reason, _)| ((*kind).to_owned(), (*reason).to_owned()))
            .collect();
        let code = code(file);
        let mut reported = BTreeSet::new();
        for (call, kind) in [("Note::step(", "Normal"), ("Note::warning(", "Warning")] {
            let second = |rest: &str| rest.split(',').nth(1).map(|it| it.trim().to_owned());
            let reasons = code.split(call).skip(1).filter_map(second);
            let quoted = reasons.filter(|reason| reason.starts_with('"'));
            let quoted =
                quoted.map(|reason| (kind.to_owned(), reason.trim_matches('"').to_owned()));
            reported.extend(quoted);
        }
        assert_eq!(reported, explained, "{file}");
    }
}

#[test]
fn own_fields_have_rows_and_fields_of_kubernetes_have_links() {
    let page = page(&CLUSTER).unwrap();
    for row in [
        "| `groups` | integer, 1 to 1000 | Number of groups that share the data.",
        "| Reserved amounts. | `{\"cpu\":\"50m\",\"memory\":\"128Mi\"}` |",
        "| `onClusterDeletion` | `Retain` or `Delete` | Retention of all volumes",
        "`Delete`: The volumes are deleted with all data.",
        "| `affinity` | [Affinity](https://kubernetes.io/",
        "| `name` | string, at most 253 characters | Name of the secret. | required |",
        "*Rule: shards can't be changed: the shard of each key depends on it.*",
        "| `phase` | `Provisioning` or `Joining`",
        "`Draining`: The group is leaving",
        "\n### spec.controllers\n",
        "\n#### spec.controllers.resources\n",
        "\n### spec.imagePullSecrets[]\n",
    ] {
        assert!(page.contains(row), "{row}");
    }
    assert!(
        !page.contains("nodeAffinity"),
        "the page doesn't repeat the reference of Kubernetes"
    );
}

#[test]
fn keyspaces_have_a_page_of_their_own() {
    let page = page(&KEYSPACE).unwrap();
    for row in [
        "Rule of the whole resource: the name must begin with a letter",
        "| `quota` | string, at most 16 characters",
        "`Retain`: The keyspace stays in the store",
        "\nRule: compaction is by retention or by revisions, not by both.\n",
        "\n### spec.clusterRef\n",
        "| `name` | string, at most 63 characters | Name of the `ShardKvCluster`. | required |",
        "## What `kubectl get skvks` shows",
        "| False | `ServiceNameTaken` |",
        "| Warning | `KeyspaceLeft` |",
    ] {
        assert!(page.contains(row), "{row}");
    }
}
