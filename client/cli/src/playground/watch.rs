//! Looking at a playground, waiting for it, giving it orders.

use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use client::{Client, ClientOptions, NodeStatus, Role};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::control::{self, Order, Request};
use super::layout::Layout;
use super::process;
use crate::connect::connect_failure;
use crate::exit::{Exit, Failure};
use crate::output::{Format, Table, json_line};

/// How long a node may take to say how it is; a frozen one never does.
const STATUS_TIMEOUT: Duration = Duration::from_secs(1);
/// How often a condition is looked at that nobody announces.
const POLL: Duration = Duration::from_millis(50);
/// How long `down` waits for nodes without a playground.
const ORPHAN_PATIENCE: Duration = Duration::from_secs(10);

/// A client of a playground's nodes, for questions to each.
pub(super) fn client(layout: &Layout) -> Result<Client, Failure> {
    let options = ClientOptions {
        request_timeout: STATUS_TIMEOUT,
        ..ClientOptions::new(layout.endpoints.split(','))
    };
    Client::lazy(options).map_err(|error| connect_failure(&error))
}

/// What each node of the layout says of itself, in the layout's order; `None` from one that doesn't answer in time.
pub(super) async fn statuses(client: &Client, layout: &Layout) -> Vec<Option<NodeStatus>> {
    let asked = layout.nodes.iter().map(|node| async {
        let admin = client.admin(&node.address).ok()?;
        timeout(STATUS_TIMEOUT, admin.status()).await.ok()?.ok()
    });
    futures::future::join_all(asked).await
}

/// The place of the leader in the layout, and how many nodes follow it (itself among them).
pub(super) fn leader(statuses: &[Option<NodeStatus>]) -> Option<(usize, usize)> {
    let answers = || {
        statuses
            .iter()
            .enumerate()
            .filter_map(|(at, status)| Some((at, status.as_ref()?)))
    };
    let (at, leader) = answers()
        .filter(|(_, status)| status.role == Role::Leader)
        .max_by_key(|(_, status)| status.term)?;
    let followers = answers().filter(|(_, status)| status.leader_id == Some(leader.node_id));
    Some((at, followers.count()))
}

/// Waits until `least` nodes agree on a leader, and returns its place in the layout.
pub(super) async fn until_led(client: &Client, layout: &Layout, least: usize) -> usize {
    loop {
        match leader(&statuses(client, layout).await) {
            Some((at, followers)) if followers >= least => return at,
            _ => sleep(POLL).await,
        }
    }
}

/// `playground status`.
pub(super) async fn status(dir: &Path, format: Format) -> Result<Exit, Failure> {
    let layout = Layout::existing(dir)?;
    let statuses = statuses(&client(&layout)?, &layout).await;
    let led = leader(&statuses);
    let mut out = io::stdout().lock();
    if format == Format::Json {
        json_line(&mut out, &status_json(&layout, &statuses))?;
    } else {
        let mut table = Table::new(&[
            "NODE", "ADDRESS", "METRICS", "PID", "PROCESS", "ROLE", "TERM", "COMMIT", "LOG FILE",
        ]);
        for (node, status) in layout.nodes.iter().zip(&statuses) {
            let about =
                |of: &dyn Fn(&NodeStatus) -> String| status.as_ref().map(of).unwrap_or_default();
            table.row(vec![
                node.name.clone(),
                node.address.clone(),
                node.metrics.clone(),
                node.pid.map(|pid| pid.to_string()).unwrap_or_default(),
                node.pid
                    .map_or("gone", |pid| process::state(pid, node))
                    .to_owned(),
                about(&|status| status.role.to_string()),
                about(&|status| status.term.to_string()),
                about(&|status| status.commit_index.to_string()),
                node.log.display().to_string(),
            ]);
        }
        table.write(&mut out)?;
        writeln!(out, "\nexport SHARDKV_ENDPOINTS={}", layout.endpoints)?;
    }
    if led.is_some() {
        return Ok(Exit::Ok);
    }
    Err(Failure::new(
        Exit::Unavailable,
        "no node leads",
        "read the nodes' log files; start nodes with `shardkv playground restart`",
    ))
}

fn status_json(layout: &Layout, statuses: &[Option<NodeStatus>]) -> Value {
    let leader = leader(statuses)
        .and_then(|(at, _)| layout.nodes.get(at))
        .map(|node| &node.name);
    let nodes: Vec<Value> = layout
        .nodes
        .iter()
        .zip(statuses)
        .map(|(node, status)| {
            json!({
                "name": node.name,
                "address": node.address,
                "metrics": node.metrics,
                "pid": node.pid,
                "process": node.pid.map_or("gone", |pid| process::state(pid, node)),
                "role": status.as_ref().map(|status| status.role.as_str()),
                "node_id": status.as_ref().map(|status| status.node_id.to_string()),
                "term": status.as_ref().map(|status| status.term),
                "commit_index": status.as_ref().map(|status| status.commit_index),
                "data_dir": node.data_dir,
                "log": node.log,
            })
        })
        .collect();
    json!({
        "pid": layout.pid,
        "ready": layout.ready,
        "endpoints": layout.endpoints,
        "leader": leader,
        "nodes": nodes,
    })
}

