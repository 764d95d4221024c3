//! One task, one batch stream, one group: the fast path.
//!
//! Callers put calls into a bounded queue and wait for a one-shot answer each; no task is spawned for a call. The
//! lane takes all that is queued, sends it as one message, and so batches by itself: while a message waits
//! for room in the connection, the next one grows. All book-keeping is in [`Book`]; this file moves
//! messages and keeps the [`Link`] to the leader.
//!
//! The link is down, being raised, or up. It is raised when a call waits, and lost when its stream ends, when
//! its node says that it does not lead, or when that node is silent while another leads a later term. Whatever is
//! unanswered then goes to the next leader under the same names.
//!
//! # Groups
//!
//! Each group has lanes of its own: task, queue, stream, sessions. A group or a shard that stalls then can't hold up calls
//! for other groups, whatever they wait for: a place in the queue, the window of a session, or the connection. The price
//! is a session for each group and lane, which costs the cluster a record in the shards that it writes to.
//!
//! When the configuration gives a shard to another group, the calls that wait for it are handed over to that group's
//! lane as they are: with their name, their doubts and their deadline. Those on the wire follow when they are refused or
//! their connection is lost. A lane whose group left the configuration ends when it has nothing left.

mod book;
mod link;

use std::sync::{Arc, Weak};
use std::time::Duration;

use api::v1::OpenSessionRequest;
use futures::stream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tonic::transport::Channel;
use tonic::{Code, Status};
use types::{Gid, ShardConfig};

use self::book::{Book, Reroute};
use self::link::{Event, Input, Link, Up, raise};
use crate::backoff::Backoff;
use crate::call::Call;
use crate::gates::Gates;
use crate::route::{Leader, Router, SUPERSEDED, Slot};
use crate::verdict::{self, Action};
use crate::{ClientOptions, Error};

/// How often deadlines are looked at: they are kept to within this.
const SWEEP: Duration = Duration::from_millis(10);

/// Messages that wait for the connection. Few, so that later ones grow.
const OUTBOX: usize = 2;

pub(crate) struct Lane {
    options: Arc<ClientOptions>,
    router: Router,
    gates: Weak<Gates>,
    gid: Gid,
    slot: Slot,
    /// From callers.
    queue: mpsc::Receiver<Call>,
    /// From other lanes.
    arriving: mpsc::UnboundedReceiver<Call>,
    configs: watch::Receiver<Option<Arc<ShardConfig>>>,
    /// Nobody can put calls in any more.
    closed: bool,
    book: Book,
    link: Link,
    backoff: Backoff,
    /// The first failure since the last success.
    outage: Option<Instant>,
    /// No new link before this.
    raise_at: Instant,
    /// No new session is asked for before this.
    session_at: Instant,
}

impl Lane {
    pub(crate) fn new(
        router: &Router,
        gates: Weak<Gates>,
        gid: Gid,
        slot: Slot,
        queue: mpsc::Receiver<Call>,
        arriving: mpsc::UnboundedReceiver<Call>,
    ) -> Self {
        let now = Instant::now();
        let options = Arc::clone(router.options());
        let mut configs = router.configs();
        // Lanes are made for groups of a configuration; this one is replaced by the first that is known.
        let config = configs.borrow_and_update().clone();
        let config = config.unwrap_or_else(|| Arc::new(ShardConfig::empty(1)));
        Self {
            gates,
            gid,
            slot,
            queue,
            arriving,
            configs,
            closed: false,
            book: Book::new(&options, gid, config),
            link: Link::Down,
            backoff: Backoff::new(options.min_backoff, options.max_backoff),
            outage: None,
            raise_at: now,
            session_at: now,
            options,
            router: router.clone(),
        }
    }

