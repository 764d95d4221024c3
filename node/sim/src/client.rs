//! A simulated client: drives the product's request engine, and does worse.
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
mod options;
mod routes;
mod streams;
mod unary;

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use replica::{Request, RequestId};
use request::{Attempts, LeaderTable, Repeat, Time, Tracked};
use shardkv::{Query, Write};
use types::{Gid, NodeId, hash_key};

use crate::caller::Caller;
use crate::history::{History, Mark};
use crate::machine::Question;
use crate::network::HostId;
use crate::queue::{MILLI, Micros};
use crate::rng::SimRng;
use routes::Routes;
use streams::{Sent, Stream};
use unary::{Sessions, Unary};

pub use options::ClientOptions;

/// A request on its way to a host.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// The destination.
    pub to: HostId,
    /// The id of the request, which names the client.
    pub id: RequestId,
    /// The request.
    pub request: Request<Question>,
    /// The delay before it leaves.
    pub delay: Micros,
}

/// The inputs and outputs of a client: what it may read of the world, and its requests.
pub struct Surroundings<'a> {
    /// The time.
    pub now: Micros,
    /// The history of all operations.
    pub history: &'a mut History,
    /// The host of each node.
    pub addresses: &'a BTreeMap<NodeId, HostId>,
    /// The number of hosts of replica groups, which come first.
    pub hosts: usize,
    /// The controllers' hosts; empty in a world of one group.
    pub controllers: Range<HostId>,
    /// The number of shards.
    pub shards: u32,
    /// The requests that leave the client.
    pub out: &'a mut Vec<Outgoing>,
}

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
    diverted: Option<HostId>,
    /// The last seen value of each key, for compare-and-swap.
    seen: BTreeMap<Bytes, Option<Bytes>>,
    stopping: bool,
    script: Vec<Step>,
    timings: Vec<Timing>,
}

/// The duration of an answered request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timing {
    /// The key.
    pub key: Bytes,
    /// The time of its start.
    pub began: Micros,
    /// The time until its answer.
    pub took: Micros,
}

/// An operation that a scripted client does, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A write.
    Write(Write),
    /// A read of a key.
    Get(Bytes),
}

#[derive(Debug)]
struct Operation {
    what: What,
    marks: Vec<(Bytes, Mark)>,
    began: Micros,
}

#[derive(Clone, Debug)]
enum What {
    /// A write, with a session or without.
    Write(Write, Repeat),
    Read(Query),
}

/// An operation as the engine sees it.
#[derive(Debug)]
struct Call {
    number: u64,
    hash: u64,
    repeat: Repeat,
    deadline: Micros,
    abandoned: bool,
}

impl request::Call for Call {
    fn hash(&self) -> u64 {
        self.hash
    }

    fn cost(&self) -> usize {
        1
    }

    fn repeat(&self) -> Repeat {
        self.repeat
    }

    fn deadline(&self) -> Time {
        Time::from_micros(self.deadline)
    }

    fn is_abandoned(&self) -> bool {
        self.abandoned
    }
}

/// Returns true if a query covers a key.
fn covers(query: &Query, key: &[u8], shards: u32) -> bool {
    match query {
        Query::Scan { shards: only, .. } => Routes::covers(only.as_ref(), key, shards),
        _ => true,
    }
}

