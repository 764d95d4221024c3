//! The life of a node: it opens the data directory, listens, finds or forms its group, serves, and stops.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use raft::{Role, StoreError};
use replica::{Replica, Request};
use serde_json::json;
use storage::{Disk, Opened};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{Instant, interval, sleep_until, timeout, timeout_at};

use crate::bootstrap::{self, FirstStart, check_chosen};
use crate::disk::{self, Content, Stores};
use crate::endpoint::NodeProbe;
use crate::exit::{ExitCode, Fatal};
use crate::identity::{AdoptError, Identity};
use crate::lifecycle::Phase;
use crate::listeners::Listeners;
use crate::machine::Machine;
use crate::metrics::Metrics;
use crate::options::Options;
use crate::parts::Parts;
use crate::peers::Peers;
use crate::progress::Progress;
use crate::{grpc, random, runtime};

/// The maximum time that open connections may take to end after the replica has ended.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// The time that requests on their way may need to arrive before the connections are closed. They are still served, so that
/// a client which then connects elsewhere sees no error.
const LATE_REQUESTS: Duration = Duration::from_millis(50);

/// The result of the replica's thread; closed without a value if the thread panicked.
type Ended = oneshot::Receiver<Result<(), StoreError>>;

/// Runs a node until it gets a signal or can't go on.
pub(crate) async fn run(options: Options) -> Result<(), Fatal> {
    let mut signals = Signals::catch()?;
    let metrics = Arc::new(Metrics::new());
    let progress = Arc::new(Progress::new(options.stall_timeout));
    let stores = disk::open(&options, &metrics, &progress)?;
    let listeners = Listeners::bind(&options).await?;
    let (node, stores) = Node::assemble(options, (metrics, progress), stores, listeners);
    let Some(ended) = node.begin(stores, &mut signals).await? else {
        node.abandon();
        return Ok(());
    };
    node.serve(ended, &mut signals).await
}

/// The signals that ask a process to stop.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn catch() -> Result<Self, Fatal> {
        let catch = |kind| signal(kind).context("signals can't be caught");
        Ok(Self {
            terminate: catch(SignalKind::terminate())?,
            interrupt: catch(SignalKind::interrupt())?,
            hangup: catch(SignalKind::hangup())?,
        })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

struct Node {
    parts: Parts,
    serving: JoinHandle<anyhow::Result<()>>,
    /// Closes the connections; `None` once it was used.
    close: Option<oneshot::Sender<()>>,
    tasks: Vec<AbortHandle>,
    sockets: Sockets,
    /// Resolves with the error that makes it impossible to go on.
    failure: oneshot::Receiver<Fatal>,
}

/// The addresses of the node's sockets.
struct Sockets {
    grpc: SocketAddr,
    metrics: Option<SocketAddr>,
}

impl Node {
    /// Puts the parts together and starts the gRPC server. Until the replica runs, the node answers only peers that identify
    /// it.
    fn assemble(
        options: Options,
        observed: (Arc<Metrics>, Arc<Progress>),
        stores: Stores,
        listeners: Listeners,
    ) -> (Self, Started) {
        let Stores {
            opened,
            genesis,
            content,
        } = stores;
        let Opened {
            log,
            state,
            identity,
            disk,
        } = opened;
        let belongs = (options.gid, options.cluster_name.as_str());
        let touched = content != Content::Empty;
        let directory = options.data_dir.clone();
        let identity = Identity::new(identity, genesis, touched, belongs, directory);
        let sockets = Sockets {
            grpc: listeners.bound,
            metrics: listeners.metrics.as_ref().map(|(_, bound)| *bound),
        };
        let (fail, failure) = oneshot::channel();
        let parts = Parts::new(options, listeners.advertised, identity, observed, fail);
        announce(&parts.peers, &sockets, content);
        let (close, stop) = oneshot::channel::<()>();
        let serving = tokio::spawn({
            let services = parts.services(disk.clone(), state.reads());
            async move {
                let stop = async {
                    // A dropped sender also stops the server.
                    let _ = stop.await;
                };
                grpc::serve(services, listeners.grpc, stop).await
            }
        });
        let mut tasks = Vec::new();
        if let Some((listener, _)) = listeners.metrics {
            let probe = Arc::new(NodeProbe {
                metrics: Arc::clone(&parts.metrics),
                readiness: Arc::clone(&parts.readiness),
                progress: Arc::clone(&parts.progress),
            });
            let task = tokio::spawn(probes::endpoint::serve(probe, listener));
            tasks.push(task.abort_handle());
        }
        let node = Self {
            parts,
            serving,
            close: Some(close),
            tasks,
            sockets,
            failure,
        };
        let started = Started {
            log,
            state,
            disk,
            content,
        };
        (node, started)
    }

