//! Tests that need no cluster.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{command, run, run_with};

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

fn interrupt(child: &Child) {
    let pid = Pid::from_raw(child.id().try_into().unwrap()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
}

#[test]
fn an_interrupted_import_names_the_line_to_continue_at() {
    let args = ["import", "--format", "tsv", "--skip-bad"];
    let mut import = command(&args)
        .args(["--endpoints", NOBODY, "--timeout-ms", "60000"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = import.stdin.take().unwrap();
    stdin.write_all(b"a\t1\nno tab\nb\t2\n").unwrap();
    let mut stderr = BufReader::new(import.stderr.take().unwrap());
    let mut said = String::new();
    stderr.read_line(&mut said).unwrap();
    assert!(
        said.starts_with("line 2 skipped: there is no TAB"),
        "{said}"
    );
    // The writes in flight never end, so the first interruption only stops the reader.
    interrupt(&import);
    said.clear();
    stderr.read_line(&mut said).unwrap();
    assert!(said.contains("interrupt again to leave them"), "{said}");
    interrupt(&import);
    said.clear();
    stderr.read_to_string(&mut said).unwrap();
    assert!(said.contains("next: continue with --from-line 1"), "{said}");
    assert_eq!(import.wait().unwrap().code(), Some(1));
}

#[test]
fn an_interrupted_export_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("all.tsv");
    let files = || std::fs::read_dir(folder.path()).unwrap().count();
    let mut export = command(&["export", "--file", file.to_str().unwrap()])
        .args(["--endpoints", NOBODY, "--timeout-ms", "60000"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while files() == 0 {
        assert!(start.elapsed() < Duration::from_secs(20), "it never begins");
        std::thread::sleep(Duration::from_millis(2));
    }
    interrupt(&export);
    let mut said = String::new();
    let mut stderr = export.stderr.take().unwrap();
    stderr.read_to_string(&mut said).unwrap();
    assert_eq!(export.wait().unwrap().code(), Some(1), "{said}");
    assert!(
        said.contains("interrupted") && said.contains("next: "),
        "{said}"
    );
    assert_eq!(files(), 0);
}

#[test]
fn files_in_other_encodings_and_formats_are_refused_before_anything_is_written() {
    let utf16: Vec<u8> = "ada\tcountess\n"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    for (input, words) in [
        (&utf16[..], "UTF-16LE"),
        (b"\x1f\x8b\x08\x00", "zcat"),
        (b"PK\x03\x04", "unzip"),
    ] {
        let args = ["import", "--format", "tsv", "--endpoints", NOBODY];
        run_with(&args, input).failed(2, words);
    }
    let args = ["import", "--endpoints", NOBODY];
    run_with(&args, b"[{\"key\":\"a\",\"value\":\"1\"}]").failed(2, "jq -c");
    run_with(&args, b"ada,countess\n").failed(2, "CSV");
}

#[test]
fn each_fault_of_the_endpoints_has_its_own_sentence() {
    for (endpoints, words) in [
        ("", "no address is given"),
        (" , ", "no address is given"),
        ("a:99999", "from 1 to 65535"),
        ("::1:7400", "in brackets"),
        ("a", "the port is missing"),
    ] {
        run(&["get", "k", "--endpoints", endpoints]).failed(2, words);
    }
}

#[test]
fn a_misspelt_variable_is_told() {
    let args = ["get", "k", "--encoding", "hex"];
    let output = command(&args)
        .env("SHARDKV_ENDPOINT", "a:1")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("SHARDKV_ENDPOINT has no effect"), "{said}");
    assert!(said.contains("SHARDKV_ENDPOINTS"), "{said}");
}

#[test]
fn deleting_by_prefix_needs_a_confirmation() {
    let args = ["delete", "--prefix", "a", "--endpoints", NOBODY];
    run_with(&args, b"y\n").failed(2, "--yes");
    assert_eq!(run(&["delete", "a", "--yes"]).code, Some(2));
    assert_eq!(run(&["delete", "a", "--prefix", "b"]).code, Some(2));
}
