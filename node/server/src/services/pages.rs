//! Streams of pages whose end is always explicit.
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

/// The maximum time that a caller may leave a page unfetched, because a stream holds a slot and a view.
const PATIENCE: Duration = Duration::from_mins(1);

/// A page, or the end of the stream with or without an error.
enum Item {
    Page(ScanResponse),
    Error(Status),
    End,
}

/// A stream of pages.
pub(crate) struct Pages {
    items: mpsc::Receiver<Item>,
    over: bool,
}

/// The sending half of [`Pages`].
pub(crate) struct PageSender(mpsc::Sender<Item>);

/// Room for one page.
pub(crate) struct Room<'a>(mpsc::Permit<'a, Item>);

/// Creates a stream of pages. One page waits while the page before it is sent, so a caller that doesn't fetch stops the
/// sender.
pub(crate) fn pages() -> (PageSender, Pages) {
    let (sender, items) = mpsc::channel(1);
    let pages = Pages { items, over: false };
    (PageSender(sender), pages)
}

impl PageSender {
    /// Waits until a page can be sent, so that it isn't read earlier. Returns `None` when the caller has stopped fetching.
    pub(crate) async fn room(&self) -> Option<Room<'_>> {
        let room = timeout(PATIENCE, self.0.reserve()).await;
        room.ok()?.ok().map(Room)
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
        if let Some(room) = self.room().await {
            room.0.send(item);
        }
    }
}

impl Room<'_> {
    pub(crate) fn send(self, page: ScanResponse) {
        self.0.send(Item::Page(page));
    }
}

impl Stream for Pages {
    type Item = Result<ScanResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.over {
            return Poll::Ready(None);
        }
        let item = std::task::ready!(self.items.poll_recv(cx));
        self.over = !matches!(item, Some(Item::Page(_)));
        Poll::Ready(match item {
            Some(Item::Page(page)) => Some(Ok(page)),
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
    use futures::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn a_stream_ends_well_only_if_its_sender_says_so() {
        let (sender, mut stream) = pages();
        sender.room().await.unwrap().send(ScanResponse::default());
        assert!(stream.next().await.unwrap().is_ok());
        tokio::join!(sender.end(), async {
            assert!(stream.next().await.is_none());
        });
        let (sender, mut stream) = pages();
        drop(sender);
        assert!(stream.next().await.unwrap().is_err(), "it broke off");
        assert!(stream.next().await.is_none());
    }
}
