//! Keyspaces: created, listed, shown, changed and deleted.

use crate::harness::{Ran, kv, shared};

fn keyspace(at: &str, args: &[&str]) -> Ran {
    kv(at, &[&["keyspace"], args].concat())
}

fn names(at: &str) -> Vec<String> {
    let listed = keyspace(at, &["list", "-o", "raw"]);
    listed.ok().lines().map(str::to_owned).collect()
}

#[test]
fn a_keyspace_is_created_shown_changed_and_deleted() {
    let Some(at) = shared() else { return };
    let created = keyspace(at, &["create", "life", "--quota", "5MB"]);
    assert_eq!(created.ok(), "ok: keyspace life created\n");
    keyspace(at, &["create", "life"]).failed(7, "keyspace life exists already");

    let shown = keyspace(at, &["show", "life", "-o", "json"]).json();
    assert_eq!(shown["revision"], 1);
    assert_eq!(shown["quota_bytes"], 5_000_000);
    assert!(names(at).contains(&"life".to_owned()));

    keyspace(at, &["set", "life"]).failed(2, "nothing to change");
    let set = ["set", "life", "--quota", "7MB", "-o", "json"];
    let set = keyspace(at, &set).json();
    assert_eq!(set["quota_bytes"], 7_000_000);
    assert_eq!(set["cluster_id"], shown["cluster_id"]);

    // Standard input is no terminal, so nobody can confirm.
    keyspace(at, &["delete", "life"]).failed(2, "nobody is there to confirm");
    let deleted = keyspace(at, &["delete", "life", "--yes"]);
    assert_eq!(deleted.ok(), "ok: keyspace life deleted\n");
    for gone in [
        &["show", "life"][..],
        &["set", "life", "--quota", "1MB"],
        &["delete", "life", "--yes"],
    ] {
        keyspace(at, gone).failed(3, "there is no keyspace life");
    }
    assert!(!names(at).contains(&"life".to_owned()));

    // The next one with the name is another keyspace.
    let again = keyspace(at, &["create", "life", "-o", "json"]).json();
    assert_ne!(again["cluster_id"], shown["cluster_id"]);
    keyspace(at, &["delete", "life", "--yes"]).ok();
}

#[test]
fn all_keyspaces_are_listed_by_name() {
    let Some(at) = shared() else { return };
    let mut made: Vec<String> = (0..20).map(|n| format!("list-{n:02}")).collect();
    for name in made.iter().rev() {
        keyspace(at, &["create", name]).ok();
    }
    let listed = names(at);
    assert!(listed.is_sorted(), "{listed:?}");
    let here: Vec<String> = listed
        .into_iter()
        .filter(|name| name.starts_with("list-"))
        .collect();
    made.sort();
    assert_eq!(here, made);
    for name in &made {
        keyspace(at, &["delete", name, "--yes"]).ok();
    }
}

#[test]
fn a_playground_has_a_keyspace_for_clients_that_name_none() {
    let Some(at) = shared() else { return };
    let shown = keyspace(at, &["show", "default", "-o", "json"]).json();
    assert_eq!(shown["name"], "default");
}

#[test]
fn names_are_checked_before_a_node_is_asked() {
    for bad in ["Orders", "a.b", "-", ""] {
        let refused = keyspace("127.0.0.1:1", &["create", bad]);
        assert_eq!(refused.code, Some(2), "{refused:?}");
    }
}
