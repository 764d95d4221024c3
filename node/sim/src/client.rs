//! A simulated client: drives the product's request engine, and misbehaves in ways that the client library never does.
//!
//! Sessions, sequences, retries, back-off, deadlines and the choice of the next node are the engine's (`request`), as
//! in the client library. This driver stands for the network and the application: it draws operations, carries the
//! engine's batches to hosts one request each, and reports answers, refusals, silence and broken connections. Beyond
//! the library it sends copies to other nodes and lets some arrive very late, goes silent for longer than a session
//! lives, reports answers of connections that it gave up, and sends some writes without a session. Questions and
//! answers go to the history.
//!
//! The engine may report that an operation certainly had no effect. The history then checks that no log carries it.

mod answers;
mod attempt;
mod connection;
mod context;
mod operation;
mod options;
mod routes;
mod streams;
mod unary;
mod workload;

use std::collections::BTreeMap;

use bytes::Bytes;
use replica::{Request, RequestId};
use request::{LeaderTable, Refusal, Refused, Rejection, Repeat, Time};
use shardkv::{Command, Query, SessionRef, Write};
use types::{Gid, NodeId};

use crate::caller::Caller;
use crate::history::WriteId;
use crate::machine::{Question, to_kv};
use crate::network::{HostId, address};
use crate::queue::{MILLI, Micros, SECOND};
use crate::rng::{SimRng, digest};
use attempt::{Sessions, Unary};
use connection::{Sent, Stream};
use operation::{Body, Call, Operation, covers};
use routes::Routes;

pub use context::{ClientContext, Outgoing};
pub use operation::{ScriptedOperation, Timing, key};
pub use options::ClientOptions;

/// The age at which a session is replaced by a client that never replaces sessions.
const UNLIMITED_AGE: Micros = 1_000_000 * SECOND;

/// One client.
#[derive(Debug)]
pub struct Client {
    number: u64,
    options: ClientOptions,
    rng: SimRng,
    routes: Routes,
    /// The last known leader of each group.
    leaders: LeaderTable,
    /// The engine and the connection of each group.
    streams: BTreeMap<Gid, Stream>,
    operations: BTreeMap<u64, Operation>,
    /// The operations that are made attempt by attempt.
    unaries: BTreeMap<u64, Unary>,
    sessions: Sessions,
    /// The requests in flight.
    requests: BTreeMap<RequestId, Sent>,
    /// The time at the last event.
    now: Micros,
    sent: u64,
    started: u64,
    /// The number of connections so far.
    connections: u64,
    next_start: Micros,
    next_sweep: Micros,
    /// The host to which all connections go next, after all broke.
    reconnect_at: Option<HostId>,
    /// The last seen value of each key, for compare-and-swap.
    seen: BTreeMap<Bytes, Option<Bytes>>,
    stopping: bool,
    script: Vec<ScriptedOperation>,
    timings: Vec<Timing>,
}

impl Client {
    /// Creates a client that starts at `start`.
    pub fn new(number: u64, options: ClientOptions, start: Micros, rng: SimRng) -> Self {
        Self {
            number,
            leaders: LeaderTable::new(options.bugs),
            sessions: Sessions::new(&options),
            unaries: BTreeMap::new(),
            options,
            rng,
            routes: Routes::default(),
            streams: BTreeMap::new(),
            operations: BTreeMap::new(),
            requests: BTreeMap::new(),
            now: 0,
            sent: 0,
            started: 0,
            connections: 0,
            next_start: start,
            next_sweep: 0,
            reconnect_at: None,
            seen: BTreeMap::new(),
            stopping: false,
            script: Vec::new(),
            timings: Vec::new(),
        }
    }

    /// Runs these operations in order, as fast as the pipeline allows, and draws no more random operations.
    pub fn script(&mut self, steps: impl IntoIterator<Item = ScriptedOperation>) {
        self.script.extend(steps);
        self.stopping = true;
        self.next_start = 0;
        self.options.think = (MILLI, MILLI);
    }

    /// Starts no more operations, and lets the open ones finish without a deadline.
    pub fn finish(&mut self, now: Micros) {
        self.stopping = true;
        self.now = now;
        self.options.copies = 0;
        self.options.sessionless = 0;
        self.options.deadline = Micros::MAX;
        for unary in self.unaries.values_mut() {
            if unary.repeat != Repeat::Never {
                unary.deadline = Micros::MAX;
            }
        }
        for stream in self.streams.values_mut() {
            stream.losses = 0;
            stream.engine.update_calls(|call: &mut Call| {
                // A write without a session is sent once. If its answer was lost, no other answer will come.
                if call.repeat != Repeat::Never {
                    call.deadline = Micros::MAX;
                }
            });
        }
    }

