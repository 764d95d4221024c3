//! A world under a test's hand: the test decides when links break, nodes die and requests are sent.
//!
//! All invariants are checked as in any other world; a broken one panics with its name.

use std::collections::BTreeSet;

use raft::{Index, Membership, Role};
use replica::{Request, RequestId, Status};
use types::NodeId;

use crate::invariants::Violation;
use crate::machine::{Outcome, to_kv};
use crate::network::{HostId, LinkOptions};
use crate::queue::{MILLI, Micros};
use crate::scenario::Scenario;
use crate::traffic::Traffic;
use crate::world::{Failure, Report, Step, World};

/// A world that does what it is told.
pub struct Script {
    world: World,
    /// Hosts whose links are all cut. A link works if neither end is among them.
    disconnected: BTreeSet<HostId>,
}

impl Script {
    /// Begins a world. Nothing goes wrong in it by itself unless the scenario says so.
    pub fn new(scenario: Scenario) -> Result<Self, Failure> {
        World::new(scenario).map(|world| Self {
            world,
            disconnected: BTreeSet::new(),
        })
    }

    pub(crate) fn world(&self) -> &World {
        &self.world
    }

    pub(crate) fn world_mut(&mut self) -> &mut World {
        &mut self.world
    }

    /// Lets simulated time pass.
    pub fn run_ms(&mut self, milliseconds: u64) -> Result<(), Failure> {
        let until = self.world.now() + milliseconds * MILLI;
        self.world.run_until(until)
    }

    /// Lets time pass until `done`, looking every five milliseconds, for at most so long. Whether it came.
    pub fn run_until(
        &mut self,
        at_most_ms: u64,
        mut done: impl FnMut(&Self) -> bool,
    ) -> Result<bool, Failure> {
        let end = self.world.now() + at_most_ms * MILLI;
        while !done(self) {
            if self.world.now() >= end {
                return Ok(false);
            }
            self.run_ms(5)?;
        }
        Ok(true)
    }

    /// The time since the world began.
    pub fn now(&self) -> Micros {
        self.world.now()
    }

    /// How many hosts there are.
    pub fn hosts(&self) -> usize {
        self.world.hosts.len()
    }

    /// Cuts or mends all links of a host, those of clients not.
    pub fn set_connected(&mut self, host: HostId, connected: bool) {
        if connected {
            self.disconnected.remove(&host);
        } else {
            self.disconnected.insert(host);
        }
        let gone = &self.disconnected;
        let hosts = 0..self.hosts();
        let cut = hosts
            .clone()
            .flat_map(|a| hosts.clone().map(move |b| (a, b)))
            .filter(|(a, b)| a != b && (gone.contains(a) || gone.contains(b)))
            .collect();
        self.world.network.set_cuts(cut);
    }

    /// Leaves only the links within each of these parts.
    pub fn partition(&mut self, parts: &[&[HostId]]) {
        let part = |host: HostId| parts.iter().position(|part| part.contains(&host));
        let hosts = 0..self.hosts();
        let cut = hosts
            .clone()
            .flat_map(|a| hosts.clone().map(move |b| (a, b)))
            .filter(|(a, b)| a != b && (part(*a).is_none() || part(*a) != part(*b)))
            .collect();
        self.world.network.set_cuts(cut);
    }

    /// Mends all links.
    pub fn heal(&mut self) {
        self.disconnected.clear();
        self.world.network.heal();
    }

    /// Sets how links behave.
    pub fn set_links(&mut self, links: LinkOptions) {
        self.world.network.set_options(links);
    }

    /// Kills a host's process.
    pub fn crash(&mut self, host: HostId) {
        self.world.crash(host, None);
    }

    /// Starts a host's process.
    pub fn start(&mut self, host: HostId) -> Step {
        self.world.start(host)
    }

    /// What a host's process says of itself, if one runs.
    pub fn status(&self, host: HostId) -> Option<Status> {
        self.world.status(host)
    }

    /// The node at a host.
    pub fn node(&self, host: HostId) -> Option<NodeId> {
        self.world.hosts.get(host).map(|host| host.node)
    }

    /// The leader of the highest term among these hosts.
    pub fn leader_among(&self, hosts: &[HostId]) -> Option<HostId> {
        let leading = hosts.iter().filter_map(|host| {
            let status = self.status(*host)?;
            (status.role == Role::Leader).then_some((status.term, *host))
        });
        leading.max().map(|(_, host)| host)
    }

    /// How many running hosts have applied `index`.
    pub fn applied(&self, index: Index) -> usize {
        let hosts = 0..self.hosts();
        hosts
            .filter_map(|host| self.status(host))
            .filter(|status| status.last_applied >= index)
            .count()
    }

    /// Asks a host, past the network.
    pub fn ask(&mut self, host: HostId, request: Request<shardkv::Query>) -> RequestId {
        self.world.admin_request(host, to_kv(request))
    }

    /// What came back.
    pub fn answer(&self, id: RequestId) -> Option<&Outcome> {
        self.world.mailbox.get(&id)
    }

    /// What went over the wire so far.
    pub fn traffic(&self) -> Traffic {
        self.world.traffic()
    }

    /// Entries and bytes in a host's log.
    pub fn log_size(&self, host: HostId) -> (usize, usize) {
        let host = self.world.hosts.get(host);
        host.map_or((0, 0), |host| host.disk.log_size())
    }

    /// Bytes of all pairs in a host's state.
    pub fn state_size(&self, host: HostId) -> usize {
        let Some(host) = self.world.hosts.get(host) else {
            return 0;
        };
        let pairs = host.disk.pairs();
        let size = |((_, key), value): &((replica::Keyspace, bytes::Bytes), bytes::Bytes)| {
            key.len() + value.len()
        };
        pairs.iter().map(size).sum()
    }

    /// Snapshots that a host's log was replaced by since the world began, on all hosts together.
    pub fn snapshots_installed(&self) -> u64 {
        let counts = &self.world.report.counts;
        counts.get("snapshots installed").copied().unwrap_or(0)
    }

    /// The membership that a host's log ends with.
    pub fn membership(&self, host: HostId) -> Membership {
        let host = self.world.hosts.get(host);
        host.map_or_else(Membership::default, |host| host.disk.last_membership())
    }

    /// Ends the world as every world ends: all heals, and within ten simulated seconds all must be well.
    pub fn finish(mut self) -> Result<Report, Failure> {
        self.world.run_end()
    }

    /// A failure of the test's own making.
    pub fn fail(&self, detail: impl Into<String>) -> Failure {
        Failure {
            at: self.now(),
            violation: Violation::new("the scenario", detail),
        }
    }
}
