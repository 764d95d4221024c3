//! A group of real nodes on an address of its own.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use shardkv_client::{Admin, Client, ClientOptions, NodeStatus, Role};
use tempfile::TempDir;

use crate::node::Node;
use crate::wait::{holds, until};

const LISTEN: u16 = 7400;
const METRICS: u16 = 7500;
const PROXY: u16 = 7600;
const FRONT: u16 = 7700;

/// What a cluster shall be like.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) replicas: u16,
    /// Options beyond those that every cluster gets, as `("name", "value")`; later ones win.
    pub(crate) options: Vec<(&'static str, String)>,
    /// Nodes tell others an address at which the test puts a [`crate::proxy::Proxy`].
    pub(crate) behind_proxies: bool,
    /// Where data directories are made; a temporary directory by default.
    pub(crate) data: Option<PathBuf>,
}

impl Setup {
    /// `replicas` nodes as they come.
    pub(crate) fn of(replicas: u16) -> Self {
        Self {
            replicas,
            options: Vec::new(),
            behind_proxies: false,
            data: None,
        }
    }

    /// The same with an option set.
    pub(crate) fn with(mut self, name: &'static str, value: &str) -> Self {
        self.options.push((name, value.to_owned()));
        self
    }
}

/// Nodes `0..replicas`, each running or not.
pub(crate) struct Cluster {
    // Before the directory, so that processes end before their files go.
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

    /// A cluster of which nothing runs yet.
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

    /// Where the node itself listens.
    pub(crate) fn listen(&self, node: u16) -> SocketAddr {
        self.at(LISTEN, node)
    }

    /// Where others are told to reach the node.
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

    /// Where the node serves metrics.
    pub(crate) fn metrics(&self, node: u16) -> SocketAddr {
        self.at(METRICS, node)
    }

    /// What the node says of its readiness.
    pub(crate) async fn readyz(&self, node: u16) -> String {
        crate::bad_input::http_get(self.metrics(node), "/readyz").await
    }

    /// An address beside those of the nodes, for whoever stands before them.
    pub(crate) fn front(&self) -> SocketAddr {
        self.at(FRONT, 0)
    }

    /// The node's data directory.
    pub(crate) fn data(&self, node: u16) -> PathBuf {
        let below = self.setup.data.as_deref().unwrap_or(self.directory.path());
        below.join(format!("node-{node}"))
    }

    /// The arguments of a node.
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

    /// Changes an option for nodes that are started from now on.
    pub(crate) fn set(&mut self, name: &'static str, value: &str) {
        self.setup.options.push((name, value.to_owned()));
    }

    /// Starts a node that doesn't run.
    pub(crate) fn start_node(&mut self, node: u16) {
        let log = self.directory.path().join(format!("node-{node}.log"));
        let started = Node::start(&self.arguments(node), &log);
        let before = self.nodes[usize::from(node)].replace(started);
        assert!(before.is_none(), "node {node} runs already");
    }

    /// Whether the node was started, and not taken since.
    pub(crate) fn runs(&self, node: u16) -> bool {
        self.nodes[usize::from(node)].is_some()
    }

    /// The process of a node that was started.
    pub(crate) fn node(&mut self, node: u16) -> &mut Node {
        self.nodes[usize::from(node)]
            .as_mut()
            .expect("it was started")
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self, node: u16) {
        self.take(node).kill();
    }

    /// The process of a node, no longer the cluster's.
    pub(crate) fn take(&mut self, node: u16) -> Node {
        self.nodes[usize::from(node)]
            .take()
            .expect("it was started")
    }

    /// The addresses at which clients find the cluster.
    pub(crate) fn addresses(&self) -> Vec<String> {
        (0..self.setup.replicas)
            .map(|node| self.address(node).to_string())
            .collect()
    }

    /// A client of its own connections and session, patient enough for every fault of these tests.
    pub(crate) async fn client(&self) -> Client {
        self.client_with(|_| ()).await
    }

    /// A client with other options.
    pub(crate) async fn client_with(&self, change: impl Fn(&mut ClientOptions)) -> Client {
        let mut options = ClientOptions::new(self.addresses());
        options.request_timeout = Duration::from_secs(30);
        change(&mut options);
        until("a client connects", async || {
            Client::connect(options.clone()).await
        })
        .await
    }

    /// The node, to be asked directly and not through a proxy.
    pub(crate) fn admin(&self, node: u16) -> Admin {
        let address = self.listen(node).to_string();
        Client::lazy(ClientOptions::new([address.clone()]))
            .unwrap()
            .admin(&address)
            .unwrap()
    }

    /// How a node sees things, once it answers.
    pub(crate) async fn status(&self, node: u16) -> NodeStatus {
        let admin = self.admin(node);
        until("a node tells its status", async || admin.status().await).await
    }

    /// Waits for a status of `node` of which `condition` holds.
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

    /// Waits until a node says that it leads, and a majority agrees.
    pub(crate) async fn leader(&self) -> u16 {
        self.leader_among(&(0..self.setup.replicas).collect::<Vec<_>>())
            .await
    }

    /// The same, asking only these nodes: a frozen one would not answer.
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

    /// Some node that doesn't lead.
    pub(crate) async fn follower(&self) -> u16 {
        let leader = self.leader().await;
        (leader + 1) % self.setup.replicas
    }

    /// Waits until every node has applied what the leader has committed by now.
    pub(crate) async fn all_caught_up(&self) {
        let leader = self.leader().await;
        let commit = self.status(leader).await.commit_index;
        for node in 0..self.setup.replicas {
            self.status_when(node, "all nodes catch up", |s| s.last_applied >= commit)
                .await;
        }
    }
}

/// An address in 127.0.0.0/8 that no other cluster of this or another test process has.
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
