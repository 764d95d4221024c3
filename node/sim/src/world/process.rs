//! The life of a process in a world: start, step, crash.

use std::collections::BTreeMap;

use raft::{Payload, StoreError};
use replica::{NodeRecord, Refusal, Replica, Status};
use types::{Gid, NodeId};

use super::work::check_work;
use super::{World, draw_node};
use crate::bug::{Bug, ProcessBug};
use crate::disk::DiskEvent;
use crate::event::Event;
use crate::host::{Input, ProcessOutput};
use crate::machine::{Machine, Reply};
use crate::mover::{Mover, describe_step, draw_driver};
use crate::network::{HostId, address};
use crate::queue::{MILLI, Micros};
use crate::recorder::{Recorder, drain};
use crate::violation::{Checked, Violation};

impl World {
    /// Starts a process on a host's disk. A damaged disk that refuses is replaced by an empty disk.
    pub(crate) fn start(&mut self, number: HostId) -> Checked {
        let seed = self.node_rng.number();
        if self.hosts[number].process.is_some() || !self.may_start(number)? {
            return Ok(());
        }
        self.start_replica(number, seed)
    }

    /// Starts the replica of a process that knows its group, or joins one.
    pub(super) fn start_replica(&mut self, number: HostId, seed: u64) -> Checked {
        match self.recover(number, seed) {
            Ok(()) => {}
            Err(error) if self.hosts[number].disk.is_damaged() => {
                self.count("damaged disks refused");
                self.trace(number, || format!("refuses to start: {error}"));
                self.wipe(number);
                if !self.may_start(number)? {
                    return Ok(());
                }
                self.recover(number, seed).map_err(|error| {
                    Violation::new(
                        "a process starts on an empty disk",
                        format!("host {number}: {error}"),
                    )
                })?;
            }
            Err(_) if self.hosts[number].disk.is_full() => {
                let down = self.rng.between(10 * MILLI, 500 * MILLI);
                self.count("starts refused by a full disk");
                self.crash(number, Some(down));
                return Ok(());
            }
            Err(error) => {
                return Err(Violation::new(
                    "a process recovers after a crash",
                    format!("host {number}: {error}"),
                ));
            }
        }
        let host = &mut self.hosts[number];
        host.incarnation += 1;
        let incarnation = host.incarnation;
        let tick = Micros::from(self.scenario.replica.tick_ms) * MILLI;
        let first = self.node_rng.between(1, tick);
        self.queue.push(
            self.now + first,
            Event::Tick {
                host: number,
                incarnation,
            },
        );
        self.trace(number, || "starts".to_owned());
        self.wake(number)
    }

    pub(super) fn recover(
        &mut self,
        number: HostId,
        seed: u64,
    ) -> Result<(), replica::RecoverError> {
        let controllers = (self.kv_hosts..self.hosts.len()).map(address);
        let host = &mut self.hosts[number];
        host.disk.begin(self.now);
        let (log, state) = host.disk.open();
        let mut options = self.scenario.replica_options(number);
        options.address.clone_from(&host.address);
        // In a part of the worlds the first members begin with an older version, and each is upgraded when it first
        // restarts. An administrator could add an older node to a group that was upgraded meanwhile, so there is none.
        let level = self.scenario.feature_level();
        let mixed = self.scenario.seed % 4 == 3
            && self.scenario.faults.membership.is_none()
            && self.scenario.keyspaces.is_none();
        let first = self.groups[host.group].hosts.start;
        let is_old = host.incarnation == 0 && number - first < self.scenario.members;
        options.raft.feature_level = if mixed && is_old { 0 } else { level };
        options.raft.bugs = self.scenario.bug.map_or(raft::Bugs::NONE, Bug::raft);
        options.bugs = self.scenario.bug.map_or(replica::Bugs::NONE, Bug::replica);
        let group = &self.groups[host.group];
        let machine = match &self.scenario.cluster {
            Some(cluster) if group.gid == Gid::NONE => {
                Machine::ctrl(self.scenario.bug, cluster.history)
            }
            _ => {
                let cluster = self.scenario.cluster.as_ref();
                let journals = cluster.map(|cluster| cluster.journals);
                Machine::kv(self.scenario.bug, journals.unwrap_or_default())
            }
        };
        if let Some(cluster) = &self.scenario.cluster
            && group.gid != Gid::NONE
        {
            let driver = draw_driver(
                group.gid,
                self.scenario.genesis.shards,
                cluster.mover,
                controllers.collect(),
                seed,
                self.scenario.bug.and_then(Bug::shardkv),
            );
            let mut mover = Mover::new(number, driver, host.mover.take());
            if self.scenario.bug == Some(Bug::Shardkv(shardkv::Bug::CopyIntoFencedRange)) {
                mover.ignore_fences();
            }
            host.mover = Some(mover);
        }
        let machine = Recorder::new(machine, host.journal.clone());
        let mut process = Replica::recover(
            options,
            host.node,
            Box::new(log),
            Box::new(state),
            machine,
            seed,
        )?;
        process.set_disk_low(host.disk_low);
        host.process = Some(Box::new(process));
        self.hosts[number].tracker = self.new_tracker();
        Ok(())
    }

