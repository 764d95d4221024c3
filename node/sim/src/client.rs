//! A simulated client: does what the real library does, and worse.
//!
//! It opens sessions, numbers its writes, keeps several in flight, looks for the leader, retries under the
//! same number until a deadline, and gives up then with an unknown outcome. On top it sends copies to
//! other nodes and lets some arrive very late, goes silent for longer than a session lives, and sends
//! some writes without a session. What it asked and what it was told goes to the history.
//!
//! A copy of a request is *resolved* when its refusal says that it did nothing. Only an operation whose
//! every copy is resolved counts as never done; this holds the refusals to their word.

mod answers;
mod options;
mod routes;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use bytes::Bytes;
use replica::{Request, RequestId};
use shardkv::{Command, Query, SessionRef, Write};
use types::{ClientId, Gid, NodeId, Sequence};

use crate::dice::{Dice, digest};
use crate::history::{History, Mark, Name};
use crate::machine::{Question, to_kv};
use crate::network::HostId;
use crate::queue::{MILLI, Micros};
use routes::Routes;

pub use options::ClientOptions;

/// A request on its way to a host.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// Where it goes.
    pub to: HostId,
    /// Its name: the client's number is in the high bits.
    pub id: RequestId,
    /// What is asked.
    pub request: Request<Question>,
    /// It leaves this much later.
    pub delay: Micros,
}

/// The world around a client.
pub struct Surroundings<'a> {
    /// The time.
    pub now: Micros,
    /// Where everything is written down.
    pub history: &'a mut History,
    /// Who lives where.
    pub addresses: &'a BTreeMap<NodeId, HostId>,
    /// How many hosts the replica groups have; they come first.
    pub hosts: usize,
    /// The controllers; none in a world of one group.
    pub controllers: Range<HostId>,
    /// How many shards there are.
    pub shards: u32,
    /// What leaves the client.
    pub out: &'a mut Vec<Outgoing>,
}

/// One client.
#[derive(Debug)]
pub struct Client {
    number: u64,
    options: ClientOptions,
    dice: Dice,
    routes: Routes,
    session: Option<Session>,
    opening: Option<Opening>,
    /// Unanswered writes by session: the lowest is what the client has acknowledged below.
    open: BTreeMap<ClientId, BTreeSet<Sequence>>,
    operations: BTreeMap<u64, Operation>,
    /// Requests under way: for which operation, and to which group.
    requests: BTreeMap<RequestId, (u64, Gid)>,
    sent: u64,
    started: u64,
    next_start: Micros,
    /// What was last seen of a key, for compare-and-swap.
    seen: BTreeMap<Bytes, Option<Bytes>>,
    stopping: bool,
    script: Vec<Step>,
    timings: Vec<Timing>,
}

/// How long an answered request took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timing {
    /// The key that it was about.
    pub key: Bytes,
    /// When it was begun.
    pub began: Micros,
    /// How long it took.
    pub took: Micros,
}

/// An operation that a scripted client does, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write this.
    Write(Write),
    /// Read this key.
    Get(Bytes),
}

#[derive(Debug)]
struct Session {
    id: ClientId,
    opened: Micros,
    next: Sequence,
}

#[derive(Debug)]
struct Opening {
    id: RequestId,
    /// Who was asked; nobody, if no group is known.
    gid: Option<Gid>,
    retry_at: Micros,
}

#[derive(Debug)]
struct Operation {
    what: What,
    /// Whom it was sent to last.
    gid: Option<Gid>,
    marks: Vec<(Bytes, Mark)>,
    began: Micros,
    deadline: Micros,
    /// When to send again: because a refusal said so, or because no answer came.
    retry_at: Micros,
    attempts: u32,
    /// Copies that may still do something.
    unresolved: BTreeSet<RequestId>,
    /// It may have been done, whatever comes.
    maybe: bool,
}

#[derive(Debug)]
enum What {
    Write(Write, Option<(ClientId, Sequence)>),
    Read(Query),
}

/// Whether a question is about a key.
fn covers(query: &Query, key: &[u8], shards: u32) -> bool {
    match query {
        Query::Scan { shards: only, .. } => Routes::covers(only.as_ref(), key, shards),
        _ => true,
    }
}

