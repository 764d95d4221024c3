//! A world: hosts, a network, clients, and the queue of what happens next.
//!
//! Everything happens in one thread, in the order of virtual time. A host's process is a [`replica::Replica`],
//! unchanged; the world is its driver. It drains an inbox into the replica and polls it once, as the server
//! does. Time passes for a host only through its disk: a poll that wrote for 3 ms leaves the host busy for
//! that long, and what it sent after the write leaves that much later.
//!
//! The modules `faults` and `finale` add what a world does to its hosts, and how it ends.

use std::collections::BTreeMap;

use raft::{Envelope, Membership, Message, Payload, Role, StoreError};
use replica::{Refusal, Replica, Request, RequestId, Status, initialise};
use shardkv::{Query, ShardKv};
use types::NodeId;

use crate::client::{Client, Outcome, Outgoing, Surroundings, client_of};
use crate::dice::{Concern, Dice, mix};
use crate::disk::{Disk, DiskEvent};
use crate::faults::{ADMIN, Admin, Fault};
use crate::finale::Ending;
use crate::history::History;
use crate::host::{Clock, Host, Input, Leaving, address};
use crate::network::{HostId, Network};
use crate::oracle::{Oracle, Violation};
use crate::queue::{MILLI, Micros, Queue};
use crate::scenario::Scenario;
use crate::watched::{Watched, drain};

/// How many search steps a key's history may take.
const CHECK_BUDGET: u64 = 300_000;

pub(crate) type Step = Result<(), Violation>;

/// What happens at a moment.
#[derive(Debug)]
pub(crate) enum Event {
    /// A process's timer.
    Tick { host: HostId, incarnation: u64 },
    /// A process is free again and has something to do.
    Work { host: HostId, incarnation: u64 },
    /// A message reaches an address.
    Arrive { host: HostId, envelope: Envelope },
    /// A request reaches an address.
    Ask {
        host: HostId,
        id: RequestId,
        request: Request<Query>,
    },
    /// An answer reaches whoever asked.
    Answer { id: RequestId, outcome: Outcome },
    /// A process is told that a connection broke.
    Hint {
        host: HostId,
        incarnation: u64,
        node: NodeId,
    },
    /// A client has something to do.
    Client { number: usize },
    /// A process starts.
    Start { host: HostId, incarnation: u64 },
    /// A process moves on.
    Resume { host: HostId, incarnation: u64 },
    /// A fault begins, and plans its next occurrence.
    Fault(Fault),
    /// A fault ends.
    Mend(Fault, HostId),
    /// The end looks whether all is well.
    Probe,
}

/// What happened in a world.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// How often what happened.
    pub counts: BTreeMap<&'static str, u64>,
    /// A digest of everything that happened, in order: equal for equal worlds.
    pub fingerprint: u64,
}

/// A promise was broken at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// When, in microseconds.
    pub at: Micros,
    /// What.
    pub violation: Violation,
}

/// One simulated cluster.
pub struct World {
    pub(crate) scenario: Scenario,
    pub(crate) now: Micros,
    pub(crate) queue: Queue<Event>,
    pub(crate) hosts: Vec<Host>,
    pub(crate) nodes: BTreeMap<NodeId, HostId>,
    pub(crate) network: Network,
    pub(crate) oracle: Oracle,
    pub(crate) history: History,
    pub(crate) clients: Vec<Client>,
    client_due: Vec<Micros>,
    pub(crate) dice: Dice,
    pub(crate) node_dice: Dice,
    pub(crate) admin: Admin,
    /// Answers to the administrator.
    pub(crate) mailbox: BTreeMap<RequestId, Outcome>,
    pub(crate) report: Report,
    pub(crate) tracing: bool,
    /// The end has begun: faults are over.
    pub(crate) ending: bool,
    pub(crate) ended: bool,
    pub(crate) ending_since: Micros,
    pub(crate) stage: Ending,
    /// Messages and bytes of entries put on the wire, for tests of economy.
    pub(crate) traffic: Traffic,
}

/// What went over the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Messages between nodes.
    pub messages: u64,
    /// Those that ask for an answer: what a remote procedure call would be one of.
    pub calls: u64,
    /// Messages that carry entries.
    pub appends: u64,
    /// Bytes of entries.
    pub bytes: u64,
}

