//! `shardkv.v1.Raft`: streams from other members and from nodes that want to join.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::v1::raft_server::Raft;
use api::v1::{ErrorDetail, Hello, IdentifyRequest, IdentifyResponse, RaftAccept, RaftFrame};
use api::{error_status, errors};
use raft::{Envelope, MAX_ADDRESS_BYTES, Message};
use replica::Introduction;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use types::{ClusterId, NodeId};

use crate::bootstrap::genesis;
use crate::convert::peer;
use crate::inbox::Inbox;
use crate::lifecycle::Lifecycle;
use crate::metrics::Metrics;
use crate::peers::Peers;
use crate::transport::Transport;
use crate::transport::hello::OwnIdentity;
use crate::transport::link::StreamKind;

/// The service.
pub(crate) struct PeerService {
    handles: Handles,
    transport: Arc<Transport>,
    /// The maximum time for a peer's hello.
    handshake_timeout: Duration,
    /// The refusals that were logged. A refused peer tries again and again, and one log line is enough.
    logged: Mutex<BTreeSet<String>>,
}

/// The handles that the service and its streams use.
#[derive(Clone)]
pub(crate) struct Handles {
    pub(crate) lifecycle: Arc<Lifecycle>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) metrics: Arc<Metrics>,
}

/// The maximum number of remembered refusals.
const MAX_LOGGED: usize = 256;

type Acceptance = ReceiverStream<Result<RaftAccept, Status>>;

impl PeerService {
    pub(crate) fn new(
        handles: Handles,
        transport: Arc<Transport>,
        handshake_timeout: Duration,
    ) -> Self {
        Self {
            handles,
            transport,
            handshake_timeout,
            logged: Mutex::default(),
        }
    }

    fn log_once(&self, refusal: &str) {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.len() >= MAX_LOGGED {
            logged.clear();
        }
        if logged.insert(refusal.to_owned()) {
            tracing::info!("refused a peer's stream: {refusal}");
        }
    }

    async fn open(
        &self,
        kind: StreamKind,
        request: Request<Streaming<RaftFrame>>,
    ) -> Result<Response<Acceptance>, Status> {
        let mut frames = request.into_inner();
        let hello = match self.greet(kind, &mut frames).await {
            Ok(hello) => hello,
            Err(error) => {
                self.handles.metrics.rejected(&error);
                self.log_once(&error.message);
                return Err(error_status(&error));
            }
        };
        let (answers, receiver) = mpsc::channel(2);
        let node_id = self.handles.peers.node().0;
        // The channel has room, and its receiver exists.
        let _ = answers.try_send(Ok(RaftAccept { node_id }));
        let inbound = Inbound {
            handles: self.handles.clone(),
            from: NodeId(hello.from),
            without_cluster: hello.cluster_id == 0,
            kind,
        };
        tokio::spawn(inbound.run(frames, answers));
        self.transport.wake(NodeId(hello.from));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    /// Reads and checks the first frame.
    async fn greet(
        &self,
        kind: StreamKind,
        frames: &mut Streaming<RaftFrame>,
    ) -> Result<Hello, ErrorDetail> {
        let wait = self.handshake_timeout;
        let first = match timeout(wait, frames.message()).await {
            Ok(Ok(Some(frame))) => frame,
            Ok(Ok(None)) | Err(_) => {
                return Err(errors::bad_request("hello", "it did not come in time"));
            }
            Ok(Err(status)) => return Err(errors::bad_request("hello", status.message())),
        };
        let Some(hello) = first.hello.filter(|_| first.messages.is_empty()) else {
            let reason = "the first frame of a stream must hold the hello and nothing else";
            return Err(errors::bad_request("hello", reason));
        };
        OwnIdentity::of(&self.handles.peers).check(&hello)?;
        if hello.cluster_id != 0 && hello.to != 0 {
            self.handles.peers.invite();
        }
        self.handles.lifecycle.check_accepts_peers()?;
        if hello.address.is_empty() || hello.address.len() > MAX_ADDRESS_BYTES {
            let reason = format!("it must have 1 to {MAX_ADDRESS_BYTES} bytes");
            return Err(errors::bad_request("hello.address", reason));
        }
        if kind == StreamKind::Snapshots {
            self.bind(&hello).await?;
        }
        let peers = &self.handles.peers;
        peers.learn(NodeId(hello.from), hello.address.clone());
        Ok(hello)
    }

    /// Binds a node that waits to join to the cluster of its first snapshot's sender. The binding is written before any
    /// byte of the snapshot is accepted.
    async fn bind(&self, hello: &Hello) -> Result<(), ErrorDetail> {
        if hello.cluster_id == 0 {
            let reason = "the sender of a snapshot must belong to a cluster";
            return Err(errors::bad_request("hello.cluster_id", reason));
        }
        if self.handles.peers.identity().cluster().is_some() {
            return Ok(());
        }
        let identity = Arc::clone(self.handles.peers.identity());
        let cluster = ClusterId(hello.cluster_id);
        let bound = tokio::task::spawn_blocking(move || identity.bind(cluster)).await;
        match bound {
            Ok(Ok(())) => {
                tracing::info!(%cluster, "joining a group");
                Ok(())
            }
            Ok(Err(error)) => Err(errors::unavailable(error, 1_000)),
            Err(error) => Err(errors::unavailable(error, 1_000)),
        }
    }
}

#[tonic::async_trait]
impl Raft for PeerService {
    type StreamStream = Acceptance;
    type SnapshotStream = Acceptance;

