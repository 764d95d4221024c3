//! Checks that reads are answered by a replica that serves the shard, and not by a group that gave it away before the read arrived.
//!
//! The history shows such an answer only if the other group has taken a write of the key by then.

use replica::{Answer, Request, RequestId};
use shardkv::{Query, Response, ShardState};
use types::{ShardId, ShardSet, shard_of};

use super::World;
use crate::host::{Elsewhere, OpenRead};
use crate::machine::{Outcome, Question, Reply};
use crate::network::HostId;
use crate::violation::{Checked, Violation};

impl World {
    /// Notes the shards that an arriving request reads, and one of them that another group serves.
    pub(super) fn note_read(&mut self, number: HostId, id: RequestId, request: &Request<Question>) {
        let Request::Read(question) = request else {
            return;
        };
        if self.scenario.cluster.is_none() {
            return;
        }
        let shards: Vec<ShardId> = match question {
            Question::Kv(Query::Get { key }) => vec![shard_of(key, self.scenario.genesis.shards)],
            Question::Kv(Query::Page(page)) => {
                page.shards.iter().flat_map(ShardSet::shards).collect()
            }
            Question::Keyspace(read) => vec![read.place.shard],
            _ => return,
        };
        let own = self.groups[self.hosts[number].group].gid;
        let turns = self.shard_checker.turns();
        let elsewhere = shards.iter().find_map(|shard| {
            let (shard, by) = (*shard, self.shard_checker.server(*shard)?);
            (by != own).then_some(Elsewhere { shard, by, turns })
        });
        let read = OpenRead { shards, elsewhere };
        self.hosts[number].reads.insert(id, read);
    }

    /// Checks an answer to a read: the replica serves the shards, and no other group has served one of them since the read arrived.
    pub(super) fn check_served(
        &mut self,
        from: HostId,
        id: RequestId,
        outcome: &Outcome,
    ) -> Checked {
        let Some(read) = self.hosts[from].reads.remove(&id) else {
            return Ok(());
        };
        let answered = matches!(
            outcome,
            Ok(Answer::Machine(
                Reply::Keyspace(_) | Reply::Kv(Response::Value(_) | Response::Page { .. })
            ))
        );
        if !answered {
            return Ok(());
        }
        let process = self.hosts[from].process.as_ref();
        let now = process.and_then(|it| it.machine().machine().ownership());
        let before = self.hosts[from].owned.clone();
        let serves = |shard: &ShardId| {
            // One step may answer a read and then fence the shard.
            [&before, &now]
                .into_iter()
                .flatten()
                .any(|owned| matches!(owned.state(*shard), Some(ShardState::Serving { .. })))
        };
        if let Some(shard) = read.shards.iter().find(|shard| !serves(shard)) {
            return Err(Violation::new(
                "reads are answered by replicas that serve the shard",
                format!("host {from} answered a read of {shard}, which it doesn't serve"),
            ));
        }
        match read.elsewhere {
            // A shard that moved meanwhile may be served here by now, or have been.
            Some(Elsewhere { shard, by, turns }) if self.shard_checker.turns() == turns => {
                Err(Violation::new(
                    "reads are answered by the group that serves the shard",
                    format!(
                        "host {from} answered a read of {shard}, which {by} has served since it arrived"
                    ),
                ))
            }
            _ => Ok(()),
        }
    }
}
