//! The operator's process: acquires the Lease, watches resources, and reconciles each cluster in rounds.
//!
//! # Start of a round
//!
//! A round for a cluster starts:
//!
//! - when its resource changes in a way that may need an answer: the spec (its generation), the deletion timestamp, finalizers,
//!   labels or annotations. The operator's own writes of the status don't count, so a round doesn't start the next;
//! - when one of its StatefulSets changes in any way: the readiness of pods is recorded there;
//! - when the last round asked for it: [`Pace`] bounds the time until then. So the operator finds and repairs every other
//!   change within one idle pause.
//!
//! Rounds of keyspaces start when the resource of the keyspace changes, or when the last round asked for it.
//!
//! Changes within a short time start one round together. At most one round runs for a cluster, and at most
//! [`crate::options::RunOptions::concurrency`] for all clusters together.
//!
//! # Memory
//!
//! The watches keep the *metadata* of resources only, and nothing of StatefulSets; a round reads what it needs. So the process
//! stays small, and a resource that can't be parsed doesn't stop the operator from seeing the others.
//!
//! # End of the process
//!
//! On SIGTERM or SIGINT no round starts any more, running rounds may finish for [`FINISH`], and the Lease is released. When the
//! Lease is lost, everything stops at once and the process ends: Kubernetes starts it again, and it stands by.

mod keyspaces;

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
use crate::reconcile::{self, Context, FIELD_MANAGER, Pace, error_policy, reconcile};
use crate::store::{LiveStore, Store};
use crate::watches::{self, Seen};
pub use keyspaces::watch_and_reconcile_keyspaces;

/// Time that running rounds have to finish after a signal. Less than the 30 s that Kubernetes gives a pod.
const FINISH: Duration = Duration::from_secs(20);
/// Time limit of a round. Every call in a round has its own limit, so only a bug reaches this one.
const MAX_ROUND: Duration = Duration::from_mins(2);
/// Interval between checks of the API server.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// Time limit of one check of the API server.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);

/// Reason for the end of the process; the number is its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum End {
    /// Unexpected failure.
    Failed = 1,
    /// The options are invalid, or no cluster is configured.
    BadOptions = 2,
    /// The Lease is lost: another replica may act now.
    LeaseLost = 3,
}

