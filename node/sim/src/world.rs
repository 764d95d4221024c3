//! A world: hosts, a network, clients, and a queue of events.
//!
//! All events happen in one thread, in the order of virtual time. A host's process is an unchanged
//! [`replica::Replica`], and the world is its driver: it drains the inbox into the replica and polls it once, as the
//! server does. Time passes for a host only through its disk. A poll that wrote for 3 ms keeps the host busy for 3 ms,
//! and the messages after that write leave 3 ms later.
//!
//! This file holds the state of a world, the questions that its parts ask about it, and the schedule of events. The
//! behaviour is in the modules below, each of which calls only this file and the modules above it in the table:
//!
//! | module | behaviour |
//! |---|---|
//! | `send` | messages, requests and answers leave, and the network decides when they arrive |
//! | `old_answers` | answers of followers come a second time, when their receiver leads again |
//! | `partition` | links are cut |
//! | `admin` | the administrator changes memberships and transfers leaderships |
//! | `mover` | movers act, and get answers |
//! | `process` | a process starts, works, and crashes |
//! | `first_start` | a host looks for its group before its first process; volumes are lost, come back and are exchanged |
//! | `stop` | a process is asked to stop |
//! | `pages` | a process reads pages of scans on other threads |
//! | `served` | reads are answered by those who serve the shard |
//! | `forward` | a node forwards a request |
//! | `follower_reads` | followers serve reads |
//! | `keyspaces` | clients of keyspaces act, and processes read keyspaces |
//! | `receive` | requests and answers arrive, and clients act |
//! | `faults` | faults begin and end |
//! | `late` | calls between groups come a second time, late |
//! | `steps` | faults happen at the steps of moves |
//! | `recovery` | finds what has not recovered yet |
//! | `liveness` | the phase without faults |
//! | `final_checks` | the checks after it |
//! | `run` | the loop that takes each event and calls the modules above |

mod admin;
mod faults;
mod final_checks;
mod first_start;
mod follower_reads;
mod forward;
mod keyspaces;
mod late;
mod liveness;
mod mover;
mod old_answers;
mod pages;
mod partition;
mod process;
mod receive;
mod recovery;
mod run;
mod send;
mod served;
mod steps;
mod stop;
mod watches;
mod work;

use std::collections::{BTreeMap, BTreeSet};

use raft::{Membership, Role};
use replica::{RequestId, Status};
use types::{ClusterId, Gid, NodeId};

use crate::bug::Bug;
use crate::client::Client;
use crate::config_client::ConfigClient;
use crate::copy_checker::CopyChecker;
use crate::disk::Disk;
use crate::event::Event;
use crate::fault::Fault;
use crate::group::{Group, GroupId, kv_hosts, lay_out};
use crate::history::History;
use crate::host::{Clock, Host};
use crate::keyspace_checker::KeyspaceChecker;
use crate::keyspace_client::KeyspaceClient;
use crate::late_calls::LateCalls;
use crate::machine::Outcome;
use crate::network::{HostId, Network};
use crate::queue::{Micros, Queue};
use crate::report::Report;
use crate::rng::{Concern, SimRng};
use crate::scenario::Scenario;
use crate::shard_checker::ShardChecker;
use crate::traffic::Traffic;
use crate::watcher::Watcher;
use crate::write_checker::WriteChecker;
use old_answers::OldAnswers;

/// One simulated cluster.
pub struct World {
    pub(crate) scenario: Scenario,
    pub(crate) now: Micros,
    pub(crate) queue: Queue<Event>,
    pub(crate) hosts: Vec<Host>,
    pub(crate) nodes: BTreeMap<NodeId, HostId>,
    /// The cluster of each node that ever knew one, in worlds with first starts.
    pub(crate) clusters: BTreeMap<NodeId, ClusterId>,
    /// The number of rounds of questions of hosts that look for their groups.
    pub(crate) rounds: u64,
    pub(crate) network: Network,
    pub(crate) groups: Vec<Group>,
    pub(crate) write_checker: WriteChecker,
    pub(crate) shard_checker: ShardChecker,
    pub(crate) copy_checker: CopyChecker,
    /// The number of hosts of replica groups. They come before the controllers' hosts.
    pub(crate) kv_hosts: usize,
    pub(crate) history: History,
    pub(crate) clients: Vec<Client>,
    pub(crate) client_due: Vec<Micros>,
    pub(crate) keyspace_checker: KeyspaceChecker,
    pub(crate) keyspace_clients: Vec<KeyspaceClient>,
    pub(crate) keyspace_client_due: Vec<Micros>,
    pub(crate) watchers: Vec<Watcher>,
    /// Of watches and the ends of leases.
    pub(crate) watch_rng: SimRng,
    /// The number of expiries that were proposed.
    pub(crate) expiries: u32,
    pub(crate) config_clients: Vec<ConfigClient>,
    pub(crate) config_client_due: Vec<Micros>,
    pub(crate) rng: SimRng,
    pub(crate) node_rng: SimRng,
    /// Of late calls, and of faults at the steps of moves.
    pub(crate) step_rng: SimRng,
    pub(crate) late_calls: LateCalls,
    pub(crate) old_answers: OldAnswers,
    /// The number of requests of the administrator so far.
    pub(crate) admin_sent: u64,
    /// The number of partitions so far. A partition heals only if no later one replaced it.
    pub(crate) partitions: usize,
    /// The answers to the administrator.
    pub(crate) admin_answers: BTreeMap<RequestId, Outcome>,
    pub(crate) report: Report,
    pub(crate) tracing: bool,
    /// The time at which the liveness phase began, or began again.
    pub(crate) phase_since: Micros,
    /// The number of configurations that were not settled when the liveness phase began.
    pub(crate) unsettled_configs: u64,
    pub(crate) phase: Phase,
    /// The groups that stay down in that part of the liveness phase.
    pub(crate) down: BTreeSet<GroupId>,
    /// The messages and bytes sent so far, for tests that bound them.
    pub(crate) traffic: Traffic,
}

