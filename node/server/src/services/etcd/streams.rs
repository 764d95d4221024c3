//! Streams of etcd's clients: opened here, or at the node that can serve them, whose messages are passed on.

use std::sync::Arc;
use std::time::Instant;

use api::error_detail;
use futures::{Stream, StreamExt as _};
use shardkv::GroupKind;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

use super::leader::REQUIRE_LEADER_METADATA_KEY;
use super::naming::KEYSPACE_METADATA_KEY;
use super::outgoing::Outgoing;
use super::serve::{Call, EtcdServices, ON_ITS_WAY_PAUSE, name_of};
use super::status::{self, Failure, is_final};
use crate::forward::{self, StreamKind, StreamSlot, is_elsewhere, is_on_its_way, once_for};
use crate::lifecycle::Lifecycle;

/// The most requests of a stream that are on their way to another node.
const REQUESTS_ON_THE_WAY: usize = 16;

/// A stream that was opened.
pub(super) enum Opened<H, Q, A> {
    /// This node serves it.
    Here(H),
    /// Another node serves it.
    There(Box<Elsewhere<Q, A>>),
}

/// A stream that another node serves.
pub(super) struct Elsewhere<Q, A> {
    requests: mpsc::Sender<Q>,
    answers: Streaming<A>,
    /// Its place on the connection.
    slot: Option<StreamSlot>,
}

/// The reason for which a stream is over.
pub(super) enum Over {
    /// The client is gone.
    Gone,
    /// The client gets this status.
    Failed(Status),
}

impl EtcdServices {
    /// Opens a stream here, or at the node that can serve it. It waits while the shard is moved, as calls do.
    pub(super) async fn open<H, Q, A, F, G>(
        &self,
        call: &Call,
        kind: StreamKind,
        here: impl Fn() -> F + Send + Sync,
        there: impl Fn(Channel, Request<ReceiverStream<Q>>) -> G + Send + Sync,
    ) -> Result<Opened<H, Q, A>, Failure>
    where
        F: Future<Output = Result<H, Failure>> + Send,
        G: Future<Output = Result<Streaming<A>, Status>> + Send,
        Q: Send,
    {
        let routing = &self.keyspaces.routing;
        if routing.kind() == GroupKind::Controller {
            if call.forbidden {
                return Err(routing.wrong_group().into());
            }
            return self.open_elsewhere(call, kind, there).await;
        }
        let deadline = self.forwarder.deadline(call.arrived).into_std();
        let mut waiting = None;
        loop {
            let error = match here().await {
                Ok(opened) => return Ok(Opened::Here(opened)),
                Err(Failure::Node(error)) if !call.forbidden => error,
                Err(failure) => return Err(failure),
            };
            if is_elsewhere(&error) {
                drop(waiting);
                return self.open_elsewhere(call, kind, there).await;
            }
            if waiting.is_none() && is_on_its_way(&error) {
                waiting = self.forwarder.wait_here(0);
            }
            if waiting.is_none() || !is_on_its_way(&error) || Instant::now() >= deadline {
                return Err(error.into());
            }
            let pause = tokio::time::sleep(ON_ITS_WAY_PAUSE);
            if self.lifecycle.unless_draining(pause).await.is_none() {
                return Err(error.into());
            }
        }
    }

    async fn open_elsewhere<H, Q, A, G>(
        &self,
        call: &Call,
        kind: StreamKind,
        there: impl Fn(Channel, Request<ReceiverStream<Q>>) -> G + Send + Sync,
    ) -> Result<Opened<H, Q, A>, Failure>
    where
        G: Future<Output = Result<Streaming<A>, Status>> + Send,
        Q: Send,
    {
        let shard = self.keyspaces.shard(&call.keyspace)?;
        let name = name_of(call)?;
        let opened = forward::keyspace_stream(&self.forwarder, shard, kind, |channel, gid| {
            let (requests, receiver) = mpsc::channel(REQUESTS_ON_THE_WAY);
            let mut outgoing = once_for(&self.forwarder, gid, ReceiverStream::new(receiver));
            let metadata = outgoing.metadata_mut();
            metadata.insert(KEYSPACE_METADATA_KEY, name.clone());
            call.credentials.pass_on(metadata);
            if call.requires_leader {
                let asked = MetadataValue::from_static("true");
                metadata.insert(REQUIRE_LEADER_METADATA_KEY, asked);
            }
            let answers = there(channel, outgoing);
            async move {
                let answers = answers.await?;
                Ok(Elsewhere {
                    requests,
                    answers,
                    slot: None,
                })
            }
        });
        let (opened, slot) = opened.await?;
        match opened {
            Ok(opened) => Ok(Opened::There(Box::new(Elsewhere { slot, ..opened }))),
            Err(status) => Err(Failure::Status(Box::new(status))),
        }
    }
}

impl<Q, A> Elsewhere<Q, A> {
    /// Passes messages on until the stream is over, at the pace of the slower side.
    pub(super) async fn relay<R>(
        self,
        lifecycle: Arc<Lifecycle>,
        mut requests: R,
        mut outgoing: Outgoing<A>,
    ) where
        A: prost::Message,
        R: Stream<Item = Result<Q, Status>> + Send + Unpin,
    {
        let Self {
            requests: to,
            answers: mut from,
            slot: _slot,
        } = self;
        let up = async {
            while let Some(request) = requests.next().await {
                let Ok(request) = request else {
                    return;
                };
                if to.send(request).await.is_err() {
                    break;
                }
            }
            // The other node learns that there are no more requests. It ends the stream.
            drop(to);
            std::future::pending::<()>().await;
        };
        let down = async {
            loop {
                if let Err(over) = outgoing.wait_for_room().await {
                    return over;
                }
                let message = tokio::select! {
                    biased;
                    over = outgoing.lost() => return over,
                    message = from.message() => message,
                };
                let passed = match message {
                    Ok(Some(answer)) => outgoing.pass_on(answer).await,
                    Ok(None) => Err(Over::Gone),
                    Err(status) => Err(Over::Failed(passed_on(status))),
                };
                if let Err(over) = passed {
                    return over;
                }
            }
        };
        let over = tokio::select! {
            over = down => over,
            () = up => Over::Gone,
            () = lifecycle.draining() => Over::Failed(stopped()),
        };
        outgoing.end(over).await;
    }
}

/// Returns the status of a stream that can't be opened, or goes on elsewhere. etcd's client gives a watch up when it hears that
/// there is no leader, but not when the leader has changed.
pub(super) fn status_of(services: &EtcdServices, call: &Call, failure: Failure) -> Status {
    match &failure {
        Failure::Node(error) if !call.forbidden && is_elsewhere(error) => moved(),
        _ => services.status(call, failure),
    }
}

/// Returns the status of another node's stream, for a client of etcd.
fn passed_on(status: Status) -> Status {
    if is_final(&status) {
        return status;
    }
    match error_detail(&status) {
        Some(detail) if is_elsewhere(&detail) => moved(),
        Some(detail) => status::failed(&detail),
        // etcd's client opens the stream again.
        None => Status::unavailable(status.message()),
    }
}

/// The status of a stream whose node stops.
pub(super) fn stopped() -> Status {
    Status::unavailable("etcdserver: server stopped")
}

/// The status of a stream whose shard or leadership has moved. etcd's client opens it again.
pub(super) fn moved() -> Status {
    Status::unavailable("etcdserver: leader changed")
}
