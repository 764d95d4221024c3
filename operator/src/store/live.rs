//! Access to a running store through the ShardKV client library.
//!
//! Each cluster keeps one client while it is in use, so that a round every few seconds doesn't open a connection every
//! few seconds. Functions without I/O convert the answers into the types of [`crate::plan`] and of the status.

mod keyspaces;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{StreamExt as _, stream};
use shardkv_client::{
    Assignment, Client, ClientOptions, ConfigChange, ConfigNum, ConfigView, Error, Gid, GroupKind,
    GroupShards, Incarnation, NodeId, NodeStatus, Role, ShardId, ShardSet, ShardState,
};
use tokio::time::{Instant, sleep, timeout};

use super::interface::{Change, Health, Store, StoreError, View};
use crate::build::names;
use crate::metrics::Metrics;
use crate::parts::Component;
use crate::plan;
use crate::validate::Cluster;

/// Time limit for a query of the configuration.
const VIEW: Duration = Duration::from_secs(3);
/// Time limit for groups to report their shards.
const MOVES: Duration = Duration::from_secs(2);
/// Time limit for a node to report its status.
const HEALTH: Duration = Duration::from_secs(2);
/// Time limit for a change of the configuration, which may wait for an election.
const CHANGE: Duration = Duration::from_secs(10);
/// Time limit for all nodes together: answers up to then count.
const HEALTH_OF_ALL: Duration = Duration::from_secs(10);
/// Maximum number of nodes asked concurrently.
const MAX_ASKED: usize = 64;
/// A client that is unused for this long is closed.
const UNUSED: Duration = Duration::from_mins(5);

/// Keeps the clients of the clusters that the operator manages.
///
/// Invariant: at most one client for each resource, by its namespace, name and uid; when a client is created, clients
/// that were unused for a few minutes are dropped.
#[derive(Debug)]
pub struct LiveStore {
    metrics: Arc<Metrics>,
    clients: Mutex<HashMap<Key, Kept>>,
}

/// Identity of a resource. A resource that was deleted and created again has another key.
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
    /// Returns a store without clients. Must be used within a tokio runtime.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            clients: Mutex::default(),
        }
    }

    /// Returns the cluster's client, creating it if needed. Opens no connection itself.
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
        // Every change under this lock is complete, so a poisoned lock is safe to use.
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a call and records its outcome and duration.
    async fn counted<T>(
        &self,
        call: &'static str,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let begun = Instant::now();
        let result = work.await;
        let outcome = match &result {
            Ok(_) => "ok",
            Err(StoreError::Unreachable(_)) => "unreachable",
            Err(StoreError::Refused(_)) => "refused",
        };
        self.metrics.store_call(call, outcome, begun.elapsed());
        result
    }
}

