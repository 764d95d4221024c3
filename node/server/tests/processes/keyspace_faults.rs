//! Keyspaces while their shard moves, and while a leader dies: each put is carried out once, or at most once if its outcome is unknown.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use api::etcd::etcdserverpb as pb;
use api::etcd::etcdserverpb::kv_client::KvClient;
use tokio::task::JoinSet;
use tonic::Code;
use tonic::transport::Channel;

use crate::cluster::{Cluster, Setup};
use crate::keyspaces::{all, create, header, named, put};
use crate::wait::{holds, until};
use crate::world::{World, channel};

/// Writers that put keys one after the other, each through one node, and look for each key through another one.
struct Writers {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<(i64, i64)>,
}

impl Writers {
    /// `may_doubt` says whether the outcome of a put may be unknown.
    fn start(through: &[Channel], keyspace: &'static str, may_doubt: bool) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for (node, channel) in through.iter().enumerate() {
            let mut kv = KvClient::new(channel.clone());
            let mut other = KvClient::new(through[(node + 1) % through.len()].clone());
            let stop = Arc::clone(&stop);
            tasks.spawn(async move {
                let (mut sure, mut unsure) = (0, 0);
                while !stop.load(Ordering::Relaxed) {
                    let key = format!("w{node}/{:09}", sure + unsure);
                    match kv.put(named(keyspace, put(&key, "x"))).await {
                        Ok(_) => {
                            sure += 1;
                            let read = pb::RangeRequest {
                                key: key.into(),
                                ..pb::RangeRequest::default()
                            };
                            match other.range(named(keyspace, read)).await {
                                Ok(found) => assert_eq!(found.into_inner().count, 1),
                                Err(status) => assert!(may_doubt, "{status:?}"),
                            }
                        }
                        Err(status) => {
                            assert!(may_doubt, "{status:?}");
                            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                            unsure += 1;
                        }
                    }
                }
                (sure, unsure)
            });
        }
        Self { stop, tasks }
    }

    /// Stops the writers. Returns the number of acknowledged puts, and of those whose outcome is unknown.
    async fn finish(mut self) -> (i64, i64) {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = (0, 0);
        while let Some(one) = self.tasks.join_next().await {
            let (sure, unsure) = one.unwrap();
            assert!(sure > 0, "each writer was served");
            all = (all.0 + sure, all.1 + unsure);
        }
        all
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keyspace_moves_with_its_shard_while_clients_write() {
    let world = World::start(2, 1).await;
    let at_controller = channel(&world.controllers, 0).await;
    let at_one = channel(world.group(1), 0).await;
    let at_two = channel(world.group(2), 0).await;
    world.join(1, at_controller.clone()).await;
    world.settled().await;
    create(&at_controller, "moving").await;
    let through = [at_controller.clone(), at_one, at_two];
    let mut kv = KvClient::new(at_controller.clone());
    let first = kv.put(named("moving", put("first", "x"))).await.unwrap();
    let first = header(first.into_inner().header);
    let writers = Writers::start(&through, "moving", false);
    world.join(2, at_controller.clone()).await;
    world.settled().await;
    // Now it leaves group 1 for certain.
    world.leave(1, at_controller).await;
    world.settled().await;
    let (puts, _) = writers.finish().await;
    for channel in &through {
        let mut kv = KvClient::new(channel.clone());
        let answer = kv.range(named("moving", all())).await.unwrap().into_inner();
        let last = header(answer.header);
        assert_eq!(answer.count, 1 + puts);
        assert_eq!(last.revision, first.revision + puts, "each put counts once");
        assert_eq!(last.cluster_id, first.cluster_id);
        assert_ne!(last.member_id, first.member_id);
        // The history has moved, too.
        let old = pb::RangeRequest {
            revision: first.revision,
            ..all()
        };
        let old = kv.range(named("moving", old)).await.unwrap();
        assert_eq!(old.into_inner().count, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_is_carried_out_once_at_most_when_the_leader_dies() {
    let mut cluster = Cluster::start(Setup::of(3)).await;
    let leader = cluster.leader().await;
    let mut through = Vec::new();
    for node in (0..3).filter(|node| *node != leader) {
        through.push(channel(&cluster, node).await);
    }
    create(&through[0], "tenant-a").await;
    let writers = Writers::start(&through, "tenant-a", true);
    until("the writers write", async || {
        let mut kv = KvClient::new(through[0].clone());
        let answer = kv.range(named("tenant-a", all())).await;
        let count = answer
            .map_err(|status| status.to_string())?
            .into_inner()
            .count;
        holds(count > 100, format!("{count}"))
    })
    .await;
    cluster.kill(leader);
    let next = cluster.leader().await;
    assert_ne!(next, leader);
    let mut kv = KvClient::new(through[0].clone());
    let before = kv
        .range(named("tenant-a", all()))
        .await
        .unwrap()
        .into_inner()
        .count;
    until("the writers write again", async || {
        let mut kv = KvClient::new(through[0].clone());
        let answer = kv.range(named("tenant-a", all())).await;
        let count = answer
            .map_err(|status| status.to_string())?
            .into_inner()
            .count;
        holds(count > before + 100, format!("{count}"))
    })
    .await;
    let (sure, unsure) = writers.finish().await;
    let answer = kv
        .range(named("tenant-a", all()))
        .await
        .unwrap()
        .into_inner();
    assert!(
        (sure..=sure + unsure).contains(&answer.count),
        "{sure} {unsure}"
    );
    assert_eq!(
        header(answer.header).revision,
        1 + answer.count,
        "each put counts once"
    );
    let again = answer.kvs.iter().find(|pair| pair.version != 1);
    assert_eq!(again, None, "no put was carried out twice");
}
