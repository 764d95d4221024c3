//! Cut links, and what breaks with them.

use std::collections::BTreeSet;

use raft::{Envelope, Message};

use super::World;
use crate::event::Event;
use crate::fault::Fault;
use crate::network::{HostId, draw_cuts};
use crate::queue::{MILLI, Micros};

impl World {
    pub(super) fn partition(&mut self, lasts: Micros) {
        let group = self.draw_group();
        let leader = self.leader(group);
        let cut = draw_cuts(&mut self.rng, self.hosts.len(), leader);
        self.count("partitions");
        self.cut(cut);
        if self.rng.chance(300_000) {
            for host in 0..self.hosts.len() {
                self.hosts[host].unreachable = self.rng.chance(300_000);
            }
        }
        self.end_fault_after(Fault::Partition, self.partitions, lasts);
    }

    /// Isolates a host, alone or with one companion, as a minority.
    pub(super) fn cut_off(&mut self, host: HostId, companion: HostId, lasts: Micros) {
        let side = |other: HostId| other == host || other == companion;
        let hosts = 0..self.hosts.len();
        let cut: BTreeSet<(HostId, HostId)> = hosts
            .clone()
            .flat_map(|a| hosts.clone().map(move |b| (a, b)))
            .filter(|(a, b)| side(*a) != side(*b))
            .collect();
        self.cut(cut);
        self.end_fault_after(Fault::Partition, self.partitions, lasts);
    }

    /// Isolates a new leader, in some worlds, before its first messages leave.
    pub(super) fn isolate_new_leader(&mut self, host: HostId, messages: &[(Micros, Envelope)]) {
        let term = messages.iter().find_map(|(_, envelope)| {
            matches!(envelope.message, Message::Append { .. }).then_some(envelope.term)
        });
        let group = self.hosts[host].group;
        let isolated = self.groups[group].isolated;
        let Some(term) = term.filter(|term| *term > isolated && self.faults_happen()) else {
            return;
        };
        self.groups[group].isolated = term;
        if self.rng.chance(self.scenario.isolated_leaders) {
            self.count("leaders isolated");
            let lasts = self.rng.between(300 * MILLI, 900 * MILLI);
            let hosts = self.groups[group].hosts.clone();
            let companion = hosts.start + self.rng.index(hosts.len());
            self.cut_off(host, companion, lasts);
        }
    }

    /// Isolates a leader, in some worlds, that has just told another node to campaign.
    pub(super) fn isolate_old_leader(&mut self, host: HostId) {
        if self.faults_happen() && self.rng.chance(self.scenario.isolated_transfers) {
            self.count("leaders isolated at a transfer");
            let lasts = self.rng.between(100 * MILLI, 600 * MILLI);
            self.cut_off(host, host, lasts);
        }
    }

    pub(super) fn cut(&mut self, cut: BTreeSet<(HostId, HostId)>) {
        self.trace(0, || format!("the network cuts {cut:?}"));
        // Some connections over a cut link break after a while.
        for (from, to) in &cut {
            if self.rng.chance(500_000) {
                let disconnect = Event::Disconnect {
                    host: *from,
                    incarnation: self.hosts[*from].incarnation,
                    node: self.hosts[*to].node,
                };
                let delay = self.rng.magnitude(MILLI, 1_000 * MILLI);
                self.queue.push(self.now + delay, disconnect);
            }
        }
        self.network.set_cuts(cut);
        self.partitions += 1;
        // Some clients lose their connections too, and reconnect elsewhere at once.
        for number in 0..self.clients.len() {
            if self.rng.coin() {
                let host = self.rng.index(self.kv_hosts);
                let now = self.now;
                self.clients[number].lost_connection(host, now);
                self.plan_client(number);
            }
        }
    }
}
