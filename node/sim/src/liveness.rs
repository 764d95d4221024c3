//! The liveness phase of a world: faults stop, and the cluster must recover within ten simulated seconds.
//!
//! Safety without liveness would be cheap: a cluster that does nothing violates no invariant. So each group must have a
//! leader; every operation of every client must finish; every host must be a voter, and those with lost disks must
//! rejoin; and all replicas must hold the same state at the same index. Then a client reads every key once
//! more, and the checkers search the whole history.

use std::collections::BTreeSet;

use raft::MembershipChange;
use replica::Table;
use shardkv::Query;
use types::{ConfigNum, Gid, ShardId, ShardSet};

use crate::client::{Client, Step as ClientStep, key};
use crate::group::GroupId;
use crate::invariants::{InvariantChecker, Violation};
use crate::mover_driver::MoverDriver;
use crate::network::LinkOptions;
use crate::queue::{MILLI, Micros, SECOND};
use crate::world::{Event, Step, World};

/// The longest time of the recovery, without the part that [`World::recovery`] adds.
const RECOVERY: Micros = 10 * SECOND;
/// The interval between two probes.
const PROBE: Micros = 50 * MILLI;
/// The time for which clients start operations after the faults end.
const LAST_ORDERS: Micros = 500 * MILLI;

/// The stage of the liveness phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Faults still happen.
    #[default]
    Not,
    /// One group is down. Everything that doesn't need it must recover.
    Without(GroupId),
    /// Clients still start operations.
    Open,
    /// Clients finish their operations, and nodes rejoin.
    Recovering,
    /// A client reads each key once more.
    Reading,
}

impl World {
    /// Stops all faults and begins the liveness phase.
    pub(crate) fn end(&mut self) -> Step {
        self.ending = true;
        self.backlog = self.count_backlog();
        self.ending_since = self.now;
        self.stage = Ending::Open;
        if self.tracing {
            self.print("-- faults end");
        }
        self.network.heal();
        let reordering = self.scenario.links.reordering;
        self.network.set_options(LinkOptions {
            reordering,
            ..LinkOptions::default()
        });
        let restart_all = self.rng.coin();
        let missing = self.draw_missing();
        if let Some(group) = missing {
            self.stage = Ending::Without(group);
        }
        for number in 0..self.hosts.len() {
            let host = &mut self.hosts[number];
            host.unreachable = false;
            host.disk_low = false;
            host.disk.set_full(false);
            host.disk.disarm_crash();
            host.disk.set_slow_by(0);
            if let Some(process) = &mut host.process {
                process.set_disk_low(false);
            }
            let must_restart = host.process.is_none() || host.disk.is_damaged();
            if missing == Some(self.hosts[number].group) {
                self.crash(number, None);
            } else if restart_all || must_restart {
                let down = self.rng.between(0, 200 * MILLI);
                self.crash(number, Some(down));
            } else if self.hosts[number].paused {
                self.resume(number)?;
            }
        }
        self.queue.push(self.now + PROBE, Event::Probe);
        Ok(())
    }

    /// Checks the recovery, and advances the stage.
    pub(crate) fn probe(&mut self) -> Step {
        let since = self.now - self.ending_since;
        if let Ending::Without(group) = self.stage {
            return self.probe_without(group, since);
        }
        if self.stage == Ending::Open && since >= LAST_ORDERS {
            for number in 0..self.clients.len() {
                self.clients[number].finish(self.now);
                self.plan_client(number);
            }
            for config_client in &mut self.config_clients {
                config_client.finish();
            }
            self.stage = Ending::Recovering;
        }
        for group in 0..self.groups.len() {
            self.let_in(group);
        }
        let missing = self.missing();
        match (self.stage, missing) {
            (Ending::Recovering, None) => {
                let keys = self.scenario.client.keys;
                if let Some(client) = self.clients.first_mut() {
                    client.script((0..keys).map(|number| ClientStep::Get(key(number))));
                    self.plan_client(0);
                }
                self.stage = Ending::Reading;
            }
            (Ending::Reading, None) => {
                self.ended = true;
                return Ok(());
            }
            (_, Some(missing)) if since > self.recovery() => {
                return Err(Violation::new("liveness", missing));
            }
            _ => {}
        }
        self.queue.push(self.now + PROBE, Event::Probe);
        Ok(())
    }

