//! The pages of a stream that the network has not taken, and the body that gives them to the network in small pieces.
//!
//! The HTTP library takes the next frame of a body before its client has room for it, and nothing can take a frame back. So a
//! page is given to it in pieces of [`PIECE_BYTES`]. The rest of the page stays here with its share of the budget, and can be
//! dropped when the client doesn't fetch it.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use api::{error_status, errors};
use bytes::Bytes;
use hyper::body::Frame;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Response};

use crate::page_budget::PageShare;

/// The maximum size of a piece in bytes: the size of a frame of HTTP/2 unless a client allows larger ones.
const PIECE_BYTES: usize = 16 << 10;
/// The longest time in which the client must take a piece of an answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// The rate in bytes per second at which a large answer must be taken after that time.
const LEAST_RATE: u64 = 256 << 10;

/// The part of a stream that the network has not taken. The network holds at most one piece besides.
#[derive(Debug, Default)]
pub(crate) struct Unfetched(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    bytes: Bytes,
    /// The shares of the pages that `bytes` belong to.
    shares: Vec<PageShare>,
    /// Ends an answer that isn't fetched in time.
    timer: Option<Timer>,
    end: End,
}

/// A task that ends with what it watches.
#[derive(Debug)]
struct Timer(AbortHandle);

impl Drop for Timer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The way in which the stream ends early.
#[derive(Debug, Default)]
enum End {
    #[default]
    Open,
    /// The client gets this status once it fetches again.
    Failed(Status),
    Over,
}

/// The next thing that the network gets.
enum Next {
    Piece(Bytes),
    Failed(Status),
    Over,
    /// Nothing is held.
    Nothing,
}

impl Unfetched {
    /// Returns the place of one large answer. An answer that the client doesn't fetch in time is dropped with its share.
    pub(crate) fn answer(share: PageShare, bytes: usize) -> Arc<Self> {
        let unfetched = Arc::new(Self::default());
        let watched = Arc::downgrade(&unfetched);
        let deadline = Instant::now() + PATIENCE + Duration::from_secs(bytes as u64 / LEAST_RATE);
        let task = tokio::spawn(async move {
            let mut left = None;
            loop {
                sleep(PATIENCE).await;
                let Some(unfetched) = watched.upgrade() else {
                    return;
                };
                let now = unfetched.lock().bytes.len();
                if left == Some(now) || Instant::now() >= deadline {
                    return unfetched.fail(not_fetched());
                }
                left = Some(now);
            }
        });
        let mut held = unfetched.lock();
        held.shares.push(share);
        held.timer = Some(Timer(task.abort_handle()));
        drop(held);
        unfetched
    }

    /// Keeps the share of a page until the network has taken the page.
    pub(crate) fn keep(&self, share: Option<PageShare>) {
        self.lock().shares.extend(share);
    }

    /// Gives back all shares: the pages were taken by a caller in this process.
    pub(crate) fn taken(&self) {
        self.lock().shares.clear();
    }

    /// Ends the stream with an error, and drops what is held.
    pub(crate) fn fail(&self, status: Status) {
        *self.lock() = Held {
            end: End::Failed(status),
            ..Held::default()
        };
    }

    fn hold(&self, bytes: Bytes) {
        self.lock().bytes = bytes;
    }

