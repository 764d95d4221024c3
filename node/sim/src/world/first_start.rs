//! Hosts that start for the first time: they ask their peers, found a group, or wait until it adds them. Volumes are lost meanwhile, come
//! back, and are exchanged.
//!
//! All decisions are those of [`replica::NodeRecord`] and [`replica::decide`]. Here are only the questions on the network, the writes,
//! and the pauses, as the server has them.

use raft::{Envelope, Message, Role, Term};
use replica::{
    Bugs, Decision, FirstMembership, FirstStart, Introduction, NodeRecord, Status, are_strangers,
    decide, initialise,
};
use types::{ClusterId, NodeId};

use super::World;
use crate::bug::Bug;
use crate::event::Event;
use crate::first_start::{FirstEvent, Looking, Volume, VolumeFault};
use crate::group::GroupId;
use crate::network::HostId;
use crate::queue::{MILLI, Micros};
use crate::violation::{Checked, Violation};

/// The longest time of a round of questions.
const ROUND_LIMIT: Micros = 1_000 * MILLI;
/// The pause between two rounds of questions.
const ROUND_PAUSE: Micros = 100 * MILLI;
/// The pause between two requests to join.
const JOIN_EVERY: Micros = 500 * MILLI;

impl World {
    /// Lets the hosts start one after the other, with empty disks, and plans what happens to their volumes meanwhile.
    pub(super) fn plan_first_starts(&mut self, within: Micros) {
        for number in 0..self.hosts.len() {
            let start = Event::Start {
                host: number,
                incarnation: 0,
            };
            let at = self.node_rng.magnitude(1, within);
            self.queue.push(at, start);
        }
        for group in 0..self.groups.len() {
            let hosts = self.groups[group].hosts.clone();
            for _ in 0..self.node_rng.between(0, 6) {
                let host = hosts.start + self.node_rng.index(hosts.len());
                let fault = match self.node_rng.below(6) {
                    0 | 1 => VolumeFault::Restart,
                    2 | 3 => VolumeFault::Lose,
                    4 => VolumeFault::Return,
                    _ => VolumeFault::Swap,
                };
                let at = self.node_rng.between(1, 3 * within);
                let event = FirstEvent::Volume(fault);
                self.queue.push(at, Event::First { host, event });
            }
        }
    }

    /// Takes an event of a first start.
    pub(super) fn take_first(&mut self, number: HostId, event: FirstEvent) -> Checked {
        match event {
            FirstEvent::Question { from, round } => self.question_arrived(number, from, round),
            FirstEvent::Introduced {
                peer,
                round,
                answer,
            } => return self.introduced(number, peer, round, answer),
            FirstEvent::EndRound { round } => return self.end_round(number, round),
            FirstEvent::AskAgain { round } => self.ask_again_for_group(number, round),
            FirstEvent::Volume(fault) => self.volume_fault(number, fault),
        }
        Ok(())
    }

    /// Decides how a host starts whose disk has no log. Returns true if its replica may start now.
    pub(super) fn may_start(&mut self, number: HostId) -> Result<bool, Violation> {
        let host = &self.hosts[number];
        if self.scenario.first_starts.is_none() || !host.disk.is_empty() {
            return Ok(true);
        }
        if host.looking.is_some() {
            return Ok(false);
        }
        match self.record(number).first_start() {
            FirstStart::Continue(first) => self.adopt(number, first),
            FirstStart::Join => Ok(true),
            FirstStart::Ask => {
                self.ask_peers(number, false, None);
                Ok(false)
            }
        }
    }

    fn bugs(&self) -> Bugs {
        self.scenario.bug.map_or(Bugs::NONE, Bug::replica)
    }

    /// Returns what a host's disk says of its node.
    fn record(&self, number: HostId) -> NodeRecord {
        let host = &self.hosts[number];
        NodeRecord {
            has_log: host.record.has_log || !host.disk.is_untouched(),
            ..host.record.clone()
        }
    }

