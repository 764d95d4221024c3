//! Measures the processor time that a real node takes although nobody writes: by the number of its shards, of its remembered sessions, and
//! of calls for its status. It measures processor time, so other programs on the machine disturb it little.
//!
//! `SHARDKV_NODE` names another program, such as one of an earlier version, to compare with.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench prints, and may panic as a test may"
)]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use api::v1::admin_client::AdminClient;
use api::v1::kv_client::KvClient;
use api::v1::{OpenSessionRequest, PutRequest, Session, ShardsRequest, StatusRequest};
use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use tonic::transport::Channel;

/// The time of one measurement.
const MEASURE: Duration = Duration::from_secs(10);
/// Clock ticks in a second, by which Linux counts processor time.
const TICKS: f64 = 100.0;
const SESSIONS: u64 = 76_000;

struct Node {
    process: Child,
    address: String,
    metrics: String,
    _data: tempfile::TempDir,
}

impl Node {
    async fn start(options: &[&str]) -> Self {
        let program = std::env::var("SHARDKV_NODE");
        let program = program.unwrap_or_else(|_| env!("CARGO_BIN_EXE_shardkv-node").to_owned());
        let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let listeners = [free(), free()];
        let [address, metrics] = listeners.map(|it| it.local_addr().unwrap().to_string());
        let data = tempfile::tempdir().unwrap();
        let process = Command::new(program)
            .args(["--data-dir", data.path().to_str().unwrap()])
            .args(["--listen", &address, "--peers", &address])
            .args(["--metrics-listen", &metrics])
            .args(options)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let node = Self {
            process,
            address,
            metrics,
            _data: data,
        };
        while node.open_session().await.is_none() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        node
    }

    async fn channel(&self) -> Option<Channel> {
        let endpoint = Channel::from_shared(format!("http://{}", self.address));
        endpoint.unwrap().connect().await.ok()
    }

    /// Returns the id of a new session, once the node leads.
    async fn open_session(&self) -> Option<Bytes> {
        let mut kv = KvClient::new(self.channel().await?);
        let opened = kv.open_session(OpenSessionRequest::default()).await.ok()?;
        Some(opened.into_inner().client_id)
    }

    /// Writes by many sessions. The node opens one, and the others have the same birth.
    async fn write(&self, sessions: u64) {
        let birth = self.open_session().await.unwrap().slice(..8);
        let kv = KvClient::new(self.channel().await.unwrap());
        let puts = futures::stream::iter(0..sessions).map(|nonce| {
            let (mut kv, mut client_id) = (kv.clone(), BytesMut::from(&birth[..]));
            client_id.put_u64(nonce);
            let session = Session {
                client_id: client_id.freeze(),
                sequence: 1,
                acked_below: 1,
            };
            let put = PutRequest {
                key: format!("key {nonce}").into(),
                value: Bytes::from_static(b"v"),
                session: Some(session),
            };
            async move { kv.put(put).await.unwrap() }
        });
        puts.buffer_unordered(256).for_each(async |_| ()).await;
    }

    /// Returns the processor time of the process so far, in ticks.
    fn used(&self) -> u64 {
        let path = format!("/proc/{}/stat", self.process.id());
        let stat = fs::read_to_string(Path::new(&path)).unwrap();
        let after_name = stat.rsplit_once(')').unwrap().1;
        // User and system time are fields 14 and 15 of the line, of which two are cut off.
        let times = after_name.split_whitespace().skip(11).take(2);
        times.map(|it| it.parse::<u64>().unwrap()).sum()
    }

    /// Prints the number of sessions that the node remembers, by its metrics.
    fn count_sessions(&self) {
        let mut stream = TcpStream::connect(&self.metrics).unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let mut lines = answer.lines();
        let line = lines.find(|line| line.starts_with("shardkv_sessions"));
        println!("{}", line.unwrap_or("the node doesn't count its sessions"));
    }

    /// Prints the share of a core that the process takes while `work` runs each second.
    async fn measure(&self, what: &str, work: impl AsyncFn()) {
        let (begun, before) = (Instant::now(), self.used());
        while begun.elapsed() < MEASURE {
            work().await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        #[expect(clippy::cast_precision_loss, reason = "a few thousand ticks")]
        let used = (self.used() - before) as f64 / TICKS;
        let share = 100.0 * used / begun.elapsed().as_secs_f64();
        println!("{what:<60} {share:6.2} % of a core");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn run() {
    let node = Node::start(&[]).await;
    node.measure("64 shards", async || ()).await;
    drop(node);

    let node = Node::start(&["--shards", "100000", "--session-ttl-ms", "120000"]).await;
    node.measure("100,000 shards", async || ()).await;
    let admin = AdminClient::new(node.channel().await.unwrap());
    let admin = admin.max_decoding_message_size(usize::MAX);
    let status = async || drop(admin.clone().status(StatusRequest {}).await.unwrap());
    node.measure("100,000 shards, status asked each second", status)
        .await;
    let shards = async |runs: Vec<api::v1::ShardRun>| {
        let request = ShardsRequest {
            shards: runs,
            exact: false,
        };
        drop(admin.clone().shards(request).await.unwrap());
    };
    let all = async || shards(Vec::new()).await;
    node.measure("100,000 shards, all asked for each second", all)
        .await;
    let few = async || {
        shards(vec![api::v1::ShardRun {
            first: 7,
            count: 10,
        }])
        .await;
    };
    node.measure("100,000 shards, ten asked for each second", few)
        .await;
    let begun = Instant::now();
    node.write(SESSIONS).await;
    node.count_sessions();
    node.measure("100,000 shards, 76,000 sessions", async || ())
        .await;
    let silent = Duration::from_secs(125).saturating_sub(begun.elapsed());
    tokio::time::sleep(silent).await;
    // One search in a second visits a part of the tables.
    for _ in 0..10 {
        node.measure("100,000 shards, sessions that expire", async || ())
            .await;
        node.count_sessions();
    }
}

fn main() {
    tokio::runtime::Runtime::new().unwrap().block_on(run());
}
