//! Administration: `status`, `transfer-leader` and `member` of nodes, `config`, `shards` and `keyspace` of the cluster.

use std::io::Write;
use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value, json};
use shardkv_client::{Admin, Client, Error, Gid, MembershipChange, NodeId, NodeStatus, Role};
use tokio::time::Instant;

use crate::client_error::{NEXT_UNREACHABLE, connect_failure};
use crate::config::ConfigCommand;
use crate::exit::{Exit, Failure};
use crate::global::GlobalArgs;
use crate::keyspace::KeyspaceCommand;
use crate::nodes::{Nodes, all_nodes, gids, group_name, leader_of};
use crate::output::{Format, json_line};
use crate::parse::parse_group_name;
use crate::shards::ShardsArgs;
use crate::status::{healthy, outlook, write_status};

/// The commands of administration.
#[derive(Debug, Subcommand)]
pub(crate) enum AdminCommand {
    /// Show every node of every group: role, term, log, members, disk use, trouble
    #[command(
        after_help = "Examples:\n  shardkv status\n  shardkv status --output json | jq '.nodes[] | select(.role == \"leader\")'\n  shardkv status --here                   health check: of the node at --endpoints alone\n\nExit code 5: a group knows no leader, or no node answered."
    )]
    Status {
        /// Ask only the nodes that --endpoints names, and fail unless each answers and knows a leader: a health check
        #[arg(long)]
        here: bool,
    },
    /// Transfer leadership to another member
    #[command(
        after_help = "Examples:\n  shardkv transfer-leader                 to the member whose log is furthest\n  shardkv transfer-leader n3f2a9c\n  shardkv transfer-leader 127.0.0.1:7402\n  shardkv transfer-leader --group g2       where there are several groups"
    )]
    TransferLeader {
        /// The member: its id as `status` shows it, or its address; default: the one whose log is furthest
        member: Option<String>,
        /// The group, as `status` shows it, if there are several and no member is named
        #[arg(long, short, value_parser = parse_group_name)]
        group: Option<Gid>,
    },
    /// Change a group's members, one at a time
    Member {
        #[command(subcommand)]
        change: MemberCommand,
        /// The group, as `status` shows it; default: the group of the member
        #[arg(long, short, global = true, value_parser = parse_group_name)]
        group: Option<Gid>,
    },
    /// Show and change the groups and the shards that they own
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Show the owner of each shard, the progress of hand-offs, and the reason why a hand-off waits
    Shards(ShardsArgs),
    /// Create, list, change and delete keyspaces: the stores that etcd's clients use
    Keyspace {
        #[command(subcommand)]
        command: KeyspaceCommand,
    },
}

impl AdminCommand {
    /// Returns true if the command changes nothing.
    pub(crate) fn only_asks(&self) -> bool {
        match self {
            Self::Status { .. } | Self::Shards(_) => true,
            Self::Config { command } => command.only_asks(),
            Self::Keyspace { command } => command.only_asks(),
            Self::TransferLeader { .. } | Self::Member { .. } => false,
        }
    }
}

/// One step of a membership change.
#[derive(Debug, Subcommand)]
pub(crate) enum MemberCommand {
    /// Add a node as a learner, which receives the log and has no vote
    #[command(
        after_help = "Examples:\n  shardkv member add-learner 127.0.0.1:7404\n  shardkv member add-learner 127.0.0.1:7404 --node n3f2a9c"
    )]
    AddLearner {
        /// The node's address, as host:port
        address: String,
        /// The node's id; default: the node itself is asked
        #[arg(long)]
        node: Option<String>,
    },
    /// Promote a learner that has caught up to a voter
    Promote {
        /// The member: its id as `status` shows it, or its address
        member: String,
    },
    /// Remove a member
    Remove {
        /// The member: its id as `status` shows it, or its address
        member: String,
        /// Remove it even if the voters that answer are no quorum then: the group stops until others return, perhaps for ever
        #[arg(long)]
        without_live_quorum: bool,
    },
}

