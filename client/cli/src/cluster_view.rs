//! The view that controllers and groups have of the shards, for the commands that show shards or wait for them.

use std::collections::BTreeMap;

use shardkv_client::{
    Client, ConfigNum, ConfigView, Error, Gid, GroupShards, ShardId, ShardSet, ShardState,
    ShardStatus,
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
    /// The shards that are on their way to the group, with the bytes that have arrived.
    pub(crate) pulling: BTreeMap<ShardId, u64>,
}

impl GroupView {
    fn of(group: &GroupShards) -> Self {
        let rows = group.shards.iter();
        let arrives =
            |row: &&ShardStatus| matches!(row.state, ShardState::Copying | ShardState::Pulling);
        let pulling = rows.filter(arrives);
        Self {
            config_num: group.config_num,
            pulling: pulling.map(|row| (row.shard, row.pulled_bytes)).collect(),
        }
    }
}

/// Asks every group that is part of the cluster, leaving ones included, for its shards.
pub(crate) async fn groups(client: &Client, view: &ConfigView, exact: bool) -> Groups {
    configured(client, view.config.num()).await;
    client.shards(&ShardSet::default(), exact).await
}

/// Returns the progress of every group that answers.
pub(crate) async fn views(client: &Client, view: &ConfigView) -> BTreeMap<Gid, GroupView> {
    configured(client, view.config.num()).await;
    let groups = client.shards(&ShardSet::default(), false).await;
    let said = groups.into_iter();
    said.filter_map(|(gid, group)| Some((gid, GroupView::of(&group.ok()?))))
        .collect()
}

/// Returns true if every shard is at its target, and every group has completed the hand-offs of the view's configuration.
pub(crate) fn is_settled(view: &ConfigView) -> bool {
    let num = view.config.num();
    view.is_settled(num) && view.is_reached(num)
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
