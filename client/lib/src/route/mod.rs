//! Where calls go: which group owns a key, who leads that group, and the connection to it.
//!
//! A [`Router`] knows the cluster's configuration, keeps a guess who leads for each group, and holds the connections.
//! It is what [`crate::Client`] routes by. The configuration comes from a watch that the router keeps.
//!
//! # How a leader is found
//!
//! All known nodes of the group are asked for their status at the same time, and a node that says that *it* leads is
//! believed, the one of the highest term if there are several. What nodes say of others is only a hint: it adds an
//! address to ask, because a follower goes on naming a dead leader until it notices. A node that hangs does not hold
//! up the others: a round ends soon after the first answers. Groups are searched independently of each other.
//!
//! # Invariants
//!
//! - A guess has an `epoch`, one more for each; a failure is reported with the guess that failed, so that news of
//!   an old guess never drops a new one.
//! - A group's addresses are those of the configuration and a bounded number that its members told of. With one group
//!   the addresses of the options are its own too, because they may be the only ones that are reached from here.
//! - What is kept for groups that left the configuration is dropped.

mod channels;
mod search;
mod watcher;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use api::v1::error_detail::Kind;
use api::v1::kv_client::KvClient;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};
use types::{ConfigNum, Gid, ShardConfig, ShardId};

pub(crate) use channels::Slot;
pub(crate) use channels::short;
use search::Group;
pub(crate) use search::SUPERSEDED;
pub(crate) use watcher::is_single;
use watcher::{Place, Wanted, Watcher};

use self::channels::Channels;
use crate::options::parse_address;
use crate::{ClientOptions, ConnectError};

/// A guess who leads a group.
#[derive(Clone, Debug)]
pub(crate) struct Leader {
    /// The group.
    pub(crate) gid: Gid,
    /// Where the leader is reached: `host:port`.
    pub(crate) address: Arc<str>,
    /// Its term, or 0 when another node only named it.
    pub(crate) term: u64,
    pub(crate) epoch: u64,
    /// The group's number as calls tell it.
    pub(crate) mark: Mark,
}

/// Knows the configuration, the leaders and the connections: see the head of its module in `route/mod.rs`. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Router {
    inner: Arc<Inner>,
}

struct Inner {
    options: Arc<ClientOptions>,
    channels: Arc<Channels>,
    configs: watch::Receiver<Option<Arc<ShardConfig>>>,
    cluster: ClusterMark,
    wanted: watch::Sender<Wanted>,
    trouble: watch::Receiver<String>,
    groups: Mutex<BTreeMap<Gid, Arc<Group>>>,
    /// The configuration by which `groups` and `channels` were last cleared, and one more; 0 for none.
    cleared: AtomicU64,
}

/// Calls of the `Kv` service that are never forwarded by the node that gets them.
pub(crate) type KvService = KvClient<InterceptedService<Channel, NoForward>>;

/// A value of a call's metadata, formatted once.
pub(crate) type Mark = MetadataValue<Ascii>;

/// The cluster's id as calls tell it, as soon as a node of the cluster has told it.
pub(crate) type ClusterMark = Arc<OnceLock<Mark>>;

/// Marks each call as one that is not to be forwarded, and with the cluster and the group that it is meant for: an address
/// may be another's by now. Nodes that tell no cluster may have another gid than the one that stands for them here.
#[derive(Clone, Debug)]
pub(crate) struct NoForward {
    meant: Option<(Mark, Mark)>,
}

