//! The answers of a batch stream that wait to be sent.
//!
//! Answers are gathered while the stream is busy sending: the busier it is, the more of them go out in one message. The
//! bytes of answers that the client doesn't fetch are bounded: beyond the bound further reads of the client are refused as
//! `Overloaded`.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use api::errors;
use api::v1::batch_item::Request as Item;
use api::v1::batch_result::Response as ItemResponse;
use api::v1::{BatchResponse, BatchResult, ErrorDetail};
use tokio::sync::Notify;
use tokio_stream::Stream;
use tonic::Status;

use super::items::{Items, is_followed};
use crate::convert::kv;
use crate::forward;
use crate::machine::MachineResult;
use crate::metrics::{Method, Metrics};
use crate::peers::Peers;

/// An answer message is closed when it reaches this size.
const MESSAGE_BYTES: usize = 1 << 20;
/// The maximum bytes of answers that the client does not fetch. Beyond it, its reads are refused.
const MAX_UNFETCHED_BYTES: usize = 16 << 20;
const RETRY_AFTER_MS: u32 = 20;

/// The answers of one batch stream on their way to the client.
pub(crate) struct AnswerQueue {
    peers: Arc<Peers>,
    items: Arc<Items>,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
    room: Notify,
}

#[derive(Default)]
struct State {
    /// The answers to send, with their sizes.
    ready: VecDeque<(BatchResult, usize)>,
    ready_bytes: usize,
    /// The number of items whose answers were not sent yet.
    unanswered: usize,
    end: End,
    /// True if [`AnswerQueue::add`] was called since the last [`AnswerQueue::wake`].
    touched: bool,
    /// The client is gone.
    abandoned: bool,
    sender: Option<Waker>,
}

/// The state of the stream's end.
#[derive(Default)]
pub(crate) enum End {
    /// More items may come.
    #[default]
    Open,
    /// The stream ends when all items are answered, with this status if it is an error.
    Answered(Option<Status>),
    /// The stream ends with this status, without the missing answers.
    Now(Status),
}

