//! What is asked of nodes: `status`, `transfer-leader`, `member`.

use std::io::Write;
use std::time::Duration;

use client::{Admin, Client, Error, MembershipChange, NodeId, NodeStatus};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::args::{AdminCommand, GlobalArgs, MemberCommand};
use crate::connect::{NEXT_UNREACHABLE, connect_failure};
use crate::exit::{Exit, Failure};
use crate::output::{Format, Table, json_line};

/// What every node said of itself, or why it said nothing; sorted by address.
pub(crate) type Nodes = Vec<(String, Result<NodeStatus, Error>)>;

/// Does what `command` asks and writes the answer to `out`.
pub(crate) async fn run(
    command: &AdminCommand,
    client: &Client,
    global: &GlobalArgs,
    out: &mut dyn Write,
) -> Result<Exit, Failure> {
    match command {
        AdminCommand::Status => {
            let nodes = client.status_all().await;
            write_status(&nodes, global.output, out)?;
            outlook(&nodes)
        }
        AdminCommand::TransferLeader { member } => {
            let target = match member {
                Some(member) => Some(find_member(&client.status_all().await, member)?),
                None => None,
            };
            let leader = ask_leader(client, global, async |admin: Admin| {
                admin.transfer_leadership(target).await
            })
            .await?;
            report(
                global,
                out,
                &json!({"leader_id": leader.to_string()}),
                &format!("ok: {leader} leads"),
            )
        }
        AdminCommand::Member { change } => {
            let change = membership_change(client, change).await?;
            let change = &change;
            let index = ask_leader(client, global, async |admin: Admin| {
                admin.change_membership(change.clone()).await
            })
            .await?;
            report(
                global,
                out,
                &json!({"index": index}),
                &format!("ok: committed at index {index}"),
            )
        }
    }
}

fn report(
    global: &GlobalArgs,
    out: &mut dyn Write,
    json: &Value,
    text: &str,
) -> Result<Exit, Failure> {
    match global.output {
        Format::Json => json_line(out, json)?,
        Format::Table | Format::Raw => writeln!(out, "{text}")?,
    }
    Ok(Exit::Ok)
}

/// Asks the leader, and again after a change of leader or while none is known, until the timeout. A request whose
/// outcome is unknown is not repeated.
async fn ask_leader<T>(
    client: &Client,
    global: &GlobalArgs,
    ask: impl AsyncFn(Admin) -> Result<T, Error>,
) -> Result<T, Failure> {
    let deadline = Instant::now() + Duration::from_millis(global.timeout_ms);
    let pause = Duration::from_millis(50);
    loop {
        let address = client.leader().await?;
        let admin = client
            .admin(&address)
            .map_err(|error| connect_failure(&error))?;
        match ask(admin).await {
            Ok(answer) => return Ok(answer),
            Err(error) => {
                let again = matches!(error, Error::NotLeader { .. } | Error::Unavailable { .. })
                    && !error.maybe_applied()
                    && Instant::now() + pause < deadline;
                if !again {
                    return Err(error.into());
                }
            }
        }
        tokio::time::sleep(pause).await;
    }
}

async fn membership_change(
    client: &Client,
    change: &MemberCommand,
) -> Result<MembershipChange, Failure> {
    match change {
        MemberCommand::AddLearner { address, node } => {
            let node = if let Some(node) = node {
                parse_node(node).ok_or_else(|| bad_member(node))?
            } else {
                let admin = client
                    .admin(address)
                    .map_err(|error| connect_failure(&error))?;
                let status = admin.status().await.map_err(|error| {
                    Failure::from(error)
                        .with_next("start the node first, or give its id with --node")
                })?;
                status.node_id
            };
            Ok(MembershipChange::AddLearner {
                node,
                address: address.clone(),
            })
        }
        MemberCommand::Promote { member } => Ok(MembershipChange::Promote(find_member(
            &client.status_all().await,
            member,
        )?)),
        MemberCommand::Remove { member } => Ok(MembershipChange::Remove(find_member(
            &client.status_all().await,
            member,
        )?)),
    }
}

/// The member that an argument names by id or by address.
fn find_member(nodes: &Nodes, name: &str) -> Result<NodeId, Failure> {
    // An address may have had several ids; who leads knows which one is a member now.
    let mut views: Vec<&NodeStatus> = nodes
        .iter()
        .filter_map(|(_, status)| status.as_ref().ok())
        .collect();
    views.sort_by_key(|view| std::cmp::Reverse((view.role == client::Role::Leader, view.term)));
    let by_address = views
        .iter()
        .flat_map(|view| &view.members)
        .find(|member| member.address == name)
        .map(|member| member.node_id);
    by_address
        .or_else(|| parse_node(name))
        .ok_or_else(|| bad_member(name))
}

