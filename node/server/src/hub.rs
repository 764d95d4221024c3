//! What all services share: who this node is, what it knows of the group, and the way to the replica.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use api::errors;
use api::v1::ErrorDetail;
use raft::Role;
use replica::Status;
use shardkv::{Genesis, GroupKind, Ownership};
use shardkv_client::{Client, ClientOptions, ConnectError};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::timeout;
use types::{ConfigNum, MAX_GROUPS, NodeId};

use crate::bootstrap::initial_peers;
use crate::budget::{Budget, Permit};
use crate::configs::Configs;
use crate::exit::Fatal;
use crate::forward::Forwarding;
use crate::identity::Identity;
use crate::inbox::{Inbox, Submission};
use crate::machine::{self, MachineRequest, MachineResult, News};
use crate::metrics::{Metrics, set};
use crate::mover::Moving;
use crate::options::Options;
use crate::readiness::{Readiness, Seen, Unready};
use crate::replies::{Deliveries, Reply};

/// Learned addresses that are kept; the book is for a few joiners at a time.
const MAX_LEARNED: usize = 256;

/// What the node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// It looks for its group, or forms it.
    Starting,
    /// The replica runs.
    Running,
    /// It hands leadership over; the replica still answers, so that clients learn whom to ask.
    Stopping,
    /// It takes no new work and finishes what it has.
    Draining,
    /// The replica is gone.
    Stopped,
}

/// The node as of a moment ago.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) phase: Phase,
    /// The replica's view; `None` before it runs.
    pub(crate) status: Option<Arc<Status>>,
    /// What the group was created with; `None` before this node knows it.
    pub(crate) genesis: Option<Genesis>,
}

/// An answer that comes. Closed without one when the replica is gone.
pub(crate) type Waiting = oneshot::Receiver<MachineResult>;

/// Shared by everything that serves.
pub(crate) struct Hub {
    pub(crate) options: Options,
    /// Where others reach this node.
    pub(crate) address: String,
    pub(crate) identity: Arc<Identity>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) deliveries: Arc<Deliveries>,
    pub(crate) configs: Configs,
    pub(crate) forwarding: Forwarding,
    /// What moves shards while this node leads; shown to whoever asks why one waits.
    pub(crate) moving: Moving,
    /// Room for exports, for watchers, and for watchers that are groups: no crowd of clients may keep a group from hearing of
    /// configurations.
    pub(crate) exports: Arc<Semaphore>,
    pub(crate) watchers: Arc<Semaphore>,
    pub(crate) group_watchers: Arc<Semaphore>,
    ownership: watch::Sender<Arc<Ownership>>,
    /// Reads over all groups; made when it is first needed.
    scanner: OnceLock<Result<Client, ConnectError>>,
    /// Where the first error goes that ends the process.
    failure: Mutex<Option<oneshot::Sender<Fatal>>>,
    view: watch::Sender<View>,
    /// Beside the view, because all streams wait for it and must not wake with each change of that.
    draining: watch::Sender<bool>,
    stopped: watch::Sender<bool>,
    learned: Mutex<BTreeMap<NodeId, String>>,
    /// A member of a group has called this node by its name.
    invited: AtomicBool,
    readiness: Mutex<Readiness>,
}

impl Hub {
    pub(crate) fn new(
        options: Options,
        address: String,
        identity: Identity,
        metrics: Arc<Metrics>,
        failure: oneshot::Sender<Fatal>,
    ) -> Self {
        let view = View {
            phase: Phase::Starting,
            status: None,
            genesis: None,
        };
        Self {
            budget: Arc::new(Budget::new(&options.limits)),
            configs: Configs::default(),
            forwarding: Forwarding::new(&options),
            moving: Moving::default(),
            exports: Arc::new(Semaphore::new(options.limits.max_exports)),
            watchers: Arc::new(Semaphore::new(options.limits.max_watchers)),
            group_watchers: Arc::new(Semaphore::new(MAX_GROUPS)),
            ownership: watch::Sender::new(Arc::default()),
            scanner: OnceLock::new(),
            failure: Mutex::new(Some(failure)),
            options,
            address,
            identity: Arc::new(identity),
            metrics,
            inbox: Arc::new(Inbox::default()),
            deliveries: Arc::new(Deliveries::default()),
            view: watch::Sender::new(view),
            draining: watch::Sender::new(false),
            stopped: watch::Sender::new(false),
            learned: Mutex::default(),
            invited: AtomicBool::new(false),
            readiness: Mutex::default(),
        }
    }

