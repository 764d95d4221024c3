//! A world: hosts, a network, clients, and a queue of events.
//!
//! All events happen in one thread, in the order of virtual time. A host's process is an unchanged
//! [`replica::Replica`], and the world is its driver: it drains the inbox into the replica and polls it once, as the
//! server does. Time passes for a host only through its disk. A poll that wrote for 3 ms keeps the host busy for 3 ms,
//! and the messages after that write leave 3 ms later.
//!
//! Further methods of [`World`] are in `process` (the life of processes), `traffic` (messages, requests, answers),
//! `faults` and `liveness`.

use std::collections::BTreeMap;

use raft::{Envelope, Membership};
use replica::{Request, RequestId, Status, initialise};
use types::NodeId;

use crate::client::Client;
use crate::config_client::ConfigClient;
use crate::disk::Disk;
use crate::faults::Fault;
use crate::group::{Group, GroupId, kv_hosts, lay_out};
use crate::history::History;
use crate::host::{Clock, Host, Input};
use crate::invariants::Violation;
use crate::liveness::Ending;
use crate::machine::{Outcome, Question};
use crate::network::{HostId, Network};
use crate::queue::{Micros, Queue};
use crate::rng::{Concern, SimRng, mix};
use crate::scenario::Scenario;
use crate::shard_checker::ShardChecker;
use crate::traffic::Traffic;
use crate::write_checker::WriteChecker;

/// The most search steps for the history of one key.
const CHECK_BUDGET: u64 = 300_000;

pub(crate) type Step = Result<(), Violation>;

/// An event at a moment of virtual time.
#[derive(Debug)]
pub(crate) enum Event {
    /// A process's timer ticks.
    Tick { host: HostId, incarnation: u64 },
    /// A process is free again and has work.
    Work { host: HostId, incarnation: u64 },
    /// A message reaches an address.
    Arrive { host: HostId, envelope: Envelope },
    /// A request reaches an address.
    Ask {
        host: HostId,
        id: RequestId,
        request: Request<Question>,
    },
    /// A request reaches a node that forwards it.
    Forward {
        id: RequestId,
        request: Request<Question>,
    },
    /// An answer reaches the sender of its request.
    Answer { id: RequestId, outcome: Outcome },
    /// A process receives the hint that a connection to `node` broke.
    Hint {
        host: HostId,
        incarnation: u64,
        node: NodeId,
    },
    /// A client is due.
    Client { number: usize },
    /// A config client is due.
    ConfigClient { number: usize },
    /// A mover's driver is due.
    RunningAction { host: HostId, incarnation: u64 },
    /// A process starts.
    Start { host: HostId, incarnation: u64 },
    /// A paused process continues.
    Resume { host: HostId, incarnation: u64 },
    /// A fault begins and schedules its next occurrence.
    Fault(Fault),
    /// A fault ends.
    Mend(Fault, HostId),
    /// The liveness phase checks the recovery.
    Probe,
}

/// The result of a world that violated no invariant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The number of occurrences of each kind of event.
    pub counts: BTreeMap<&'static str, u64>,
    /// A digest of the times of all events, in order. It is equal for equal worlds.
    pub fingerprint: u64,
}

/// A violated invariant, and its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The virtual time in microseconds.
    pub at: Micros,
    /// The violation.
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
    pub(crate) groups: Vec<Group>,
    pub(crate) write_checker: WriteChecker,
    pub(crate) shard_checker: ShardChecker,
    /// The number of hosts of replica groups. They come before the controllers' hosts.
    pub(crate) kv_hosts: usize,
    pub(crate) history: History,
    pub(crate) clients: Vec<Client>,
    pub(crate) client_due: Vec<Micros>,
    pub(crate) config_clients: Vec<ConfigClient>,
    pub(crate) config_client_due: Vec<Micros>,
    pub(crate) rng: SimRng,
    pub(crate) node_rng: SimRng,
    /// The number of requests of the administrator so far.
    pub(crate) admin_sent: u64,
    /// The number of partitions so far. A partition heals only if no later one replaced it.
    pub(crate) cuts: usize,
    /// The answers to the administrator.
    pub(crate) mailbox: BTreeMap<RequestId, Outcome>,
    pub(crate) report: Report,
    pub(crate) tracing: bool,
    /// True once the liveness phase has begun.
    pub(crate) ending: bool,
    pub(crate) ended: bool,
    pub(crate) ending_since: Micros,
    /// The number of configurations that were not settled when the liveness phase began.
    pub(crate) backlog: u64,
    pub(crate) stage: Ending,
    /// The messages and bytes sent so far, for tests that bound them.
    pub(crate) traffic: Traffic,
}

