//! A world that a test controls: the test decides when links break, nodes crash and requests are sent.
//!
//! All invariants are checked as in any other world. A violation is returned as a [`Failure`] with its name.

mod groups;

use std::collections::BTreeSet;

use raft::{Index, Membership, Role};
use replica::{Request, RequestId, Status};
use types::NodeId;

use crate::machine::{Outcome, to_kv};
use crate::network::{HostId, LinkOptions};
use crate::queue::{MILLI, Micros};
use crate::report::{Failure, Report};
use crate::scenario::Scenario;
use crate::traffic::Traffic;
use crate::violation::{Checked, Violation};
use crate::world::World;

/// A world and the calls that control it.
pub struct Script {
    world: World,
    /// The hosts whose links are all cut. A link works if neither of its ends is among them.
    disconnected: BTreeSet<HostId>,
}

impl Script {
    /// Starts a world. Only the faults in the scenario happen by themselves.
    pub fn new(scenario: Scenario) -> Result<Self, Failure> {
        World::begin(scenario).map(|world| Self {
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

    /// Advances simulated time.
    pub fn run_ms(&mut self, milliseconds: u64) -> Result<(), Failure> {
        let until = self.world.now() + milliseconds * MILLI;
        self.world.run_until(until)
    }

    /// Advances time until `done` returns true, for at most `at_most_ms`, and calls it every five milliseconds. Returns
    /// false if the time ran out.
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

    /// Returns the time since the world began.
    pub fn now(&self) -> Micros {
        self.world.now()
    }

    /// Returns the number of hosts.
    pub fn hosts(&self) -> usize {
        self.world.hosts.len()
    }

    /// Cuts or restores all links of a host to other hosts. Clients still reach it.
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

    /// Cuts all links except those within each part.
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

    /// Sets the behaviour of links.
    pub fn set_links(&mut self, links: LinkOptions) {
        self.world.network.set_options(links);
    }

    /// Kills a host's process.
    pub fn crash(&mut self, host: HostId) {
        self.world.crash(host, None);
    }

    /// Starts a host's process.
    pub fn start(&mut self, host: HostId) -> Checked {
        self.world.start(host)
    }

    /// Returns the status of a host's process, if one runs.
    pub fn status(&self, host: HostId) -> Option<Status> {
        self.world.status(host)
    }

    /// Returns the id of the node at a host.
    pub fn node(&self, host: HostId) -> Option<NodeId> {
        self.world.hosts.get(host).map(|host| host.node)
    }

    /// Returns the leader of the highest term among these hosts.
    pub fn leader_among(&self, hosts: &[HostId]) -> Option<HostId> {
        let leading = hosts.iter().filter_map(|host| {
            let status = self.status(*host)?;
            (status.role == Role::Leader).then_some((status.term, *host))
        });
        leading.max().map(|(_, host)| host)
    }

    /// Returns the number of running hosts that have applied `index`.
    pub fn applied(&self, index: Index) -> usize {
        let hosts = 0..self.hosts();
        hosts
            .filter_map(|host| self.status(host))
            .filter(|status| status.last_applied >= index)
            .count()
    }

    /// Sends a request to a host without the network.
    pub fn ask(&mut self, host: HostId, request: Request<shardkv::Query>) -> RequestId {
        self.world.admin_request(host, to_kv(request))
    }

    /// Returns the answer to a request, if it has arrived.
    pub fn answer(&self, id: RequestId) -> Option<&Outcome> {
        self.world.admin_answers.get(&id)
    }

    /// Returns the traffic so far.
    pub fn traffic(&self) -> Traffic {
        self.world.traffic()
    }

    /// Returns the number of entries in a host's log, and their bytes.
    pub fn log_size(&self, host: HostId) -> (usize, usize) {
        let host = self.world.hosts.get(host);
        host.map_or((0, 0), |host| host.disk.log_size())
    }

    /// Returns the bytes of all pairs in a host's state.
    pub fn state_size(&self, host: HostId) -> usize {
        let Some(host) = self.world.hosts.get(host) else {
            return 0;
        };
        let pairs = host.disk.pairs();
        let size = |((_, key), value): &((replica::Table, bytes::Bytes), bytes::Bytes)| {
            key.len() + value.len()
        };
        pairs.iter().map(size).sum()
    }

    /// Returns the number of snapshots that all hosts together installed since the world began.
    pub fn snapshots_installed(&self) -> u64 {
        let counts = &self.world.report.counts;
        counts.get("snapshots installed").copied().unwrap_or(0)
    }

    /// Returns the last membership in a host's log.
    pub fn membership(&self, host: HostId) -> Membership {
        let host = self.world.hosts.get(host);
        host.map_or_else(Membership::default, |host| host.disk.last_membership())
    }

    /// Runs the liveness phase that ends every world: faults stop, and the cluster must recover within ten simulated
    /// seconds.
    pub fn finish(mut self) -> Result<Report, Failure> {
        self.world.run_liveness_phase()
    }

    /// Creates a failure that the test itself found.
    pub fn fail(&self, detail: impl Into<String>) -> Failure {
        Failure {
            at: self.now(),
            violation: Violation::new("the scenario", detail),
        }
    }
}
