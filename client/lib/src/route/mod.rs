//! Routing: the group that owns a key, that group's leader, and the connection to it.
//!
//! A [`Router`] knows the cluster's configuration, keeps a guess of each group's leader, and holds the connections. The
//! configuration comes from a watch that the router keeps open. The rules of guesses and searches are the request engine's
//! ([`request::GroupLeader`], [`request::LeaderSearch`]); this module asks the nodes.
//!
//! # Invariants
//!
//! - A group's addresses are those of the configuration and a bounded number that its members named. With one group, the
//!   addresses of the options are its own too, because only those may be reachable from here.
//! - State of groups that left the configuration is dropped.

mod channels;
mod error;
mod search;
mod watcher;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use api::v1::error_detail::Kind;
use api::v1::keyspaces_client::KeyspacesClient;
use api::v1::kv_client::KvClient;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
pub(crate) use request::Leader;
use request::owner;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};
use types::{ClusterId, ConfigNum, Gid, ShardConfig, ShardId};

pub(crate) use channels::Slot;
pub(crate) use channels::short;
pub(crate) use error::{ChannelError, RouteError, StatusError};
use search::Group;
pub(crate) use watcher::is_single;
use watcher::{Place, Wanted, Watcher};

use self::channels::Channels;
use crate::clock::Clock;
use crate::options::parse_address;
use crate::{ClientOptions, ConnectError, Error};

/// Holds the configuration, the leaders and the connections: see the documentation of this module. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Router {
    inner: Arc<Inner>,
}

struct Inner {
    options: Arc<ClientOptions>,
    clock: Clock,
    channels: Arc<Channels>,
    configs: watch::Receiver<Option<Arc<ShardConfig>>>,
    cluster: ClusterMark,
    wanted: watch::Sender<Wanted>,
    trouble: watch::Receiver<String>,
    groups: Mutex<BTreeMap<Gid, Arc<Group>>>,
    /// The number of the configuration by which `groups` and `channels` were last cleared, plus one; 0 for none.
    cleared: AtomicU64,
}

/// The `Kv` service, with calls that the receiving node never forwards.
pub(crate) type KvService = KvClient<InterceptedService<Channel, NoForward>>;

/// The `Keyspaces` service, with calls that the receiving node never forwards.
pub(crate) type KeyspacesService = KeyspacesClient<InterceptedService<Channel, NoForward>>;

/// A value of a call's metadata, formatted once.
pub(crate) type Mark = MetadataValue<Ascii>;

/// The cluster's id as calls carry it, once a node of the cluster has told it.
pub(crate) type ClusterMark = Arc<OnceLock<Mark>>;

fn set_mark(mark: &ClusterMark, cluster: u64) {
    if let Ok(value) = format!("{cluster:016x}").parse() {
        // Set once: a router has one cluster.
        let _ = mark.set(value);
    }
}

/// Marks each call as not to be forwarded, and with its destination's cluster and group, because by now the
/// address may be another group's. Nodes that tell no cluster may have another gid than the one that stands for them here, so
/// calls to them carry no group.
#[derive(Clone, Debug)]
pub(crate) struct NoForward {
    destination: Option<(Mark, Mark)>,
}

impl Interceptor for NoForward {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let marked = MetadataValue::from_static("1");
        let metadata = request.metadata_mut();
        metadata.insert(api::NO_FORWARD_METADATA_KEY, marked);
        if let Some((cluster, gid)) = &self.destination {
            metadata.insert(api::CLUSTER_METADATA_KEY, cluster.clone());
            metadata.insert(api::GID_METADATA_KEY, gid.clone());
        }
        Ok(request)
    }
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let num = self.config().map(|config| config.num());
        f.debug_struct("Router")
            .field("config", &num)
            .finish_non_exhaustive()
    }
}

impl Router {
    /// Creates a router that watches the configuration at the addresses of the options. Must be called within a tokio runtime, on
    /// which the watch then lives for as long as the router or a clone of it.
    pub(crate) fn watch(options: ClientOptions) -> Result<Self, ConnectError> {
        options.validate()?;
        let runtime = Handle::try_current().map_err(|_| ConnectError::NoRuntime)?;
        let options = Arc::new(options);
        let channels = Arc::new(Channels::new(Arc::clone(&options))?);
        let (configs, config) = watch::channel(None);
        let (wanted, wants) = watch::channel(Wanted::default());
        let (trouble, troubles) = watch::channel(String::new());
        let cluster = ClusterMark::default();
        if let Some(expected) = options.cluster {
            set_mark(&cluster, expected.0);
        }
        let watcher = Watcher {
            cluster: Arc::clone(&cluster),
            options: Arc::clone(&options),
            channels: Arc::clone(&channels),
            configs,
            wanted: wants,
            trouble,
            place: Place::of(options.cluster),
        };
        runtime.spawn(watcher.run());
        Ok(Self::of(
            options,
            channels,
            (config, cluster),
            wanted,
            troubles,
        ))
    }