    /// Notes that all connections broke: goes on at `host` at once.
    pub fn lost_connection(&mut self, host: HostId, now: Micros) {
        self.now = now;
        self.reconnect_at = Some(host);
    }

    /// Returns true if nothing is in flight or due.
    pub fn is_idle(&self) -> bool {
        self.stopping && self.script.is_empty() && self.operations.is_empty()
    }

    /// Returns the last seen value of a key.
    pub(crate) fn seen(&self, key: &[u8]) -> Option<Bytes> {
        self.seen.get(key).cloned().flatten()
    }

    /// Returns the durations of the answered requests.
    pub(crate) fn timings(&self) -> &[Timing] {
        &self.timings
    }

    /// Describes the operations in flight.
    pub fn describe(&self) -> String {
        let whats: Vec<_> = self
            .operations
            .values()
            .map(|operation| &operation.body)
            .collect();
        format!(
            "client {} has configuration {}, connected to {:?}, in flight {whats:?}",
            self.number,
            self.routes.num(),
            self.streams
                .iter()
                .map(|(gid, stream)| (*gid, stream.host()))
                .collect::<Vec<_>>(),
        )
    }

    fn next_id(&mut self) -> RequestId {
        self.sent += 1;
        Caller::Client(self.number).request(self.sent)
    }

    /// Asks for a newer configuration.
    fn refresh(&mut self, context: &mut ClientContext<'_>) {
        let id = self.next_id();
        let patience = self.options.patience;
        self.routes.refresh(id, patience, &mut self.rng, context);
    }

    /// Returns the key that decides the owner, and the owner by the known configuration.
    fn route(&self, body: &Body, context: &ClientContext<'_>) -> Option<(Bytes, Gid)> {
        let key = match body {
            Body::Write(write, _) => write.key().clone(),
            Body::Read(Query::Get { key }) => key.clone(),
            // All shards of a scan belonged to one group when it was drawn.
            Body::Read(query) => (0..self.options.keys)
                .map(key)
                .find(|key| covers(query, key, context.shards))?,
        };
        let gid = self.routes.owner(&key, context)?;
        Some((key, gid))
    }

    /// Encodes an operation under its name, and tells the history by which name the log will know it.
    fn encode(
        &self,
        number: u64,
        session: Option<SessionRef>,
        context: &mut ClientContext<'_>,
    ) -> Option<Request<Question>> {
        let operation = self.operations.get(&number)?;
        let (write, repeat) = match &operation.body {
            Body::Read(query) => return Some(to_kv(Request::Read(query.clone()))),
            Body::Write(write, repeat) => (write, *repeat),
        };
        let frees_space = matches!(write, Write::Delete { .. });
        let command = Command {
            session,
            write: write.clone(),
        };
        let encoded = command.encode();
        if let Some((_, record)) = operation.records.first() {
            let name = match (session, repeat) {
                (Some(session), Repeat::ByName) => {
                    WriteId::Numbered(session.client, session.sequence)
                }
                _ => WriteId::Digest(digest(&encoded)),
            };
            context.history.set_write_id(*record, name);
        }
        Some(Request::Write {
            operation: encoded,
            frees_space,
        })
    }

    /// Converts a refusal of the replica.
    fn convert_refusal(
        &mut self,
        refusal: &replica::Refusal,
        context: &ClientContext<'_>,
    ) -> Refused {
        let hint = |leader: &Option<NodeId>| {
            let host = context.addresses.get(leader.as_ref()?)?;
            Some(address(*host).into())
        };
        let converted = match refusal {
            replica::Refusal::NotLeader { leader } => Refusal::NotLeader { hint: hint(leader) },
            replica::Refusal::Unknown { leader } => Refusal::OutcomeUnknown { hint: hint(leader) },
            replica::Refusal::Stopping => Refusal::Unavailable,
            replica::Refusal::TooLarge { .. } => Refusal::Rejected(Rejection::BadRequest {
                field: "request".to_owned(),
                message: refusal.to_string(),
            }),
            _ => Refusal::Overloaded {
                retry_after: Time::from_millis(self.rng.between(10, 80)),
            },
        };
        Refused {
            refusal: converted,
            message: refusal.to_string(),
        }
    }

    /// Ends an operation without an answer. `maybe` is true if it may have taken effect.
    fn give_up(&mut self, number: u64, maybe: bool, context: &mut ClientContext<'_>) {
        let Some(operation) = self.end(number) else {
            return;
        };
        if !maybe || matches!(operation.body, Body::Read(_)) {
            for (_, record) in operation.records {
                context.history.mark_void(record);
            }
        }
    }

    fn end(&mut self, number: u64) -> Option<Operation> {
        self.requests.retain(|_, sent| sent.number != number);
        self.unaries.remove(&number);
        self.operations.remove(&number)
    }
}
