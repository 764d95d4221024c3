//! The nodes of a cluster: their statuses, their groups and the groups' leaders.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shardkv_client::{Client, ConfigNum, Error, Gid, NodeStatus, Role};
use tokio::time::timeout;

/// Time for the client to receive a configuration that a controller has already returned.
const CONFIG_PATIENCE: Duration = Duration::from_secs(2);

/// The status of every node, or the error of the call, sorted by address.
pub(crate) type Nodes = Vec<(String, Result<NodeStatus, Error>)>;

/// The name of a group in tables: `ctrl` for the controllers, `g` and the gid for others.
pub(crate) fn group_name(gid: Gid) -> String {
    match gid {
        Gid::NONE => "ctrl".to_owned(),
        gid => gid.to_string(),
    }
}

pub(crate) fn answers(nodes: &Nodes) -> impl Iterator<Item = &NodeStatus> {
    nodes.iter().filter_map(|(_, status)| status.as_ref().ok())
}

/// The groups of the nodes that answered; the controllers first.
pub(crate) fn gids(nodes: &Nodes) -> BTreeSet<Gid> {
    answers(nodes).map(|status| status.gid).collect()
}

/// The address and status of the node that reports itself as leader of a group, in the highest term.
pub(crate) fn leader_of(nodes: &Nodes, gid: Gid) -> Option<(&String, &NodeStatus)> {
    nodes
        .iter()
        .filter_map(|(address, status)| Some((address, status.as_ref().ok()?)))
        .filter(|(_, status)| status.gid == gid && status.role == Role::Leader)
        .max_by_key(|(_, status)| status.term)
}

/// The group of a node: from its own status, or else from another node that lists it as a member.
pub(crate) fn group_of(
    nodes: &Nodes,
    address: &str,
    status: &Result<NodeStatus, Error>,
) -> Option<Gid> {
    if let Ok(status) = status {
        return Some(status.gid);
    }
    let has = |status: &&NodeStatus| status.members.iter().any(|it| it.address == address);
    answers(nodes).find(has).map(|status| status.gid)
}

/// Returns the contradictions between the nodes: several with one identity, or several clusters with one group.
pub(crate) fn contradictions(nodes: &Nodes) -> Vec<String> {
    let mut identities: BTreeMap<_, Vec<&str>> = BTreeMap::new();
    let mut clusters: BTreeMap<Gid, BTreeMap<&str, Vec<&str>>> = BTreeMap::new();
    for (address, status) in nodes {
        let Ok(status) = status else { continue };
        let same = identities.entry(status.node_id).or_default();
        same.push(address);
        if !status.cluster_id.is_empty() {
            let of_gid = clusters.entry(status.gid).or_default();
            let members = of_gid.entry(&status.cluster_id).or_default();
            members.push(address);
        }
    }
    let twice = identities.into_iter().filter(|(_, at)| at.len() > 1);
    let twice = twice.map(|(node, at)| {
        let at = at.join(" and ");
        format!(
            "{at} have the same identity, {node}: a data directory was copied; stop all but one of them"
        )
    });
    let mixed = clusters.into_iter().filter(|(_, ids)| ids.len() > 1);
    let mixed = mixed.map(|(gid, ids)| {
        let ids = ids
            .iter()
            .map(|(id, at)| format!("{id} ({})", at.join(", ")));
        let ids: Vec<String> = ids.collect();
        format!(
            "there are several clusters with a group {}: {}; give --endpoints of one of them",
            group_name(gid),
            ids.join(" and ")
        )
    });
    twice.chain(mixed).collect()
}

/// Waits until the client knows configuration `num`, for at most [`CONFIG_PATIENCE`].
pub(crate) async fn configured(client: &Client, num: ConfigNum) {
    let mut configs = client.configs();
    let known = configs.wait_for(|config| config.as_ref().is_some_and(|it| it.num() >= num));
    // On a timeout the caller continues with the configuration that the client has.
    let _ = timeout(CONFIG_PATIENCE, known).await;
}

/// Asks every node of every known group for its status.
pub(crate) async fn all_nodes(client: &Client) -> Nodes {
    let known = client.config().is_some();
    let nodes = client.status_all().await;
    if known || nodes.iter().all(|(_, status)| status.is_err()) {
        return nodes;
    }
    // The nodes of other groups come from the configuration, which the nodes that answered know.
    configured(client, ConfigNum(0)).await;
    client.status_all().await
}

#[cfg(test)]
pub(crate) mod fixtures {
    use shardkv_client::{MemberStatus, NodeId};

    use super::*;

    /// A node of a group, which has the address `127.0.0.1:740ID`.
    fn node(gid: u64, id: u64, role: Role, leader: Option<u64>) -> NodeStatus {
        NodeStatus {
            version: "0.1.0".into(),
            cluster_id: "demo".into(),
            gid: Gid(gid),
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
            disk_free_bytes: 0,
            disk_total_bytes: 0,
            disk_reserve_bytes: 0,
            incoming_bytes: 0,
            disk_full: id == 2,
            trouble: None,
            kind: shardkv_client::GroupKind::Shards,
            config_num: ConfigNum(0),
            settled: ConfigNum(0),
        }
    }

    fn refused(address: &str) -> (String, Result<NodeStatus, Error>) {
        let error = Error::Unavailable {
            address: address.to_owned(),
            message: "connection refused".into(),
            maybe_applied: false,
        };
        (address.to_owned(), Err(error))
    }

    fn says(status: NodeStatus) -> (String, Result<NodeStatus, Error>) {
        (status.address.clone(), Ok(status))
    }

    /// Nodes of two clusters, two of them with one identity.
    pub(crate) fn mixed() -> Nodes {
        let stranger = NodeStatus {
            cluster_id: "other".into(),
            ..node(1, 3, Role::Leader, Some(3))
        };
        let copy = NodeStatus {
            address: "127.0.0.1:7404".into(),
            ..node(1, 1, Role::Follower, Some(1))
        };
        vec![
            says(node(1, 1, Role::Leader, Some(1))),
            says(node(1, 2, Role::Follower, Some(1))),
            says(stranger),
            says(copy),
        ]
    }

    /// A standalone group: a leader, a follower, and a stranger that can't be reached.
    pub(crate) fn one_group() -> Nodes {
        vec![
            says(node(1, 1, Role::Leader, Some(1))),
            says(node(1, 2, Role::Follower, Some(1))),
            refused("127.0.0.1:7403"),
        ]
    }

    /// A group with a leader that knows of a member which can't be reached, and a controller without a leader.
    pub(crate) fn two_groups() -> Nodes {
        vec![
            says(node(1, 1, Role::Leader, Some(1))),
            refused("127.0.0.1:7402"),
            says(NodeStatus {
                members: Vec::new(),
                ..node(0, 5, Role::Candidate, None)
            }),
        ]
    }
}
