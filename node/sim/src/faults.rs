//! Faults and the administrator's requests.
//!
//! Each class of faults recurs: a fault begins, schedules its end, and schedules the next fault of its class. A group
//! may lose data only by losing a quorum of disks. So disks are lost one at a time, and only while the group is
//! *settled*: every member is on some host, and every member's log ends with the same membership. Administrators must
//! follow the same rule.

use std::collections::BTreeSet;

use raft::{Envelope, MemberKind, Membership, MembershipChange, Message};
use replica::{Answer, Request, RequestId};

use crate::bug::{Bug, ProcessBug};
use crate::group::GroupId;
use crate::machine::{Outcome, Question};
use crate::network::{HostId, draw_cuts};
use crate::queue::{MILLI, Micros};
use crate::scenario::Recurrence;
use crate::world::{Event, Step, World, draw_node, spread};

/// A class of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Partition,
    FalseHint,
    Crash,
    Outage,
    Blackout,
    Pause,
    SlowDisk,
    FullDisk,
    Wipe,
    Damage,
    ClockJump,
    Membership,
    Transfer,
    DisturbLeader,
}

const ALL: [Fault; 14] = [
    Fault::Partition,
    Fault::FalseHint,
    Fault::Crash,
    Fault::Blackout,
    Fault::Pause,
    Fault::SlowDisk,
    Fault::FullDisk,
    Fault::Wipe,
    Fault::Damage,
    Fault::ClockJump,
    Fault::Membership,
    Fault::Transfer,
    Fault::DisturbLeader,
    Fault::Outage,
];

/// The client number of the administrator's requests, above those of all clients.
pub(crate) const ADMIN: u64 = 1 << 20;

impl World {
    pub(crate) fn plan_faults(&mut self) {
        for fault in ALL {
            self.plan_fault(fault);
        }
    }

    fn recurrence(&self, fault: Fault) -> Option<Recurrence> {
        let faults = &self.scenario.faults;
        match fault {
            Fault::Partition => faults.partitions,
            Fault::FalseHint => faults.false_hints,
            Fault::Crash => faults.crashes,
            Fault::Outage => faults.outages,
            Fault::Blackout => faults.blackouts,
            Fault::Pause => faults.pauses,
            Fault::SlowDisk => faults.slow_disks,
            Fault::FullDisk => faults.full_disks,
            Fault::Wipe => faults.wipes,
            Fault::Damage => faults.damage,
            Fault::ClockJump => faults.clock_jumps,
            Fault::Membership => faults.membership,
            Fault::Transfer => faults.transfers,
            Fault::DisturbLeader => faults.leader_faults,
        }
    }

    fn plan_fault(&mut self, fault: Fault) {
        if let Some(recurrence) = self.recurrence(fault) {
            let after = self
                .rng
                .between(recurrence.every / 4, recurrence.every * 7 / 4);
            self.queue.push(self.now + after, Event::Fault(fault));
        }
    }

    /// Begins a fault.
    pub(crate) fn fault(&mut self, fault: Fault) {
        let Some(recurrence) = self.recurrence(fault).filter(|_| !self.ending) else {
            return;
        };
        self.plan_fault(fault);
        let lasts = self
            .rng
            .magnitude((recurrence.lasts / 16).max(1), recurrence.lasts);
        let host = self.rng.index(self.hosts.len());
        match fault {
            Fault::Partition => self.partition(lasts),
            Fault::FalseHint => {
                let of = self.rng.index(self.hosts.len());
                let hint = Event::Hint {
                    host,
                    incarnation: self.hosts[host].incarnation,
                    node: self.hosts[of].node,
                };
                self.queue.push(self.now, hint);
            }
            Fault::Crash => self.strike_down(host, lasts),
            Fault::Outage => self.outage(lasts),
            Fault::Blackout => self.blackout(lasts),
            Fault::Pause => self.pause(host, lasts),
            Fault::SlowDisk => {
                let slow_by = self.rng.magnitude(MILLI, recurrence.lasts / 2 + 2 * MILLI);
                self.trace(host, || format!("disk slower by {slow_by} us"));
                self.count("slow disks");
                self.hosts[host].disk.set_slow_by(slow_by);
                self.mend_after(fault, host, lasts.max(100 * MILLI));
            }
            Fault::FullDisk => self.fill_disk(host, lasts),
            Fault::Wipe => self.lose_disk(host, lasts, false),
            Fault::Damage => self.lose_disk(host, lasts, true),
            Fault::ClockJump => {
                self.hosts[host].clock.skew_ms = spread(&mut self.rng, 5_000);
                self.count("clock jumps");
            }
            Fault::Membership => self.change_membership(),
            Fault::Transfer => self.transfer(),
            Fault::DisturbLeader => self.disturb_leader(lasts),
        }
    }