    /// Creates a router that follows the configurations of `cluster` that others put into `configs`. Their numbers must rise.
    pub(crate) fn follow(
        options: ClientOptions,
        cluster: ClusterId,
        configs: watch::Receiver<Option<Arc<ShardConfig>>>,
    ) -> Result<Self, ConnectError> {
        options.validate_without_address()?;
        let mark = ClusterMark::default();
        set_mark(&mark, cluster.0);
        let options = Arc::new(options);
        let channels = Arc::new(Channels::new(Arc::clone(&options))?);
        let (wanted, _) = watch::channel(Wanted::default());
        let (_, trouble) = watch::channel(String::new());
        Ok(Self::of(
            options,
            channels,
            (configs, mark),
            wanted,
            trouble,
        ))
    }

    fn of(
        options: Arc<ClientOptions>,
        channels: Arc<Channels>,
        (configs, cluster): (watch::Receiver<Option<Arc<ShardConfig>>>, ClusterMark),
        wanted: watch::Sender<Wanted>,
        trouble: watch::Receiver<String>,
    ) -> Self {
        let inner = Inner {
            options,
            clock: Clock::start(),
            channels,
            configs,
            cluster,
            wanted,
            trouble,
            groups: Mutex::default(),
            cleared: AtomicU64::new(0),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Returns a receiver of the configurations; `None` until the first is known.
    pub(crate) fn configs(&self) -> watch::Receiver<Option<Arc<ShardConfig>>> {
        self.inner.configs.clone()
    }

    /// Returns the configuration that is known now.
    pub(crate) fn config(&self) -> Option<Arc<ShardConfig>> {
        self.inner.configs.borrow().clone()
    }

    /// Returns true if configuration `num` or a later one is known.
    pub(crate) fn has(&self, num: ConfigNum) -> bool {
        self.config().is_some_and(|config| config.num() >= num)
    }

    /// Fetches configuration `num`, which the node at `address` has, unless it or a later one is known.
    pub(crate) fn refresh(&self, num: ConfigNum, address: &Arc<str>) {
        if self.has(num) {
            return;
        }
        self.inner.wanted.send_if_modified(|wanted| {
            let news = num > wanted.num;
            if news {
                wanted.num = num;
                wanted.from = Some(Arc::clone(address));
            }
            news
        });
    }

    /// Returns the group's leader: the guess, or the result of a search. `outage` is the time for which the caller has found
    /// no leader: the longer it is, the longer a search waits for slow nodes.
    pub(crate) async fn leader(&self, gid: Gid, outage: Duration) -> Result<Leader, RouteError> {
        let group = self.group(gid)?;
        let found = group.leader(self, gid, outage).await;
        if found.is_err() {
            // The group may have other addresses now, or may have left.
            self.doubt();
        }
        found
    }

    /// Reports that the configuration may be old, and its watch silent.
    fn doubt(&self) {
        self.inner.wanted.send_modify(|wanted| wanted.doubts += 1);
    }

    /// Drops the guess that `leader` leads, because it does not lead or can't be reached. `hint` is the leader's address as that node named it.
    /// Returns true if the hint is followed.
    pub(crate) fn failed(&self, leader: &Leader, hint: Option<&str>) -> bool {
        self.group(leader.gid)
            .is_ok_and(|group| group.failed(leader, hint))
    }

    /// Returns the open connection to `address`, or makes one.
    pub(crate) async fn channel(
        &self,
        address: &Arc<str>,
        slot: Slot,
    ) -> Result<Channel, ChannelError> {
        self.inner.channels.channel(address, slot).await
    }

    /// Drops a broken connection: the next use makes another, and resolves the name again.
    pub(crate) fn discard(&self, address: &Arc<str>, slot: Slot) {
        self.inner.channels.discard(address, slot);
    }

    /// Drops the connection to a node that answered `status`, if it is broken or leads to another cluster. The next connection
    /// resolves the name again.
    pub(crate) fn suspect(&self, address: &Arc<str>, slot: Slot, status: &Status) {
        match api::error_detail(status).map(|detail| detail.kind) {
            None => self.discard(address, slot),
            Some(Some(Kind::WrongCluster(_))) => {
                self.discard(address, slot);
                self.discard(address, Slot::Control);
                self.doubt();
            }
            Some(_) => {}
        }
    }

    /// Returns the `Kv` service of a leader at the other end of `channel`, with the bounds of the options, for calls that are
    /// not forwarded any further.
    pub(crate) fn kv(&self, leader: &Leader, channel: Channel) -> KvService {
        KvClient::with_interceptor(channel, self.no_forward(leader))
            .max_decoding_message_size(self.options().max_message_bytes)
            .max_encoding_message_size(self.options().max_message_bytes)
    }

    /// Returns the `Keyspaces` service of a leader, as [`Router::kv`] does.
    pub(crate) fn keyspaces(&self, leader: &Leader, channel: Channel) -> KeyspacesService {
        KeyspacesClient::with_interceptor(channel, self.no_forward(leader))
            .max_decoding_message_size(self.options().max_message_bytes)
    }

    fn no_forward(&self, leader: &Leader) -> NoForward {
        let cluster = self.inner.cluster.get().cloned();
        let destination = cluster.map(|cluster| (cluster, leader.gid.0.into()));
        NoForward { destination }
    }

    /// Returns the owner of a shard. Waits until a group owns it.
    pub(crate) async fn owner_of_shard(&self, shard: ShardId) -> Gid {
        self.gid_of(|config| config.owner(shard)).await
    }

    /// Returns the owner of the shard of a key with this hash. Waits until a group owns it.
    pub(crate) async fn owner(&self, hash: u64) -> Gid {
        self.gid_of(|config| owner(config, hash)).await
    }

    /// Waits until a configuration names a group.
    async fn gid_of(&self, find: impl Fn(&ShardConfig) -> Gid) -> Gid {
        let owned = |config: &ShardConfig| Some(find(config)).filter(|it| *it != Gid::NONE);
        let mut configs = self.configs();
        loop {
            let known = configs.borrow_and_update().as_deref().and_then(owned);
            if let Some(gid) = known {
                return gid;
            }
            if configs.changed().await.is_err() {
                // No other configuration will come, so the caller's deadline ends the wait.
                return std::future::pending().await;
            }
        }
    }

    /// Waits for a configuration with groups, and returns it.
    pub(crate) async fn routable(&self) -> Arc<ShardConfig> {
        let mut configs = self.configs();
        loop {
            let known = configs.borrow_and_update().clone();
            if let Some(config) = known.filter(|config| !config.groups().is_empty()) {
                return config;
            }
            if configs.changed().await.is_err() {
                // No other configuration will come, so the caller's deadline ends the wait.
                return std::future::pending().await;
            }
        }
    }

    /// Returns the reason why [`Router::owner`] waits.
    pub(crate) fn unowned(&self) -> String {
        match self.config() {
            Some(config) => format!(
                "no group owns the key's shard in configuration {}: let a group join",
                config.num()
            ),
            None => format!("no configuration is known: {}", self.trouble()),
        }
    }

    /// Waits until a configuration is known, for `patience` at most.
    pub(crate) async fn oriented(&self, patience: Duration) {
        let mut configs = self.configs();
        let _ = timeout(patience, configs.wait_for(Option::is_some)).await;
    }

    /// Waits until configuration `num` is known; if it is known already, waits for `pause`.
    pub(crate) async fn configured_at(&self, num: ConfigNum, pause: Duration) {
        let mut configs = self.configs();
        let known =
            |config: &Option<Arc<ShardConfig>>| config.as_ref().map(|it| it.num()) >= Some(num);
        if known(&configs.borrow()) {
            return sleep(pause).await;
        }
        // The longest pause bounds the wait for a configuration that doesn't exist.
        let most = self.options().max_backoff;
        let _ = timeout(most, configs.wait_for(known)).await;
    }

    /// Returns the group's leader and a connection to it.
    pub(crate) async fn connection(
        &self,
        gid: Gid,
        slot: Slot,
        outage: Duration,
    ) -> Result<(Leader, Channel), RouteError> {
        let leader = self.leader(gid, outage).await?;
        match self.channel(&leader.address, slot).await {
            Ok(channel) => Ok((leader, channel)),
            Err(error) => {
                self.failed(&leader, None);
                let address = leader.address;
                Err(RouteError::Unreachable { address, error })
            }
        }
    }

    pub(crate) fn options(&self) -> &Arc<ClientOptions> {
        &self.inner.options
    }

    /// Returns the clock that drives the request engine.
    pub(crate) fn clock(&self) -> Clock {
        self.inner.clock
    }

    /// Returns the error of a call whose deadline passed. It names TLS as the reason if the last attempt to connect failed by TLS.
    pub(crate) fn explain(&self, error: Error) -> Error {
        match (error, self.inner.channels.refused()) {
            (Error::Timeout { maybe_applied, .. }, Some(message)) => Error::Tls {
                message,
                maybe_applied,
            },
            (error, _) => error,
        }
    }

    /// Returns the reason why there is no configuration yet, as far as it is known.
    pub(crate) fn trouble(&self) -> String {
        self.inner.trouble.borrow().clone()
    }

    fn groups(&self) -> MutexGuard<'_, BTreeMap<Gid, Arc<Group>>> {
        // Each change under this lock is one call, so a poisoned lock protects valid data.
        self.inner
            .groups
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the state of a group of the configuration.
    fn group(&self, gid: Gid) -> Result<Arc<Group>, RouteError> {
        let Some(config) = self.config() else {
            return Err(RouteError::NoConfig {
                trouble: self.trouble(),
            });
        };
        self.clear(&config);
        let Some(known) = config.groups().get(&gid) else {
            return Err(RouteError::NoGroup {
                num: config.num(),
                gid,
            });
        };
        let mut groups = self.groups();
        let group = groups.entry(gid);
        Ok(Arc::clone(
            group.or_insert_with(|| Arc::new(Group::new(known))),
        ))
    }

    /// Drops the state of groups and addresses that left, once for each configuration. A guess of who leads a group doesn't
    /// outlive the group's nodes, so that no dead node is asked.
    fn clear(&self, config: &ShardConfig) {
        let mark = config.num().0.saturating_add(1);
        if self.inner.cleared.swap(mark, Ordering::Relaxed) == mark {
            return;
        }
        self.groups().retain(|gid, group| {
            let known = config.groups().get(gid);
            known.is_some_and(|known| group.is(known))
        });
        let kept = self.addresses();
        self.inner.channels.retain(|address| kept.contains(address));
    }

    /// Returns the addresses of the options.
    pub(crate) fn configured(&self) -> impl Iterator<Item = Arc<str>> + '_ {
        self.options().addresses.iter().map(|it| short(it))
    }

    /// Returns all known addresses: of the options, of the configuration, and of members that nodes named.
    pub(crate) fn addresses(&self) -> BTreeSet<Arc<str>> {
        let mut all: BTreeSet<Arc<str>> = self.configured().collect();
        if let Some(config) = self.config() {
            all.extend(config.all_addresses().map(|it| short(it)));
        }
        let groups: Vec<Arc<Group>> = self.groups().values().cloned().collect();
        all.extend(groups.iter().flat_map(|group| group.learnt()));
        all
    }

    /// Returns the addresses of the group's nodes in the configuration.
    fn addresses_of(&self, gid: Gid) -> BTreeSet<Arc<str>> {
        let Some(config) = self.config() else {
            return BTreeSet::new();
        };
        let listed = config.addresses(gid).iter();
        let listed = listed.map(|it| short(it));
        if config.groups().len() == 1 {
            listed.chain(self.configured()).collect()
        } else {
            listed.collect()
        }
    }

    /// Fails if no node accepts a connection.
    pub(crate) async fn reachable(&self) -> Result<(), ConnectError> {
        let mut dialled: FuturesUnordered<_> = self
            .configured()
            .map(|address| async move {
                let channel = self.channel(&address, Slot::Control).await;
                channel.map_err(|error| (address, error))
            })
            .collect();
        let (mut said, mut by_tls) = (Vec::new(), false);
        while let Some(result) = dialled.next().await {
            match result {
                Ok(_) => return Ok(()),
                Err((address, error)) => {
                    by_tls |= matches!(error, ChannelError::Tls(_));
                    said.push(format!("{address}: {error}"));
                }
            }
        }
        let said = said.join("; ");
        Err(if by_tls {
            ConnectError::Tls(said)
        } else {
            ConnectError::Unreachable(said)
        })
    }
}

/// Returns true if an address has the form `host:port`.
pub(crate) fn plausible(address: &str) -> bool {
    parse_address(address).is_ok()
}
