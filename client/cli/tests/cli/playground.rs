//! Playgrounds from their start to their end.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::harness::{Playground, Ran, command, kv, node_binary, run, run_with};

/// A command of `shardkv playground` on a folder.
fn control(dir: &Path, args: &[&str]) -> Ran {
    run(&[
        &["playground"],
        args,
        &["--dir", dir.to_str().unwrap(), "-o", "json"],
    ]
    .concat())
}

/// The status of a node.
fn process_of(dir: &Path, node: &str) -> String {
    let ran = control(dir, &["status"]);
    let status: Value = serde_json::from_slice(&ran.out).unwrap();
    let nodes = status["nodes"].as_array().unwrap();
    let found = nodes.iter().find(|found| found["name"] == node).unwrap();
    found["process"].as_str().unwrap().to_owned()
}

#[test]
fn a_cluster_survives_what_is_done_to_it_and_keeps_its_data() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("cluster");
    let args = [
        "--dir",
        dir.to_str().unwrap(),
        "--",
        "--disk-reserve-bytes",
        "0",
    ];
    let Some(playground) = Playground::start(&args) else {
        return;
    };
    let at = playground.endpoints().to_owned();
    let endpoints = at.as_str();
    kv(endpoints, &["put", "a", "before"]).ok();

    // A second playground can't use the same folder.
    let binary = node_binary().unwrap();
    let twice = [
        "playground",
        "--dir",
        args[1],
        "--node-binary",
        binary.to_str().unwrap(),
    ];
    run(&twice).failed(1, "runs in");

    // After a crash of the leader another node leads, and the data is kept.
    let killed = control(&dir, &["kill", "leader"]).json()["node"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(process_of(&dir, &killed), "gone");
    let leader = control(&dir, &["wait"]).json()["leader"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_ne!(leader, killed);
    assert_eq!(kv(endpoints, &["get", "a"]).ok(), "before\n");
    control(&dir, &["kill", &killed]).failed(1, "does not run");
    control(&dir, &["restart", &killed]).ok();
    assert_eq!(process_of(&dir, &killed), "running");

    // Freeze and resume a node.
    control(&dir, &["stop", &killed]).ok();
    assert_eq!(process_of(&dir, &killed), "frozen");
    kv(endpoints, &["put", "a", "after"]).ok();
    control(&dir, &["cont", &killed]).ok();
    assert_eq!(process_of(&dir, &killed), "running");
    control(&dir, &["kill", "node-9"]).failed(1, "no node");

    // Stop gracefully, and start the same cluster again.
    control(&dir, &["term", &killed]).ok();
    assert_eq!(process_of(&dir, &killed), "gone");
    control(&dir, &["down"]).ok();
    assert_eq!(playground.end(), Some(0));
    control(&dir, &["kill", "node-1"]).failed(5, "does not answer");
    let again = Playground::start(&args).unwrap();
    assert_eq!(again.endpoints(), endpoints, "addresses are kept");
    assert_eq!(kv(endpoints, &["get", "a"]).ok(), "after\n");
    assert_eq!(again.end(), Some(0));
}

#[test]
fn a_signal_stops_it_and_nothing_stays() {
    let Some(mut playground) =
        Playground::start(&["--replicas", "1", "--", "--disk-reserve-bytes", "0"])
    else {
        return;
    };
    let dir = playground.ready["dir"].as_str().unwrap().to_owned();
    let pid = playground.ready["nodes"][0]["pid"].as_u64().unwrap();
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    let id = playground.child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &id])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(playground.child.wait().unwrap().code(), Some(0));
    assert!(!Path::new(&dir).exists(), "a temporary folder is removed");
    assert!(
        !Path::new(&format!("/proc/{pid}")).exists(),
        "the node is gone"
    );
}

#[test]
fn nodes_of_a_killed_playground_are_found_and_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("cluster");
    let args = [
        "--replicas",
        "1",
        "--dir",
        dir.to_str().unwrap(),
        "--",
        "--disk-reserve-bytes",
        "0",
    ];
    let Some(mut playground) = Playground::start(&args) else {
        return;
    };
    let pid = playground.ready["nodes"][0]["pid"].as_u64().unwrap();
    playground.child.kill().unwrap();
    playground.child.wait().unwrap();
    assert!(
        Path::new(&format!("/proc/{pid}")).exists(),
        "nobody told the node"
    );
    let binary = node_binary().unwrap();
    let again = [
        "playground",
        "--dir",
        args[3],
        "--node-binary",
        binary.to_str().unwrap(),
    ];
    run(&again).failed(1, "still runs");
    let down = control(&dir, &["down"]);
    assert_eq!(down.code, Some(0), "{down:?}");
    assert_eq!(process_of(&dir, "node-1"), "gone");
}

/// No node's program is needed for this: any that ends at once will do.
#[test]
fn a_node_that_ends_at_once_is_reported_with_its_log() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("node");
    std::fs::write(&program, "#!/bin/sh\necho bad luck >&2\nexit 9\n").unwrap();
    assert!(
        Command::new("chmod")
            .arg("+x")
            .arg(&program)
            .status()
            .unwrap()
            .success()
    );
    let dir = folder.path().join("cluster");
    let args = [
        "playground",
        "--node-binary",
        program.to_str().unwrap(),
        "--dir",
        dir.to_str().unwrap(),
    ];
    let ran = run_with(&args, b"");
    ran.failed(1, "bad luck");
    assert!(ran.err.contains("exit status: 9"), "{ran:?}");
}

#[test]
fn waiting_ends() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().to_str().unwrap();
    let output = command(&["playground", "wait", "--dir", dir, "--timeout", "100ms"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(5));
}
