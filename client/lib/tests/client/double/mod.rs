//! A test double of a cluster, which misbehaves on demand: real gRPC servers over one state in memory.
//!
//! It keeps the rules of a real cluster that the client relies on (leadership, ownership, sessions, the birth rule), and records
//! violations by the client: [`Cluster::check`] panics if a bound was broken, a name was used for two different writes, or a
//! call might be forwarded.

mod controller;
mod services;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use api::errors;
use api::v1::admin_server::AdminServer;
use api::v1::batch_item::Request as Item;
use api::v1::batch_result::Response as Outcome;
use api::v1::error_detail::Kind;
use api::v1::kv_server::KvServer;
use api::v1::shardctrler_server::ShardctrlerServer;
use api::v1::{
    AppendResponse, BatchRequest, BatchResult, CompareAndSwapResponse, ConfigChanged,
    DeleteResponse, ErrorDetail, GetResponse, PutResponse, Session,
};
use bytes::Bytes;
use shardkv_client::{ClientOptions, ConfigDelta, ConfigNum, Gid, ShardConfig, ShardId};
use tokio::sync::watch;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use self::services::Node;

/// Faults, each of which strikes every n-th message; 0 is never.
#[derive(Clone, Copy, Default)]
pub(crate) struct Faults {
    /// Applied, but the stream breaks before the answer.
    pub(crate) lose_answer: u64,
    /// Not applied, and the stream breaks.
    pub(crate) lose_request: u64,
    /// Applied or not, by turns, and answered with `OutcomeUnknown`.
    pub(crate) outcome_unknown: u64,
    /// Refused with `Overloaded`.
    pub(crate) overloaded: u64,
    /// The stream of a scan or an export breaks before this page.
    pub(crate) break_scan: u64,
    /// A change of the configuration is made, but its answer is lost.
    pub(crate) lose_change: u64,
}

pub(crate) struct World {
    pub(crate) data: BTreeMap<Bytes, Bytes>,
    sessions: HashMap<Bytes, Table>,
    /// Each node's group.
    pub(crate) groups: Vec<Gid>,
    pub(crate) leaders: BTreeMap<Gid, usize>,
    terms: BTreeMap<Gid, u64>,
    /// The latest configuration, the deltas that lead to it, and the configuration before the first delta.
    pub(crate) config: ShardConfig,
    deltas: Vec<ConfigDelta>,
    oldest: ShardConfig,
    /// The configuration that each group has accepted; none if it knows no controllers.
    pub(crate) accepted: BTreeMap<Gid, ShardConfig>,
    /// Groups that accept no later configuration.
    pub(crate) deaf: BTreeSet<Gid>,
    /// Shards that are being moved to their owner.
    pub(crate) pulling: BTreeSet<ShardId>,
    /// Nodes whose watch sends no later configuration than this.
    pub(crate) stuck: BTreeMap<usize, ConfigNum>,
    /// Nodes whose addresses are another cluster's now; only their status looks the same.
    pub(crate) strangers: BTreeSet<usize>,
    /// Calls that these nodes refused.
    pub(crate) estranged: u64,
    /// True if nodes don't know `Shardctrler`.
    pub(crate) older: bool,
    /// Notified when something changes for watchers.
    pub(crate) news: watch::Sender<()>,
    /// The results of named changes of the configuration.
    changes: HashMap<(Bytes, u64), ConfigChanged>,
    pub(crate) settled: BTreeMap<Gid, ConfigNum>,
    /// Watches that were opened.
    pub(crate) watches: u64,
    /// Refusals of shards that other groups own.
    pub(crate) turned_away: u64,
    /// For each message with refusals of shards that are being moved, their number.
    pub(crate) not_ready: Vec<u64>,
    /// Pages of exports that were sent.
    pub(crate) exported: u64,
    /// True if nodes that don't lead name the leader.
    pub(crate) hints: bool,
    pub(crate) faults: Faults,
    pub(crate) ttl: Option<Duration>,
    messages: u64,
    pub(crate) applied: u64,
    /// Writes that arrived again and were answered from a session table.
    pub(crate) repeated: u64,
    /// The groups at which they arrived again.
    pub(crate) repeated_at: BTreeSet<Gid>,
    pub(crate) refused_sessions: u64,
    /// Calls received and not answered, now and at most.
    pub(crate) outstanding: usize,
    pub(crate) most_outstanding: usize,
    pub(crate) largest_batch: usize,
    pub(crate) streams: u64,
    /// The number of requests for a status.
    pub(crate) asked: u64,
    pub(crate) transfers: Vec<u64>,
    members: Vec<String>,
    violations: Vec<String>,
}

