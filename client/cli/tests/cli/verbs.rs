//! Verbs, status, shell and bench against a running cluster.

use std::collections::HashMap;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::harness::{command, kv, kv_with, shared};

#[test]
fn verbs_do_what_they_say() {
    let Some(at) = shared() else { return };
    kv(at, &["get", "verbs/a"]).failed(3, "no such key");
    assert_eq!(kv(at, &["put", "verbs/a", "1"]).ok(), "ok\n");
    assert_eq!(kv(at, &["get", "verbs/a"]).ok(), "1\n");
    assert_eq!(
        kv(at, &["append", "verbs/a", "23", "-o", "json"]).json()["length"],
        3
    );
    assert_eq!(kv(at, &["get", "verbs/a", "-o", "raw"]).ok(), "123");
    kv(at, &["cas", "verbs/a", "--expect", "x", "--set", "y"]).failed(4, "nothing was changed");
    kv(at, &["cas", "verbs/a", "--expect-absent", "--set", "y"]).failed(4, "nothing was changed");
    kv(at, &["cas", "verbs/a", "--expect", "123", "--set", "-1"]).ok();
    assert_eq!(
        kv(at, &["get", "verbs/a", "-o", "json"]).json()["value"],
        "-1"
    );
    kv(at, &["cas", "verbs/a", "--expect", "-1", "--delete"]).ok();
    assert_eq!(kv(at, &["delete", "verbs/a"]).code, Some(3));
    let missing = kv(at, &["get", "verbs/a", "-o", "json"]);
    assert_eq!(missing.code, Some(3));
    assert_eq!(
        serde_json::from_slice::<Value>(&missing.out).unwrap()["found"],
        false
    );
    kv(at, &["put", "", "1"]).failed(7, "key");
    kv_with(at, &["put", "verbs/big", "-"], &vec![b'x'; 2 << 20]).failed(7, "");
}

#[test]
fn a_prefix_is_deleted_and_counted() {
    let Some(at) = shared() else { return };
    let lines: Vec<String> = (0..1_000).map(|n| format!("gone/{n}\t{n}")).collect();
    let input = lines.join("\n") + "\ngone!\tstays\n";
    kv_with(at, &["import", "--format", "tsv"], input.as_bytes()).ok();
    let delete = ["delete", "--prefix", "gone/", "--yes"];
    assert_eq!(kv(at, &delete).ok(), "ok: 1,000 keys deleted\n");
    assert_eq!(kv(at, &["scan", "--prefix", "gone"]).ok(), "gone!\tstays\n");
    let again = kv(at, &[&delete[..], &["-o", "json"]].concat());
    assert_eq!(again.code, Some(3));
    let again: Value = serde_json::from_slice(&again.out).unwrap();
    assert_eq!(again["deleted"], 0);
}

#[test]
fn a_write_whose_answer_cant_be_written_is_not_repeated() {
    let Some(at) = shared() else { return };
    let full = std::fs::File::options().write(true).open("/dev/full");
    let output = command(&["append", "full", "x", "--endpoints", at])
        .stdout(full.unwrap())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(6), "{said}");
    assert!(said.contains("the write was done"), "{said}");
    assert_eq!(kv(at, &["get", "full"]).ok(), "x\n");
}

#[test]
fn bytes_stay_bytes() {
    let Some(at) = shared() else { return };
    let all: Vec<u8> = (0..=255).collect();
    kv_with(at, &["put", "bytes/pipe", "-"], &all).ok();
    assert_eq!(kv(at, &["get", "bytes/pipe", "-o", "raw"]).out, all);

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("value");
    std::fs::write(&file, &all).unwrap();
    kv(at, &["put", "bytes/file", "--file", file.to_str().unwrap()]).ok();
    assert_eq!(kv(at, &["get", "bytes/file", "-o", "raw"]).out, all);

    kv(at, &["put", "--encoding", "hex", "62797465732fff", "00ff"]).ok();
    let json = kv(
        at,
        &["get", "--encoding", "hex", "62797465732fff", "-o", "json"],
    )
    .json();
    assert_eq!(
        (&json["key_hex"], &json["value_hex"]),
        (&"62797465732fff".into(), &"00ff".into())
    );
    let scan = kv(at, &["scan", "--prefix", "bytes/"]);
    assert!(scan.ok().contains("bytes/\\xff\t\\x00\\xff\n"), "{scan:?}");
}

#[test]
fn scans_are_in_order_and_bounded() {
    let Some(at) = shared() else { return };
    for n in [3, 1, 2, 4] {
        kv(at, &["put", &format!("scan/{n}"), &format!("v{n}")]).ok();
    }
    let keys = |args: &[&str]| {
        kv(at, &[&["scan", "--keys-only"], args].concat())
            .ok()
            .replace('\n', " ")
    };
    assert_eq!(keys(&["--prefix", "scan/"]), "scan/1 scan/2 scan/3 scan/4 ");
    assert_eq!(keys(&["scan/2", "scan/4"]), "scan/2 scan/3 ");
    assert_eq!(keys(&["--prefix", "scan/", "-n", "1"]), "scan/1 ");
    let first = kv(at, &["scan", "--prefix", "scan/", "-n", "1", "-o", "json"]).json();
    assert_eq!(first, serde_json::json!({"key": "scan/1", "value": "v1"}));
    kv(at, &["scan", "b", "a"]).failed(2, "ends before it starts");
}

