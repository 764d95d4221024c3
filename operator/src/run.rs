//! The operator as a process: it waits for its turn, watches, and looks at each cluster in rounds.
//!
//! # When a cluster is looked at
//!
//! - when its resource changes in a way that asks for something: its spec (the generation), that it is to be deleted, its
//!   finalizers, labels or annotations. Our own writes of its status are none of these, so a round doesn't make the next;
//! - when one of its StatefulSets changes, in any way: readiness of pods is told there;
//! - when the last round said so: [`Pace`] tells how long it waits at most. So everything else that may be changed under our
//!   hands is found and mended within one idle pause.
//!
//! What happens within a moment makes one round. Of one cluster there is one round at a time, of all together
//! [`crate::options::RunOptions::concurrency`].
//!
//! # What is kept in memory
//!
//! The watches keep the *metadata* of resources only, and nothing of StatefulSets; a round reads what it needs. This keeps the
//! process small, and one resource that can't be understood from blinding the operator to all others.
//!
//! # How it ends
//!
//! On SIGTERM or SIGINT no round begins any more, those that run may finish for [`FINISH`], and the Lease is given up. When the
//! Lease is lost everything stops at once, and the process ends: Kubernetes starts it again, and it stands by.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _, future};
use kube::api::ListParams;
use kube::runtime::controller::Action;
use kube::runtime::events::Reporter;
use kube::{Client, ResourceExt as _};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tracing::Instrument as _;

use crate::api;
use crate::crd::{ShardKvCluster, ShardKvClusterSpec};
use crate::health::Health;
use crate::lease::{Elector, Held};
use crate::metrics::{Metrics, Outcome};
use crate::options::RunOptions;
use crate::reconcile::{Context, FIELD_MANAGER, Pace, error_policy, reconcile};
use crate::store::{LiveStore, Store};
use crate::watches::{self, Seen};

/// How long rounds that run may take when the process is to end. Less than the 30 s that a pod has.
const FINISH: Duration = Duration::from_secs(20);
/// A round that takes longer is given up. What it waits for is bounded in time too, so this is for what nobody thought of.
const MAX_ROUND: Duration = Duration::from_mins(2);
/// How often is looked whether what is missing is there.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How long one look may take.
const LOOK: Duration = Duration::from_secs(10);

/// How the process ends; the number is its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum End {
    /// Something unforeseen.
    Failed = 1,
    /// The options can't be used, or there is no cluster.
    BadOptions = 2,
    /// Another acts now, or may.
    LeaseLost = 3,
}

/// Why the process ends, if not because it was asked to.
#[derive(Debug)]
pub struct Stop {
    /// Which exit code.
    pub end: End,
    /// What happened, and what to do.
    pub error: anyhow::Error,
}

impl Stop {
    fn new(end: End, error: impl Into<anyhow::Error>) -> Self {
        Self {
            end,
            error: error.into(),
        }
    }
}

/// Runs until it is told to stop, or can't go on.
pub async fn run(options: RunOptions) -> Result<(), Stop> {
    let stop = signals()?;
    let metrics = Arc::new(Metrics::default());
    let client = api::connect(&options.cluster, &metrics).await;
    let client = client.map_err(|error| Stop::new(End::BadOptions, error))?;
    let health = Arc::new(Health::new(Arc::clone(&metrics)));
    let listener = TcpListener::bind(options.listen).await.map_err(|error| {
        let error = anyhow::Error::new(error).context(format!(
            "{} can't be listened on: choose another by --listen",
            options.listen
        ));
        Stop::new(End::BadOptions, error)
    })?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        listen = %options.listen,
        namespaces = ?options.namespaces(),
        "the operator starts"
    );
    tokio::spawn(probes::endpoint::serve(Arc::clone(&health), listener));
    let operator = Operator {
        identity: options.lease.identity(),
        client,
        metrics,
        health,
        options,
        stop,
    };
    operator.work().await
}

