//! Streams of pages, each of which is read when the caller asks for it, and whose end is always explicit.
//!
//! A page is read only when the network asks for it, which it does when it has taken the page before. So a stream that nobody
//! fetches holds one page, with its share of the budget, and a piece of the page before ([`unfetched`](super::unfetched)). A caller who doesn't
//! fetch a page in time gets an error instead, and the page is dropped: otherwise streams that nobody fetches could keep the
//! budget for ever. When the caller is gone, the sender learns it at once, and reads nothing more.
//!
//! A stream whose sender is dropped ends, and to the caller that looks like the end of the range. So a sender states that
//! it is done, and a stream whose sender was dropped without that ends with an error.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use api::v1::ScanResponse;
use api::{error_status, errors};
use prost::Message;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::Stream;
use tonic::{Response, Status};

use super::unfetched::Unfetched;
use crate::page_budget::PageShare;

/// The maximum time that a caller may leave a page unfetched, because a stream holds a slot, a page and perhaps a view.
const PATIENCE: Duration = Duration::from_secs(30);
/// The rate in bytes per second at which a caller gets more time for a large page.
const LEAST_RATE: u64 = 64 << 10;

/// A page with its share of the budget, or the end of the stream with or without an error.
enum Item<T> {
    Page(T, Option<PageShare>),
    Error(Status),
    End,
}

/// A stream of pages.
pub(crate) struct Pages<T = ScanResponse> {
    items: mpsc::Receiver<Item<T>>,
    requests: mpsc::Sender<()>,
    /// True if a page was requested and has not come yet.
    requested: bool,
    unfetched: Arc<Unfetched>,
    /// True if a page was given to the encoder just now.
    given: bool,
    over: bool,
}

/// The sending half of [`Pages`].
pub(crate) struct PageSender<T = ScanResponse> {
    items: mpsc::Sender<Item<T>>,
    requests: mpsc::Receiver<()>,
    /// True if a page was requested and not sent yet.
    requested: bool,
    /// The maximum time until the page that was sent last is fetched.
    patience: Duration,
    go_on: &'static str,
    unfetched: Arc<Unfetched>,
}

/// The caller's request of one page. If it is dropped, the next [`PageSender::room`] returns it again.
pub(crate) struct Room<'a, T = ScanResponse>(&'a mut PageSender<T>);

/// Creates a stream of pages. `go_on` says how a caller goes on whose stream ended early.
pub(crate) fn pages(go_on: &'static str) -> (PageSender, Pages) {
    pages_of(go_on)
}

/// As [`pages`], of messages of any type.
pub(crate) fn pages_of<T: Message>(go_on: &'static str) -> (PageSender<T>, Pages<T>) {
    let (sender, items) = mpsc::channel(1);
    let (requests, receiver) = mpsc::channel(1);
    let unfetched = Arc::new(Unfetched::default());
    let pages = Pages {
        items,
        requests,
        requested: false,
        unfetched: Arc::clone(&unfetched),
        given: false,
        over: false,
    };
    let sender = PageSender {
        items: sender,
        requests: receiver,
        requested: false,
        patience: PATIENCE,
        go_on,
        unfetched,
    };
    (sender, pages)
}

impl<T: Message> PageSender<T> {
    /// Returns true once the caller has fetched what was sent and asks for a page, and false when it is gone.
    pub(crate) async fn is_asked(&mut self) -> bool {
        if !self.requested {
            self.requested = self.requests.recv().await.is_some();
        }
        self.requested
    }

    /// Resolves when the caller is gone.
    pub(crate) async fn closed(&self) {
        self.items.closed().await;
    }

    /// Ends the stream with an error, and drops the page that was sent and not fetched.
    pub(crate) fn drop_unfetched(&self, status: Status) {
        self.unfetched.fail(status);
    }

    /// Waits until the caller has fetched what was sent and asks for a page, so that it isn't read earlier. Returns `None` when
    /// the caller is gone, or did not fetch in time and gets an error.
    pub(crate) async fn room(&mut self) -> Option<Room<'_, T>> {
        match timeout(self.patience, self.is_asked()).await {
            Ok(true) => Some(Room(self)),
            Ok(false) => None,
            Err(_) => {
                self.unfetched.fail(not_fetched(self.patience, self.go_on));
                None
            }
        }
    }

    /// Ends the stream once all pages were fetched: everything was sent.
    pub(crate) async fn end(self) {
        self.finish(Item::End).await;
    }

    /// Ends the stream with an error once all pages were fetched.
    pub(crate) async fn fail(self, status: Status) {
        self.finish(Item::Error(status)).await;
    }

    async fn finish(mut self, item: Item<T>) {
        if let Some(room) = self.room().await {
            room.put(item);
        }
    }
}

/// Returns the error of a page that was not fetched in time.
fn not_fetched(patience: Duration, go_on: &str) -> Status {
    let why = format!(
        "a page was not fetched within {} s, so the stream ended: {go_on}",
        patience.as_secs()
    );
    error_status(&errors::unavailable(why, 100))
}

impl<T: Message> Room<'_, T> {
    /// Does the work for a page. Returns `None`, and drops the work, when the caller is gone.
    pub(crate) async fn unless_gone<W>(&self, work: impl Future<Output = W>) -> Option<W> {
        tokio::select! {
            biased;
            () = self.0.items.closed() => None,
            done = work => Some(done),
        }
    }

    /// Sends the page. Its share of the budget is given back once the network has taken it.
    pub(crate) fn send(self, page: T, share: Option<PageShare>) {
        let more = Duration::from_secs(page.encoded_len() as u64 / LEAST_RATE);
        self.0.patience = PATIENCE + more;
        self.put(Item::Page(page, share));
    }

    fn put(self, item: Item<T>) {
        self.0.requested = false;
        // There is room, because the item before was taken. If the caller is gone, nothing needs to be sent.
        let _ = self.0.items.try_send(item);
    }
}

impl<T> Pages<T> {
    /// Returns the response that sends the stream.
    pub(crate) fn into_response(self) -> Response<Self> {
        let unfetched = Arc::clone(&self.unfetched);
        let mut response = Response::new(self);
        response.extensions_mut().insert(unfetched);
        response
    }
}

impl<T> Pages<T> {
    /// Gives back what the last page holds, for a caller in this process.
    pub(crate) fn taken(&self) {
        self.unfetched.taken();
    }
}

impl<T> Stream for Pages<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.over {
            return Poll::Ready(None);
        }
        if std::mem::take(&mut self.given) {
            // The encoder gathers small pages. It must not ask for one before the network has taken the one before.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let Poll::Ready(item) = self.items.poll_recv(cx) else {
            if !self.requested {
                self.requested = true;
                // If the sender is gone, the channel of items says so.
                let _ = self.requests.try_send(());
            }
            return Poll::Pending;
        };
        self.requested = false;
        self.over = !matches!(item, Some(Item::Page(..)));
        Poll::Ready(match item {
            Some(Item::Page(page, share)) => {
                self.given = true;
                self.unfetched.keep(share);
                Some(Ok(page))
            }
            Some(Item::Error(status)) => Some(Err(status)),
            Some(Item::End) => None,
            None => {
                let why = "the stream broke off before its end";
                Some(Err(error_status(&errors::unavailable(why, 100))))
            }
        })
    }
}

#[cfg(test)]
mod tests;
