//! One task, one batch stream, one session: the fast path.
//!
//! Callers put calls into a bounded queue and wait for a one-shot answer each; no task is spawned for a call. The
//! lane takes all that is queued, sends it as one message, and so batches by itself: while a message waits
//! for room in the connection, the next one grows. All book-keeping is in [`Book`]; this file moves
//! messages and keeps the link to the leader.
//!
//! The link is down, being raised, or up. It is raised when a call waits, and lost when its stream ends, when
//! its node says that it does not lead, or when that node is silent while another leads a later term. Whatever is
//! unanswered then goes to the next leader under the same names.

use std::sync::Arc;
use std::time::Duration;

use api::v1::{BatchRequest, BatchResponse, OpenSessionRequest, OpenSessionResponse};
use futures::future::BoxFuture;
use futures::stream;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tonic::transport::Channel;
use tonic::{Code, Response, Status, Streaming};

use crate::ClientOptions;
use crate::backoff::Backoff;
use crate::book::{Book, Call, Reroute};
use crate::router::{Leader, Router, SUPERSEDED, Slot};
use crate::verdict::{self, Action};

/// How often deadlines are looked at: they are kept to within this.
const SWEEP: Duration = Duration::from_millis(10);

/// Messages that wait for the connection. Few, so that later ones grow.
const OUTBOX: usize = 2;

