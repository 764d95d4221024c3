//! The answers of a stream on their way to a client that may fetch them slowly, or never.
//!
//! One answer is on its way; there is room for the next one when the network has taken it. A large answer keeps its share of a
//! budget until then. If the client doesn't fetch it in time, it is dropped and the stream ends: otherwise streams that nobody
//! fetches could keep the budget for ever. A small answer waits for as long as the client is there.

use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tokio::time::{Instant, timeout_at};
use tonic::Status;

use super::streams::Over;
use crate::keyspaces::shares::FairBudget;
use crate::page_budget::PageShare;
use crate::services::pages::{PageSender, Pages, pages_of};

/// The time in which a client is to fetch a small answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The bytes that a client is to fetch in a second at least.
const LEAST_RATE: u64 = 64 << 10;
/// The size up to which an answer has no share of the budget.
pub(super) const SMALL_BYTES: usize = 16 << 10;
/// The advice to a client whose stream has ended.
const GO_ON: &str = "open it again, and go on after the last revision that has come";

/// The sending half of a stream of answers.
pub(super) struct Outgoing<A> {
    sender: PageSender<A>,
    /// The budget of large answers, of which the keyspace has its share.
    budget: Arc<FairBudget>,
    keyspace: String,
    /// The time by which the answer that was sent last is to be fetched.
    due: Instant,
    /// True if that answer is large, and was not fetched when it was last looked for.
    large: bool,
}

impl<A: Message> Outgoing<A> {
    pub(super) fn new(budget: Arc<FairBudget>, keyspace: &str) -> (Self, Pages<A>) {
        let (sender, stream) = pages_of(GO_ON);
        let outgoing = Self {
            sender,
            budget,
            keyspace: keyspace.to_owned(),
            due: Instant::now() + PATIENCE,
            large: false,
        };
        (outgoing, stream)
    }

    /// Resolves when the client is gone, or didn't fetch a large answer in time.
    pub(super) async fn lost(&mut self) -> Over {
        if self.large
            && let Err(over) = self.has_room().await
        {
            return over;
        }
        self.sender.closed().await;
        Over::Gone
    }

    /// Returns true when there is room for an answer, and false if the client doesn't fetch a small one in time.
    pub(super) async fn has_room(&mut self) -> Result<bool, Over> {
        match timeout_at(self.due, self.sender.is_asked()).await {
            Ok(true) => {
                self.large = false;
                Ok(true)
            }
            Ok(false) => Err(Over::Gone),
            Err(_) if self.large => {
                self.sender.drop_unfetched(not_fetched());
                Err(Over::Gone)
            }
            Err(_) => Ok(false),
        }
    }

    /// Returns when there is room for an answer, however long a small one waits. Call it while the stream holds little.
    pub(super) async fn wait_for_room(&mut self) -> Result<(), Over> {
        if self.has_room().await? || self.sender.is_asked().await {
            return Ok(());
        }
        Err(Over::Gone)
    }

    /// Returns when there is room for an answer. Ends the stream if the client doesn't fetch in time.
    pub(super) async fn room(&mut self) -> Result<(), Over> {
        if self.has_room().await? {
            return Ok(());
        }
        Err(Over::Failed(not_fetched()))
    }

    /// Takes the share of an answer of this size, which a small one doesn't need. Ends the stream if others hold the budget.
    pub(super) async fn share(&mut self, bytes: usize) -> Result<Option<PageShare>, Over> {
        if bytes <= SMALL_BYTES {
            return Ok(None);
        }
        let (budget, keyspace) = (Arc::clone(&self.budget), self.keyspace.clone());
        let share = tokio::select! {
            biased;
            over = self.lost() => return Err(over),
            share = budget.take(&keyspace, bytes) => share,
        };
        let full = |_| Over::Failed(Status::unavailable("etcdserver: too many answers wait"));
        share.map(|share| Some(share.into())).map_err(full)
    }

    /// Takes the share of an answer of this size if there is room for it now.
    pub(super) fn share_now(&self, bytes: usize) -> Option<PageShare> {
        let share = self.budget.try_take(&self.keyspace, bytes);
        share.ok().map(PageShare::from)
    }

    /// Sends an answer with its share when there is room for it. Ends the stream if the client doesn't fetch in time.
    pub(super) async fn send(&mut self, answer: A, share: Option<PageShare>) -> Result<(), Over> {
        self.room().await?;
        let bytes = answer.encoded_len();
        let more = Duration::from_secs(bytes as u64 / LEAST_RATE);
        self.due = Instant::now() + PATIENCE + more;
        self.large = bytes > SMALL_BYTES;
        // It was asked for, so this doesn't wait.
        let room = self.sender.room().await.ok_or(Over::Gone)?;
        room.send(answer, share);
        Ok(())
    }