/// The client whose number this is sends a request.
pub const fn client_of(id: RequestId) -> u64 {
    id.0 >> 40
}

/// The name of a key.
pub fn key(number: u64) -> Bytes {
    Bytes::from(format!("key{number:02}"))
}

impl Client {
    /// A client that starts at `start`.
    pub fn new(number: u64, options: ClientOptions, start: Micros, dice: Dice) -> Self {
        Self {
            number,
            options,
            dice,
            routes: Routes::default(),
            session: None,
            opening: None,
            open: BTreeMap::new(),
            operations: BTreeMap::new(),
            requests: BTreeMap::new(),
            sent: 0,
            started: 0,
            next_start: start,
            seen: BTreeMap::new(),
            stopping: false,
            script: Vec::new(),
            timings: Vec::new(),
        }
    }

    /// Does these next, instead of random ones, one after the other as fast as its pipeline allows.
    pub fn script(&mut self, steps: impl IntoIterator<Item = Step>) {
        self.script.extend(steps);
        self.stopping = true;
        self.next_start = 0;
        self.options.think = (MILLI, MILLI);
    }

    /// Starts nothing more, and finishes what it began, however long it takes.
    pub fn finish(&mut self, now: Micros) {
        self.stopping = true;
        self.options.copies = 0;
        for operation in self.operations.values_mut() {
            // A write without a session is sent once: if its answer got lost there is none to wait for.
            if !matches!(operation.what, What::Write(_, None)) {
                operation.deadline = Micros::MAX;
            }
            operation.attempts = 0;
            operation.retry_at = operation.retry_at.min(now + self.options.patience);
        }
        self.options.sessionless = 0;
        self.options.deadline = Micros::MAX;
    }

    /// The connection broke: goes on at `host` at once.
    pub fn lost_connection(&mut self, host: HostId, now: Micros) {
        self.routes.lost_connection(host);
        for operation in self.operations.values_mut() {
            operation.retry_at = operation.retry_at.min(now);
        }
    }

    /// Whether nothing is in flight or due.
    pub fn is_idle(&self) -> bool {
        self.stopping && self.script.is_empty() && self.operations.is_empty()
    }

    /// What was last seen of a key.
    pub(crate) fn seen(&self, key: &[u8]) -> Option<Bytes> {
        self.seen.get(key).cloned().flatten()
    }

    /// How long answered requests took.
    pub(crate) fn timings(&self) -> &[Timing] {
        &self.timings
    }

    /// What is in flight, for people.
    pub fn describe(&self) -> String {
        let whats: Vec<_> = self
            .operations
            .values()
            .map(|operation| &operation.what)
            .collect();
        format!(
            "client {} has configuration {}, opening {}, in flight {whats:?}",
            self.number,
            self.routes.num(),
            self.opening.is_some()
        )
    }

    /// When the client wants to be woken next.
    pub fn due(&self) -> Micros {
        let retries = self
            .operations
            .values()
            .map(|operation| operation.retry_at.min(operation.deadline));
        let opening = self.opening.as_ref().map(|opening| opening.retry_at);
        let has_room = self.operations.len() < self.options.pipeline.max(1);
        let wants = !self.stopping || !self.script.is_empty();
        let start = (wants && has_room && self.opening.is_none()).then_some(self.next_start);
        retries
            .chain(opening)
            .chain(start)
            .chain(self.routes.due().filter(|_| !self.is_idle()))
            .min()
            .unwrap_or(Micros::MAX)
    }

    /// Time has come for something.
    pub fn wake(&mut self, around: &mut Surroundings<'_>) {
        let now = around.now;
        if let Some(opening) = self.opening.as_ref().filter(|it| it.retry_at <= now) {
            if let Some(gid) = opening.gid {
                self.routes.elsewhere(gid, &mut self.dice, around);
            }
            self.open_session(around);
        }
        if self.routes.due().is_some_and(|due| due <= now) {
            self.refresh(around);
        }
        let late: Vec<u64> = self
            .operations
            .iter()
            .filter(|(_, operation)| operation.retry_at <= now || operation.deadline <= now)
            .map(|(number, _)| *number)
            .collect();
        for number in late {
            self.retry(number, around);
        }
        let wants = !self.stopping || !self.script.is_empty();
        if wants
            && self.next_start <= now
            && self.opening.is_none()
            && self.operations.len() < self.options.pipeline.max(1)
        {
            self.start(around);
        }
    }

