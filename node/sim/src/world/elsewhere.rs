//! Checks that a group doesn't answer a read of a shard that another group served already when the read arrived.
//!
//! The history shows such an answer only if the other group has taken a write of the key by then.

use replica::{Answer, Request, RequestId};
use shardkv::{Query, Response};
use types::{ShardId, ShardSet, shard_of};

use super::World;
use crate::host::Elsewhere;
use crate::machine::{Outcome, Question, Reply};
use crate::network::HostId;
use crate::violation::{Checked, Violation};

impl World {
    /// Notes that another group serves a shard that an arriving request reads.
    pub(super) fn note_elsewhere(
        &mut self,
        number: HostId,
        id: RequestId,
        request: &Request<Question>,
    ) {
        let Request::Read(Question::Kv(query)) = request else {
            return;
        };
        let shards: Vec<ShardId> = match query {
            Query::Get { key } => vec![shard_of(key, self.scenario.genesis.shards)],
            Query::Page(page) => page.shards.iter().flat_map(ShardSet::shards).collect(),
            _ => return,
        };
        let own = self.groups[self.hosts[number].group].gid;
        let config = self.shard_checker.latest();
        let found = shards.into_iter().find_map(|shard| {
            let by = self.shard_checker.server(shard)?;
            (by != own).then_some(Elsewhere { shard, by, config })
        });
        if let Some(found) = found {
            self.hosts[number].elsewhere.insert(id, found);
        }
    }

    /// Checks an answer to such a read. Nothing moved back meanwhile if the configuration is the same.
    pub(super) fn check_elsewhere(
        &mut self,
        from: HostId,
        id: RequestId,
        outcome: &Outcome,
    ) -> Checked {
        let Some(Elsewhere { shard, by, config }) = self.hosts[from].elsewhere.remove(&id) else {
            return Ok(());
        };
        let served = matches!(
            outcome,
            Ok(Answer::Machine(Reply::Kv(
                Response::Value(_) | Response::Page { .. }
            )))
        );
        if !served || self.shard_checker.latest() != config {
            return Ok(());
        }
        Err(Violation::new(
            "reads are answered by the group that serves the shard",
            format!(
                "host {from} answered a read of {shard}, which {by} has served since it arrived"
            ),
        ))
    }
}
