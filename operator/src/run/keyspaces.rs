//! Watches the resources of keyspaces, and reconciles each in rounds.
//!
//! Their rounds have permits of their own, so that many keyspaces don't hold up the rounds of clusters.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _, future};
use kube::ResourceExt as _;
use kube::runtime::controller::Action;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};
use tracing::Instrument as _;

use super::{MAX_ROUND, scopes};
use crate::crd::{
    ClusterRef, CompactionSpec, DeletionPolicy, ShardKvKeyspace, ShardKvKeyspaceSpec,
};
use crate::metrics::Outcome;
use crate::reconcile::{Context, forget_keyspace, reconcile_keyspace};
use crate::store::KeyspaceStore;
use crate::watches::{self, SeenKeyspace};

/// Watches keyspaces' resources and reconciles each in rounds, until `stop` is true or its sender is dropped. Running rounds finish first.
pub async fn watch_and_reconcile_keyspaces<S: KeyspaceStore>(
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
            closing.close();
        };
        let forgetful = Arc::clone(&context);
        let gone = move |seen: &SeenKeyspace| forget_keyspace(&identity(seen), &forgetful);
        let (controller, known) =
            watches::keyspaces(&context.client, namespace, &context.metrics, gone);
        controller
            .graceful_shutdown_on(stopped)
            .run(
                move |seen, context| {
                    let (permits, known) = (Arc::clone(&permits), known.len());
                    async move {
                        Ok(match permits.acquire().await {
                            Ok(_permit) => reconcile_once(&seen, &context, known).await,
                            Err(_) => Action::await_change(),
                        })
                    }
                },
                |_, never: &Infallible, _| match *never {},
                Arc::clone(&context),
            )
            // Ignores the error for a keyspace that was deleted before its round.
            .for_each(async |_| ())
    });
    future::join_all(watched).await;
}

/// Runs one round for one keyspace. Returns the time of the next round even after a timeout or a panic.
async fn reconcile_once<S: KeyspaceStore>(
    seen: &SeenKeyspace,
    context: &Context<S>,
    known: usize,
) -> Action {
    let (namespace, name) = (seen.namespace().unwrap_or_default(), seen.name_any());
    let span = tracing::info_span!("round", namespace, keyspace = name);
    let begun = Instant::now();
    let resource = identity(seen);
    let work = timeout(MAX_ROUND, reconcile_keyspace(&resource, context, known)).instrument(span);
    let outcome = match AssertUnwindSafe(work).catch_unwind().await {
        Ok(Ok(action)) => return action,
        Ok(Err(_)) => Outcome::TimedOut,
        // The panic hook has logged the panic. Other keyspaces go on.
        Err(_) => Outcome::Panicked,
    };
    context.metrics.round_ended(outcome, begun.elapsed());
    tracing::error!(
        namespace,
        keyspace = name,
        ?outcome,
        "the round was aborted; the next starts in a minute"
    );
    Action::requeue(Duration::from_mins(1))
}

/// Returns the resource with its metadata only: a round uses only its identity, and reads the rest from the API server.
fn identity(seen: &SeenKeyspace) -> ShardKvKeyspace {
    ShardKvKeyspace {
        metadata: seen.metadata.clone(),
        spec: ShardKvKeyspaceSpec {
            cluster_ref: ClusterRef {
                name: String::new(),
                namespace: None,
            },
            quota: String::new(),
            compaction: CompactionSpec::default(),
            deletion_policy: DeletionPolicy::default(),
        },
        status: None,
    }
}
