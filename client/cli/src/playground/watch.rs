//! The commands on a running playground: show it, wait for it, send it orders.

use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use shardkv_client::{Client, ClientOptions, NodeStatus, Role};
use tokio::time::{Instant, sleep, timeout};

use super::control::{self, Order, Reply, Request};
use super::layout::{Kind, Layout, NodeLayout, Stage};
use super::process;
use crate::client_error::connect_failure;
use crate::exit::{Exit, Failure};
use crate::move_progress::MoveProgressBar;
use crate::output::{Format, Table, json_line};

/// Time limit of a status call; a frozen node never answers.
const STATUS_TIMEOUT: Duration = Duration::from_secs(1);
/// Interval between polls of a condition.
const POLL: Duration = Duration::from_millis(50);
/// Time for which `down` waits for nodes without a playground.
const ORPHAN_PATIENCE: Duration = Duration::from_secs(10);

/// Makes a client of a playground's nodes, for status calls to each.
pub(super) fn client(layout: &Layout) -> Result<Client, Failure> {
    let options = ClientOptions {
        request_timeout: STATUS_TIMEOUT,
        ..ClientOptions::new(layout.endpoints.split(','))
    };
    Client::lazy(options).map_err(|error| connect_failure(&error))
}

/// Asks each node of the layout for its status, in the layout's order; `None` for a node that does not answer in time.
pub(super) async fn statuses(client: &Client, layout: &Layout) -> Vec<Option<NodeStatus>> {
    let asked = layout.nodes.iter().map(|node| async {
        let admin = client.admin(&node.address).ok()?;
        timeout(STATUS_TIMEOUT, admin.status()).await.ok()?.ok()
    });
    futures::future::join_all(asked).await
}

/// The leader of a group, and how many of the group's nodes follow it (itself among them).
pub(super) fn leader<'a>(
    layout: &'a Layout,
    statuses: &[Option<NodeStatus>],
    group: &str,
) -> Option<(&'a NodeLayout, usize)> {
    let answers = || {
        let nodes = layout.nodes.iter().zip(statuses);
        nodes
            .filter(|(node, _)| node.group == group)
            .filter_map(|(node, status)| Some((node, status.as_ref()?)))
    };
    let (node, leader) = answers()
        .filter(|(_, status)| status.role == Role::Leader)
        .max_by_key(|(_, status)| status.term)?;
    let followers = answers().filter(|(_, status)| status.leader_id == Some(leader.node_id));
    Some((node, followers.count()))
}

/// The number of nodes of a group that must follow its leader.
#[derive(Clone, Copy, Debug)]
pub(super) enum Least {
    All,
    Majority,
}

/// The leaders of the groups that are part of the cluster, by the groups' names, if each of them has one that enough of
/// its nodes follow.
fn leaders(
    layout: &Layout,
    statuses: &[Option<NodeStatus>],
    least: Least,
) -> Option<Vec<(String, NodeLayout)>> {
    let groups = layout.groups.iter();
    let groups = groups.filter(|group| group.stage != Stage::Leaving);
    groups
        .map(|group| {
            let nodes = layout.nodes_of(&group.name).count();
            let least = match least {
                Least::All => nodes,
                Least::Majority => nodes / 2 + 1,
            };
            let (leader, _) = leader(layout, statuses, &group.name)
                .filter(|(_, followers)| *followers >= least)?;
            Some((group.name.clone(), leader.clone()))
        })
        .collect()
}

/// Waits until every group of the cluster has a leader that enough nodes follow, and returns the leaders by group.
pub(super) async fn until_led(
    client: &Client,
    layout: &Layout,
    least: Least,
) -> Vec<(String, NodeLayout)> {
    loop {
        match leaders(layout, &statuses(client, layout).await, least) {
            Some(leaders) => return leaders,
            None => sleep(POLL).await,
        }
    }
}

/// Finds the node that `name` identifies: by its name, by its address, or as the leader of a group.
pub(super) async fn find(
    client: &Client,
    layout: &Layout,
    dir: &Path,
    name: &str,
) -> Result<String, Failure> {
    let leader_of = match name.split_once('/') {
        Some((group, "leader")) => Some(group),
        _ if name == "leader" => first_group(layout),
        _ => None,
    };
    if let Some(group) = leader_of {
        if layout.group(group).is_none() {
            let names: Vec<&str> = layout.groups.iter().map(|it| it.name.as_str()).collect();
            return Err(Failure::usage(
                format!("there is no group {group:?}"),
                format!("name one of {}", names.join(", ")),
            ));
        }
        let statuses = statuses(client, layout).await;
        let found = leader(layout, &statuses, group).map(|(node, _)| node.name.clone());
        return found.ok_or_else(|| {
            Failure::failed(
                format!("no node of {group} leads now"),
                format!(
                    "wait for one: `shardkv playground wait --dir {}`",
                    dir.display()
                ),
            )
        });
    }
    let mut nodes = layout.nodes.iter();
    let found = nodes.find(|node| node.name == name || node.address == name);
    found.map(|node| node.name.clone()).ok_or_else(|| {
        let names: Vec<&str> = layout.nodes.iter().map(|it| it.name.as_str()).collect();
        Failure::usage(
            format!("there is no node {name:?}"),
            format!("name one of {}, or leader", names.join(", ")),
        )
    })
}