impl Store for LiveStore {
    async fn view(&self, cluster: &Cluster) -> Result<View, StoreError> {
        let view = async {
            let client = self.client(cluster)?;
            let controller = client.with_timeout(VIEW).controller();
            let answer = controller.query(None).await.map_err(|it| refusal(&it))?;
            let mut view = view(&answer);
            if !(answer.is_settled(answer.latest) && answer.is_reached(answer.latest)) {
                let asked = unsettled(&answer);
                let reports = if asked.is_empty() {
                    BTreeMap::new()
                } else {
                    let client = client.with_timeout(MOVES);
                    let shards = client.shards(&asked, false);
                    timeout(MOVES, shards).await.unwrap_or_default()
                };
                count_moves(&mut view, &answer, &reports);
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
            // In a large cluster that lost a machine, many nodes may be silent.
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

    async fn retire(
        &self,
        cluster: &Cluster,
        gid: u64,
        incarnation: u64,
    ) -> Result<(), StoreError> {
        let retire = async {
            let controller = self.client(cluster)?.with_timeout(CHANGE).controller();
            let retired = controller.retire(Gid(gid), Incarnation(incarnation)).await;
            retired.map_err(|it| refusal(&it))
        };
        self.counted("retire", retire).await
    }

    fn forget(&self, namespace: &str, name: &str) {
        let is_it = |key: &Key| (&*key.namespace, &*key.name) == (namespace, name);
        self.lock().retain(|key, _| !is_it(key));
    }
}

fn key(cluster: &Cluster) -> Key {
    Key {
        namespace: cluster.namespace.clone(),
        name: cluster.name.clone(),
        uid: cluster.owner.uid.clone(),
    }
}

/// Returns the options of a cluster's client. Long keepalives and backoffs keep the operator's load on nodes low, most
/// of all on nodes that start.
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

/// Returns the address of every node of the given parts, with its part.
fn nodes(cluster: &Cluster, parts: &BTreeSet<Component>) -> Vec<(Component, String)> {
    let of = |part: &Component| {
        let addresses = names::addresses(cluster, *part).into_iter();
        addresses
            .map(|address| (*part, address))
            .collect::<Vec<_>>()
    };
    parts.iter().flat_map(of).collect()
}

/// Returns the first label of an address, which is the pod's name.
fn pod(address: &str) -> String {
    address.split('.').next().unwrap_or(address).to_owned()
}

/// Classifies an error of the client: refused by the store, or no usable answer.
fn refusal(error: &Error) -> StoreError {
    let text = error.to_string();
    match error {
        Error::TooLarge { .. }
        | Error::BadRequest { .. }
        | Error::DiskFull { .. }
        | Error::WrongCluster { .. }
        | Error::NotFound { .. }
        | Error::AlreadyExists { .. }
        | Error::Conflict { .. }
        | Error::Unauthenticated { .. }
        | Error::PermissionDenied { .. }
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

/// Converts the controllers' answer into a view, without the shards that move.
fn view(answer: &ConfigView) -> View {
    let config = &answer.config;
    let members: BTreeSet<u64> = config.members().map(|gid| gid.0).collect();
    let mut shards: BTreeMap<u64, u32> = members.iter().map(|gid| (*gid, 0)).collect();
    for (count, owner) in config.owner_runs() {
        if owner != Gid::NONE {
            *shards.entry(owner.0).or_default() += count;
        }
    }
    let targets = config.rows().filter(Assignment::is_moving);
    let targets = targets.map(|row| row.target.0);
    let awaiting = targets.filter(|gid| shards.get(gid) == Some(&0)).collect();
    let progress = answer.progress.iter();
    let removed = answer.drained.iter().map(|(gid, it)| {
        let removed = plan::Removed {
            incarnation: it.incarnation.0,
            forgotten: it.forgotten,
            retired: it.retired,
        };
        (gid.0, removed)
    });
    View {
        plan: plan::Progress {
            num: config.num().0,
            members,
            settled: progress.map(|it| (it.gid.0, it.settled.0)).collect(),
            awaiting,
            removed: removed.collect(),
        },
        shards,
        ..View::default()
    }
}

/// Returns the shards that the controllers don't know to be served: their owners haven't settled the configuration that made them the
/// owners. They are few, because groups settle soon after each cut, so it is cheap to ask for them in each round.
fn unsettled(answer: &ConfigView) -> ShardSet {
    let settled = settled(answer);
    let rows = (0..).map(ShardId).zip(answer.config.rows());
    let unknown = rows.filter(|(_, row)| row.owner != Gid::NONE && !is_settled(&settled, row));
    unknown.map(|(shard, _)| shard).collect()
}

fn settled(answer: &ConfigView) -> BTreeMap<Gid, ConfigNum> {
    let progress = answer.progress.iter();
    progress.map(|it| (it.gid, it.settled)).collect()
}

fn is_settled(settled: &BTreeMap<Gid, ConfigNum>, row: &Assignment) -> bool {
    let known = settled.get(&row.owner);
    known.is_some_and(|settled| *settled >= row.owner_since)
}

/// Counts the shards that move. The owner of a shard serves it if the owner has settled the configuration that made it the
/// owner, or if the owner says so: a group that doesn't answer counts as serving only what the controllers know it to serve.
fn count_moves(
    view: &mut View,
    answer: &ConfigView,
    reports: &BTreeMap<Gid, Result<GroupShards, Error>>,
) {
    let settled = settled(answer);
    let answers = reports.values().flatten();
    let served = answers.flat_map(|group| group.shards.iter().map(|shard| (group.gid, shard)));
    let served = served.filter(|(_, shard)| shard.state == ShardState::Serving);
    let served: BTreeSet<(Gid, ShardId)> = served.map(|(gid, it)| (gid, it.shard)).collect();
    let rows = (0..).map(ShardId).zip(answer.config.rows());
    for (shard, row) in rows.filter(|(_, row)| row.owner != Gid::NONE) {
        if !is_settled(&settled, &row) && !served.contains(&(row.owner, shard)) {
            view.unserved += 1;
        } else if row.is_moving() {
            view.copying += 1;
            view.copiers.extend([row.owner.0, row.target.0]);
        }
    }
}

/// Returns true if the node that answered belongs to the part. Addresses outlive pods: a node of another group may
/// answer at an old address.
fn is_of(part: Component, status: &NodeStatus) -> bool {
    match part {
        Component::Controller => status.kind == GroupKind::Controller,
        Component::Group(gid) => status.kind == GroupKind::Shards && status.gid == Gid(gid),
    }
}

/// Returns the health of a part of `all` nodes from the nodes that answered.
fn health<'a>(all: usize, nodes: impl Iterator<Item = (&'a str, &'a NodeStatus)>) -> Health {
    let nodes: Vec<_> = nodes.collect();
    let follows = |status: &NodeStatus, leader: NodeId, term: u64| {
        status.leader_id == Some(leader) && status.term == term
    };
    let leads = |(_, leader): &&(&str, &NodeStatus)| {
        let followers = nodes.iter();
        let followers = followers.filter(|(_, it)| follows(it, leader.node_id, leader.term));
        leader.role == Role::Leader && followers.count() * 2 > all
    };
    // Troubles of nodes that start or catch up are left out: they pass, their text changes between rounds, and the pods
    // already show that they aren't ready.
    let full = nodes.iter().filter(|(_, status)| status.disk_full);
    let troubles = full.map(|(pod, _)| ((*pod).to_owned(), DISK_FULL.to_owned()));
    let leader = nodes.iter().find(leads);
    // Each node says itself whether it has caught up: one that hasn't isn't ready.
    let is_in_step = |leader: &NodeStatus, node: &NodeStatus| {
        let mut members = leader.members.iter();
        let votes = members.any(|member| member.node_id == node.node_id && member.voter);
        votes && follows(node, leader.node_id, leader.term) && node.trouble.is_none()
    };
    let in_step = |(_, leader): &(&str, &NodeStatus)| {
        nodes
            .iter()
            .filter(|(_, node)| is_in_step(leader, node))
            .count()
    };
    let whole = leader.is_some_and(|leader| in_step(leader) >= all);
    let latest = nodes.iter().max_by_key(|(_, status)| status.last_applied);
    let incoming = latest.map(|(_, status)| status.incoming_bytes);
    Health {
        leader: leader.map(|(pod, _)| (*pod).to_owned()),
        answering: u32::try_from(nodes.len()).unwrap_or(u32::MAX),
        whole,
        troubles: troubles.collect(),
        incoming_bytes: incoming.unwrap_or_default(),
    }
}

/// Text for a node that reports a full disk.
const DISK_FULL: &str = "its disk is nearly full: writes are refused, reads and deletes still work";

#[cfg(test)]
mod tests;