    /// This node.
    pub(crate) fn node(&self) -> NodeId {
        self.identity.node()
    }

    /// What the node's group is for.
    pub(crate) fn kind(&self) -> GroupKind {
        self.options.genesis.kind
    }

    /// What the group has to do with which shard, as of the last entry applied here.
    pub(crate) fn ownership(&self) -> Arc<Ownership> {
        Arc::clone(&self.ownership.borrow())
    }

    /// The same as it changes.
    pub(crate) fn watch_ownership(&self) -> watch::Receiver<Arc<Ownership>> {
        self.ownership.subscribe()
    }

    /// Takes over what the machine tells.
    pub(crate) fn tell(&self, news: News) {
        match news {
            News::Ownership(ownership) => {
                self.ownership.send_replace(ownership);
            }
            // Without shards nothing is known yet: a node that joins waits for its first snapshot.
            News::Config(config) if config.shards() == 0 => {}
            News::Config(config) => {
                set(&self.metrics.handoff.config_num, config.num().0);
                if let Some(cluster) = self.identity.cluster() {
                    self.configs.replace(cluster, config);
                }
            }
        }
    }

    /// A client that reads from all groups.
    pub(crate) fn scanner(&self) -> Result<Client, ErrorDetail> {
        let make = || {
            let addresses = match self.kind() {
                GroupKind::Shards => self.options.controllers.clone(),
                GroupKind::Controller | GroupKind::Standalone => initial_peers(self),
            };
            let mut options = ClientOptions::new(addresses);
            options.request_timeout = self.options.request_timeout;
            Client::lazy(options)
        };
        let client = self.scanner.get_or_init(make).clone();
        client.map_err(|error| errors::unavailable(error, 1_000))
    }

