//! The liveness phase of a world: faults stop, and the cluster must recover within ten simulated seconds.
//!
//! Safety without liveness would be cheap: a cluster that does nothing violates no invariant. So each group must have a
//! leader; every operation of every client must finish; every host must be a voter, and those with lost disks must
//! rejoin; and all replicas must hold the same state at the same index. Then a client writes to every shard and reads every key once
//! more, and the checkers search the whole history.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use raft::MembershipChange;
use shardkv::Write;
use types::{Gid, shard_of};

use super::{Phase, World};
use crate::client::{ScriptedOperation, key};
use crate::event::Event;
use crate::group::GroupId;
use crate::network::{HostId, LinkOptions};
use crate::queue::{MILLI, Micros, SECOND};
use crate::violation::{Checked, Violation};

/// The longest time of the recovery, without the part that [`World::recovery`] adds.
const RECOVERY_LIMIT: Micros = 10 * SECOND;
/// The longest time in which a shard's rows of keyspaces move.
const ROWS_LIMIT: Micros = 10 * SECOND;
/// The interval between two checks of the recovery.
const CHECK_INTERVAL: Micros = 50 * MILLI;
/// The time for which clients start operations after the faults end.
const CLIENTS_ACTIVE_FOR: Micros = 500 * MILLI;

impl World {
    /// Stops all faults and begins the liveness phase.
    pub(super) fn begin_liveness_phase(&mut self) -> Checked {
        self.unsettled_configs = self.count_unsettled();
        self.phase_since = self.now;
        self.phase = Phase::ClientsActive;
        if self.tracing {
            self.print("-- faults end");
        }
        self.network.heal();
        self.network.set_slow(None);
        let reordering = self.scenario.links.reordering;
        self.network.set_options(LinkOptions {
            reordering,
            snapshot_bytes_per_second: self.scenario.links.snapshot_bytes_per_second,
            ..LinkOptions::default()
        });
        let restart_all = self.rng.coin();
        self.down = self.draw_down_groups();
        let mut stay_down = BTreeSet::new();
        if !self.down.is_empty() {
            self.phase = Phase::GroupsDown;
            stay_down = self.draw_down_hosts();
        }
        for number in 0..self.hosts.len() {
            let host = &mut self.hosts[number];
            host.unreachable = false;
            host.disk_low = false;
            host.disk.end_faults();
            if let Some(process) = &mut host.process {
                process.set_disk_low(false);
            }
            let must_restart = host.process.is_none() || host.disk.is_damaged();
            if stay_down.contains(&number) {
                self.crash(number, None);
            } else if restart_all || must_restart {
                let down = self.rng.between(0, 200 * MILLI);
                self.crash(number, Some(down));
            } else if self.hosts[number].paused {
                self.resume(number)?;
            }
        }
        if self.scenario.load_lasts {
            // It is away long enough to need a snapshot.
            let away = self.rng.between(SECOND, 2 * SECOND);
            let number = self.rng.index(self.hosts.len());
            self.crash(number, Some(away));
        }
        self.queue
            .push(self.now + CHECK_INTERVAL, Event::CheckRecovery);
        Ok(())
    }

    /// Checks the recovery, and advances the phase.
    pub(super) fn check_recovery(&mut self) -> Checked {
        let since = self.now - self.phase_since;
        if self.phase == Phase::GroupsDown {
            return self.check_recovery_without(since);
        }
        if self.phase == Phase::ClientsActive
            && since >= CLIENTS_ACTIVE_FOR
            && self.scenario.load_lasts
        {
            match self.behind_under_load() {
                None => {
                    self.count("worlds that caught up under load");
                    self.scenario.load_lasts = false;
                    self.phase_since = self.now;
                }
                Some(behind) if since > self.recovery() => {
                    let detail = format!("under load: {behind}");
                    return Err(Violation::new("liveness", detail));
                }
                Some(_) => {}
            }
        } else if self.phase == Phase::ClientsActive && since >= CLIENTS_ACTIVE_FOR {
            for number in 0..self.clients.len() {
                self.clients[number].finish(self.now);
                self.plan_client(number);
            }
            for config_client in &mut self.config_clients {
                config_client.finish();
            }
            self.finish_keyspace_clients();
            self.phase = Phase::Recovering;
        }
        for group in 0..self.groups.len() {
            self.rejoin_next_host(group);
        }
        let missing = self.unrecovered();
        match (self.phase, missing) {
            (Phase::Recovering, None) => {
                let keys = last_keys(self.scenario.genesis.shards);
                self.tell_last(keys.into_iter().map(|key| {
                    let value = Bytes::from_static(b"the last write");
                    ScriptedOperation::Write(Write::Put { key, value })
                }));
                self.phase = Phase::FinalWrites;
            }
            (Phase::FinalWrites, None) => {
                let last = last_keys(self.scenario.genesis.shards);
                let keys = (0..self.scenario.client.keys).map(key);
                let gets: Vec<_> = last.into_iter().chain(keys).collect();
                self.tell_last(gets.into_iter().map(ScriptedOperation::Get));
                self.read_all_keyspaces();
                self.phase = Phase::FinalReads;
            }
            (Phase::FinalReads, None) => {
                self.phase = Phase::Done;
                return Ok(());
            }
            (_, Some(missing)) if since > self.recovery() => {
                return Err(Violation::new("liveness", missing));
            }
            _ => {}
        }
        self.queue
            .push(self.now + CHECK_INTERVAL, Event::CheckRecovery);
        Ok(())
    }

    /// Lets the first client do these operations, and no others.
    fn tell_last(&mut self, operations: impl IntoIterator<Item = ScriptedOperation>) {
        if let Some(client) = self.clients.first_mut() {
            client.script(operations);
            self.plan_client(0);
        }
    }

