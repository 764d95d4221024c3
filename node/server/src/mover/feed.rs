//! Fetches configurations for the mover. A watch of a controller is kept from one fetch to the next.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shardkv::mover::Answer;
use tokio::time::timeout;
use types::{ConfigNum, Gid};

use crate::configs::follow::{Feed, FeedError, WatchMessage};
use crate::forward::Forwarder;
use crate::routing::Strangers;

/// The reason why no configuration was fetched. Another controller may answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("the controller is silent")]
    Silent,
    #[error(transparent)]
    Feed(#[from] FeedError),
    #[error(transparent)]
    Strangers(#[from] Strangers),
}

/// Fetches from one controller at a time.
pub(crate) struct Fetcher {
    forwarder: Arc<Forwarder>,
    /// The maximum time that a controller may take to accept a watch.
    patience: Duration,
    kept: Mutex<Option<Kept>>,
}

/// A watch that has sent everything up to a configuration.
struct Kept {
    feed: Feed,
    address: String,
    last: ConfigNum,
}

impl Fetcher {
    pub(crate) fn new(forwarder: Arc<Forwarder>, patience: Duration) -> Self {
        Self {
            forwarder,
            patience,
            kept: Mutex::new(None),
        }
    }

    /// Drops the watch.
    pub(crate) fn forget(&self) {
        *self.lock() = None;
    }

    /// Returns the configurations after `after`. The first fetch of a watch returns at once, with or without changes; later
    /// fetches return when there are changes, or after `wait`.
    pub(crate) async fn fetch(
        &self,
        address: &str,
        group: (Gid, bool),
        after: ConfigNum,
        wait: Duration,
    ) -> Result<Answer, FetchError> {
        let kept = self.lock().take();
        let kept = kept.filter(|kept| kept.last == after && kept.address == address);
        let is_new = kept.is_none();
        let mut kept = if let Some(kept) = kept {
            kept
        } else {
            let channels = &self.forwarder.channels;
            Kept {
                feed: Feed::open(channels, self.patience, address, after, group).await?,
                address: address.to_owned(),
                last: after,
            }
        };
        let message = kept.next(is_new, wait).await?;
        self.forwarder.routing.check_controllers(message.cluster)?;
        *self.lock() = Some(kept);
        Ok(Answer::Configs {
            controller: message.cluster,
            shards: message.shards,
            settled: message.settled,
            held: message.held,
            full: message.full,
            deltas: message.deltas,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Option<Kept>> {
        // No change under this lock is ever half done.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    async fn next(&mut self, at_once: bool, wait: Duration) -> Result<WatchMessage, FetchError> {
        match timeout(wait, self.feed.next()).await {
            Ok(Ok(message)) => {
                let last = message.deltas.last().map(|delta| delta.num);
                if let Some(num) = last.or(message.full.as_ref().map(types::ShardConfig::num)) {
                    self.last = num;
                }
                Ok(message)
            }
            Ok(Err(error)) => Err(error.into()),
            Err(_) if at_once => Err(FetchError::Silent),
            Err(_) => Ok(self.feed.unchanged()),
        }
    }
}
