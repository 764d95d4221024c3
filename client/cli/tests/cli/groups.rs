//! Several groups under a controller: who owns what, groups that join and leave, shards that move.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use crate::harness::{Playground, Ran, kv, kv_with, run};

const SHARDS: u64 = 16;
const RECORDS: usize = 2_000;

/// A controller and two groups of one node each, in a folder.
struct Cluster {
    playground: Playground,
    dir: String,
}

impl Cluster {
    fn start(folder: &Path) -> Option<Self> {
        let dir = folder.join("cluster").to_str().unwrap().to_owned();
        let playground = Playground::start(&[
            "--groups",
            "2",
            "--replicas",
            "1",
            "--controllers",
            "1",
            "--shards",
            "16",
            "--dir",
            &dir,
            "--",
            "--disk-reserve-bytes",
            "0",
        ])?;
        Some(Self { playground, dir })
    }

    /// The nodes change, so the addresses are read anew.
    fn endpoints(&self) -> String {
        let text = std::fs::read(Path::new(&self.dir).join("playground.json")).unwrap();
        let layout: Value = serde_json::from_slice(&text).unwrap();
        layout["endpoints"].as_str().unwrap().to_owned()
    }

    fn kv(&self, args: &[&str]) -> Ran {
        kv(&self.endpoints(), args)
    }

    fn control(&self, args: &[&str]) -> Ran {
        run(&[&["playground"], args, &["--dir", &self.dir, "-o", "json"]].concat())
    }

    /// Number of shards that each group owns, by gid.
    fn shares(&self) -> Vec<(u64, u64)> {
        let config = self.kv(&["config", "query", "-o", "json"]).json();
        let groups = config["groups"].as_array().unwrap();
        let share = |group: &Value| {
            (
                group["gid"].as_u64().unwrap(),
                group["shards"].as_u64().unwrap(),
            )
        };
        groups.iter().map(share).collect()
    }

    /// The exact figures of all shards, each of which must be served by one group.
    fn shards(&self) -> Vec<Value> {
        let shards = self.kv(&["shards", "--exact", "-o", "json"]).json();
        let rows = shards["shards"].as_array().unwrap().clone();
        assert!(rows.iter().all(|row| row["state"] == "serving"), "{shards}");
        let distinct: BTreeSet<u64> = rows
            .iter()
            .map(|it| it["shard"].as_u64().unwrap())
            .collect();
        assert_eq!(rows.len() as u64, SHARDS, "{shards}");
        assert_eq!(distinct.len() as u64, SHARDS, "{shards}");
        rows
    }

    /// All records, in the order of their lines.
    fn export(&self) -> Vec<String> {
        let ran = self.kv(&["export", "--format", "tsv", "--prefix", "key-"]);
        let mut lines: Vec<String> = ran.ok().lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }

    fn nodes(&self) -> Vec<String> {
        let status: Value = serde_json::from_slice(&self.control(&["status"]).out).unwrap();
        let nodes = status["nodes"].as_array().unwrap();
        let name = |node: &Value| node["name"].as_str().unwrap().to_owned();
        nodes.iter().map(name).collect()
    }
}

#[test]
fn groups_come_and_go_and_every_record_stays() {
    let folder = tempfile::tempdir().unwrap();
    let Some(cluster) = Cluster::start(folder.path()) else {
        return;
    };
    assert_eq!(cluster.nodes(), ["ctrl-1", "g1-1", "g2-1"]);
    assert_eq!(cluster.shares(), [(1, 8), (2, 8)]);
    let records: Vec<String> = (0..RECORDS)
        .map(|n| format!("key-{n:05}\tvalue {n}"))
        .collect();
    let input = records.join("\n");
    kv_with(
        &cluster.endpoints(),
        &["import", "--format", "tsv"],
        input.as_bytes(),
    )
    .ok();
    assert_eq!(cluster.export(), records);
    let keys = |rows: &[Value]| {
        rows.iter()
            .map(|row| row["keys"].as_u64().unwrap())
            .sum::<u64>()
    };
    assert_eq!(keys(&cluster.shards()), RECORDS as u64);

    // A third group joins. It gets its share, and no shard moves between the others.
    let scaled = cluster.control(&["scale", "3"]).json();
    assert_eq!(scaled["groups"], serde_json::json!(["g1", "g2", "g3"]));
    let shares = cluster.shares();
    assert!(
        shares.iter().all(|(_, share)| (5..=6).contains(share)),
        "{shares:?}"
    );
    assert_eq!(keys(&cluster.shards()), RECORDS as u64);
    assert_eq!(cluster.export(), records);

    // The two newest groups leave: their nodes and data are removed, and their ids are not used again.
    cluster.control(&["scale", "1"]).ok();
    assert_eq!(cluster.nodes(), ["ctrl-1", "g1-1"]);
    assert!(!Path::new(&cluster.dir).join("g3-1").exists());
    assert_eq!(cluster.shares(), [(1, SHARDS)]);
    assert_eq!(cluster.export(), records);
    let scaled = cluster.control(&["scale", "2"]).json();
    assert_eq!(scaled["groups"], serde_json::json!(["g1", "g4"]));
    assert_eq!(cluster.shares(), [(1, 8), (4, 8)]);
    let scan = cluster.kv(&["scan", "--prefix", "key-"]);
    assert_eq!(
        scan.ok().lines().collect::<Vec<_>>(),
        records,
        "in key order"
    );

    // A restart brings back the same cluster with its groups.
    assert_eq!(cluster.playground.end(), Some(0));
    let again = Playground::start(&["--dir", &cluster.dir, "--", "--disk-reserve-bytes", "0"]);
    let again = Cluster {
        playground: again.unwrap(),
        dir: cluster.dir,
    };
    assert_eq!(again.shares(), [(1, 8), (4, 8)]);
    assert_eq!(again.export(), records);
    assert_eq!(again.playground.end(), Some(0));
}