impl World {
    /// A world at its beginning: the members are initialised and start.
    pub fn new(scenario: Scenario) -> Result<Self, Failure> {
        let seed = scenario.seed;
        let mut node_dice = Dice::new(seed, Concern::Nodes);
        let hosts: Vec<Host> = (0..scenario.hosts)
            .map(|number| draw_host(number, &scenario, &mut node_dice))
            .collect();
        let network = Network::new(
            scenario.links.clone(),
            hosts.len(),
            Dice::new(seed, Concern::Network),
        );
        let clients: Vec<Client> = (0..scenario.clients)
            .map(|number| {
                let stream = u32::try_from(number).unwrap_or(0);
                let dice = Dice::new(seed, Concern::Client(stream));
                Client::new(number as u64, scenario.client.clone(), 0, dice)
            })
            .collect();
        let mut world = Self {
            now: 0,
            queue: Queue::default(),
            nodes: hosts.iter().map(|host| (host.node, host.number)).collect(),
            hosts,
            network,
            oracle: Oracle::default(),
            history: History::default(),
            client_due: vec![Micros::MAX; clients.len()],
            clients,
            dice: Dice::new(seed, Concern::Faults),
            node_dice,
            admin: Admin::default(),
            mailbox: BTreeMap::new(),
            report: Report::default(),
            tracing: false,
            ending: false,
            ended: false,
            ending_since: 0,
            stage: Ending::Not,
            traffic: Traffic::default(),
            scenario,
        };
        let begun = world.begin();
        match begun {
            Ok(()) => Ok(world),
            Err(violation) => Err(Failure { at: 0, violation }),
        }
    }

    /// Prints what happens.
    pub fn set_tracing(&mut self, tracing: bool) {
        self.tracing = tracing;
    }

    fn begin(&mut self) -> Step {
        let voters = self.hosts.iter().take(self.scenario.members);
        let membership =
            Membership::of_voters(voters.map(|host| (host.node, host.address.clone())));
        let genesis = self.scenario.genesis.to_batch();
        for host in self.hosts.iter().take(self.scenario.members) {
            let (mut log, mut state) = host.disk.open();
            initialise(&mut log, &mut state, &membership, genesis.clone())
                .map_err(|error| Violation::new("an empty disk takes a group", error.to_string()))?;
            for event in host.disk.take_journal() {
                self.oracle.wrote(host.node, event)?;
            }
        }
        for number in 0..self.hosts.len() {
            self.start(number)?;
        }
        for number in 0..self.clients.len() {
            self.plan_client(number);
        }
        self.plan_faults();
        Ok(())
    }

    /// Runs the scenario to its end, which is a phase without faults in which all must become well.
    pub fn run(&mut self) -> Result<Report, Failure> {
        let duration = self.scenario.duration;
        self.run_until(duration)?;
        self.run_end()
    }

    /// The phase without faults, and the last checks.
    pub(crate) fn run_end(&mut self) -> Result<Report, Failure> {
        let result = self.end();
        self.judge(result)?;
        while !self.ended {
            self.step()?;
        }
        let result = self.conclude();
        self.judge(result)?;
        Ok(self.report.clone())
    }

    /// Lets time pass until `until`.
    pub fn run_until(&mut self, until: Micros) -> Result<(), Failure> {
        loop {
            match self.queue.pop() {
                Some((at, event)) if at <= until => {
                    self.now = at;
                    let result = self.happen(event);
                    self.judge(result)?;
                }
                Some((at, event)) => {
                    // It belongs to the time after; among its like it goes last, the same every time.
                    self.queue.push(at, event);
                    break;
                }
                None => break,
            }
        }
        self.now = until;
        Ok(())
    }

    /// Lets the next event happen.
    pub fn step(&mut self) -> Result<(), Failure> {
        let Some((at, event)) = self.queue.pop() else {
            let still = Violation::new("liveness", "nothing is left to happen");
            return self.judge(Err(still));
        };
        self.now = at;
        let result = self.happen(event);
        self.judge(result)
    }

    fn judge(&self, result: Step) -> Result<(), Failure> {
        result.map_err(|violation| {
            if self.tracing {
                self.print(&format!("!! {}: {}", violation.invariant, violation.detail));
            }
            Failure {
                at: self.now,
                violation,
            }
        })
    }

