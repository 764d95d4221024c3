//! The messages that wait to be sent to one peer, and the stream of frames that takes them out.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use api::v1::{Hello, RaftFrame};
use raft::Envelope;
use tokio::sync::Notify;
use tokio::time::{Sleep, sleep};
use tokio_stream::Stream;

use crate::convert::peer;
use crate::limiter::Limiter;

/// The maximum number of messages to a peer that is not connected: enough for a first exchange, and too few to be outdated.
const MAX_UNCONNECTED: usize = 64;

/// A bounded queue. Messages may be lost, so a full queue drops its oldest.
pub(crate) struct Queue {
    state: Mutex<State>,
    filled: Notify,
    max_bytes: usize,
}

struct State {
    waiting: VecDeque<(Envelope, usize)>,
    bytes: usize,
    /// The number of the stream that takes messages out. An older stream, whose connection broke, takes none any more.
    stream: u64,
    connected: bool,
    waker: Option<Waker>,
    used: Instant,
}

impl Queue {
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self {
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                bytes: 0,
                stream: 0,
                connected: false,
                waker: None,
                used: Instant::now(),
            }),
            filled: Notify::new(),
            max_bytes,
        }
    }

    /// Adds a message. Returns the number of messages that were dropped for it.
    pub(crate) fn push(&self, envelope: Envelope) -> u64 {
        let size = peer::size(&envelope);
        let mut state = self.lock();
        state.waiting.push_back((envelope, size));
        state.bytes += size;
        let mut dropped = 0;
        while state.waiting.len() > 1 && self.is_over(&state) {
            state.pop();
            dropped += 1;
        }
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        self.filled.notify_one();
        dropped
    }

    fn is_over(&self, state: &State) -> bool {
        state.bytes > self.max_bytes || !state.connected && state.waiting.len() > MAX_UNCONNECTED
    }

    /// Resolves when a message waits.
    pub(crate) async fn filled(&self) {
        while self.lock().waiting.is_empty() {
            self.filled.notified().await;
        }
    }

    /// Returns the time of the last frame if no message waits.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        let state = self.lock();
        state.waiting.is_empty().then_some(state.used)
    }

    /// Records that the peer accepted a stream, or that the stream broke. Messages that wait for a broken stream are
    /// outdated and dropped.
    pub(crate) fn set_connected(&self, connected: bool) {
        let mut state = self.lock();
        state.connected = connected;
        if !connected {
            state.waiting.clear();
            state.bytes = 0;
        }
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn pop(&mut self) -> Option<(Envelope, usize)> {
        let (envelope, size) = self.waiting.pop_front()?;
        self.bytes -= size;
        Some((envelope, size))
    }
}

/// The content of one outgoing stream: the hello, then frames of waiting messages.
pub(crate) struct Frames {
    queue: Arc<Queue>,
    stream: u64,
    hello: Option<Hello>,
    max_bytes: usize,
    pace: Option<Pace>,
    sent: Box<dyn Fn(usize) + Send + Sync>,
}

struct Pace {
    limiter: Arc<Limiter>,
    wait: Option<Pin<Box<Sleep>>>,
}

impl Frames {
    /// Takes `queue` over from any earlier stream. `sent` counts bytes; with a limiter the stream keeps its pace.
    pub(crate) fn new(
        queue: &Arc<Queue>,
        hello: Hello,
        max_bytes: usize,
        limiter: Option<Arc<Limiter>>,
        sent: Box<dyn Fn(usize) + Send + Sync>,
    ) -> Self {
        let mut state = queue.lock();
        state.stream += 1;
        state.waker = None;
        let stream = state.stream;
        drop(state);
        let wait = None;
        Self {
            queue: Arc::clone(queue),
            stream,
            hello: Some(hello),
            max_bytes,
            pace: limiter.map(|limiter| Pace { limiter, wait }),
            sent,
        }
    }

    fn next_frame(&self, context: &Context<'_>) -> Poll<Option<(RaftFrame, usize)>> {
        let mut state = self.queue.lock();
        if state.stream != self.stream {
            return Poll::Ready(None);
        }
        let mut frame = RaftFrame::default();
        let mut bytes = 0;
        while bytes < self.max_bytes && state.connected {
            let Some((envelope, size)) = state.pop() else {
                break;
            };
            bytes += size;
            frame.messages.push(peer::to_wire(envelope));
        }
        if frame.messages.is_empty() {
            match &mut state.waker {
                Some(waker) => waker.clone_from(context.waker()),
                none => *none = Some(context.waker().clone()),
            }
            return Poll::Pending;
        }
        state.used = Instant::now();
        Poll::Ready(Some((frame, bytes)))
    }
}