    async fn stream(
        &self,
        request: Request<Streaming<RaftFrame>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        self.open(StreamKind::Messages, request).await
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<RaftFrame>>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        self.open(StreamKind::Snapshots, request).await
    }

    async fn identify(
        &self,
        request: Request<IdentifyRequest>,
    ) -> Result<Response<IdentifyResponse>, Status> {
        let request = request.into_inner();
        OwnIdentity::of(&self.handles.peers)
            .check_group(&request.cluster_name, request.gid)
            .map_err(|error| error_status(&error))?;
        let identity = Arc::clone(self.handles.peers.identity());
        // The lock may be held while a first membership is written to disk.
        let introduction = tokio::task::spawn_blocking(move || identity.introduce())
            .await
            .map_err(|error| Status::internal(error.to_string()))?;
        let joined = self
            .handles
            .lifecycle
            .view()
            .status
            .is_some_and(|status| !status.membership.is_empty());
        let (first, is_member) = match introduction {
            Introduction::Member(first) => (first, true),
            Introduction::Empty(_) | Introduction::Silent => (None, false),
        };
        Ok(Response::new(IdentifyResponse {
            node_id: self.handles.peers.node().0,
            address: self.handles.peers.address().to_owned(),
            genesis: first.as_ref().map(genesis::to_wire),
            initialised: is_member || joined,
        }))
    }
}

/// One accepted stream.
struct Inbound {
    handles: Handles,
    from: NodeId,
    /// True if the sender belongs to no cluster yet.
    without_cluster: bool,
    kind: StreamKind,
}

impl Inbound {
    /// Reads frames until the stream ends, then reports its end. `answers` keeps the stream open meanwhile.
    async fn run(
        self,
        mut frames: Streaming<RaftFrame>,
        answers: mpsc::Sender<Result<RaftAccept, Status>>,
    ) {
        let stopped = self.handles.lifecycle.stopped();
        tokio::pin!(stopped);
        loop {
            let frame = tokio::select! {
                frame = frames.message() => frame,
                () = &mut stopped => break,
            };
            let envelopes = match frame {
                Ok(Some(frame)) => self.understand(frame),
                Ok(None) => break,
                Err(status) => {
                    tracing::debug!(from = %self.from, "a peer's stream broke: {}", status.message());
                    break;
                }
            };
            match envelopes {
                Ok(envelopes) => self.handles.inbox.receive(envelopes).await,
                Err(error) => {
                    self.handles.metrics.rejected(&error);
                    tracing::warn!(from = %self.from, "ended a peer's stream: {}", error.message);
                    // The stream ends whether or not the peer still receives this.
                    let _ = answers.send(Err(error_status(&error))).await;
                    break;
                }
            }
        }
        if self.kind == StreamKind::Messages {
            self.handles.metrics.peer_disconnects.inc();
            self.handles.inbox.disconnected(self.from);
        }
    }

    fn understand(&self, frame: RaftFrame) -> Result<Vec<Envelope>, ErrorDetail> {
        if frame.hello.is_some() {
            return Err(errors::bad_request("hello", "a stream has only one hello"));
        }
        let mut envelopes = Vec::with_capacity(frame.messages.len());
        for message in frame.messages {
            let envelope = peer::from_wire(message)
                .map_err(|error| errors::bad_request(error.field, error.reason))?;
            self.check(&envelope)?;
            envelopes.push(envelope);
        }
        Ok(envelopes)
    }

    /// Refuses messages that don't belong on this stream.
    fn check(&self, envelope: &Envelope) -> Result<(), ErrorDetail> {
        if envelope.from != self.from {
            let reason = format!(
                "this stream belongs to node {}, not to node {}",
                self.from, envelope.from
            );
            return Err(errors::bad_request("from", reason));
        }
        let chunk = matches!(envelope.message, Message::SnapshotChunk(_));
        if chunk != (self.kind == StreamKind::Snapshots) {
            let reason = "snapshot chunks must use the stream for snapshots, and other messages the stream for messages";
            return Err(errors::bad_request("message", reason));
        }
        // A member that lost its disk has a new id, and a node that is being added may only answer.
        let joins = matches!(envelope.message, Message::JoinRequest { .. });
        if self.without_cluster && !joins && !self.is_member() {
            let reason = "a node that belongs to no cluster may only send a join request";
            return Err(errors::bad_request("message", reason));
        }
        Ok(())
    }

    fn is_member(&self) -> bool {
        self.handles
            .lifecycle
            .view()
            .status
            .is_some_and(|status| status.membership.get(self.from).is_some())
    }
}
