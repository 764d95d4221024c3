use std::future::poll_fn;
use std::pin::Pin;

use api::v1::{BatchResult, PutRequest};
use replica::Answer;
use shardkv::{KvError, Response as Outcome};
use tokio::sync::oneshot;
use tokio_stream::Stream as _;
use types::ShardId;

use super::*;
use crate::identity::Identity;
use crate::inbox::{Batch, Submission};
use crate::lifecycle::Phase;
use crate::machine::Response;
use crate::metrics::Metrics;
use crate::options::{self, Invocation};
use crate::parts::Parts;
use crate::progress::Progress;
use crate::services::answers::{AnswerQueue, Answers};

/// A node whose replica is the test.
struct Node {
    parts: Parts,
    items: Arc<Items>,
    _data: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let data = tempfile::tempdir().unwrap();
        let path = data.path().to_str().unwrap();
        let args = ["shardkv-node", "--data-dir", path].map(Into::into);
        let options = match options::parse(args, "") {
            Ok(Invocation::Run(options)) => *options,
            other => panic!("{other:?}"),
        };
        let stored = storage::open(data.path(), &storage::StorageOptions::default());
        let belongs = (options.gid, options.cluster_name.as_str());
        let directory = data.path().to_owned();
        let identity = Identity::new(stored.unwrap().identity, None, true, belongs, directory);
        let (fail, _) = oneshot::channel();
        let progress = Arc::new(Progress::new(options.stall_timeout));
        let observed = (Arc::new(Metrics::new()), progress);
        let parts = Parts::new(options, "a:1".to_owned(), identity, observed, fail);
        parts.lifecycle.enter(Phase::Running);
        Self {
            items: parts.items(),
            parts,
            _data: data,
        }
    }

    /// Waits for the next request at the replica.
    async fn requested(&self) -> Submission {
        let mut batch = Batch::default();
        loop {
            self.parts.inbox.take(&mut batch, None);
            if let Some(submission) = batch.requests.pop() {
                assert!(batch.requests.is_empty(), "one at a time");
                return submission;
            }
            turn().await;
        }
    }

    fn reply(&self, submission: Submission, answer: Answer<Response>) {
        let deliveries = &self.parts.deliveries;
        deliveries.hand_over(&mut vec![(submission.reply, Ok(answer))]);
        deliveries.deliver_now();
    }

    fn queue(&self) -> Arc<AnswerQueue> {
        let queue = AnswerQueue::new(
            Arc::clone(&self.parts.peers),
            Arc::clone(&self.items),
            Arc::clone(&self.parts.metrics),
        );
        queue.expect(1);
        queue
    }

    async fn gives_back_all_places(&self) {
        while self.parts.forwarder.unanswered() > 0 {
            turn().await;
        }
    }
}

/// Lets the other tasks go on. The clock is paused, and goes on by itself only while all tasks wait.
async fn turn() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

fn item() -> Item {
    item_of(1)
}

fn item_of(bytes: usize) -> Item {
    Item::Put(PutRequest {
        key: "k".into(),
        value: vec![1; bytes].into(),
        session: None,
    })
}

fn on_its_way() -> Answer<Response> {
    let shard = ShardId(3);
    let refused = Outcome::Refused(KvError::ShardNotReady { shard });
    Answer::Machine(Response::Shards(refused))
}

fn done() -> Answer<Response> {
    let written = Outcome::Written(shardkv::Written::Put);
    Answer::Machine(Response::Shards(written))
}

async fn result(answers: &mut Answers) -> ItemResponse {
    let message = poll_fn(|context| Pin::new(&mut *answers).poll_next(context)).await;
    let results = message.unwrap().unwrap().results;
    let [BatchResult { id: 7, response }] = results.as_slice() else {
        panic!("{results:?}");
    };
    response.clone().unwrap()
}

fn is_not_ready(response: &ItemResponse) -> bool {
    matches!(response, ItemResponse::Error(error) if is_on_its_way(error))
}

#[tokio::test(start_paused = true)]
async fn an_item_of_a_batch_waits_for_a_shard_on_its_way() {
    let node = Node::new();
    let queue = node.queue();
    let mut answers = Answers(Arc::clone(&queue));
    let now = Instant::now();
    assert!(!queue.push(7, now, Some(Box::new(item())), Ok(on_its_way())));
    for _ in 0..3 {
        let submission = node.requested().await;
        assert_eq!(node.parts.forwarder.unanswered(), 2, "a place and a right");
        node.reply(submission, on_its_way());
    }
    node.reply(node.requested().await, done());
    let response = result(&mut answers).await;
    assert!(matches!(response, ItemResponse::Put(_)), "{response:?}");
    node.gives_back_all_places().await;
}

#[tokio::test(start_paused = true)]
async fn an_item_that_must_not_be_forwarded_is_refused_at_once() {
    let node = Node::new();
    let queue = node.queue();
    let mut answers = Answers(Arc::clone(&queue));
    assert!(queue.push(7, Instant::now(), None, Ok(on_its_way())));
    queue.wake();
    assert!(is_not_ready(&result(&mut answers).await));
}

#[tokio::test(start_paused = true)]
async fn an_item_whose_client_has_gone_waits_no_longer() {
    let node = Node::new();
    let queue = node.queue();
    let answers = Answers(Arc::clone(&queue));
    queue.push(7, Instant::now(), Some(Box::new(item())), Ok(on_its_way()));
    let submission = node.requested().await;
    drop(answers);
    node.reply(submission, on_its_way());
    node.gives_back_all_places().await;
}

/// The whole budget has 64 MiB. One group may hold a quarter of it.
#[tokio::test(start_paused = true)]
async fn what_waits_here_is_bounded_by_its_bytes() {
    let node = Node::new();
    let large = item_of(1 << 20);
    let bytes = forward::size(&large);
    let held: Vec<_> = std::iter::from_fn(|| node.parts.forwarder.wait_here(bytes)).collect();
    assert_eq!(held.len(), 15, "with their keys");
    let queue = node.queue();
    let mut answers = Answers(Arc::clone(&queue));
    queue.push(7, Instant::now(), Some(Box::new(large)), Ok(on_its_way()));
    assert!(is_not_ready(&result(&mut answers).await));
}
