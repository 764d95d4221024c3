//! `status`: shows every node of every group, from the node's own status.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde_json::{Value, json};
use shardkv_client::{Error, Gid, NodeStatus};

use crate::client_error::NEXT_UNREACHABLE;
use crate::exit::{Exit, Failure};
use crate::nodes::{Nodes, answers, contradictions, gids, group_name, group_of, leader_of};
use crate::output::{Format, Table, json_line, size};

/// Fails unless in every group at least one node answered and knows a leader: the exit code of `status`.
pub(crate) fn outlook(nodes: &Nodes) -> Result<Exit, Failure> {
    let groups = gids(nodes);
    if groups.is_empty() {
        let message = "no node answered";
        return Err(Failure::new(Exit::Unavailable, message, NEXT_UNREACHABLE));
    }
    let contradictions = contradictions(nodes);
    if !contradictions.is_empty() {
        let next = "correct this first: a copied data directory can lose acknowledged writes";
        return Err(Failure::failed(contradictions.join("; "), next));
    }
    let led = |gid: Gid| answers(nodes).any(|it| it.gid == gid && it.leader_id.is_some());
    let headless: Vec<String> = groups
        .into_iter()
        .filter(|gid| !led(*gid))
        .map(group_name)
        .collect();
    if headless.is_empty() {
        return Ok(Exit::Ok);
    }
    Err(Failure::new(
        Exit::Unavailable,
        format!("no node of {} knows a leader", headless.join(", ")),
        "check that a majority of the nodes runs and that they reach each other; their logs say more",
    ))
}

/// Fails unless each node answered, knows a leader and has no trouble: the exit code of `status --here`.
pub(crate) fn healthy(nodes: &Nodes) -> Result<Exit, Failure> {
    for (address, status) in nodes {
        let why = match status {
            Err(error) => error.to_string(),
            Ok(status) => match &status.trouble {
                Some(trouble) => trouble.clone(),
                None if status.leader_id.is_none() => "it knows no leader".to_owned(),
                None => continue,
            },
        };
        let next = "wait if it has just started; its log says more";
        return Err(Failure::new(
            Exit::Unavailable,
            format!("{address}: {why}"),
            next,
        ));
    }
    Ok(Exit::Ok)
}

/// Writes the nodes, group by group.
pub(crate) fn write_status(nodes: &Nodes, format: Format, out: &mut dyn Write) -> io::Result<()> {
    match format {
        Format::Json => json_line(out, &status_json(nodes)),
        Format::Table | Format::Raw => status_table(nodes, out),
    }
}

/// Returns the nodes with their groups: the controllers first, then by gid, and nodes of unknown groups last.
fn by_group(nodes: &Nodes) -> Vec<(Option<Gid>, &String, &Result<NodeStatus, Error>)> {
    let listed = nodes.iter();
    let mut sorted: Vec<_> = listed
        .map(|(address, status)| (group_of(nodes, address, status), address, status))
        .collect();
    sorted.sort_by_key(|(gid, address, _)| (gid.is_none(), *gid, *address));
    sorted
}

/// Makes the JSON output. `leader` is that of the first group with shards; `leaders` has those of all groups by name.
fn status_json(nodes: &Nodes) -> Value {
    let leaders: BTreeMap<Gid, &String> = gids(nodes)
        .into_iter()
        .filter_map(|gid| Some((gid, leader_of(nodes, gid)?.0)))
        .collect();
    let leader = leaders.iter().find(|(gid, _)| **gid != Gid::NONE);
    let names = leaders
        .iter()
        .map(|(gid, address)| (group_name(*gid), json!(address)));
    let listed: Vec<Value> = by_group(nodes)
        .into_iter()
        .map(|(gid, address, status)| match status {
            Ok(status) => node_json(address, status),
            Err(error) => json!({
                "address": address,
                "gid": gid.map(|gid| gid.0),
                "error": error.to_string(),
            }),
        })
        .collect();
    json!({
        "leader": leader.map(|(_, address)| address),
        "leaders": names.collect::<serde_json::Map<_, _>>(),
        "nodes": listed,
    })
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
        "disk_free_bytes": status.disk_free_bytes,
        "disk_total_bytes": status.disk_total_bytes,
        "disk_reserve_bytes": status.disk_reserve_bytes,
        "disk_full": status.disk_full,
        "trouble": status.trouble,
        "members": members,
    })
}

fn status_table(nodes: &Nodes, out: &mut dyn Write) -> io::Result<()> {
    let mut table = Table::new(&[
        "GROUP",
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
    for (gid, address, status) in by_group(nodes) {
        let group = gid.map(group_name).unwrap_or_default();
        table.row(match status {
            Ok(status) => vec![
                group,
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
                let mut cells = vec![group, address.clone()];
                cells.resize(10, String::new());
                cells.push(error.to_string());
                cells
            }
        });
    }
    table.write(out)?;
    for gid in gids(nodes) {
        if let Some((_, leader)) = leader_of(nodes, gid) {
            members_table(leader, out)?;
        }
    }
    Ok(())
}

/// Writes the members of a group from the leader's view.
fn members_table(leader: &NodeStatus, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "\ncluster {}, group {}, {} shards; members as the leader sees them:",
        leader.cluster_id,
        group_name(leader.gid),
        leader.shards
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nodes::fixtures::{self, one_group, two_groups};

    #[test]
    fn status_matches_the_golden() {
        let mut out = Vec::new();
        for nodes in [one_group(), two_groups()] {
            for format in [Format::Table, Format::Json] {
                write_status(&nodes, format, &mut out).unwrap();
                out.push(b'\n');
            }
        }
        crate::golden::check("status.txt", std::str::from_utf8(&out).unwrap());
    }

    #[test]
    fn copied_nodes_and_mixed_clusters_are_told() {
        let failure = outlook(&fixtures::mixed()).unwrap_err();
        assert_eq!(failure.exit(), Exit::Failed);
        let text = failure.to_string();
        let copied = "127.0.0.1:7401 and 127.0.0.1:7404 have the same identity";
        assert!(text.contains(copied), "{text}");
        let clusters = "several clusters with a group g1: demo (127.0.0.1:7401, 127.0.0.1:7402, 127.0.0.1:7404) and other (127.0.0.1:7403)";
        assert!(text.contains(clusters), "{text}");
    }

    #[test]
    fn a_group_without_a_leader_is_unavailable() {
        assert_eq!(outlook(&one_group()).unwrap(), Exit::Ok);
        let failure = outlook(&two_groups()).unwrap_err();
        assert_eq!(failure.exit(), Exit::Unavailable);
        assert!(failure.to_string().contains("no node of ctrl"), "{failure}");
        let nobody = outlook(&Nodes::new()).unwrap_err();
        assert_eq!(nobody.exit(), Exit::Unavailable);
    }
}
