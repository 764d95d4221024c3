//! Moves shards while this node leads its group: passes the state machine's ownership to the [`Mover`], carries out its
//! actions, and reports their outcomes to it.
//!
//! The mover decides what to do and when to retry. This module holds only clocks, connections and timeouts.

mod actions;
mod feed;

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use raft::Role;
use shardkv::{Action, ActionId, ActionOutcome, Mover, MoverOptions, Ownership};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::exit::{ExitCode, Fatal};
use crate::forward::Forwarder;
use crate::lifecycle::{Lifecycle, View};
use crate::metrics::Metrics;
use crate::replica_handle::ReplicaHandle;
use crate::routing::Routing;
use actions::Actions;
pub(crate) use feed::Group;

/// The mover of a node's group, shared with the service that shows why a shard waits.
#[derive(Debug)]
pub(crate) struct SharedMover {
    /// `None` before the node knows its group.
    mover: std::sync::Mutex<Option<Mover>>,
    since: Instant,
}

impl Default for SharedMover {
    fn default() -> Self {
        Self {
            mover: std::sync::Mutex::new(None),
            since: Instant::now(),
        }
    }
}

impl SharedMover {
    /// Locks the mover. Returns it with the time by its clock.
    pub(crate) fn lock(&self) -> (MutexGuard<'_, Option<Mover>>, u64) {
        // A mover that panicked may be inconsistent, but it holds nothing that must survive.
        let mover = self.mover.lock().unwrap_or_else(PoisonError::into_inner);
        (mover, self.now_ms())
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// The handles that the mover's driver uses.
pub(crate) struct Handles {
    pub(crate) lifecycle: Arc<Lifecycle>,
    pub(crate) replica: Arc<ReplicaHandle>,
    pub(crate) routing: Arc<Routing>,
    pub(crate) forwarder: Arc<Forwarder>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) mover: Arc<SharedMover>,
}

/// Moves shards for as long as the future is polled.
pub(crate) async fn drive(handles: Handles, group: Group, options: MoverOptions) {
    let mut view = handles.lifecycle.watch();
    let known = view.wait_for(|view| view.genesis.is_some()).await;
    let Some(genesis) = known.ok().and_then(|view| view.genesis) else {
        return;
    };
    let shards = genesis.shards;
    let mover = Mover::new(group.gid, shards, options);
    *handles.mover.lock().0 = Some(mover);
    let driver = Driver {
        ownership: handles.routing.watch_ownership(),
        actions: Arc::new(Actions::new(
            handles.replica,
            handles.routing,
            handles.forwarder,
            Arc::clone(&handles.metrics),
            group,
        )),
        running: JoinSet::new(),
        lifecycle: handles.lifecycle,
        metrics: handles.metrics,
        mover: handles.mover,
        view,
    };
    driver.run().await;
}

struct Driver {
    lifecycle: Arc<Lifecycle>,
    metrics: Arc<Metrics>,
    mover: Arc<SharedMover>,
    view: watch::Receiver<View>,
    ownership: watch::Receiver<Arc<Ownership>>,
    actions: Arc<Actions>,
    running: JoinSet<(ActionId, ActionOutcome)>,
}

/// The result of one poll of the mover.
struct Polled {
    actions: Vec<(ActionId, Action)>,
    /// The time until the mover has work without new input.
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
            let polled = self.poll(ownership.as_ref());
            if let Some(fatal) = polled.fatal {
                let fatal = Fatal::message(ExitCode::WrongIdentity, fatal);
                return self.lifecycle.fail(fatal);
            }
            for (id, action) in polled.actions {
                Arc::clone(&self.actions).start(id, action, &mut self.running);
            }
            if !self.wait(polled.idle).await {
                return;
            }
        }
    }

    fn poll(&self, ownership: Option<&Arc<Ownership>>) -> Polled {
        let (mut mover, now) = self.mover.lock();
        let Some(mover) = mover.as_mut() else {
            return Polled {
                actions: Vec::new(),
                idle: None,
                fatal: None,
            };
        };
        let actions = mover.poll(now, ownership);
        let due = mover.next_due();
        Polled {
            actions,
            idle: due.map(|due| Duration::from_millis(due.saturating_sub(now))),
            fatal: mover.fatal().map(str::to_owned),
        }
    }

    /// Waits for work. Returns false when the node ends.
    async fn wait(&mut self, idle: Option<Duration>) -> bool {
        let due = async {
            match idle {
                Some(idle) => sleep(idle).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(ended) = self.running.join_next() => {
                // The mover has already forgotten an aborted action.
                if let Ok((id, outcome)) = ended {
                    self.report(id, outcome);
                }
            }
            changed = self.view.changed() => return changed.is_ok(),
            changed = self.ownership.changed() => return changed.is_ok(),
            () = due => {}
        }
        true
    }

    /// Reports one outcome to the mover, and all others that are there by now.
    fn report(&mut self, id: ActionId, outcome: ActionOutcome) {
        let mut ended = vec![(id, outcome)];
        while let Some(more) = self.running.try_join_next() {
            ended.extend(more.ok());
        }
        let (mut mover, _) = self.mover.lock();
        for (id, outcome) in ended {
            if let ActionOutcome::Failed(why) = &outcome {
                self.metrics.handoff.failures.inc();
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
