//! Reads that followers serve, after their leader has told them a read index.

use replica::Request;
use shardkv::Query;

use super::World;
use super::send::is_read;
use crate::host::Process;
use crate::machine::{Outcome, Question};
use crate::network::HostId;
use crate::queue::MILLI;

impl World {
    /// Returns the host that gets a read: another member of the same group, in a part of the cases.
    pub(super) fn spread_read(&mut self, number: HostId, request: &Request<Question>) -> HostId {
        let share = self.scenario.follower_reads;
        let any_member_serves = matches!(
            request,
            Request::Read(Question::Kv(Query::Get { .. }) | Question::Keyspace(_))
        );
        if share == 0 || !any_member_serves || !self.rng.chance(share) {
            return number;
        }
        let members = self.groups[self.hosts[number].group].hosts.clone();
        let member = members.start + self.rng.index(members.len());
        self.strand_leader(number, member);
        member
    }

    /// Cuts the leader of a host's group off, in some worlds, together with the member that gets a read.
    fn strand_leader(&mut self, number: HostId, member: HostId) {
        let share = self.scenario.stranded_leaders;
        if share == 0 || !self.faults_happen() || !self.rng.chance(share) {
            return;
        }
        if let Some(leader) = self.leader(self.hosts[number].group) {
            self.count("leaders stranded with a follower");
            let lasts = self.rng.between(500 * MILLI, 2_000 * MILLI);
            self.cut_off(leader, member, lasts);
        }
    }

    /// Returns what a replica is asked for a read in worlds in which followers serve reads.
    pub(super) fn read_here(&self, request: Request<Question>) -> Request<Question> {
        match request {
            Request::Read(query @ Question::Kv(Query::Get { .. } | Query::Confirm))
                if self.scenario.follower_reads > 0 =>
            {
                Request::ReadHere(query)
            }
            request => request,
        }
    }

    pub(super) fn count_follower_read(&mut self, from: HostId, outcome: &Outcome) {
        let follows = |process: &Process| !process.leads();
        if is_read(outcome) && self.hosts[from].process.as_deref().is_some_and(follows) {
            self.count("reads served by followers");
        }
    }
}