    /// Begins a round of questions.
    fn ask_peers(&mut self, number: HostId, invited: bool, asked_to_join: Option<Micros>) {
        self.rounds += 1;
        let round = self.rounds;
        let peers = self.groups[self.hosts[number].group].hosts.clone();
        let mut answers = vec![Introduction::Silent; peers.len()];
        answers[number - peers.start] = Introduction::Empty(self.hosts[number].node);
        let alone = answers.len() == 1;
        self.hosts[number].looking = Some(Looking {
            round,
            ended: false,
            answers,
            invited,
            asked_to_join,
        });
        for peer in peers.filter(|peer| *peer != number) {
            let arrivals = self.network.arrivals(number, peer, self.now);
            for at in arrivals.into_iter().flatten() {
                let (host, from) = (peer, number);
                let event = FirstEvent::Question { from, round };
                self.queue.push(at, Event::First { host, event });
            }
        }
        let limit = if alone { 1 } else { ROUND_LIMIT };
        let (host, event) = (number, FirstEvent::EndRound { round });
        self.queue
            .push(self.now + limit, Event::First { host, event });
    }

    /// Answers a question, if a process runs or looks for its group at the host.
    fn question_arrived(&mut self, number: HostId, from: HostId, round: u64) {
        let host = &self.hosts[number];
        if !host.is_up() && host.looking.is_none() {
            return;
        }
        let answer = self.record(number).introduce();
        self.trace(number, || format!("tells host {from}: {answer:?}"));
        for at in self.network.arrivals(number, from, self.now) {
            let Some(at) = at else { continue };
            let (host, peer, answer) = (from, number, answer.clone());
            let event = FirstEvent::Introduced {
                peer,
                round,
                answer,
            };
            self.queue.push(at, Event::First { host, event });
        }
    }

    /// Takes an answer. Ends the round if it is the last one.
    fn introduced(
        &mut self,
        number: HostId,
        peer: HostId,
        round: u64,
        answer: Introduction,
    ) -> Checked {
        let first = self.groups[self.hosts[number].group].hosts.start;
        let looking = self.hosts[number].looking.as_mut();
        let Some(looking) = looking.filter(|it| it.round == round && !it.ended) else {
            return Ok(());
        };
        looking.answers[peer - first] = answer;
        if looking.answers.contains(&Introduction::Silent) {
            return Ok(());
        }
        self.end_round(number, round)
    }

    /// Decides by the answers of a round.
    fn end_round(&mut self, number: HostId, round: u64) -> Checked {
        let looking = self.hosts[number].looking.as_mut();
        let Some(looking) = looking.filter(|it| it.round == round && !it.ended) else {
            return Ok(());
        };
        // Later answers of this round come too late.
        looking.ended = true;
        let looking = looking.clone();
        let hosts = self.groups[self.hosts[number].group].hosts.clone();
        let peers: Vec<String> = hosts.map(|host| self.hosts[host].address.clone()).collect();
        let node = self.hosts[number].node;
        let decision = decide(node, &peers, &looking.answers, self.bugs());
        self.trace(number, || format!("decides {decision:?}"));
        let mut asked_to_join = looking.asked_to_join;
        let may_start = match decision {
            Decision::Adopt(first) => {
                self.count("first memberships adopted");
                self.adopt(number, first)?
            }
            Decision::Form(members) => {
                self.count("groups founded");
                let first = self.form(number, members)?;
                self.adopt(number, first)?
            }
            Decision::Join if looking.invited => {
                self.count("nodes that joined a group");
                true
            }
            Decision::Join => {
                if asked_to_join.is_none_or(|at| at + JOIN_EVERY <= self.now) {
                    asked_to_join = Some(self.now);
                    self.send_message(number, 0, join_request(node, &self.hosts[number].address))?;
                }
                false
            }
            Decision::Wait(_) => false,
        };
        if may_start {
            self.hosts[number].looking = None;
            let seed = self.node_rng.number();
            return self.start_replica(number, seed);
        }
        // It may have crashed when it adopted a first membership.
        if let Some(looking) = &mut self.hosts[number].looking {
            looking.asked_to_join = asked_to_join;
            let (host, event) = (number, FirstEvent::AskAgain { round });
            self.queue
                .push(self.now + ROUND_PAUSE, Event::First { host, event });
        }
        Ok(())
    }