/// True as soon as the process was asked to end.
fn signals() -> Result<watch::Receiver<bool>, Stop> {
    use tokio::signal::unix::{SignalKind, signal};
    let on = |kind| signal(kind).map_err(|error| Stop::new(End::Failed, error));
    let (mut terminate, mut interrupt) =
        (on(SignalKind::terminate())?, on(SignalKind::interrupt())?);
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!("{name}: the operator finishes");
        stop.send_replace(true);
        // A second one has its usual effect no more; but what finishes is bounded in time.
        std::future::pending::<()>().await;
    });
    Ok(stopped)
}

struct Operator {
    identity: String,
    client: Client,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    options: RunOptions,
    stop: watch::Receiver<bool>,
}

impl Operator {
    async fn work(self) -> Result<(), Stop> {
        let mut stop = self.stop.clone();
        let held = tokio::select! {
            held = self.begin() => held,
            () = stop.wait_for(|stop| *stop).map(drop) => return Ok(()),
        };
        let Some((elector, mut held)) = held else {
            return self.act(std::future::pending()).await;
        };
        let ended = {
            let lost = async {
                let lost = elector.hold(&mut held).await;
                Stop::new(End::LeaseLost, lost)
            };
            self.act(lost).await
        };
        if !matches!(&ended, Err(stop) if stop.end == End::LeaseLost) {
            elector.release(held).await;
        }
        ended
    }

    /// Waits until all is there that is needed, and for the turn of this replica.
    async fn begin(&self) -> Option<(Elector, Held)> {
        self.prepared().await;
        self.health.ready();
        let lease = &self.options.lease;
        if !lease.leader_elect {
            return None;
        }
        let namespace = lease.namespace(self.client.default_namespace());
        let client = self.client.clone();
        let mut elector = Elector::new(client, &namespace, &lease.lease_name, &self.identity);
        let told = |why: &str| tracing::info!("standing by: {why}");
        let held = elector.acquire(told).await;
        tracing::info!(identity = self.identity, "the Lease is ours");
        Some((elector, held))
    }

