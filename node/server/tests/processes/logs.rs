//! Tests with a standard error that takes no more lines.

use std::io::pipe;

use crate::bad_input::http_get;
use crate::cluster::{Cluster, Setup};
use crate::wait::until;

/// Returns the number of log lines that the node has dropped.
async fn dropped(cluster: &Cluster) -> u64 {
    let metrics = http_get(cluster.metrics(0), "/metrics").await;
    let name = "shardkv_log_dropped_lines_total ";
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|value| value.trim().parse().ok())
        .unwrap_or_else(|| panic!("no metric in {metrics}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_and_then_closed_log_pipe_stops_nothing() {
    let mut cluster = Cluster::prepare(Setup::of(1).with("log-filter", "trace"));
    let (reader, writer) = pipe().unwrap();
    cluster.start_node_with_stderr(0, writer.into());
    let client = cluster.client().await;
    // Nobody reads the pipe. The lines of these writes fill it, and then the node's queue.
    until("lines are dropped", async || {
        client.put("key", "value").await.unwrap();
        match dropped(&cluster).await {
            0 => Err("none yet"),
            lines => Ok(lines),
        }
    })
    .await;
    client.put("key", "stalled").await.unwrap();
    drop(reader);
    let before = dropped(&cluster).await;
    until("a line meets the closed pipe", async || {
        client.put("key", "closed").await.unwrap();
        if dropped(&cluster).await > before {
            Ok(())
        } else {
            Err("not yet")
        }
    })
    .await;
    assert_eq!(
        client.get("key").await.unwrap().as_deref(),
        Some(&b"closed"[..])
    );
    let node = cluster.node(0);
    node.terminate();
    let status = node.exited().await;
    assert!(status.success(), "{status}");
}
