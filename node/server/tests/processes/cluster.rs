//! A group of real nodes on an address of its own.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use shardkv_client::{Admin, Client, ClientOptions, NodeStatus, Role};
use tempfile::TempDir;

use crate::node::Node;
use crate::proxy::Proxy;
use crate::wait::{holds, until};

const LISTEN: u16 = 7400;
const METRICS: u16 = 7500;
const PROXY: u16 = 7600;
const FRONT: u16 = 7700;

/// The settings of a cluster.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) replicas: u16,
    /// Options beyond those of every cluster, as `("name", "value")`. Later ones win.
    pub(crate) options: Vec<(&'static str, String)>,
    /// True if nodes advertise an address at which the test puts a [`crate::proxy::Proxy`].
    pub(crate) behind_proxies: bool,
    /// The parent of the data directories; a temporary directory by default.
    pub(crate) data: Option<PathBuf>,
}

impl Setup {
    /// Returns the settings of `replicas` nodes with default options.
    pub(crate) fn of(replicas: u16) -> Self {
        Self {
            replicas,
            options: Vec::new(),
            behind_proxies: false,
            data: None,
        }
    }

    /// Sets an option.
    pub(crate) fn with(mut self, name: &'static str, value: &str) -> Self {
        self.options.push((name, value.to_owned()));
        self
    }
}

/// The nodes `0..replicas`, each running or not.
pub(crate) struct Cluster {
    // Declared before the directory, so that processes end before their files are removed.
    nodes: Vec<Option<Node>>,
    setup: Setup,
    directory: TempDir,
    host: IpAddr,
}

impl Cluster {
    /// Starts all nodes and waits until they have a leader.
    pub(crate) async fn start(setup: Setup) -> Self {
        let mut cluster = Self::prepare(setup);
        for node in 0..cluster.setup.replicas {
            cluster.start_node(node);
        }
        let all: Vec<u16> = (0..cluster.setup.replicas).collect();
        until("a leader is elected", async || {
            for &node in &all {
                let node = cluster.node(node);
                assert!(node.is_running(), "it ended: {}", node.printed());
            }
            cluster.find_leader(&all).await
        })
        .await;
        cluster
    }

    /// Does the same behind proxies that deliver late, each node's by its own delay. `setup.behind_proxies` must be set.
    pub(crate) async fn start_behind(setup: Setup, delays: &[Duration]) -> (Self, Vec<Proxy>) {
        let mut cluster = Self::prepare(setup);
        let mut proxies = Vec::new();
        for (node, delay) in (0..).zip(delays) {
            let (from, to) = (cluster.address(node), cluster.listen(node));
            proxies.push(Proxy::slow(from, to, *delay).await);
            cluster.start_node(node);
        }
        cluster.leader().await;
        (cluster, proxies)
    }

    /// Creates a cluster of which no node runs yet.
    pub(crate) fn prepare(setup: Setup) -> Self {
        Self {
            nodes: (0..setup.replicas).map(|_| None).collect(),
            setup,
            directory: tempfile::Builder::new()
                .prefix("shardkv-")
                .tempdir()
                .unwrap(),
            host: own_host(),
        }
    }

    fn at(&self, base: u16, node: u16) -> SocketAddr {
        SocketAddr::new(self.host, base + node)
    }

    /// Returns the address at which the node listens.
    pub(crate) fn listen(&self, node: u16) -> SocketAddr {
        self.at(LISTEN, node)
    }

    /// Returns the address that the node advertises.
    pub(crate) fn address(&self, node: u16) -> SocketAddr {
        self.at(
            if self.setup.behind_proxies {
                PROXY
            } else {
                LISTEN
            },
            node,
        )
    }

    /// Returns the address of the node's metrics.
    pub(crate) fn metrics(&self, node: u16) -> SocketAddr {
        self.at(METRICS, node)
    }

    /// Returns the text of the node's `/readyz`.
    pub(crate) async fn readyz(&self, node: u16) -> String {
        crate::bad_input::http_get(self.metrics(node), "/readyz").await
    }

    /// Returns an address beside those of the nodes, for a proxy in front of them.
    pub(crate) fn front(&self) -> SocketAddr {
        self.at(FRONT, 0)
    }

    /// Returns the node's data directory.
    pub(crate) fn data(&self, node: u16) -> PathBuf {
        let below = self.setup.data.as_deref().unwrap_or(self.directory.path());
        below.join(format!("node-{node}"))
    }

    /// Returns the arguments of a node.
    pub(crate) fn arguments(&self, node: u16) -> Vec<String> {
        let peers: Vec<String> = (0..self.setup.replicas)
            .map(|peer| self.address(peer).to_string())
            .collect();
        let mut options = vec![
            ("data-dir", self.data(node).display().to_string()),
            ("listen", self.listen(node).to_string()),
            ("advertise", self.address(node).to_string()),
            ("metrics-listen", self.metrics(node).to_string()),
            ("peers", peers.join(",")),
        ];
        for (name, value) in &self.setup.options {
            options.retain(|(other, _)| other != name);
            options.push((name, value.clone()));
        }
        options
            .into_iter()
            .flat_map(|(name, value)| [format!("--{name}"), value])
            .collect()
    }

    /// Changes an option for nodes that are started later.
    pub(crate) fn set(&mut self, name: &'static str, value: &str) {
        self.setup.options.push((name, value.to_owned()));
    }

    /// Starts a node that doesn't run.
    pub(crate) fn start_node(&mut self, node: u16) {
        let started = Node::start(&self.arguments(node), &self.log(node));
        self.put(node, started);
    }

