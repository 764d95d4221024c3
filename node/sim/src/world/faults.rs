//! Faults and the administrator's requests.
//!
//! Each class of faults recurs: a fault begins, schedules its end, and schedules the next fault of its class. A group
//! may lose data only by losing a quorum of disks. So disks are lost one at a time, and only while the group is
//! *stable*: every member is on some host, and every member's log ends with the same membership. Administrators must
//! follow the same rule.

use raft::MemberKind;

use super::{World, spread};
use crate::event::Event;
use crate::fault::Fault;
use crate::group::GroupId;
use crate::network::HostId;
use crate::queue::{MILLI, Micros};
use crate::violation::Checked;

impl World {
    pub(super) fn plan_faults(&mut self) {
        for fault in Fault::ALL {
            self.plan_fault(fault);
        }
    }

    fn plan_fault(&mut self, fault: Fault) {
        if let Some(recurrence) = self.scenario.faults.recurrence(fault) {
            let after = self
                .rng
                .between(recurrence.every / 4, recurrence.every * 7 / 4);
            self.queue.push(self.now + after, Event::BeginFault(fault));
        }
    }

    /// Begins a fault.
    pub(super) fn begin_fault(&mut self, fault: Fault) {
        let Some(recurrence) = self
            .scenario
            .faults
            .recurrence(fault)
            .filter(|_| self.faults_happen())
        else {
            return;
        };
        self.plan_fault(fault);
        let lasts = self
            .rng
            .magnitude((recurrence.lasts / 16).max(1), recurrence.lasts);
        let host = self.rng.index(self.hosts.len());
        match fault {
            Fault::Partition => self.partition(lasts),
            Fault::FalseDisconnect => {
                let of = self.rng.index(self.hosts.len());
                let disconnect = Event::Disconnect {
                    host,
                    incarnation: self.hosts[host].incarnation,
                    node: self.hosts[of].node,
                };
                self.queue.push(self.now, disconnect);
            }
            Fault::Crash => self.kill(host, lasts),
            Fault::Outage => self.outage(lasts),
            Fault::SlowGroup => self.slow_group(lasts),
            Fault::Blackout => self.blackout(lasts),
            Fault::Pause => self.pause(host, lasts),
            Fault::SlowDisk => {
                let slow_by = self.rng.magnitude(MILLI, recurrence.lasts / 2 + 2 * MILLI);
                self.trace(host, || format!("disk slower by {slow_by} us"));
                self.count("slow disks");
                self.hosts[host].disk.set_slow_by(slow_by);
                self.end_fault_after(fault, host, lasts.max(100 * MILLI));
            }
            Fault::FullDisk => self.fill_disk(host, lasts),
            Fault::Wipe => self.lose_disk(host, lasts, false),
            Fault::Damage => self.lose_disk(host, lasts, true),
            Fault::ClockJump => {
                self.hosts[host].clock.skew_ms =
                    spread(&mut self.rng, self.scenario.skew_ms.max(5_000));
                self.count("clock jumps");
            }
            Fault::Membership => self.change_membership(),
            Fault::Transfer => self.transfer(),
            Fault::DisturbLeader => self.disturb_leader(lasts),
            Fault::Retirement => self.retire(lasts),
            Fault::LateCall => self.repeat_any_call(),
        }
    }

