//! Cost of an idle operator: memory and writes.

use serde_json::json;

use crate::cluster::Cluster;
use crate::machines;
use crate::operator::Operator;
use crate::scenario::{Company, scenario};
use crate::tools::{holds, say, until};

const MOST_BYTES: f64 = 30e6;

#[test]
fn an_idle_operator_is_small_and_writes_nothing() {
    scenario("idle", Company::Alone, async |space| {
        let operator = Operator::new(&space.client);
        let small = json!({"replicasPerGroup": 1});
        let cluster = Cluster::create(&space, "demo", small).await;
        cluster.settled(1).await;
        let idle = |line: &str| line.contains(r#"outcome="idle""#);
        let rounds = async || operator.metric("shardkv_operator_reconciles", idle).await;
        // The renewal of the Lease is the only write of an idle operator.
        let writes = |line: &str| {
            let verbs = ["create", "update", "patch", "apply", "delete"];
            verbs
                .iter()
                .any(|verb| line.contains(&format!(r#"verb="{verb}"#)))
                && !line.contains(r#"resource="leases""#)
        };
        let writes = async || {
            operator
                .metric("shardkv_operator_api_requests", writes)
                .await
        };
        let settled = rounds().await;
        until("an idle round completes", async || {
            holds(rounds().await > settled, "no round")
        })
        .await;

        let (began, written, before) = (rounds().await, writes().await, space.versions().await);
        assert!(written > 0.0, "the operator created the cluster");
        until("three more rounds complete", async || {
            let done = rounds().await - began;
            holds(done >= 3.0, format!("{done} rounds"))
        })
        .await;
        assert_eq!(space.versions().await, before, "something was written");
        assert_eq!(
            writes().await.to_string(),
            written.to_string(),
            "requests that write"
        );
        let held = operator.working_set_bytes().await;
        say(&format!("working set: {held} bytes"));
        assert!(held < MOST_BYTES, "{held} bytes");
        if machines::are_ours() {
            let resident = operator.resident_bytes().await;
            say(&format!("resident memory: {resident} bytes"));
            assert!(resident < MOST_BYTES, "{resident} bytes");
        }
        cluster.delete().await;
    });
}