/// Failure that ends the process.
#[derive(Debug)]
pub struct Stop {
    /// Exit code.
    pub end: End,
    /// Cause and remedy.
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

/// Runs the operator until a signal stops it, or it fails.
pub async fn run(options: RunOptions) -> Result<(), Stop> {
    let stop = signals()?;
    let metrics = Arc::new(Metrics::default());
    let client = api::connect(&options.cluster, &metrics).await;
    let client = client.map_err(|error| Stop::new(End::BadOptions, error))?;
    let health = Arc::new(Health::new(Arc::clone(&metrics)));
    let listener = TcpListener::bind(options.listen).await.map_err(|error| {
        let error = anyhow::Error::new(error).context(format!(
            "the operator can't listen on {}: choose another address with --listen",
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

/// Returns a channel that becomes true when SIGTERM or SIGINT arrives.
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
        // Keeps the handlers installed: a second signal has no effect. The time to finish is bounded anyway.
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

    /// Waits until the API server is ready and this replica holds the Lease. Returns none without leader election.
    async fn begin(&self) -> Option<(Elector, Held)> {
        self.wait_for_api_server().await;
        self.health.set_ready();
        let lease = &self.options.lease;
        if !lease.leader_elect {
            return None;
        }
        let namespace = lease.namespace(self.client.default_namespace());
        let client = self.client.clone();
        let mut elector = Elector::new(client, &namespace, &lease.lease_name, &self.identity);
        let report = |reason: &str| tracing::info!("standing by: {reason}");
        let held = elector.acquire(report).await;
        tracing::info!(identity = self.identity, "this replica holds the Lease");
        Some((elector, held))
    }

    /// Waits until the API server has the resource's definition and lets this operator read resources, in one of its namespaces at least.
    /// The watches of the others try again: a namespace that is deleted takes the operator's rights in it along.
    async fn wait_for_api_server(&self) {
        let mut last = String::new();
        let namespaces = self.options.namespaces();
        while let Err(error) = check_api_server(&self.client, &namespaces).await {
            let reason = error.to_string();
            if reason != last {
                tracing::warn!("waiting: {reason}");
                self.health.set_not_ready(&reason);
                last = reason;
            }
            sleep(CHECK_INTERVAL).await;
        }
    }

    /// Reconciles clusters until a signal arrives, or until `lost` completes.
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
                        tracing::warn!("running rounds were cancelled: they took longer than {FINISH:?}");
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
        let mut context = Context::new(
            self.client.clone(),
            store,
            metrics,
            reporter,
            Pace::default(),
        );
        context.domain = self.options.cluster.domain();
        let context = Arc::new(context);
        let namespaces = self.options.namespaces();
        let concurrency = self.options.concurrency;
        let stop = self.stop.clone();
        tokio::spawn(async move {
            let keyspaces = watch_and_reconcile_keyspaces(
                Arc::clone(&context),
                namespaces.clone(),
                concurrency,
                stop.clone(),
            );
            let clusters = watch_and_reconcile(context, namespaces, concurrency, stop);
            tokio::join!(clusters, keyspaces);
        })
    }
}

/// Watches resources and reconciles each cluster in rounds, until `stop` is true or its sender is dropped. Running rounds
/// finish first.
pub async fn watch_and_reconcile<S: Store>(
    context: Arc<Context<S>>,
    namespaces: Vec<String>,
    concurrency: u16,
    stop: watch::Receiver<bool>,
) {
    let permits = Arc::new(Semaphore::new(concurrency.into()));
    let watched = scopes(&namespaces).map(|namespace| {
        let (permits, closing) = (Arc::clone(&permits), Arc::clone(&permits));
        let mut stop = stop.clone();
        let stopped = async move {
            let _ = stop.wait_for(|stop| *stop).await;
            // Rounds that wait for a permit don't start any more.
            closing.close();
        };
        let forgetful = Arc::clone(&context);
        let gone = move |seen: &Seen| drop(tokio::spawn(end(seen, Arc::clone(&forgetful))));
        watches::controller(&context.client, namespace, &context.metrics, gone)
            .graceful_shutdown_on(stopped)
            .run(
                move |seen, context| with_permit(seen, context, Arc::clone(&permits)).map(Ok),
                |_, never: &Infallible, _| match *never {},
                Arc::clone(&context),
            )
            // Ignores the error for a cluster that was deleted before its round.
            .for_each(async |_| ())
    });
    future::join_all(watched).await;
}

/// Returns an error unless resources can be read, in one of the namespaces at least.
async fn check_api_server(client: &Client, namespaces: &[String]) -> Result<(), ApiServerError> {
    let first = ListParams::default().limit(1);
    let mut checked = Ok(());
    for namespace in scopes(namespaces) {
        let api = watches::api::<ShardKvCluster>(client, namespace);
        let listed = timeout(CHECK_TIMEOUT, api.list_metadata(&first)).await;
        match listed.map_err(|_| ApiServerError::NoAnswer)? {
            Ok(_) => return Ok(()),
            Err(error) => match error.into() {
                reason @ ApiServerError::Forbidden(_) => checked = Err(reason),
                reason => return Err(reason),
            },
        }
    }
    checked
}

/// Returns the namespaces to watch; `None` means all.
fn scopes(namespaces: &[String]) -> impl Iterator<Item = Option<&str>> {
    let all = namespaces.is_empty().then_some(None);
    namespaces.iter().map(|name| Some(name.as_str())).chain(all)
}

async fn with_permit<S: Store>(
    seen: Arc<Seen>,
    context: Arc<Context<S>>,
    permits: Arc<Semaphore>,
) -> Action {
    match permits.acquire().await {
        Ok(_permit) => reconcile_once(&seen, context).await,
        Err(_) => Action::await_change(),
    }
}

/// Runs one round for one cluster; see [`reconcile()`]. Returns the time of the next round even after a timeout or a panic.
async fn reconcile_once<S: Store>(seen: &Seen, context: Arc<Context<S>>) -> Action {
    let (namespace, name) = (seen.namespace().unwrap_or_default(), seen.name_any());
    let span = tracing::info_span!("round", namespace, name);
    let begun = Instant::now();
    let work = timeout(MAX_ROUND, reconcile_seen(seen, &context)).instrument(span);
    let outcome = match AssertUnwindSafe(work).catch_unwind().await {
        Ok(Ok(action)) => return action,
        Ok(Err(_)) => Outcome::TimedOut,
        // The panic hook has logged the panic. Other clusters go on.
        Err(_) => Outcome::Panicked,
    };
    context.metrics.round_ended(outcome, begun.elapsed());
    tracing::error!(
        namespace,
        name,
        ?outcome,
        "the round was aborted; the next starts in a minute"
    );
    Action::requeue(Duration::from_mins(1))
}

async fn reconcile_seen<S: Store>(seen: &Seen, context: &Arc<Context<S>>) -> Action {
    let resource = Arc::new(identity(seen));
    match reconcile(Arc::clone(&resource), Arc::clone(context)).await {
        Ok(action) => action,
        Err(error) => error_policy(resource, &error, Arc::clone(context)),
    }
}

/// Drops what is known of a deleted cluster, and returns the rest of the work.
fn end<S: Store>(seen: &Seen, context: Arc<Context<S>>) -> impl Future<Output = ()> + use<S> {
    let resource = identity(seen);
    context.forget(&seen.namespace().unwrap_or_default(), &seen.name_any());
    async move {
        let _ = timeout(MAX_ROUND, reconcile::ended(&resource, &context)).await;
    }
}

/// Returns the resource without its spec: a round uses only its identity, and reads the rest from the API server.
fn identity(seen: &Seen) -> ShardKvCluster {
    ShardKvCluster {
        metadata: seen.metadata.clone(),
        spec: ShardKvClusterSpec::default(),
        status: None,
    }
}

/// Reason why the operator can't watch yet, with the remedy. The operator retries until the reason is gone.
#[derive(Debug, thiserror::Error)]
enum ApiServerError {
    #[error("the Kubernetes API doesn't answer")]
    NoAnswer,
    #[error(
        "the definition of ShardKvCluster isn't installed: run \
        `shardkv-operator crd | kubectl apply --server-side -f -`, or install the chart"
    )]
    NoDefinition,
    #[error(
        "the operator may not read ShardKvClusters: {0}; install the roles of the chart or of deploy/operator.yaml, \
        or watch fewer namespaces with --watch-namespace"
    )]
    Forbidden(String),
    #[error(
        "the Kubernetes API rejects the credentials: {0}; check the kubeconfig or the service account"
    )]
    Unauthorized(String),
    #[error("the Kubernetes API can't be reached: {0}")]
    Unreachable(kube::Error),
}