/// Returns the group of the name `leader`: the only one, or the first that has shards.
fn first_group(layout: &Layout) -> Option<&str> {
    let mut groups = layout.groups.iter();
    let group = groups.find(|group| group.kind != Kind::Controller)?;
    Some(&group.name)
}

/// Runs `playground status`.
pub(super) async fn status(dir: &Path, format: Format) -> Result<Exit, Failure> {
    let layout = Layout::existing(dir)?;
    let mut out = io::stdout().lock();
    show(&client(&layout)?, &layout, format, &mut out).await
}

/// Writes the state of the nodes. Fails if a group has no leader.
pub(super) async fn show(
    client: &Client,
    layout: &Layout,
    format: Format,
    out: &mut dyn io::Write,
) -> Result<Exit, Failure> {
    let statuses = statuses(client, layout).await;
    if format == Format::Json {
        json_line(out, &status_json(layout, &statuses))?;
    } else {
        status_table(layout, &statuses).write(out)?;
        writeln!(out, "\nexport SHARDKV_ENDPOINTS={}", layout.endpoints)?;
    }
    let groups = layout.groups.iter().map(|group| group.name.as_str());
    let headless: Vec<&str> = groups
        .filter(|group| leader(layout, &statuses, group).is_none())
        .collect();
    if headless.is_empty() {
        return Ok(Exit::Ok);
    }
    Err(Failure::new(
        Exit::Unavailable,
        format!("no node leads {}", headless.join(", ")),
        "read the nodes' log files; start nodes with `shardkv playground restart`",
    ))
}