    /// Finds the group and starts the replica. Returns `None` if a signal came first.
    async fn begin(&self, stores: Started, signals: &mut Signals) -> Result<Option<Ended>, Fatal> {
        let Started {
            mut log,
            mut state,
            disk,
            content,
        } = stores;
        let parts = &self.parts;
        let node_options = &parts.options;
        if content != Content::Log {
            let beginning = tokio::select! {
                beginning = bootstrap::begin(&parts.peers, &parts.transport, &node_options.genesis) => beginning?,
                () = signals.any() => return Ok(None),
            };
            if let FirstStart::Member(first) = beginning {
                check_chosen(&node_options.genesis, &first.genesis)?;
                let (membership, genesis) = (first.membership(), first.genesis.to_batch());
                parts
                    .peers
                    .identity()
                    .adopt(&first, || {
                        replica::initialise(&mut log, &mut state, &membership, genesis)
                    })
                    .map_err(not_adopted)?;
            }
        }
        let mut options = node_options.replica.clone();
        parts.peers.address().clone_into(&mut options.address);
        let seed = random::number().context("the operating system gave no randomness")?;
        let replica = Replica::recover(
            options,
            parts.peers.node(),
            Box::new(log),
            Box::new(state),
            Machine::new(parts.routing.kind()),
            seed,
        )
        .map_err(not_recovered)?;
        let ended = runtime::start(replica, &node_options.replica, parts.runtime_handles())
            .map_err(|error| {
                let what = format!("the replica's thread can't be started: {error}");
                Fatal::of_system(what, ExitCode::Unexpected)
            })?;
        parts.lifecycle.enter(Phase::Running);
        parts.start_tasks(disk);
        if let Some(path) = &node_options.ready_file {
            self.write_ready(path)
                .with_context(|| format!("can't write {}", path.display()))?;
        }
        Ok(Some(ended))
    }

    /// Serves until a signal comes or something fails, then stops in order.
    async fn serve(mut self, mut ended: Ended, signals: &mut Signals) -> Result<(), Fatal> {
        let mut failed = None;
        tokio::select! {
            () = signals.any() => {}
            result = &mut ended => return Err(replica_ended(&self.parts.options.data_dir, result)),
            result = &mut self.serving => return Err(server_ended(result)),
            // The sender lives in the lifecycle.
            Ok(fatal) = &mut self.failure => {
                tracing::error!("{:#}", fatal.error);
                failed = Some(fatal);
            }
        }
        let deadline = Instant::now() + self.parts.options.shutdown_timeout;
        tracing::info!("stopping");
        tokio::select! {
            result = self.stop(ended, deadline) => match failed {
                Some(fatal) => Err(fatal),
                None => result,
            },
            () = signals.any() => Err(Fatal::message(
                ExitCode::Unexpected,
                "a second signal arrived: stopping without finishing",
            )),
        }
    }

    /// Hands leadership over, closes connections for new requests, finishes the work, and flushes. Requests that were on
    /// their way are still served, and forwarded if need be. Streams continue until the node drains.
    async fn stop(mut self, ended: Ended, deadline: Instant) -> Result<(), Fatal> {
        self.parts.lifecycle.enter(Phase::Stopping);
        self.hand_over(deadline).await;
        if let Some(close) = self.close.take() {
            // The receiver lives in the server. If the server is gone, nothing is left to close.
            let _ = close.send(());
        }
        sleep_until(deadline.min(Instant::now() + LATE_REQUESTS)).await;
        self.parts.lifecycle.enter(Phase::Draining);
        self.drain(deadline).await;
        self.parts.inbox.stop();
        let data_dir = self.parts.options.data_dir.clone();
        let result = timeout_at(deadline, ended).await;
        self.parts.deliveries.deliver_now();
        self.parts.lifecycle.enter(Phase::Stopped);
        self.parts.transport.close();
        let close_deadline = deadline.min(Instant::now() + CLOSE_TIMEOUT);
        // Connections that don't end in time are cut.
        let _ = timeout_at(close_deadline, self.serving).await;
        for task in self.tasks {
            task.abort();
        }
        match result {
            Ok(Ok(Ok(()))) => {
                tracing::info!("stopped");
                Ok(())
            }
            Ok(other) => Err(replica_ended(&data_dir, other)),
            Err(_) => {
                // Nothing is lost: what was acknowledged is in the log, and the next start replays it.
                tracing::warn!("the replica did not stop in time");
                Ok(())
            }
        }
    }

    /// Transfers leadership, so that clients don't wait for an election.
    async fn hand_over(&self, deadline: Instant) {
        let view = self.parts.lifecycle.view();
        let leads = view.status.as_ref().is_some_and(|status| {
            status.role == Role::Leader && status.membership.voters().count() > 1
        });
        if !leads {
            return;
        }
        let half = deadline.saturating_duration_since(Instant::now()) / 2;
        // A transfer takes a few milliseconds, unless the other members are gone.
        let raft = &self.parts.options.replica;
        let patience =
            Duration::from_millis(u64::from(raft.raft.election_ticks * raft.tick_ms)) * 2;
        let request = Request::TransferLeadership(None);
        match timeout(half.min(patience), self.parts.replica.ask(request)).await {
            Ok(Ok(Ok(_))) => tracing::info!("handed leadership over"),
            Ok(Ok(Err(refusal))) => tracing::info!("leadership was not handed over: {refusal}"),
            Ok(Err(error)) => tracing::info!("leadership was not handed over: {}", error.message),
            Err(_) => tracing::info!("leadership was not handed over in time"),
        }
    }

