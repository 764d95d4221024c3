//! Nodes with names, like the pods of a `StatefulSet`: a name doesn't resolve until its pod runs, and resolves to another
//! address after each restart.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use shardkv_client::{Client, ClientOptions, NodeStatus, Role};
use tempfile::TempDir;
use tokio::net::UdpSocket;

use crate::cluster::own_host;
use crate::node::Node;
use crate::proxy::Proxy;
use crate::wait::{holds, until};

const PORT: u16 = 7400;

/// Three nodes, each with a name that resolves to the address that the test chooses.
struct Pods {
    nodes: [Option<Node>; 3],
    hosts: [Option<IpAddr>; 3],
    listening: [IpAddr; 3],
    directory: TempDir,
    /// A name server that never answers, so that looking up an unknown name takes long.
    _silent: UdpSocket,
}

impl Pods {
    /// Prepares the nodes. Returns `None` with a message where mounting isn't allowed. CI runs as root and sets `CI`, so
    /// there the tests can't be skipped.
    async fn prepare() -> Option<Self> {
        let can = Command::new("unshare")
            .args(["--mount", "mount", "--bind", "/etc/hosts", "/etc/hosts"])
            .output();
        if !can.is_ok_and(|output| output.status.success()) {
            assert!(std::env::var_os("CI").is_none(), "CI must be able to mount");
            println!("SKIPPED: private names need a mount, and that needs root");
            return None;
        }
        let directory = tempfile::Builder::new().prefix("names-").tempdir().unwrap();
        let silent = UdpSocket::bind((own_host(), 53)).await.unwrap();
        let server = silent.local_addr().unwrap().ip();
        fs::write(
            directory.path().join("resolv.conf"),
            format!("nameserver {server}\n"),
        )
        .unwrap();
        let pods = Self {
            nodes: [None, None, None],
            hosts: [None; 3],
            listening: [own_host(), own_host(), own_host()],
            directory,
            _silent: silent,
        };
        pods.write_hosts();
        Some(pods)
    }

    fn name(pod: usize) -> String {
        format!("pod-{pod}.store.test")
    }

    fn write_hosts(&self) {
        let mut text = String::new();
        for (pod, host) in self.hosts.iter().enumerate() {
            if let Some(host) = host {
                writeln!(text, "{host} {}", Self::name(pod)).unwrap();
            }
        }
        // Written in place, because the nodes have mounted this very file.
        fs::write(self.directory.path().join("hosts"), text).unwrap();
    }

    /// Makes the pod's name resolve to `host`.
    fn lead(&mut self, pod: usize, host: IpAddr) {
        self.hosts[pod] = Some(host);
        self.write_hosts();
    }