    /// Begins the next round of questions of a host that looks for its group.
    fn ask_again_for_group(&mut self, number: HostId, round: u64) {
        let looking = self.hosts[number].looking.as_ref();
        if let Some(looking) = looking.filter(|it| it.round == round) {
            let (invited, asked_to_join) = (looking.invited, looking.asked_to_join);
            self.ask_peers(number, invited, asked_to_join);
        }
    }

    /// Makes the first membership of a group.
    fn form(
        &mut self,
        number: HostId,
        members: Vec<(NodeId, String)>,
    ) -> Result<FirstMembership, Violation> {
        let genesis = self.groups[self.hosts[number].group].genesis;
        let first = FirstMembership {
            cluster: ClusterId(self.node_rng.number() | 1),
            members,
            genesis,
        };
        let refused = |error: replica::BadFirstMembership| {
            Violation::new("a first membership is valid", error.to_string())
        };
        first.checked().map_err(refused)
    }

    /// Makes a node one of a group's first members. Returns false if the power was cut meanwhile.
    fn adopt(&mut self, number: HostId, first: FirstMembership) -> Result<bool, Violation> {
        let cluster = first.cluster;
        let host = &mut self.hosts[number];
        self.clusters.insert(host.node, cluster);
        host.disk.begin(self.now);
        if self.node_rng.chance(200_000) {
            let operations = u32::try_from(self.node_rng.below(4)).unwrap_or(0);
            host.disk.arm_crash(operations);
        }
        let (mut log, mut state) = host.disk.open();
        let (membership, genesis) = (first.membership(), first.genesis.to_batch());
        host.record.first = Some(first);
        host.record.cluster = Some(cluster);
        let written = initialise(&mut log, &mut state, &membership, genesis);
        // Of a group that never gets a quorum, these writes may differ from those of the others.
        host.disk.take_journal();
        match written {
            Ok(()) => Ok(true),
            Err(_) if host.disk.is_dead() || host.disk.is_full() => {
                self.count("first starts interrupted");
                let down = self.node_rng.between(MILLI, 500 * MILLI);
                self.crash(number, Some(down));
                Ok(false)
            }
            Err(error) => Err(Violation::new(
                "an empty disk can be initialised",
                error.to_string(),
            )),
        }
    }

    /// Applies the rules of connections to a message that reached a host: strangers are refused, a node that looks for its group is
    /// invited, and one that joins belongs to the cluster of its first snapshot. Returns true if the replica gets the message.
    pub(super) fn greets(&mut self, number: HostId, envelope: &Envelope) -> bool {
        if self.scenario.first_starts.is_none() {
            return true;
        }
        let theirs = self.clusters.get(&envelope.from).copied();
        let host = &mut self.hosts[number];
        if are_strangers(host.record.cluster, theirs) {
            self.count("messages of strangers");
            return false;
        }
        if let Some(looking) = &mut host.looking {
            looking.invited |= theirs.is_some() && envelope.to == host.node;
        }
        if let (Message::SnapshotChunk(_), None) = (&envelope.message, host.record.cluster)
            && host.process.is_some()
        {
            let Some(cluster) = theirs else {
                return false;
            };
            host.record.cluster = Some(cluster);
            self.clusters.insert(host.node, cluster);
        }
        true
    }

    /// Lets something happen to the volume of a host.
    fn volume_fault(&mut self, number: HostId, fault: VolumeFault) {
        if !self.faults_happen() {
            return;
        }
        let down = self.node_rng.magnitude(MILLI, 1_000 * MILLI);
        match fault {
            VolumeFault::Restart => self.crash(number, Some(down)),
            VolumeFault::Lose => {
                if self.may_lose(number) {
                    self.count("volumes lost at first starts");
                    self.crash(number, Some(down));
                    self.wipe(number);
                }
            }
            VolumeFault::Return => self.return_volume(number, down),
            VolumeFault::Swap => {
                let hosts = self.groups[self.hosts[number].group].hosts.clone();
                let other = hosts.start + self.node_rng.index(hosts.len());
                if other != number {
                    self.swap_volumes(number, other, down);
                }
            }
        }
    }

