//! The answers of a stream on their way to a client that may fetch them slowly, or never.

use std::time::Duration;

use prost::Message;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::streams::Over;

/// The time in which a client is to fetch a small answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The bytes that a client is to fetch in a second at least.
const LEAST_RATE: u64 = 64 << 10;

/// The sending half of a stream of answers. One answer at a time waits in it.
pub(super) struct Outgoing<A> {
    answers: mpsc::Sender<Result<A, Status>>,
    /// The time in which the answer that was sent last is to be fetched.
    patience: Duration,
}

impl<A: Message> Outgoing<A> {
    pub(super) fn new() -> (Self, ReceiverStream<Result<A, Status>>) {
        let (answers, stream) = mpsc::channel(1);
        let patience = PATIENCE;
        (Self { answers, patience }, ReceiverStream::new(stream))
    }

    /// Returns the way to the client of a stream that another node serves.
    pub(super) fn into_sender(self) -> mpsc::Sender<Result<A, Status>> {
        self.answers
    }

    /// Resolves when the client is gone.
    pub(super) async fn closed(&self) {
        self.answers.closed().await;
    }

    /// Returns true when there is room for an answer, and false if the client doesn't fetch in time.
    pub(super) async fn has_room(&self) -> Result<bool, Over> {
        match timeout(self.patience, self.answers.reserve()).await {
            Ok(Ok(_)) => Ok(true),
            Ok(Err(_)) => Err(Over::Gone),
            Err(_) => Ok(false),
        }
    }

    /// Returns when there is room for an answer, however long that takes. Call it while the stream holds little.
    pub(super) async fn wait_for_room(&self) -> Result<(), Over> {
        let room = self.answers.reserve().await;
        room.map(drop).map_err(|_| Over::Gone)
    }

    /// Returns when there is room for an answer. Ends the stream if the client doesn't fetch in time.
    pub(super) async fn room(&self) -> Result<(), Over> {
        if self.has_room().await? {
            return Ok(());
        }
        // etcd's client opens the stream again, and goes on after the last revision that it has.
        let why = "etcdserver: an answer was not fetched in time";
        Err(Over::Failed(Status::unavailable(why)))
    }

    /// Sends an answer when there is room for it. Ends the stream if the client doesn't fetch in time.
    pub(super) async fn send(&mut self, answer: A) -> Result<(), Over> {
        self.room().await?;
        let bytes = answer.encoded_len() as u64;
        self.patience = PATIENCE + Duration::from_secs(bytes / LEAST_RATE);
        // There is room, and nobody else sends.
        let sent = self.answers.try_send(Ok(answer));
        sent.map_err(|_| Over::Gone)
    }

    /// Ends the stream. A client that is still there gets the status, whenever it fetches.
    pub(super) async fn end(self, over: Over) {
        if let Over::Failed(status) = over {
            // The client may be gone.
            let _ = self.answers.send(Err(status)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use api::etcd::etcdserverpb::WatchResponse;
    use futures::{FutureExt as _, StreamExt as _};
    use tokio::time::Instant;

    use super::*;

    fn answer(bytes: usize) -> WatchResponse {
        WatchResponse {
            cancel_reason: "7".repeat(bytes),
            ..WatchResponse::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_whose_answer_is_not_fetched_in_time_ends_when_it_has_another() {
        let (mut outgoing, mut stream) = Outgoing::new();
        assert!(outgoing.send(answer(10)).await.is_ok());
        let begun = Instant::now();
        let over = outgoing.send(answer(10)).await;
        assert!(
            matches!(over, Err(Over::Failed(status)) if status.code() == tonic::Code::Unavailable)
        );
        assert_eq!(begun.elapsed().as_secs(), PATIENCE.as_secs());
        assert!(stream.next().await.unwrap().is_ok());
        assert!(
            stream.next().now_or_never().is_none(),
            "the second was not sent"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_answer_has_more_time() {
        let (mut outgoing, mut stream) = Outgoing::new();
        assert!(outgoing.send(answer(1 << 20)).await.is_ok());
        let begun = Instant::now();
        assert!(matches!(outgoing.has_room().await, Ok(false)));
        assert_eq!(begun.elapsed().as_secs(), PATIENCE.as_secs() + 16);
        let fetched = tokio::spawn(async move {
            tokio::time::sleep(PATIENCE).await;
            stream.next().await.unwrap().is_ok()
        });
        assert!(outgoing.send(answer(10)).await.is_ok());
        assert!(fetched.await.unwrap());
        assert!(matches!(outgoing.send(answer(10)).await, Err(Over::Gone)));
    }
}