struct Table {
    born: Instant,
    acked_below: u64,
    results: BTreeMap<u64, (Item, Outcome)>,
}

pub(crate) struct Cluster {
    pub(crate) world: Arc<Mutex<World>>,
    pub(crate) addresses: Vec<String>,
    nodes: Vec<Option<tokio::runtime::Runtime>>,
    frozen: Vec<watch::Sender<bool>>,
}

/// The number of shards of a cluster.
pub(crate) const SHARDS: u32 = 8;

impl Cluster {
    /// Starts a store of one group of `count` nodes.
    pub(crate) fn start(count: usize) -> Self {
        Self::groups(&[count])
    }

    /// Starts groups of so many nodes, numbered from 1, which own the shards in turn. Nodes are numbered through.
    pub(crate) fn groups(sizes: &[usize]) -> Self {
        let mut cluster = Self {
            world: Arc::new(Mutex::new(World::new())),
            addresses: Vec::new(),
            nodes: Vec::new(),
            frozen: Vec::new(),
        };
        for (gid, size) in (1..).map(Gid).zip(sizes) {
            for _ in 0..*size {
                let node = cluster.addresses.len();
                cluster.addresses.push("127.0.0.1:0".to_owned());
                cluster.nodes.push(None);
                cluster.frozen.push(watch::Sender::new(false));
                cluster.world().groups.push(gid);
                cluster.restart(node);
            }
        }
        let gids: Vec<Gid> = (1..=sizes.len() as u64).map(Gid).collect();
        let mut world = cluster.world();
        world.hints = true;
        world.members.clone_from(&cluster.addresses);
        let groups = gids.iter().map(|gid| (*gid, world.addresses_of(*gid)));
        let groups = groups.collect();
        world.reconfigure(&groups, &gids.repeat(SHARDS as usize)[..SHARDS as usize]);
        drop(world);
        for gid in gids {
            let first = cluster.world().groups.iter().position(|it| *it == gid);
            cluster.elect(first.unwrap());
        }
        cluster
    }

    /// Makes a configuration in which the shards have these owners.
    pub(crate) fn assign(&self, owners: [u64; SHARDS as usize]) {
        let mut world = self.world();
        let groups = world.config.member_addresses();
        world.reconfigure(&groups, &owners.map(Gid));
    }

    /// Makes a configuration in which one group has left and another owns its shards.
    pub(crate) fn leave(&self, gone: Gid, to: Gid) {
        let mut world = self.world();
        let mut groups = world.config.member_addresses();
        groups.remove(&gone);
        let owners: Vec<Gid> = world.config.owners().to_vec();
        let owners: Vec<Gid> = owners
            .into_iter()
            .map(|it| if it == gone { to } else { it })
            .collect();
        world.reconfigure(&groups, &owners);
    }