fn status_table(layout: &Layout, statuses: &[Option<NodeStatus>]) -> Table {
    let mut table = Table::new(&[
        "NODE", "GROUP", "ADDRESS", "METRICS", "PID", "PROCESS", "ROLE", "TERM", "COMMIT",
        "LOG FILE",
    ]);
    for (node, status) in layout.nodes.iter().zip(statuses) {
        let about =
            |of: &dyn Fn(&NodeStatus) -> String| status.as_ref().map(of).unwrap_or_default();
        let group = match layout.group(&node.group).map(|group| group.stage) {
            Some(Stage::Joining) => format!("{} (joining)", node.group),
            Some(Stage::Leaving) => format!("{} (leaving)", node.group),
            Some(Stage::Member) | None => node.group.clone(),
        };
        table.row(vec![
            node.name.clone(),
            group,
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
    table
}

fn status_json(layout: &Layout, statuses: &[Option<NodeStatus>]) -> Value {
    let leader_of = |group: &str| leader(layout, statuses, group).map(|(node, _)| &node.name);
    let groups: Vec<Value> = layout
        .groups
        .iter()
        .map(|group| {
            json!({
                "name": group.name,
                "gid": group.gid,
                "kind": group.kind,
                "stage": group.stage,
                "leader": leader_of(&group.name),
            })
        })
        .collect();
    let nodes: Vec<Value> = layout
        .nodes
        .iter()
        .zip(statuses)
        .map(|(node, status)| {
            json!({
                "name": node.name,
                "group": node.group,
                "gid": node.gid,
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
        "leader": first_group(layout).and_then(leader_of),
        "groups": groups,
        "nodes": nodes,
    })
}

/// Runs `playground wait`. The playground may not have started yet.
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
    let patience = deadline - Instant::now();
    let led = timeout(patience, until_led(&client, &layout, Least::Majority)).await;
    let leaders = led.map_err(|_| late("not every group had a leader that a majority follows"))?;
    let mut out = io::stdout().lock();
    if format == Format::Json {
        let first = first_group(&layout);
        let leader = leaders
            .iter()
            .find(|(group, _)| Some(group.as_str()) == first);
        let names = leaders
            .iter()
            .map(|(group, node)| (group.clone(), json!(node.name)));
        let line = json!({
            "leader": leader.map(|(_, node)| &node.name),
            "leaders": names.collect::<serde_json::Map<_, _>>(),
            "endpoints": layout.endpoints,
        });
        json_line(&mut out, &line)?;
        return Ok(Exit::Ok);
    }
    for (group, leader) in &leaders {
        let what = if layout.is_sharded() {
            format!(" {group}")
        } else {
            String::new()
        };
        writeln!(out, "{} leads{what} at {}", leader.name, leader.address)?;
    }
    Ok(Exit::Ok)
}

/// Sends an order for one node to the playground.
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
    let reply = control::ask(dir, &request, |_| {}).await?;
    write_reply(&reply, format, &mut io::stdout().lock())
}

/// Runs `playground scale`: returns when all shards are at their targets and the nodes of groups that left are gone.
pub(super) async fn scale(dir: &Path, groups: u16, format: Format) -> Result<Exit, Failure> {
    Layout::existing(dir)?;
    let request = Request::to_all(Order::Scale { groups });
    let mut bar = MoveProgressBar::new();
    let reply = control::ask(dir, &request, |moving| bar.show(moving)).await;
    bar.finish();
    write_reply(&reply?, format, &mut io::stdout().lock())
}

/// Writes the answer to an order.
pub(super) fn write_reply(
    reply: &Reply,
    format: Format,
    out: &mut dyn io::Write,
) -> Result<Exit, Failure> {
    match (reply, format) {
        (Reply::Done { node, pid }, Format::Json) => {
            json_line(out, &json!({"node": node, "pid": pid}))?;
        }
        (Reply::Done { node, .. }, _) => writeln!(out, "{node}")?,
        (Reply::Scaled { groups }, Format::Json) => json_line(out, &json!({"groups": groups}))?,
        (Reply::Scaled { groups }, _) => writeln!(out, "{}", groups.join(" "))?,
        (Reply::Progress(_), _) => {}
        (Reply::Refused { message, next }, _) => return Err(Failure::failed(message, next)),
    }
    Ok(Exit::Ok)
}

/// `playground down`: through the playground, or when it is gone, straight to the nodes that it left.
pub(super) async fn down(dir: &Path) -> Result<Exit, Failure> {
    let mut layout = Layout::existing(dir)?;
    let request = Request::to_all(Order::Down);
    match control::ask(dir, &request, |_| {}).await {
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

/// Returns the nodes whose processes still run. The playground that recorded them may be gone.
pub(super) fn left_over(layout: &Layout) -> Vec<(&NodeLayout, u32)> {
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
    use shardkv_client::{Gid, NodeId};

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        start: crate::playground::start::StartArgs,
    }

    fn three_nodes() -> Layout {
        let line = <Line as clap::Parser>::parse_from(["playground"]);
        Layout::open(Path::new("/nowhere"), &line.start).unwrap()
    }

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
            disk_free_bytes: 0,
            disk_total_bytes: 0,
            disk_reserve_bytes: 0,
            incoming_bytes: 0,
            disk_full: false,
            trouble: None,
            kind: shardkv_client::GroupKind::Shards,
            config_num: shardkv_client::ConfigNum(0),
            settled: shardkv_client::ConfigNum(0),
        }
    }

    #[test]
    fn the_leader_of_the_highest_term_counts() {
        let layout = three_nodes();
        let led = |statuses: &[Option<NodeStatus>]| {
            let (node, followers) = leader(&layout, statuses, "g1")?;
            Some((node.name.as_str(), followers))
        };
        let deposed = Some(status(1, Role::Leader, 2, 1));
        let follower = Some(status(2, Role::Follower, 3, 3));
        let leading = Some(status(3, Role::Leader, 3, 3));
        let all = [deposed.clone(), follower.clone(), leading];
        assert_eq!(led(&all), Some(("node-3", 2)));
        assert!(leaders(&layout, &all, Least::All).is_none());
        assert!(leaders(&layout, &all, Least::Majority).is_some());
        assert_eq!(led(&[deposed, follower.clone(), None]), Some(("node-1", 1)));
        assert_eq!(led(&[None, follower]), None);
        assert_eq!(leader(&layout, &all, "g2"), None);
    }

    #[tokio::test]
    async fn nodes_are_found_by_name_and_address() {
        let layout = three_nodes();
        let client = client(&layout).unwrap();
        let dir = Path::new("/nowhere");
        let find = async |name: &str| find(&client, &layout, dir, name).await;
        assert_eq!(find("node-2").await.unwrap(), "node-2");
        assert_eq!(find(&layout.nodes[2].address).await.unwrap(), "node-3");
        for (name, words) in [
            ("node-9", "there is no node"),
            ("g2/leader", "there is no group"),
            ("g1/node-1", "there is no node"),
        ] {
            let failure = find(name).await.unwrap_err().to_string();
            assert!(failure.contains(words), "{name}: {failure}");
        }
    }
}