    fn retry(&mut self, number: u64, around: &mut Surroundings<'_>) {
        let Some(operation) = self.operations.get_mut(&number) else {
            return;
        };
        if operation.deadline <= around.now {
            self.give_up(number, around);
            return;
        }
        let sessionless = matches!(operation.what, What::Write(_, None));
        if sessionless && !operation.unresolved.is_empty() {
            // Sending it again would do it again.
            operation.retry_at = operation.deadline;
            return;
        }
        if !operation.unresolved.is_empty()
            && let Some(gid) = operation.gid
        {
            self.routes.elsewhere(gid, &mut self.dice, around);
        }
        self.send(number, around);
    }

    /// Asks for a newer configuration.
    fn refresh(&mut self, around: &mut Surroundings<'_>) {
        let id = self.next_id();
        let patience = self.options.patience;
        self.routes.refresh(id, patience, &mut self.dice, around);
    }

    fn open_session(&mut self, around: &mut Surroundings<'_>) {
        let id = self.next_id();
        let group = self.routes.any_group(&mut self.dice, around);
        let gid = group.map(|(gid, _)| gid);
        self.opening = Some(Opening {
            id,
            gid,
            retry_at: around.now + self.options.patience,
        });
        let Some(gid) = gid else {
            self.refresh(around);
            return;
        };
        around.out.push(Outgoing {
            to: self.routes.target(gid, around),
            id,
            request: Request::LogTime,
            delay: 0,
        });
    }

    fn next_id(&mut self) -> RequestId {
        self.sent += 1;
        RequestId((self.number << 40) | self.sent)
    }

    fn start(&mut self, around: &mut Surroundings<'_>) {
        let now = around.now;
        let (least, most) = self.options.think;
        self.next_start = now + self.dice.between(least, most);
        if self.script.is_empty() && self.dice.chance(self.options.silences) {
            self.next_start = now + self.options.silence;
            return;
        }
        let old = self
            .session
            .as_ref()
            .zip(self.options.renew_after)
            .is_some_and(|(session, age)| now >= session.opened.saturating_add(age));
        if old {
            self.session = None;
        }
        if self.session.is_none() {
            self.next_start = now;
            self.open_session(around);
            return;
        }
        let Some(what) = self.draw(around) else {
            self.refresh(around);
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
                .filter(|number| covers(query, &key(*number), around.shards))
                .map(|number| (key(number), around.history.invoke_get(key(number))))
                .collect(),
        };
        if let (What::Write(_, Some((client, sequence))), Some((_, mark))) = (&what, marks.first())
        {
            let name = Name::Numbered(*client, *sequence);
            around.history.name(*mark, name);
        }
        self.started += 1;
        let deadline = now.saturating_add(self.options.deadline);
        self.operations.insert(
            self.started,
            Operation {
                what,
                gid: None,
                marks,
                began: now,
                deadline,
                retry_at: now,
                attempts: 0,
                unresolved: BTreeSet::new(),
                maybe: false,
            },
        );
        self.send(self.started, around);
    }

    /// The next thing to do, unless no group is known that it could be asked of.
    fn draw(&mut self, around: &Surroundings<'_>) -> Option<What> {
        if !self.script.is_empty() {
            return Some(match self.script.remove(0) {
                Step::Write(write) => self.in_session(write),
                Step::Get(key) => What::Read(Query::Get { key }),
            });
        }
        let key = key(self.dice.below(self.options.keys));
        if self.dice.chance(self.options.reads) {
            return self.draw_read(key, around).map(What::Read);
        }
        let write = self.draw_write(key);
        // Only what is unique in the log: the check wants to know where it was carried.
        let unique = !matches!(
            write,
            Write::Delete { .. } | Write::CompareAndSwap { new: None, .. }
        );
        if unique && self.dice.chance(self.options.sessionless) {
            return Some(What::Write(write, None));
        }
        Some(self.in_session(write))
    }