    /// Does the same with a limit of open files.
    pub(crate) fn start_node_with_files(&mut self, node: u16, limit: u32) {
        let started = Node::start_with_files(limit, &self.arguments(node), &self.log(node));
        self.put(node, started);
    }

    /// Does the same with another standard error.
    pub(crate) fn start_node_with_stderr(&mut self, node: u16, stderr: Stdio) {
        let arguments = self.arguments(node);
        let started = Node::start_with_stderr(&arguments, &self.log(node), stderr);
        self.put(node, started);
    }

    fn log(&self, node: u16) -> PathBuf {
        self.directory.path().join(format!("node-{node}.log"))
    }

    fn put(&mut self, node: u16, started: Node) {
        let before = self.nodes[usize::from(node)].replace(started);
        assert!(before.is_none(), "node {node} runs already");
    }

    /// Returns true if the node was started and not taken since.
    pub(crate) fn runs(&self, node: u16) -> bool {
        self.nodes[usize::from(node)].is_some()
    }

    /// Returns the process of a node that was started.
    pub(crate) fn node(&mut self, node: u16) -> &mut Node {
        self.nodes[usize::from(node)]
            .as_mut()
            .expect("it was started")
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self, node: u16) {
        self.take(node).kill();
    }

    /// Removes the process of a node from the cluster and returns it.
    pub(crate) fn take(&mut self, node: u16) -> Node {
        self.nodes[usize::from(node)]
            .take()
            .expect("it was started")
    }

    /// Returns the addresses for clients.
    pub(crate) fn addresses(&self) -> Vec<String> {
        (0..self.setup.replicas)
            .map(|node| self.address(node).to_string())
            .collect()
    }

    /// Returns a client with its own connections and session, and with timeouts that outlast every fault of these tests.
    pub(crate) async fn client(&self) -> Client {
        self.client_with(|_| ()).await
    }

    /// Returns a client with other options.
    pub(crate) async fn client_with(&self, change: impl Fn(&mut ClientOptions)) -> Client {
        let mut options = ClientOptions::new(self.addresses());
        options.request_timeout = Duration::from_secs(30);
        change(&mut options);
        until("a client connects", async || {
            Client::connect(options.clone()).await
        })
        .await
    }

    /// Returns a client of the node's `Admin` service, which bypasses any proxy.
    pub(crate) fn admin(&self, node: u16) -> Admin {
        let address = self.listen(node).to_string();
        Client::lazy(ClientOptions::new([address.clone()]))
            .unwrap()
            .admin(&address)
            .unwrap()
    }

    /// Returns the status of a node, once it answers.
    pub(crate) async fn status(&self, node: u16) -> NodeStatus {
        let admin = self.admin(node);
        until("a node tells its status", async || admin.status().await).await
    }

    /// Waits until `condition` holds for a status of `node`.
    pub(crate) async fn status_when(
        &self,
        node: u16,
        what: &str,
        condition: impl Fn(&NodeStatus) -> bool,
    ) -> NodeStatus {
        let admin = self.admin(node);
        until(what, async || {
            let status = admin.status().await.map_err(|error| error.to_string())?;
            holds(condition(&status), format!("{status:?}"))?;
            Ok::<_, String>(status)
        })
        .await
    }

    /// Waits until a node leads and a majority agrees. Returns the node.
    pub(crate) async fn leader(&self) -> u16 {
        self.leader_among(&(0..self.setup.replicas).collect::<Vec<_>>())
            .await
    }

    /// Does the same with only these nodes, because a frozen node would not answer.
    pub(crate) async fn leader_among(&self, nodes: &[u16]) -> u16 {
        until("a leader is elected", || self.find_leader(nodes)).await
    }

    async fn find_leader(&self, nodes: &[u16]) -> Result<u16, String> {
        let mut leaders = Vec::new();
        let mut followed = Vec::new();
        for &node in nodes {
            let Ok(status) = self.admin(node).status().await else {
                continue;
            };
            if status.role == Role::Leader {
                leaders.push((status.term, node, status.node_id));
            }
            followed.push((status.term, status.leader_id));
        }
        let Some(&(term, node, id)) = leaders.iter().max() else {
            return Err(format!("nobody leads: {followed:?}"));
        };
        let agreed = followed.iter().filter(|&&f| f == (term, Some(id))).count();
        holds(
            agreed * 2 > usize::from(self.setup.replicas),
            format!("{agreed} follow node {node}"),
        )?;
        Ok(node)
    }

    /// Returns a node that doesn't lead.
    pub(crate) async fn follower(&self) -> u16 {
        let leader = self.leader().await;
        (leader + 1) % self.setup.replicas
    }

    /// Waits until every node has applied the leader's present commit index.
    pub(crate) async fn all_caught_up(&self) {
        let leader = self.leader().await;
        let commit = self.status(leader).await.commit_index;
        for node in 0..self.setup.replicas {
            self.status_when(node, "all nodes catch up", |s| s.last_applied >= commit)
                .await;
        }
    }
}

/// Returns an address in 127.0.0.0/8 that no other cluster of any test process has.
pub(crate) fn own_host() -> IpAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let cluster = NEXT.fetch_add(1, Ordering::Relaxed);
    let process = std::process::id();
    let low = |number: u32| u8::try_from(1 + number % 250).unwrap();
    IpAddr::V4(Ipv4Addr::new(
        127,
        low(process / 250),
        low(process),
        cluster,
    ))
}