    fn happen(&mut self, event: Event) -> Step {
        self.report.fingerprint = mix(self.report.fingerprint ^ self.now);
        match event {
            Event::Tick { host, incarnation } => self.ticked(host, incarnation),
            Event::Work { host, incarnation } => {
                if self.hosts[host].incarnation != incarnation {
                    return Ok(());
                }
                self.hosts[host].work_due = false;
                self.wake(host)
            }
            Event::Arrive { host, envelope } => {
                let here = self.hosts[host].node;
                if envelope.to != here && envelope.to != NodeId(0) {
                    self.count("messages for a node that is gone");
                    return Ok(());
                }
                self.take_in(host, Input::Message(envelope))
            }
            Event::Ask { host, id, request } => self.asked(host, id, request),
            Event::Answer { id, outcome } => self.answered(id, outcome),
            Event::Hint {
                host,
                incarnation,
                node,
            } => {
                if self.hosts[host].incarnation == incarnation {
                    self.take_in(host, Input::Hint(node))
                } else {
                    Ok(())
                }
            }
            Event::Client { number } => self.client_wakes(number),
            Event::Start { host, incarnation } => {
                if self.hosts[host].incarnation == incarnation {
                    self.start(host)
                } else {
                    Ok(())
                }
            }
            Event::Resume { host, incarnation } => {
                if self.hosts[host].incarnation == incarnation {
                    self.resume(host)
                } else {
                    Ok(())
                }
            }
            Event::Fault(fault) => self.fault(fault),
            Event::Mend(fault, host) => self.mend(fault, host),
            Event::Probe => self.probe(),
        }
    }

    // --- processes ---