    fn mend_after(&mut self, fault: Fault, what: usize, lasts: Micros) {
        self.queue.push(self.now + lasts, Event::Mend(fault, what));
    }

    /// Ends a fault at a host. For a partition, `host` is the partition's number.
    pub(crate) fn mend(&mut self, fault: Fault, host: HostId) -> Step {
        match fault {
            Fault::Partition if host == self.cuts => {
                if !self.network.is_whole() {
                    self.trace(0, || "the network heals".to_owned());
                }
                self.network.heal();
                for host in &mut self.hosts {
                    host.unreachable = false;
                }
            }
            Fault::SlowDisk => self.hosts[host].disk.set_slow_by(0),
            Fault::FullDisk => {
                self.trace(host, || "disk has space".to_owned());
                self.hosts[host].disk.set_full(false);
                self.set_disk_low(host, false);
                return self.wake(host);
            }
            _ => {}
        }
        Ok(())
    }

    /// Draws a group. Draws no number if there is only one.
    pub(crate) fn draw_group(&mut self) -> GroupId {
        if self.groups.len() < 2 {
            return 0;
        }
        self.rng.index(self.groups.len())
    }

    fn partition(&mut self, lasts: Micros) {
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
        self.mend_after(Fault::Partition, self.cuts, lasts);
    }

    /// Cuts off, kills or pauses a leader.
    fn disturb_leader(&mut self, lasts: Micros) {
        let group = self.draw_group();
        let Some(leader) = self.leader(group) else {
            return;
        };
        self.count("leaders struck");
        match self.rng.below(5) {
            0 => self.pause(leader, lasts),
            1 | 2 => self.strike_down(leader, lasts),
            _ => {
                let companion = self.rng.index(self.hosts.len() * 2);
                self.cut_off(leader, companion, lasts);
            }
        }
    }

    /// Isolates a host, alone or with one companion, as a minority.
    fn cut_off(&mut self, host: HostId, companion: HostId, lasts: Micros) {
        let side = |other: HostId| other == host || other == companion;
        let hosts = 0..self.hosts.len();
        let cut: BTreeSet<(HostId, HostId)> = hosts
            .clone()
            .flat_map(|a| hosts.clone().map(move |b| (a, b)))
            .filter(|(a, b)| side(*a) != side(*b))
            .collect();
        self.cut(cut);
        self.mend_after(Fault::Partition, self.cuts, lasts);
    }

    /// Isolates a new leader, in some worlds, before its first messages leave.
    pub(crate) fn ambush(&mut self, host: HostId, messages: &[(Micros, Envelope)]) {
        let term = messages.iter().find_map(|(_, envelope)| {
            matches!(envelope.message, Message::Append { .. }).then_some(envelope.term)
        });
        let group = self.hosts[host].group;
        let ambushed = self.groups[group].ambushed;
        let Some(term) = term.filter(|term| *term > ambushed && !self.ending) else {
            return;
        };
        self.groups[group].ambushed = term;
        if self.rng.chance(self.scenario.ambushes) {
            self.count("leaders ambushed");
            let lasts = self.rng.between(300 * MILLI, 900 * MILLI);
            let hosts = self.groups[group].hosts.clone();
            let companion = hosts.start + self.rng.index(hosts.len());
            self.cut_off(host, companion, lasts);
        }
    }

