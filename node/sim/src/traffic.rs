//! Messages between nodes, requests and answers on the wire.

use raft::{Envelope, Index, Message};
use replica::{Answer, Refusal, Request, RequestId};
use shardkv::{Query, Response};
use types::{NodeId, shard_of};

use crate::client::{Outgoing, Surroundings, client_of};
use crate::config_client::CONFIG_CLIENTS;
use crate::faults::ADMIN;
use crate::host::Input;
use crate::invariants::Violation;
use crate::machine::{Outcome, Question, Reply};
use crate::mover_driver::MOVERS;
use crate::network::HostId;
use crate::queue::Micros;
use crate::world::{Event, Step, World};

/// Counts of messages and bytes between nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// All messages.
    pub messages: u64,
    /// The messages that expect an answer, which correspond to remote procedure calls.
    pub calls: u64,
    /// The messages that carry entries.
    pub appends: u64,
    /// The bytes of entries.
    pub bytes: u64,
}

impl World {
    pub(crate) fn leave(&mut self, from: HostId, after: Micros, envelope: Envelope) -> Step {
        let group = self.hosts[from].group;
        self.groups[group].invariants.sent(&envelope)?;
        self.traffic.messages += 1;
        self.traffic.calls += u64::from(is_call(&envelope.message));
        if let Message::Append { entries, .. } = &envelope.message
            && !entries.is_empty()
        {
            self.traffic.appends += 1;
            let bytes: usize = entries.iter().map(raft::Entry::size).sum();
            self.traffic.bytes += bytes as u64;
        }
        self.trace(from, || {
            format!("-> {} {}", envelope.to, describe(&envelope))
        });
        if envelope.to == NodeId(0) {
            let peers = self.groups[group].hosts.clone();
            for to in peers.filter(|to| *to != from) {
                self.transmit(from, to, after, envelope.clone());
            }
        } else if let Some(to) = self.nodes.get(&envelope.to).copied() {
            self.transmit(from, to, after, envelope);
        } else {
            self.count("messages for a node that is gone");
        }
        Ok(())
    }

    pub(crate) fn transmit(&mut self, from: HostId, to: HostId, after: Micros, envelope: Envelope) {
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

    pub(crate) fn reply(
        &mut self,
        from: HostId,
        after: Micros,
        id: RequestId,
        outcome: Outcome,
    ) -> Step {
        let Some(committed) = self.hosts[from].asked.remove(&id) else {
            return Err(Violation::new(
                "a request is answered once",
                format!("host {from} answered {id:?}, which is not an open request: {outcome:?}"),
            ));
        };
        self.check_fresh(from, committed, &outcome)?;
        self.trace(from, || format!("answers {id:x?}: {outcome:?}"));
        self.answer_from(from, after, id, outcome);
        Ok(())
    }

    /// Sends an answer to the sender of the request.
    fn answer_from(&mut self, from: HostId, after: Micros, id: RequestId, outcome: Outcome) {
        let at = match caller(id) {
            Caller::Mover(host) if host == from => self.now + after,
            Caller::Mover(host) => {
                let [first, _] = self.network.arrivals(from, host, self.now + after);
                let Some(at) = first else {
                    return;
                };
                at
            }
            Caller::Administrator => self.now + after + self.network.delay(),
            Caller::Client(_) | Caller::ConfigClient(_) => {
                if self.hosts[from].unreachable || self.network.loses() {
                    return;
                }
                self.now + after + self.network.delay()
            }
        };
        self.queue.push(at, Event::Answer { id, outcome });
    }

    /// Checks that a read shows every entry that was committed when the request arrived.
    pub(crate) fn check_fresh(&self, from: HostId, committed: Index, outcome: &Outcome) -> Step {
        let is_read = matches!(
            outcome,
            Ok(Answer::Machine(
                Reply::Kv(Response::Value(_) | Response::Page { .. })
                    | Reply::Ctrl(
                        shardctrler::Response::Config(_) | shardctrler::Response::Configs(_)
                    )
            ))
        );
        let (applied, _) = self.hosts[from].disk.position();
        if !is_read || applied.index >= committed {
            return Ok(());
        }
        Err(Violation::new(
            "reads are fresh",
            format!("host {from} answered from {applied}, when {committed} was committed"),
        ))
    }

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
        let forwards = self.scenario.cluster.as_ref().map_or(0, |it| it.forwards);
        let event = if delay > 0 && self.rng.chance(forwards) {
            Event::Forward { id, request }
        } else {
            Event::Ask {
                host: to,
                id,
                request,
            }
        };
        self.queue.push(at, event);
    }