    fn next(&self) -> Next {
        let mut held = self.lock();
        match std::mem::take(&mut held.end) {
            End::Open => {}
            End::Failed(status) => {
                held.end = End::Over;
                return Next::Failed(status);
            }
            End::Over => {
                held.end = End::Over;
                return Next::Over;
            }
        }
        if held.bytes.is_empty() {
            return Next::Nothing;
        }
        let length = held.bytes.len().min(PIECE_BYTES);
        let mut piece = held.bytes.split_to(length);
        if held.bytes.is_empty() {
            held.bytes = Bytes::new();
            held.shares.clear();
            held.timer = None;
        } else {
            // Otherwise a piece that is never sent keeps the memory of the whole, although the rest was dropped.
            piece = Bytes::copy_from_slice(&piece);
        }
        Next::Piece(piece)
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // Each change is complete when the lock is released, also by a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the error of an answer that was not fetched in time.
fn not_fetched() -> Status {
    let why = "the answer was not fetched in time: read it in smaller parts, or fetch it faster";
    error_status(&errors::unavailable(why, 100))
}

/// Gives the body of a stream of pages to the network in pieces. Other responses are not changed.
pub(crate) fn response(mut response: Response<Body>) -> Response<Body> {
    match response.extensions_mut().remove::<Arc<Unfetched>>() {
        Some(unfetched) => response.map(|inner| Body::new(Pieces { inner, unfetched })),
        None => response,
    }
}

/// The body of a stream of pages, in pieces.
struct Pieces {
    inner: Body,
    unfetched: Arc<Unfetched>,
}

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        loop {
            match this.unfetched.next() {
                Next::Piece(piece) => return Poll::Ready(Some(Ok(Frame::data(piece)))),
                Next::Failed(status) => return Poll::Ready(Some(trailers(&status))),
                Next::Over => return Poll::Ready(None),
                Next::Nothing => {}
            }
            let frame = match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                other => return Poll::Ready(other),
            };
            match frame.into_data() {
                Ok(bytes) => this.unfetched.hold(bytes),
                Err(frame) => return Poll::Ready(Some(Ok(frame))),
            }
        }
    }
}

/// Returns the end of a stream with an error.
fn trailers(status: &Status) -> Result<Frame<Bytes>, Status> {
    let mut headers = HeaderMap::new();
    status.add_header(&mut headers)?;
    Ok(Frame::trailers(headers))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyspaces::shares::{Bounds, FairBudget};

    fn budget() -> Arc<FairBudget> {
        FairBudget::new(Bounds {
            what: "bytes",
            total: 1 << 20,
            max_each: usize::MAX,
            percent: 100,
            max_waiting: 0,
            patience: Duration::ZERO,
        })
    }

    fn answer(budget: &Arc<FairBudget>, bytes: usize) -> Arc<Unfetched> {
        let share = budget.try_take("a", bytes).unwrap();
        let answer = Unfetched::answer(share.into(), bytes);
        answer.hold(Bytes::from(vec![1; bytes]));
        answer
    }

    fn is_piece(answer: &Unfetched) -> bool {
        matches!(answer.next(), Next::Piece(_))
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_nobody_fetches_is_dropped_with_its_share() {
        let budget = budget();
        let answer = answer(&budget, 1 << 20);
        let Next::Piece(piece) = answer.next() else {
            panic!("there is a piece");
        };
        assert!(piece.is_unique(), "the piece keeps the memory of the rest");
        sleep(PATIENCE + Duration::from_secs(1)).await;
        assert!(is_piece(&answer), "one piece was taken in the time");
        sleep(2 * PATIENCE).await;
        assert_eq!(budget.used(), 0);
        assert!(matches!(answer.next(), Next::Failed(_)));
        assert!(matches!(answer.next(), Next::Over));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_fetched_a_piece_at_a_time_ends_too() {
        let budget = budget();
        let answer = answer(&budget, 1 << 20);
        let mut pieces = 0;
        while is_piece(&answer) {
            pieces += 1;
            sleep(PATIENCE / 2).await;
        }
        assert!(pieces < 10, "{pieces}");
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_fetched_ends_its_timer() {
        let budget = budget();
        let answer = answer(&budget, 40 << 10);
        for _ in 0..3 {
            assert!(is_piece(&answer));
        }
        assert_eq!(budget.used(), 0);
        assert!(answer.lock().timer.is_none());
        sleep(10 * PATIENCE).await;
        assert!(
            matches!(answer.next(), Next::Nothing),
            "it goes on to its end"
        );
    }
}
