//! A node for tests: its stores and its replica, which is the only one of its group, without a network.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use keyspace::{Action, KeyspaceOptions};
use raft::Membership;
use replica::Replica;
use shardkv::{Genesis, GroupKind};
use storage::{Opened, StorageOptions};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use super::serve::EtcdServices;
use crate::identity::Identity;
use crate::lifecycle::Phase;
use crate::machine::Machine;
use crate::metrics::Metrics;
use crate::options::{self, Invocation};
use crate::parts::Parts;
use crate::progress::Progress;
use crate::runtime;

const ADDRESS: &str = "a:1";

/// The node. Its replica's thread ends with the process.
pub(super) struct TestNode {
    pub(super) parts: Parts,
    pub(super) etcd: Arc<EtcdServices>,
    replica: Option<Replica<Machine>>,
    _data: tempfile::TempDir,
}

impl TestNode {
    /// Creates a node whose replica doesn't run, so that it answers nothing.
    pub(super) fn new(kind: GroupKind) -> Self {
        let data = tempfile::tempdir().unwrap();
        let path = data.path().to_str().unwrap();
        let args = ["shardkv-node", "--data-dir", path].map(Into::into);
        let Ok(Invocation::Run(mut options)) = options::parse(args, "") else {
            panic!("options");
        };
        options.genesis.kind = kind;
        options.replica.address = ADDRESS.to_owned();
        let Opened {
            mut log,
            mut state,
            identity,
            ..
        } = storage::open(data.path(), &StorageOptions::default()).unwrap();
        let reads = state.reads();
        let belongs = (options.gid, options.cluster_name.as_str());
        let identity = Identity::new(identity, None, true, belongs, data.path().to_owned());
        let node = identity.node();
        let genesis = Genesis {
            kind,
            shards: 1,
            ..Genesis::default()
        };
        let first = Membership::of_voters([(node, ADDRESS.to_owned())]);
        replica::initialise(&mut log, &mut state, &first, genesis.to_batch()).unwrap();
        let replica = Replica::recover(
            options.replica.clone(),
            node,
            Box::new(log),
            Box::new(state),
            Machine::new(kind),
            1,
        );
        let (fail, _) = oneshot::channel();
        let progress = Arc::new(Progress::new(options.stall_timeout));
        let observed = (Arc::new(Metrics::new()), progress);
        let parts = Parts::new(*options, ADDRESS.to_owned(), identity, observed, fail);
        parts.lifecycle.enter(Phase::Running);
        let etcd = parts.etcd_services(&reads);
        Self {
            parts,
            etcd,
            replica: Some(replica.unwrap()),
            _data: data,
        }
    }

    /// Creates a node that leads a group which serves all shards, and a keyspace.
    pub(super) async fn with_keyspace(name: &str) -> Self {
        let mut node = Self::new(GroupKind::Standalone);
        let handles = node.parts.runtime_handles();
        let options = &node.parts.options.replica;
        let ended = runtime::start(node.replica.take().unwrap(), options, handles);
        drop(ended.unwrap());
        let deliveries = Arc::clone(&node.parts.deliveries);
        tokio::spawn(async move { deliveries.deliver().await });
        let started = Instant::now();
        while let Err(error) = node.create(name).await {
            assert!(started.elapsed() < Duration::from_mins(1), "{error}");
            sleep(Duration::from_millis(20)).await;
        }
        node
    }

    async fn create(&self, name: &str) -> Result<(), String> {
        let keyspaces = &self.etcd.keyspaces;
        let shard = keyspaces.shard(name).map_err(|error| error.message)?;
        let action = Action::Create {
            name: name.to_owned(),
            options: KeyspaceOptions::default(),
            nonce: NonZeroU64::MIN,
        };
        let created = keyspaces.propose(shard, action).await;
        let outcome = created.map_err(|failure| format!("{failure:?}"))?;
        match outcome.answer {
            Ok(_) => Ok(()),
            Err(refusal) => Err(refusal.to_string()),
        }
    }
}
