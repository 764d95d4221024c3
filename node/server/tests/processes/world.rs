//! Controllers and replica groups of real nodes, and clients that know no groups.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use api::v1::error_detail::Kind;
use api::v1::kv_client::KvClient;
use api::v1::shardctrler_client::ShardctrlerClient;
use api::v1::{
    AppendRequest, GetRequest, GroupAddresses, JoinRequest, LeaveRequest, OpenSessionRequest,
    PutRequest, QueryRequest, QueryResponse, Session,
};
use tokio::task::JoinSet;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::cluster::{Cluster, Setup};
use crate::wait::{PATIENCE, holds, until};

/// The number of shards of every world.
pub(crate) const SHARDS: &str = "16";

/// Controllers and replica groups. The groups are by position: the first is group 1.
pub(crate) struct World {
    pub(crate) controllers: Cluster,
    pub(crate) groups: Vec<Cluster>,
}

impl World {
    pub(crate) async fn start(groups: u64, replicas: u16) -> Self {
        let setup = Setup::of(replicas)
            .with("role", "controller")
            .with("shards", SHARDS);
        let controllers = Cluster::start(setup).await;
        let mut world = Self {
            groups: Vec::new(),
            controllers,
        };
        for gid in 1..=groups {
            let setup = world.group_setup(gid, replicas);
            world.groups.push(Cluster::start(setup).await);
        }
        world
    }

    pub(crate) fn group_setup(&self, gid: u64, replicas: u16) -> Setup {
        Setup::of(replicas)
            .with("role", "shards")
            .with("gid", &gid.to_string())
            .with("shards", SHARDS)
            .with("controllers", &self.controllers.addresses().join(","))
    }

    pub(crate) fn group(&self, gid: u64) -> &Cluster {
        &self.groups[usize::try_from(gid).unwrap() - 1]
    }

    pub(crate) async fn join(&self, gid: u64, through: Channel) {
        let request = JoinRequest {
            groups: vec![GroupAddresses {
                gid,
                addresses: self.group(gid).addresses(),
                ..GroupAddresses::default()
            }],
            session: None,
            force: false,
        };
        let mut client = ShardctrlerClient::new(through);
        let answer = client.join(request).await.unwrap().into_inner();
        assert!(answer.changed, "{answer:?}");
    }

    pub(crate) async fn leave(&self, gid: u64, through: Channel) {
        let mut client = ShardctrlerClient::new(through);
        let request = LeaveRequest {
            gids: vec![gid],
            session: None,
        };
        client.leave(request).await.unwrap();
    }

    pub(crate) async fn query(&self) -> QueryResponse {
        let mut client = ShardctrlerClient::new(channel(&self.controllers, 0).await);
        let latest = QueryRequest { num: -1 };
        client.query(latest).await.unwrap().into_inner()
    }

    /// Waits until all owners are the targets, all groups have settled the latest configuration, and groups that left are drained.
    pub(crate) async fn settled(&self) -> QueryResponse {
        until("all shards are where they belong", async || {
            let now = self.query().await;
            let settled = now.progress.iter().all(|it| it.settled >= now.latest);
            let config = now.config.clone().unwrap();
            let arrived = config.owners.iter().all(|run| run.gid == run.target);
            let drained = !config.groups.iter().any(|group| group.leaving);
            let done = settled && arrived && drained;
            holds(done, format!("{:?} of {config:?}", now.progress))?;
            Ok::<_, String>(now)
        })
        .await
    }
}

/// Connects to a node.
pub(crate) async fn channel(cluster: &Cluster, node: u16) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", cluster.listen(node))).unwrap();
    until("a node takes a connection", async || {
        endpoint.connect().await
    })
    .await
}

/// A program that knows no groups: one stub, one session, and retries of calls that may be retried.
pub(crate) struct Plain {
    kv: KvClient<Channel>,
    client_id: bytes::Bytes,
    sequence: u64,
}

impl Plain {
    pub(crate) async fn new(channel: Channel) -> Self {
        let kv = KvClient::new(channel);
        let opened = until("a session is opened", async || {
            kv.clone().open_session(OpenSessionRequest::default()).await
        })
        .await;
        Self {
            kv,
            client_id: opened.into_inner().client_id,
            sequence: 0,
        }
    }

