//! Fetches configurations for the mover. A watch of the controllers is kept from one fetch to the next.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shardkv::ActionOutcome;
use tokio::time::{Instant, timeout_at};
use types::{ConfigNum, Gid, NodeId};

use crate::configs::follow::{Feed, FeedError, WatchMessage, first_turn};
use crate::forward::Forwarder;

/// The maximum time that a fetch waits for a message.
const PATIENCE: Duration = Duration::from_secs(20);

/// The reason why no configuration was fetched. The mover tries again after a pause, at the next controller.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("no controllers are configured")]
    NoControllers,
    #[error("the controllers are silent")]
    Silent,
    #[error(transparent)]
    Feed(#[from] FeedError),
}

/// The group that the mover works for.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) node: NodeId,
    pub(crate) gid: Gid,
    pub(crate) controllers: Vec<String>,
    /// The maximum time that one step waits for another group.
    pub(crate) timeout: Duration,
}

/// Fetches from one controller, and from the next one after a failure.
pub(crate) struct Fetcher {
    forwarder: Arc<Forwarder>,
    controllers: Vec<String>,
    gid: Gid,
    /// The maximum time that a controller may take to accept a watch.
    patience: Duration,
    state: Mutex<State>,
}

struct State {
    kept: Option<Kept>,
    /// The number of failed watches. It selects the next controller.
    failed: usize,
}

/// A watch that has sent everything up to a configuration.
struct Kept {
    feed: Feed,
    last: ConfigNum,
}

impl Fetcher {
    pub(crate) fn new(forwarder: Arc<Forwarder>, group: &Group) -> Self {
        let state = State {
            kept: None,
            failed: first_turn(group.node, &group.controllers),
        };
        Self {
            forwarder,
            controllers: group.controllers.clone(),
            gid: group.gid,
            patience: group.timeout,
            state: Mutex::new(state),
        }
    }

    /// Drops the watch.
    pub(crate) fn forget(&self) {
        self.lock().kept = None;
    }

    /// Returns the configurations after `after`. The first fetch of a watch returns at once, with or without changes; later
    /// fetches return when there are changes.
    pub(crate) async fn fetch(&self, after: ConfigNum) -> Result<ActionOutcome, FetchError> {
        let kept = self.lock().kept.take();
        let kept = kept.filter(|kept| kept.last == after);
        let is_new = kept.is_none();
        let result = async {
            let mut kept = match kept {
                Some(kept) => kept,
                None => self.open(after).await?,
            };
            let message = next(&mut kept, is_new).await?;
            Ok::<_, FetchError>((kept, message))
        };
        match result.await {
            Ok((kept, message)) => {
                self.lock().kept = Some(kept);
                Ok(ActionOutcome::Configs {
                    controller: message.cluster,
                    shards: message.shards,
                    full: message.full,
                    deltas: message.deltas,
                })
            }
            Err(why) => {
                self.lock().failed += 1;
                Err(why)
            }
        }
    }

    async fn open(&self, after: ConfigNum) -> Result<Kept, FetchError> {
        let controllers = &self.controllers;
        let turn = self.lock().failed.checked_rem(controllers.len());
        let Some(address) = turn.and_then(|turn| controllers.get(turn)) else {
            return Err(FetchError::NoControllers);
        };
        let channels = &self.forwarder.channels;
        let feed = Feed::open(channels, self.patience, address, after, self.gid).await?;
        Ok(Kept { feed, last: after })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No change under this lock is ever half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn next(kept: &mut Kept, at_once: bool) -> Result<WatchMessage, FetchError> {
    let deadline = Instant::now() + PATIENCE;
    match timeout_at(deadline, kept.feed.next()).await {
        Ok(Ok(message)) => {
            let last = message.deltas.last().map(|delta| delta.num);
            if let Some(num) = last.or(message.full.as_ref().map(types::ShardConfig::num)) {
                kept.last = num;
            }
            Ok(message)
        }
        Ok(Err(error)) => Err(error.into()),
        Err(_) if at_once => Err(FetchError::Silent),
        Err(_) => Ok(kept.feed.unchanged()),
    }
}