impl AnswerQueue {
    pub(crate) fn new(peers: Arc<Peers>, items: Arc<Items>, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            peers,
            items,
            metrics,
            state: Mutex::default(),
            room: Notify::new(),
        })
    }

    /// Counts items that came in.
    pub(crate) fn expect(&self, items: usize) {
        self.lock().unanswered += items;
    }

    /// Waits until fewer than `limit` items are unanswered, or the client is gone.
    pub(crate) async fn wait_for_room(&self, limit: usize) {
        loop {
            let room = self.room.notified();
            {
                let state = self.lock();
                if state.unanswered < limit || state.abandoned {
                    return;
                }
            }
            room.await;
        }
    }

    /// Sets how the stream ends.
    pub(crate) fn end(&self, end: End) {
        let mut state = self.lock();
        state.end = end;
        let sender = state.sender.take();
        drop(state);
        if let Some(sender) = sender {
            sender.wake();
        }
    }

    /// Answers an item with an error. The caller owes the queue a [`AnswerQueue::wake`].
    pub(crate) fn refuse(&self, id: u64, error: ErrorDetail) {
        self.metrics.rejected(&error);
        self.lock().add(id, ItemResponse::Error(error));
    }

    /// Forwards an item to the owner of its key.
    pub(crate) fn forward(self: &Arc<Self>, id: u64, arrived: Instant, item: Item) {
        let queue = Arc::clone(self);
        tokio::spawn(async move {
            let answer = forward::item(&queue.items.forwarder, arrived, item).await;
            if queue.add(id, arrived, answer) {
                queue.wake();
            }
        });
    }

    /// Continues an item that this node's group refused, elsewhere or when its shard is here.
    fn follow(self: &Arc<Self>, id: u64, arrived: Instant, item: Item, error: ErrorDetail) {
        let queue = Arc::clone(self);
        tokio::spawn(async move {
            let is_given_up = || queue.lock().abandoned;
            let following = queue.items.follow(arrived, item, error, is_given_up);
            let answer = following.await;
            if queue.add(id, arrived, answer) {
                queue.wake();
            }
        });
    }

    /// Takes the replica's answer to an item. Returns true as [`AnswerQueue::add`] does.
    pub(crate) fn push(
        self: &Arc<Self>,
        id: u64,
        arrived: Instant,
        forwardable: Option<Box<Item>>,
        result: MachineResult,
    ) -> bool {
        let outcome = kv::outcome(result, |node| self.peers.address_or_empty(node));
        match (outcome, forwardable) {
            (Err(error), Some(forwardable)) if is_followed(&error) => {
                self.follow(id, arrived, *forwardable, error);
                false
            }
            (outcome, _) => {
                let births = &self.items.forwarder.births;
                let outcome = outcome.map_err(|error| births.complete(error));
                self.add(id, arrived, outcome.and_then(kv::item_answer))
            }
        }
    }

    /// Adds an answer. Returns true if this is the first one since the last wake-up: then the caller owes the queue a
    /// [`AnswerQueue::wake`].
    fn add(&self, id: u64, arrived: Instant, answer: Result<ItemResponse, ErrorDetail>) -> bool {
        let response = answer.unwrap_or_else(|error| {
            self.metrics.rejected(&error);
            ItemResponse::Error(error)
        });
        let mut state = self.lock();
        let response = match response {
            ItemResponse::Get(_) if state.ready_bytes > MAX_UNFETCHED_BYTES => {
                let limit = MAX_UNFETCHED_BYTES as u64;
                let what = "bytes of answers that the client did not fetch";
                ItemResponse::Error(errors::overloaded(what, limit, RETRY_AFTER_MS))
            }
            response => response,
        };
        if let Some(method) = method_of(&response) {
            let latency = arrived.elapsed().as_secs_f64();
            self.metrics.latency(method).observe(latency);
        }
        state.add(id, response);
        !std::mem::replace(&mut state.touched, true)
    }

    /// Wakes the sender, so that it sends the added answers.
    pub(crate) fn wake(&self) {
        let mut state = self.lock();
        state.touched = false;
        let sender = state.sender.take();
        drop(state);
        if let Some(sender) = sender {
            sender.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The item that an answer belongs to.
pub(crate) struct Origin {
    pub(crate) stream: Arc<AnswerQueue>,
    pub(crate) id: u64,
    pub(crate) arrived: Instant,
    /// The item, if it may be forwarded.
    pub(crate) forwardable: Option<Box<Item>>,
}

/// Returns the method that a response answers, or `None` for an error.
fn method_of(response: &ItemResponse) -> Option<Method> {
    match response {
        ItemResponse::Get(_) => Some(Method::Get),
        ItemResponse::Put(_) => Some(Method::Put),
        ItemResponse::Append(_) => Some(Method::Append),
        ItemResponse::Delete(_) => Some(Method::Delete),
        ItemResponse::CompareAndSwap(_) => Some(Method::CompareAndSwap),
        ItemResponse::Error(_) => None,
    }
}

impl State {
    fn add(&mut self, id: u64, response: ItemResponse) {
        if self.abandoned {
            return;
        }
        let size = 16
            + match &response {
                ItemResponse::Get(get) => get.value.len(),
                ItemResponse::Error(error) => error.message.len() + 16,
                _ => 0,
            };
        self.ready_bytes += size;
        let response = Some(response);
        self.ready.push_back((BatchResult { id, response }, size));
    }

    /// Returns the final status if the stream ends now. Called only when no answer is ready.
    fn finish(&mut self) -> Poll<Option<Status>> {
        let over = match self.end {
            End::Open => false,
            End::Answered(_) => self.unanswered == 0,
            End::Now(_) => true,
        };
        if !over {
            return Poll::Pending;
        }
        // A stream that ended with an error and is polled again ends without one.
        match std::mem::replace(&mut self.end, End::Answered(None)) {
            End::Now(status) => {
                self.unanswered = 0;
                Poll::Ready(Some(status))
            }
            End::Answered(status) => Poll::Ready(status),
            End::Open => Poll::Pending,
        }
    }

    /// Returns the next message: all ready answers, up to the size limit.
    fn message(&mut self) -> BatchResponse {
        let mut results = Vec::with_capacity(self.ready.len());
        let mut bytes = 0;
        while bytes < MESSAGE_BYTES {
            let Some((result, size)) = self.ready.pop_front() else {
                break;
            };
            bytes += size;
            results.push(result);
        }
        self.ready_bytes -= bytes;
        self.unanswered = self.unanswered.saturating_sub(results.len());
        BatchResponse { results }
    }
}

/// The answers of a batch stream.
pub(crate) struct Answers(pub(crate) Arc<AnswerQueue>);

impl Stream for Answers {
    type Item = Result<BatchResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let stream = &self.0;
        let mut state = stream.lock();
        if !state.ready.is_empty() {
            let message = state.message();
            drop(state);
            stream.room.notify_one();
            return Poll::Ready(Some(Ok(message)));
        }
        if let Poll::Ready(status) = state.finish() {
            return Poll::Ready(status.map(Err));
        }
        match &mut state.sender {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        Poll::Pending
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.abandoned = true;
        state.ready.clear();
        state.ready_bytes = 0;
        drop(state);
        self.0.room.notify_one();
    }
}