    /// Ends a fault at a host. For a partition, `host` is the partition's number.
    pub(super) fn end_fault(&mut self, fault: Fault, host: HostId) -> Checked {
        match fault {
            Fault::Partition if host == self.partitions => {
                if !self.network.is_whole() {
                    self.trace(0, || "the network heals".to_owned());
                }
                self.network.heal();
                for host in &mut self.hosts {
                    host.unreachable = false;
                }
            }
            Fault::SlowGroup => self.network.set_slow(None),
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

    /// Cuts off, kills or pauses a leader.
    fn disturb_leader(&mut self, lasts: Micros) {
        let group = self.draw_group();
        self.disturb_leader_of(group, lasts);
    }

    /// Cuts off, kills or pauses the leader of a group.
    pub(super) fn disturb_leader_of(&mut self, group: GroupId, lasts: Micros) {
        let Some(leader) = self.leader(group) else {
            return;
        };
        self.count("leaders struck");
        match self.rng.below(5) {
            0 => self.pause(leader, lasts),
            1 | 2 => self.kill(leader, lasts),
            _ => {
                let companion = self.rng.index(self.hosts.len() * 2);
                self.cut_off(leader, companion, lasts);
            }
        }
    }

    /// Kills a process, now or at one of its next writes or messages, or asks it to stop.
    fn kill(&mut self, host: HostId, lasts: Micros) {
        if self.hosts[host].process.is_none() {
            return;
        }
        if self.rng.chance(self.scenario.orderly_stops) {
            let stop = Event::Stop {
                host,
                incarnation: self.hosts[host].incarnation,
                down: lasts,
            };
            self.queue.push(self.now, stop);
        } else if self.rng.coin() {
            self.crash(host, Some(lasts));
        } else {
            let operations = u32::try_from(self.rng.magnitude(1, 64) - 1).unwrap_or(0);
            self.hosts[host].disk.arm_crash(operations);
        }
    }

    /// Kills all hosts of one group or most of them, or cuts the group off: all its links, those to it, or those from it. Then it acts on
    /// requests, but its answers are lost.
    fn outage(&mut self, lasts: Micros) {
        let group = self.draw_group();
        self.count("outages of a group");
        let hosts = self.groups[group].hosts.clone();
        if self.rng.chance(300_000) {
            let ways: &[bool] = match self.rng.below(4) {
                0 | 1 => &[false, true],
                2 => &[true],
                _ => &[false],
            };
            let all = 0..self.hosts.len();
            let cut = all
                .clone()
                .flat_map(|a| all.clone().map(move |b| (a, b)))
                .filter(|(a, b)| hosts.contains(a) != hosts.contains(b))
                .filter(|(from, _)| ways.contains(&hosts.contains(from)))
                .collect();
            self.cut(cut);
            self.end_fault_after(Fault::Partition, self.partitions, lasts);
            return;
        }
        for host in hosts {
            if self.hosts[host].process.is_some() && self.rng.chance(900_000) {
                self.crash(host, Some(lasts));
            }
        }
    }

    /// Delays all messages between one group and the others by less than a second, so that it answers, but late.
    fn slow_group(&mut self, lasts: Micros) {
        let group = self.draw_group();
        let by = self.rng.between(100 * MILLI, 900 * MILLI);
        self.count("slow groups");
        self.trace(0, || format!("links of group {group} slower by {by} us"));
        let hosts = self.groups[group].hosts.clone();
        self.network.set_slow(Some((hosts, by)));
        self.end_fault_after(Fault::SlowGroup, 0, lasts);
    }

    /// Stops a group that is drained while another group waits for the answer to a delete.
    fn retire(&mut self, lasts: Micros) {
        let Some(group) = self.drained_and_awaited() else {
            return;
        };
        let hosts = self.groups[group].hosts.clone();
        if hosts.clone().all(|host| self.hosts[host].process.is_none()) {
            return;
        }
        self.count("drained groups stopped");
        for host in hosts {
            self.crash(host, Some(lasts));
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
        self.end_fault_after(Fault::FullDisk, host, lasts);
    }

    fn set_disk_low(&mut self, host: HostId, low: bool) {
        let host = &mut self.hosts[host];
        host.disk_low = low;
        if let Some(process) = &mut host.process {
            process.set_disk_low(low);
        }
    }

    /// Returns true if a group survives the loss of a host's disk now.
    pub(super) fn may_lose_disk(&self, host: HostId) -> bool {
        let group = self.hosts[host].group;
        let Some(membership) = self.stable_membership(group) else {
            return false;
        };
        // The disk of a learner that the leader is about to promote must not be lost at that moment.
        let replaces = membership
            .members()
            .any(|(_, member)| member.kind == MemberKind::Learner && member.replaces.is_some());
        let votes = membership.is_voter(self.hosts[host].node);
        let is_needed = votes && membership.voters().count() < 3;
        !(replaces || is_needed || self.admin_is_waiting(group))
    }

    /// Wipes a disk at once, or damages a record, which the next start finds.
    fn lose_disk(&mut self, host: HostId, lasts: Micros, damage: bool) {
        if !self.may_lose_disk(host) {
            return;
        }
        if damage {
            self.count("damaged disks");
            let group = self.hosts[host].group;
            self.groups[group].lost += 1;
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
}
