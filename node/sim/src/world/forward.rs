//! Forwarding: a node passes a request to the leader of the group that owns its key, one hop at most.

use replica::{Refusal, Request, RequestId};
use shardkv::Query;
use types::{ShardId, shard_of};

use super::World;
use crate::caller::Caller;
use crate::event::Event;
use crate::machine::Question;
use crate::network::HostId;
use crate::queue::{MILLI, SECOND};
use crate::violation::Checked;

/// The share, of a million, of forwarded requests of which the node doesn't wait for the answer.
const GIVES_UP: u32 = 100_000;

impl World {
    /// Forwards a client's request, in a part of the cases, if the node at `number` doesn't lead the owner of its key. Returns true
    /// if it did.
    pub(super) fn forward_elsewhere(
        &mut self,
        number: HostId,
        id: RequestId,
        request: &Request<Question>,
    ) -> bool {
        let client = matches!(Caller::of(id), Caller::Client(_));
        if !client || !self.hosts[number].is_up() || !self.rng.chance(self.scenario.forwarded) {
            return false;
        }
        let Some(leader) = self.owning_leader(request).filter(|it| *it != number) else {
            return false;
        };
        self.count("requests forwarded");
        self.trace(number, || {
            format!("forwards request {id:x?} to host {leader}")
        });
        let [first, _] = self.network.arrivals(number, leader, self.now);
        if let Some(at) = first {
            let (host, request) = (leader, request.clone());
            self.queue.push(at, Event::Forwarded { host, id, request });
        }
        if first.is_none() || (self.faults_happen() && self.rng.chance(GIVES_UP)) {
            // The node can't know whether the other one took the request.
            let at = self.now + self.rng.magnitude(10 * MILLI, SECOND);
            let outcome = Err(Refusal::Unknown { leader: None });
            self.queue.push(at, Event::Answer { id, outcome });
        }
        true
    }

    /// Delivers a request to the leader of the group that owns its key now.
    pub(super) fn forward_request(&mut self, id: RequestId, request: Request<Question>) -> Checked {
        match self.owning_leader(&request) {
            Some(leader) => self.take_request(leader, id, request),
            None => Ok(()),
        }
    }

    /// Returns the leader of the group that owns the key of a request now.
    fn owning_leader(&self, request: &Request<Question>) -> Option<HostId> {
        let key = match request {
            Request::Write { operation, .. } => {
                let command = shardkv::Command::decode(operation.clone()).ok()?;
                command.write.key().clone()
            }
            Request::Read(Question::Kv(Query::Get { key })) => key.clone(),
            _ => return None,
        };
        self.leader_of(shard_of(&key, self.scenario.genesis.shards))
    }

    /// Returns the leader of the group that owns a shard now.
    pub(super) fn leader_of(&self, shard: ShardId) -> Option<HostId> {
        if self.scenario.cluster.is_none() {
            return self.leader(0);
        }
        let config = self.shard_checker.config()?;
        let owner = config.owner(shard);
        let group = self.groups.iter().position(|it| it.gid == owner)?;
        self.leader(group)
    }
}
