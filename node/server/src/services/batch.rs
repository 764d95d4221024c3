//! `Kv.Batch`: many requests over one stream.
//!
//! A message's items cross to the replica together. Answers are gathered while the stream is busy sending, so
//! that the busier it is the more of them go out in one message. Two bounds hold for a stream: items without an
//! answer (then its input is not read on, which HTTP/2 passes back to the client), and bytes of answers that
//! the client doesn't fetch (then further reads of it are refused as `Overloaded`).

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use api::v1::batch_item::Request as Item;
use api::v1::batch_result::Response as ItemResponse;
use api::v1::{BatchItem, BatchRequest, BatchResponse, BatchResult, ErrorDetail};
use api::{error_status, errors};
use shardkv::GroupKind;
use tokio::sync::Notify;
use tokio_stream::Stream;
use tonic::{Status, Streaming};

use crate::convert::kv::{self, Checks};
use crate::forward::{self, is_elsewhere};
use crate::hub::Hub;
use crate::inbox::Submission;
use crate::machine::{self, MachineResult};
use crate::metrics::Method;
use crate::replies::Reply;
use crate::services::typed;

/// An answer message is closed when it reaches this size.
const MESSAGE_BYTES: usize = 1 << 20;
/// Answers that the client does not fetch, beyond which its reads are refused.
const MAX_UNFETCHED_BYTES: usize = 16 << 20;
const RETRY_AFTER_MS: u32 = 20;

/// One batch stream: the answers that wait to be sent.
pub(crate) struct BatchStream {
    hub: Arc<Hub>,
    /// What isn't this node's own is refused and not passed on.
    no_forward: bool,
    state: Mutex<State>,
    room: Notify,
}

#[derive(Default)]
struct State {
    /// Answers to send, and their sizes.
    ready: VecDeque<(BatchResult, usize)>,
    ready_bytes: usize,
    /// Items that came in and whose answers were not sent.
    unanswered: usize,
    end: End,
    /// Whether [`BatchStream::add`] was called since the last [`BatchStream::wake`].
    touched: bool,
    /// The client is gone.
    abandoned: bool,
    sender: Option<Waker>,
}

/// Whether and how the stream ends.
#[derive(Default)]
enum End {
    /// More items may come.
    #[default]
    Open,
    /// When all items are answered, with this status if not a good one.
    Answered(Option<Status>),
    /// Without the answers that are missing.
    Now(Status),
}

impl BatchStream {
    /// A stream that reads `input` and gives the answers.
    pub(crate) fn open(hub: Arc<Hub>, input: Streaming<BatchRequest>, no_forward: bool) -> Answers {
        let stream = Arc::new(Self {
            hub,
            no_forward,
            state: Mutex::default(),
            room: Notify::new(),
        });
        tokio::spawn(Arc::clone(&stream).read(input));
        Answers(stream)
    }

    async fn read(self: Arc<Self>, mut input: Streaming<BatchRequest>) {
        let draining = self.hub.draining();
        tokio::pin!(draining);
        let end = loop {
            let message = tokio::select! {
                message = self.next(&mut input) => message,
                () = &mut draining => {
                    break End::Answered(Some(error_status(&self.hub.gone())));
                }
            };
            match message {
                Ok(Some(message)) => self.take_in(message.items),
                Ok(None) => break End::Answered(None),
                Err(status) => break End::Now(typed::status(status)),
            }
        };
        let mut state = self.lock();
        state.end = end;
        let sender = state.sender.take();
        drop(state);
        if let Some(sender) = sender {
            sender.wake();
        }
    }

    /// The next message, when there is room for it.
    async fn next(
        &self,
        input: &mut Streaming<BatchRequest>,
    ) -> Result<Option<BatchRequest>, Status> {
        self.wait_for_room().await;
        input.message().await
    }

