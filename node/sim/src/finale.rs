//! How a world ends: faults stop, and within ten simulated seconds everything must be well.
//!
//! Safety without this would be cheap: a cluster that does nothing breaks no promise. So at the end there
//! must be a leader; every operation of every client must finish; every host must have become a voter,
//! those with lost disks by themselves; and all must hold the same state at the same index. Then every key
//! is read once more, and the whole history is checked.

use raft::MembershipChange;
use shardkv::Query;

use crate::client::{Step as ClientStep, key};
use crate::group::GroupId;
use crate::network::LinkOptions;
use crate::oracle::{Oracle, Violation};
use crate::queue::{MILLI, Micros, SECOND};
use crate::world::{Event, Step, World};

/// How long a world without faults may take to become well.
const RECOVERY: Micros = 10 * SECOND;
/// How often it looks.
const PROBE: Micros = 50 * MILLI;
/// How long clients go on in the quiet.
const LAST_ORDERS: Micros = 500 * MILLI;

/// How far the end has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It has not begun.
    #[default]
    Not,
    /// Clients still start operations.
    Open,
    /// Clients finish, nodes rejoin.
    Recovering,
    /// Each key is read once more.
    Reading,
}

impl World {
    /// Stops all faults.
    pub(crate) fn end(&mut self) -> Step {
        self.ending = true;
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
        let restart_all = self.dice.coin();
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
            if restart_all || must_restart {
                let down = self.dice.between(0, 200 * MILLI);
                self.crash(number, Some(down));
            } else if self.hosts[number].paused {
                self.hosts[number].paused = false;
                self.wake(number)?;
            }
        }
        self.queue.push(self.now + PROBE, Event::Probe);
        Ok(())
    }

    /// Looks whether all is well.
    pub(crate) fn probe(&mut self) -> Step {
        let since = self.now - self.ending_since;
        if self.stage == Ending::Open && since >= LAST_ORDERS {
            for number in 0..self.clients.len() {
                self.clients[number].finish(self.now);
                self.plan_client(number);
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
            (_, Some(missing)) if since > RECOVERY => {
                return Err(Violation::new("liveness", missing));
            }
            _ => {}
        }
        self.queue.push(self.now + PROBE, Event::Probe);
        Ok(())
    }

    /// The administrator lets hosts in that no membership has.
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

    /// What is not well yet.
    fn missing(&self) -> Option<String> {
        let mut groups = 0..self.groups.len();
        if let Some(missing) = groups.find_map(|group| self.missing_of(group)) {
            return Some(missing);
        }
        let busy = self.clients.iter().find(|client| !client.is_idle());
        busy.map(crate::client::Client::describe)
    }

    /// What is not well yet in a group.
    fn missing_of(&self, group: GroupId) -> Option<String> {
        let gid = self.groups[group].gid;
        let Some(leader) = self.leader(group) else {
            return Some(format!("{gid} has no leader"));
        };
        let Some(status) = self.status(leader) else {
            return Some("the leader is gone".to_owned());
        };
        let voters: std::collections::BTreeSet<_> = status.membership.voters().collect();
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

    /// The last word: equal states, and an order that explains what the clients saw.
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
        let checked = self.check_history();
        if self.tracing && checked.is_err() {
            for number in 0..self.scenario.client.keys {
                for line in self.history.describe(&key(number)) {
                    println!("{:?} {line}", key(number));
                }
            }
        }
        checked?;
        let sum = |count: fn(&Oracle) -> u64| -> u64 {
            self.groups.iter().map(|group| count(&group.oracle)).sum()
        };
        let totals = [
            ("elections", sum(|oracle| oracle.elections())),
            ("operations", self.history.len() as u64),
            (
                "operations with known outcome",
                self.history.returned() as u64,
            ),
            ("session writes applied", self.ledger.outcomes()),
            (
                "entries committed",
                sum(|oracle| oracle.last_committed().index.0),
            ),
            ("simulated milliseconds", self.now / MILLI),
            ("messages", self.traffic.messages),
        ];
        for (what, count) in totals {
            *self.report.counts.entry(what).or_default() += count;
        }
        Ok(())
    }

    /// A question that any test may ask.
    pub fn query_of(key: &[u8]) -> Query {
        Query::Get {
            key: bytes::Bytes::copy_from_slice(key),
        }
    }
}