pub(crate) struct Lane {
    options: Arc<ClientOptions>,
    router: Arc<Router>,
    slot: Slot,
    queue: mpsc::Receiver<Call>,
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

enum Link {
    Down,
    Raising(BoxFuture<'static, Result<(Leader, Channel), Failure>>),
    Up(Box<Up>),
}

struct Failure {
    epoch: Option<u64>,
    why: String,
}

struct Up {
    leader: Leader,
    channel: Channel,
    outbox: mpsc::Sender<BatchRequest>,
    input: Input,
    /// When the node last answered, or when something was sent to it after it had answered all.
    heard: Instant,
    opening: Option<Opening>,
    /// Asks the others whether this leader is superseded.
    doubting: Option<BoxFuture<'static, Option<Leader>>>,
    doubted: Instant,
}

type SessionResult = Result<Response<OpenSessionResponse>, Status>;

/// A session that was asked for, and when.
type Opening = (Instant, BoxFuture<'static, SessionResult>);

enum Input {
    Opening(BoxFuture<'static, Result<Response<Streaming<BatchResponse>>, Status>>),
    Open(Box<Streaming<BatchResponse>>),
}

enum Event {
    Raised(Result<(Leader, Channel), Failure>),
    Message(Result<Option<BatchResponse>, Status>),
    Session(Instant, Result<OpenSessionResponse, Status>),
    Superseded(bool),
    Writable,
}

impl Lane {
    pub(crate) fn new(
        options: Arc<ClientOptions>,
        router: Arc<Router>,
        slot: Slot,
        queue: mpsc::Receiver<Call>,
    ) -> Self {
        let now = Instant::now();
        Self {
            slot,
            queue,
            book: Book::new(&options),
            link: Link::Down,
            backoff: Backoff::new(options.min_backoff, options.max_backoff),
            outage: None,
            raise_at: now,
            session_at: now,
            options,
            router,
        }
    }

    /// Runs until all clients are gone.
    pub(crate) async fn run(mut self) {
        let mut incoming = Vec::new();
        let mut sweep = interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let now = Instant::now();
            self.book.advance(now);
            self.advance_link(now);
            self.send(now);
            let room = self.book.room();
            let due = self.next_due(now);
            let has_ready = self.book.has_ready();
            tokio::select! {
                event = self.link.next_event(has_ready) => self.handle(event),
                count = self.queue.recv_many(&mut incoming, room), if room > 0 => {
                    if count == 0 {
                        return;
                    }
                    for call in incoming.drain(..) {
                        self.book.admit(call);
                    }
                }
                _ = sweep.tick(), if !self.book.is_empty() => self.sweep(),
                () = sleep_until(due.unwrap_or(now)), if due.is_some() => {}
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
                let router = Arc::clone(&self.router);
                let outage = self.outage.map_or(Duration::ZERO, |since| now - since);
                self.link = Link::Raising(Box::pin(raise(router, self.slot, outage)));
            }
            Link::Up(up)
                if up.opening.is_none() && self.book.wants_session() && self.session_at <= now =>
            {
                let mut kv = self.router.kv(up.channel.clone());
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
                if let Some(epoch) = failure.epoch {
                    self.router.failed(epoch, None);
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
        let mut kv = self.router.kv(channel.clone());
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
        let typed = api::error_detail(status).is_some();
        if let (Link::Up(up), false) = (&self.link, typed) {
            self.router.discard(&up.leader.address, self.slot);
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
            Action::NewSession => self.leave(now, None, status.message()),
        }
    }

    fn no_session(&mut self, now: Instant, status: &Status) {
        let pause = match verdict::of_status(status).action {
            Action::Reroute(hint) => {
                if let (Link::Up(up), true) = (&self.link, api::error_detail(status).is_none()) {
                    self.router.discard(&up.leader.address, self.slot);
                }
                self.leave(now, hint.as_deref(), status.message());
                return;
            }
            Action::Wait(ms) => self.backoff.pause_at_least(now, ms),
            Action::NewSession => self.backoff.pause_at_least(now, 0),
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
            self.router.failed(up.leader.epoch, hint);
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
        if waits
            && up.doubting.is_none()
            && now - up.heard >= silence
            && now - up.doubted >= silence
        {
            let router = Arc::clone(&self.router);
            let leader = up.leader.clone();
            up.doubted = now;
            up.doubting = Some(Box::pin(async move { router.newer_leader(&leader).await }));
        }
    }
}

impl Link {
    /// The next thing that happens to the link. May be dropped and called again at any time.
    async fn next_event(&mut self, has_ready: bool) -> Event {
        match self {
            Self::Down => std::future::pending().await,
            Self::Raising(raising) => Event::Raised(raising.await),
            Self::Up(up) => up.next_event(has_ready).await,
        }
    }
}

impl Up {
    async fn next_event(&mut self, has_ready: bool) -> Event {
        let Self {
            input,
            opening,
            doubting,
            outbox,
            ..
        } = self;
        tokio::select! {
            // What the node said comes first: it tells why the outbox closed.
            biased;
            message = input.next() => Event::Message(message),
            (asked, result) = opened(opening) => Event::Session(asked, result.map(Response::into_inner)),
            newer = answered(doubting) => Event::Superseded(newer.is_some()),
            room = outbox.reserve(), if has_ready => match room {
                Ok(_) => Event::Writable,
                Err(_) => Event::Message(Ok(None)),
            },
        }
    }
}

impl Input {
    async fn next(&mut self) -> Result<Option<BatchResponse>, Status> {
        if let Self::Opening(opening) = self {
            let stream = opening.await?.into_inner();
            *self = Self::Open(Box::new(stream));
        }
        match self {
            Self::Open(stream) => stream.message().await,
            Self::Opening(_) => Ok(None),
        }
    }
}

/// The session that is being opened; for ever, if none is.
async fn opened(slot: &mut Option<Opening>) -> (Instant, SessionResult) {
    let Some((asked, opening)) = slot else {
        return std::future::pending().await;
    };
    let result = (*asked, opening.await);
    *slot = None;
    result
}

/// The answer of a question that may have been asked; for ever, if not.
async fn answered<T>(slot: &mut Option<BoxFuture<'static, T>>) -> T {
    let Some(asking) = slot else {
        return std::future::pending().await;
    };
    let result = asking.await;
    *slot = None;
    result
}

async fn raise(
    router: Arc<Router>,
    slot: Slot,
    outage: Duration,
) -> Result<(Leader, Channel), Failure> {
    let leader = router
        .leader(outage)
        .await
        .map_err(|why| Failure { epoch: None, why })?;
    match router.channel(&leader.address, slot).await {
        Ok(channel) => Ok((leader, channel)),
        Err(why) => Err(Failure {
            epoch: Some(leader.epoch),
            why: format!("{}: {why}", leader.address),
        }),
    }
}
