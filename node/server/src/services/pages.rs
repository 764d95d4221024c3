//! Streams of pages, each of which is read when the caller asks for it, and whose end is always explicit.
//!
//! A page is read only when the network asks for it. It asks for one page ahead of the one that it sends, so a stream that nobody
//! fetches holds two pages, one of which has its share of the budget. When the caller is gone, the sender learns it at once, and
//! reads nothing more.
//!
//! A stream whose sender is dropped ends, and to the caller that looks like the end of the range. So a sender states that
//! it is done, and a stream whose sender was dropped without that ends with an error.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use api::v1::ScanResponse;
use api::{error_status, errors};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::Stream;
use tonic::Status;

use crate::page_budget::PageShare;

/// The maximum time that a caller may leave a page unfetched, because a stream holds a slot and a view.
const PATIENCE: Duration = Duration::from_mins(1);

/// A page with its share of the budget, or the end of the stream with or without an error.
enum Item {
    Page(ScanResponse, Option<PageShare>),
    Error(Status),
    End,
}

/// A stream of pages.
pub(crate) struct Pages {
    items: mpsc::Receiver<Item>,
    requests: mpsc::Sender<()>,
    /// True if a page was requested and has not come yet.
    requested: bool,
    /// The share of the page before, which the network sends.
    sending: Option<PageShare>,
    over: bool,
}

/// The sending half of [`Pages`].
pub(crate) struct PageSender {
    items: mpsc::Sender<Item>,
    requests: mpsc::Receiver<()>,
}

/// The caller's request of one page.
pub(crate) struct Room<'a>(&'a mpsc::Sender<Item>);

/// Creates a stream of pages.
pub(crate) fn pages() -> (PageSender, Pages) {
    let (sender, items) = mpsc::channel(1);
    let (requests, receiver) = mpsc::channel(1);
    let pages = Pages {
        items,
        requests,
        requested: false,
        sending: None,
        over: false,
    };
    let sender = PageSender {
        items: sender,
        requests: receiver,
    };
    (sender, pages)
}

impl PageSender {
    /// Waits until the caller asks for a page, so that it isn't read earlier. Returns `None` when the caller is gone or has
    /// stopped fetching.
    pub(crate) async fn room(&mut self) -> Option<Room<'_>> {
        timeout(PATIENCE, self.requests.recv()).await.ok()??;
        Some(Room(&self.items))
    }

    /// Ends the stream: everything was sent.
    pub(crate) async fn end(self) {
        self.finish(Item::End).await;
    }

    /// Ends the stream with an error.
    pub(crate) async fn fail(self, status: Status) {
        self.finish(Item::Error(status)).await;
    }

    async fn finish(self, item: Item) {
        // If the caller is gone, nothing needs to be sent.
        let _ = timeout(PATIENCE, self.items.send(item)).await;
    }
}

impl Room<'_> {
    /// Does the work for a page. Returns `None`, and drops the work, when the caller is gone.
    pub(crate) async fn unless_gone<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.0.closed() => None,
            done = work => Some(done),
        }
    }

    /// Sends the page. Its share of the budget is given back once the caller has fetched it.
    pub(crate) fn send(self, page: ScanResponse, share: Option<PageShare>) {
        // There is room, because the page before was taken. If the caller is gone, nothing needs to be sent.
        let _ = self.0.try_send(Item::Page(page, share));
    }
}

impl Stream for Pages {
    type Item = Result<ScanResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.over {
            return Poll::Ready(None);
        }
        // The network polls when it has room for more.
        self.sending = None;
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
                self.sending = share;
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
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::{FutureExt as _, StreamExt as _};

    use super::*;
    use crate::page_budget::PageBudget;

    #[tokio::test]
    async fn a_stream_ends_well_only_if_its_sender_says_so() {
        let (mut sender, mut stream) = pages();
        let send = async {
            let room = sender.room().await.unwrap();
            room.send(ScanResponse::default(), None);
        };
        let (page, ()) = tokio::join!(stream.next(), send);
        assert!(page.unwrap().is_ok());
        tokio::join!(sender.end(), async {
            assert!(stream.next().await.is_none());
        });
        let (sender, mut stream) = pages();
        drop(sender);
        assert!(stream.next().await.unwrap().is_err(), "it broke off");
        assert!(stream.next().await.is_none());
    }

    /// Sends pages as long as they are wanted, and counts them.
    async fn endless(mut sender: PageSender, budget: Arc<PageBudget>, read: Arc<AtomicUsize>) {
        while let Some(room) = sender.room().await {
            let share = budget.take(1_024).await.unwrap();
            read.fetch_add(1, Ordering::Relaxed);
            room.send(ScanResponse::default(), Some(share));
        }
    }

    #[tokio::test]
    async fn a_stream_that_is_not_fetched_holds_one_page() {
        let budget = Arc::new(PageBudget::new(1 << 20, Duration::from_secs(1)));
        let read = Arc::new(AtomicUsize::new(0));
        let (sender, mut stream) = pages();
        let task = tokio::spawn(endless(sender, Arc::clone(&budget), Arc::clone(&read)));
        tokio::task::yield_now().await;
        assert_eq!(read.load(Ordering::Relaxed), 0, "nobody asked for a page");
        for pages in 1..4 {
            stream.next().await.unwrap().unwrap();
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            assert_eq!(read.load(Ordering::Relaxed), pages, "none is read ahead");
            assert_eq!(budget.used(), 1_024, "the network sends it");
        }
        assert!(stream.next().now_or_never().is_none());
        drop(stream);
        task.await.unwrap();
        assert_eq!(budget.used(), 0, "an abandoned stream holds nothing");
    }

    #[tokio::test]
    async fn work_for_a_caller_that_is_gone_is_dropped() {
        let (mut sender, mut stream) = pages();
        assert!(stream.next().now_or_never().is_none(), "it asks for a page");
        let room = sender.room().await.unwrap();
        let mut work = Box::pin(room.unless_gone(std::future::pending::<()>()));
        assert!(work.as_mut().now_or_never().is_none());
        drop(stream);
        assert_eq!(work.await, None);
        assert!(sender.room().await.is_none());
    }
}
