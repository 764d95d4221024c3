//! A client of keyspaces: sends each write once, as etcd's clients do, and repeats nothing but reads.
//!
//! It draws writes, transactions, leases, compactions and reads, and creates and deletes keyspaces. Most requests go to the leader of the group
//! that owns the shard, some to any host: an old leader, an old owner. A write without an answer is in doubt, and is not sent
//! again, unless a known bug is put back.

mod workload;

use std::collections::BTreeMap;

use keyspace::{Operation, Place};
use replica::{Answer, Refusal, Request, RequestId};
use shardkv::{Response, encode_keyspace_operation};
use types::ShardId;

use crate::caller::Caller;
use crate::client::Outgoing;
use crate::keyspace_checker::{KeyspaceChecker, Name, ReadBegan, whole};
use crate::machine::{KeyspaceRead, LeaseOf, Outcome, Question, Reply};
use crate::network::HostId;
use crate::queue::{MILLI, Micros};
use crate::rng::SimRng;
use crate::violation::{Checked, Violation};

/// The pause before another attempt of a read that must succeed.
const PAUSE: Micros = 20 * MILLI;

/// The behaviour of clients of keyspaces.
#[derive(Clone, Debug)]
pub struct KeyspaceOptions {
    /// The number of clients.
    pub clients: usize,
    /// The number of names of keyspaces.
    pub names: u64,
    /// The number of keys.
    pub keys: u64,
    /// The most requests in flight.
    pub pipeline: usize,
    /// The shortest and the longest pause between two requests.
    pub think: (Micros, Micros),
    /// The time after which a request without an answer is given up.
    pub patience: Micros,
    /// True if a write without an answer is sent again, as a known bug has it.
    pub repeats_writes: bool,
    /// The number of watches.
    pub watches: usize,
    /// The share, of a million, of requests that renew a lease.
    pub renewals: u32,
    /// The share, of a million, of writes that grant a lease, besides those of all worlds.
    pub grants: u32,
    /// The bytes by which keys are longer.
    pub padding: usize,
}

/// A request in flight.
#[derive(Debug)]
struct Open {
    call: Call,
    since: Micros,
}

#[derive(Clone, Debug)]
enum Call {
    Write {
        name: Name,
        operation: Operation,
        /// True if an earlier attempt may have been applied, so that a refusal says nothing.
        repeated: bool,
    },
    Read(KeyspaceRead, ReadBegan),
    Renew(LeaseOf),
}

/// The inputs and outputs of a client.
pub(crate) struct KeyspaceContext<'a> {
    pub(crate) now: Micros,
    pub(crate) checker: &'a mut KeyspaceChecker,
    /// The number of shards.
    pub(crate) shards: u32,
    /// The number of hosts of replica groups, which come first.
    pub(crate) hosts: usize,
    /// Returns the leader of the group that owns a shard, if it is known.
    pub(crate) leader: &'a dyn Fn(ShardId) -> Option<HostId>,
    pub(crate) out: &'a mut Vec<Outgoing>,
}

/// One client.
#[derive(Debug)]
pub struct KeyspaceClient {
    number: u64,
    options: KeyspaceOptions,
    rng: SimRng,
    /// The places of keyspaces by the last look. They may be gone.
    known: BTreeMap<String, Place>,
    open: BTreeMap<RequestId, Open>,
    /// The keyspaces that must still be read as a whole.
    last_reads: Vec<Place>,
    sent: u64,
    operations: u32,
    next_start: Micros,
    stopping: bool,
}

impl KeyspaceClient {
    /// Creates a client.
    pub fn new(number: u64, options: KeyspaceOptions, rng: SimRng) -> Self {
        Self {
            number,
            options,
            rng,
            known: BTreeMap::new(),
            open: BTreeMap::new(),
            last_reads: Vec::new(),
            sent: 0,
            operations: 0,
            next_start: 0,
            stopping: false,
        }
    }

    /// Starts no more requests.
    pub(crate) fn finish(&mut self) {
        self.stopping = true;
    }

    /// Reads these keyspaces as a whole, each until it is answered.
    pub(crate) fn read_all(&mut self, places: Vec<Place>) {
        self.last_reads = places;
        self.next_start = 0;
    }

    /// Returns true if nothing is in flight or due.
    pub(crate) fn is_idle(&self) -> bool {
        self.stopping && self.open.is_empty() && self.last_reads.is_empty()
    }

    /// Describes the requests in flight.
    pub(crate) fn describe(&self) -> String {
        format!(
            "keyspace client {} waits for {:?}, and must read {:?}",
            self.number, self.open, self.last_reads
        )
    }

    /// Returns the moment at which the client wants to be woken next.
    pub(crate) fn due(&self) -> Micros {
        let patience = self.options.patience;
        let ends = self.open.values().map(|open| open.since + patience).min();
        let starts = self.wants_more().then_some(self.next_start);
        ends.into_iter().chain(starts).min().unwrap_or(Micros::MAX)
    }

