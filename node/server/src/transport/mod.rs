//! Messages to and from the other members.
//!
//! Each node keeps one outgoing stream to each other member and sends all its messages there. The answers come on the other
//! member's outgoing stream. Snapshot chunks have a stream and a connection of their own, so that they never delay a
//! heartbeat. Queues are bounded; Raft repeats lost messages. When an established stream breaks, the replica is told at
//! once: if it was the stream to the leader, the group elects a new one without waiting for a timeout.

pub(crate) mod hello;
pub(crate) mod link;
pub(crate) mod queue;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use raft::{Envelope, Message};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use types::NodeId;

use crate::inbox::Inbox;
use crate::lifecycle::Lifecycle;
use crate::limiter::Limiter;
use crate::metrics::Metrics;
use crate::options::Network;
use crate::peers::Peers;
use link::{Link, StreamKind, Target};
use queue::Queue;

/// The time after which an unused link to a node that is not a member is closed.
const FORGET_AFTER: Duration = Duration::from_secs(30);
/// The pause between two checks of the links.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// The links to all peers.
pub(crate) struct Transport {
    lifecycle: Arc<Lifecycle>,
    peers: Arc<Peers>,
    inbox: Arc<Inbox>,
    metrics: Arc<Metrics>,
    network: Network,
    runtime: Handle,
    limiter: Arc<Limiter>,
    /// The addresses to which a node that is not a member sends its request to join.
    join_addresses: Vec<String>,
    links: Mutex<BTreeMap<Target, Peer>>,
}

/// The links to one peer.
struct Peer {
    messages: Arc<Queue>,
    snapshots: Arc<Queue>,
    nudge: Arc<Notify>,
    tasks: [AbortHandle; 2],
    used: Instant,
}

impl Drop for Peer {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Transport {
    /// Creates a transport whose links run on the current runtime.
    pub(crate) fn new(
        lifecycle: Arc<Lifecycle>,
        peers: Arc<Peers>,
        inbox: Arc<Inbox>,
        metrics: Arc<Metrics>,
        network: Network,
    ) -> Self {
        let mut join_addresses = peers.initial();
        join_addresses.retain(|peer| peer != peers.address());
        Self {
            limiter: Arc::new(Limiter::new(network.snapshot_bytes_per_second)),
            lifecycle,
            peers,
            inbox,
            metrics,
            network,
            runtime: Handle::current(),
            join_addresses,
            links: Mutex::default(),
        }
    }

    /// Queues a message. Called from the replica's thread; never blocks.
    pub(crate) fn send(&self, envelope: Envelope) {
        if envelope.to != NodeId(0) {
            self.send_to(Target::Node(envelope.to), envelope);
            return;
        }
        for address in &self.join_addresses {
            self.send_to(Target::Address(address.clone()), envelope.clone());
        }
    }

    fn send_to(&self, target: Target, envelope: Envelope) {
        let mut links = self.lock();
        let peer = links
            .entry(target)
            .or_insert_with_key(|target| self.open(target));
        peer.used = Instant::now();
        let queue = match envelope.message {
            Message::SnapshotChunk(_) => &peer.snapshots,
            _ => &peer.messages,
        };
        let dropped = queue.push(envelope);
        if dropped > 0 {
            self.metrics.peer_dropped_messages.inc_by(dropped);
        }
    }

    fn open(&self, target: &Target) -> Peer {
        let max_bytes = self.network.peer_queue_bytes;
        let messages = Arc::new(Queue::new(max_bytes));
        let snapshots = Arc::new(Queue::new(max_bytes));
        let nudge = Arc::new(Notify::new());
        let task = |kind, queue: &Arc<Queue>| {
            let link = Link {
                peers: Arc::clone(&self.peers),
                inbox: Arc::clone(&self.inbox),
                metrics: Arc::clone(&self.metrics),
                network: self.network,
                target: target.clone(),
                kind,
                queue: Arc::clone(queue),
                limiter: Arc::clone(&self.limiter),
                nudge: Arc::clone(&nudge),
            };
            self.runtime.spawn(link.run()).abort_handle()
        };
        Peer {
            tasks: [
                task(StreamKind::Messages, &messages),
                task(StreamKind::Snapshots, &snapshots),
            ],
            messages,
            snapshots,
            nudge,
            used: Instant::now(),
        }
    }

    /// Wakes a link that pauses, because its peer was heard of.
    pub(crate) fn wake(&self, node: NodeId) {
        if let Some(peer) = self.lock().get(&Target::Node(node)) {
            peer.nudge.notify_waiters();
        }
    }

    /// Keeps a link to every member and closes unused links, for as long as the future is polled.
    pub(crate) async fn maintain(&self) {
        let mut view = self.lifecycle.watch();
        let mut members: Vec<NodeId> = Vec::new();
        loop {
            let status = view.borrow_and_update().status.clone();
            if let Some(status) = status {
                let now: Vec<NodeId> = status
                    .membership
                    .members()
                    .map(|(node, _)| node)
                    .filter(|node| *node != status.node)
                    .collect();
                let joined = status.membership.get(status.node).is_some();
                if now != members {
                    self.open_all(&now);
                    members = now;
                }
                self.sweep(&members, joined);
            }
            tokio::select! {
                changed = view.changed() => if changed.is_err() {
                    return;
                },
                () = tokio::time::sleep(SWEEP_EVERY) => {}
            }
        }
    }

    /// Connects before there is a message, so that an election needn't wait for a connection.
    fn open_all(&self, members: &[NodeId]) {
        let mut links = self.lock();
        for node in members {
            links
                .entry(Target::Node(*node))
                .or_insert_with_key(|target| self.open(target));
        }
    }

    fn sweep(&self, members: &[NodeId], joined: bool) {
        let now = Instant::now();
        self.lock().retain(|target, peer| match target {
            Target::Address(_) => !joined,
            Target::Node(node) => {
                members.contains(node) || now.duration_since(peer.used) < FORGET_AFTER
            }
        });
    }

    /// Closes all links.
    pub(crate) fn close(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Target, Peer>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
