//! One outgoing stream to one peer. It reconnects after each failure.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use api::error_detail;
use api::v1::RaftAccept;
use api::v1::raft_client::RaftClient;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Endpoint;
use tonic::{Status, Streaming};
use types::NodeId;

use super::hello;
use super::queue::{Frames, Queue};
use crate::inbox::Inbox;
use crate::limiter::Limiter;
use crate::metrics::Metrics;
use crate::options::{MAX_FRAME_BYTES, Network};
use crate::peers::Peers;
use crate::random;

const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// The time after which an unused snapshot connection is closed.
const IDLE: Duration = Duration::from_secs(10);

/// The other end of a stream.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    /// A node, at its present address.
    Node(NodeId),
    /// Any node at an address: for a node that asks to join and knows no member.
    Address(String),
}

/// The content of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamKind {
    /// All messages except snapshot chunks. Always connected.
    Messages,
    /// Snapshot chunks. Connected while there are some.
    Snapshots,
}

/// One outgoing stream.
pub(crate) struct Link {
    pub(crate) peers: Arc<Peers>,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) network: Network,
    pub(crate) target: Target,
    pub(crate) kind: StreamKind,
    pub(crate) queue: Arc<Queue>,
    pub(crate) limiter: Arc<Limiter>,
    /// Notified when the peer was heard of: try to connect now.
    pub(crate) nudge: Arc<Notify>,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => node.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// The reason why there is no stream. The link always tries again; the reason decides when.
enum Failure {
    /// No attempt is possible: the node was removed, or its address now belongs to this node.
    Nowhere(&'static str),
    /// The peer can't be reached, or doesn't answer. Retried with back-off.
    Unreachable(String),
    /// The peer refuses this node. Retried after the longest pause.
    Refused(String),
}

impl Failure {
    fn pause(&self, pause: Duration) -> Duration {
        match self {
            Self::Unreachable(_) => pause,
            // A peer that refuses this node will hardly change its mind at once, but the name may soon resolve to another
            // node.
            Self::Nowhere(_) | Self::Refused(_) => LONGEST_PAUSE,
        }
    }