impl Interceptor for NoForward {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let marked = MetadataValue::from_static("1");
        let metadata = request.metadata_mut();
        metadata.insert(api::NO_FORWARD_METADATA_KEY, marked);
        if let Some((cluster, gid)) = &self.meant {
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
    /// A router that watches the configuration at the addresses of the options. Must be called within a tokio runtime,
    /// on which the watch then lives for as long as the router or a copy of it.
    pub(crate) fn watch(options: ClientOptions) -> Result<Self, ConnectError> {
        options.validate()?;
        let runtime = Handle::try_current().map_err(|_| ConnectError::NoRuntime)?;
        let options = Arc::new(options);
        let channels = Arc::new(Channels::new(Arc::clone(&options)));
        let (configs, config) = watch::channel(None);
        let (wanted, wants) = watch::channel(Wanted::default());
        let (trouble, troubles) = watch::channel(String::new());
        let cluster = ClusterMark::default();
        let watcher = Watcher {
            cluster: Arc::clone(&cluster),
            options: Arc::clone(&options),
            channels: Arc::clone(&channels),
            configs,
            wanted: wants,
            trouble,
            place: Place::default(),
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

    /// A router that goes by the configurations that the caller puts into `configs`. Their numbers must rise. For
    /// tests.
    #[cfg(test)]
    pub(crate) fn follow(
        options: ClientOptions,
        configs: watch::Receiver<Option<Arc<ShardConfig>>>,
    ) -> Result<Self, ConnectError> {
        options.validate()?;
        let options = Arc::new(options);
        let channels = Arc::new(Channels::new(Arc::clone(&options)));
        let (wanted, _) = watch::channel(Wanted::default());
        let (_, trouble) = watch::channel(String::new());
        Ok(Self::of(
            options,
            channels,
            (configs, ClusterMark::default()),
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

    /// The configurations as they come; `None` until the first is known.
    pub(crate) fn configs(&self) -> watch::Receiver<Option<Arc<ShardConfig>>> {
        self.inner.configs.clone()
    }

    /// The configuration as it is known now.
    pub(crate) fn config(&self) -> Option<Arc<ShardConfig>> {
        self.inner.configs.borrow().clone()
    }

    /// Whether configuration `num` is known, or a later one.
    pub(crate) fn has(&self, num: ConfigNum) -> bool {
        self.config().is_some_and(|config| config.num() >= num)
    }

    /// There is at least configuration `num`, as the node at `address` told: gets it at once, if it isn't known.
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

    /// The group's leader: the one believed in, or whom a search finds. An error tells what the nodes said. `outage` is
    /// how long the caller has been looking in vain: the longer, the more patient a search is with slow nodes.
    pub(crate) async fn leader(&self, gid: Gid, outage: Duration) -> Result<Leader, String> {
        let group = self.group(gid)?;
        let found = group.leader(self, gid, outage).await;
        if found.is_err() {
            // Perhaps the group has other addresses by now, or is gone.
            self.doubt();
        }
        found
    }

    /// The configuration may be an old one, and its watch silent.
    fn doubt(&self) {
        self.inner.wanted.send_modify(|wanted| wanted.doubts += 1);
    }

    /// The leader does not lead or can't be reached. `hint` is who does, as it said.
    pub(crate) fn failed(&self, leader: &Leader, hint: Option<&str>) {
        if let Ok(group) = self.group(leader.gid) {
            group.failed(leader, hint);
        }
    }

    /// An open connection to `address`: kept from before, or made now. An error tells why there is none.
    pub(crate) async fn channel(&self, address: &Arc<str>, slot: Slot) -> Result<Channel, String> {
        self.inner.channels.channel(address, slot).await
    }

    /// The connection is broken: the next use makes another, and resolves the name again.
    pub(crate) fn discard(&self, address: &Arc<str>, slot: Slot) {
        self.inner.channels.discard(address, slot);
    }

    /// What answered so may be no leader of ours: a connection that is broken, or leads to a stranger, is made anew, and the
    /// name is resolved again.
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

    /// The `Kv` service of a leader at the other end of `channel`, with the bounds of the options, for calls that
    /// aren't forwarded any further.
    pub(crate) fn kv(&self, leader: &Leader, channel: Channel) -> KvService {
        let cluster = self.inner.cluster.get().cloned();
        let meant = cluster.map(|cluster| (cluster, leader.mark.clone()));
        KvClient::with_interceptor(channel, NoForward { meant })
            .max_decoding_message_size(self.options().max_message_bytes)
            .max_encoding_message_size(self.options().max_message_bytes)
    }

    /// The owner of the shard of a key with this hash. Waits until somebody owns it.
    pub(crate) async fn owner(&self, hash: u64) -> Gid {
        let owned = |config: &ShardConfig| Some(owner(config, hash)).filter(|it| *it != Gid::NONE);
        let mut configs = self.configs();
        loop {
            let known = configs.borrow_and_update().as_deref().and_then(owned);
            if let Some(gid) = known {
                return gid;
            }
            if configs.changed().await.is_err() {
                // There won't be another, so the caller's deadline ends this.
                return std::future::pending().await;
            }
        }
    }

    /// The configuration, as soon as there is one in which somebody owns shards.
    pub(crate) async fn routable(&self) -> Arc<ShardConfig> {
        let mut configs = self.configs();
        loop {
            let known = configs.borrow_and_update().clone();
            if let Some(config) = known.filter(|config| !config.groups().is_empty()) {
                return config;
            }
            if configs.changed().await.is_err() {
                // There won't be another, so the caller's deadline ends this.
                return std::future::pending().await;
            }
        }
    }

    /// Why [`Router::owner`] waits.
    pub(crate) fn unowned(&self) -> String {
        match self.config() {
            Some(config) => format!(
                "nobody owns the key's shard in configuration {}: let a group join",
                config.num()
            ),
            None => format!("no configuration is known: {}", self.trouble()),
        }
    }

    /// Waits until some configuration is known, for `patience` at most.
    pub(crate) async fn oriented(&self, patience: Duration) {
        let mut configs = self.configs();
        let _ = timeout(patience, configs.wait_for(Option::is_some)).await;
    }

    /// Waits until configuration `num` is known and at least for `pause` if it was already.
    pub(crate) async fn configured_at(&self, num: ConfigNum, pause: Duration) {
        let mut configs = self.configs();
        let known =
            |config: &Option<Arc<ShardConfig>>| config.as_ref().map(|it| it.num()) >= Some(num);
        if known(&configs.borrow()) {
            return sleep(pause).await;
        }
        // The longest pause is for a configuration that doesn't come, because it was a lie.
        let most = self.options().max_backoff;
        let _ = timeout(most, configs.wait_for(known)).await;
    }

    /// The group's leader, and a connection to it.
    pub(crate) async fn connection(
        &self,
        gid: Gid,
        slot: Slot,
        outage: Duration,
    ) -> Result<(Leader, Channel), String> {
        let leader = self.leader(gid, outage).await?;
        match self.channel(&leader.address, slot).await {
            Ok(channel) => Ok((leader, channel)),
            Err(why) => {
                self.failed(&leader, None);
                Err(format!("{}: {why}", leader.address))
            }
        }
    }

    pub(crate) fn options(&self) -> &Arc<ClientOptions> {
        &self.inner.options
    }

    /// Why there is no configuration yet, as far as it is known.
    pub(crate) fn trouble(&self) -> String {
        self.inner.trouble.borrow().clone()
    }

    fn groups(&self) -> MutexGuard<'_, BTreeMap<Gid, Arc<Group>>> {
        // Nothing is left half done under this lock.
        self.inner
            .groups
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// What is kept of a group of the configuration.
    fn group(&self, gid: Gid) -> Result<Arc<Group>, String> {
        let Some(config) = self.config() else {
            return Err(format!("no configuration is known ({})", self.trouble()));
        };
        self.clear(&config);
        if !config.groups().contains_key(&gid) {
            return Err(format!("configuration {} has no group {gid}", config.num()));
        }
        let mut groups = self.groups();
        Ok(Arc::clone(groups.entry(gid).or_default()))
    }

    /// Forgets what is not part of the cluster any more, once for each configuration.
    fn clear(&self, config: &ShardConfig) {
        let mark = config.num().0.saturating_add(1);
        if self.inner.cleared.swap(mark, Ordering::Relaxed) == mark {
            return;
        }
        self.groups()
            .retain(|gid, _| config.groups().contains_key(gid));
        let kept = self.addresses();
        self.inner.channels.retain(|address| kept.contains(address));
    }

    /// The addresses of the options.
    pub(crate) fn configured(&self) -> impl Iterator<Item = Arc<str>> + '_ {
        self.options().addresses.iter().map(|it| short(it))
    }

    /// All known addresses: of the options, of the configuration, and of members that nodes told of.
    pub(crate) fn addresses(&self) -> BTreeSet<Arc<str>> {
        let mut all: BTreeSet<Arc<str>> = self.configured().collect();
        if let Some(config) = self.config() {
            all.extend(config.groups().values().flatten().map(|it| short(it)));
        }
        let groups: Vec<Arc<Group>> = self.groups().values().cloned().collect();
        all.extend(groups.iter().flat_map(|group| group.learnt()));
        all
    }

    /// Where the group's nodes are reached, as the configuration says.
    fn addresses_of(&self, gid: Gid) -> BTreeSet<Arc<str>> {
        let Some(config) = self.config() else {
            return BTreeSet::new();
        };
        let told = config.groups().get(&gid).into_iter().flatten();
        let told = told.map(|it| short(it));
        if config.groups().len() == 1 {
            told.chain(self.configured()).collect()
        } else {
            told.collect()
        }
    }

    /// Whether any node accepts a connection.
    pub(crate) async fn reachable(&self) -> Result<(), ConnectError> {
        let mut dialled: FuturesUnordered<_> = self
            .configured()
            .map(|address| async move {
                let channel = self.channel(&address, Slot::Control).await;
                channel.map_err(|error| format!("{address}: {error}"))
            })
            .collect();
        let mut said = Vec::new();
        while let Some(result) = dialled.next().await {
            match result {
                Ok(_) => return Ok(()),
                Err(error) => said.push(error),
            }
        }
        Err(ConnectError::Unreachable(said.join("; ")))
    }
}

/// The owner of the shard of a key with this hash; [`Gid::NONE`] if nobody is.
pub(crate) fn owner(config: &ShardConfig, hash: u64) -> Gid {
    let shard = hash % u64::from(config.shards().max(1));
    // The remainder of a division by a u32 fits in a u32.
    config.owner(ShardId(u32::try_from(shard).unwrap_or(0)))
}

/// Whether an address can be one.
pub(crate) fn plausible(address: &str) -> bool {
    parse_address(address).is_ok()
}