    fn start(&mut self, pod: usize) {
        let peers: Vec<String> = (0..3)
            .map(|pod| format!("{}:{PORT}", Self::name(pod)))
            .collect();
        let options = [
            (
                "data-dir",
                self.file(&format!("data-{pod}")).display().to_string(),
            ),
            (
                "listen",
                SocketAddr::new(self.listening[pod], PORT).to_string(),
            ),
            ("advertise", peers[pod].clone()),
            ("metrics-listen", "off".to_owned()),
            ("peers", peers.join(",")),
        ];
        let options = options.into_iter();
        let arguments: Vec<String> = options
            .flat_map(|(name, value)| [format!("--{name}"), value])
            .collect();
        let log = self.file(&format!("pod-{pod}.log"));
        self.nodes[pod] = Some(Node::start_among(self.directory.path(), &arguments, &log));
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Kills a pod and starts it at another address. Its name still resolves to the old address.
    fn replace(&mut self, pod: usize) {
        self.nodes[pod].take().unwrap().kill();
        self.listening[pod] = own_host();
        self.start(pod);
    }

    fn printed(&self, pod: usize) -> String {
        self.nodes[pod].as_ref().unwrap().printed()
    }

    /// Returns a client that can't resolve the names and uses the nodes' present addresses.
    fn client(&self) -> Client {
        let addresses = self.listening.map(|host| format!("{host}:{PORT}"));
        let mut options = ClientOptions::new(addresses);
        options.request_timeout = std::time::Duration::from_secs(30);
        Client::lazy(options).unwrap()
    }

    async fn status(&self, pod: usize) -> Result<NodeStatus, String> {
        let address = format!("{}:{PORT}", self.listening[pod]);
        let client = Client::lazy(ClientOptions::new([address.clone()])).unwrap();
        let admin = client.admin(&address).unwrap();
        admin.status().await.map_err(|error| error.to_string())
    }

    /// Returns a pod that doesn't lead.
    async fn follower(&self) -> usize {
        until("a leader is followed", async || {
            for pod in 0..3 {
                let status = self.status(pod).await?;
                if status.role == Role::Follower && status.leader_id.is_some() {
                    return Ok(pod);
                }
            }
            Err("nobody follows".to_owned())
        })
        .await
    }

    /// Waits until all pods have applied what any of them has committed now.
    async fn all_caught_up(&self) {
        let since = Instant::now();
        let mut most = 0;
        for pod in 0..3 {
            let status = until("a node answers", async || self.status(pod).await).await;
            most = most.max(status.commit_index);
        }
        for pod in 0..3 {
            until("all catch up", async || {
                let status = self.status(pod).await?;
                let led = status.leader_id.is_some();
                holds(
                    led && status.last_applied >= most,
                    format!("pod {pod}, {most}: {status:?}"),
                )
            })
            .await;
        }
        println!("all have caught up after {:?}", since.elapsed());
    }
}

async fn put(client: &Client, key: &str) {
    client.put(key.to_owned(), "kept").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_may_mean_nothing_at_first_and_something_else_later() {
    let Some(mut pods) = Pods::prepare().await else {
        return;
    };
    for pod in 0..3 {
        pods.start(pod);
    }
    let waits_for = |pods: &Pods, pod: usize, missing: &[usize]| {
        let names: Vec<String> = missing
            .iter()
            .map(|missing| format!("{}:{PORT}", Pods::name(*missing)))
            .collect();
        let told = format!("no answer yet from {}\n", names.join(", "));
        let printed = pods.printed(pod);
        holds(printed.contains(&told), printed)
    };
    for pod in 0..3 {
        let others: Vec<usize> = (0..3).filter(|other| *other != pod).collect();
        until("nobody is found", async || waits_for(&pods, pod, &others)).await;
    }
    for pod in [0, 1] {
        pods.lead(pod, pods.listening[pod]);
    }
    for pod in [0, 1] {
        until("one is missing", async || waits_for(&pods, pod, &[2])).await;
    }
    pods.lead(2, pods.listening[2]);
    pods.all_caught_up().await;
    put(&pods.client(), "first").await;

    // All pods are replaced at once, and find each other before their names resolve to the new addresses.
    for pod in 0..3 {
        pods.replace(pod);
    }
    for pod in 0..3 {
        until("it looks for others", async || pods.status(pod).await).await;
        pods.lead(pod, pods.listening[pod]);
    }
    let client = pods.client();
    let found = client.get("first").await.unwrap();
    assert_eq!(found.as_deref(), Some(&b"kept"[..]));
    pods.all_caught_up().await;

    // One pod after the other is replaced.
    for pod in 0..3 {
        pods.replace(pod);
        pods.lead(pod, pods.listening[pod]);
        put(&pods.client(), "second").await;
        pods.all_caught_up().await;
    }

    // One pod vanishes: its connections stay open and silent.
    let vanishing = pods.follower().await;
    let before = own_host();
    let listening = SocketAddr::new(pods.listening[vanishing], PORT);
    let proxy = Proxy::start(SocketAddr::new(before, PORT), listening).await;
    pods.lead(vanishing, before);
    // The other pods use the proxy only when they reconnect.
    pods.nodes[vanishing].take().unwrap().kill();
    pods.start(vanishing);
    pods.all_caught_up().await;
    proxy.stall();
    pods.replace(vanishing);
    pods.lead(vanishing, pods.listening[vanishing]);
    put(&pods.client(), "third").await;
    pods.all_caught_up().await;
    drop(proxy);
}