    /// Runs until the group is gone or all clients are.
    pub(crate) async fn run(mut self) {
        let mut incoming = Vec::new();
        let mut sweep = interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !(self.closed && self.arriving.is_empty() && self.book.is_empty()) {
            let now = Instant::now();
            self.book.advance(now);
            self.advance_link(now);
            self.send(now);
            let room = self.book.room();
            let due = self.next_due(now);
            let has_ready = self.book.has_ready();
            tokio::select! {
                event = self.link.next_event(has_ready) => self.handle(event),
                count = self.queue.recv_many(&mut incoming, room), if room > 0 && !self.closed => {
                    self.closed = count == 0;
                }
                Some(call) = self.arriving.recv() => incoming.push(call),
                Ok(()) = self.configs.changed() => self.configs.mark_changed(),
                _ = sweep.tick(), if !self.book.is_empty() => self.sweep(),
                () = sleep_until(due.unwrap_or(now)), if due.is_some() => {}
            }
            // Before calls are admitted: who handed one over knows this configuration already.
            self.reconfigure();
            for call in incoming.drain(..) {
                self.book.admit(call);
            }
            self.hand_over();
        }
    }

    /// Goes by the latest configuration.
    fn reconfigure(&mut self) {
        if !self.configs.has_changed().unwrap_or(false) {
            return;
        }
        let config = self.configs.borrow_and_update().clone();
        let Some(config) = config else { return };
        if let Some(gates) = self.gates.upgrade() {
            gates.clear(&config);
        }
        self.book.reconfigure(config);
    }

    /// Gives calls to the lanes of the groups that own their shards now.
    fn hand_over(&mut self) {
        for call in self.book.take_moved() {
            if let Some(gates) = self.gates.upgrade() {
                gates.hand_over(call);
            } else {
                let maybe_applied = call.trial.doubt;
                let _ = call.answer.send(Err(Error::Closed { maybe_applied }));
            }
        }
    }

    /// When something must be done without an event.
    fn next_due(&self, now: Instant) -> Option<Instant> {
        let raise = matches!(self.link, Link::Down) && !self.book.is_empty();
        let session = matches!(&self.link, Link::Up(up) if up.opening.is_none())
            && self.book.wants_session()
            && self.session_at > now;
        let dues = [
            raise.then_some(self.raise_at),
            session.then_some(self.session_at),
            self.book.next_due(),
        ];
        dues.into_iter().flatten().min()
    }

    fn advance_link(&mut self, now: Instant) {
        match &mut self.link {
            Link::Down if !self.book.is_empty() && self.raise_at <= now => {
                let router = self.router.clone();
                let outage = self.outage.map_or(Duration::ZERO, |since| now - since);
                let raising = raise(router, self.gid, self.slot, outage);
                self.link = Link::Raising(Box::pin(raising));
            }
            Link::Up(up)
                if up.opening.is_none() && self.book.wants_session() && self.session_at <= now =>
            {
                let mut kv = self.router.kv(&up.leader, up.channel.clone());
                let open = async move { kv.open_session(OpenSessionRequest {}).await };
                if self.book.on_wire() == 0 {
                    up.heard = now;
                }
                up.opening = Some((now, Box::pin(open)));
            }
            _ => {}
        }
    }

    /// Sends what is ready, as far as the connection takes it.
    fn send(&mut self, now: Instant) {
        let Link::Up(up) = &mut self.link else {
            return;
        };
        while self.book.has_ready() {
            let Ok(room) = up.outbox.try_reserve() else {
                return;
            };
            if self.book.on_wire() == 0 && up.opening.is_none() {
                up.heard = now;
            }
            if let Some(batch) = self.book.next_batch() {
                room.send(batch);
            }
        }
    }

    fn handle(&mut self, event: Event) {
        let now = Instant::now();
        match event {
            Event::Raised(Ok((leader, channel))) => self.raised(now, leader, channel),
            Event::Raised(Err(failure)) => {
                if let Some(leader) = &failure.leader {
                    self.router.failed(leader, None);
                }
                self.book.note(&failure.why);
                self.down(now, 0);
            }
            Event::Message(Ok(Some(message))) => {
                if let Link::Up(up) = &mut self.link {
                    up.heard = now;
                }
                let consequence = self.book.results(now, message.results);
                if consequence.served {
                    self.outage = None;
                    self.backoff.reset();
                }
                if let (Some(num), Link::Up(up)) = (consequence.behind, &self.link) {
                    self.router.refresh(num, &up.leader.address);
                }
                if let Some(Reroute(hint)) = consequence.reroute {
                    self.leave(now, hint.as_deref(), "the node does not lead any more");
                }
            }
            Event::Message(Ok(None)) => {
                self.broken(now, &Status::unavailable("the node closed the stream"));
            }
            Event::Message(Err(status)) => self.broken(now, &status),
            Event::Session(asked, Ok(response)) => {
                self.book.session_opened(asked, response);
                self.session_at = now;
            }
            Event::Session(_, Err(status)) => self.no_session(now, &status),
            Event::Superseded(true) => self.leave(now, None, SUPERSEDED),
            Event::Superseded(false) | Event::Writable => {}
        }
    }

