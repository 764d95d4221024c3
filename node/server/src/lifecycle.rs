//! The node's lifecycle: its phase, the status that its replica published last, and the error that ends the process.

use std::sync::{Arc, Mutex, PoisonError};

use api::errors;
use api::v1::ErrorDetail;
use raft::Role;
use replica::Status;
use shardkv::Genesis;
use tokio::sync::{oneshot, watch};
use types::NodeId;

use crate::exit::Fatal;

/// The phases of a node's life, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// The node looks for its group, or forms it.
    Starting,
    /// The replica runs.
    Running,
    /// The node hands leadership over. The replica still answers, so that clients learn the new leader.
    Stopping,
    /// The node takes no new work and finishes the work that it has.
    Draining,
    /// The replica has ended.
    Stopped,
}

/// The node's phase and the latest published status of its replica.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) phase: Phase,
    /// The replica's status; `None` before the replica runs.
    pub(crate) status: Option<Arc<Status>>,
    /// The values that the group was created with; `None` before this node knows them.
    pub(crate) genesis: Option<Genesis>,
}

impl View {
    /// Returns true if the node knows a leader of its group.
    fn has_leader(&self) -> bool {
        let status = self.status.as_ref();
        status.is_some_and(|status| status.role == Role::Leader || status.leader.is_some())
    }

    /// Returns true if the node is a member of a group that has a leader at this moment.
    pub(crate) fn is_serving(&self) -> bool {
        let Some(status) = &self.status else {
            return false;
        };
        let member = status.membership.get(status.node).is_some();
        self.phase == Phase::Running && member && self.has_leader()
    }
}

/// Holds the phase and the status of one node, and tells tasks about their changes.
pub(crate) struct Lifecycle {
    node: NodeId,
    view: watch::Sender<View>,
    /// Channels beside the view, because all streams wait for them and must not wake at each change of the view.
    draining: watch::Sender<bool>,
    has_leader: watch::Sender<bool>,
    stopped: watch::Sender<bool>,
    /// Takes the first error that ends the process.
    failure: Mutex<Option<oneshot::Sender<Fatal>>>,
}

impl Lifecycle {
    /// Creates the lifecycle of a starting node. `failure` gets the first error that is passed to [`Lifecycle::fail`].
    pub(crate) fn new(node: NodeId, failure: oneshot::Sender<Fatal>) -> Self {
        let view = View {
            phase: Phase::Starting,
            status: None,
            genesis: None,
        };
        Self {
            node,
            view: watch::Sender::new(view),
            draining: watch::Sender::new(false),
            has_leader: watch::Sender::new(false),
            stopped: watch::Sender::new(false),
            failure: Mutex::new(Some(failure)),
        }
    }

    /// Returns the latest view.
    pub(crate) fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// Calls `read` with the latest view, without cloning it.
    pub(crate) fn with_view<T>(&self, read: impl FnOnce(&View) -> T) -> T {
        read(&self.view.borrow())
    }

    /// Subscribes to changes of the view.
    pub(crate) fn watch(&self) -> watch::Receiver<View> {
        self.view.subscribe()
    }

    /// Enters a phase. A node never goes back to an earlier phase.
    pub(crate) fn enter(&self, phase: Phase) {
        self.view.send_if_modified(|view| {
            let changes = view.phase < phase;
            if changes {
                view.phase = phase;
            }
            changes
        });
        if phase >= Phase::Draining {
            self.draining.send_replace(true);
        }
        if phase == Phase::Stopped {
            self.stopped.send_replace(true);
        }
    }

    /// Stores the replica's latest status.
    pub(crate) fn publish(&self, status: Arc<Status>, genesis: Option<Genesis>) {
        self.view.send_if_modified(|view| {
            let changes = view.status.as_ref() != Some(&status) || view.genesis != genesis;
            if changes {
                view.status = Some(status);
                view.genesis = genesis;
            }
            changes
        });
        let has_leader = self.view.borrow().has_leader();
        let changes = |has: &mut bool| std::mem::replace(has, has_leader) != has_leader;
        self.has_leader.send_if_modified(changes);
    }

    /// Subscribes to whether the node knows a leader of its group.
    pub(crate) fn watch_leader(&self) -> watch::Receiver<bool> {
        self.has_leader.subscribe()
    }