    /// Forwards a request to the leader of the group that owns its shard now.
    pub(crate) fn forwarded(&mut self, id: RequestId, request: Request<Question>) -> Step {
        let key = match &request {
            Request::Write { operation, .. } => {
                let command = shardkv::Command::decode(operation.clone());
                command.ok().map(|command| command.write.key().clone())
            }
            Request::Read(Question::Kv(Query::Get { key })) => Some(key.clone()),
            _ => None,
        };
        let shards = self.scenario.genesis.shards;
        let owner = self.shard_checker.config().zip(key);
        let owner = owner.map(|(config, key)| config.owner(shard_of(&key, shards)));
        let group = self.groups.iter().position(|it| Some(it.gid) == owner);
        match group.and_then(|group| self.leader(group)) {
            Some(leader) => self.asked(leader, id, request),
            None => Ok(()),
        }
    }

    pub(crate) fn asked(
        &mut self,
        number: HostId,
        id: RequestId,
        request: Request<Question>,
    ) -> Step {
        if self.hosts[number].process.is_none() {
            // No process runs: the caller learns at once that the request had no effect.
            let outcome = Err(Refusal::NotLeader { leader: None });
            if let Caller::Mover(_) = caller(id) {
                self.answer_from(number, 0, id, outcome);
                return Ok(());
            }
            let at = self.now + self.network.delay();
            self.queue.push(at, Event::Answer { id, outcome });
            return Ok(());
        }
        self.trace(number, || format!("receives request {id:x?}: {request:?}"));
        self.take_in(number, Input::Request(id, request))
    }

    pub(crate) fn answered(&mut self, id: RequestId, outcome: Outcome) -> Step {
        let number = match caller(id) {
            Caller::Client(number) => number,
            Caller::Administrator => {
                self.admin_answered(id, outcome);
                return Ok(());
            }
            Caller::Mover(host) => return self.action_answered(host, id, outcome),
            Caller::ConfigClient(number) => {
                return self.config_client_answered(number, id, outcome);
            }
        };
        let mut out = Vec::new();
        let mut around = Surroundings {
            now: self.now,
            history: &mut self.history,
            addresses: &self.nodes,
            hosts: self.kv_hosts,
            controllers: self.kv_hosts..self.hosts.len(),
            shards: self.scenario.genesis.shards,
            out: &mut out,
        };
        self.clients[number].answered(id, outcome, &mut around)?;
        for outgoing in out {
            self.send_request(outgoing);
        }
        self.plan_client(number);
        Ok(())
    }

    pub(crate) fn client_wakes(&mut self, number: usize) {
        if self.client_due[number] > self.now {
            return;
        }
        self.client_due[number] = Micros::MAX;
        let mut out = Vec::new();
        let mut around = Surroundings {
            now: self.now,
            history: &mut self.history,
            addresses: &self.nodes,
            hosts: self.kv_hosts,
            controllers: self.kv_hosts..self.hosts.len(),
            shards: self.scenario.genesis.shards,
            out: &mut out,
        };
        self.clients[number].wake(&mut around);
        for outgoing in out {
            self.send_request(outgoing);
        }
        self.plan_client(number);
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
}

/// The sender of a request.
enum Caller {
    Client(usize),
    Administrator,
    Mover(HostId),
    ConfigClient(usize),
}

fn caller(id: RequestId) -> Caller {
    let number = client_of(id);
    let from = |first: u64| usize::try_from(number - first).unwrap_or(usize::MAX);
    if number >= CONFIG_CLIENTS {
        Caller::ConfigClient(from(CONFIG_CLIENTS))
    } else if number >= MOVERS {
        Caller::Mover(from(MOVERS))
    } else if number >= ADMIN {
        Caller::Administrator
    } else {
        Caller::Client(from(0))
    }
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

/// Describes a message in one line.
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
