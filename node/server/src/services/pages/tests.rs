use std::sync::atomic::{AtomicUsize, Ordering};

use api::v1::{Pair, ScanRequest};
use bytes::Bytes;
use futures::future::poll_fn;
use futures::{FutureExt as _, StreamExt as _};
use hyper::body::{Body as _, Frame};
use tonic::body::Body;
use tonic::codec::{Codec as _, EncodeBody, SingleMessageCompressionOverride};
use tonic_prost::ProstCodec;

use super::*;
use crate::page_budget::PageBudget;
use crate::services::unfetched;

const PAGE_BYTES: usize = 100_000;
const SHARE_BYTES: usize = 128 << 10;
const GO_ON: &str = "begin anew";

/// The body of a response as the network reads it.
struct Network(Body);

impl Network {
    fn of(pages: Pages) -> Self {
        let (_, pages, extensions) = pages.into_response().into_parts();
        let encoder = ProstCodec::<ScanResponse, ScanRequest>::default().encoder();
        let once = SingleMessageCompressionOverride::default();
        let body = Body::new(EncodeBody::new_server(encoder, pages, None, once, None));
        let mut response = tonic::codegen::http::Response::new(body);
        *response.extensions_mut() = extensions;
        Self(unfetched::response(response).into_body())
    }

    async fn frame(&mut self) -> Option<Frame<Bytes>> {
        let frame = poll_fn(|cx| Pin::new(&mut self.0).poll_frame(cx)).await?;
        Some(frame.unwrap())
    }

    /// Takes pieces until `bytes` have come.
    async fn take(&mut self, bytes: usize) {
        let mut taken = 0;
        while taken < bytes {
            let piece = self.frame().await.unwrap().into_data().unwrap();
            assert!(piece.len() <= 16 << 10, "{}", piece.len());
            taken += piece.len();
        }
        assert_eq!(taken, bytes);
    }

    /// Returns the status at the end of the stream.
    async fn end(&mut self) -> Status {
        let trailers = self.frame().await.unwrap().into_trailers();
        let status = Status::from_header_map(&trailers.unwrap()).unwrap();
        assert!(self.frame().await.is_none());
        status
    }
}

/// Returns a page and its encoded size, with the five bytes before a message.
fn page(value_bytes: usize) -> (ScanResponse, usize) {
    let pair = Pair {
        key: "k".into(),
        value: vec![7; value_bytes].into(),
    };
    let page = ScanResponse { pairs: vec![pair] };
    let bytes = page.encoded_len() + 5;
    (page, bytes)
}

/// Sends pages as long as they are wanted, and counts them.
async fn endless(mut sender: PageSender, budget: Arc<PageBudget>, read: Arc<AtomicUsize>) {
    while let Some(room) = sender.room().await {
        let share = budget.take(SHARE_BYTES).await.unwrap();
        read.fetch_add(1, Ordering::Relaxed);
        room.send(page(PAGE_BYTES).0, Some(share));
    }
}

async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

fn budget() -> Arc<PageBudget> {
    Arc::new(PageBudget::new(1 << 20, Duration::from_secs(1)))
}