#[test]
fn the_configuration_is_shown_and_changed() {
    let folder = tempfile::tempdir().unwrap();
    let Some(cluster) = Cluster::start(folder.path()) else {
        return;
    };
    // Move single shards.
    let before = cluster.kv(&["config", "query", "-o", "json"]).json();
    let owner = |config: &Value| config["owners"][0]["gid"].as_u64().unwrap();
    let other = if owner(&before) == 1 { "g2" } else { "g1" };
    let moved = cluster.kv(&["config", "move", "0", other, "--wait", "-o", "json"]);
    let moved = moved.json();
    assert_eq!(
        (&moved["changed"], &moved["settled"]),
        (&true.into(), &true.into())
    );
    let after = cluster.kv(&["config", "query", "-o", "json"]).json();
    assert_eq!(format!("g{}", owner(&after)), other);
    assert!(
        after["num"].as_u64() > moved["num"].as_u64(),
        "another one made the target the owner"
    );
    let unchanged = cluster
        .kv(&["config", "move", "0", other, "-o", "json"])
        .json();
    assert_eq!(unchanged["changed"], false);
    cluster.shards();

    // An old configuration can be read. A future one and an unknown group are refused with a next step.
    let old = before["num"].to_string();
    assert_eq!(
        cluster.kv(&["config", "query", &old, "-o", "json"]).json()["num"],
        before["num"]
    );
    cluster.kv(&["config", "query", "1000"]).failed(7, "1000");
    cluster.kv(&["config", "move", "0", "9"]).failed(7, "");
    cluster.kv(&["config", "move", "99", "1"]).failed(7, "");
    cluster.kv(&["config", "leave", "1", "2"]).failed(7, "last");
    cluster
        .kv(&["shards", "--group", "9"])
        .failed(2, "there is no group g9");

    // A group leaves and joins again.
    let left = cluster.kv(&["config", "leave", "g2", "--wait"]);
    assert!(left.ok().contains("have moved"), "{left:?}");
    assert_eq!(cluster.shares(), [(1, SHARDS)]);
    let address = |node: &str| {
        let status: Value = serde_json::from_slice(&cluster.control(&["status"]).out).unwrap();
        let nodes = status["nodes"].as_array().unwrap();
        let found = nodes.iter().find(|found| found["name"] == node).unwrap();
        found["address"].as_str().unwrap().to_owned()
    };
    let group = format!("2={}", address("g2-1"));
    cluster.kv(&["config", "join", &group, "--wait"]).ok();
    assert_eq!(cluster.shares(), [(1, 8), (2, 8)]);

    // One address is enough for everything, and status knows all groups from it.
    let one = address("g1-1");
    let status = kv(&one, &["status", "-o", "json"]).json();
    assert_eq!(
        status["leaders"]["g2"].as_str(),
        Some(address("g2-1").as_str()),
        "{status}"
    );
    kv(&one, &["put", "a", "1"]).ok();
    kv(&one, &["transfer-leader"]).failed(2, "--group");
    let killed = cluster.control(&["kill", "g2/leader"]).json();
    assert_eq!(killed["node"], "g2-1");
    cluster
        .kv(&["shards", "--timeout-ms", "500"])
        .failed(5, "g2 did not answer");
    cluster.control(&["restart", "g2-1"]).ok();
    cluster.control(&["wait"]).ok();
    cluster.shards();
    assert_eq!(cluster.playground.end(), Some(0));
}