    /// Starts a process on a host's disk; if the disk refuses, it is replaced by an empty one.
    pub(crate) fn start(&mut self, number: HostId) -> Step {
        let seed = self.node_dice.number();
        if self.hosts[number].process.is_some() {
            return Ok(());
        }
        match self.recover(number, seed) {
            Ok(()) => {}
            Err(error) if self.hosts[number].disk.is_damaged() => {
                self.count("damaged disks refused");
                self.trace(number, || format!("refuses to start: {error}"));
                self.wipe(number);
                self.recover(number, seed).map_err(|error| {
                    Violation::new("an empty disk starts", format!("host {number}: {error}"))
                })?;
            }
            Err(error) => {
                return Err(Violation::new(
                    "what a crash leaves can be recovered",
                    format!("host {number}: {error}"),
                ));
            }
        }
        let host = &mut self.hosts[number];
        host.incarnation += 1;
        let incarnation = host.incarnation;
        let tick = Micros::from(self.scenario.replica.tick_ms) * MILLI;
        let first = self.node_dice.between(1, tick);
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

    fn recover(&mut self, number: HostId, seed: u64) -> Result<(), replica::RecoverError> {
        let host = &mut self.hosts[number];
        host.disk.begin(self.now);
        let (log, state) = host.disk.open();
        let mut options = self.scenario.replica.clone();
        options.address.clone_from(&host.address);
        options.raft.bug = self.scenario.bug;
        let machine = ShardKv::with_bug(self.scenario.bug);
        let machine = Watched::new(machine, host.journal.clone());
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
        Ok(())
    }

    /// Kills a host's process, which starts again after `down` (or not by itself).
    pub(crate) fn crash(&mut self, number: HostId, down: Option<Micros>) {
        let node = self.hosts[number].node;
        let was_up = self.hosts[number].process.is_some();
        self.hosts[number].take_down(self.now);
        let incarnation = self.hosts[number].incarnation;
        if was_up {
            self.count("crashes");
            self.trace(number, || format!("crashes, down for {down:?}"));
            self.spread_hint(number, node);
        }
        if let Some(down) = down {
            let start = Event::Start {
                host: number,
                incarnation,
            };
            self.queue.push(self.now + down, start);
        }
    }

    /// The others learn that the connection to `node` broke, mostly.
    pub(crate) fn spread_hint(&mut self, host: HostId, node: NodeId) {
        for other in (0..self.hosts.len()).filter(|other| *other != host) {
            let delay = self.dice.magnitude(100, 100 * MILLI);
            if self.dice.chance(800_000) {
                let hint = Event::Hint {
                    host: other,
                    incarnation: self.hosts[other].incarnation,
                    node,
                };
                self.queue.push(self.now + delay, hint);
            }
        }
    }

    fn resume(&mut self, number: HostId) -> Step {
        if !self.hosts[number].paused {
            return Ok(());
        }
        self.hosts[number].paused = false;
        self.trace(number, || "moves on".to_owned());
        self.wake(number)
    }

    fn ticked(&mut self, number: HostId, incarnation: u64) -> Step {
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

    fn take_in(&mut self, number: HostId, input: Input) -> Step {
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

    /// Has a process work now, or as soon as it is free.
    pub(crate) fn wake(&mut self, number: HostId) -> Step {
        let host = &mut self.hosts[number];
        if !host.is_up() || host.work_due {
            return Ok(());
        }
        if host.busy_until <= self.now {
            return self.work(number);
        }
        host.work_due = true;
        let work = Event::Work {
            host: number,
            incarnation: host.incarnation,
        };
        self.queue.push(host.busy_until, work);
        Ok(())
    }

    /// One round of a process: all that waits goes in, then it does what is due.
    fn work(&mut self, number: HostId) -> Step {
        let host = &mut self.hosts[number];
        let Some(mut process) = host.process.take() else {
            return Ok(());
        };
        host.disk.begin(self.now);
        // Time first: a leader that stood still must notice before it serves from a lease.
        let owed = std::mem::take(&mut host.owed_ticks);
        let ticks = owed.min(self.scenario.catch_up_ticks.max(1));
        if owed > ticks {
            process.lost_time();
        }
        for _ in 0..ticks {
            process.tick(host.clock.wall(self.now));
        }
        let mut refused = None;
        while let Some(input) = host.inbox.pop_front() {
            match input {
                Input::Message(envelope) => {
                    if let Err(error) = process.receive(envelope) {
                        refused = refused.or(Some(error));
                    }
                }
                Input::Request(id, request) => {
                    host.asked.insert(id);
                    process.submit(id, request);
                }
                Input::Hint(node) => process.peer_disconnected(node),
            }
        }
        let mut leaving = Leaving::new(&host.disk);
        let result = process.poll(&mut leaving);
        let Leaving {
            messages, answers, ..
        } = leaving;
        let busy = host.disk.elapsed().max(20);
        host.busy_until = self.now + busy;
        host.process = Some(process);
        if let Some(error) = refused {
            return Err(Violation::new(
                "peers make sense",
                format!("host {number}: {error}"),
            ));
        }
        self.observe_disk(number)?;
        for (after, envelope) in messages {
            self.leave(number, after, envelope)?;
        }
        for (after, id, outcome) in answers {
            self.reply(number, after, id, outcome)?;
        }
        self.worked(number, result)
    }

    /// Shows the oracle what a process wrote and applied.
    fn observe_disk(&mut self, number: HostId) -> Step {
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
                host.look_at_membership |= *truncated || entries.iter().any(changes);
            }
            if matches!(event, DiskEvent::Compacted { .. }) {
                *self.report.counts.entry("compactions").or_default() += 1;
            }
            self.oracle.wrote(host.node, event)?;
        }
        for operation in drain(&host.journal) {
            if self.tracing {
                let command = shardkv::Command::decode(operation.operation.clone());
                let (entry, response) = (operation.entry, &operation.response);
                println!(
                    "            host {number} applies {entry}: {command:?} -> {response:?}"
                );
            }
            self.oracle
                .applied(host.node, &mut host.progress, &operation)?;
        }
        Ok(())
    }

    fn worked(&mut self, number: HostId, result: Result<(), StoreError>) -> Step {
        if self.hosts[number].disk.is_dead() {
            let down = self.dice.magnitude(MILLI, 2_000 * MILLI);
            self.count("crashes inside a step");
            self.crash(number, Some(down));
            return Ok(());
        }
        match result {
            Ok(()) => {}
            Err(StoreError::Full(_)) => {
                self.count("writes refused by a full disk");
                self.hosts[number].busy_until += 10 * MILLI;
                return self.plan_work(number);
            }
            Err(error) if self.hosts[number].disk.is_damaged() => {
                self.trace(number, || format!("stops: {error}"));
                self.count("damage found while running");
                let down = self.dice.magnitude(10 * MILLI, 1_000 * MILLI);
                self.crash(number, Some(down));
                return Ok(());
            }
            Err(error) => {
                return Err(Violation::new(
                    "a healthy disk serves",
                    format!("host {number}: {error}"),
                ));
            }
        }
        let host = &mut self.hosts[number];
        let Some(process) = &host.process else {
            return Ok(());
        };
        let status = process.status();
        let has_work = process.has_work();
        let disks: &BTreeMap<NodeId, HostId> = &self.nodes;
        let mut progress = std::mem::take(&mut host.progress);
        let disk = host.disk.clone();
        let hosts = &self.hosts;
        let checked = self.oracle.worked(&status, &mut progress, &disk, |node| {
            let host = disks.get(&node)?;
            Some(hosts[*host].disk.clone())
        });
        self.hosts[number].progress = progress;
        checked?;
        if std::mem::take(&mut self.hosts[number].look_at_membership) {
            self.oracle.membership_changed(&status, &disk)?;
        }
        self.check_bounds(&status)?;
        if has_work {
            self.plan_work(number)?;
        }
        Ok(())
    }

    fn plan_work(&mut self, number: HostId) -> Step {
        let host = &mut self.hosts[number];
        if !host.work_due {
            host.work_due = true;
            let work = Event::Work {
                host: number,
                incarnation: host.incarnation,
            };
            self.queue.push(host.busy_until.max(self.now + 1), work);
        }
        Ok(())
    }

    fn check_bounds(&self, status: &Status) -> Step {
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

    // --- what leaves ---

    fn leave(&mut self, from: HostId, after: Micros, envelope: Envelope) -> Step {
        self.oracle.sent(&envelope)?;
        self.traffic.messages += 1;
        self.traffic.calls += u64::from(is_call(&envelope.message));
        if let Message::Append { entries, .. } = &envelope.message
            && !entries.is_empty()
        {
            self.traffic.appends += 1;
            let bytes: usize = entries.iter().map(raft::Entry::size).sum();
            self.traffic.bytes += bytes as u64;
        }
        self.trace(from, || format!("-> {} {}", envelope.to, describe(&envelope)));
        if envelope.to == NodeId(0) {
            for to in (0..self.hosts.len()).filter(|to| *to != from) {
                self.transmit(from, to, after, envelope.clone());
            }
        } else if let Some(to) = self.nodes.get(&envelope.to).copied() {
            self.transmit(from, to, after, envelope);
        } else {
            self.count("messages for a node that is gone");
        }
        Ok(())
    }

    fn transmit(&mut self, from: HostId, to: HostId, after: Micros, envelope: Envelope) {
        let [first, second] = self.network.arrivals(from, to, self.now + after);
        if let Some(at) = second {
            self.count("messages duplicated");
            let envelope = envelope.clone();
            self.queue.push(at, Event::Arrive { host: to, envelope });
        }
        match first {
            Some(at) => self.queue.push(at, Event::Arrive { host: to, envelope }),
            None => self.count("messages lost"),
        }
    }

    fn reply(&mut self, from: HostId, after: Micros, id: RequestId, outcome: Outcome) -> Step {
        if !self.hosts[from].asked.remove(&id) {
            return Err(Violation::new(
                "a request is answered once",
                format!("host {from} answered {id:?} again or unasked: {outcome:?}"),
            ));
        }
        self.trace(from, || format!("answers {id:x?}: {outcome:?}"));
        let of_client = client_of(id) < ADMIN;
        if of_client && (self.hosts[from].unreachable || self.network.loses()) {
            return Ok(());
        }
        let at = self.now + after + self.network.delay();
        self.queue.push(at, Event::Answer { id, outcome });
        Ok(())
    }

    // --- requests ---

    /// Sends a request to a host.
    pub(crate) fn send_request(&mut self, outgoing: Outgoing) {
        let Outgoing {
            to,
            id,
            request,
            delay,
        } = outgoing;
        if self.hosts[to].unreachable || self.network.loses() {
            return;
        }
        let at = self.now + delay + self.network.delay();
        self.queue.push(
            at,
            Event::Ask {
                host: to,
                id,
                request,
            },
        );
    }

    fn asked(&mut self, number: HostId, id: RequestId, request: Request<Query>) -> Step {
        if self.hosts[number].process.is_none() {
            // Nobody listens: the caller learns that at once, and that nothing was done.
            let at = self.now + self.network.delay();
            let outcome = Err(Refusal::NotLeader { leader: None });
            self.queue.push(at, Event::Answer { id, outcome });
            return Ok(());
        }
        self.trace(number, || format!("is asked {id:x?}: {request:?}"));
        self.take_in(number, Input::Request(id, request))
    }

    fn answered(&mut self, id: RequestId, outcome: Outcome) -> Step {
        let number = usize::try_from(client_of(id)).unwrap_or(usize::MAX);
        if number >= self.clients.len() {
            self.admin_answered(id, outcome);
            return Ok(());
        }
        let mut out = Vec::new();
        let mut around = Surroundings {
            now: self.now,
            history: &mut self.history,
            addresses: &self.nodes,
            hosts: self.hosts.len(),
            out: &mut out,
        };
        self.clients[number].answered(id, outcome, &mut around)?;
        for outgoing in out {
            self.send_request(outgoing);
        }
        self.plan_client(number);
        Ok(())
    }

    fn client_wakes(&mut self, number: usize) -> Step {
        if self.client_due[number] > self.now {
            return Ok(());
        }
        self.client_due[number] = Micros::MAX;
        let mut out = Vec::new();
        let mut around = Surroundings {
            now: self.now,
            history: &mut self.history,
            addresses: &self.nodes,
            hosts: self.hosts.len(),
            out: &mut out,
        };
        self.clients[number].wake(&mut around);
        for outgoing in out {
            self.send_request(outgoing);
        }
        self.plan_client(number);
        Ok(())
    }

    /// Schedules a client's next step, unless an earlier one is scheduled already.
    pub(crate) fn plan_client(&mut self, number: usize) {
        let due = self.clients[number].due();
        if due < self.client_due[number] {
            let due = due.max(self.now + 1);
            self.client_due[number] = due;
            self.queue.push(due, Event::Client { number });
        }
    }

    // --- what others ask ---

    /// The host whose process leads, by the highest term.
    pub fn leader(&self) -> Option<HostId> {
        let leading = self.hosts.iter().filter_map(|host| {
            let status = host.process.as_ref()?.status();
            (status.role == Role::Leader && !host.paused).then_some((status.term, host.number))
        });
        leading.max().map(|(_, number)| number)
    }

    /// What the process of a host says of itself, if one runs.
    pub fn status(&self, number: HostId) -> Option<Status> {
        let process = self.hosts.get(number)?.process.as_ref()?;
        Some(process.status())
    }

    /// The moment.
    pub fn now(&self) -> Micros {
        self.now
    }

    /// What went over the wire so far.
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Checks the clients' history so far.
    pub fn check_history(&self) -> Result<(), Violation> {
        self.history.check(CHECK_BUDGET, |name| self.oracle.place(name))
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        *self.report.counts.entry(what).or_default() += 1;
    }

    pub(crate) fn trace(&self, number: HostId, what: impl FnOnce() -> String) {
        if self.tracing {
            let node = self.hosts[number].node;
            self.print(&format!("host {number} {node} {}", what()));
        }
    }

    /// A line of the trace.
    pub(crate) fn print(&self, line: &str) {
        let (seconds, micros) = (self.now / 1_000_000, self.now % 1_000_000);
        println!("{seconds:>4}.{micros:06} {line}");
    }
}

fn draw_host(number: HostId, scenario: &Scenario, dice: &mut Dice) -> Host {
    let stream = u32::try_from(number).unwrap_or(0);
    let disk = Disk::new(
        scenario.disks.clone(),
        Dice::new(scenario.seed, Concern::Disk(stream)),
    );
    let clock = Clock {
        skew_ms: spread(dice, scenario.skew_ms),
        drift: spread(dice, scenario.drift.into()),
    };
    Host::new(number, draw_node(dice), disk, clock)
}

/// A number from minus to plus `most`.
pub(crate) fn spread(dice: &mut Dice, most: u64) -> i64 {
    let most = i64::try_from(most).unwrap_or(i64::MAX / 4);
    let drawn = dice.below(u64::try_from(2 * most + 1).unwrap_or(1));
    i64::try_from(drawn).unwrap_or(0) - most
}

/// A new node id: random, short enough to read.
pub(crate) fn draw_node(dice: &mut Dice) -> NodeId {
    NodeId((dice.number() & 0xffff_ffff) | 1)
}

fn is_call(message: &Message) -> bool {
    !matches!(
        message,
        Message::PreVoteReply { .. }
            | Message::VoteReply { .. }
            | Message::AppendAccepted { .. }
            | Message::AppendRejected { .. }
            | Message::HeartbeatReply { .. }
            | Message::SnapshotReply { .. }
    )
}

/// A message in a line.
fn describe(envelope: &Envelope) -> String {
    let Envelope { term, message, .. } = envelope;
    match message {
        Message::Append {
            prev,
            entries,
            commit,
        } => {
            let last = entries.last().map(|entry| entry.id);
            let last = last.map_or_else(|| "nothing".to_owned(), |id| id.to_string());
            format!(
                "[{term}] Append after {prev}: {} entries to {last}, commit {commit}",
                entries.len()
            )
        }
        Message::SnapshotChunk(chunk) => format!(
            "[{term}] SnapshotChunk {} of {}, {} bytes, done {}",
            chunk.number,
            chunk.meta.last,
            chunk.data.len(),
            chunk.done
        ),
        other => format!("[{term}] {other:?}"),
    }
}

/// The address of a host, as members know it.
pub fn host_address(number: HostId) -> String {
    address(number)
}
