//! Messages, requests and answers on their way out: the network decides when each one arrives.

use raft::{Envelope, Index, Message};
use replica::{Answer, Request, RequestId};
use shardkv::Response;
use types::NodeId;

use super::World;
use crate::caller::Caller;
use crate::client::Outgoing;
use crate::event::Event;
use crate::machine::{Outcome, Question, Reply};
use crate::network::HostId;
use crate::queue::Micros;
use crate::traffic::describe;
use crate::violation::{Checked, Violation};

impl World {
    pub(super) fn send_message(
        &mut self,
        from: HostId,
        after: Micros,
        envelope: Envelope,
    ) -> Checked {
        let group = self.hosts[from].group;
        self.groups[group].invariants.sent(&envelope)?;
        self.traffic.count(&envelope);
        self.trace(from, || {
            format!("-> {} {}", envelope.to, describe(&envelope))
        });
        if envelope.to == NodeId(0) {
            let peers = self.groups[group].hosts.clone();
            for to in peers.filter(|to| *to != from) {
                self.transmit(from, to, after, envelope.clone());
            }
        } else if let Some(to) = self.nodes.get(&envelope.to).copied() {
            let hands_over = matches!(envelope.message, Message::TimeoutNow);
            self.transmit(from, to, after, envelope);
            if hands_over {
                self.isolate_old_leader(from);
            }
        } else {
            self.count("messages for a node that is gone");
        }
        Ok(())
    }

    pub(super) fn transmit(&mut self, from: HostId, to: HostId, after: Micros, envelope: Envelope) {
        let at = self.now + after;
        self.keep_follower_answer(&envelope);
        let [first, second] = match &envelope.message {
            Message::SnapshotChunk(chunk) => {
                let bytes = chunk.data.len();
                self.network.chunk_arrivals((from, to), at, bytes)
            }
            _ => self.network.arrivals(from, to, at),
        };
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

    pub(super) fn send_answer(
        &mut self,
        from: HostId,
        after: Micros,
        id: RequestId,
        outcome: Outcome,
    ) -> Checked {
        let Some(outcome) = self.read_if_confirmed(from, after, id, outcome) else {
            return Ok(());
        };
        let Some(committed) = self.hosts[from].open_requests.remove(&id) else {
            return Err(Violation::new(
                "a request is answered once",
                format!("host {from} answered {id:?}, which is not an open request: {outcome:?}"),
            ));
        };
        self.check_fresh(from, committed, &outcome)?;
        self.check_served(from, id, &outcome)?;
        self.count_follower_read(from, &outcome);
        self.trace(from, || format!("answers {id:x?}: {outcome:?}"));
        self.transmit_answer(from, after, id, outcome);
        Ok(())
    }

    /// Checks that a read shows every entry that was committed when the request arrived.
    pub(super) fn check_fresh(&self, from: HostId, committed: Index, outcome: &Outcome) -> Checked {
        let (applied, _) = self.hosts[from].disk.position();
        if !is_read(outcome) || applied.index >= committed {
            return Ok(());
        }
        Err(Violation::new(
            "reads are fresh",
            format!("host {from} answered from {applied}, when {committed} was committed"),
        ))
    }

    /// Sends an answer to the sender of the request.
    pub(super) fn transmit_answer(
        &mut self,
        from: HostId,
        after: Micros,
        id: RequestId,
        outcome: Outcome,
    ) {
        if let Caller::Mover(_) = Caller::of(id) {
            self.keep_answer(id, &outcome);
        }
        let at = match Caller::of(id) {
            Caller::Mover(host) | Caller::Leases(host) if host == from => self.now + after,
            Caller::Mover(host) => {
                let [first, _] = self.network.arrivals(from, host, self.now + after);
                let Some(at) = first else {
                    return;
                };
                at
            }
            Caller::Leases(_) | Caller::Administrator => self.now + after + self.network.delay(),
            Caller::Client(_) | Caller::ConfigClient(_) | Caller::Keyspace(_) => {
                if self.hosts[from].unreachable || self.network.loses() {
                    return;
                }
                self.now + after + self.network.delay()
            }
        };
        self.queue.push(at, Event::Answer { id, outcome });
    }

    /// Sends a request to a host.
    pub(super) fn send_request(&mut self, outgoing: Outgoing) {
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

    pub(crate) fn admin_request(&mut self, to: HostId, request: Request<Question>) -> RequestId {
        self.admin_sent += 1;
        let id = Caller::Administrator.request(self.admin_sent);
        self.queue.push(
            self.now + 1,
            Event::Ask {
                host: to,
                id,
                request,
            },
        );
        id
    }
}

/// Returns true for the answer to a read.
pub(super) fn is_read(outcome: &Outcome) -> bool {
    matches!(
        outcome,
        Ok(Answer::Machine(
            Reply::Keyspace(_)
                | Reply::Kv(Response::Value(_) | Response::Page { .. })
                | Reply::Ctrl(shardctrler::Response::Config(_) | shardctrler::Response::Configs(_))
        ))
    )
}