/// Runs `command` and writes the result to `out`.
pub(crate) async fn run(
    command: &AdminCommand,
    client: &Client,
    global: &GlobalArgs,
    out: &mut dyn Write,
) -> Result<Exit, Failure> {
    match command {
        AdminCommand::Config { command } => crate::config::run(command, client, global, out).await,
        AdminCommand::Keyspace { command } => {
            crate::keyspace::run(command, client, global, out).await
        }
        AdminCommand::Shards(args) => crate::shards::run(args, client, global, out).await,
        AdminCommand::Status { here: false } => {
            let nodes = all_nodes(client).await;
            write_status(&nodes, global.output, out)?;
            outlook(&nodes)
        }
        AdminCommand::Status { here: true } => {
            let nodes = ask_each(client, &global.endpoints).await?;
            write_status(&nodes, global.output, out)?;
            healthy(&nodes)
        }
        AdminCommand::TransferLeader { member, group } => {
            let (group, target) = match member {
                Some(member) => {
                    let (gid, id) = find_member(&all_nodes(client).await, member, *group)?;
                    (gid, Some(id))
                }
                None => (*group, None),
            };
            let leader = ask_leader(client, global, group, async |admin: Admin| {
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
        AdminCommand::Member { change, group } => {
            let (group, change) = membership_change(client, change, *group).await?;
            let change = &change;
            let index = ask_leader(client, global, group, async |admin: Admin| {
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

/// Asks only these nodes for their status.
async fn ask_each(client: &Client, addresses: &[String]) -> Result<Nodes, Failure> {
    let mut nodes = Nodes::new();
    for address in addresses {
        let admin = client.admin(address);
        let admin = admin.map_err(|error| connect_failure(&error))?;
        nodes.push((address.clone(), admin.status().await));
    }
    Ok(nodes)
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

/// Asks the leader of a group, and again after a change of leader or while none is known, until the timeout. A request
/// whose outcome is unknown is not repeated.
async fn ask_leader<T>(
    client: &Client,
    global: &GlobalArgs,
    group: Option<Gid>,
    ask: impl AsyncFn(Admin) -> Result<T, Error>,
) -> Result<T, Failure> {
    let deadline = Instant::now() + Duration::from_millis(global.timeout_ms);
    let pause = Duration::from_millis(50);
    loop {
        let nodes = all_nodes(client).await;
        let late = Instant::now() + pause >= deadline;
        match find_leader(&nodes, group) {
            Ok(address) => {
                let admin = client.admin(&address);
                let admin = admin.map_err(|error| connect_failure(&error))?;
                match ask(admin).await {
                    Ok(answer) => return Ok(answer),
                    Err(error) => {
                        let moved =
                            matches!(error, Error::NotLeader { .. } | Error::Unavailable { .. });
                        if !moved || error.maybe_applied() || late {
                            return Err(error.into());
                        }
                    }
                }
            }
            Err(failure) if late || failure.exit() == Exit::Usage => return Err(failure),
            Err(_) => {}
        }
        tokio::time::sleep(pause).await;
    }
}

/// The address of a group's leader. The group may be left out when there is only one.
fn find_leader(nodes: &Nodes, group: Option<Gid>) -> Result<String, Failure> {
    let groups = gids(nodes);
    let Some(first) = groups.first() else {
        let message = "no node answered";
        return Err(Failure::new(Exit::Unavailable, message, NEXT_UNREACHABLE));
    };
    if group.is_none() && groups.len() > 1 {
        let names: Vec<String> = groups.into_iter().map(group_name).collect();
        return Err(Failure::usage(
            "there are several groups",
            format!("name one of {} with --group", names.join(", ")),
        ));
    }
    let gid = group.unwrap_or(*first);
    let leader = leader_of(nodes, gid).map(|(address, _)| address.clone());
    leader.ok_or_else(|| {
        Failure::new(
            Exit::Unavailable,
            format!("no node of {} leads", group_name(gid)),
            "look at `shardkv status`",
        )
    })
}

/// Converts the arguments to a membership change and its group. `None`: the group is not known.
async fn membership_change(
    client: &Client,
    change: &MemberCommand,
    group: Option<Gid>,
) -> Result<(Option<Gid>, MembershipChange), Failure> {
    match change {
        MemberCommand::AddLearner { address, node } => {
            let (group, node) = if let Some(node) = node {
                (group, parse_node(node).ok_or_else(|| bad_member(node))?)
            } else {
                let admin = client
                    .admin(address)
                    .map_err(|error| connect_failure(&error))?;
                let status = admin.status().await.map_err(|error| {
                    Failure::from(error)
                        .with_next("start the node first, or give its id with --node")
                })?;
                (group.or(Some(status.gid)), status.node_id)
            };
            let change = MembershipChange::AddLearner {
                node,
                address: address.clone(),
            };
            Ok((group, change))
        }
        MemberCommand::Promote { member } => {
            let (group, node) = find_member(&all_nodes(client).await, member, group)?;
            Ok((group, MembershipChange::Promote(node)))
        }
        MemberCommand::Remove {
            member,
            without_live_quorum,
        } => {
            let (group, node) = find_member(&all_nodes(client).await, member, group)?;
            let change = if *without_live_quorum {
                MembershipChange::RemoveWithoutLiveQuorum(node)
            } else {
                MembershipChange::Remove(node)
            };
            Ok((group, change))
        }
    }
}

/// The member that an argument names by id or by address, and its group: as given, or as a node tells.
fn find_member(
    nodes: &Nodes,
    name: &str,
    group: Option<Gid>,
) -> Result<(Option<Gid>, NodeId), Failure> {
    // Several nodes may have used one address. The leader knows which of them is a member now.
    let mut views: Vec<&NodeStatus> = nodes
        .iter()
        .filter_map(|(_, status)| status.as_ref().ok())
        .filter(|view| group.is_none_or(|gid| view.gid == gid))
        .collect();
    views.sort_by_key(|view| std::cmp::Reverse((view.role == Role::Leader, view.term)));
    let id = parse_node(name);
    let mut members = views
        .iter()
        .flat_map(|view| view.members.iter().map(|member| (view.gid, member)));
    let found = members.find(|(_, it)| it.address == name || Some(it.node_id) == id);
    match (found, id) {
        (Some((gid, member)), _) => Ok((Some(gid), member.node_id)),
        // The leader of the group refuses a node that is not a member.
        (None, Some(id)) => Ok((group, id)),
        (None, None) => Err(bad_member(name)),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nodes::fixtures::two_groups;

    #[test]
    fn a_group_is_named_where_there_are_several() {
        let nodes = two_groups();
        let failure = find_leader(&nodes, None).unwrap_err();
        assert_eq!(failure.exit(), Exit::Usage);
        assert!(failure.to_string().contains("ctrl, g1"), "{failure}");
        let leader = find_leader(&nodes, Some(Gid(1))).unwrap();
        assert_eq!(leader, "127.0.0.1:7401");
        let failure = find_leader(&nodes, Some(Gid(7))).unwrap_err();
        assert_eq!(failure.exit(), Exit::Unavailable);
    }

    #[test]
    fn members_are_found_by_id_and_by_address() {
        let nodes = two_groups();
        let member = (Some(Gid(1)), NodeId(0xbeef));
        assert_eq!(find_member(&nodes, "127.0.0.1:7402", None).unwrap(), member);
        assert_eq!(find_member(&nodes, "nbeef", None).unwrap(), member);
        let stranger = find_member(&nodes, "nbeef", Some(Gid(2))).unwrap();
        assert_eq!(stranger, (Some(Gid(2)), NodeId(0xbeef)));
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
                find_member(&nodes, bad, None).unwrap_err().exit(),
                Exit::Usage,
                "{bad}"
            );
        }
    }
}