impl From<kube::Error> for ApiServerError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.code == 404 => Self::NoDefinition,
            kube::Error::Api(status) if status.code == 403 => Self::Forbidden(status.message),
            kube::Error::Api(status) if status.code == 401 => Self::Unauthorized(status.message),
            error => Self::Unreachable(error),
        }
    }
}

fn unexpected(ended: Result<(), tokio::task::JoinError>) -> Stop {
    let reason = match ended {
        Ok(()) => "the watches have ended".to_owned(),
        Err(error) => error.to_string(),
    };
    Stop::new(
        End::Failed,
        anyhow::anyhow!("{reason}: this is a bug of the operator; please report it"),
    )
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use kube::client::Body;
    use serde_json::json;
    use tower::service_fn;

    use super::*;

    /// An API server that answers by namespace: with an empty list or a status code.
    fn server(answers: &'static [(&'static str, u16)]) -> Client {
        let answer = |request: hyper::Request<Body>| {
            let path = request.uri().path().to_owned();
            let of = answers
                .iter()
                .find(|(namespace, _)| path.contains(namespace));
            let code = of.map_or(404, |(_, code)| *code);
            let body = match code {
                200 => json!({"metadata": {}, "items": []}),
                _ => json!({"status": "Failure", "code": code, "message": "no", "reason": "no"}),
            };
            let answer = hyper::Response::builder().status(code);
            ready(answer.body(Body::from(body.to_string().into_bytes())))
        };
        Client::new(service_fn(answer), "default")
    }

    /// A namespace that is deleted takes the operator's rights in it along.
    #[tokio::test]
    async fn one_namespace_without_rights_keeps_the_operator_from_no_other() {
        let namespaces = ["gone", "there"].map(str::to_owned);
        let check = async |answers| check_api_server(&server(answers), &namespaces).await;
        assert!(check(&[("gone", 403), ("there", 200)]).await.is_ok());
        assert!(check(&[("gone", 200), ("there", 403)]).await.is_ok());
        let none = check(&[("gone", 403), ("there", 403)]).await;
        assert!(
            matches!(none, Err(ApiServerError::Forbidden(_))),
            "{none:?}"
        );
        let none = check(&[("gone", 403), ("there", 404)]).await;
        assert!(
            matches!(none, Err(ApiServerError::NoDefinition)),
            "{none:?}"
        );
    }
}