    /// Makes nodes and configurations name other addresses than those at which the nodes listen.
    pub(crate) fn advertise(&self, addresses: &[String]) {
        let mut world = self.world();
        world.members = addresses.to_vec();
        let gids: Vec<Gid> = world.config.groups().keys().copied().collect();
        let groups = gids.iter().map(|gid| (*gid, world.addresses_of(*gid)));
        let groups = groups.collect();
        let owners = world.config.owners().to_vec();
        world.reconfigure(&groups, &owners);
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    pub(crate) fn options(&self) -> ClientOptions {
        ClientOptions::new(self.addresses.clone())
    }

    /// Makes `node` the leader of its group, in a new term.
    pub(crate) fn elect(&self, node: usize) {
        let mut world = self.world();
        let gid = world.groups[node];
        world.leaders.insert(gid, node);
        *world.terms.entry(gid).or_default() += 1;
    }

    /// Takes the leadership of the first group away.
    pub(crate) fn depose(&self) {
        self.world().leaders.remove(&Gid(1));
    }

    /// Kills a node: its connections break, and the calls that it was serving are lost.
    pub(crate) fn kill(&mut self, node: usize) {
        if let Some(runtime) = self.nodes[node].take() {
            // In a thread, because a runtime can't block on another. Joined, because the node must have stopped on return.
            let over = move || runtime.shutdown_timeout(Duration::from_secs(5));
            std::thread::spawn(over).join().unwrap();
        }
    }

    pub(crate) fn restart(&mut self, node: usize) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let address: SocketAddr = self.addresses[node].parse().unwrap();
        let incoming = {
            let _within = runtime.enter();
            // The socket of a killed node may stay bound for a moment.
            let start = Instant::now();
            loop {
                match TcpIncoming::bind(address) {
                    Ok(incoming) => break incoming.with_nodelay(Some(true)),
                    Err(error) => assert!(start.elapsed() < Duration::from_secs(5), "{error}"),
                }
                std::thread::yield_now();
            }
        };
        self.addresses[node] = incoming.local_addr().unwrap().to_string();
        let service = Node {
            index: node,
            world: Arc::clone(&self.world),
            frozen: self.frozen[node].subscribe(),
        };
        runtime.spawn(
            Server::builder()
                .add_service(KvServer::new(service.clone()))
                .add_service(ShardctrlerServer::new(service.clone()))
                .add_service(AdminServer::new(service))
                .serve_with_incoming(incoming),
        );
        self.nodes[node] = Some(runtime);
    }

    /// Makes the node keep its connections and answer nothing.
    pub(crate) fn freeze(&self, node: usize) {
        self.frozen[node].send_replace(true);
    }

    pub(crate) fn thaw(&self, node: usize) {
        self.frozen[node].send_replace(false);
    }

    /// Forgets all sessions, as a cluster does when they expire.
    pub(crate) fn forget_sessions(&self) {
        self.world().sessions.clear();
    }

    pub(crate) fn sessions(&self) -> usize {
        self.world().sessions.len()
    }

    pub(crate) fn check(&self) {
        assert_eq!(self.world().violations, Vec::<String>::new());
    }

    pub(crate) fn value(&self, key: &str) -> Bytes {
        let world = self.world();
        world.data.get(key.as_bytes()).cloned().unwrap_or_default()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in 0..self.nodes.len() {
            self.kill(node);
        }
    }
}

/// Waits for a condition that another task or thread brings about.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "never: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

pub(crate) fn strikes(message: u64, every: u64) -> bool {
    every != 0 && message.is_multiple_of(every)
}

/// The result of a message.
enum Served {
    Answers(Vec<BatchResult>),
    Broken,
}

impl World {
    fn new() -> Self {
        Self {
            data: BTreeMap::new(),
            sessions: HashMap::new(),
            groups: Vec::new(),
            leaders: BTreeMap::new(),
            terms: BTreeMap::new(),
            config: ShardConfig::empty(SHARDS),
            deltas: Vec::new(),
            oldest: ShardConfig::empty(SHARDS),
            accepted: BTreeMap::new(),
            deaf: BTreeSet::new(),
            pulling: BTreeSet::new(),
            stuck: BTreeMap::new(),
            strangers: BTreeSet::new(),
            estranged: 0,
            older: false,
            news: watch::Sender::new(()),
            changes: HashMap::new(),
            settled: BTreeMap::new(),
            watches: 0,
            turned_away: 0,
            not_ready: Vec::new(),
            exported: 0,
            hints: false,
            faults: Faults::default(),
            ttl: None,
            messages: 0,
            applied: 0,
            repeated: 0,
            repeated_at: BTreeSet::new(),
            refused_sessions: 0,
            outstanding: 0,
            most_outstanding: 0,
            largest_batch: 0,
            streams: 0,
            asked: 0,
            transfers: Vec::new(),
            members: Vec::new(),
            violations: Vec::new(),
        }
    }

    pub(crate) fn addresses_of(&self, gid: Gid) -> Vec<String> {
        let members = self.members.iter().zip(&self.groups);
        let own = members.filter(|(_, of)| **of == gid);
        own.map(|(address, _)| address.clone()).collect()
    }