    /// Kills a host's process. It starts again after `down`, or not by itself if that is `None`.
    pub(crate) fn crash(&mut self, number: HostId, down: Option<Micros>) {
        let node = self.hosts[number].node;
        let was_up = self.hosts[number].process.is_some();
        self.hosts[number].stop(self.now);
        let incarnation = self.hosts[number].incarnation;
        if was_up {
            self.count("crashes");
            self.trace(number, || format!("crashes, down for {down:?}"));
            self.report_disconnect(number, node);
        }
        if let Some(down) = down {
            let start = Event::Start {
                host: number,
                incarnation,
            };
            self.queue.push(self.now + down, start);
        }
    }

    /// Hints to most other hosts of the group that the connection to `node` broke.
    pub(super) fn report_disconnect(&mut self, host: HostId, node: NodeId) {
        let peers = self.groups[self.hosts[host].group].hosts.clone();
        for other in peers.filter(|other| *other != host) {
            let delay = self.rng.magnitude(100, 100 * MILLI);
            if self.rng.chance(800_000) {
                let disconnect = Event::Disconnect {
                    host: other,
                    incarnation: self.hosts[other].incarnation,
                    node,
                };
                self.queue.push(self.now + delay, disconnect);
            }
        }
    }

    /// Replaces a disk by an empty disk with a new node id.
    pub(super) fn wipe(&mut self, number: HostId) {
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
        let group = self.hosts[number].group;
        self.groups[group].lost += 1;
        self.keep_volume(number);
        self.hosts[number].node = node;
        self.hosts[number].record = NodeRecord::new(node);
        self.hosts[number].disk.wipe();
    }

    pub(super) fn resume(&mut self, number: HostId) -> Checked {
        if !self.hosts[number].paused {
            return Ok(());
        }
        self.hosts[number].paused = false;
        self.trace(number, || "resumes".to_owned());
        self.wake_mover(number);
        self.wake(number)
    }

    pub(super) fn tick(&mut self, number: HostId, incarnation: u64) -> Checked {
        let host = &mut self.hosts[number];
        if host.incarnation != incarnation || host.process.is_none() {
            return Ok(());
        }
        host.owed_ticks += 1;
        let tick = Micros::from(self.scenario.replica.tick_ms) * MILLI;
        let next = self.now + host.clock.stretch(tick);
        self.queue.push(
            next,
            Event::Tick {
                host: number,
                incarnation,
            },
        );
        self.wake(number)
    }

    pub(super) fn deliver(&mut self, number: HostId, input: Input) -> Checked {
        let host = &mut self.hosts[number];
        if host.process.is_none() {
            return Ok(());
        }
        if host.inbox.len() >= self.scenario.inbox {
            self.count("messages dropped by a full inbox");
            if let Input::Request(id, _) = input {
                let (what, limit) = ("inbox", self.scenario.inbox as u64);
                let outcome = Err(Refusal::Overloaded { what, limit });
                let at = self.now + self.network.delay();
                self.queue.push(at, Event::Answer { id, outcome });
            }
            return Ok(());
        }
        host.inbox.push_back(input);
        self.wake(number)
    }