    /// Sends an answer of another node.
    pub(super) async fn pass_on(&mut self, answer: A) -> Result<(), Over> {
        let share = self.share(answer.encoded_len()).await?;
        self.send(answer, share).await
    }

    /// Ends the stream. A client that is still there gets the status, if it fetches in time.
    pub(super) async fn end(self, over: Over) {
        match over {
            Over::Failed(status) => self.sender.fail(status).await,
            Over::Gone => self.sender.end().await,
        }
    }
}

/// etcd's client opens the stream again, and goes on after the last revision that it has.
fn not_fetched() -> Status {
    Status::unavailable("etcdserver: an answer was not fetched in time")
}

#[cfg(test)]
mod tests {
    use api::etcd::etcdserverpb::WatchResponse;
    use futures::{FutureExt as _, StreamExt as _};

    use super::*;
    use crate::keyspaces::shares::Bounds;

    const NOISY: &str = "noisy";

    fn answer(bytes: usize) -> WatchResponse {
        WatchResponse {
            cancel_reason: "7".repeat(bytes),
            ..WatchResponse::default()
        }
    }

    fn outgoing() -> (
        Arc<FairBudget>,
        Outgoing<WatchResponse>,
        Pages<WatchResponse>,
    ) {
        let budget = FairBudget::new(Bounds {
            what: "bytes",
            total: 1 << 20,
            max_each: usize::MAX,
            percent: 66,
            max_waiting: 8,
            patience: Duration::from_secs(1),
        });
        let (outgoing, stream) = Outgoing::new(Arc::clone(&budget), NOISY);
        (budget, outgoing, stream)
    }

    /// Asks for an answer, as the network does.
    fn ask(stream: &mut Pages<WatchResponse>) -> Option<WatchResponse> {
        // After an answer, the first look only ends the frame.
        let first = stream.next().now_or_never();
        let next = first.or_else(|| stream.next().now_or_never());
        next.flatten().map(Result::unwrap)
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_whose_small_answer_is_not_fetched_ends_only_if_the_sender_says_so() {
        let (_, mut outgoing, mut stream) = outgoing();
        assert!(ask(&mut stream).is_none());
        assert!(outgoing.send(answer(10), None).await.is_ok());
        let begun = Instant::now();
        assert!(matches!(outgoing.has_room().await, Ok(false)));
        assert_eq!(begun.elapsed().as_secs(), PATIENCE.as_secs());
        let over = outgoing.send(answer(10), None).await;
        assert!(matches!(over, Err(Over::Failed(_))));
        assert!(ask(&mut stream).is_some());
        assert!(ask(&mut stream).is_none());
        assert!(matches!(outgoing.has_room().await, Ok(true)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_answer_keeps_its_share_for_a_limited_time() {
        let (budget, mut outgoing, mut stream) = outgoing();
        assert!(ask(&mut stream).is_none());
        let share = outgoing.share(256 << 10).await.ok().flatten();
        assert_eq!(budget.used(), 256 << 10);
        assert!(outgoing.send(answer(256 << 10), share).await.is_ok());
        // The encoder has it, and the network has not taken it.
        assert!(stream.next().now_or_never().is_some());
        let begun = Instant::now();
        assert!(matches!(outgoing.lost().await, Over::Gone));
        assert_eq!(begun.elapsed().as_secs(), PATIENCE.as_secs() + 4);
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_ends_when_others_hold_the_budget() {
        let (budget, mut outgoing, _stream) = outgoing();
        assert!(
            outgoing
                .share(SMALL_BYTES)
                .await
                .is_ok_and(|share| share.is_none())
        );
        let _all = budget.take(NOISY, 1 << 20).await.unwrap();
        let over = outgoing.share(SMALL_BYTES + 1).await;
        assert!(matches!(over, Err(Over::Failed(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_keyspace_whose_clients_do_not_fetch_leaves_room_for_others() {
        let (budget, noisy, _stream) = outgoing();
        let answers: Vec<_> = (0..16).map_while(|_| noisy.share_now(128 << 10)).collect();
        assert!(answers.len() > 1 && budget.used() < 1 << 20);
        let (mut quiet, _stream) = Outgoing::<WatchResponse>::new(Arc::clone(&budget), "quiet");
        let share = quiet.share(128 << 10).now_or_never();
        assert!(share.is_some_and(|share| share.is_ok()), "it has its share");
    }
}
