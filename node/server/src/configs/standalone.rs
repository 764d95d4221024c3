//! The configuration of a store without controllers.

use std::collections::BTreeMap;
use std::sync::Arc;

use shardctrler::GroupKind;
use types::{ConfigNum, ShardConfig};

use super::Known;
use crate::lifecycle::Lifecycle;
use crate::peers::Peers;

/// Returns the one configuration of a store without controllers: this node's group owns all shards. Returns `None` before
/// the node knows its group, and for groups of other kinds.
pub(crate) fn config(lifecycle: &Lifecycle, peers: &Peers) -> Option<Known> {
    let view = lifecycle.view();
    let genesis = view.genesis?;
    if genesis.kind != GroupKind::Standalone {
        return None;
    }
    let status = view.status?;
    let voters = status.membership.voters();
    let addresses: Vec<String> = voters.filter_map(|node| peers.address_of(node)).collect();
    let gid = peers.identity().gid();
    let groups = BTreeMap::from([(gid, addresses)]);
    let config = ShardConfig::new(ConfigNum(1), groups, [(genesis.shards, gid)]).ok()?;
    Some(Known {
        cluster: peers.identity().cluster()?,
        config: Arc::new(config),
    })
}
