//! Moves shards while this node leads its group: shows the state machine's [`Mover`] how things stand, carries out what it
//! asks for, and tells it how that went.
//!
//! What is to be done and when it is tried again is the mover's to say; here are only clocks, connections and timeouts.

mod actions;
mod feed;

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use raft::Role;
use shardkv::{Action, ActionId, ActionOutcome, Mover, Ownership};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::exit::{ExitCode, Fatal};
use crate::hub::{Hub, View};
use actions::Actions;

/// The mover of a node's group, for those who ask why a shard waits.
#[derive(Debug)]
pub(crate) struct Moving {
    /// `None` before the node knows its group.
    mover: std::sync::Mutex<Option<Mover>>,
    since: Instant,
}

impl Default for Moving {
    fn default() -> Self {
        Self {
            mover: std::sync::Mutex::new(None),
            since: Instant::now(),
        }
    }
}

impl Moving {
    /// The mover, and the time by its clock.
    pub(crate) fn lock(&self) -> (MutexGuard<'_, Option<Mover>>, u64) {
        // A mover that panicked is not believed to be whole, but it holds nothing that must survive.
        let mover = self.mover.lock().unwrap_or_else(PoisonError::into_inner);
        (mover, self.now_ms())
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Moves shards, for as long as it is polled.
pub(crate) async fn drive(hub: Arc<Hub>) {
    let mut view = hub.watch();
    let known = view.wait_for(|view| view.genesis.is_some()).await;
    let Some(genesis) = known.ok().and_then(|view| view.genesis) else {
        return;
    };
    let shards = genesis.shards;
    let mover = Mover::new(hub.identity.gid(), shards, hub.options.handoff.mover);
    *hub.moving.lock().0 = Some(mover);
    let driver = Driver {
        ownership: hub.watch_ownership(),
        actions: Arc::new(Actions::new(Arc::clone(&hub))),
        running: JoinSet::new(),
        hub,
        view,
    };
    driver.run().await;
}

struct Driver {
    hub: Arc<Hub>,
    view: watch::Receiver<View>,
    ownership: watch::Receiver<Arc<Ownership>>,
    actions: Arc<Actions>,
    running: JoinSet<(ActionId, ActionOutcome)>,
}

/// What the mover said.
struct Said {
    actions: Vec<(ActionId, Action)>,
    /// How long it has nothing to do, without news.
    idle: Option<Duration>,
    fatal: Option<String>,
}

impl Driver {
    async fn run(mut self) {
        loop {
            let leads = leads(&self.view.borrow_and_update());
            let ownership = leads.then(|| Arc::clone(&self.ownership.borrow_and_update()));
            if !leads {
                self.running.abort_all();
                self.actions.forget();
            }
            let said = self.poll(ownership.as_ref());
            if let Some(fatal) = said.fatal {
                let fatal = Fatal::message(ExitCode::WrongIdentity, fatal);
                return self.hub.fail(fatal);
            }
            for (id, action) in said.actions {
                Arc::clone(&self.actions).start(id, action, &mut self.running);
            }
            if !self.wait(said.idle).await {
                return;
            }
        }
    }

    fn poll(&self, ownership: Option<&Arc<Ownership>>) -> Said {
        let (mut mover, now) = self.hub.moving.lock();
        let Some(mover) = mover.as_mut() else {
            return Said {
                actions: Vec::new(),
                idle: None,
                fatal: None,
            };
        };
        let actions = mover.poll(now, ownership);
        let due = mover.next_due();
        Said {
            actions,
            idle: due.map(|due| Duration::from_millis(due.saturating_sub(now))),
            fatal: mover.fatal().map(str::to_owned),
        }
    }

    /// Waits for something to do. False when the node ends.
    async fn wait(&mut self, idle: Option<Duration>) -> bool {
        let due = async {
            match idle {
                Some(idle) => sleep(idle).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(ended) = self.running.join_next() => {
                // One that was cut short was forgotten by the mover.
                if let Ok((id, outcome)) = ended {
                    self.tell(id, outcome);
                }
            }
            changed = self.view.changed() => return changed.is_ok(),
            changed = self.ownership.changed() => return changed.is_ok(),
            () = due => {}
        }
        true
    }

    /// Tells the mover of one end, and of all others that are known by now.
    fn tell(&mut self, id: ActionId, outcome: ActionOutcome) {
        let mut ended = vec![(id, outcome)];
        while let Some(more) = self.running.try_join_next() {
            ended.extend(more.ok());
        }
        let (mut mover, _) = self.hub.moving.lock();
        for (id, outcome) in ended {
            if let ActionOutcome::Failed(why) = &outcome {
                self.hub.metrics.handoff.failures.inc();
                tracing::debug!("a step of a hand-off failed: {why}");
            }
            if let Some(mover) = mover.as_mut() {
                mover.ended(id, outcome);
            }
        }
    }
}

fn leads(view: &View) -> bool {
    let status = view.status.as_ref();
    status.is_some_and(|status| status.role == Role::Leader)
}
