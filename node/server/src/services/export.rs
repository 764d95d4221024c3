//! `Kv.Export`: one shard as of one moment.
//!
//! The state machine gives a view that stays as it is while writes go on. Its pages are read off the replica's thread, each
//! when the one before was fetched, so that a slow client holds a view and no thread. How many views are held is bounded.

use std::sync::Arc;

use api::errors;
use api::v1::{ErrorDetail, ExportRequest};
use replica::View;
use shardkv::{GroupKind, Query, Response as Outcome, user_key};
use tokio::sync::OwnedSemaphorePermit;
use types::ShardId;

use super::pages::{PageSender, Pages, pages};
use super::scan::{check_bounds, relay, response};
use crate::convert::kv;
use crate::forward::{self, is_elsewhere};
use crate::hub::Hub;

/// Starts an export, here or where the shard is.
pub(crate) async fn open(
    hub: &Arc<Hub>,
    request: ExportRequest,
    forbidden: bool,
) -> Result<Pages, ErrorDetail> {
    check_bounds(&request.start, &request.end)?;
    let Ok(place) = Arc::clone(&hub.exports).try_acquire_owned() else {
        let limit = hub.options.limits.max_exports as u64;
        return Err(errors::overloaded("exports", limit, 1_000));
    };
    let view = if hub.kind() == GroupKind::Controller {
        Err(kv::elsewhere(hub))
    } else {
        take(hub, &request).await
    };
    let (pages, stream) = pages();
    match view {
        Ok(view) => drop(tokio::spawn(send(Arc::clone(hub), view, pages, place))),
        Err(error) if is_elsewhere(&error) && !forbidden => {
            let from = forward::export(hub, request).await?;
            let hub = Arc::clone(hub);
            tokio::spawn(async move {
                relay(&hub, from, pages).await;
                drop(place);
            });
        }
        Err(error) => return Err(error),
    }
    Ok(stream)
}

async fn take(hub: &Hub, request: &ExportRequest) -> Result<View, ErrorDetail> {
    let query = Query::Export {
        shard: ShardId(request.shard),
        start: request.start.clone(),
        end: request.end.clone(),
    };
    let result = hub.ask(kv::read(query)).await?;
    match kv::outcome(result, |node| hub.address_or_empty(node))? {
        Outcome::View(view) => Ok(view),
        _ => Err(kv::mismatch()),
    }
}

async fn send(hub: Arc<Hub>, view: View, pages: PageSender, _place: OwnedSemaphorePermit) {
    loop {
        // Room first, so that a page is read only when it can be sent.
        let Some(room) = pages.room().await else {
            return;
        };
        let view = view.clone();
        let error = match tokio::task::spawn_blocking(move || view.next_page()).await {
            Ok(Ok(Some(page))) => {
                let pairs = page.into_iter();
                let pairs = pairs.map(|(stored, value)| (user_key(stored), value));
                room.send(response(pairs.collect(), false));
                continue;
            }
            Ok(Ok(None)) => {
                drop(room);
                return pages.end().await;
            }
            Ok(Err(error)) => broken(&error),
            Err(error) => broken(&error),
        };
        drop(room);
        return pages.fail(hub.reject(&error)).await;
    }
}

fn broken(error: &dyn std::fmt::Display) -> ErrorDetail {
    errors::unavailable(format!("the export broke off: {error}"), 1_000)
}
