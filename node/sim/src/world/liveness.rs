//! The liveness phase of a world: faults stop, and the cluster must recover within ten simulated seconds.
//!
//! Safety without liveness would be cheap: a cluster that does nothing violates no invariant. So each group must have a
//! leader; every operation of every client must finish; every host must be a voter, and those with lost disks must
//! rejoin; and all replicas must hold the same state at the same index. Then a client reads every key once
//! more, and the checkers search the whole history.

use raft::MembershipChange;

use super::{Ending, World};
use crate::client::{Step as ClientStep, key};
use crate::event::Event;
use crate::group::GroupId;
use crate::network::LinkOptions;
use crate::queue::{MILLI, Micros, SECOND};
use crate::violation::{Checked, Violation};

/// The longest time of the recovery, without the part that [`World::recovery`] adds.
const RECOVERY: Micros = 10 * SECOND;
/// The interval between two probes.
const PROBE: Micros = 50 * MILLI;
/// The time for which clients start operations after the faults end.
const LAST_ORDERS: Micros = 500 * MILLI;

impl World {
    /// Stops all faults and begins the liveness phase.
    pub(super) fn end(&mut self) -> Checked {
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
    pub(super) fn probe(&mut self) -> Checked {
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

    /// Checks everything that doesn't need `group`. Restarts the group once all of that has recovered.
    fn probe_without(&mut self, group: GroupId, since: Micros) -> Checked {
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

    /// Draws the group that stays down in the first stage, in some worlds.
    fn draw_missing(&mut self) -> Option<GroupId> {
        let cluster = self.scenario.cluster.as_ref()?;
        let group = self.rng.index(cluster.groups);
        cluster.survives_without.then_some(group)
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
}
