//! The options of a resource, each against the nodes' own parser: bad values that an older definition might accept, and the limits of
//! this one.

use std::collections::{BTreeMap, BTreeSet};

use kube::CustomResourceExt as _;
use serde_json::{Value, json};

use super::*;
use crate::crd::NodeOptions;
use crate::yaml;

/// Returns the schemas of all options of the resource, by name.
fn schemas() -> BTreeMap<String, Value> {
    let definition = serde_json::to_value(ShardKvCluster::crd()).unwrap();
    let spec = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties";
    let options = definition.pointer(&format!("{spec}/options/properties"));
    serde_json::from_value(options.unwrap().clone()).unwrap()
}

fn check(options: Value) -> Result<(), String> {
    let spec = ShardKvClusterSpec {
        options: serde_json::from_value(options).unwrap(),
        ..ShardKvClusterSpec::default()
    };
    let checked = validate(&stored(spec));
    checked.map(drop).map_err(|why| why.to_string())
}

#[test]
fn each_option_with_a_bad_value_is_refused_by_its_name() {
    let most = i64::MAX;
    #[rustfmt::skip]
    let rows: &[(&str, &str, &[Value])] = &[
        ("sessionTtlMs", "session_ttl_ms", &[json!(-1), json!(999), json!(2_592_000_001_i64)]),
        ("maxSessionsPerShard", "max_sessions_per_shard", &[json!(-1), json!(0), json!(16_777_217)]),
        ("heartbeatIntervalMs", "heartbeat_interval_ms", &[json!(-1), json!(0), json!(9), json!(60_001)]),
        ("electionTimeoutMs", "election_timeout_ms", &[json!(-1), json!(2), json!(299), json!(600_001)]),
        ("requestTimeoutMs", "request_timeout_ms", &[json!(-1), json!(0), json!(3_600_001)]),
        ("maxPendingRequests", "max_pending_requests", &[json!(-1), json!(0), json!(16_777_217)]),
        ("maxConnections", "max_connections", &[json!(-1), json!(0), json!(1_048_577)]),
        ("maxPendingResets", "max_pending_resets", &[json!(-1), json!(0), json!(1_023), json!(1_048_577)]),
        ("maxStreamErrors", "max_stream_errors", &[json!(-1), json!(0), json!(1_048_577)]),
        ("stallTimeoutMs", "stall_timeout_ms", &[json!(-1), json!(2_999), json!(86_400_001)]),
        ("blockCacheBytes", "block_cache_bytes", &[json!(-1), json!(1_048_575), json!(most)]),
        ("compactAfterBytes", "compact_after_bytes", &[json!(-1), json!(4_095), json!(most)]),
        ("maxKeptLogBytes", "max_kept_log_bytes", &[json!(-1), json!(4_095), json!(most)]),
        ("snapshotBytesPerSecond", "snapshot_bytes_per_second", &[json!(-1)]),
        ("handoffMaxConcurrent", "handoff_max_concurrent", &[json!(-1), json!(0), json!(1_025)]),
        ("handoffBytesPerSecond", "handoff_bytes_per_second", &[json!(-1)]),
        ("logFilter", "log_filter", &[json!("info,shardkv_server=debgu")]),
    ];
    for (name, key, bad) in rows {
        for value in *bad {
            let checked = check(json!({*name: value}));
            let why = checked.expect_err(&format!("{name} {value}"));
            assert!(why.starts_with("the nodes refuse spec.options: "), "{why}");
            // The name as in the file, or as the flag.
            let named = why.contains(key) || why.contains(&key.replace('_', "-"));
            assert!(named, "{name} {value}: {why}");
        }
    }
    // A flag has no bad value.
    let mut tried: BTreeSet<String> = rows.iter().map(|(name, ..)| (*name).to_owned()).collect();
    tried.insert("leaseReads".to_owned());
    assert_eq!(tried, schemas().into_keys().collect());
}

#[test]
fn nodes_accept_the_limits_of_the_definition() {
    let mut tried = 0;
    for (name, schema) in schemas() {
        for limit in ["minimum", "maximum"] {
            let Some(value) = schema[limit].as_f64() else {
                continue;
            };
            #[expect(clippy::cast_possible_truncation, reason = "the limits are whole")]
            let mut options = json!({&name: value as i64});
            // One depends on the other, as rules of the definition say.
            match name.as_str() {
                "heartbeatIntervalMs" => options["electionTimeoutMs"] = json!(60_000),
                "electionTimeoutMs" => options["heartbeatIntervalMs"] = json!(10),
                _ => {}
            }
            assert_eq!(check(options), Ok(()), "{name} {value}");
            tried += 1;
        }
    }
    assert!(tried >= 32, "{tried}");
}

/// A text stays one value of the file, whatever it contains.
#[test]
fn a_text_adds_no_option() {
    for text in [
        "info\"\nlease_reads: true\n#",
        "a\\",
        "'",
        "# info",
        "{a: 1}",
    ] {
        let options: NodeOptions = serde_json::from_value(json!({"logFilter": text})).unwrap();
        let file = options.file();
        let read: BTreeMap<String, String> = yaml::read(&file).unwrap();
        assert_eq!(
            read,
            [("log_filter".to_owned(), text.to_owned())].into(),
            "{file}"
        );
    }
}