    /// Ends the process in order with this error. Only the first error counts.
    pub(crate) fn fail(&self, fatal: Fatal) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(failure) = failure.take() {
            // The receiver is gone only if the process ends anyway.
            let _ = failure.send(fatal);
        }
    }

    /// Resolves when the node takes no new work.
    pub(crate) async fn draining(&self) {
        // The sender lives in `self`, so waiting can't fail.
        let _ = self
            .draining
            .subscribe()
            .wait_for(|draining| *draining)
            .await;
    }

    /// Waits, unless the node takes no new work: then it drops `wait` and returns `None`.
    pub(crate) async fn unless_draining<T>(&self, wait: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.draining() => None,
            done = wait => Some(done),
        }
    }

    /// Resolves when the replica has ended.
    pub(crate) async fn stopped(&self) {
        // The sender lives in `self`, so waiting can't fail.
        let _ = self.stopped.subscribe().wait_for(|stopped| *stopped).await;
    }

    /// Refuses clients' work before the replica runs and while the node drains.
    pub(crate) fn check_running(&self) -> Result<(), ErrorDetail> {
        match self.view.borrow().phase {
            Phase::Running | Phase::Stopping => Ok(()),
            Phase::Starting => Err(errors::unavailable("the node is starting", 100)),
            Phase::Draining | Phase::Stopped => Err(self.stopping_error()),
        }
    }

    /// Refuses peers' streams before the replica runs and after it ended. A draining node accepts them, because
    /// handing leadership over needs them.
    pub(crate) fn check_accepts_peers(&self) -> Result<(), ErrorDetail> {
        match self.view.borrow().phase {
            Phase::Running | Phase::Stopping | Phase::Draining => Ok(()),
            Phase::Starting => Err(errors::unavailable("the node is starting", 100)),
            Phase::Stopped => Err(self.stopping_error()),
        }
    }

    /// Returns the error for calls that arrive while the node stops.
    pub(crate) fn stopping_error(&self) -> ErrorDetail {
        errors::unavailable(format!("node {} is stopping", self.node), 100)
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use futures::FutureExt as _;

    use raft::{EntryId, Index, Membership, Term};
    use replica::StateComparison;
    use types::LogTime;

    use super::*;

    fn status(leader: Option<u64>, commit: u64) -> Arc<Status> {
        Arc::new(Status {
            node: NodeId(1),
            role: Role::Follower,
            term: Term(2),
            leader: leader.map(NodeId),
            commit_index: Index(commit),
            last_applied: Index(commit),
            applied_term: Term(2),
            group_commit: None,
            compacted: EntryId::default(),
            last_index: Index(commit),
            membership: Membership::nobody(),
            progress: Vec::new(),
            pending_requests: 0,
            elections_started: 0,
            snapshots: (0, 0, 0),
            kept_log_bytes: 0,
            disk_low: false,
            log_time: LogTime(0),
            feature_level: 0,
            comparison: StateComparison::default(),
            lease_disagreement: Vec::new(),
        })
    }

    #[tokio::test]
    async fn those_that_need_a_leader_wake_only_when_it_is_lost_or_found() {
        let (failure, _failed) = oneshot::channel();
        let lifecycle = Lifecycle::new(NodeId(1), failure);
        let mut leader = lifecycle.watch_leader();
        let mut told = |of: Option<u64>, commit| {
            lifecycle.publish(status(of, commit), None);
            let woken = leader.has_changed().unwrap();
            (woken, *leader.borrow_and_update())
        };
        assert_eq!(told(None, 1), (false, false));
        assert_eq!(told(Some(2), 1), (true, true));
        assert_eq!(told(Some(2), 2), (false, true));
        assert_eq!(told(Some(3), 3), (false, true));
        assert_eq!(told(None, 3), (true, false));
    }

    #[tokio::test]
    async fn a_wait_ends_when_the_node_drains() {
        let (failure, _failed) = oneshot::channel();
        let lifecycle = Lifecycle::new(NodeId(1), failure);
        lifecycle.enter(Phase::Stopping);
        assert_eq!(lifecycle.unless_draining(ready(7)).await, Some(7));
        let mut waits = Box::pin(lifecycle.unless_draining(pending::<()>()));
        assert!(waits.as_mut().now_or_never().is_none());
        lifecycle.enter(Phase::Draining);
        assert_eq!(waits.await, None);
        assert_eq!(lifecycle.unless_draining(pending::<()>()).await, None);
    }
}