fn bad_member(name: &str) -> Failure {
    Failure::usage(
        format!("{name:?} is no member's address and no node id"),
        "take an id (like n3f2a9c) or an address from `shardkv status`",
    )
}

/// A node id as `status` shows it: `n` and hexadecimal digits; zero is never one.
fn parse_node(text: &str) -> Option<NodeId> {
    let digits = text.strip_prefix('n')?;
    if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    u64::from_str_radix(digits, 16)
        .ok()
        .filter(|&id| id != 0)
        .map(NodeId)
}

/// What the exit code of `status` says: whether a node that answered knows a leader.
fn outlook(nodes: &Nodes) -> Result<Exit, Failure> {
    let answers = || nodes.iter().filter_map(|(_, status)| status.as_ref().ok());
    if answers().any(|status| status.leader_id.is_some()) {
        return Ok(Exit::Ok);
    }
    let (message, next) = if answers().next().is_some() {
        (
            "no node knows a leader",
            "check that a majority of the nodes runs and that they reach each other; their logs say more",
        )
    } else {
        ("no node answered", NEXT_UNREACHABLE)
    };
    Err(Failure::new(Exit::Unavailable, message, next))
}

fn write_status(nodes: &Nodes, format: Format, out: &mut dyn Write) -> std::io::Result<()> {
    match format {
        Format::Json => json_line(out, &status_json(nodes)),
        Format::Table | Format::Raw => status_table(nodes, out),
    }
}

/// All of it, for programs: `{"leader": "host:port"|null, "nodes": [...]}`.
fn status_json(nodes: &Nodes) -> Value {
    let leader = nodes
        .iter()
        .filter_map(|(address, status)| Some((address, status.as_ref().ok()?)))
        .filter(|(_, status)| status.role == client::Role::Leader)
        .max_by_key(|(_, status)| status.term)
        .map(|(address, _)| address);
    let nodes: Vec<Value> = nodes
        .iter()
        .map(|(address, status)| match status {
            Ok(status) => node_json(address, status),
            Err(error) => json!({"address": address, "error": error.to_string()}),
        })
        .collect();
    json!({"leader": leader, "nodes": nodes})
}

fn node_json(address: &str, status: &NodeStatus) -> Value {
    let members: Vec<Value> = status
        .members
        .iter()
        .map(|member| {
            json!({
                "node_id": member.node_id.to_string(),
                "address": member.address,
                "voter": member.voter,
                "match_index": member.match_index,
                "progress": member.progress,
            })
        })
        .collect();
    json!({
        "address": address,
        "node_id": status.node_id.to_string(),
        "version": status.version,
        "cluster_id": status.cluster_id,
        "gid": status.gid.0,
        "role": status.role.as_str(),
        "term": status.term,
        "leader_id": status.leader_id.map(|id| id.to_string()),
        "leader_address": status.leader_address,
        "commit_index": status.commit_index,
        "last_applied": status.last_applied,
        "first_index": status.first_index,
        "last_index": status.last_index,
        "shards": status.shards,
        "log_bytes": status.log_bytes,
        "state_bytes": status.state_bytes,
        "disk_full": status.disk_full,
        "trouble": status.trouble,
        "members": members,
    })
}

fn status_table(nodes: &Nodes, out: &mut dyn Write) -> std::io::Result<()> {
    let mut table = Table::new(&[
        "ADDRESS",
        "NODE",
        "ROLE",
        "TERM",
        "COMMIT",
        "APPLIED",
        "LOG",
        "LOG SIZE",
        "STATE SIZE",
        "NOTE",
    ]);
    for (address, status) in nodes {
        table.row(match status {
            Ok(status) => vec![
                address.clone(),
                status.node_id.to_string(),
                status.role.to_string(),
                status.term.to_string(),
                status.commit_index.to_string(),
                status.last_applied.to_string(),
                format!("{}..{}", status.first_index, status.last_index),
                size(status.log_bytes),
                size(status.state_bytes),
                note(status),
            ],
            Err(error) => {
                let mut cells = vec![address.clone()];
                cells.resize(9, String::new());
                cells.push(error.to_string());
                cells
            }
        });
    }
    table.write(out)?;
    let leading = nodes
        .iter()
        .filter_map(|(_, status)| status.as_ref().ok())
        .filter(|status| status.role == client::Role::Leader)
        .max_by_key(|status| status.term);
    let Some(leader) = leading else { return Ok(()) };
    writeln!(
        out,
        "\ncluster {}, group {}, {} shards; members as the leader sees them:",
        leader.cluster_id, leader.gid, leader.shards
    )?;
    let mut members = Table::new(&["ADDRESS", "NODE", "VOTE", "MATCH", "PROGRESS"]);
    for member in &leader.members {
        members.row(vec![
            member.address.clone(),
            member.node_id.to_string(),
            if member.voter { "voter" } else { "learner" }.into(),
            member
                .match_index
                .map(|index| index.to_string())
                .unwrap_or_default(),
            member.progress.clone().unwrap_or_default(),
        ]);
    }
    members.write(out)
}