    fn cut(&mut self, cut: BTreeSet<(HostId, HostId)>) {
        self.trace(0, || format!("the network cuts {cut:?}"));
        // Some connections over a cut link break after a while.
        for (from, to) in &cut {
            if self.rng.chance(500_000) {
                let hint = Event::Hint {
                    host: *from,
                    incarnation: self.hosts[*from].incarnation,
                    node: self.hosts[*to].node,
                };
                let delay = self.rng.magnitude(MILLI, 1_000 * MILLI);
                self.queue.push(self.now + delay, hint);
            }
        }
        self.network.set_cuts(cut);
        self.cuts += 1;
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

    /// Kills a process: now, or at one of its next writes or messages.
    fn strike_down(&mut self, host: HostId, lasts: Micros) {
        if self.hosts[host].process.is_none() {
            return;
        }
        if self.rng.coin() {
            self.crash(host, Some(lasts));
        } else {
            let operations = u32::try_from(self.rng.magnitude(1, 64) - 1).unwrap_or(0);
            self.hosts[host].disk.arm_crash(operations);
        }
    }

    /// Kills all hosts of one group or most of them, or cuts the group off.
    fn outage(&mut self, lasts: Micros) {
        let group = self.draw_group();
        self.count("outages of a group");
        let hosts = self.groups[group].hosts.clone();
        if self.rng.chance(300_000) {
            let all = 0..self.hosts.len();
            let cut = all
                .clone()
                .flat_map(|a| all.clone().map(move |b| (a, b)))
                .filter(|(a, b)| hosts.contains(a) != hosts.contains(b))
                .collect();
            self.cut(cut);
            self.mend_after(Fault::Partition, self.cuts, lasts);
            return;
        }
        for host in hosts {
            if self.hosts[host].process.is_some() && self.rng.chance(900_000) {
                self.crash(host, Some(lasts));
            }
        }
    }

    fn blackout(&mut self, lasts: Micros) {
        self.count("blackouts");
        for host in 0..self.hosts.len() {
            if self.hosts[host].process.is_some() {
                let down = self.rng.between(0, lasts);
                self.crash(host, Some(down));
            }
        }
    }

    fn pause(&mut self, host: HostId, lasts: Micros) {
        if !self.hosts[host].is_up() {
            return;
        }
        self.count("pauses");
        self.trace(host, || format!("pauses for {lasts} us"));
        self.hosts[host].paused = true;
        let resume = Event::Resume {
            host,
            incarnation: self.hosts[host].incarnation,
        };
        self.queue.push(self.now + lasts, resume);
    }

    fn fill_disk(&mut self, host: HostId, lasts: Micros) {
        self.count("full disks");
        let (warned, full) = match self.rng.below(3) {
            0 => (true, false),
            1 => (false, true),
            _ => (true, true),
        };
        self.trace(host, || format!("disk low {warned} full {full}"));
        if warned {
            self.set_disk_low(host, true);
        }
        self.hosts[host].disk.set_full(full);
        self.mend_after(Fault::FullDisk, host, lasts);
    }

    fn set_disk_low(&mut self, host: HostId, low: bool) {
        let host = &mut self.hosts[host];
        host.disk_low = low;
        if let Some(process) = &mut host.process {
            process.set_disk_low(low);
        }
    }

    /// Wipes a disk at once, or damages a record, which the next start finds.
    fn lose_disk(&mut self, host: HostId, lasts: Micros, damage: bool) {
        let group = self.hosts[host].group;
        let Some(membership) = self.settled(group) else {
            return;
        };
        // The disk of a learner that the leader is about to promote must not be lost at that moment.
        if membership
            .members()
            .any(|(_, member)| member.kind == MemberKind::Learner && member.replaces.is_some())
        {
            return;
        }
        let votes = membership.is_voter(self.hosts[host].node);
        if self.admin_is_waiting(group) || (votes && membership.voters().count() < 3) {
            return;
        }
        if damage {
            self.count("damaged disks");
            self.trace(host, || "a record on the disk is damaged".to_owned());
            self.hosts[host].disk.damage();
            if self.rng.coin() {
                self.crash(host, Some(lasts));
            }
        } else {
            self.crash(host, Some(lasts));
            self.wipe(host);
        }
    }

    /// Replaces a disk by an empty disk with a new node id.
    pub(crate) fn wipe(&mut self, number: HostId) {
        self.count("wiped disks");
        let keeps = self.scenario.bug == Some(Bug::Process(ProcessBug::WipedDiskKeepsIdentity));
        let node = if keeps {
            self.hosts[number].node
        } else {
            draw_node(&mut self.node_rng)
        };
        self.trace(number, || format!("gets an empty disk, and becomes {node}"));
        self.nodes.remove(&self.hosts[number].node);
        self.nodes.insert(node, number);
        self.hosts[number].node = node;
        self.hosts[number].disk.wipe();
    }

    // --- the administrator ---

    fn admin_is_waiting(&self, group: GroupId) -> bool {
        let changing = self.groups[group].changing;
        changing.is_some_and(|(id, host, incarnation)| {
            let host = &self.hosts[host];
            // The request is still in flight, or waits in the process that it was sent to.
            host.incarnation == incarnation || host.asked.contains_key(&id)
        })
    }

    /// Requests a membership change. Most are sensible, some are not.
    fn change_membership(&mut self) {
        let group = self.draw_group();
        let known = if self.scenario.pushy_admin {
            let leader = self.leader(group).and_then(|leader| self.status(leader));
            leader.map(|status| status.membership)
        } else {
            self.settled(group)
                .filter(|_| !self.admin_is_waiting(group))
        };
        let Some(membership) = known else {
            return;
        };
        let changes = if self.scenario.pushy_admin {
            self.rng.between(1, 3)
        } else {
            1
        };
        for _ in 0..changes {
            if let Some(change) = self.draw_change(group, &membership) {
                self.request_change(group, change);
            }
        }
    }

    fn draw_change(&mut self, group: GroupId, membership: &Membership) -> Option<MembershipChange> {
        let hosts = self.groups[group].hosts.clone();
        let host = hosts.start + self.rng.index(hosts.len());
        let (node, address) = (self.hosts[host].node, self.hosts[host].address.clone());
        let voters = membership.voters().count();
        match membership.get(node) {
            None => Some(MembershipChange::AddLearner { node, address }),
            Some(_) if self.rng.chance(50_000) => {
                Some(MembershipChange::AddLearner { node, address })
            }
            Some(_) if !membership.is_voter(node) && self.rng.chance(800_000) => {
                Some(MembershipChange::Promote { node })
            }
            Some(_) if membership.is_voter(node) && voters < 2 => None,
            Some(_) => Some(MembershipChange::Remove { node }),
        }
    }

    /// Sends a change to the leader.
    pub(crate) fn request_change(&mut self, group: GroupId, change: MembershipChange) {
        let waits = self.admin_is_waiting(group) && !self.scenario.pushy_admin;
        let Some(leader) = self.leader(group).filter(|_| !waits) else {
            return;
        };
        self.count("membership changes asked");
        self.trace(leader, || format!("the administrator asks: {change:?}"));
        let id = self.admin_request(leader, Request::ChangeMembership(change));
        self.groups[group].changing = Some((id, leader, self.hosts[leader].incarnation));
    }

    fn transfer(&mut self) {
        let group = self.draw_group();
        let Some(leader) = self.leader(group) else {
            return;
        };
        self.count("transfers asked");
        let hosts = self.groups[group].hosts.clone();
        let target = hosts.start + self.rng.index(hosts.len());
        let target = self.rng.coin().then(|| self.hosts[target].node);
        let host = if self.rng.chance(900_000) {
            leader
        } else {
            hosts.start + self.rng.index(hosts.len())
        };
        self.trace(host, || format!("is asked to hand over to {target:?}"));
        self.admin_request(host, Request::TransferLeadership(target));
    }

    pub(crate) fn admin_request(&mut self, to: HostId, request: Request<Question>) -> RequestId {
        self.admin_sent += 1;
        let id = RequestId((ADMIN << 40) | self.admin_sent);
        self.queue.push(
            self.now + 1,
            Event::Ask {
                host: to,
                id,
                request,
            },
        );
        id
    }

    pub(crate) fn admin_answered(&mut self, id: RequestId, outcome: Outcome) {
        for group in &mut self.groups {
            if group.changing.is_some_and(|(changing, ..)| changing == id) {
                group.changing = None;
            }
        }
        match &outcome {
            Ok(Answer::MembershipChanged(_)) => self.count("membership changes done"),
            Ok(Answer::LeadershipTransferred(_)) => self.count("transfers done"),
            _ => {}
        }
        self.mailbox.insert(id, outcome);
    }
}
