//! The view that controllers and groups have of the shards, for the commands that show shards or wait for them.

use std::collections::BTreeMap;

use shardkv_client::{
    Client, ConfigNum, ConfigView, Error, Gid, GroupShards, Role, ShardId, ShardSet, ShardState,
};

use crate::exit::Failure;
use crate::nodes::configured;

/// The shards of each group from the group's own report, or the error of the call.
pub(crate) type Groups = BTreeMap<Gid, Result<GroupShards, Error>>;

/// The progress of one group with the shards that it receives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct GroupView {
    /// The configuration that the group has accepted.
    pub(crate) config_num: ConfigNum,
    /// The shards that the group is pulling, with the bytes that have arrived.
    pub(crate) pulling: BTreeMap<ShardId, u64>,
}

impl GroupView {
    fn of(group: &GroupShards) -> Self {
        let rows = group.shards.iter();
        let pulling = rows.filter(|row| row.state == ShardState::Pulling);
        Self {
            config_num: group.config_num,
            pulling: pulling.map(|row| (row.shard, row.pulled_bytes)).collect(),
        }
    }
}

/// Asks every group that is part of the cluster, or left and is not drained yet, for its shards.
pub(crate) async fn groups(client: &Client, view: &ConfigView, exact: bool) -> Groups {
    configured(client, view.config.num()).await;
    let mut groups = client.shards(&ShardSet::default(), exact).await;
    for group in &view.progress {
        // A group that left is missing in the client's configuration. The configuration before has its addresses.
        let left_in = group.left_in.filter(|_| !view.is_drained(group.gid));
        let Some(before) = left_in.and_then(|num| num.0.checked_sub(1)) else {
            continue;
        };
        let said = match client.controller().query(Some(ConfigNum(before))).await {
            Ok(view) => {
                let addresses = view.config.groups().get(&group.gid);
                ask_group(client, addresses.map_or(&[], Vec::as_slice), exact).await
            }
            Err(error) => Err(error),
        };
        groups.insert(group.gid, said);
    }
    groups
}

/// Asks the leader among these nodes for the shards of its group.
async fn ask_group(
    client: &Client,
    addresses: &[String],
    exact: bool,
) -> Result<GroupShards, Error> {
    for address in addresses {
        let Ok(admin) = client.admin(address) else {
            continue;
        };
        match admin.status().await {
            Ok(status) if status.role == Role::Leader => {
                return admin.shards(&ShardSet::default(), exact).await;
            }
            _ => {}
        }
    }
    Err(Error::NotLeader { leader: None })
}

/// Returns the progress of every group that answers.
pub(crate) async fn views(client: &Client, view: &ConfigView) -> BTreeMap<Gid, GroupView> {
    configured(client, view.config.num()).await;
    let groups = client.shards(&ShardSet::default(), false).await;
    let said = groups.into_iter();
    said.filter_map(|(gid, group)| Some((gid, GroupView::of(&group.ok()?))))
        .collect()
}

/// Returns true if every group has completed the hand-offs of the view's configuration.
pub(crate) fn is_settled(view: &ConfigView) -> bool {
    view.is_settled(view.config.num())
}

/// Refuses a group that is not part of the cluster and has nothing left to do.
pub(crate) fn check_known(view: &ConfigView, gid: Gid) -> Result<(), Failure> {
    let leaving = view.progress.iter().any(|group| group.gid == gid);
    if leaving || view.config.groups().contains_key(&gid) {
        return Ok(());
    }
    Err(Failure::usage(
        format!("there is no group {gid}"),
        "`shardkv config query` lists the groups",
    ))
}