    /// The node can't go on: the process ends in order with this error.
    pub(crate) fn fail(&self, fatal: Fatal) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(failure) = failure.take() {
            // Nobody listens any more only if the process ends anyway.
            let _ = failure.send(fatal);
        }
    }

    /// The latest view.
    pub(crate) fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// The view as it changes.
    pub(crate) fn watch(&self) -> watch::Receiver<View> {
        self.view.subscribe()
    }

    /// Enters a phase. There is no way back.
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

    /// Takes the replica's view over.
    pub(crate) fn publish(&self, status: Arc<Status>, genesis: Option<Genesis>) {
        self.view.send_if_modified(|view| {
            let changes = view.status.as_ref() != Some(&status) || view.genesis != genesis;
            if changes {
                view.status = Some(status);
                view.genesis = genesis;
            }
            changes
        });
        // Its answer is for those who ask; but it must see each moment with a leader.
        let _ = self.ready();
    }

    /// Whether the node is ready, and otherwise why not: see [`crate::readiness`].
    pub(crate) fn ready(&self) -> Result<(), Unready> {
        let configured = self.kind() != GroupKind::Shards || self.configs.has(ConfigNum(0));
        let view = self.view.borrow();
        let seen = Seen::of(view.phase, view.status.as_deref(), configured);
        drop(view);
        let mut readiness = self
            .readiness
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        readiness.look(Instant::now(), &seen)
    }

    /// Resolves when no new work is taken.
    pub(crate) async fn draining(&self) {
        // The sender lives in `self`, so waiting can't fail.
        let _ = self
            .draining
            .subscribe()
            .wait_for(|draining| *draining)
            .await;
    }

    /// Resolves when the replica is gone.
    pub(crate) async fn stopped(&self) {
        // The sender lives in `self`, so waiting can't fail.
        let _ = self.stopped.subscribe().wait_for(|stopped| *stopped).await;
    }

    /// Where a node is reached: as it told itself when it last connected, else by the membership. A node that came
    /// back at another address is found that way.
    pub(crate) fn address_of(&self, node: NodeId) -> Option<String> {
        if node == self.node() {
            return Some(self.address.clone());
        }
        if let Some(address) = self.lock_learned().get(&node) {
            return Some(address.clone());
        }
        let view = self.view.borrow();
        let member = view.status.as_ref()?.membership.get(node)?;
        Some(member.address.clone())
    }

    /// As [`Hub::address_of`], empty for a node that isn't known.
    pub(crate) fn address_or_empty(&self, node: NodeId) -> String {
        self.address_of(node).unwrap_or_default()
    }

    /// A member of a group called this node by its name: the group lets it in.
    pub(crate) fn invite(&self) {
        self.invited.store(true, Ordering::Release);
    }

    /// Whether a group lets this node in.
    pub(crate) fn invited(&self) -> bool {
        self.invited.load(Ordering::Acquire)
    }

    /// Remembers where a node says it is.
    pub(crate) fn learn(&self, node: NodeId, address: String) {
        let mut learned = self.lock_learned();
        if learned.len() >= MAX_LEARNED && !learned.contains_key(&node) {
            // Which one goes matters little: who still needs it says hello again.
            learned.pop_first();
        }
        learned.insert(node, address);
    }

    fn lock_learned(&self) -> std::sync::MutexGuard<'_, BTreeMap<NodeId, String>> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses work unless it is taken.
    pub(crate) fn check_running(&self) -> Result<(), ErrorDetail> {
        match self.view.borrow().phase {
            Phase::Running | Phase::Stopping => Ok(()),
            Phase::Starting => Err(errors::unavailable("the node is starting", 100)),
            Phase::Draining | Phase::Stopped => Err(self.gone()),
        }
    }

    /// Refuses peers before the replica runs and after. Until then they are heard: handing over needs them.
    pub(crate) fn check_peers_welcome(&self) -> Result<(), ErrorDetail> {
        match self.view.borrow().phase {
            Phase::Running | Phase::Stopping | Phase::Draining => Ok(()),
            Phase::Starting => Err(errors::unavailable("the node is starting", 100)),
            Phase::Stopped => Err(self.gone()),
        }
    }

    /// What is told to those who come too late.
    pub(crate) fn gone(&self) -> ErrorDetail {
        errors::unavailable(format!("node {} is stopping", self.node()), 100)
    }

    /// Puts a request into the replica's queue, behind all that were put there before.
    pub(crate) fn submit(&self, request: MachineRequest) -> Result<Waiting, ErrorDetail> {
        self.check_running()?;
        let permit = self.budget.take(machine::size(&request))?;
        Ok(self.enqueue(request, permit))
    }

    /// As [`Hub::submit`], for steps of hand-offs: an overloaded group must still be able to give shards away.
    pub(crate) fn submit_step(&self, request: MachineRequest) -> Result<Waiting, ErrorDetail> {
        self.check_running()?;
        let permit = self.budget.grant(machine::size(&request));
        Ok(self.enqueue(request, permit))
    }

    fn enqueue(&self, request: MachineRequest, permit: Permit) -> Waiting {
        let (reply, answer) = Reply::call(permit);
        self.inbox.submit([Submission { request, reply }]);
        answer
    }

    /// Asks the replica and waits for its answer, at most as long as the options allow.
    pub(crate) async fn ask(&self, request: MachineRequest) -> Result<MachineResult, ErrorDetail> {
        let changes = !matches!(
            request,
            replica::Request::Read(_) | replica::Request::ReadLocal(_) | replica::Request::LogTime
        );
        let answer = self.submit(request)?;
        self.answered(answer, changes).await
    }

    /// Waits for an answer, at most as long as the options allow.
    pub(crate) async fn answered(
        &self,
        answer: Waiting,
        changes: bool,
    ) -> Result<MachineResult, ErrorDetail> {
        match timeout(self.options.request_timeout, answer).await {
            Ok(Ok(result)) => Ok(result),
            // No answer in time, or the replica is gone.
            _ if changes => Err(errors::outcome_unknown("")),
            _ => Err(errors::unavailable("the read got no answer in time", 100)),
        }
    }

    /// Counts an error and makes its status.
    pub(crate) fn reject(&self, error: &ErrorDetail) -> tonic::Status {
        self.metrics.rejected(error);
        api::error_status(error)
    }

    /// Whether the node takes part in a group that has a leader at this moment.
    pub(crate) fn is_serving(view: &View) -> bool {
        let Some(status) = &view.status else {
            return false;
        };
        let member = status.membership.get(status.node).is_some();
        view.phase == Phase::Running
            && member
            && (status.role == Role::Leader || status.leader.is_some())
    }
}