    fn reconfigure(&mut self, groups: &BTreeMap<Gid, Vec<String>>, owners: &[Gid]) {
        let delta = ConfigDelta::between(&self.config, groups, owners);
        self.config.apply(&delta).unwrap();
        self.deltas.push(delta);
        let gids: BTreeSet<Gid> = self.groups.iter().copied().collect();
        for gid in gids.difference(&self.deaf.clone()) {
            self.accepted.insert(*gid, self.config.clone());
        }
        self.news.send_replace(());
    }

    /// Makes all groups accept the latest configuration.
    pub(crate) fn accept(&mut self) {
        self.deaf.clear();
        for config in self.accepted.values_mut() {
            config.clone_from(&self.config);
        }
    }

    /// Returns the refusal of a group that doesn't serve a shard.
    fn shard_error(&mut self, node: usize, shard: ShardId) -> Option<ErrorDetail> {
        let gid = self.groups[node];
        let accepted = &self.accepted[&gid];
        if accepted.owner(shard) != gid {
            self.turned_away += 1;
            return Some(errors::wrong_group(accepted.num().0));
        }
        let pulling = self.pulling.contains(&shard);
        pulling.then(|| errors::shard_not_ready(2))
    }

    /// Returns the number of sessions that were opened.
    pub(crate) fn sessions_opened(&self) -> usize {
        self.sessions.len()
    }

    /// Goes back to configuration 0, in which no group owns a shard.
    pub(crate) fn disown(&mut self) {
        self.config = ShardConfig::empty(SHARDS);
        self.deltas.clear();
    }

    fn violate(&mut self, what: String) {
        self.violations.push(what);
    }

    fn role_error(&self, node: usize, addresses: &[String]) -> Option<ErrorDetail> {
        let leader = self.leaders.get(&self.groups[node]).copied();
        if leader == Some(node) {
            return None;
        }
        let leader = leader.filter(|_| self.hints);
        Some(errors::not_leader(leader.map_or("", |it| &addresses[it])))
    }

    fn serve(&mut self, node: usize, request: BatchRequest) -> Served {
        self.messages += 1;
        let message = self.messages;
        self.largest_batch = self.largest_batch.max(request.items.len());
        let faults = self.faults;
        if strikes(message, faults.lose_request) {
            return Served::Broken;
        }
        let members = self.members.clone();
        let mut results = Vec::new();
        for item in request.items {
            let asked = item.request.expect("an item has a request");
            let outcome = if let Some(error) = self.role_error(node, &members) {
                Outcome::Error(error)
            } else if strikes(message, faults.overloaded) {
                Outcome::Error(errors::overloaded("test", 1, 1))
            } else if strikes(message, faults.outcome_unknown) {
                if item.id.is_multiple_of(2) {
                    self.apply(node, asked);
                }
                Outcome::Error(errors::outcome_unknown(""))
            } else {
                self.apply(node, asked)
            };
            results.push(BatchResult {
                id: item.id,
                response: Some(outcome),
            });
        }
        let not_ready = results.iter().filter(|it| is_not_ready(it)).count() as u64;
        if not_ready > 0 {
            self.not_ready.push(not_ready);
        }
        if strikes(message, faults.lose_answer) {
            return Served::Broken;
        }
        // Answers arrive in any order.
        results.reverse();
        Served::Answers(results)
    }

    fn apply(&mut self, node: usize, item: Item) -> Outcome {
        if let Some(error) = self.shard_error(node, shard_of(key_of(&item))) {
            return Outcome::Error(error);
        }
        let session = match &item {
            Item::Get(it) => {
                let value = self.data.get(&it.key).cloned();
                return Outcome::Get(GetResponse {
                    found: value.is_some(),
                    value: value.unwrap_or_default(),
                });
            }
            Item::Put(it) => it.session.clone(),
            Item::Append(it) => it.session.clone(),
            Item::Delete(it) => it.session.clone(),
            Item::CompareAndSwap(it) => it.session.clone(),
        };
        let Some(session) = session else {
            self.violations
                .push(format!("a write without a name: {item:?}"));
            return Outcome::Error(errors::bad_request("session", "is missing"));
        };
        let repeated = self.repeated;
        if let Err(answered) = self.named(&session, &item) {
            if self.repeated > repeated {
                self.repeated_at.insert(self.groups[node]);
            }
            return answered;
        }
        let outcome = self.write(&item);
        let table = self.sessions.get_mut(&session.client_id).unwrap();
        table
            .results
            .insert(session.sequence, (item, outcome.clone()));
        outcome
    }

