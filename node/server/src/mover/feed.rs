//! Configurations for the mover, from a watch that is kept from one question to the next.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shardkv::ActionOutcome;
use tokio::time::{Instant, timeout_at};
use types::ConfigNum;

use crate::configs::{Feed, News, first_turn};
use crate::hub::Hub;

/// How long a question waits for news.
const PATIENCE: Duration = Duration::from_secs(20);

/// Asks controllers, one after the other when they fail.
pub(crate) struct Fetcher {
    hub: Arc<Hub>,
    state: Mutex<State>,
}

struct State {
    kept: Option<Kept>,
    /// Rises with each watch that failed: the next controller is tried.
    failed: usize,
}

/// A watch that told everything up to a configuration.
struct Kept {
    feed: Feed,
    told: ConfigNum,
}

impl Fetcher {
    pub(crate) fn new(hub: Arc<Hub>) -> Self {
        let state = State {
            kept: None,
            failed: first_turn(&hub),
        };
        Self {
            hub,
            state: Mutex::new(state),
        }
    }

    /// Lets the watch go.
    pub(crate) fn forget(&self) {
        self.lock().kept = None;
    }

    /// What follows `after`. The first answer of a watch comes at once, news or not; later ones when there are news.
    pub(crate) async fn fetch(&self, after: ConfigNum) -> Result<ActionOutcome, String> {
        let kept = self.lock().kept.take();
        let kept = kept.filter(|kept| kept.told == after);
        let is_new = kept.is_none();
        let result = async {
            let mut kept = match kept {
                Some(kept) => kept,
                None => self.open(after).await?,
            };
            let news = next(&mut kept, is_new).await?;
            Ok((kept, news))
        };
        match result.await {
            Ok((kept, news)) => {
                self.lock().kept = Some(kept);
                Ok(ActionOutcome::Configs {
                    controller: news.cluster,
                    shards: news.shards,
                    full: news.full,
                    deltas: news.deltas,
                })
            }
            Err(why) => {
                self.lock().failed += 1;
                Err(why)
            }
        }
    }

    async fn open(&self, after: ConfigNum) -> Result<Kept, String> {
        let controllers = &self.hub.options.controllers;
        let turn = self.lock().failed.checked_rem(controllers.len());
        let Some(address) = turn.and_then(|turn| controllers.get(turn)) else {
            return Err("no controllers are configured".to_owned());
        };
        let feed = Feed::open(&self.hub, address, after, self.hub.identity.gid()).await?;
        Ok(Kept { feed, told: after })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing is left half done under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn next(kept: &mut Kept, at_once: bool) -> Result<News, String> {
    let deadline = Instant::now() + PATIENCE;
    match timeout_at(deadline, kept.feed.next()).await {
        Ok(Ok(news)) => {
            let last = news.deltas.last().map(|delta| delta.num);
            if let Some(num) = last.or(news.full.as_ref().map(types::ShardConfig::num)) {
                kept.told = num;
            }
            Ok(news)
        }
        Ok(Err(why)) => Err(why),
        Err(_) if at_once => Err("the controllers are silent".to_owned()),
        Err(_) => Ok(kept.feed.nothing()),
    }
}