    /// Returns the time limit of the recovery: ten seconds, and the longest pause of a mover for each configuration
    /// that some group had not settled when the faults ended. A shard may have to walk through all of these, from group
    /// to group, and at each step the next mover may just have begun a pause.
    fn recovery(&self) -> Micros {
        let pause = self.scenario.cluster.as_ref();
        let pause = pause.map_or(0, |cluster| {
            Micros::from(cluster.mover.max_retry_ms) * MILLI
        });
        RECOVERY + pause * self.backlog
    }

    /// Returns the number of configurations that the slowest group has not settled.
    fn count_backlog(&self) -> u64 {
        let settled = self.groups.iter().filter_map(|group| {
            let ownership = self.shard_checker.group(group.gid)?;
            Some(ownership.settled().0)
        });
        let latest = self.shard_checker.latest().0;
        latest - settled.min().unwrap_or(latest).min(latest)
    }

    /// Draws the group that stays down in the first stage, in some worlds.
    fn draw_missing(&mut self) -> Option<GroupId> {
        let cluster = self.scenario.cluster.as_ref()?;
        let group = self.rng.index(cluster.groups);
        cluster.survives_without.then_some(group)
    }

    /// Checks everything that doesn't need `group`. Restarts the group once all of that has recovered.
    fn probe_without(&mut self, group: GroupId, since: Micros) -> Step {
        if since >= LAST_ORDERS {
            for config_client in &mut self.config_clients {
                config_client.finish();
            }
        }
        for other in (0..self.groups.len()).filter(|other| *other != group) {
            self.let_in(other);
        }
        match self.missing_without(group) {
            Some(missing) if since > self.recovery() => {
                let gid = self.groups[group].gid;
                let detail = format!("while {gid} is down: {missing}");
                return Err(Violation::new("liveness", detail));
            }
            None if since >= LAST_ORDERS => {
                self.count("groups that the others did without");
                for host in self.groups[group].hosts.clone() {
                    self.start(host)?;
                }
                self.stage = Ending::Open;
                self.ending_since = self.now;
                self.backlog = self.count_backlog();
            }
            _ => {}
        }
        self.queue.push(self.now + PROBE, Event::Probe);
        Ok(())
    }

    /// Describes what has not recovered although it doesn't need `down`.
    fn missing_without(&self, down: GroupId) -> Option<String> {
        if let Some(busy) = self
            .config_clients
            .iter()
            .find(|config_client| !config_client.is_idle())
        {
            return Some(busy.describe());
        }
        let gone = self.groups[down].gid;
        let config = self.shard_checker.config()?;
        for group in &self.groups[..self.groups.len() - 1] {
            let ownership = self.shard_checker.group(group.gid);
            let accepted = ownership.map_or(ConfigNum(0), |it| it.config);
            if group.gid != gone && accepted != config.num() {
                return Some(format!(
                    "{} accepted {accepted} of {}",
                    group.gid,
                    config.num()
                ));
            }
        }
        let shards = (0..config.shards()).map(ShardId);
        let mut free = shards.filter(|shard| !self.shard_checker.concerns(gone, *shard));
        let waits =
            free.find(|shard| !self.shard_checker.is_served(*shard, config.owner(*shard)))?;
        Some(format!(
            "{waits} is not served by its owner {}",
            config.owner(waits)
        ))
    }

