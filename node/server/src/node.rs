//! A node's life: open, listen, begin, serve, stop.

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
use shardkv::GroupKind;
use storage::{Disk, Opened};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{Instant, interval, sleep_until, timeout, timeout_at};

use crate::bootstrap::{self, Beginning, check_chosen};
use crate::disk::{self, Content, Stores};
use crate::exit::{ExitCode, Fatal};
use crate::hub::{Hub, Phase};
use crate::identity::{AdoptError, Identity};
use crate::machine::Machine;
use crate::metrics::{Metrics, watch_shards};
use crate::options::Options;
use crate::transport::Transport;
use crate::{configs, grpc, listen, mover, random, runtime};

/// How long open connections may take to end after the replica has.
const GOODBYE: Duration = Duration::from_millis(500);

/// How long what clients sent may be on its way before they hear that a connection ends: it is served still, so that one who
/// connects elsewhere then sees no error.
const LATECOMERS: Duration = Duration::from_millis(50);

/// How the replica's thread ended; closed without a word if it panicked.
type Ended = oneshot::Receiver<Result<(), StoreError>>;

/// Runs a node until it is told to stop or can't go on.
pub(crate) async fn run(options: Options) -> Result<(), Fatal> {
    let mut signals = Signals::catch()?;
    let metrics = Arc::new(Metrics::new());
    let stores = disk::open(&options, &metrics)?;
    let doors = Doors::open(&options).await?;
    let (node, stores) = Node::assemble(options, metrics, stores, doors);
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

/// The bound listeners and what others are told.
struct Doors {
    listener: TcpListener,
    bound: SocketAddr,
    advertised: String,
    metrics: Option<(TcpListener, SocketAddr)>,
}

impl Doors {
    async fn open(options: &Options) -> Result<Self, Fatal> {
        let (listener, bound) = bind("listen", &options.listen).await?;
        let advertised = advertised(options, bound)?;
        let metrics = match &options.metrics_listen {
            Some(address) => Some(bind("metrics-listen", address).await?),
            None => None,
        };
        Ok(Self {
            listener,
            bound,
            advertised,
            metrics,
        })
    }
}

async fn bind(option: &str, address: &str) -> Result<(TcpListener, SocketAddr), Fatal> {
    listen::bind(address).await.map_err(|error| {
        let message = format!("--{option} {address}: {error}");
        Fatal::message(ExitCode::CannotListen, message)
    })
}

/// What others are told. A port of zero stands for the one that was bound.
fn advertised(options: &Options, bound: SocketAddr) -> Result<String, Fatal> {
    match &options.advertise {
        Some(address) => Ok(match address.strip_suffix(":0") {
            Some(host) => format!("{host}:{}", bound.port()),
            None => address.clone(),
        }),
        None if bound.ip().is_unspecified() => Err(Fatal::message(
            ExitCode::BadOptions,
            "--advertise: is required when the node listens on all interfaces",
        )),
        // The option as written, so that a name stays a name; its port may have been zero.
        None => match options.listen.strip_suffix(":0") {
            Some(host) => Ok(format!("{host}:{}", bound.port())),
            None => Ok(options.listen.clone()),
        },
    }
}

struct Node {
    hub: Arc<Hub>,
    transport: Arc<Transport>,
    serving: JoinHandle<anyhow::Result<()>>,
    /// Until it was used.
    hang_up: Option<oneshot::Sender<()>>,
    tasks: Vec<AbortHandle>,
    places: Places,
    /// What makes it impossible to go on.
    failure: oneshot::Receiver<Fatal>,
}

/// Where the node can be reached.
struct Places {
    bound: SocketAddr,
    metrics: Option<SocketAddr>,
}

impl Node {
    /// Puts the parts together and opens the doors; nobody is served but peers that ask who is here.
    fn assemble(
        options: Options,
        metrics: Arc<Metrics>,
        stores: Stores,
        doors: Doors,
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
        let places = Places {
            bound: doors.bound,
            metrics: doors.metrics.as_ref().map(|(_, bound)| *bound),
        };
        let (fail, failure) = oneshot::channel();
        let hub = Arc::new(Hub::new(options, doors.advertised, identity, metrics, fail));
        announce(&hub, &places, content);
        let transport = Arc::new(Transport::new(Arc::clone(&hub)));
        let (hang_up, told) = oneshot::channel::<()>();
        let serving = tokio::spawn({
            let (hub, transport, disk) = (Arc::clone(&hub), Arc::clone(&transport), disk.clone());
            async move {
                let stop = async {
                    // A dropped sender means the same.
                    let _ = told.await;
                };
                grpc::serve(hub, transport, disk, doors.listener, stop).await
            }
        });
        let mut tasks = Vec::new();
        if let Some((listener, _)) = doors.metrics {
            tasks.push(
                tokio::spawn(probes::scrape::serve(Arc::clone(&hub), listener)).abort_handle(),
            );
        }
        let node = Self {
            hub,
            transport,
            serving,
            hang_up: Some(hang_up),
            tasks,
            places,
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

    /// Finds the group and starts the replica. `None` if a signal came first.
    async fn begin(&self, stores: Started, signals: &mut Signals) -> Result<Option<Ended>, Fatal> {
        let Started {
            mut log,
            mut state,
            disk,
            content,
        } = stores;
        let hub = &self.hub;
        if content != Content::Log {
            let beginning = tokio::select! {
                beginning = bootstrap::begin(hub, &self.transport) => beginning?,
                () = signals.any() => return Ok(None),
            };
            if let Beginning::First(first) = beginning {
                check_chosen(&hub.options.genesis, &first.genesis)?;
                let (membership, genesis) = (first.membership(), first.genesis.to_batch());
                hub.identity
                    .adopt(&first, || {
                        replica::initialise(&mut log, &mut state, &membership, genesis)
                    })
                    .map_err(not_adopted)?;
            }
        }
        let mut options = hub.options.replica.clone();
        options.address.clone_from(&hub.address);
        let seed = random::number().context("the system has no randomness")?;
        let replica = Replica::recover(
            options,
            hub.node(),
            Box::new(log),
            Box::new(state),
            Machine::new(hub.kind()),
            seed,
        )
        .map_err(not_recovered)?;
        let ended = runtime::start(replica, Arc::clone(hub), Arc::clone(&self.transport))
            .context("the replica's thread can't be started")?;
        hub.enter(Phase::Running);
        tokio::spawn(disk::watch(Arc::clone(hub), disk));
        tokio::spawn({
            let deliveries = Arc::clone(&hub.deliveries);
            async move { deliveries.give_out().await }
        });
        tokio::spawn({
            let transport = Arc::clone(&self.transport);
            async move { transport.tend().await }
        });
        if hub.kind() != GroupKind::Controller {
            tokio::spawn(watch_shards(Arc::clone(hub)));
        }
        if hub.kind() == GroupKind::Shards {
            tokio::spawn(configs::follow(Arc::clone(hub)));
            tokio::spawn(mover::drive(Arc::clone(hub)));
        }
        if let Some(path) = &hub.options.ready_file {
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
            result = &mut ended => return Err(replica_ended(result)),
            result = &mut self.serving => return Err(server_ended(result)),
            // The sender lives in the hub.
            Ok(fatal) = &mut self.failure => {
                tracing::error!("{:#}", fatal.error);
                failed = Some(fatal);
            }
        }
        let deadline = Instant::now() + self.hub.options.shutdown_timeout;
        tracing::info!("stopping");
        tokio::select! {
            result = self.stop(ended, deadline) => match failed {
                Some(fatal) => Err(fatal),
                None => result,
            },
            () = signals.any() => Err(Fatal::message(
                ExitCode::Unexpected,
                "a second signal came: stopping without finishing",
            )),
        }
    }

    /// Hands over, says goodbye, finishes, flushes. Connections take no new requests from the goodbye on, but those that were
    /// on their way are served, passed on if need be; streams go on until the node drains.
    async fn stop(mut self, ended: Ended, deadline: Instant) -> Result<(), Fatal> {
        self.hub.enter(Phase::Stopping);
        self.hand_over(deadline).await;
        if let Some(hang_up) = self.hang_up.take() {
            // The receiver is the server's; if that is gone there is nobody to tell.
            let _ = hang_up.send(());
        }
        sleep_until(deadline.min(Instant::now() + LATECOMERS)).await;
        self.hub.enter(Phase::Draining);
        self.drain(deadline).await;
        self.hub.inbox.stop();
        let result = timeout_at(deadline, ended).await;
        self.hub.deliveries.give_out_now();
        self.hub.enter(Phase::Stopped);
        self.transport.close();
        let goodbye = deadline.min(Instant::now() + GOODBYE);
        // Connections that don't end in time are cut.
        let _ = timeout_at(goodbye, self.serving).await;
        for task in self.tasks {
            task.abort();
        }
        match result {
            Ok(Ok(Ok(()))) => {
                tracing::info!("stopped");
                Ok(())
            }
            Ok(other) => Err(replica_ended(other)),
            Err(_) => {
                // Nothing is lost: what was acknowledged is in the log, and the next start replays it.
                tracing::warn!("the replica did not stop in time");
                Ok(())
            }
        }
    }

    /// Has another member lead, so that clients don't wait for an election.
    async fn hand_over(&self, deadline: Instant) {
        let view = self.hub.view();
        let leads = view.status.as_ref().is_some_and(|status| {
            status.role == Role::Leader && status.membership.voters().count() > 1
        });
        if !leads {
            return;
        }
        let half = deadline.saturating_duration_since(Instant::now()) / 2;
        // It takes a few milliseconds, or the others are gone.
        let raft = &self.hub.options.replica;
        let patience =
            Duration::from_millis(u64::from(raft.raft.election_ticks * raft.tick_ms)) * 2;
        let request = Request::TransferLeadership(None);
        match timeout(half.min(patience), self.hub.ask(request)).await {
            Ok(Ok(Ok(_))) => tracing::info!("handed leadership over"),
            Ok(Ok(Err(refusal))) => tracing::info!("leadership was not handed over: {refusal}"),
            Ok(Err(error)) => tracing::info!("leadership was not handed over: {}", error.message),
            Err(_) => tracing::info!("leadership was not handed over in time"),
        }
    }

    /// Waits for the answers to what was taken in.
    async fn drain(&self, deadline: Instant) {
        let half = deadline.saturating_duration_since(Instant::now()) / 2;
        let empty = async {
            let mut look = interval(Duration::from_millis(2));
            while self.hub.budget.used().0 > 0 {
                look.tick().await;
            }
        };
        if timeout(half, empty).await.is_err() {
            tracing::info!("some requests got no answer in time");
        }
    }

    /// Ends a node that never had a replica.
    fn abandon(self) {
        tracing::info!("stopped before it found its group");
        self.hub.enter(Phase::Stopped);
        self.serving.abort();
        for task in self.tasks {
            task.abort();
        }
    }

    /// Tells tools that wait for it where this node is.
    fn write_ready(&self, path: &Path) -> std::io::Result<()> {
        let hub = &self.hub;
        let ready = json!({
            "node_id": hub.node().0,
            "cluster_id": hub.identity.cluster().map(|cluster| cluster.to_string()),
            "gid": hub.identity.gid().0,
            "listen": self.places.bound.to_string(),
            "advertise": hub.address,
            "metrics": self.places.metrics.map(|metrics| metrics.to_string()),
            "pid": std::process::id(),
        });
        // A reader sees all of it or nothing.
        let temporary = path.with_extension("new");
        fs::write(&temporary, format!("{ready}\n"))?;
        fs::rename(&temporary, path)
    }
}

/// The stores on their way into the replica.
struct Started {
    log: storage::RocksLog,
    state: storage::RocksState,
    disk: Disk,
    content: Content,
}

/// The one line on standard output.
fn announce(hub: &Hub, places: &Places, content: Content) {
    let directory = match content {
        Content::Empty => "empty",
        Content::Unfinished => "unfinished",
        Content::Log => "member",
    };
    let metrics = places
        .metrics
        .map_or_else(|| "off".to_owned(), |metrics| metrics.to_string());
    let line = format!(
        "shardkv-node {} node={} cluster={} gid={} listen={} advertise={} metrics={metrics} directory={directory}",
        env!("CARGO_PKG_VERSION"),
        hub.node(),
        hub.identity.name(),
        hub.identity.gid().0,
        places.bound,
        hub.address,
    );
    // Nobody may be reading.
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    let peers = bootstrap::initial_peers(hub);
    if !peers.contains(&hub.address) {
        tracing::warn!(
            address = hub.address,
            "this node's address is not among --peers: it will never begin a group, only join one"
        );
    }
}

fn not_adopted(error: AdoptError) -> Fatal {
    let code = match &error {
        AdoptError::Bind(storage::BindError::Store(_)) | AdoptError::File(_) => {
            ExitCode::DiskFailed
        }
        AdoptError::Bind(_) => ExitCode::WrongIdentity,
        AdoptError::Store(StoreError::Damaged(_)) => ExitCode::Damaged,
        AdoptError::Store(_) => ExitCode::DiskFailed,
    };
    Fatal::new(code, error)
}

fn not_recovered(error: replica::RecoverError) -> Fatal {
    match error {
        replica::RecoverError::Store(error) => {
            let fatal = disk::store_error(error);
            let advice = "this node refuses to vote. Keep the disk for inspection, and start the node with an \
                          empty directory: it then rejoins as a new member";
            match fatal.code {
                ExitCode::Damaged => Fatal::new(fatal.code, fatal.error.context(advice)),
                _ => fatal,
            }
        }
        replica::RecoverError::Options(error) => Fatal::new(ExitCode::BadOptions, error),
    }
}

/// What ended the replica's thread.
fn replica_ended(result: Result<Result<(), StoreError>, oneshot::error::RecvError>) -> Fatal {
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