    fn wants_more(&self) -> bool {
        if self.stopping {
            return self.open.is_empty() && !self.last_reads.is_empty();
        }
        self.open.len() < self.options.pipeline.max(1)
    }

    /// Does what is due.
    pub(crate) fn wake(&mut self, context: &mut KeyspaceContext<'_>) {
        let patience = self.options.patience;
        let due = |open: &&Open| open.since + patience <= context.now;
        let ids = self.open.iter().filter(|(_, open)| due(open));
        let ids: Vec<RequestId> = ids.map(|(id, _)| *id).collect();
        for id in ids {
            if let Some(open) = self.open.remove(&id) {
                self.doubt(open.call, context);
            }
        }
        if !self.wants_more() || self.next_start > context.now {
            return;
        }
        if self.stopping {
            self.next_start = context.now + PAUSE;
            if let Some(place) = self.last_reads.first() {
                self.read(whole(*place), context);
            }
            return;
        }
        let (least, most) = self.options.think;
        self.next_start = context.now + self.rng.between(least, most);
        self.start(context);
    }

    /// Handles a request whose outcome nobody will tell.
    fn doubt(&mut self, call: Call, context: &mut KeyspaceContext<'_>) {
        let repeats = self.options.repeats_writes && !self.stopping;
        if let Call::Write {
            name, operation, ..
        } = call
            && repeats
        {
            let repeated = true;
            let again = Call::Write {
                name,
                operation,
                repeated,
            };
            self.send(again, context);
        }
    }

    fn write(&mut self, operation: Operation, context: &mut KeyspaceContext<'_>) {
        let name = context.checker.sent(&operation);
        let repeated = false;
        let call = Call::Write {
            name,
            operation,
            repeated,
        };
        self.send(call, context);
    }

    fn read(&mut self, read: KeyspaceRead, context: &mut KeyspaceContext<'_>) {
        if let Some(began) = context.checker.begin_read(read.place) {
            self.send(Call::Read(read, began), context);
        }
    }

    fn renew(&mut self, lease: LeaseOf, context: &mut KeyspaceContext<'_>) {
        self.send(Call::Renew(lease), context);
    }

    fn send(&mut self, call: Call, context: &mut KeyspaceContext<'_>) {
        let (shard, request) = match &call {
            Call::Write { operation, .. } => (
                operation.shard,
                Request::Write {
                    operation: encode_keyspace_operation(operation),
                    frees_space: false,
                },
            ),
            Call::Read(read, _) => (
                read.place.shard,
                Request::Read(Question::Keyspace(read.clone())),
            ),
            Call::Renew(lease) => (lease.place.shard, Request::Read(Question::Renew(*lease))),
        };
        let elsewhere = !self.stopping && self.rng.chance(250_000);
        let leader = (context.leader)(shard).filter(|_| !elsewhere);
        let to = leader.unwrap_or_else(|| self.rng.index(context.hosts));
        self.sent += 1;
        let id = Caller::Keyspace(self.number).request(self.sent);
        let since = context.now;
        self.open.insert(id, Open { call, since });
        context.out.push(Outgoing {
            to,
            id,
            request,
            delay: 0,
        });
    }

    /// Takes in an answer.
    pub(crate) fn answered(
        &mut self,
        id: RequestId,
        outcome: Outcome,
        context: &mut KeyspaceContext<'_>,
    ) -> Checked {
        // An answer that comes too late is not awaited any more.
        let Some(Open { call, .. }) = self.open.remove(&id) else {
            return Ok(());
        };
        match (call, outcome) {
            (
                Call::Write { name, .. },
                Ok(Answer::Machine(Reply::Kv(Response::Keyspace(outcome)))),
            ) => context.checker.answered(name, &outcome),
            (call @ Call::Write { .. }, Err(Refusal::Unknown { .. } | Refusal::Stopping)) => {
                self.doubt(call, context);
                Ok(())
            }
            (
                Call::Write { name, repeated, .. },
                Err(_) | Ok(Answer::Machine(Reply::Kv(Response::Refused(_)))),
            ) => {
                if repeated {
                    return Ok(());
                }
                context.checker.refused(name)
            }
            (Call::Read(read, began), Ok(Answer::Machine(Reply::Keyspace(answer)))) => {
                self.last_reads.retain(|place| *place != read.place);
                context.checker.read(&read, began, &answer)
            }
            (Call::Renew(_), Ok(Answer::Machine(Reply::Renewal(_))))
            | (
                Call::Read(..) | Call::Renew(_),
                Err(_) | Ok(Answer::Machine(Reply::Kv(Response::Refused(_)))),
            ) => Ok(()),
            (_, Ok(other)) => Err(Violation::new(
                "answers fit their requests",
                format!("a request of a keyspace was answered {other:?}"),
            )),
        }
    }
}
