//! The task of one batch stream to one group: the fast path.
//!
//! Callers put calls into a bounded queue and wait for a one-shot answer each; no task is spawned for a call. The task takes
//! all queued calls, sends them as one message, and so batches by itself: while a message waits for room in the connection,
//! the next one grows. All rules are in [`BatchStream`], which this task drives; this file moves messages, and keeps the
//! [`Link`] to the leader.
//!
//! # Groups
//!
//! Each group has streams of its own: task, queue, connection, sessions. So a group or a shard that stalls can't delay calls
//! for other groups, whatever those calls wait for: a place in the queue, the window of a session, or the connection. The price is
//! one session for each group and stream, which costs the cluster a record in each shard that it writes to.
//!
//! When the configuration gives a shard to another group, the calls that wait for the shard are passed on to that group's
//! stream as they are: with their names, their doubts and their deadlines. Calls on the wire follow when they are refused or their
//! connection is lost. A task whose group left the configuration ends when it has no call left.

mod link;

use std::sync::{Arc, Weak};
use std::time::Duration;

use api::v1::{BatchItem, BatchRequest, BatchResponse, OpenSessionRequest, OpenSessionResponse};
use futures::stream;
use request::{
    BatchStream, Bugs, Effect, Ended, Limits, OpenedSession, StreamOptions, Time, Tracked,
};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep_until};
use tonic::Status;
use tonic::transport::Channel;
use types::{Gid, ShardConfig};

use self::link::{Event, Input, Link, Up, connect};
use crate::ClientOptions;
use crate::call::{Answer, Call, from_wire};
use crate::clock::{Clock, jitter};
use crate::failure::{self, mismatch};
use crate::route::{Leader, Router, Slot};

/// The interval between checks of deadlines, and so the greatest delay of a timeout.
const SWEEP: Duration = Duration::from_millis(10);

/// The most messages that wait for the connection. Few, so that the next message collects more calls.
const OUTBOX: usize = 2;

/// Passes calls from a stream to the streams of other groups.
pub(crate) trait Passage: Send + Sync {
    /// Takes another configuration: resources of groups that left it are dropped.
    fn reconfigure(&self, config: &ShardConfig);

    /// Passes a call to a stream of the group that owns its shard now.
    fn pass_on(self: Arc<Self>, it: Tracked<Call>);
}

pub(crate) struct StreamTask {
    router: Router,
    clock: Clock,
    passage: Weak<dyn Passage>,
    gid: Gid,
    slot: Slot,
    /// Calls from callers.
    queue: mpsc::Receiver<Tracked<Call>>,
    /// Calls from other streams.
    arriving: mpsc::UnboundedReceiver<Tracked<Call>>,
    configs: watch::Receiver<Option<Arc<ShardConfig>>>,
    /// True when no caller can put calls in any more.
    closed: bool,
    engine: BatchStream<Call>,
    link: Link,
}

impl StreamTask {
    pub(crate) fn new(
        router: &Router,
        passage: Weak<dyn Passage>,
        gid: Gid,
        slot: Slot,
        queue: mpsc::Receiver<Tracked<Call>>,
        arriving: mpsc::UnboundedReceiver<Tracked<Call>>,
    ) -> Self {
        let mut configs = router.configs();
        // Streams are made for groups of a configuration; this empty one is replaced by the first that is known.
        let config = configs.borrow_and_update().clone();
        let config = config.unwrap_or_else(|| Arc::new(ShardConfig::empty(1)));
        let options = stream_options(router.options());
        Self {
            clock: router.clock(),
            router: router.clone(),
            passage,
            gid,
            slot,
            queue,
            arriving,
            configs,
            closed: false,
            engine: BatchStream::new(&options, gid, config, jitter()),
            link: Link::Down,
        }
    }

    /// Runs until the group has left or all clients are gone.
    pub(crate) async fn run(mut self) {
        let mut incoming = Vec::new();
        let mut sweep = interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !(self.closed && self.arriving.is_empty() && self.engine.calls().is_empty()) {
            let now = self.clock.now();
            self.engine.handle_time(now);
            self.perform();
            self.send(now);
            let room = self.engine.calls().room();
            let due = self.engine.poll_timeout(now);
            let wake_at = self.clock.instant(due.unwrap_or(now));
            let has_batch = self.engine.has_batch();
            tokio::select! {
                event = self.link.next_event(has_batch) => self.handle(event),
                count = self.queue.recv_many(&mut incoming, room), if room > 0 && !self.closed => {
                    self.closed = count == 0;
                }
                Some(call) = self.arriving.recv() => incoming.push(call),
                Ok(()) = self.configs.changed() => self.configs.mark_changed(),
                _ = sweep.tick(), if !self.engine.calls().is_empty() => {
                    self.engine.handle_sweep(self.clock.now());
                }
                () = sleep_until(wake_at), if due.is_some() => {}
            }
            self.perform();
            // Apply the configuration before admitting calls: a stream that passed a call on has applied it already.
            self.reconfigure();
            for call in incoming.drain(..) {
                self.engine.admit(call);
            }
            self.perform();
        }
    }

    /// Takes the latest configuration.
    fn reconfigure(&mut self) {
        if !self.configs.has_changed().unwrap_or(false) {
            return;
        }
        let config = self.configs.borrow_and_update().clone();
        let Some(config) = config else { return };
        if let Some(passage) = self.passage.upgrade() {
            passage.reconfigure(&config);
        }
        self.engine.reconfigure(config);
    }