    fn raised(&mut self, now: Instant, leader: Leader, channel: Channel) {
        let (outbox, mut messages) = mpsc::channel(OUTBOX);
        let outgoing = stream::poll_fn(move |cx| messages.poll_recv(cx));
        let mut kv = self.router.kv(&leader, channel.clone());
        let opening = Box::pin(async move { kv.batch(outgoing).await });
        self.link = Link::Up(Box::new(Up {
            leader,
            channel,
            outbox,
            input: Input::Opening(opening),
            heard: now,
            opening: None,
            doubting: None,
            doubted: now,
        }));
    }

    /// The stream ended.
    fn broken(&mut self, now: Instant, status: &Status) {
        let verdict = verdict::of_status(status);
        if let Link::Up(up) = &self.link {
            self.router.suspect(&up.leader.address, self.slot, status);
        }
        match verdict.action {
            Action::Reroute(hint) => self.leave(now, hint.as_deref(), status.message()),
            Action::Wait(ms) => {
                self.book.connection_lost(status.message());
                self.down(now, ms);
            }
            Action::Fail(error) if status.code() == Code::OutOfRange => {
                self.book.fail_largest(error);
                self.leave(now, None, status.message());
            }
            Action::Fail(error) => {
                self.book.fail_wire(&error);
                self.leave(now, None, status.message());
            }
            // A stream and an open concern no shard, so the node is another group's, or none of ours.
            Action::NewSession | Action::WrongGroup(_) | Action::NotReady(_) => {
                self.leave(now, None, status.message());
            }
        }
    }

    fn no_session(&mut self, now: Instant, status: &Status) {
        let pause = match verdict::of_status(status).action {
            Action::Reroute(hint) => {
                if let Link::Up(up) = &self.link {
                    self.router.suspect(&up.leader.address, self.slot, status);
                }
                self.leave(now, hint.as_deref(), status.message());
                return;
            }
            Action::Wait(ms) => self.backoff.pause_at_least(now, ms),
            Action::NewSession | Action::WrongGroup(_) | Action::NotReady(_) => {
                self.backoff.pause_at_least(now, 0)
            }
            Action::Fail(error) => {
                self.book.session_refused(&error);
                self.backoff.pause_at_least(now, 0)
            }
        };
        self.book.note(status.message());
        self.session_at = now + pause;
    }

    /// Gives this leader up for another.
    fn leave(&mut self, now: Instant, hint: Option<&str>, why: &str) {
        if let Link::Up(up) = &self.link {
            self.router.failed(&up.leader, hint);
        }
        self.book.connection_lost(why);
        self.down(now, 0);
    }

    fn down(&mut self, now: Instant, at_least_ms: u32) {
        self.link = Link::Down;
        self.outage.get_or_insert(now);
        let pause = if at_least_ms == 0 {
            self.backoff.pause(now)
        } else {
            self.backoff.pause_at_least(now, at_least_ms)
        };
        self.raise_at = now + pause;
    }

    fn sweep(&mut self) {
        let now = Instant::now();
        self.book.sweep(now);
        let silence = self.options.silence_timeout;
        let Link::Up(up) = &mut self.link else {
            return;
        };
        let waits = self.book.on_wire() > 0 || up.opening.is_some();
        if waits && !self.book.is_part() && now - up.heard >= silence {
            // Nobody will lead it again.
            self.leave(now, None, "the group left, and its leader is silent");
            return;
        }
        if waits
            && up.doubting.is_none()
            && now - up.heard >= silence
            && now - up.doubted >= silence
        {
            let router = self.router.clone();
            let leader = up.leader.clone();
            up.doubted = now;
            up.doubting = Some(Box::pin(async move { router.newer_leader(&leader).await }));
        }
    }
}