    /// Runs a step of a process now, or schedules it for when the host is free.
    pub(super) fn wake(&mut self, number: HostId) -> Checked {
        let host = &mut self.hosts[number];
        if !host.is_up() || host.work_due {
            return Ok(());
        }
        if host.busy_until <= self.now {
            return self.step_process(number);
        }
        host.work_due = true;
        let work = Event::Work {
            host: number,
            incarnation: host.incarnation,
        };
        self.queue.push(host.busy_until, work);
        Ok(())
    }

    /// Runs one step of a process: passes it the owed ticks and the inbox, polls it once, and sends what leaves it.
    pub(super) fn step_process(&mut self, number: HostId) -> Checked {
        let host = &mut self.hosts[number];
        let Some(mut process) = host.process.take() else {
            return Ok(());
        };
        host.owned = process.machine().machine().ownership();
        host.disk.begin(self.now);
        // Ticks come first: a paused leader must notice the pause before it serves from a lease.
        host.pass_ticks(&mut process, self.now, self.scenario.catch_up_ticks.max(1));
        let committed = self.groups[host.group].invariants.last_committed().index;
        let refused = host.pass_inbox(&mut process, committed);
        let mut output = ProcessOutput::new(&host.disk);
        let result = process.poll(&mut output);
        let ProcessOutput {
            messages, answers, ..
        } = output;
        let busy = host.disk.elapsed().max(20);
        host.busy_until = self.now + busy;
        host.process = Some(process);
        if let Some(error) = refused {
            return Err(Violation::new(
                "peers send valid messages",
                format!("host {number}: {error}"),
            ));
        }
        self.observe_disk(number)?;
        // After any other error the process ends, and publishes nothing.
        if matches!(result, Ok(()) | Err(StoreError::Full(_))) {
            self.track(number)?;
        }
        if self.scenario.isolated_leaders > 0 {
            self.isolate_new_leader(number, &messages);
        }
        self.repeat_old_answers(number, &messages);
        for (after, envelope) in messages {
            self.send_message(number, after, envelope)?;
        }
        for (after, id, outcome) in answers {
            self.send_answer(number, after, id, outcome)?;
        }
        self.after_poll(number, result)
    }

    /// Passes all that a process wrote and applied to the checkers.
    pub(super) fn observe_disk(&mut self, number: HostId) -> Checked {
        let left_to_replicas = self.scenario.bug.is_some_and(Bug::is_left_to_replicas);
        let host = &mut self.hosts[number];
        for event in host.disk.take_journal() {
            if matches!(event, DiskEvent::Reset(_)) {
                *self.report.counts.entry("snapshots installed").or_default() += 1;
            }
            if let DiskEvent::Appended {
                entries, truncated, ..
            } = &event
            {
                let changes = |entry: &raft::Entry| matches!(entry.payload, Payload::Membership(_));
                host.check_membership |= *truncated || entries.iter().any(changes);
            }
            if matches!(event, DiskEvent::Compacted { .. }) {
                *self.report.counts.entry("compactions").or_default() += 1;
            }
            if matches!(event, DiskEvent::Committed { .. }) && left_to_replicas {
                continue;
            }
            self.groups[host.group].invariants.wrote(host.node, event)?;
        }
        let operations = drain(&host.journal);
        check_work(&self.scenario.replica, host.node, &operations)?;
        for operation in &operations {
            if self.tracing {
                let (entry, response) = (operation.entry, &operation.response);
                let what = describe_operation(&operation.operation, response);
                println!("            host {number} applies {entry}: {what} -> {response:?}");
            }
            let group = &mut self.groups[host.group];
            let first = group
                .invariants
                .applied(host.node, &mut host.progress, operation)?;
            if first {
                self.write_checker
                    .applied(group.gid, host.node, operation)?;
                self.shard_checker.applied(group.gid, operation)?;
                self.keyspace_checker
                    .applied(group.gid, operation, self.now)?;
            }
        }
        let machine = host.process.as_ref().map(|it| it.machine().machine());
        if let Some(machine) = machine.filter(|_| !host.disk.is_dead())
            && let (Some(ownership), Some(sessions)) =
                (machine.ownership(), machine.session_count())
        {
            let gid = self.groups[host.group].gid;
            let now = (ownership.as_ref(), sessions);
            self.copy_checker
                .applied(gid, &operations, now, &host.disk)?;
        }
        Ok(())
    }