impl Stream for Frames {
    type Item = RaftFrame;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<RaftFrame>> {
        if let Some(hello) = self.hello.take() {
            let hello = Some(hello);
            let messages = Vec::new();
            return Poll::Ready(Some(RaftFrame { hello, messages }));
        }
        if let Some(wait) = self.pace.as_mut().and_then(|pace| pace.wait.as_mut()) {
            if wait.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            if let Some(pace) = &mut self.pace {
                pace.wait = None;
            }
        }
        let next = self.next_frame(context);
        let Poll::Ready(Some((frame, bytes))) = next else {
            return next.map(|_| None);
        };
        (self.sent)(bytes);
        if let Some(pace) = &mut self.pace {
            // This frame leaves now, and the next one when this one is paid for.
            pace.wait = pace.limiter.charge(bytes).map(|wait| Box::pin(sleep(wait)));
        }
        Poll::Ready(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use raft::{Message, Term};
    use tokio_stream::StreamExt as _;
    use types::NodeId;

    use super::*;

    fn envelope(term: u64) -> Envelope {
        Envelope {
            from: NodeId(1),
            to: NodeId(2),
            term: Term(term),
            message: Message::TimeoutNow,
        }
    }

    fn frames(queue: &Arc<Queue>) -> Frames {
        Frames::new(queue, Hello::default(), 1_000, None, Box::new(|_| ()))
    }

    fn terms(frame: &RaftFrame) -> Vec<u64> {
        frame.messages.iter().map(|message| message.term).collect()
    }

    #[tokio::test]
    async fn a_hello_comes_first_and_what_waits_goes_out_together() {
        let queue = Arc::new(Queue::new(10_000));
        for term in 1..=3 {
            assert_eq!(queue.push(envelope(term)), 0);
        }
        let mut frames = frames(&queue);
        let first = frames.next().await.unwrap();
        assert!(first.hello.is_some() && first.messages.is_empty());
        queue.set_connected(true);
        assert_eq!(terms(&frames.next().await.unwrap()), [1, 2, 3]);
    }

    #[tokio::test]
    async fn a_waiting_stream_is_woken() {
        let queue = Arc::new(Queue::new(10_000));
        let mut frames = frames(&queue);
        frames.next().await.unwrap();
        queue.set_connected(true);
        let taker = tokio::spawn(async move { frames.next().await.unwrap() });
        tokio::task::yield_now().await;
        queue.push(envelope(7));
        assert_eq!(terms(&taker.await.unwrap()), [7]);
    }

    #[tokio::test]
    async fn a_full_queue_drops_its_oldest() {
        let queue = Arc::new(Queue::new(200));
        queue.set_connected(true);
        let dropped: u64 = (1..=5).map(|term| queue.push(envelope(term))).sum();
        assert_eq!(dropped, 2, "three of 64 bytes fit");
        let mut frames = frames(&queue);
        frames.next().await.unwrap();
        assert_eq!(terms(&frames.next().await.unwrap()), [3, 4, 5]);
    }

    #[tokio::test]
    async fn a_newer_stream_takes_over() {
        let queue = Arc::new(Queue::new(10_000));
        let mut old = frames(&queue);
        let mut new = frames(&queue);
        old.next().await.unwrap();
        new.next().await.unwrap();
        queue.set_connected(true);
        queue.push(envelope(1));
        assert_eq!(old.next().await, None, "its connection broke");
        assert_eq!(terms(&new.next().await.unwrap()), [1]);
    }

    #[tokio::test]
    async fn an_unconnected_peer_gets_a_few_fresh_messages() {
        let queue = Arc::new(Queue::new(1 << 20));
        let count = MAX_UNCONNECTED as u64 + 10;
        let dropped: u64 = (1..=count).map(|term| queue.push(envelope(term))).sum();
        assert_eq!(dropped, 10);
        queue.set_connected(false);
        assert!(
            queue.idle_since().is_some(),
            "what a broken stream left is gone"
        );
    }
}