    /// Requests the next membership change, as the administrator, that makes a host of `group` a voter.
    fn let_in(&mut self, group: GroupId) {
        let Some(membership) = self.settled(group) else {
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
    }

    /// Describes what has not recovered yet.
    fn missing(&self) -> Option<String> {
        let mut groups = 0..self.groups.len();
        if let Some(missing) = groups.find_map(|group| self.missing_of(group)) {
            return Some(missing);
        }
        let busy = self.clients.iter().find(|client| !client.is_idle());
        let busy = busy.map(Client::describe);
        busy.or_else(|| self.unsettled())
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
            if ownership.config != config.num() || ownership.settled() != config.num() {
                let leader = self.leader(self.hosts[group.hosts.start].group);
                let mover_driver =
                    leader.and_then(|leader| self.hosts[leader].mover_driver.as_ref());
                return Some(format!(
                    "{gid} has settled {} of {}, of which {} are accepted: {:?}, owed {:?}; running actions: {}",
                    ownership.settled(),
                    config.num(),
                    ownership.config,
                    ownership.shards,
                    ownership.owed,
                    mover_driver.map_or_else(String::new, MoverDriver::describe)
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
        self.unreported(config.num())
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
            .filter(|(_, progress)| progress.settled != latest || progress.left_in.is_some());
        let (gid, progress) = late.next()?;
        Some(format!(
            "the controllers have {progress:?} of {gid}, at {latest}"
        ))
    }

    /// Describes what has not recovered yet in a group.
    fn missing_of(&self, group: GroupId) -> Option<String> {
        let gid = self.groups[group].gid;
        let Some(leader) = self.leader(group) else {
            return Some(format!("{gid} has no leader"));
        };
        let Some(status) = self.status(leader) else {
            return Some("the leader is gone".to_owned());
        };
        let voters: BTreeSet<_> = status.membership.voters().collect();
        if voters != self.present(group) {
            return Some(format!(
                "the members of {gid} are {}, present are {:?}",
                status.membership,
                self.present(group)
            ));
        }
        for host in &self.hosts[self.groups[group].hosts.clone()] {
            let Some(other) = self.status(host.number) else {
                return Some(format!("host {} is down", host.number));
            };
            if !host.asked.is_empty() {
                return Some(format!(
                    "host {} owes answers to {:x?}",
                    host.number, host.asked
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

    /// Runs the last checks: equal states in each group, nothing left behind, and a linearizable history.
    pub(crate) fn conclude(&mut self) -> Step {
        for group in &self.groups {
            let mut first = None;
            for host in &self.hosts[group.hosts.clone()] {
                let position = host.disk.position();
                let (number, expected) = *first.get_or_insert((host.number, position));
                if position != expected {
                    return Err(Violation::new(
                        "equal state at the end",
                        format!(
                            "host {number} is at {expected:x?}, host {} at {position:x?}",
                            host.number
                        ),
                    ));
                }
            }
        }
        self.nothing_left_behind()?;
        self.markers_once()?;
        let checked = self.check_history();
        if self.tracing && checked.is_err() {
            for number in 0..self.scenario.client.keys {
                for line in self.history.describe(&key(number)) {
                    println!("{:?} {line}", key(number));
                }
            }
        }
        checked?;
        let sum = |count: fn(&InvariantChecker) -> u64| -> u64 {
            self.groups
                .iter()
                .map(|group| count(&group.invariants))
                .sum()
        };
        let totals = [
            ("elections", sum(InvariantChecker::elections)),
            ("operations", self.history.len() as u64),
            (
                "operations with known outcome",
                self.history.returned() as u64,
            ),
            ("session writes applied", self.write_checker.outcomes()),
            (
                "entries committed",
                sum(|invariants| invariants.last_committed().index.0),
            ),
            ("simulated milliseconds", self.now / MILLI),
            ("messages", self.traffic.messages),
            ("configurations", self.shard_checker.latest().0),
            ("shards handed over", self.shard_checker.hand_offs()),
        ];
        for (what, count) in totals {
            *self.report.counts.entry(what).or_default() += count;
        }
        Ok(())
    }

    /// Checks that no mark is twice in a host's data. Each write of a client carries a unique mark.
    fn markers_once(&self) -> Step {
        for host in &self.hosts[..self.kv_hosts] {
            let data = host.disk.pairs();
            let data = data.iter().filter(|((table, _), _)| *table == Table::Data);
            let mut marks = BTreeSet::new();
            for ((_, key), value) in data {
                let starts = value.split_inclusive(|byte| *byte == b'>');
                let twice = starts
                    .filter(|mark| mark.starts_with(b"<") && mark.ends_with(b">"))
                    .find(|mark| !marks.insert(mark.to_vec()));
                if let Some(mark) = twice {
                    let mark = String::from_utf8_lossy(mark);
                    return Err(Violation::new(
                        "exactly once",
                        format!("host {} has {mark} twice, last in {key:?}", host.number),
                    ));
                }
            }
        }
        Ok(())
    }

    /// Checks that no replica holds data or sessions of a shard that isn't its group's.
    fn nothing_left_behind(&self) -> Step {
        for host in &self.hosts[..self.kv_hosts] {
            let gid = self.groups[host.group].gid;
            let Some(ownership) = self.shard_checker.group(gid) else {
                continue;
            };
            for ((table, key), _) in host.disk.pairs() {
                let shard = key
                    .first_chunk::<4>()
                    .map(|it| ShardId(u32::from_be_bytes(*it)));
                let stray = shard.is_none_or(|shard| !ownership.shards.contains_key(&shard));
                if table != Table::Meta && stray {
                    return Err(Violation::new(
                        "nothing is left behind",
                        format!("host {} of {gid} keeps {table:?} {key:?}", host.number),
                    ));
                }
            }
        }
        Ok(())
    }

    /// Returns a query for a key.
    pub fn query_of(key: &[u8]) -> Query {
        Query::Get {
            key: bytes::Bytes::copy_from_slice(key),
        }
    }
}
