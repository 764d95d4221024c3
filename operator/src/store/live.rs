//! The store as it runs: asked by our own client library.
//!
//! One client for each cluster is kept while it is in use, so that looking every few seconds opens no connection every few seconds. What
//! it is told is turned into what [`crate::plan`] and people need by functions without I/O.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{StreamExt as _, stream};
use shardkv_client::{
    Client, ClientOptions, ConfigChange, ConfigView, Error, Gid, GroupKind, GroupShards, NodeId,
    NodeStatus, Role, ShardId, ShardSet, ShardState,
};
use tokio::time::{Instant, sleep, timeout};

use super::{Change, Health, Store, StoreError, View};
use crate::build::{Component, names};
use crate::metrics::Metrics;
use crate::plan;
use crate::validate::Cluster;

/// How long the controllers may take to tell the configuration.
const VIEW: Duration = Duration::from_secs(3);
/// How long groups may take to tell about their shards.
const MOVES: Duration = Duration::from_secs(2);
/// How long a node may take to tell how it is.
const HEALTH: Duration = Duration::from_secs(2);
/// How long a change of the configuration may take. It waits for an election, say.
const CHANGE: Duration = Duration::from_secs(10);
/// How long all nodes together may take: those that have answered by then count.
const HEALTH_OF_ALL: Duration = Duration::from_secs(10);
/// How many nodes are asked at the same time.
const MAX_ASKED: usize = 64;
/// A client that nobody has used for this long is closed.
const UNUSED: Duration = Duration::from_mins(5);

/// Clients of the clusters that are looked after.
///
/// Invariant: at most one for each resource, by its namespace, name and uid; none that hasn't been used for a few minutes when
/// another is made.
#[derive(Debug)]
pub struct LiveStore {
    metrics: Arc<Metrics>,
    clients: Mutex<HashMap<Key, Kept>>,
}

/// Which resource. One that was deleted and made again is another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    namespace: String,
    name: String,
    uid: String,
}

#[derive(Debug)]
struct Kept {
    client: Client,
    used: Instant,
}

