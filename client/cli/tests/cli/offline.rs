//! Tests that need no cluster.

use crate::harness::{run, run_with};

/// A port that nobody listens on: it was free a moment ago, and it is below those that the kernel gives out.
const NOBODY: &str = "127.0.0.1:1";

#[test]
fn usage_errors_have_code_2() {
    let code = |args: &[&str]| run(args).code;
    for args in [
        &["nonsense"][..],
        &["get"],
        &["put", "k"],
        &["put", "k", "v", "--file", "f"],
        &["cas", "k", "--set", "v"],
        &["cas", "k", "--expect", "a", "--expect-absent", "--set", "v"],
        &["scan", "a", "--prefix", "b"],
        &["get", "k", "--timeout-ms", "0"],
        &["get", "k", "--output", "xml"],
        &["get", "xyz", "--encoding", "hex"],
        &["get", "k", "--endpoints", "nowhere"],
        &["bench", "--read-ratio", "2"],
        &["bench", "--duration", "10"],
        &["playground", "--replicas", "0"],
        &["playground", "status", "--dir", "/nowhere/at/all"],
        &["playground", "--groups", "0"],
        &["playground", "--controllers", "3"],
        &["playground", "--groups", "2", "--shards", "0"],
        &["playground", "scale", "0", "--dir", "/nowhere"],
        &["config"],
        &["config", "join", "1"],
        &["config", "join", "0=a:1"],
        &["config", "join", "1=a:1", "1=b:1"],
        &["config", "leave"],
        &["config", "forget"],
        &["config", "forget", "0"],
        &["config", "retire"],
        &["config", "retire", "1", "2"],
        &["config", "move", "x", "1"],
        &["shards", "--group", "0"],
        &["transfer-leader", "--group", "x"],
        &["bench", "handoff", "--sizes", "1X"],
    ] {
        assert_eq!(code(args), Some(2), "{args:?}");
    }
    assert_eq!(code(&["--help"]), Some(0));
    assert_eq!(code(&["--version"]), Some(0));
}

#[test]
fn nobody_there_is_code_5_and_tells_what_to_do() {
    let endpoint = ["--endpoints", NOBODY, "--timeout-ms", "200"];
    for args in [
        &["get", "k"][..],
        &["put", "k", "v"],
        &["status"],
        &["scan"],
        &["transfer-leader"],
        &["config", "query"],
        &["config", "leave", "1"],
        &["config", "forget", "1"],
        &["config", "retire", "1"],
        &["shards"],
    ] {
        let ran = run(&[args, &endpoint[..]].concat());
        ran.failed(5, "error: ");
        assert!(
            ran.err.contains("--endpoints") || ran.err.contains("status"),
            "{ran:?}"
        );
    }
}

#[test]
fn files_that_are_not_there_are_named() {
    for args in [
        &["import", "/nowhere/x.tsv"][..],
        &["put", "k", "--file", "/nowhere/x.tsv"],
        &["export", "--file", "/nowhere/x.tsv"],
    ] {
        run(&[args, &["--endpoints", NOBODY, "--timeout-ms", "200"]].concat())
            .failed(1, "/nowhere");
    }
}

#[test]
fn a_script_reports_its_first_failure() {
    let endpoint = ["shell", "--endpoints", NOBODY, "--timeout-ms", "100"];
    assert_eq!(
        run_with(&endpoint, b"# nothing\n\noutput json\nquit\nnonsense\n").code,
        Some(0)
    );
    let ran = run_with(&endpoint, b"nonsense\nget k");
    ran.failed(2, "line 1: ");
    assert!(ran.err.contains("line 2: "), "it goes on: {ran:?}");
    assert!(
        run_with(&endpoint, b"help\n")
            .ok()
            .contains("transfer-leader")
    );
}

#[test]
fn completion_scripts_are_printed() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            run(&["completion", shell]).ok().contains("transfer-leader"),
            "{shell}"
        );
    }
}

#[test]
fn limits_are_measured_without_a_cluster() {
    let limits = run(&[
        "bench",
        "limits",
        "--duration",
        "50ms",
        "--clients",
        "2",
        "-o",
        "json",
    ])
    .json();
    for name in ["fsync_append", "fsync_overwrite", "echo_unary"] {
        assert!(limits[name]["count"].as_u64() > Some(0), "{limits}");
        assert!(limits[name]["p50_us"].as_f64() > Some(0.0), "{limits}");
    }
}