    fn in_session(&mut self, write: Write) -> What {
        let named = self.session.as_mut().map(|session| {
            let sequence = session.next;
            session.next = sequence.next();
            self.open.entry(session.id).or_default().insert(sequence);
            (session.id, sequence)
        });
        What::Write(write, named)
    }

    fn draw_read(&mut self, key: Bytes, around: &Surroundings<'_>) -> Option<Query> {
        if !self.dice.chance(self.options.scans) {
            return Some(Query::Get { key });
        }
        let limit = if self.dice.coin() { 1_000 } else { 2 };
        let (_, shards) = self.routes.any_group(&mut self.dice, around)?;
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
        // Unique, so that a value tells who wrote it and a doubled append shows.
        let mut value = format!("<{}.{}>", self.number, self.started + 1).into_bytes();
        let seen = self.seen.get(&key).cloned().flatten();
        let long = seen.as_ref().is_some_and(|value| value.len() > 200);
        match self.dice.below(10) {
            0..=4 if !long => Write::Append {
                key,
                suffix: value.into(),
            },
            5 | 6 => {
                let expected = seen;
                let new = (!self.dice.chance(150_000)).then(|| value.into());
                Write::CompareAndSwap { key, expected, new }
            }
            7 => Write::Delete { key },
            _ => {
                let padding = usize::try_from(self.dice.below(self.options.padding + 1));
                value.resize(value.len() + padding.unwrap_or(0), b'.');
                Write::Put {
                    key,
                    value: value.into(),
                }
            }
        }
    }

    /// Who is to be asked: by the configuration that is known.
    fn route(&self, what: &What, around: &Surroundings<'_>) -> Option<Gid> {
        let key = match what {
            What::Write(write, _) => write.key(),
            What::Read(Query::Get { key }) => key,
            // A scan's shards are all of one group, or were when it was drawn.
            What::Read(query) => {
                return (0..self.options.keys)
                    .map(key)
                    .find(|key| covers(query, key, around.shards))
                    .and_then(|key| self.routes.owner(&key, around));
            }
        };
        self.routes.owner(key, around)
    }

    fn send(&mut self, number: u64, around: &mut Surroundings<'_>) {
        let Some(what) = self.operations.get(&number).map(|it| &it.what) else {
            return;
        };
        let route = self.route(what, around);
        if route.is_none() {
            self.refresh(around);
        }
        let Some(operation) = self.operations.get_mut(&number) else {
            return;
        };
        operation.gid = route;
        let Some(gid) = route else {
            operation.retry_at = around.now + 20 * MILLI;
            return;
        };
        // Longer each time: copies that are still queued would only hold the later ones up.
        operation.retry_at = around.now + (self.options.patience << operation.attempts.min(4));
        operation.attempts += 1;
        let (request, twice) = match &operation.what {
            What::Write(write, named) => {
                let session = named.map(|(client, sequence)| SessionRef {
                    client,
                    sequence,
                    acked_below: self
                        .open
                        .get(&client)
                        .and_then(|open| open.first().copied())
                        .unwrap_or(sequence),
                });
                let frees_space = matches!(write, Write::Delete { .. });
                let command = Command {
                    session,
                    write: write.clone(),
                };
                let encoded = command.encode();
                if let (None, Some((_, mark))) = (named, operation.marks.first()) {
                    let name = Name::Digest(digest(&encoded));
                    around.history.name(*mark, name);
                }
                let request = Request::Write {
                    operation: encoded,
                    frees_space,
                };
                (request, named.is_some())
            }
            What::Read(query) => (to_kv(Request::Read(query.clone())), true),
        };
        let mut targets = vec![(self.routes.target(gid, around), 0)];
        if twice && self.dice.chance(self.options.copies) {
            let host = self.dice.index(around.hosts);
            targets.push((host, self.dice.magnitude(1, self.options.copies_late_by)));
        }
        for (to, delay) in targets {
            let id = self.next_id();
            self.requests.insert(id, (number, gid));
            if let Some(operation) = self.operations.get_mut(&number) {
                operation.unresolved.insert(id);
            }
            around.out.push(Outgoing {
                to,
                id,
                request: request.clone(),
                delay,
            });
        }
    }
}