    async fn wait_for_room(&self) {
        let limit = self.hub.options.limits.max_stream_inflight_items;
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

    /// Sends a message's items to the replica, or answers them at once with what is wrong with them.
    fn take_in(self: &Arc<Self>, items: Vec<BatchItem>) {
        self.lock().unanswered += items.len();
        let arrived = Instant::now();
        let limits = &self.hub.options.limits;
        let checks = Checks::new(limits);
        let running = self.hub.check_running();
        let mut submissions = Vec::with_capacity(items.len());
        let mut refused = false;
        for (position, item) in items.into_iter().enumerate() {
            let id = item.id;
            let submission = if position < limits.max_batch_items {
                running
                    .clone()
                    .and_then(|()| self.submission(checks, item, arrived))
            } else {
                let limit = limits.max_batch_items as u64;
                Err(errors::too_large("batch (in items)", limit + 1, limit))
            };
            match submission {
                Ok(Some(submission)) => submissions.push(submission),
                Ok(None) => {}
                Err(error) => {
                    refused = true;
                    self.hub.metrics.rejected(&error);
                    self.lock().add(id, ItemResponse::Error(error));
                }
            }
        }
        if !submissions.is_empty() {
            self.hub.inbox.submit(submissions);
        }
        if refused {
            self.wake();
        }
    }

    fn submission(
        self: &Arc<Self>,
        checks: Checks,
        item: BatchItem,
        arrived: Instant,
    ) -> Result<Option<Submission>, ErrorDetail> {
        // Bytes are shared, not copied; and who routes by itself doesn't even pay for that.
        let again = item.request.clone().filter(|_| !self.no_forward);
        let request = checks.item(item.request)?;
        if self.hub.kind() == GroupKind::Controller {
            let again = again.ok_or_else(|| kv::elsewhere(&self.hub))?;
            self.forward(item.id, arrived, again);
            return Ok(None);
        }
        let permit = self.hub.budget.take(machine::size(&request))?;
        let origin = Origin {
            stream: Arc::clone(self),
            id: item.id,
            arrived,
            again: again.map(Box::new),
        };
        let reply = Reply::item(permit, origin);
        Ok(Some(Submission { request, reply }))
    }

    /// Has the owner of an item's key answer it.
    fn forward(self: &Arc<Self>, id: u64, arrived: Instant, item: Item) {
        let stream = Arc::clone(self);
        tokio::spawn(async move {
            let answer = forward::item(&stream.hub, item).await;
            if stream.add(id, arrived, answer) {
                stream.wake();
            }
        });
    }

    /// Takes the replica's answer to an item. As [`BatchStream::add`].
    pub(crate) fn push(
        self: &Arc<Self>,
        id: u64,
        arrived: Instant,
        again: Option<Box<Item>>,
        result: MachineResult,
    ) -> bool {
        let outcome = kv::outcome(result, |node| self.hub.address_or_empty(node));
        match (outcome, again) {
            (Err(error), Some(again)) if is_elsewhere(&error) => {
                self.forward(id, arrived, *again);
                false
            }
            (outcome, _) => self.add(id, arrived, outcome.and_then(kv::item_answer)),
        }
    }

    /// Adds an answer. Whether the stream was not touched since it was last woken: then the caller owes it a
    /// [`BatchStream::wake`].
    fn add(&self, id: u64, arrived: Instant, answer: Result<ItemResponse, ErrorDetail>) -> bool {
        let response = answer.unwrap_or_else(|error| {
            self.hub.metrics.rejected(&error);
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
            self.hub.metrics.latency(method).observe(latency);
        }
        state.add(id, response);
        !std::mem::replace(&mut state.touched, true)
    }

    /// Has the answers that were added sent.
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

/// Where an item came from, and goes back to.
pub(crate) struct Origin {
    pub(crate) stream: Arc<BatchStream>,
    pub(crate) id: u64,
    pub(crate) arrived: Instant,
    /// The item, if it may be passed on.
    pub(crate) again: Option<Box<Item>>,
}

/// The method that a response answers; errors don't tell.
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

    /// How the stream ends, if it does now; nothing is ready to be sent.
    fn finish(&mut self) -> Poll<Option<Status>> {
        let over = match self.end {
            End::Open => false,
            End::Answered(_) => self.unanswered == 0,
            End::Now(_) => true,
        };
        if !over {
            return Poll::Pending;
        }
        // A stream that ended with an error and is polled again has just ended.
        match std::mem::replace(&mut self.end, End::Answered(None)) {
            End::Now(status) => {
                self.unanswered = 0;
                Poll::Ready(Some(status))
            }
            End::Answered(status) => Poll::Ready(status),
            End::Open => Poll::Pending,
        }
    }

    /// The next message: all that is ready, up to its size.
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
pub(crate) struct Answers(Arc<BatchStream>);

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
