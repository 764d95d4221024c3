//! Finds what has not recovered yet in the liveness phase.

use std::collections::BTreeSet;

use raft::{Index, ProgressState};
use shardkv::ShardState;
use types::{ConfigNum, Gid, NodeId, ShardConfig, ShardId, ShardSet};

use super::World;
use crate::client::Client;
use crate::group::GroupId;
use crate::keyspace_client::KeyspaceClient;
use crate::mover::Mover;

/// The most entries that a member lacks that has caught up while clients write.
const CAUGHT_UP_ENTRIES: u64 = 50;

impl World {
    /// Returns a group that left and is drained, but from which another group still awaits the answer to a delete.
    pub(super) fn drained_and_awaited(&self) -> Option<GroupId> {
        let mut groups = 0..self.groups.len();
        groups.find(|group| {
            let gid = self.groups[*group].gid;
            self.awaits(gid).is_some() && self.is_drained(gid)
        })
    }

    /// Returns true if the controllers' leader no longer lists a group.
    fn is_drained(&self, gid: Gid) -> bool {
        let controllers = self.groups.iter().position(|it| it.gid == Gid::NONE);
        let leader = controllers.and_then(|controllers| self.leader(controllers));
        let process = leader.and_then(|leader| self.hosts[leader].process.as_ref());
        let machine = process.and_then(|process| process.machine().machine().as_ctrl());
        machine.is_some_and(|machine| !machine.progress().contains_key(&gid))
    }

    /// Returns a group that awaits the answer of `source` to a delete.
    fn awaits(&self, source: Gid) -> Option<Gid> {
        let gids = self.groups.iter().map(|group| group.gid);
        let mut ownerships = gids.filter_map(|gid| Some((gid, self.shard_checker.group(gid)?)));
        let awaits =
            ownerships.find(|(_, it)| it.pending_deletes.values().any(|gid| *gid == source));
        awaits.map(|(gid, _)| gid)
    }

    /// Describes what has not recovered yet.
    pub(super) fn unrecovered(&self) -> Option<String> {
        let mut groups = 0..self.groups.len();
        if let Some(missing) = groups.find_map(|group| self.unrecovered_in(group)) {
            return Some(missing);
        }
        let busy = self.clients.iter().find(|client| !client.is_idle());
        let busy = busy.map(Client::describe);
        let busy = busy.or_else(|| self.busy_keyspace_client());
        busy.or_else(|| self.unsettled())
    }

    fn busy_keyspace_client(&self) -> Option<String> {
        let mut clients = self.keyspace_clients.iter();
        let busy = clients.find(|client| !client.is_idle());
        busy.map(KeyspaceClient::describe)
    }

    /// Describes a member that has not caught up with its leader, while clients write.
    pub(super) fn behind_under_load(&self) -> Option<String> {
        let mut groups = 0..self.groups.len();
        groups.find_map(|group| {
            let gid = self.groups[group].gid;
            let leader = self.leader(group).and_then(|leader| self.status(leader));
            let Some(status) = leader else {
                return Some(format!("{gid} has no leader"));
            };
            let voters: BTreeSet<_> = status.membership.voters().collect();
            if voters != self.nodes_of(group) {
                return Some(format!("the members of {gid} are {}", status.membership));
            }
            let behind = |(_, matched, state): &&(NodeId, Index, ProgressState)| {
                *state != ProgressState::Replicate
                    || status.last_index.since(*matched) > CAUGHT_UP_ENTRIES
            };
            let (node, matched, state) = status.progress.iter().find(behind)?;
            let last = status.last_index;
            Some(format!("{node} matches {matched} of {last}, {state:?}"))
        })
    }

    /// Describes what has not recovered yet in a group.
    fn unrecovered_in(&self, group: GroupId) -> Option<String> {
        let gid = self.groups[group].gid;
        let Some(leader) = self.leader(group) else {
            return Some(format!("{gid} has no leader"));
        };
        let Some(status) = self.status(leader) else {
            return Some("the leader is gone".to_owned());
        };
        let voters: BTreeSet<_> = status.membership.voters().collect();
        if voters != self.nodes_of(group) {
            return Some(format!(
                "the members of {gid} are {}, present are {:?}",
                status.membership,
                self.nodes_of(group)
            ));
        }
        for host in &self.hosts[self.groups[group].hosts.clone()] {
            let Some(other) = self.status(host.number) else {
                return Some(format!("host {} is down", host.number));
            };
            if !host.open_requests.is_empty() {
                return Some(format!(
                    "host {} owes answers to {:x?}",
                    host.number, host.open_requests
                ));
            }
            if other.leader != Some(status.node) || other.last_applied != status.last_index {
                return Some(format!(
                    "host {} applied {} of {}, in {} under {:?}",
                    host.number, other.last_applied, status.last_index, other.term, other.leader
                ));
            }
        }
        None
    }