    /// `Err`: the answer, without applying.
    fn named(&mut self, session: &Session, item: &Item) -> Result<(), Outcome> {
        let ttl = self.ttl;
        let known = self.sessions.get_mut(&session.client_id);
        let alive = known.filter(|it| ttl.is_none_or(|ttl| it.born.elapsed() < ttl));
        let Some(table) = alive else {
            self.refused_sessions += 1;
            return Err(Outcome::Error(errors::session_expired()));
        };
        let Session {
            sequence,
            acked_below,
            ..
        } = *session;
        if sequence == 0 || acked_below > sequence || acked_below < 1 {
            self.violations
                .push(format!("bad numbers {sequence}, {acked_below}"));
        }
        table.acked_below = table.acked_below.max(acked_below);
        let acked_below = table.acked_below;
        table.results.retain(|number, _| *number >= acked_below);
        if sequence < acked_below {
            let stale = errors::bad_request("session", "the sequence was acknowledged");
            return Err(Outcome::Error(stale));
        }
        if sequence - acked_below >= 512 {
            self.violations
                .push(format!("window: {sequence} over {acked_below}"));
        }
        if let Some((first, outcome)) = table.results.get(&sequence) {
            self.repeated += 1;
            if !same_write(first, item) {
                self.violations
                    .push(format!("one name for {first:?} and {item:?}"));
            }
            return Err(outcome.clone());
        }
        Ok(())
    }

    fn write(&mut self, item: &Item) -> Outcome {
        self.applied += 1;
        match item {
            Item::Get(_) => unreachable!("not a write"),
            Item::Put(it) if it.value.len() > 1_000_000 => {
                let size = it.value.len() as u64;
                Outcome::Error(errors::too_large("value", size, 1_000_000))
            }
            Item::Put(it) => {
                self.data.insert(it.key.clone(), it.value.clone());
                Outcome::Put(PutResponse {})
            }
            Item::Append(it) => {
                let old = self.data.get(&it.key).cloned().unwrap_or_default();
                let new = Bytes::from([old, it.suffix.clone()].concat());
                let length = new.len() as u64;
                self.data.insert(it.key.clone(), new);
                Outcome::Append(AppendResponse { length })
            }
            Item::Delete(it) => {
                let existed = self.data.remove(&it.key).is_some();
                Outcome::Delete(DeleteResponse { existed })
            }
            Item::CompareAndSwap(it) => {
                let swapped = self.data.get(&it.key) == it.expected.as_ref();
                match (swapped, it.new.clone()) {
                    (true, Some(new)) => drop(self.data.insert(it.key.clone(), new)),
                    (true, None) => drop(self.data.remove(&it.key)),
                    (false, _) => {}
                }
                Outcome::CompareAndSwap(CompareAndSwapResponse { swapped })
            }
        }
    }
}

pub(crate) fn shard_of(key: &[u8]) -> ShardId {
    types::shard_of(key, SHARDS)
}

fn is_not_ready(result: &BatchResult) -> bool {
    let Some(Outcome::Error(error)) = &result.response else {
        return false;
    };
    matches!(error.kind, Some(Kind::ShardNotReady(_)))
}

fn key_of(item: &Item) -> &Bytes {
    match item {
        Item::Get(it) => &it.key,
        Item::Put(it) => &it.key,
        Item::Append(it) => &it.key,
        Item::Delete(it) => &it.key,
        Item::CompareAndSwap(it) => &it.key,
    }
}

/// Returns true if both are the same write, whatever they acknowledge.
fn same_write(one: &Item, other: &Item) -> bool {
    match (one, other) {
        (Item::Put(a), Item::Put(b)) => a.key == b.key && a.value == b.value,
        (Item::Append(a), Item::Append(b)) => a.key == b.key && a.suffix == b.suffix,
        (Item::Delete(a), Item::Delete(b)) => a.key == b.key,
        (Item::CompareAndSwap(a), Item::CompareAndSwap(b)) => {
            a.key == b.key && a.expected == b.expected && a.new == b.new
        }
        _ => false,
    }
}