impl World {
    /// Creates a world, initialises the members, and starts all processes.
    pub fn new(scenario: Scenario) -> Result<Self, Failure> {
        let seed = scenario.seed;
        let mut node_rng = SimRng::new(seed, Concern::Nodes);
        let groups = lay_out(&scenario);
        let mut hosts = Vec::new();
        for (group, number) in (0..).zip(&groups).flat_map(|(at, group)| {
            let numbers = group.hosts.clone();
            numbers.map(move |number| (at, number))
        }) {
            hosts.push(draw_host(number, group, &scenario, &mut node_rng));
        }
        let network = Network::new(
            scenario.links.clone(),
            hosts.len(),
            SimRng::new(seed, Concern::Network),
        );
        let clients: Vec<Client> = (0..scenario.clients)
            .map(|number| {
                let stream = u32::try_from(number).unwrap_or(0);
                let rng = SimRng::new(seed, Concern::Client(stream));
                Client::new(number as u64, scenario.client.clone(), 0, rng)
            })
            .collect();
        let mut world = Self {
            now: 0,
            queue: Queue::default(),
            nodes: hosts.iter().map(|host| (host.node, host.number)).collect(),
            hosts,
            network,
            kv_hosts: kv_hosts(&groups),
            config_clients: Vec::new(),
            config_client_due: Vec::new(),
            groups,
            write_checker: WriteChecker::default(),
            shard_checker: ShardChecker::default(),
            history: History::default(),
            client_due: vec![Micros::MAX; clients.len()],
            clients,
            rng: SimRng::new(seed, Concern::Faults),
            node_rng,
            admin_sent: 0,
            cuts: 0,
            mailbox: BTreeMap::new(),
            report: Report::default(),
            tracing: false,
            ending: false,
            ended: false,
            ending_since: 0,
            backlog: 0,
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

    /// Switches the trace of all events on standard output.
    pub fn set_tracing(&mut self, tracing: bool) {
        self.tracing = tracing;
    }

    fn begin(&mut self) -> Step {
        for group in &mut self.groups {
            let voters = || self.hosts[group.hosts.clone()].iter().take(group.members);
            let named = voters().map(|host| (host.node, host.address.clone()));
            let membership = Membership::of_voters(named);
            let genesis = group.genesis.to_batch();
            for host in voters() {
                let (mut log, mut state) = host.disk.open();
                initialise(&mut log, &mut state, &membership, genesis.clone()).map_err(
                    |error| Violation::new("an empty disk can be initialised", error.to_string()),
                )?;
                for event in host.disk.take_journal() {
                    group.invariants.wrote(host.node, event)?;
                }
            }
        }
        for number in 0..self.hosts.len() {
            self.start(number)?;
        }
        for number in 0..self.clients.len() {
            self.plan_client(number);
        }
        self.start_config_clients();
        self.plan_faults();
        Ok(())
    }

    /// Runs the phase with faults, then the liveness phase.
    pub fn run(&mut self) -> Result<Report, Failure> {
        let duration = self.scenario.duration;
        self.run_until(duration)?;
        self.run_end()
    }

    /// Runs the liveness phase and the last checks.
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

    /// Runs all events until `until`.
    pub fn run_until(&mut self, until: Micros) -> Result<(), Failure> {
        loop {
            match self.queue.pop() {
                Some((at, event)) if at <= until => {
                    self.now = at;
                    let result = self.happen(event);
                    self.judge(result)?;
                }
                Some((at, event)) => {
                    // The event is later. It goes last among the events of its moment, in every run alike.
                    self.queue.push(at, event);
                    break;
                }
                None => break,
            }
        }
        self.now = until;
        Ok(())
    }

    /// Runs the next event.
    pub fn step(&mut self) -> Result<(), Failure> {
        let Some((at, event)) = self.queue.pop() else {
            let still = Violation::new("liveness", "no event is left in the queue");
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
            Event::Forward { id, request } => self.forwarded(id, request),
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
            Event::Client { number } => {
                self.client_wakes(number);
                Ok(())
            }
            Event::ConfigClient { number } => {
                self.config_client_wakes(number);
                Ok(())
            }
            Event::RunningAction { host, incarnation } => {
                let up = self.hosts[host].is_up();
                if self.hosts[host].incarnation != incarnation || !up {
                    return Ok(());
                }
                self.mover_due(host)
            }
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
            Event::Fault(fault) => {
                self.fault(fault);
                Ok(())
            }
            Event::Mend(fault, host) => self.mend(fault, host),
            Event::Probe => self.probe(),
        }
    }

    /// Returns the status of a host's process, if one runs.
    pub fn status(&self, number: HostId) -> Option<Status> {
        let process = self.hosts.get(number)?.process.as_ref()?;
        Some(process.status())
    }

    /// Returns the virtual time.
    pub fn now(&self) -> Micros {
        self.now
    }

    /// Returns the traffic so far.
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Checks the clients' history so far.
    pub fn check_history(&self) -> Result<(), Violation> {
        self.history
            .check(CHECK_BUDGET, |name| self.write_checker.place(name))
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

    /// Prints a line of the trace.
    pub(crate) fn print(&self, line: &str) {
        let (seconds, micros) = (self.now / 1_000_000, self.now % 1_000_000);
        println!("{seconds:>4}.{micros:06} {line}");
    }
}

fn draw_host(number: HostId, group: GroupId, scenario: &Scenario, rng: &mut SimRng) -> Host {
    let stream = u32::try_from(number).unwrap_or(0);
    let disk = Disk::new(
        scenario.disks.clone(),
        SimRng::new(scenario.seed, Concern::Disk(stream)),
    );
    let clock = Clock {
        skew_ms: spread(rng, scenario.skew_ms),
        drift: spread(rng, scenario.drift.into()),
    };
    Host::new(number, group, draw_node(rng), disk, clock)
}

/// Draws a number from `-most` to `most`.
pub(crate) fn spread(rng: &mut SimRng, most: u64) -> i64 {
    let most = i64::try_from(most).unwrap_or(i64::MAX / 4);
    let drawn = rng.below(u64::try_from(2 * most + 1).unwrap_or(1));
    i64::try_from(drawn).unwrap_or(0) - most
}

/// Draws a node id that is short enough to read.
pub(crate) fn draw_node(rng: &mut SimRng) -> NodeId {
    NodeId((rng.number() & 0xffff_ffff) | 1)
}