    /// Waits until the resource is known to the cluster and may be read.
    async fn prepared(&self) {
        let mut last = String::new();
        while let Err(why) = self.check_api_server().await {
            if why != last {
                tracing::warn!("waiting: {why}");
                self.health.waits(&why);
                last = why;
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    async fn check_api_server(&self) -> Result<(), String> {
        let few = ListParams::default().limit(1);
        for namespace in scopes(&self.options.namespaces()) {
            let api = watches::api::<ShardKvCluster>(&self.client, namespace);
            match timeout(LOOK, api.list_metadata(&few)).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(missing(&error)),
                Err(_) => return Err("the Kubernetes API doesn't answer".to_owned()),
            }
        }
        Ok(())
    }

    /// Looks after clusters until it is asked to stop, or `lost` says that it must.
    async fn act(&self, lost: impl Future<Output = Stop>) -> Result<(), Stop> {
        self.metrics.leads(true);
        let mut working = self.controller();
        let mut stop = self.stop.clone();
        tokio::pin!(lost);
        let ended = tokio::select! {
            why = &mut lost => Err(why),
            ended = &mut working => if *self.stop.borrow() { Ok(()) } else { Err(unexpected(ended)) },
            () = stop.wait_for(|stop| *stop).map(drop) => tokio::select! {
                why = &mut lost => Err(why),
                finished = timeout(FINISH, &mut working) => {
                    if finished.is_err() {
                        tracing::warn!("rounds were cut short: they took longer than {FINISH:?}");
                    }
                    Ok(())
                }
            },
        };
        working.abort();
        self.metrics.leads(false);
        ended
    }

    fn controller(&self) -> JoinHandle<()> {
        let store = LiveStore::new(Arc::clone(&self.metrics));
        let reporter = Reporter {
            controller: FIELD_MANAGER.to_owned(),
            instance: Some(self.identity.clone()),
        };
        let metrics = Arc::clone(&self.metrics);
        let context = Context::new(
            self.client.clone(),
            store,
            metrics,
            reporter,
            Pace::default(),
        );
        let namespaces = self.options.namespaces();
        let concurrency = self.options.concurrency;
        let stop = self.stop.clone();
        tokio::spawn(watch_and_reconcile(
            Arc::new(context),
            namespaces,
            concurrency,
            stop,
        ))
    }
}

/// Watches, and looks at each cluster in rounds, until `stop` is true, or nobody can make it so. Rounds that run by then are
/// finished.
pub async fn watch_and_reconcile<S: Store>(
    context: Arc<Context<S>>,
    namespaces: Vec<String>,
    concurrency: u16,
    stop: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(concurrency.into()));
    let watched = scopes(&namespaces).map(|namespace| {
        let (places, no_more) = (Arc::clone(&places), Arc::clone(&places));
        let mut stop = stop.clone();
        let stopped = async move {
            let _ = stop.wait_for(|stop| *stop).await;
            // Those that wait for a place don't begin any more.
            no_more.close();
        };
        watches::controller(&context.client, namespace, &context.metrics)
            .graceful_shutdown_on(stopped)
            .run(
                move |seen, context| in_turn(seen, context, Arc::clone(&places)).map(Ok),
                |_, never: &Infallible, _| match *never {},
                Arc::clone(&context),
            )
            // A cluster that is gone by the time of its round is no news.
            .for_each(async |_| ())
    });
    future::join_all(watched).await;
}

/// The namespaces to watch; `None` is all.
fn scopes(namespaces: &[String]) -> impl Iterator<Item = Option<&str>> {
    let all = namespaces.is_empty().then_some(None);
    namespaces.iter().map(|name| Some(name.as_str())).chain(all)
}

async fn in_turn<S: Store>(
    seen: Arc<Seen>,
    context: Arc<Context<S>>,
    places: Arc<Semaphore>,
) -> Action {
    match places.acquire().await {
        Ok(_place) => reconcile_once(&seen, context).await,
        Err(_) => Action::await_change(),
    }
}

/// One round for one cluster; see [`reconcile`]. It always says when the next is due, whatever happens in it.
async fn reconcile_once<S: Store>(seen: &Seen, context: Arc<Context<S>>) -> Action {
    let (namespace, name) = (seen.namespace().unwrap_or_default(), seen.name_any());
    let span = tracing::info_span!("round", namespace, name);
    let begun = Instant::now();
    let work = timeout(MAX_ROUND, reconcile_seen(seen, &context)).instrument(span);
    let cut = match AssertUnwindSafe(work).catch_unwind().await {
        Ok(Ok(action)) => return action,
        Ok(Err(_)) => Outcome::TimedOut,
        // The panic itself is a log line already. Other clusters go on.
        Err(_) => Outcome::Panicked,
    };
    context.metrics.round_ended(cut, begun.elapsed());
    tracing::error!(namespace, name, outcome = ?cut, "a round was given up; the next follows in a minute");
    Action::requeue(Duration::from_mins(1))
}

async fn reconcile_seen<S: Store>(seen: &Seen, context: &Arc<Context<S>>) -> Action {
    // Which resource it is is all that a round takes from here.
    let resource = Arc::new(ShardKvCluster {
        metadata: seen.metadata.clone(),
        spec: ShardKvClusterSpec::default(),
        status: None,
    });
    match reconcile(Arc::clone(&resource), Arc::clone(context)).await {
        Ok(action) => action,
        Err(error) => error_policy(resource, &error, Arc::clone(context)),
    }
}

/// What stands in the way of watching, and what to do about it.
fn missing(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.code == 404 => {
            "the definition of ShardKvCluster isn't installed: run \
            `shardkv-operator crd | kubectl apply --server-side -f -`, or install the chart"
                .to_owned()
        }
        kube::Error::Api(status) if status.code == 403 => format!(
            "no right to read ShardKvClusters: {}; install the roles of the chart or of deploy/operator.yaml, \
            or look at fewer namespaces by --watch-namespace",
            status.message
        ),
        kube::Error::Api(status) if status.code == 401 => format!(
            "the Kubernetes API doesn't know these credentials: {}; check the kubeconfig or the service account",
            status.message
        ),
        error => format!("the Kubernetes API can't be reached: {error}"),
    }
}

fn unexpected(ended: Result<(), tokio::task::JoinError>) -> Stop {
    let why = match ended {
        Ok(()) => "the watches have ended".to_owned(),
        Err(error) => error.to_string(),
    };
    Stop::new(
        End::Failed,
        anyhow::anyhow!("{why}: that is a bug of the operator; please report it"),
    )
}