    /// Returns true if a group survives the loss of a volume: it has lost none so far, or has recovered from all losses.
    fn may_lose(&self, number: HostId) -> bool {
        let group = self.hosts[number].group;
        let hosts = self.groups[group].hosts.len();
        hosts > 2 && (self.groups[group].lost == 0 || self.may_lose_disk(number))
    }

    /// Brings back the volume that a host lost, instead of the present one.
    fn return_volume(&mut self, number: HostId, down: Micros) {
        let group = self.hosts[number].group;
        let node = self.hosts[number].node;
        let is_known = |host: HostId| {
            let membership = self.hosts[host].disk.last_membership();
            membership.get(node).is_some()
        };
        let is_free = !self.groups[group].hosts.clone().any(is_known);
        if self.hosts[number].spare.is_none() || !(is_free || self.may_lose_disk(number)) {
            return;
        }
        self.count("volumes that came back");
        self.crash(number, Some(down));
        let present = self.volume(number);
        if let Some(spare) = self.hosts[number].spare.replace(present) {
            self.groups[group].lost += 1;
            self.put_volume(number, spare);
        }
    }

    fn swap_volumes(&mut self, one: HostId, other: HostId, down: Micros) {
        self.count("volumes exchanged");
        self.crash(one, Some(down));
        self.crash(other, Some(down));
        let (first, second) = (self.volume(one), self.volume(other));
        self.put_volume(one, second);
        self.put_volume(other, first);
    }

    fn volume(&self, number: HostId) -> Volume {
        let host = &self.hosts[number];
        Volume {
            record: host.record.clone(),
            disk: host.disk.clone(),
        }
    }

    /// Keeps the volume of a host that is about to get an empty one, in worlds in which it may come back.
    pub(super) fn keep_volume(&mut self, number: HostId) {
        let host = &mut self.hosts[number];
        if self.scenario.first_starts.is_none() || host.disk.is_damaged() {
            return;
        }
        let empty = host.disk.another();
        let disk = std::mem::replace(&mut host.disk, empty);
        let record = host.record.clone();
        host.spare = Some(Volume { record, disk });
    }

    fn put_volume(&mut self, number: HostId, volume: Volume) {
        let host = &mut self.hosts[number];
        if self.nodes.get(&host.node) == Some(&number) {
            self.nodes.remove(&host.node);
        }
        host.node = volume.record.node;
        host.disk = volume.disk;
        host.record = volume.record;
        self.nodes.insert(host.node, number);
        let node = host.node;
        self.trace(number, || format!("gets the volume of {node}"));
    }

    /// Checks that all leaders of a group belong to one cluster: only one of the groups that were formed gets a quorum.
    pub(super) fn check_one_group(&mut self, number: HostId, status: &Status) -> Checked {
        let host = &self.hosts[number];
        let (Some(cluster), Role::Leader) = (host.record.cluster, status.role) else {
            return Ok(());
        };
        let group = &mut self.groups[host.group];
        let first = *group.cluster.get_or_insert(cluster);
        if first == cluster {
            return Ok(());
        }
        Err(Violation::new(
            "one group of a gid has a quorum",
            format!(
                "{} leads {} in {cluster} after another node led it in {first}",
                status.node, group.gid
            ),
        ))
    }

    /// Replaces the volume of a node whose group never got a quorum, as an operator must: its group was founded with a volume that was
    /// lost at once, and another one after it.
    pub(super) fn give_up_minority(&mut self, group: GroupId) {
        let leader = self.leader(group);
        let Some(cluster) = leader.and_then(|leader| self.hosts[leader].record.cluster) else {
            return;
        };
        for number in self.groups[group].hosts.clone() {
            let own = self.hosts[number].record.cluster;
            if are_strangers(own, Some(cluster)) {
                self.count("volumes of groups without a quorum");
                self.crash(number, Some(MILLI));
                self.wipe(number);
            }
        }
    }
}

/// Returns the request of a node to join the group at its peers' addresses.
fn join_request(from: NodeId, address: &str) -> Envelope {
    Envelope {
        from,
        to: NodeId(0),
        term: Term(0),
        message: Message::JoinRequest {
            address: address.to_owned(),
        },
    }
}
