//! The operations that a client draws or gets from its script, and the moments at which it acts.

use bytes::Bytes;
use request::{Attempts, Repeat, Tracked};
use shardkv::{PageRequest, Query, Write};
use types::hash_key;

use super::Client;
use super::context::ClientContext;
use super::operation::{Body, Call, Operation, ScriptedOperation, covers, key, scan_covers};
use crate::queue::Micros;

impl Client {
    /// Returns the moment at which the client wants to be woken next.
    pub fn due(&self) -> Micros {
        if self.reconnect_at.is_some() {
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
    pub fn wake(&mut self, context: &mut ClientContext<'_>) {
        let now = context.now;
        self.now = now;
        if let Some(host) = self.reconnect_at.take() {
            self.reconnect(host, context);
        }
        self.watch_streams(context);
        if self.routes.due().is_some_and(|due| due <= now) {
            self.refresh(context);
        }
        let wants = !self.stopping || !self.script.is_empty();
        if wants && self.next_start <= now && self.operations.len() < self.options.pipeline.max(1) {
            self.start_operation(context);
        }
        self.advance_unaries(context);
        self.run_streams(context);
    }

    fn start_operation(&mut self, context: &mut ClientContext<'_>) {
        let now = context.now;
        let (least, most) = self.options.think;
        self.next_start = now + self.rng.between(least, most);
        if self.script.is_empty() && self.rng.chance(self.options.silences) {
            self.next_start = now + self.options.silence;
            return;
        }
        if self.routes.config(context).is_none() {
            self.refresh(context);
            return;
        }
        let Some(body) = self.draw(context) else {
            self.refresh(context);
            return;
        };
        let Some((key, gid)) = self.route(&body, context) else {
            self.refresh(context);
            // A scripted operation must not be dropped.
            self.put_back(body);
            return;
        };
        let records = match &body {
            Body::Write(write, _) => {
                vec![(write.key().clone(), context.history.invoke_write(write))]
            }
            Body::Read(Query::Get { key }) => {
                vec![(key.clone(), context.history.invoke_get(key.clone()))]
            }
            Body::Read(query) => (0..self.options.keys)
                .filter(|number| covers(query, &self::key(*number), context.shards))
                .map(|number| {
                    let key = self::key(number);
                    (key.clone(), context.history.invoke_get(key))
                })
                .collect(),
        };
        let repeat = match &body {
            Body::Write(_, repeat) => *repeat,
            Body::Read(_) => Repeat::Freely,
        };
        let scan = matches!(body, Body::Read(Query::Page(_)));
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
                body,
                records,
                began: now,
            },
        );
        if !scan && self.rng.chance(self.options.unary) {
            self.start_unary(self.started, repeat, call.deadline);
            return;
        }
        let attempts = Attempts::default();
        self.admit(gid, Tracked { call, attempts }, context);
    }

    fn put_back(&mut self, body: Body) {
        let step = match body {
            Body::Write(write, Repeat::ByName) if self.stopping => ScriptedOperation::Write(write),
            Body::Read(Query::Get { key }) if self.stopping => ScriptedOperation::Get(key),
            _ => return,
        };
        self.script.insert(0, step);
    }

    /// Draws the next operation. Returns `None` if no group is known that could serve it.
    fn draw(&mut self, context: &ClientContext<'_>) -> Option<Body> {
        if !self.script.is_empty() {
            return Some(match self.script.remove(0) {
                ScriptedOperation::Write(write) => Body::Write(write, Repeat::ByName),
                ScriptedOperation::Get(key) => Body::Read(Query::Get { key }),
            });
        }
        let key = key(self.rng.below(self.options.keys));
        if self.rng.chance(self.options.reads) {
            return self.draw_read(key, context).map(Body::Read);
        }
        let write = self.draw_write(key);
        // Only writes with unique bytes go without a session, because the checker finds such a write by its bytes.
        let unique = !matches!(
            write,
            Write::Delete { .. } | Write::CompareAndSwap { new: None, .. }
        );
        if unique && self.rng.chance(self.options.sessionless) {
            return Some(Body::Write(write, Repeat::Never));
        }
        Some(Body::Write(write, Repeat::ByName))
    }

    fn draw_read(&mut self, key: Bytes, context: &ClientContext<'_>) -> Option<Query> {
        if !self.rng.chance(self.options.scans) {
            return Some(Query::Get { key });
        }
        let limit = if self.rng.coin() { 1_000 } else { 2 };
        let (_, shards) = self.routes.any_group(&mut self.rng, context)?;
        let mut keys = (0..self.options.keys).map(self::key);
        if !keys.any(|key| scan_covers(shards.as_ref(), &key, context.shards)) {
            return Some(Query::Get { key });
        }
        Some(Query::Page(PageRequest {
            start: Bytes::from_static(b"key"),
            end: Bytes::from_static(b"kez"),
            limit,
            max_bytes: 1 << 20,
            keys_only: false,
            shards,
        }))
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
}