    /// Checks everything that doesn't need the groups that are down. Restarts all hosts once all of that has recovered.
    fn check_recovery_without(&mut self, since: Micros) -> Checked {
        if since >= CLIENTS_ACTIVE_FOR {
            for config_client in &mut self.config_clients {
                config_client.finish();
            }
        }
        for group in 0..self.groups.len() {
            if !self.down.contains(&group) {
                self.rejoin_next_host(group);
            }
        }
        match self.unrecovered_without() {
            Some(missing) if since > self.recovery() => {
                let gids = self.down.iter().map(|group| self.groups[*group].gid);
                let gids: Vec<Gid> = gids.collect();
                let detail = format!("while {gids:?} are down: {missing}");
                return Err(Violation::new("liveness", detail));
            }
            None if since >= CLIENTS_ACTIVE_FOR => {
                for _ in 0..self.down.len() {
                    self.count("groups that the others did without");
                }
                self.down.clear();
                for host in 0..self.hosts.len() {
                    self.start(host)?;
                }
                self.phase = Phase::ClientsActive;
                self.phase_since = self.now;
                self.unsettled_configs = self.count_unsettled();
            }
            _ => {}
        }
        self.queue
            .push(self.now + CHECK_INTERVAL, Event::CheckRecovery);
        Ok(())
    }

    /// Draws the groups that stay down at first, in some worlds. A drained group from which another awaits an answer is
    /// preferred.
    fn draw_down_groups(&mut self) -> BTreeSet<GroupId> {
        let Some(cluster) = &self.scenario.cluster else {
            return BTreeSet::new();
        };
        let (groups, count) = (cluster.groups, cluster.survives_without);
        if self.scenario.faults.retirements.is_some()
            && let Some(drained) = self.drained_and_awaited()
        {
            self.count("drained groups that the others did without");
            return [drained].into();
        }
        let first = self.rng.index(groups);
        (0..count).map(|at| (first + at) % groups).collect()
    }

    /// Draws the hosts that stay down as long as groups do: those of these groups, and in half of the others a minority.
    fn draw_down_hosts(&mut self) -> BTreeSet<HostId> {
        let mut down = BTreeSet::new();
        for group in 0..self.groups.len() {
            let hosts = self.groups[group].hosts.clone();
            if self.down.contains(&group) {
                down.extend(hosts);
                continue;
            }
            let membership = self.stable_membership(group);
            let voters = membership.map(|it| it.voters().collect::<BTreeSet<_>>());
            let changes = self.scenario.impatient_admin || self.admin_is_waiting(group);
            let is_whole = voters == Some(self.nodes_of(group)) && !changes;
            if hosts.len() > 2 && is_whole && self.step_rng.coin() {
                self.count("hosts that their groups did without");
                down.insert(hosts.start + self.step_rng.index(hosts.len()));
            }
        }
        down
    }

    /// Returns the number of configurations that the slowest group has not settled.
    fn count_unsettled(&self) -> u64 {
        let settled = self.groups.iter().filter_map(|group| {
            let ownership = self.shard_checker.group(group.gid)?;
            Some(ownership.settled().0)
        });
        let latest = self.shard_checker.latest().0;
        latest - settled.min().unwrap_or(latest).min(latest)
    }

    /// Returns the time limit of the recovery: ten seconds, and the longest pause of a mover for each configuration
    /// that some group had not settled when the faults ended. A shard may have to walk through all of these, from group
    /// to group, and at each step the next mover may just have begun a pause. Keyspaces add a time: their shards have hundreds of
    /// rows, and where parts are small, each row takes a round of the log.
    fn recovery(&self) -> Micros {
        let pause = self.scenario.cluster.as_ref();
        let pause = pause.map_or(0, |cluster| {
            Micros::from(cluster.mover.max_retry_ms) * MILLI
        });
        let rows = self.scenario.keyspaces.as_ref().map_or(0, |_| ROWS_LIMIT);
        RECOVERY_LIMIT + rows + pause * self.unsettled_configs
    }

    /// Requests the next membership change, as the administrator, that makes a host of `group` a voter. Where volumes came back or were
    /// exchanged, it also adds nodes at the addresses of others, and removes voters that are gone.
    fn rejoin_next_host(&mut self, group: GroupId) {
        let starts = self.scenario.first_starts.is_some();
        if starts {
            self.give_up_minority(group);
        }
        let of_leader = || self.status(self.leader(group)?).map(|it| it.membership);
        let stable = self.stable_membership(group);
        let Some(membership) = stable.or_else(|| of_leader().filter(|_| starts)) else {
            return;
        };
        for number in self.groups[group].hosts.clone() {
            let node = self.hosts[number].node;
            let change = match membership.get(node) {
                None => MembershipChange::AddLearner {
                    node,
                    address: self.hosts[number].address.clone(),
                },
                Some(_) if membership.is_voter(node) => continue,
                Some(_) => MembershipChange::Promote { node },
            };
            self.request_change(group, change);
            return;
        }
        let present = self.nodes_of(group);
        let gone = membership.voters().find(|node| !present.contains(node));
        if let Some(node) = gone.filter(|_| starts) {
            self.request_change(group, MembershipChange::Remove { node });
        }
    }
}

/// Returns a key of each shard that no client has used.
fn last_keys(shards: u32) -> Vec<Bytes> {
    let mut keys = BTreeMap::new();
    let mut number = 0u64;
    while keys.len() < shards as usize {
        let key = Bytes::from(format!("last{number}"));
        keys.entry(shard_of(&key, shards)).or_insert(key);
        number += 1;
    }
    keys.into_values().collect()
}