/// The phase of a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Faults happen. All later phases are without faults.
    Faults,
    /// Some groups are down, and a minority of the others' hosts. Everything that doesn't need these groups must recover.
    GroupsDown,
    /// Clients still start operations.
    ClientsActive,
    /// Clients finish their operations, and nodes rejoin.
    Recovering,
    /// A client writes a key of each shard.
    FinalWrites,
    /// A client reads these keys, and each key once more.
    FinalReads,
    /// The cluster has recovered.
    Done,
}

impl World {
    /// Creates a world in which nothing has happened yet.
    pub fn new(scenario: Scenario) -> Self {
        let seed = scenario.seed;
        let groups = lay_out(&scenario);
        let mut node_rng = SimRng::new(seed, Concern::Nodes);
        let hosts = draw_hosts(&scenario, &groups, &mut node_rng);
        let rng = SimRng::new(seed, Concern::Network);
        let network = Network::new(scenario.links.clone(), hosts.len(), rng);
        let clients = clients(&scenario);
        let config_clients = config_clients(&scenario, &groups);
        let keyspace_clients = keyspaces::clients(&scenario);
        Self {
            now: 0,
            queue: Queue::default(),
            nodes: hosts.iter().map(|host| (host.node, host.number)).collect(),
            clusters: BTreeMap::new(),
            rounds: 0,
            hosts,
            network,
            kv_hosts: kv_hosts(&groups),
            config_client_due: vec![Micros::MAX; config_clients.len()],
            config_clients,
            keyspace_checker: KeyspaceChecker::default(),
            keyspace_client_due: vec![Micros::MAX; keyspace_clients.len()],
            keyspace_clients,
            watchers: keyspaces::watchers(&scenario),
            watch_rng: SimRng::new(seed, Concern::Watches),
            expiries: 0,
            groups,
            write_checker: WriteChecker::default(),
            shard_checker: ShardChecker::default(),
            copy_checker: CopyChecker::default(),
            history: History::default(),
            client_due: vec![Micros::MAX; clients.len()],
            clients,
            rng: SimRng::new(seed, Concern::Faults),
            node_rng,
            step_rng: SimRng::new(seed, Concern::Steps),
            late_calls: LateCalls::default(),
            old_answers: OldAnswers::default(),
            admin_sent: 0,
            partitions: 0,
            admin_answers: BTreeMap::new(),
            report: Report::default(),
            tracing: false,
            phase_since: 0,
            unsettled_configs: 0,
            phase: Phase::Faults,
            down: BTreeSet::new(),
            traffic: Traffic::default(),
            scenario,
        }
    }

    /// Switches the trace of all events on standard output.
    pub fn set_tracing(&mut self, tracing: bool) {
        self.tracing = tracing;
    }

    /// Returns true before the liveness phase.
    pub(crate) fn faults_happen(&self) -> bool {
        self.phase == Phase::Faults
    }

    /// Returns the status of a host's process, if one runs.
    pub fn status(&self, number: HostId) -> Option<Status> {
        let process = self.hosts.get(number)?.process.as_ref()?;
        Some(process.status())
    }

    /// Returns the host of a group's leader in the highest term.
    pub(crate) fn leader(&self, group: GroupId) -> Option<HostId> {
        let leading = self.hosts[self.groups[group].hosts.clone()]
            .iter()
            .filter_map(|host| {
                let status = host.process.as_ref()?.status();
                (status.role == Role::Leader && !host.paused).then_some((status.term, host.number))
            });
        leading.max().map(|(_, number)| number)
    }

    /// Returns the nodes on a group's hosts.
    pub(crate) fn nodes_of(&self, group: GroupId) -> BTreeSet<NodeId> {
        let hosts = &self.hosts[self.groups[group].hosts.clone()];
        hosts.iter().map(|host| host.node).collect()
    }