    fn reason(self) -> String {
        match self {
            Self::Nowhere(reason) => reason.to_owned(),
            Self::Unreachable(reason) | Self::Refused(reason) => reason,
        }
    }
}

impl Link {
    /// Keeps the stream up for as long as the future is polled.
    pub(crate) async fn run(self) {
        let mut pause = FIRST_PAUSE;
        let mut logged: Option<String> = None;
        loop {
            if self.kind == StreamKind::Snapshots {
                self.queue.filled().await;
            }
            match self.connect().await {
                Ok(answers) => {
                    tracing::debug!(to = %self.target, kind = ?self.kind, "connected");
                    logged = None;
                    let since = Instant::now();
                    self.queue.set_connected(true);
                    self.watch(answers).await;
                    self.queue.set_connected(false);
                    self.broke();
                    if since.elapsed() > LONGEST_PAUSE {
                        pause = FIRST_PAUSE;
                    }
                }
                Err(failure) => {
                    pause = failure.pause(pause);
                    let reason = failure.reason();
                    // One line per reason: a peer that is down for a night costs one line.
                    if logged.as_ref() != Some(&reason) {
                        tracing::info!(to = %self.target, "no connection: {reason}");
                        logged = Some(reason);
                    }
                    self.queue.set_connected(false);
                    if self.kind == StreamKind::Snapshots {
                        // The chunks that waited are gone.
                        self.broke();
                    }
                }
            }
            tokio::select! {
                () = sleep(jittered(pause)) => {}
                () = self.nudge.notified() => {}
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn broke(&self) {
        let Target::Node(node) = &self.target else {
            return;
        };
        match self.kind {
            StreamKind::Messages => {
                self.metrics.peer_disconnects.inc();
                self.inbox.disconnected(*node);
            }
            StreamKind::Snapshots => self.inbox.snapshots_disconnected(*node),
        }
    }

    fn address(&self) -> Option<String> {
        match &self.target {
            Target::Node(node) => self.peers.address_of(*node),
            Target::Address(address) => Some(address.clone()),
        }
    }

    /// Opens the stream and waits for the peer's acceptance. The name is resolved each time.
    async fn connect(&self) -> Result<Streaming<RaftAccept>, Failure> {
        let unreachable = |error: &dyn fmt::Display| Failure::Unreachable(error.to_string());
        let Some(address) = self.address() else {
            return Err(Failure::Nowhere("its address is not known"));
        };
        if address == self.peers.address() {
            return Err(Failure::Nowhere("its address now belongs to this node"));
        }
        let network = &self.network;
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| unreachable(&error))?
            .tcp_nodelay(true)
            .connect_timeout(network.connect_timeout)
            .http2_keep_alive_interval(network.keepalive_interval)
            .keep_alive_timeout(network.keepalive_timeout)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(network.stream_window_bytes)
            .initial_connection_window_size(network.connection_window_bytes);
        let channel = timeout(network.connect_timeout, endpoint.connect())
            .await
            .map_err(|_| unreachable(&format!("connecting to {address} took too long")))?
            .map_err(|error| {
                unreachable(&format!("{address}: {:#}", anyhow::Error::from(error)))
            })?;
        let mut client = RaftClient::new(channel)
            .max_encoding_message_size(MAX_FRAME_BYTES)
            .max_decoding_message_size(1 << 16);
        let accepting = async {
            let frames = self.frames();
            let mut answers = match self.kind {
                StreamKind::Messages => client.stream(frames).await?,
                StreamKind::Snapshots => client.snapshot(frames).await?,
            }
            .into_inner();
            let accepted = answers.message().await?;
            Ok::<_, Status>((answers, accepted))
        };
        // The other side waits for the hello as long as a handshake may take. One timeout fits both.
        match timeout(network.handshake_timeout, accepting).await {
            Err(_) => Err(unreachable(&format!("{address} did not answer"))),
            Ok(Err(status)) => Err(failure(&address, &status)),
            Ok(Ok((_, None))) => Err(unreachable(&format!("{address} closed the stream"))),
            Ok(Ok((answers, Some(_)))) => Ok(answers),
        }
    }

    fn frames(&self) -> Frames {
        let to = match self.target {
            Target::Node(node) => node,
            Target::Address(_) => NodeId(0),
        };
        let metrics = Arc::clone(&self.metrics);
        let kind = self.kind;
        let sent = move |bytes: usize| {
            let counter = match kind {
                StreamKind::Messages => &metrics.peer_sent_bytes,
                StreamKind::Snapshots => &metrics.snapshot_sent_bytes,
            };
            counter.inc_by(bytes as u64);
        };
        // Each frame holds one chunk, so that the pace is kept.
        let (max_bytes, limiter) = match self.kind {
            StreamKind::Messages => (self.network.peer_frame_bytes, None),
            StreamKind::Snapshots => (1, Some(Arc::clone(&self.limiter))),
        };
        let hello = hello::hello(&self.peers, to);
        Frames::new(&self.queue, hello, max_bytes, limiter, Box::new(sent))
    }

    /// Returns when the stream broke. Returns for snapshots also when the stream was idle.
    async fn watch(&self, mut answers: Streaming<RaftAccept>) {
        loop {
            tokio::select! {
                answer = answers.message() => match answer {
                    Ok(Some(_)) => {}
                    Ok(None) => return,
                    Err(status) => {
                        tracing::debug!(to = %self.target, "the stream broke: {}", status.message());
                        return;
                    }
                },
                () = sleep(IDLE), if self.kind == StreamKind::Snapshots => {
                    if self.queue.idle_since().is_some_and(|since| since.elapsed() >= IDLE) {
                        return;
                    }
                }
            }
        }
    }
}

fn failure(address: &str, status: &Status) -> Failure {
    use api::v1::error_detail::Kind;
    let reason = format!("{address}: {}", status.message());
    match error_detail(status).and_then(|detail| detail.kind) {
        Some(Kind::WrongCluster(_) | Kind::BadRequest(_)) => Failure::Refused(reason),
        _ => Failure::Unreachable(reason),
    }
}

/// Returns half to one and a half of `pause`, so that nodes that were cut off together don't reconnect together.
fn jittered(pause: Duration) -> Duration {
    let random = random::number().unwrap_or(1) % 1_024;
    pause / 2 + pause * u32::try_from(random).unwrap_or(0) / 1_024
}
