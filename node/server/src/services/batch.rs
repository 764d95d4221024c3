//! `Kv.Batch`: many requests over one stream.
//!
//! All items of a message go to the replica together. The items without an answer are bounded: when a stream has too many,
//! its input is not read further, and HTTP/2 passes that back to the client. The answers are in [`super::answers`].

use std::sync::Arc;
use std::time::Instant;

use api::v1::{BatchItem, BatchRequest, ErrorDetail};
use api::{error_status, errors};
use shardkv::GroupKind;
use tonic::{Status, Streaming};

use super::answers::{AnswerQueue, Answers, End, Origin};
use super::typed;
use crate::convert::kv::Checks;
use crate::inbox::Submission;
use crate::lifecycle::Lifecycle;
use crate::options::Limits;
use crate::replica_handle::ReplicaHandle;
use crate::replies::Reply;
use crate::routing::Routing;

/// The input half of one batch stream.
pub(crate) struct BatchReader {
    pub(crate) lifecycle: Arc<Lifecycle>,
    pub(crate) replica: Arc<ReplicaHandle>,
    pub(crate) routing: Arc<Routing>,
    pub(crate) limits: Limits,
    /// True if requests that this node can't serve are refused and not forwarded.
    pub(crate) no_forward: bool,
    pub(crate) answers: Arc<AnswerQueue>,
}

impl BatchReader {
    /// Starts to read `input`, and returns the stream of answers.
    pub(crate) fn start(self, input: Streaming<BatchRequest>) -> Answers {
        let answers = Answers(Arc::clone(&self.answers));
        tokio::spawn(self.read(input));
        answers
    }

    async fn read(self, mut input: Streaming<BatchRequest>) {
        let draining = self.lifecycle.draining();
        tokio::pin!(draining);
        let end = loop {
            let message = tokio::select! {
                message = self.next(&mut input) => message,
                () = &mut draining => {
                    let error = self.lifecycle.stopping_error();
                    break End::Answered(Some(error_status(&error)));
                }
            };
            match message {
                Ok(Some(message)) => self.take_in(message.items),
                Ok(None) => break End::Answered(None),
                Err(status) => break End::Now(typed::status(status)),
            }
        };
        self.answers.end(end);
    }

    /// Returns the next message once there is room for it.
    async fn next(
        &self,
        input: &mut Streaming<BatchRequest>,
    ) -> Result<Option<BatchRequest>, Status> {
        let limit = self.limits.max_stream_inflight_items;
        self.answers.wait_for_room(limit).await;
        input.message().await
    }

    /// Submits the items of a message to the replica, and answers invalid items at once.
    fn take_in(&self, items: Vec<BatchItem>) {
        self.answers.expect(items.len());
        let arrived = Instant::now();
        let checks = Checks::new(&self.limits);
        let running = self.replica.check_running();
        let mut submissions = Vec::with_capacity(items.len());
        let mut refused = false;
        for (position, item) in items.into_iter().enumerate() {
            let id = item.id;
            let submission = if position < self.limits.max_batch_items {
                running
                    .clone()
                    .and_then(|()| self.submission(checks, item, arrived))
            } else {
                let limit = self.limits.max_batch_items as u64;
                Err(errors::too_large("batch (in items)", limit + 1, limit))
            };
            match submission {
                Ok(Some(submission)) => submissions.push(submission),
                Ok(None) => {}
                Err(error) => {
                    refused = true;
                    self.answers.refuse(id, error);
                }
            }
        }
        if !submissions.is_empty() {
            self.replica.submit_all(submissions);
        }
        if refused {
            self.answers.wake();
        }
    }

    /// Converts an item to a submission. Returns `None` if the item was forwarded.
    fn submission(
        &self,
        checks: Checks,
        item: BatchItem,
        arrived: Instant,
    ) -> Result<Option<Submission>, ErrorDetail> {
        // The clone shares the bytes. A client that routes by itself doesn't even pay for the clone.
        let forwardable = item.request.clone().filter(|_| !self.no_forward);
        let request = checks.item(item.request)?;
        if self.routing.kind() == GroupKind::Controller {
            let forwardable = forwardable.ok_or_else(|| self.routing.wrong_group())?;
            self.answers.forward(item.id, arrived, forwardable);
            return Ok(None);
        }
        let permit = self.replica.permit(&request)?;
        let origin = Origin {
            stream: Arc::clone(&self.answers),
            id: item.id,
            arrived,
            forwardable: forwardable.map(Box::new),
        };
        let reply = Reply::item(permit, origin);
        Ok(Some(Submission { request, reply }))
    }
}