/// `playground wait`: the playground may not even have begun.
pub(super) async fn wait(dir: &Path, patience: Duration, format: Format) -> Result<Exit, Failure> {
    let deadline = Instant::now() + patience;
    let late = |what: &str| {
        Failure::new(
            Exit::Unavailable,
            format!("{what} within {} s", patience.as_secs_f64()),
            format!(
                "look at `shardkv playground status --dir {}` and the nodes' log files",
                dir.display()
            ),
        )
    };
    let layout = loop {
        match Layout::load(dir)? {
            Some(layout) if layout.ready => break layout,
            _ if Instant::now() >= deadline => return Err(late("the playground was not ready")),
            _ => sleep(POLL).await,
        }
    };
    let client = client(&layout)?;
    let majority = layout.nodes.len() / 2 + 1;
    let led = timeout(
        deadline - Instant::now(),
        until_led(&client, &layout, majority),
    )
    .await;
    let at = led.map_err(|_| late("no majority followed one leader"))?;
    let Some(leader) = layout.nodes.get(at) else {
        return Ok(Exit::Ok);
    };
    let mut out = io::stdout().lock();
    match format {
        Format::Json => json_line(
            &mut out,
            &json!({"leader": leader.name, "endpoints": layout.endpoints}),
        )?,
        Format::Table | Format::Raw => {
            writeln!(out, "{} leads at {}", leader.name, leader.address)?;
        }
    }
    Ok(Exit::Ok)
}

/// Gives an order to one node, through the playground.
pub(super) async fn order(
    dir: &Path,
    node: &str,
    order: Order,
    format: Format,
) -> Result<Exit, Failure> {
    Layout::existing(dir)?;
    let request = Request {
        order,
        node: node.to_owned(),
    };
    let (name, pid) = control::ask(dir, &request).await?;
    let mut out = io::stdout().lock();
    match format {
        Format::Json => json_line(&mut out, &json!({"node": name, "pid": pid}))?,
        Format::Table | Format::Raw => writeln!(out, "{name}")?,
    }
    Ok(Exit::Ok)
}

/// `playground down`: through the playground, or when it is gone, straight to the nodes that it left.
pub(super) async fn down(dir: &Path) -> Result<Exit, Failure> {
    let mut layout = Layout::existing(dir)?;
    let request = Request {
        order: Order::Down,
        node: String::new(),
    };
    match control::ask(dir, &request).await {
        Ok(_) => return Ok(Exit::Ok),
        Err(failure) if failure.exit() == Exit::Unavailable => {}
        Err(failure) => return Err(failure),
    }
    for (node, pid) in left_over(&layout) {
        eprintln!(
            "stopping {} (pid {pid}), which a playground left",
            node.name
        );
        process::stop_orphan(pid, node, ORPHAN_PATIENCE)
            .await
            .map_err(|error| {
                Failure::failed(format!("can't stop pid {pid}: {error}"), "stop it yourself")
            })?;
    }
    layout.nodes.iter_mut().for_each(|node| node.pid = None);
    (layout.pid, layout.ready) = (None, false);
    layout.save(dir)?;
    Ok(Exit::Ok)
}

/// Nodes whose processes run although they are recorded by a playground that may be gone.
pub(super) fn left_over(layout: &Layout) -> Vec<(&super::layout::NodeLayout, u32)> {
    let recorded = layout
        .nodes
        .iter()
        .filter_map(|node| Some((node, node.pid?)));
    recorded
        .filter(|(node, pid)| process::state(*pid, node) != "gone")
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use client::{Gid, NodeId};

    fn status(id: u64, role: Role, term: u64, leader: u64) -> NodeStatus {
        NodeStatus {
            version: String::new(),
            cluster_id: String::new(),
            gid: Gid(1),
            node_id: NodeId(id),
            address: String::new(),
            role,
            term,
            leader_id: Some(NodeId(leader)),
            leader_address: None,
            commit_index: 0,
            last_applied: 0,
            first_index: 0,
            last_index: 0,
            members: Vec::new(),
            shards: 1,
            log_bytes: 0,
            state_bytes: 0,
            disk_full: false,
            trouble: None,
        }
    }

    #[test]
    fn the_leader_of_the_highest_term_counts() {
        let deposed = Some(status(1, Role::Leader, 2, 1));
        let follower = Some(status(2, Role::Follower, 3, 3));
        let leading = Some(status(3, Role::Leader, 3, 3));
        assert_eq!(
            leader(&[deposed.clone(), follower.clone(), leading]),
            Some((2, 2))
        );
        assert_eq!(leader(&[deposed, follower.clone(), None]), Some((0, 1)));
        assert_eq!(leader(&[None, follower]), None);
    }
}