#[tokio::test]
async fn a_stream_ends_well_only_if_its_sender_says_so() {
    let (mut sender, mut stream) = pages(GO_ON);
    let send = async {
        let room = sender.room().await.unwrap();
        room.send(ScanResponse::default(), None);
    };
    let (page, ()) = tokio::join!(stream.next(), send);
    assert!(page.unwrap().is_ok());
    tokio::join!(sender.end(), async {
        assert!(stream.next().await.is_none());
    });
    let (sender, mut stream) = pages(GO_ON);
    drop(sender);
    assert!(stream.next().await.unwrap().is_err(), "it broke off");
    assert!(stream.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_page_keeps_its_share_until_the_network_has_taken_it() {
    let (budget, read) = (budget(), Arc::new(AtomicUsize::new(0)));
    let (sender, stream) = pages(GO_ON);
    let task = tokio::spawn(endless(sender, Arc::clone(&budget), Arc::clone(&read)));
    let mut network = Network::of(stream);
    settle().await;
    assert_eq!(read.load(Ordering::Relaxed), 0, "nobody asked for a page");
    let (_, bytes) = page(PAGE_BYTES);
    for pages in 1..4 {
        // All but the last piece.
        let most = bytes - bytes % (16 << 10);
        network.take(most).await;
        settle().await;
        assert_eq!(read.load(Ordering::Relaxed), pages, "none is read ahead");
        assert_eq!(budget.used(), SHARE_BYTES, "the rest is held");
        network.take(bytes - most).await;
        settle().await;
        assert_eq!(budget.used(), 0, "the network has it");
    }
    assert!(network.frame().now_or_never().is_none());
    drop(network);
    task.await.unwrap();
    assert_eq!(budget.used(), 0, "an abandoned stream holds nothing");
}

#[tokio::test(start_paused = true)]
async fn small_pages_are_not_read_ahead() {
    let (mut sender, stream) = pages(GO_ON);
    let mut network = Network::of(stream);
    let (small, bytes) = page(10);
    assert!(network.frame().now_or_never().is_none(), "it asks");
    sender.room().await.unwrap().send(small, None);
    network.take(bytes).await;
    assert!(sender.room().now_or_never().is_none());
    assert!(network.frame().now_or_never().is_none(), "it asks");
    assert!(sender.room().now_or_never().is_some());
}

/// Also the last page of a stream: it keeps its share, and its sender its slot.
#[tokio::test(start_paused = true)]
async fn a_page_that_is_not_fetched_is_dropped_and_its_caller_told() {
    for last in [false, true] {
        let (budget, read) = (budget(), Arc::new(AtomicUsize::new(0)));
        let (mut sender, stream) = pages(GO_ON);
        let mut network = Network::of(stream);
        let task = if last {
            let share = budget.take(SHARE_BYTES).await.unwrap();
            tokio::spawn(async move {
                let room = sender.room().await.unwrap();
                room.send(page(PAGE_BYTES).0, Some(share));
                sender.end().await;
            })
        } else {
            tokio::spawn(endless(sender, Arc::clone(&budget), read))
        };
        network.take(16 << 10).await;
        tokio::time::sleep(Duration::from_secs(29)).await;
        assert_eq!(budget.used(), SHARE_BYTES);
        assert!(!task.is_finished());
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(budget.used(), 0, "others may use it");
        task.await.unwrap();
        let status = network.end().await;
        let kind = api::error_detail(&status).unwrap().kind;
        assert!(
            matches!(kind, Some(api::v1::error_detail::Kind::Unavailable(_))),
            "{status:?}"
        );
        let said = status.message();
        assert!(said.contains("within 31 s"), "{said}");
        assert!(said.contains(GO_ON), "{said}");
    }
}

#[tokio::test]
async fn work_for_a_caller_that_is_gone_is_dropped() {
    let (mut sender, mut stream) = pages(GO_ON);
    assert!(stream.next().now_or_never().is_none(), "it asks for a page");
    let room = sender.room().await.unwrap();
    let mut work = Box::pin(room.unless_gone(std::future::pending::<()>()));
    assert!(work.as_mut().now_or_never().is_none());
    drop(stream);
    assert_eq!(work.await, None);
    // The request of the page is still open, because none was sent.
    let room = sender.room().await.unwrap();
    assert_eq!(room.unless_gone(async {}).await, None);
}

/// A node that learns that it doesn't lead passes the request of a page on to the stream of the leader.
#[tokio::test(start_paused = true)]
async fn a_request_without_a_page_is_kept() {
    let (mut sender, mut stream) = pages(GO_ON);
    assert!(stream.next().now_or_never().is_none(), "it asks for a page");
    assert!(sender.room().await.is_some());
    let room = sender.room().now_or_never().flatten();
    room.unwrap().send(ScanResponse::default(), None);
    assert!(stream.next().await.unwrap().is_ok());
}