    pub(super) fn after_poll(&mut self, number: HostId, result: Result<(), StoreError>) -> Checked {
        if self.hosts[number].disk.is_dead() {
            let down = self.rng.magnitude(MILLI, 2_000 * MILLI);
            self.count("crashes inside a step");
            self.crash(number, Some(down));
            return Ok(());
        }
        match result {
            Ok(()) => {}
            Err(StoreError::Full(_)) => {
                self.count("writes refused by a full disk");
                self.hosts[number].busy_until += 10 * MILLI;
                self.plan_work(number);
                return Ok(());
            }
            Err(error @ StoreError::Diverged(_)) => {
                return Err(Violation::new(
                    "replicas have equal states",
                    format!("host {number} stops: {error}"),
                ));
            }
            Err(error) if self.hosts[number].disk.is_damaged() => {
                self.trace(number, || format!("stops: {error}"));
                self.count("damage found while running");
                let down = self.rng.magnitude(10 * MILLI, 1_000 * MILLI);
                self.crash(number, Some(down));
                return Ok(());
            }
            Err(_) if self.hosts[number].disk.refused_commit() => {
                self.count("processes stopped by a full disk");
                let down = self.rng.magnitude(10 * MILLI, 1_000 * MILLI);
                self.crash(number, Some(down));
                return Ok(());
            }
            Err(error) => {
                return Err(Violation::new(
                    "a healthy disk returns no errors",
                    format!("host {number}: {error}"),
                ));
            }
        }
        let host = &mut self.hosts[number];
        let Some(process) = &host.process else {
            return Ok(());
        };
        let status = process.status();
        let has_work = process.needs_poll();
        let disks: &BTreeMap<NodeId, HostId> = &self.nodes;
        let mut progress = std::mem::take(&mut host.progress);
        let disk = host.disk.clone();
        let group = host.group;
        let hosts = &self.hosts;
        let checked = self.groups[group]
            .invariants
            .worked(&status, &mut progress, &disk, |node| {
                let host = disks.get(&node)?;
                Some(hosts[*host].disk.clone())
            });
        self.hosts[number].progress = progress;
        checked?;
        if std::mem::take(&mut self.hosts[number].check_membership) {
            self.groups[group]
                .invariants
                .membership_changed(&status, &disk)?;
        }
        self.check_one_group(number, &status)?;
        self.check_bounds(&status)?;
        if has_work {
            self.plan_work(number);
        }
        self.run_mover(number, &status)
    }

    pub(super) fn check_bounds(&self, status: &Status) -> Checked {
        let limit = self.scenario.replica.max_pending_requests;
        if status.pending_requests > limit {
            return Err(Violation::new(
                "queues are bounded",
                format!(
                    "{} has {} pending requests of at most {limit}",
                    status.node, status.pending_requests
                ),
            ));
        }
        Ok(())
    }
}

/// Describes an operation of a log in one line.
fn describe_operation(operation: &bytes::Bytes, response: &Reply) -> String {
    let operation = operation.clone();
    match response {
        Reply::Kv(shardkv::Response::Keyspace(_)) => {
            // Version and kind come first.
            format!("{:?}", keyspace::Operation::decode(operation.slice(2..)))
        }
        Reply::Ctrl(_) => format!("{:?}", shardctrler::Command::decode(operation)),
        Reply::Kv(_) | Reply::Keyspace(_) | Reply::Renewal(_) => {
            match shardkv::Step::decode(operation.clone()) {
                Ok(step) => describe_step(&step),
                Err(_) => format!("{:?}", shardkv::Command::decode(operation)),
            }
        }
    }
}