/// Returns the key with this number.
pub fn key(number: u64) -> Bytes {
    Bytes::from(format!("key{number:02}"))
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
            diverted: None,
            seen: BTreeMap::new(),
            stopping: false,
            script: Vec::new(),
            timings: Vec::new(),
        }
    }

    /// Runs these operations in order, as fast as the pipeline allows, and draws no more random operations.
    pub fn script(&mut self, steps: impl IntoIterator<Item = Step>) {
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
            if unary.repeat() != Repeat::Never {
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
        self.diverted = Some(host);
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
            .map(|operation| &operation.what)
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

    /// Returns the moment at which the client wants to be woken next.
    pub fn due(&self) -> Micros {
        if self.diverted.is_some() {
            return self.now;
        }
        let streams = self.streams_due();
        let wants = !self.stopping || !self.script.is_empty();
        let has_room = self.operations.len() < self.options.pipeline.max(1);
        let start = (wants && has_room).then_some(self.next_start);
        streams
            .into_iter()
            .chain(self.unaries_due())
            .chain(start)
            .chain(self.routes.due().filter(|_| !self.is_idle()))
            .min()
            .unwrap_or(Micros::MAX)
    }

    /// Does what is due.
    pub fn wake(&mut self, around: &mut Surroundings<'_>) {
        let now = around.now;
        self.now = now;
        if let Some(host) = self.diverted.take() {
            self.divert(host, around);
        }
        self.watch_streams(around);
        if self.routes.due().is_some_and(|due| due <= now) {
            self.refresh(around);
        }
        let wants = !self.stopping || !self.script.is_empty();
        if wants && self.next_start <= now && self.operations.len() < self.options.pipeline.max(1) {
            self.start(around);
        }
        self.advance_unaries(around);
        self.pump(around);
    }

    /// Asks for a newer configuration.
    fn refresh(&mut self, around: &mut Surroundings<'_>) {
        let id = self.next_id();
        let patience = self.options.patience;
        self.routes.refresh(id, patience, &mut self.rng, around);
    }

    fn next_id(&mut self) -> RequestId {
        self.sent += 1;
        Caller::Client(self.number).request(self.sent)
    }

    fn start(&mut self, around: &mut Surroundings<'_>) {
        let now = around.now;
        let (least, most) = self.options.think;
        self.next_start = now + self.rng.between(least, most);
        if self.script.is_empty() && self.rng.chance(self.options.silences) {
            self.next_start = now + self.options.silence;
            return;
        }
        if self.routes.config(around).is_none() {
            self.refresh(around);
            return;
        }
        let Some(what) = self.draw(around) else {
            self.refresh(around);
            return;
        };
        let Some((key, gid)) = self.route(&what, around) else {
            self.refresh(around);
            // A scripted operation must not be dropped.
            self.put_back(what);
            return;
        };
        let marks = match &what {
            What::Write(write, _) => {
                vec![(write.key().clone(), around.history.invoke_write(write))]
            }
            What::Read(Query::Get { key }) => {
                vec![(key.clone(), around.history.invoke_get(key.clone()))]
            }
            What::Read(query) => (0..self.options.keys)
                .filter(|number| covers(query, &self::key(*number), around.shards))
                .map(|number| {
                    let key = self::key(number);
                    (key.clone(), around.history.invoke_get(key))
                })
                .collect(),
        };
        let repeat = match &what {
            What::Write(_, repeat) => *repeat,
            What::Read(_) => Repeat::Freely,
        };
        let scan = matches!(what, What::Read(Query::Scan { .. }));
        self.started += 1;
        let call = Call {
            number: self.started,
            hash: hash_key(&key),
            repeat,
            deadline: now.saturating_add(self.options.deadline),
            abandoned: false,
        };
        self.operations.insert(
            self.started,
            Operation {
                what,
                marks,
                began: now,
            },
        );
        if !scan && self.rng.chance(self.options.unary) {
            self.start_unary(self.started, repeat, call.deadline);
            return;
        }
        let attempts = Attempts::default();
        self.admit(gid, Tracked { call, attempts }, around);
    }

    fn put_back(&mut self, what: What) {
        let step = match what {
            What::Write(write, Repeat::ByName) if self.stopping => Step::Write(write),
            What::Read(Query::Get { key }) if self.stopping => Step::Get(key),
            _ => return,
        };
        self.script.insert(0, step);
    }

    /// Draws the next operation. Returns `None` if no group is known that could serve it.
    fn draw(&mut self, around: &Surroundings<'_>) -> Option<What> {
        if !self.script.is_empty() {
            return Some(match self.script.remove(0) {
                Step::Write(write) => What::Write(write, Repeat::ByName),
                Step::Get(key) => What::Read(Query::Get { key }),
            });
        }
        let key = key(self.rng.below(self.options.keys));
        if self.rng.chance(self.options.reads) {
            return self.draw_read(key, around).map(What::Read);
        }
        let write = self.draw_write(key);
        // Only writes with unique bytes, because the checker finds a write without a session by its bytes.
        let unique = !matches!(
            write,
            Write::Delete { .. } | Write::CompareAndSwap { new: None, .. }
        );
        if unique && self.rng.chance(self.options.sessionless) {
            return Some(What::Write(write, Repeat::Never));
        }
        Some(What::Write(write, Repeat::ByName))
    }

    fn draw_read(&mut self, key: Bytes, around: &Surroundings<'_>) -> Option<Query> {
        if !self.rng.chance(self.options.scans) {
            return Some(Query::Get { key });
        }
        let limit = if self.rng.coin() { 1_000 } else { 2 };
        let (_, shards) = self.routes.any_group(&mut self.rng, around)?;
        let mut keys = (0..self.options.keys).map(self::key);
        if !keys.any(|key| Routes::covers(shards.as_ref(), &key, around.shards)) {
            return Some(Query::Get { key });
        }
        Some(Query::Scan {
            start: Bytes::from_static(b"key"),
            end: Bytes::from_static(b"kez"),
            limit,
            max_bytes: 1 << 20,
            shards,
        })
    }

    fn draw_write(&mut self, key: Bytes) -> Write {
        // A unique mark, so that a value shows its writer and a repeated append is visible.
        let mut value = format!("<{}.{}>", self.number, self.started + 1).into_bytes();
        let seen = self.seen.get(&key).cloned().flatten();
        let long = seen.as_ref().is_some_and(|value| value.len() > 200);
        match self.rng.below(10) {
            0..=4 if !long => Write::Append {
                key,
                suffix: value.into(),
            },
            5 | 6 => {
                let expected = seen;
                let new = (!self.rng.chance(150_000)).then(|| value.into());
                Write::CompareAndSwap { key, expected, new }
            }
            7 => Write::Delete { key },
            _ => {
                let padding = usize::try_from(self.rng.below(self.options.padding + 1));
                value.resize(value.len() + padding.unwrap_or(0), b'.');
                Write::Put {
                    key,
                    value: value.into(),
                }
            }
        }
    }

    /// Returns the key that decides the owner, and the owner by the known configuration.
    fn route(&self, what: &What, around: &Surroundings<'_>) -> Option<(Bytes, Gid)> {
        let key = match what {
            What::Write(write, _) => write.key().clone(),
            What::Read(Query::Get { key }) => key.clone(),
            // All shards of a scan belonged to one group when it was drawn.
            What::Read(query) => (0..self.options.keys)
                .map(key)
                .find(|key| covers(query, key, around.shards))?,
        };
        let gid = self.routes.owner(&key, around)?;
        Some((key, gid))
    }
}