    /// Executes the effects that the engine returned.
    fn perform(&mut self) {
        while let Some(effect) = self.engine.poll_effect() {
            match effect {
                Effect::Connect { outage } => {
                    let connecting = connect(self.router.clone(), self.gid, self.slot, outage);
                    self.link = Link::Connecting(Box::pin(connecting));
                }
                Effect::LeaderFailed { hint } => {
                    if let Link::Up(up) = &self.link {
                        self.router.failed(&up.leader, hint.as_deref());
                    }
                }
                Effect::Disconnect => self.link = Link::Down,
                Effect::OpenSession => {
                    if let Link::Up(up) = &mut self.link {
                        let mut kv = self.router.kv(&up.leader, up.channel.clone());
                        let open =
                            async move { kv.open_session(OpenSessionRequest::default()).await };
                        up.opening = Some(Box::pin(open));
                    }
                }
                Effect::AskForNewerLeader => {
                    if let Link::Up(up) = &mut self.link {
                        let (router, leader) = (self.router.clone(), up.leader.clone());
                        let ask = async move { router.newer_leader(&leader).await.is_some() };
                        up.asking = Some(Box::pin(ask));
                    }
                }
                Effect::FetchConfig(num) => {
                    if let Link::Up(up) = &self.link {
                        self.router.refresh(num, &up.leader.address);
                    }
                }
                Effect::Move(it) => match self.passage.upgrade() {
                    Some(passage) => passage.pass_on(it),
                    None => it.call.close(it.attempts.doubt),
                },
                Effect::End(Ended { call, failure }) => {
                    let error = failure::error(failure, call.timeout);
                    // The caller may have dropped its future.
                    let _ = call.answer.send(Err(error));
                }
            }
        }
    }

    /// Sends the ready calls while the connection accepts messages.
    fn send(&mut self, now: Time) {
        let Link::Up(up) = &mut self.link else {
            return;
        };
        while self.engine.has_batch() {
            let Ok(room) = up.outbox.try_reserve() else {
                return;
            };
            let items = self.engine.poll_batch(now, |id, call, stamp| BatchItem {
                id,
                request: Some(call.request.to_wire(stamp)),
            });
            if !items.is_empty() {
                room.send(BatchRequest { items });
            }
        }
    }

    fn handle(&mut self, event: Event) {
        let now = self.clock.now();
        match event {
            Event::Connected(Ok((leader, channel))) => {
                self.link = self.open(leader, channel);
                self.engine.handle_connected(now);
            }
            Event::Connected(Err(failure)) => {
                if let Some(leader) = &failure.leader {
                    self.router.failed(leader, None);
                }
                self.link = Link::Down;
                self.engine.handle_connect_failed(now, &failure.why);
            }
            Event::Message(Ok(Some(message))) => self.results(now, message),
            Event::Message(Ok(None)) => {
                self.ended(now, &Status::unavailable("the node closed the stream"));
            }
            Event::Message(Err(status)) => self.ended(now, &status),
            Event::Session(result) => {
                let result = result.map(opened_session).map_err(|status| {
                    if let Link::Up(up) = &self.link {
                        self.router.suspect(&up.leader.address, self.slot, &status);
                    }
                    api::refused_status(&status)
                });
                self.engine.handle_session(now, result);
            }
            Event::NewerLeader(found) => self.engine.handle_newer_leader(now, found),
            Event::Writable => {}
        }
    }

    /// Opens the stream to a leader.
    fn open(&self, leader: Leader, channel: Channel) -> Link {
        let (outbox, mut messages) = mpsc::channel(OUTBOX);
        let outgoing = stream::poll_fn(move |cx| messages.poll_recv(cx));
        let mut kv = self.router.kv(&leader, channel.clone());
        let opening = Box::pin(async move { kv.batch(outgoing).await });
        Link::Up(Box::new(Up {
            leader,
            channel,
            outbox,
            input: Input::Opening(opening),
            opening: None,
            asking: None,
        }))
    }

    /// Hands the answers of a message to their callers.
    fn results(&mut self, now: Time, message: BatchResponse) {
        let results = message.results.into_iter().filter_map(|result| {
            // Ignore a kind of result that this version doesn't know.
            let response = from_wire(result.response?);
            Some((result.id, response.map_err(api::refused)))
        });
        for (call, answer) in self.engine.handle_results(now, results) {
            deliver(call, answer);
        }
    }

    /// Handles the end of the stream.
    fn ended(&mut self, now: Time, status: &Status) {
        if let Link::Up(up) = &self.link {
            self.router.suspect(&up.leader.address, self.slot, status);
        }
        self.engine
            .handle_stream_ended(now, api::refused_status(status));
    }
}

/// Hands an answer to its caller.
fn deliver(call: Call, answer: Answer) {
    let result = if call.request.fits(&answer) {
        Ok(answer)
    } else {
        Err(mismatch(call.request.is_write()))
    };
    // The caller may have dropped its future.
    let _ = call.answer.send(result);
}

fn opened_session(response: OpenSessionResponse) -> OpenedSession {
    OpenedSession {
        client_id: response.client_id,
        ttl: Duration::from_millis(response.ttl_ms),
    }
}

fn stream_options(options: &ClientOptions) -> StreamOptions {
    StreamOptions {
        limits: Limits {
            max_in_flight: options.max_in_flight,
            max_unacknowledged: options.max_unacknowledged,
            max_batch_items: options.max_batch_items,
            max_batch_bytes: options.max_batch_bytes,
        },
        min_backoff: options.min_backoff,
        max_backoff: options.max_backoff,
        silence_timeout: options.silence_timeout,
        bugs: Bugs::default(),
    }
}