    fn session(&mut self) -> Session {
        self.sequence += 1;
        Session {
            client_id: self.client_id.clone(),
            sequence: self.sequence,
            acked_below: self.sequence,
        }
    }

    pub(crate) async fn put(&mut self, key: &str, value: &str) {
        let request = PutRequest {
            key: key.to_owned().into(),
            value: value.to_owned().into(),
            session: Some(self.session()),
        };
        let ask = |mut kv: KvClient<Channel>| {
            let request = request.clone();
            async move { kv.put(request).await }
        };
        self.until_answered(ask).await;
    }

    pub(crate) async fn append(&mut self, key: &str, suffix: &str) {
        let request = AppendRequest {
            key: key.to_owned().into(),
            suffix: suffix.to_owned().into(),
            session: Some(self.session()),
        };
        let ask = |mut kv: KvClient<Channel>| {
            let request = request.clone();
            async move { kv.append(request).await }
        };
        self.until_answered(ask).await;
    }

    pub(crate) async fn get(&self, key: &str) -> Option<String> {
        let request = GetRequest {
            key: key.to_owned().into(),
        };
        let ask = |mut kv: KvClient<Channel>| {
            let request = request.clone();
            async move { kv.get(request).await }
        };
        let answer = self.until_answered(ask).await.into_inner();
        let value = String::from_utf8(answer.value.to_vec()).unwrap();
        answer.found.then_some(value)
    }

    async fn until_answered<T, F>(&self, call: impl Fn(KvClient<Channel>) -> F) -> T
    where
        F: Future<Output = Result<T, Status>>,
    {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match call(self.kv.clone()).await {
                Ok(answer) => return answer,
                Err(status) => {
                    assert!(is_passing(&status), "{status:?}");
                    assert!(Instant::now() < deadline, "no answer: {status:?}");
                }
            }
            // The pause between two attempts. Nothing depends on its length.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Returns true if the same request may be sent again.
fn is_passing(status: &Status) -> bool {
    let kind = api::error_detail(status).and_then(|detail| detail.kind);
    matches!(
        kind,
        Some(
            Kind::ShardNotReady(_)
                | Kind::WrongGroup(_)
                | Kind::NotLeader(_)
                | Kind::Unavailable(_)
                | Kind::OutcomeUnknown(_)
                | Kind::Overloaded(_)
        )
    )
}

/// Writers that append numbers to keys of their own, each through one node. The resulting values show whether an append was
/// lost or applied twice.
pub(crate) struct Appenders {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<(String, u64)>,
}

impl Appenders {
    pub(crate) async fn start(through: &[Channel], each: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for (node, channel) in through.iter().enumerate() {
            for number in 0..each {
                let mut plain = Plain::new(channel.clone()).await;
                let stop = Arc::clone(&stop);
                tasks.spawn(async move {
                    let key = format!("appended/{node}/{number}");
                    let mut count = 0;
                    while !stop.load(Ordering::Relaxed) {
                        plain.append(&key, &format!("{count},")).await;
                        count += 1;
                    }
                    (key, count)
                });
            }
        }
        Self { stop, tasks }
    }

    /// Stops the writers and returns the number of appends of each key.
    pub(crate) async fn finish(mut self) -> BTreeMap<String, u64> {
        self.stop.store(true, Ordering::Relaxed);
        let mut counts = BTreeMap::new();
        while let Some(result) = self.tasks.join_next().await {
            let (key, count) = result.unwrap();
            counts.insert(key, count);
        }
        counts
    }
}

/// Checks that each append was applied once, in order.
pub(crate) async fn check_appended(counts: &BTreeMap<String, u64>, plain: &Plain) {
    for (key, count) in counts {
        assert!(*count > 0, "{key}: the writers were never served");
        let numbers = (0..*count).map(|number| number.to_string() + ",");
        let expected: String = numbers.collect();
        assert_eq!(plain.get(key).await.as_deref(), Some(expected.as_str()));
    }
}