    /// Waits for the answers to accepted requests. Those that wait for a shard or another group end by themselves now.
    async fn drain(&self, deadline: Instant) {
        let half = deadline.saturating_duration_since(Instant::now()) / 2;
        let empty = async {
            let mut look = interval(Duration::from_millis(2));
            let Parts {
                admission,
                forwarder,
                ..
            } = &self.parts;
            while admission.budget.used().0 + forwarder.unanswered() > 0 {
                look.tick().await;
            }
        };
        if timeout(half, empty).await.is_err() {
            tracing::info!("some requests were not answered in time");
        }
    }

    /// Ends a node that never had a replica.
    fn abandon(self) {
        tracing::info!("stopped before the node found its group");
        self.parts.lifecycle.enter(Phase::Stopped);
        self.serving.abort();
        for task in self.tasks {
            task.abort();
        }
    }

    /// Writes the ready file, for tools that wait for the node.
    fn write_ready(&self, path: &Path) -> std::io::Result<()> {
        let peers = &self.parts.peers;
        let identity = peers.identity();
        let ready = json!({
            "node_id": peers.node().0,
            "cluster_id": identity.cluster().map(|cluster| cluster.to_string()),
            "gid": identity.gid().0,
            "listen": self.sockets.grpc.to_string(),
            "advertise": peers.address(),
            "metrics": self.sockets.metrics.map(|metrics| metrics.to_string()),
            "pid": std::process::id(),
        });
        // A reader sees the whole file or none.
        let temporary = path.with_extension("new");
        fs::write(&temporary, format!("{ready}\n"))?;
        fs::rename(&temporary, path)
    }
}

/// The opened stores, before the replica takes them.
struct Started {
    log: storage::RocksLog,
    state: storage::RocksState,
    disk: Disk,
    content: Content,
}

/// Prints the one line on standard output.
fn announce(peers: &Peers, sockets: &Sockets, content: Content) {
    let directory = match content {
        Content::Empty => "empty",
        Content::Unfinished => "unfinished",
        Content::Log => "member",
    };
    let metrics = sockets
        .metrics
        .map_or_else(|| "off".to_owned(), |metrics| metrics.to_string());
    let line = format!(
        "shardkv-node {} node={} cluster={} gid={} listen={} advertise={} metrics={metrics} directory={directory}",
        env!("CARGO_PKG_VERSION"),
        peers.node(),
        peers.identity().name(),
        peers.identity().gid().0,
        sockets.grpc,
        peers.address(),
    );
    // Standard output may be closed.
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    let initial = peers.initial();
    if !initial.iter().any(|peer| peer == peers.address()) {
        tracing::warn!(
            address = peers.address(),
            "this node's address is not among --peers: it will never form a group, only join one"
        );
    }
}

fn not_adopted(error: AdoptError) -> Fatal {
    match error {
        AdoptError::Store(error) | AdoptError::Bind(storage::BindError::Store(error)) => {
            disk::store_error(error)
        }
        AdoptError::File(_) => Fatal::of_system(error, ExitCode::DiskFailed),
        AdoptError::Bind(_) => Fatal::new(ExitCode::WrongIdentity, error),
    }
}

fn not_recovered(error: replica::RecoverError) -> Fatal {
    match error {
        replica::RecoverError::Store(error) => disk::store_error(error),
        replica::RecoverError::Options(error) => Fatal::new(ExitCode::BadOptions, error),
    }
}

/// Returns the error that ended the replica's thread. A directory whose state differs from the group's is marked, so that the node
/// doesn't start with it again.
fn replica_ended(
    data_dir: &Path,
    result: Result<Result<(), StoreError>, oneshot::error::RecvError>,
) -> Fatal {
    if let Ok(Err(StoreError::Diverged(found))) = &result
        && let Err(error) = storage::set_diverged(data_dir, found)
    {
        tracing::error!("this node would start again with a state that is wrong: {error}");
    }
    match result {
        Ok(Err(error)) => disk::store_error(error),
        Ok(Ok(())) => Fatal::message(ExitCode::Unexpected, "the replica stopped by itself"),
        Err(_) => Fatal::message(ExitCode::Unexpected, "the replica's thread panicked"),
    }
}

fn server_ended(result: Result<anyhow::Result<()>, tokio::task::JoinError>) -> Fatal {
    match result {
        Ok(Ok(())) => Fatal::message(ExitCode::Unexpected, "the gRPC server stopped by itself"),
        Ok(Err(error)) => error.into(),
        Err(error) => Fatal::new(ExitCode::Unexpected, error),
    }
}