fn note(status: &NodeStatus) -> String {
    let full = status
        .disk_full
        .then(|| "disk full: refuses writes".to_owned());
    let notes: Vec<String> = status.trouble.clone().into_iter().chain(full).collect();
    notes.join("; ")
}

/// Bytes for people, in binary units.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1_024 {
        return format!("{bytes} B");
    }
    let mut unit = 0;
    let mut shift = 10;
    while unit + 1 < UNITS.len() && bytes >> (shift + 10) > 0 {
        unit += 1;
        shift += 10;
    }
    // Tenths by whole numbers: exact, and no float formatting.
    let tenths = (u128::from(bytes) * 10) >> shift;
    format!(
        "{}.{} {}",
        tenths / 10,
        tenths % 10,
        UNITS.get(unit).unwrap_or(&"")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use client::{Gid, MemberStatus, Role};

    fn node(id: u64, role: Role, leader: Option<u64>) -> NodeStatus {
        NodeStatus {
            version: "0.1.0".into(),
            cluster_id: "demo".into(),
            gid: Gid(1),
            node_id: NodeId(id),
            address: format!("127.0.0.1:740{id}"),
            role,
            term: 3,
            leader_id: leader.map(NodeId),
            leader_address: leader.map(|id| format!("127.0.0.1:740{id}")),
            commit_index: 120,
            last_applied: 119,
            first_index: 1,
            last_index: 121,
            members: vec![
                MemberStatus {
                    node_id: NodeId(1),
                    address: "127.0.0.1:7401".into(),
                    voter: true,
                    match_index: Some(121),
                    progress: Some("replicate".into()),
                },
                MemberStatus {
                    node_id: NodeId(0xbeef),
                    address: "127.0.0.1:7402".into(),
                    voter: false,
                    match_index: Some(7),
                    progress: Some("snapshot".into()),
                },
            ],
            shards: 64,
            log_bytes: 70_000,
            state_bytes: 3_200_000,
            disk_full: id == 2,
            trouble: None,
        }
    }

    fn nodes() -> Nodes {
        vec![
            ("127.0.0.1:7401".into(), Ok(node(1, Role::Leader, Some(1)))),
            (
                "127.0.0.1:7402".into(),
                Ok(node(2, Role::Follower, Some(1))),
            ),
            (
                "127.0.0.1:7403".into(),
                Err(Error::Unavailable {
                    address: "127.0.0.1:7403".into(),
                    message: "connection refused".into(),
                    maybe_applied: false,
                }),
            ),
        ]
    }

    #[test]
    fn status_matches_the_golden() {
        let mut out = Vec::new();
        for format in [Format::Table, Format::Json] {
            write_status(&nodes(), format, &mut out).unwrap();
            out.push(b'\n');
        }
        crate::golden::check("status.txt", std::str::from_utf8(&out).unwrap());
    }

    #[test]
    fn a_cluster_without_a_leader_is_unavailable() {
        assert_eq!(outlook(&nodes()).unwrap(), Exit::Ok);
        let lost: Nodes = vec![("a:1".into(), Ok(node(2, Role::Candidate, None)))];
        assert_eq!(outlook(&lost).unwrap_err().exit(), Exit::Unavailable);
        assert_eq!(
            outlook(&Nodes::new()).unwrap_err().exit(),
            Exit::Unavailable
        );
    }

    #[test]
    fn members_are_found_by_id_and_by_address() {
        let nodes = nodes();
        assert_eq!(
            find_member(&nodes, "127.0.0.1:7402").unwrap(),
            NodeId(0xbeef)
        );
        assert_eq!(find_member(&nodes, "nbeef").unwrap(), NodeId(0xbeef));
        for bad in [
            "",
            "n",
            "n0",
            "n+1",
            "nxyz",
            "beef",
            "127.0.0.1:9",
            "n11112222333344445",
        ] {
            assert_eq!(
                find_member(&nodes, bad).unwrap_err().exit(),
                Exit::Usage,
                "{bad}"
            );
        }
    }

    #[test]
    fn sizes_are_for_people() {
        let shown = [0, 1_023, 1_024, 1_536, 1 << 20, 5 << 40, u64::MAX].map(size);
        assert_eq!(
            shown,
            [
                "0 B",
                "1023 B",
                "1.0 KiB",
                "1.5 KiB",
                "1.0 MiB",
                "5.0 TiB",
                "16383.9 PiB"
            ]
        );
    }
}
