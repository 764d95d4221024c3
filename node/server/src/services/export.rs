//! `Kv.Export`: one shard as of one moment.
//!
//! The state machine gives a view that does not change while writes go on. Its pages are read outside of the replica's
//! thread, each one after the page before it was fetched, so that a slow client holds a view and no thread. The number of
//! views is bounded.

use std::sync::Arc;

use api::errors;
use api::v1::{ErrorDetail, ExportRequest};
use replica::View;
use shardkv::{GroupKind, Query, Response as Outcome, user_key};
use tokio::sync::OwnedSemaphorePermit;
use types::ShardId;

use super::pages::{PageSender, Pages, pages};
use super::scan::{check_bounds, relay, response};
use crate::admission::Admission;
use crate::convert::kv;
use crate::forward::{self, Forwarder, is_elsewhere};
use crate::metrics::Metrics;
use crate::replica_handle::ReplicaHandle;
use crate::routing::Routing;

/// The way on after an export that ended early. Its view is gone, and pages of another one don't belong to the same moment.
const GO_ON: &str = "begin the export of the shard anew, and drop what arrived of it";

/// Serves exports.
pub(crate) struct Exporter {
    pub(crate) replica: Arc<ReplicaHandle>,
    pub(crate) routing: Arc<Routing>,
    pub(crate) forwarder: Arc<Forwarder>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) metrics: Arc<Metrics>,
}

/// Starts an export, here or at the owner of the shard.
pub(crate) async fn open(
    exporter: &Exporter,
    request: ExportRequest,
    forbidden: bool,
) -> Result<Pages, ErrorDetail> {
    check_bounds(&request.start, &request.end)?;
    let slot = exporter.admission.export()?;
    let view = if exporter.routing.kind() == GroupKind::Controller {
        Err(exporter.routing.wrong_group())
    } else {
        take(&exporter.replica, &request).await
    };
    let (pages, stream) = pages(GO_ON);
    let metrics = Arc::clone(&exporter.metrics);
    match view {
        Ok(view) => drop(tokio::spawn(send(metrics, view, pages, slot))),
        Err(error) if is_elsewhere(&error) && !forbidden => {
            let admission = Arc::clone(&exporter.admission);
            let window = admission.relayed_window().await?;
            let from = forward::export(&exporter.forwarder, request).await?;
            tokio::spawn(async move {
                relay(&metrics, &admission.relayed_pages, (from, window), pages).await;
                drop(slot);
            });
        }
        Err(error) => return Err(error),
    }
    Ok(stream)
}

async fn take(replica: &ReplicaHandle, request: &ExportRequest) -> Result<View, ErrorDetail> {
    let query = Query::Export {
        shard: ShardId(request.shard),
        start: request.start.clone(),
        end: request.end.clone(),
    };
    let result = replica.ask(kv::read(query)).await?;
    match kv::outcome(result, |node| replica.address_or_empty(node))? {
        Outcome::View(view) => Ok(view),
        _ => Err(kv::mismatch()),
    }
}

async fn send(
    metrics: Arc<Metrics>,
    view: View,
    mut pages: PageSender,
    _slot: OwnedSemaphorePermit,
) {
    loop {
        // The request comes first, so that a page is read only when it can be sent.
        let Some(room) = pages.room().await else {
            return;
        };
        let view = view.clone();
        let error = match tokio::task::spawn_blocking(move || view.next_page()).await {
            Ok(Ok(Some(page))) => {
                let pairs = page.into_iter();
                let pairs = pairs.map(|(stored, value)| (user_key(stored), value));
                room.send(response(pairs.collect()), None);
                continue;
            }
            Ok(Ok(None)) => {
                return pages.end().await;
            }
            Ok(Err(error)) => broken(&error),
            Err(error) => broken(&error),
        };
        return pages.fail(metrics.reject(&error)).await;
    }
}

fn broken(error: &dyn std::fmt::Display) -> ErrorDetail {
    errors::unavailable(format!("the export broke off ({error}): {GO_ON}"), 1_000)
}