    /// Returns a group's membership if it is certain: every member is on a host, and every member's log ends with it.
    pub(crate) fn stable_membership(&self, group: GroupId) -> Option<Membership> {
        let hosts = &self.hosts[self.groups[group].hosts.clone()];
        if hosts.iter().any(|host| host.disk.is_damaged()) {
            return None;
        }
        let ends: Vec<(NodeId, Membership)> = hosts
            .iter()
            .map(|host| (host.node, host.disk.last_membership()))
            .collect();
        let of = |node: NodeId| {
            let end = ends.iter().find(|(other, _)| *other == node);
            end.map(|(_, membership)| membership)
        };
        let agreed = ends.iter().find(|(_, membership)| {
            !membership.is_empty()
                && membership
                    .members()
                    .all(|(node, _)| of(node) == Some(membership))
        });
        agreed.map(|(_, membership)| membership.clone())
    }

    /// Returns the virtual time.
    pub fn now(&self) -> Micros {
        self.now
    }

    /// Returns the traffic so far.
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Draws a group. Draws no number if there is only one.
    pub(crate) fn draw_group(&mut self) -> GroupId {
        if self.groups.len() < 2 {
            return 0;
        }
        self.rng.index(self.groups.len())
    }

    /// Schedules a client's next step, unless an earlier step is scheduled.
    pub(crate) fn plan_client(&mut self, number: usize) {
        let due = self.clients[number].due();
        if due < self.client_due[number] {
            let due = due.max(self.now + 1);
            self.client_due[number] = due;
            self.queue.push(due, Event::Client { number });
        }
    }

    pub(crate) fn plan_config_client(&mut self, number: usize) {
        let due = self.config_clients[number].due();
        if due < self.config_client_due[number] {
            let due = due.max(self.now + 1);
            self.config_client_due[number] = due;
            self.queue.push(due, Event::ConfigClient { number });
        }
    }

    pub(crate) fn plan_work(&mut self, number: HostId) {
        let host = &mut self.hosts[number];
        if !host.work_due {
            host.work_due = true;
            let work = Event::Work {
                host: number,
                incarnation: host.incarnation,
            };
            self.queue.push(host.busy_until.max(self.now + 1), work);
        }
    }

    fn end_fault_after(&mut self, fault: Fault, what: usize, lasts: Micros) {
        self.queue
            .push(self.now + lasts, Event::EndFault(fault, what));
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

fn draw_hosts(scenario: &Scenario, groups: &[Group], rng: &mut SimRng) -> Vec<Host> {
    let numbers = |(at, group): (GroupId, &Group)| {
        let hosts = group.hosts.clone();
        hosts.map(move |number| (at, number))
    };
    let numbers = groups.iter().enumerate().flat_map(numbers);
    numbers
        .map(|(group, number)| draw_host(number, group, scenario, rng))
        .collect()
}

fn draw_host(number: HostId, group: GroupId, scenario: &Scenario, rng: &mut SimRng) -> Host {
    let stream = u32::try_from(number).unwrap_or(0);
    let disk = Disk::new(
        scenario.disks.clone(),
        SimRng::new(scenario.seed, Concern::Disk(stream)),
    );
    if scenario.bug == Some(Bug::Shardkv(shardkv::Bug::SnapshotWithoutJournal)) {
        disk.restore_without_journals();
    }
    let clock = Clock {
        skew_ms: spread(rng, scenario.skew_ms),
        drift: spread(rng, scenario.drift.into()),
    };
    Host::new(number, group, draw_node(rng), disk, clock)
}

fn clients(scenario: &Scenario) -> Vec<Client> {
    let create = |number: usize| {
        let stream = u32::try_from(number).unwrap_or(0);
        let rng = SimRng::new(scenario.seed, Concern::Client(stream));
        Client::new(number as u64, scenario.client.clone(), 0, rng)
    };
    (0..scenario.clients).map(create).collect()
}

/// Creates the config clients, and queues the first join at the first of them.
fn config_clients(scenario: &Scenario, groups: &[Group]) -> Vec<ConfigClient> {
    let Some(cluster) = &scenario.cluster else {
        return Vec::new();
    };
    let groups: BTreeMap<Gid, Vec<HostId>> = groups[..cluster.groups]
        .iter()
        .map(|group| (group.gid, group.hosts.clone().collect()))
        .collect();
    let create = |number: usize| {
        let stream = u32::try_from(number).unwrap_or(0);
        let rng = SimRng::new(scenario.seed, Concern::ConfigClient(stream));
        let (number, shards) = (number as u64, scenario.genesis.shards);
        ConfigClient::new(number, groups.clone(), shards, cluster.changes, rng)
    };
    let mut config_clients: Vec<ConfigClient> = (0..cluster.config_clients).map(create).collect();
    let joined: Vec<Gid> = groups.keys().copied().take(cluster.joined).collect();
    if let Some(first) = config_clients.first_mut()
        && !joined.is_empty()
    {
        let join = first.join(joined);
        first.queue(join);
    }
    config_clients
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