#[test]
fn the_shell_runs_scripts() {
    let Some(at) = shared() else { return };
    let script = b"put 'shell/a b' \"x\\n\\xff\" # a comment\noutput raw\nget 'shell/a b'\noutput table\nget shell/none\n";
    let ran = kv_with(at, &["shell"], script);
    ran.failed(3, "line 5: no such key");
    assert_eq!(ran.out, b"ok\nx\n\xff");
}

#[test]
fn the_leader_is_known_and_can_be_moved() {
    let Some(at) = shared() else { return };
    let status = kv(at, &["status", "-o", "json"]).json();
    let nodes = status["nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), 3, "{status}");
    let leader = status["leader"].as_str().unwrap();
    let other = nodes.iter().find(|node| node["address"] != leader).unwrap();
    let (address, id) = (other["address"].as_str().unwrap(), &other["node_id"]);
    let moved = kv(at, &["transfer-leader", address, "-o", "json"]).json();
    assert_eq!(&moved["leader_id"], id);
    kv(at, &["transfer-leader", "nonsense"]).failed(2, "no member's address");
    kv(at, &["member", "promote", "n1"]).failed(7, "");
}

#[test]
fn bench_counts_what_it_does() {
    let Some(at) = shared() else { return };
    for mode in ["unary", "batch"] {
        let args = [
            "bench",
            "--mode",
            mode,
            "--count",
            "500",
            "--warmup",
            "0s",
            "--clients",
            "8",
            "--preload",
        ];
        let keys = [
            "--key-space",
            "50",
            "--key-prefix",
            "bench-count/",
            "--read-ratio",
            "0.3",
            "-o",
            "json",
        ];
        let report = kv(at, &[&args[..], &keys[..]].concat()).json();
        assert_eq!(report["all"]["count"], 500, "{report}");
        let count = |kind: &str| report[kind]["count"].as_u64().unwrap();
        assert_eq!(count("reads") + count("writes"), 500);
        assert_eq!(report["error_count"], 0, "{report}");
        assert!(report["writes"]["p99_us"].as_f64() >= report["writes"]["p50_us"].as_f64());
        let stored = kv(at, &["scan", "--prefix", "bench-count/", "-o", "json"]);
        assert_eq!(stored.ok().lines().count(), 50, "preloaded");
    }
}

/// The file is an interface of the checker: each field, and that clients' operations don't overlap.
#[test]
fn bench_records_a_history() {
    let Some(at) = shared() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("history.jsonl");
    let args = [
        "bench",
        "--count",
        "400",
        "--warmup",
        "0s",
        "--clients",
        "4",
        "--key-space",
        "3",
        "--rate",
        "20000",
    ];
    let mix = [
        "--key-prefix",
        "history/",
        "--writes",
        "put,append,delete,cas",
        "--record",
        path.to_str().unwrap(),
    ];
    kv(at, &[&args[..], &mix[..]].concat()).ok();
    let text = std::fs::read_to_string(&path).unwrap();
    let mut last_return: HashMap<u64, u64> = HashMap::new();
    let mut kinds: HashMap<String, u32> = HashMap::new();
    for line in text.lines() {
        let op: Value = serde_json::from_str(line).unwrap();
        let (call, end) = (op["call"].as_u64().unwrap(), op["return"].as_u64().unwrap());
        assert!(call < end, "{op}");
        let before = last_return.insert(op["client"].as_u64().unwrap(), end);
        assert!(before.is_none_or(|before| before <= call), "{op}");
        assert_eq!(op["outcome"], "ok");
        let kind = op["op"].as_str().unwrap();
        let result_fits = match kind {
            "get" => op["result"].is_string() || op["result"].is_null(),
            "put" => op["result"].is_null() && op["value"].is_string(),
            "append" => op["result"].as_u64() > Some(0),
            "delete" | "cas" => op["result"].is_boolean(),
            other => panic!("{other}"),
        };
        assert!(result_fits, "{op}");
        *kinds.entry(kind.to_owned()).or_default() += 1;
    }
    assert_eq!(text.lines().count(), 400);
    assert_eq!(kinds.len(), 5, "{kinds:?}");
}

#[test]
fn a_load_that_is_told_to_stop_reports_what_it_did() {
    let Some(at) = shared() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("history.jsonl");
    let mut command = command(&[
        "bench",
        "--duration",
        "1h",
        "--warmup",
        "0s",
        "--clients",
        "4",
        "-o",
        "json",
    ]);
    command.args([
        "--key-prefix",
        "stopped/",
        "--record",
        path.to_str().unwrap(),
    ]);
    let child = command
        .env("SHARDKV_ENDPOINTS", at)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // The file grows in blocks. When it has one, the load is running.
    while std::fs::metadata(&path).map_or(0, |file| file.len()) == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let killed = Command::new("kill")
        .args(["-TERM", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(killed.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let history = std::fs::read_to_string(&path).unwrap();
    let lines = u64::try_from(history.lines().count()).unwrap();
    assert_eq!(
        report["all"]["count"].as_u64(),
        Some(lines),
        "each operation is in the file"
    );
    let last: Value = serde_json::from_str(history.lines().last().unwrap()).unwrap();
    assert_eq!(last["outcome"], "ok");
}