impl LiveStore {
    /// Without any client yet. Must be used within a tokio runtime.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            clients: Mutex::default(),
        }
    }

    /// The cluster's client: kept from before, or made now. Reaches no node by itself.
    fn client(&self, cluster: &Cluster) -> Result<Client, StoreError> {
        self.client_at(cluster, Instant::now())
    }

    fn client_at(&self, cluster: &Cluster, now: Instant) -> Result<Client, StoreError> {
        let mut clients = self.lock();
        if let Some(kept) = clients.get_mut(&key(cluster)) {
            kept.used = now;
            return Ok(kept.client.clone());
        }
        clients.retain(|_, kept| now.duration_since(kept.used) < UNUSED);
        let client = Client::lazy(options(cluster));
        let client = client.map_err(|error| StoreError::Unreachable(error.to_string()))?;
        let kept = Kept {
            client: client.clone(),
            used: now,
        };
        clients.insert(key(cluster), kept);
        Ok(client)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Kept>> {
        // Nothing is left half done under this lock.
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call by what came of it.
    async fn counted<T>(
        &self,
        call: &'static str,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let begun = Instant::now();
        let result = work.await;
        let told = match &result {
            Ok(_) => "ok",
            Err(StoreError::Unreachable(_)) => "unreachable",
            Err(StoreError::Refused(_)) => "refused",
        };
        self.metrics.store_call(call, told, begun.elapsed());
        result
    }
}

impl Store for LiveStore {
    async fn view(&self, cluster: &Cluster) -> Result<View, StoreError> {
        let view = async {
            let client = self.client(cluster)?;
            let controller = client.with_timeout(VIEW).controller();
            let told = controller.query(None).await.map_err(|it| refusal(&it))?;
            let mut view = view(&told);
            if !told.is_settled(told.latest) {
                let client = client.with_timeout(MOVES);
                let all = ShardSet::default();
                let shards = client.shards(&all, false);
                let shards = timeout(MOVES, shards).await.unwrap_or_default();
                view.moving = moving(&told, &shards);
            }
            Ok(view)
        };
        self.counted("view", view).await
    }

    async fn health(
        &self,
        cluster: &Cluster,
        parts: &BTreeSet<Component>,
    ) -> BTreeMap<Component, Health> {
        let asked = self.counted("health", async {
            let client = self.client(cluster)?.with_timeout(HEALTH);
            let asked = nodes(cluster, parts).into_iter().map(|(part, address)| {
                let admin = client.admin(&address);
                async move {
                    let status = timeout(HEALTH, admin.ok()?.status()).await.ok()?.ok()?;
                    is_of(part, &status).then(|| (part, pod(&address), status))
                }
            });
            let answers = stream::iter(asked).buffer_unordered(MAX_ASKED);
            // On a large cluster without one of its machines, very many may be silent.
            let answers = answers.take_until(sleep(HEALTH_OF_ALL));
            Ok(answers.filter_map(async |it| it).collect::<Vec<_>>().await)
        });
        let answers = asked.await.unwrap_or_default();
        let of = |part: &Component| {
            let nodes = answers.iter().filter(|(of, ..)| of == part);
            let nodes = nodes.map(|(_, pod, status)| (pod.as_str(), status));
            let all = names::addresses(cluster, *part).len();
            (*part, health(all, nodes))
        };
        parts.iter().map(of).collect()
    }

    async fn join(&self, cluster: &Cluster, gids: &[u64]) -> Result<Change, StoreError> {
        let join = async {
            let controller = self.client(cluster)?.with_timeout(CHANGE).controller();
            let group = |gid: &u64| (Gid(*gid), names::addresses(cluster, Component::Group(*gid)));
            let joined = controller.join(gids.iter().map(group).collect()).await;
            joined.map(change).map_err(|it| refusal(&it))
        };
        self.counted("join", join).await
    }

    async fn leave(&self, cluster: &Cluster, gids: &[u64]) -> Result<Change, StoreError> {
        let leave = async {
            let controller = self.client(cluster)?.with_timeout(CHANGE).controller();
            let gids: Vec<Gid> = gids.iter().copied().map(Gid).collect();
            controller
                .leave(&gids)
                .await
                .map(change)
                .map_err(|it| refusal(&it))
        };
        self.counted("leave", leave).await
    }

    fn forget(&self, cluster: &Cluster) {
        self.lock().remove(&key(cluster));
    }
}

fn key(cluster: &Cluster) -> Key {
    Key {
        namespace: cluster.namespace.clone(),
        name: cluster.name.clone(),
        uid: cluster.owner.uid.clone(),
    }
}

/// Patient: an operator that looks every few seconds must be no burden, to nodes that start least of all.
fn options(cluster: &Cluster) -> ClientOptions {
    ClientOptions {
        request_timeout: VIEW,
        keepalive_interval: Duration::from_secs(20),
        keepalive_timeout: Duration::from_secs(5),
        min_backoff: Duration::from_millis(50),
        max_backoff: Duration::from_secs(2),
        ..ClientOptions::new(names::addresses(cluster, Component::Controller))
    }
}

/// The nodes of parts, by address.
fn nodes(cluster: &Cluster, parts: &BTreeSet<Component>) -> Vec<(Component, String)> {
    let of = |part: &Component| {
        let addresses = names::addresses(cluster, *part).into_iter();
        addresses
            .map(|address| (*part, address))
            .collect::<Vec<_>>()
    };
    parts.iter().flat_map(of).collect()
}

/// The first label of an address.
fn pod(address: &str) -> String {
    address.split('.').next().unwrap_or(address).to_owned()
}

/// What controllers that don't answer, or don't do it, mean.
fn refusal(error: &Error) -> StoreError {
    let text = error.to_string();
    match error {
        Error::TooLarge { .. }
        | Error::BadRequest { .. }
        | Error::DiskFull { .. }
        | Error::WrongCluster { .. }
        | Error::NotFound { .. }
        | Error::Conflict { .. }
        | Error::Protocol { .. } => StoreError::Refused(text),
        _ => StoreError::Unreachable(text),
    }
}

fn change(done: ConfigChange) -> Change {
    Change {
        num: done.num.0,
        moved: done.moved_shards,
    }
}

/// What the controllers said, without what is on its way.
fn view(told: &ConfigView) -> View {
    let config = &told.config;
    let members: BTreeSet<u64> = config.groups().keys().map(|gid| gid.0).collect();
    let mut shards: BTreeMap<u64, u32> = members.iter().map(|gid| (*gid, 0)).collect();
    for (count, owner) in config.owner_runs() {
        if let Some(sum) = shards.get_mut(&owner.0) {
            *sum += count;
        }
    }
    // The controllers may list a group that is drained until they forget it.
    let busy = told.progress.iter().filter(|it| !told.is_drained(it.gid));
    View {
        plan: plan::Progress {
            num: config.num().0,
            members,
            settled: busy.map(|it| (it.gid.0, it.settled.0)).collect(),
        },
        shards,
        moving: 0,
    }
}

/// How many shards are not served by the group that the configuration gives them to. Of a group that doesn't answer all count,
/// unless the controllers know that it has done its part.
fn moving(told: &ConfigView, said: &BTreeMap<Gid, Result<GroupShards, Error>>) -> u32 {
    let config = &told.config;
    let behind = told.progress.iter().filter(|it| it.settled < told.latest);
    let behind = behind.filter(|it| config.groups().contains_key(&it.gid));
    let missing = behind.map(|it| {
        let serves: BTreeSet<_> = match said.get(&it.gid) {
            Some(Ok(group)) => {
                let serving =
                    |shard: &&shardkv_client::ShardStatus| shard.state == ShardState::Serving;
                group
                    .shards
                    .iter()
                    .filter(serving)
                    .map(|it| it.shard)
                    .collect()
            }
            _ => BTreeSet::new(),
        };
        let owners = (0..).map(ShardId).zip(config.owners());
        let owned = owners.filter(|(_, owner)| **owner == it.gid);
        owned.filter(|(shard, _)| !serves.contains(shard)).count()
    });
    u32::try_from(missing.sum::<usize>()).unwrap_or(u32::MAX)
}

/// Whether a node that answered is one of the part. Addresses outlive pods: another group may answer at an old one.
fn is_of(part: Component, status: &NodeStatus) -> bool {
    match part {
        Component::Controller => status.kind == GroupKind::Controller,
        Component::Group(gid) => status.kind == GroupKind::Shards && status.gid == Gid(gid),
    }
}

/// How a part of `all` nodes is, by what those that answered say of it and of themselves.
fn health<'a>(all: usize, nodes: impl Iterator<Item = (&'a str, &'a NodeStatus)>) -> Health {
    let nodes: Vec<_> = nodes.collect();
    let believes = |status: &NodeStatus, leader: NodeId, term: u64| {
        status.leader_id == Some(leader) && status.term == term
    };
    let leads = |(_, leader): &&(&str, &NodeStatus)| {
        let followers = nodes.iter();
        let followers = followers.filter(|(_, it)| believes(it, leader.node_id, leader.term));
        leader.role == Role::Leader && followers.count() * 2 > all
    };
    // What nodes say of themselves while they start or catch up is left out: it passes, it changes from look to look, and that
    // they aren't ready is known from their pods.
    let full = nodes.iter().filter(|(_, status)| status.disk_full);
    let troubles = full.map(|(pod, _)| ((*pod).to_owned(), DISK_FULL.to_owned()));
    Health {
        leader: nodes.iter().find(leads).map(|(pod, _)| (*pod).to_owned()),
        answering: u32::try_from(nodes.len()).unwrap_or(u32::MAX),
        troubles: troubles.collect(),
    }
}

/// What a node means that says so.
const DISK_FULL: &str = "its disk is nearly full: writes are refused, reads and deletes still work";

#[cfg(test)]
mod tests;