#[test]
fn a_group_that_is_gone_for_good_is_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let Some(cluster) = Cluster::start(folder.path()) else {
        return;
    };
    let records: Vec<String> = (0..RECORDS)
        .map(|n| format!("key-{n:05}\tvalue {n}"))
        .collect();
    let input = records.join("\n");
    let import = || {
        let endpoints = cluster.endpoints();
        kv_with(&endpoints, &["import", "--format", "tsv"], input.as_bytes()).ok();
    };
    import();
    let kept = |rows: &[Value]| -> u64 {
        let of_g1 = rows.iter().filter(|row| row["gid"] == 1);
        of_g1.map(|row| row["keys"].as_u64().unwrap()).sum()
    };
    let kept = kept(&cluster.shards());
    cluster
        .kv(&["config", "retire", "2"])
        .failed(7, "neither drained nor forgotten");
    cluster.control(&["kill", "g2-1"]).ok();
    let refused = cluster.kv(&["config", "forget", "2"]);
    refused.failed(7, "8 shards (");
    assert_eq!(cluster.shares(), [(1, 8), (2, 8)], "nothing changed");
    let forgotten = cluster.kv(&["config", "forget", "2", "--accept-data-loss"]);
    assert!(forgotten.ok().contains("8 shards ("), "{forgotten:?}");
    assert_eq!(cluster.shares(), [(1, SHARDS)]);
    // What the other group had is there, and all keys can be written again.
    let left = cluster.export();
    assert_eq!(left.len() as u64, kept);
    assert!(left.iter().all(|line| records.contains(line)));
    import();
    assert_eq!(cluster.export(), records);
    cluster.shards();
    // Its number is of no use any more.
    cluster.kv(&["config", "retire", "2"]).ok();
    let again = cluster.kv(&["config", "join", "2=127.0.0.1:1"]);
    again.failed(7, "was retired");
    let view = cluster.kv(&["config", "query"]);
    for gone in ["forgotten: g2", "retired: g2"] {
        assert!(view.ok().contains(gone), "{view:?}");
    }
    // A group must exist.
    let missing = cluster.kv(&["config", "join", "9=127.0.0.1:1"]);
    missing.failed(7, "127.0.0.1:1: no connection");
    cluster
        .kv(&["config", "join", "9=127.0.0.1:1", "--force"])
        .ok();
    cluster.kv(&["config", "forget", "9"]).ok();
    cluster.kv(&["config", "forget", "1"]).failed(7, "last");
    assert_eq!(cluster.playground.end(), Some(0));
}

#[test]
fn a_load_tells_what_it_notices_of_moving_shards() {
    let folder = tempfile::tempdir().unwrap();
    let Some(cluster) = Cluster::start(folder.path()) else {
        return;
    };
    let owners = cluster.kv(&["config", "query", "-o", "json"]).json()["owners"].clone();
    let report = cluster
        .kv(&[
            "bench",
            "moves",
            "--size",
            "100kB,200kB",
            "--duration",
            "200ms",
            "--clients",
            "2",
            "-o",
            "json",
        ])
        .json();
    let measured = report["moves"].as_array().unwrap();
    let loads: Vec<&str> = measured
        .iter()
        .map(|it| it["load"].as_str().unwrap())
        .collect();
    assert_eq!(loads, ["closed", "open", "closed", "open"]);
    for it in measured {
        assert_eq!(it["failed_writes"], 0, "{it}");
        assert!(it["moves"].as_u64() > Some(0), "{it}");
        assert!(it["write_gap_ms"].as_f64() > Some(0.0), "{it}");
        assert!(
            it["settled_ms"].as_f64() >= it["arrived_ms"].as_f64(),
            "{it}"
        );
        for kind in ["moving", "others"] {
            for time in ["before", "during"] {
                let row = &it[format!("{kind}_{time}")];
                assert!(row["count"].as_u64() > Some(0), "{kind}_{time}: {it}");
            }
        }
    }
    // Nothing stays behind: no key, and no shard at another owner.
    assert!(cluster.export().is_empty());
    let now = cluster.kv(&["config", "query", "-o", "json"]).json();
    assert_eq!(now["owners"], owners);

    let at = cluster.endpoints();
    let load = std::thread::spawn(move || {
        kv(
            &at,
            &[
                "bench",
                "--moves",
                "--clients",
                "2",
                "--warmup",
                "0s",
                "--duration",
                "3s",
                "--read-ratio",
                "0",
                "--key-space",
                "500",
                "-o",
                "json",
            ],
        )
    });
    // The load is running once its keys exist.
    while cluster
        .kv(&["scan", "--prefix", "bench/", "-n", "1"])
        .ok()
        .is_empty()
    {}
    let moved = cluster
        .kv(&["config", "move", "3", "2", "--wait", "-o", "json"])
        .json();
    let back = cluster
        .kv(&["config", "move", "3", "1", "--wait", "-o", "json"])
        .json();
    let changed = [&moved, &back]
        .into_iter()
        .filter(|it| it["changed"] == true)
        .count();
    assert!(changed > 0);
    let report = load.join().unwrap().json();
    assert_eq!(report["error_count"], 0, "{report}");
    let shards = report["moves"]["moved_shards"].as_array().unwrap();
    assert_eq!(shards.len(), 1, "{report}");
    assert_eq!(shards[0]["shard"], 3);
    assert_eq!(cluster.playground.end(), Some(0));
}