    /// Describes a shard or a group that hasn't reached the latest configuration; `None` if all have.
    pub(crate) fn unsettled(&self) -> Option<String> {
        if let Some(busy) = self
            .config_clients
            .iter()
            .find(|config_client| !config_client.is_idle())
        {
            return Some(busy.describe());
        }
        let config = self.shard_checker.config()?;
        for group in self.groups.iter().filter(|group| group.gid != Gid::NONE) {
            let gid = group.gid;
            let Some(ownership) = self.shard_checker.group(gid) else {
                return Some(format!("{gid} has no configuration"));
            };
            // It keeps what it had, and serves nothing.
            if self.shard_checker.is_forgotten(gid) {
                let mut states = ownership.shards.values().map(|shard| &shard.state);
                let fenced = states.all(|state| matches!(state, ShardState::Fenced { .. }));
                if ownership.config != config.num() || !fenced {
                    return Some(format!(
                        "{gid} is forgotten, and has {:?}",
                        ownership.shards
                    ));
                }
                continue;
            }
            if ownership.config != config.num() || ownership.settled() != config.num() {
                let leader = self.leader(self.hosts[group.hosts.start].group);
                let mover = leader.and_then(|leader| self.hosts[leader].mover.as_ref());
                return Some(format!(
                    "{gid} has settled {} of {}, of which {} are accepted: {:?}, pending deletes {:?}; running actions: {}",
                    ownership.settled(),
                    config.num(),
                    ownership.config,
                    ownership.shards,
                    ownership.pending_deletes,
                    mover.map_or_else(String::new, Mover::describe)
                ));
            }
            let serves: ShardSet = ownership.shards.keys().copied().collect();
            if serves != config.owned_by(gid) {
                return Some(format!(
                    "{gid} serves {serves}, and owns {}",
                    config.owned_by(gid)
                ));
            }
        }
        let moving = (0..config.shards()).map(ShardId);
        let mut moving = moving.filter(|shard| config.row(*shard).is_moving());
        if let Some(shard) = moving.next() {
            return Some(self.describe_move(config, shard));
        }
        if let Some((gid, _)) = config.groups().iter().find(|(_, group)| group.leaving) {
            return Some(format!("{gid} is leaving and not drained"));
        }
        self.unreported(config.num())
    }

    /// Describes a shard whose owner isn't its target.
    fn describe_move(&self, config: &ShardConfig, shard: ShardId) -> String {
        let row = config.row(shard);
        let ownership = self.shard_checker.group(row.target);
        let state = ownership.and_then(|ownership| ownership.state(shard));
        let hosts = self.groups.iter().find(|group| group.gid == row.target);
        let leader = hosts.and_then(|group| self.leader(self.hosts[group.hosts.start].group));
        let mover = leader.and_then(|leader| self.hosts[leader].mover.as_ref());
        format!(
            "{shard} isn't at its target: {row:?}, there {state:?}, running actions: {}",
            mover.map_or_else(String::new, Mover::describe)
        )
    }

    /// Describes a group that the controllers take for unsettled.
    fn unreported(&self, latest: ConfigNum) -> Option<String> {
        let group = self
            .groups
            .iter()
            .position(|group| group.gid == Gid::NONE)?;
        let leader = self.hosts[self.leader(group)?].process.as_ref()?;
        let progress = leader.machine().machine().as_ctrl()?.progress();
        let mut late = progress
            .iter()
            .filter(|(_, progress)| progress.settled != latest);
        let (gid, progress) = late.next()?;
        Some(format!(
            "the controllers have {progress:?} of {gid}, at {latest}"
        ))
    }

    /// Describes what has not recovered although it doesn't need the groups that are down.
    pub(super) fn unrecovered_without(&self) -> Option<String> {
        if let Some(busy) = self
            .config_clients
            .iter()
            .find(|config_client| !config_client.is_idle())
        {
            return Some(busy.describe());
        }
        let gone = self.down.iter().map(|group| self.groups[*group].gid);
        let gone: BTreeSet<Gid> = gone.collect();
        let config = self.shard_checker.config()?;
        for group in &self.groups[..self.groups.len() - 1] {
            let ownership = self.shard_checker.group(group.gid);
            let accepted = ownership.map_or(ConfigNum(0), |it| it.config);
            if !gone.contains(&group.gid) && accepted != config.num() {
                return Some(format!(
                    "{} accepted {accepted} of {}",
                    group.gid,
                    config.num()
                ));
            }
        }
        for source in &gone {
            if let Some(gid) = self.awaits(*source)
                && !gone.contains(&gid)
                && self.is_drained(*source)
            {
                return Some(format!(
                    "{gid} awaits an answer of {source}, which is drained"
                ));
            }
        }
        let shards = (0..config.shards()).map(ShardId);
        let needs_none = |shard: &ShardId| {
            let mut gone = gone.iter();
            !gone.any(|gid| self.shard_checker.concerns(*gid, *shard))
        };
        let mut free = shards.filter(needs_none);
        let waits = free.find(|shard| {
            let row = config.row(*shard);
            row.is_moving() || !self.shard_checker.is_served(*shard, row.owner)
        })?;
        let row = config.row(waits);
        if row.is_moving() {
            return Some(self.describe_move(config, waits));
        }
        Some(format!("{waits} is not served by its owner {}", row.owner))
    }
}
