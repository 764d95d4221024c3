//! Calls whose callers go while the work for them goes on.

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use api::etcd::etcdserverpb as pb;
use futures::FutureExt as _;
use keyspace::{KeyspaceId, Place};
use replica::PairReader;
use shardkv::GroupKind;
use storage::StateReads;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use types::{ClusterId, ConfigNum, Gid, ShardConfig, ShardId};

use super::credentials::Credentials;
use super::kv::DeleteRangeMethod;
use super::ranges::{self, Size};
use super::serve::{Call, EtcdServices};
use super::store::{Found, Identity};
use crate::identity::Identity as NodeIdentity;
use crate::inbox::Batch;
use crate::keyspaces::budgets::Held;
use crate::lifecycle::Phase;
use crate::metrics::Metrics;
use crate::options::{self, Invocation};
use crate::parts::Parts;
use crate::progress::Progress;

/// A node whose replica is the test.
struct Node {
    parts: Parts,
    etcd: Arc<EtcdServices>,
    /// Keeps the state open.
    _state: Box<dyn std::any::Any>,
    _data: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let data = tempfile::tempdir().unwrap();
        let path = data.path().to_str().unwrap();
        let args = ["shardkv-node", "--data-dir", path].map(Into::into);
        let mut options = match options::parse(args, "") {
            Ok(Invocation::Run(options)) => *options,
            other => panic!("{other:?}"),
        };
        options.genesis.kind = GroupKind::Shards;
        let stored = storage::open(data.path(), &storage::StorageOptions::default()).unwrap();
        let belongs = (options.gid, options.cluster_name.as_str());
        let directory = data.path().to_owned();
        let identity = NodeIdentity::new(stored.identity, None, true, belongs, directory);
        let (fail, _) = oneshot::channel();
        let progress = Arc::new(Progress::new(options.stall_timeout));
        let observed = (Arc::new(Metrics::new()), progress);
        let parts = Parts::new(options, "a:1".to_owned(), identity, observed, fail);
        parts.lifecycle.enter(Phase::Running);
        let groups = BTreeMap::from([(Gid(1), vec!["a:1".to_owned()])]);
        let config = ShardConfig::new(ConfigNum(1), groups, [(1, Gid(1))]).unwrap();
        let configs = parts.routing.configs();
        configs.replace(ClusterId(7), Arc::new(config));
        let reads: StateReads = stored.state.reads();
        Self {
            etcd: parts.etcd_services(&reads),
            parts,
            _state: Box::new(stored.state),
            _data: data,
        }
    }

    /// Returns the shares that are held of calls, writes in the queue, reads, answers to writes, and answers to ranges.
    fn held(&self) -> [usize; 5] {
        let shares = &self.parts.admission.keyspaces;
        [
            &shares.requests,
            &shares.proposals,
            &shares.range_reads,
            &shares.write_answers,
            &shares.ranges,
        ]
        .map(|budget| budget.used())
    }
}

fn call() -> Call {
    Call {
        credentials: Credentials::default(),
        keyspace: "a".to_owned(),
        authority: None,
        forbidden: false,
        requires_leader: false,
        arrived: std::time::Instant::now(),
        held: Held::default(),
    }
}

#[tokio::test]
async fn a_write_keeps_its_shares_until_it_is_answered() {
    let node = Node::new();
    let identity = Identity {
        place: Place {
            shard: ShardId(0),
            id: KeyspaceId(1),
        },
        cluster_id: 7,
    };
    node.etcd.keyspaces.known.insert("a", identity);
    let request = pb::DeleteRangeRequest {
        key: "k".into(),
        range_end: "l".into(),
        prev_kv: true,
    };
    let call = call();
    let mut write = Box::pin(node.etcd.within_budget::<DeleteRangeMethod>(&call, request));
    assert!((&mut write).now_or_never().is_none(), "nobody answers");
    let held = [1, 1, 0, 16 << 20, 0];
    assert_eq!(node.held(), held);
    drop(write);
    assert_eq!(node.held(), held, "it is in the log's queue");
    let mut batch = Batch::default();
    node.parts.inbox.take(&mut batch, None);
    assert_eq!(batch.requests.len(), 1);
    drop(batch);
    assert_eq!(node.held(), [0; 5]);
}

#[test]
fn a_read_keeps_its_shares_until_its_thread_is_done() {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime
        .enable_all()
        .max_blocking_threads(1)
        .build()
        .unwrap();
    runtime.block_on(async {
        let node = Node::new();
        let (release, released) = mpsc::channel::<()>();
        spawn_blocking(move || released.recv());
        let call = call();
        let read = ranges::read(&node.etcd, &call, Size::Any, |_| {
            |_: &dyn PairReader, _: &Found| Ok(Ok(()))
        });
        let mut read = Box::pin(read);
        assert!((&mut read).now_or_never().is_none(), "its thread is busy");
        let held = node.held();
        assert!(held[2] > 0 && held[4] > 0, "{held:?}");
        drop(read);
        assert_eq!(node.held(), held, "the thread has still to read");
        drop(release);
        while node.held() != [0; 5] {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
}
