//! The pages of a stream that the network has not taken, and the body that gives them to the network in small pieces.
//!
//! The HTTP library takes the next frame of a body before its client has room for it, and nothing can take a frame back. So a
//! page is given to it in pieces of [`PIECE_BYTES`]. The rest of the page stays here with its share of the budget, and can be
//! dropped when the client doesn't fetch it.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::Frame;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Response};

use crate::page_budget::PageShare;

/// The maximum size of a piece in bytes: the size of a frame of HTTP/2 unless a client allows larger ones.
const PIECE_BYTES: usize = 16 << 10;

/// The part of a stream that the network has not taken. The network holds at most one piece besides.
#[derive(Debug, Default)]
pub(crate) struct Unfetched(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    bytes: Bytes,
    /// The shares of the pages that `bytes` belong to.
    shares: Vec<PageShare>,
    end: End,
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
    /// Keeps the share of a page until the network has taken the page.
    pub(crate) fn keep(&self, share: Option<PageShare>) {
        self.lock().shares.extend(share);
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
        let piece = held.bytes.split_to(length);
        if held.bytes.is_empty() {
            held.bytes = Bytes::new();
            held.shares.clear();
        }
        Next::Piece(piece)
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // Each change is complete when the lock is released, also by a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
