//! Requests about one key: answered by this node's group, or at the owner of the key.

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::v1::ErrorDetail;
use api::v1::batch_item::Request as Item;
use api::v1::batch_result::Response as ItemResponse;
use shardkv::GroupKind;

use crate::convert::kv::{self, Checks};
use crate::forward::{self, Forwarder, is_elsewhere, is_on_its_way};
use crate::lifecycle::Lifecycle;
use crate::replica_handle::ReplicaHandle;
use crate::routing::Routing;

/// The pause between attempts while a shard is on its way here. The replica's thread holds most requests until it is there.
const ON_ITS_WAY_PAUSE: Duration = Duration::from_millis(20);

/// Answers requests about one key.
pub(crate) struct Items {
    pub(crate) lifecycle: Arc<Lifecycle>,
    pub(crate) replica: Arc<ReplicaHandle>,
    pub(crate) routing: Arc<Routing>,
    pub(crate) forwarder: Arc<Forwarder>,
    pub(crate) checks: Checks,
}

/// Returns true if a refusal of this node's group doesn't end a request that may be forwarded: [`Items::follow`].
pub(crate) fn is_followed(error: &ErrorDetail) -> bool {
    is_elsewhere(error) || is_on_its_way(error)
}

impl Items {
    /// Returns the answer to a request that arrived at this time. Its time is the same wherever it waits.
    pub(crate) async fn answer(
        &self,
        forbidden: bool,
        arrived: Instant,
        item: Item,
    ) -> Result<ItemResponse, ErrorDetail> {
        if self.routing.kind() == GroupKind::Controller {
            return match (forbidden, self.routing.wrong_group()) {
                (true, error) => Err(error),
                (false, _) => forward::item(&self.forwarder, arrived, item).await,
            };
        }
        if forbidden {
            return self.ask(item).await;
        }
        // The clone shares the bytes.
        match self.ask(item.clone()).await {
            Err(error) if is_followed(&error) => self.follow(arrived, item, error, || false).await,
            answer => answer,
        }
    }

    /// Continues a request that this node's group refused with this error: at the owner of the key, or here as soon as the
    /// shard has arrived. `is_given_up` says that nobody waits for the answer any more.
    pub(crate) async fn follow(
        &self,
        arrived: Instant,
        item: Item,
        mut error: ErrorDetail,
        is_given_up: impl Fn() -> bool,
    ) -> Result<ItemResponse, ErrorDetail> {
        let deadline = self.forwarder.deadline(arrived).into_std();
        let mut waiting = None;
        loop {
            if is_elsewhere(&error) {
                drop(waiting);
                return forward::item(&self.forwarder, arrived, item).await;
            }
            let on_its_way = is_on_its_way(&error);
            // The shard is on its way here, so the call waits for it, unless too many do.
            if waiting.is_none() && on_its_way {
                waiting = self.forwarder.wait_here(forward::size(&item));
            }
            if waiting.is_none() || !on_its_way || Instant::now() >= deadline || is_given_up() {
                return Err(error);
            }
            let pause = tokio::time::sleep(ON_ITS_WAY_PAUSE);
            if self.lifecycle.unless_draining(pause).await.is_none() {
                return Err(error);
            }
            match self.ask(item.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(refused) => error = refused,
            }
        }
    }

    /// Asks this node's group.
    async fn ask(&self, item: Item) -> Result<ItemResponse, ErrorDetail> {
        let request = self.checks.item(Some(item))?;
        let result = self.replica.ask(request).await?;
        let outcome = kv::outcome(result, |node| self.replica.address_or_empty(node));
        let outcome = outcome.map_err(|error| self.forwarder.births.complete(error))?;
        kv::item_answer(outcome)
    }
}

#[cfg(test)]
mod tests;
