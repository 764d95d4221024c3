//! A group of the model: one replica, what waits for it, and its log.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use shardkv::{Bug, Command, Configure, Genesis, News, Ownership, Response, Step};
use types::{ClusterId, ConfigDelta, Gid, ShardConfig, ShardId};

use crate::common::clients::MAX_VALUE;
use crate::common::{self, Random, Replica, SHARDS_GENESIS};

pub(crate) const CONTROLLER: ClusterId = ClusterId(77);
pub(crate) const SHARDS: u32 = SHARDS_GENESIS.shards;
/// The most messages that wait for a group; beyond that some are lost.
pub(crate) const MAX_INBOX: u64 = 40;
/// The steps that may come again: enough that a shard can be here a second time meanwhile.
pub(crate) const MAX_SENT: usize = 300;

/// A message in flight to a group.
#[derive(Clone)]
pub(crate) enum Message {
    /// A client's write.
    Write(Command),
    /// For its log.
    Propose(Step),
    /// From the group that owes the delete.
    Delete(usize, Step),
}

pub(crate) struct Group {
    pub(crate) gid: Gid,
    pub(crate) genesis: Genesis,
    pub(crate) replica: Replica,
    /// The clock's lead, in milliseconds.
    pub(crate) skew: u64,
    pub(crate) inbox: Vec<Message>,
    /// The steps that were sent lately. Any of them may come again.
    pub(crate) sent: Vec<Message>,
    /// All that was applied.
    pub(crate) log: Vec<common::Step>,
}

impl Group {
    pub(crate) fn new(number: u64, random: &mut Random, bug: Option<Bug>) -> Self {
        let genesis = Genesis {
            session_ttl_ms: [10_000, 7_000, 14_000][random.below(3) as usize],
            ..SHARDS_GENESIS
        };
        Self {
            gid: Gid(number + 1),
            genesis,
            replica: Replica::with_bug(genesis, bug),
            skew: random.below(6_000),
            inbox: Vec::new(),
            sent: Vec::new(),
            log: Vec::new(),
        }
    }

    /// Applies operations as one batch.
    pub(crate) fn apply(&mut self, now: u64, operations: Vec<Bytes>) -> Vec<Response> {
        let last = self.log.last();
        let (index, time) = last.map_or((0, 0), |step| (step.index, step.time));
        let time = time.max(now + self.skew);
        let steps = operations.into_iter().zip(index + 1..);
        let steps: Vec<_> = steps
            .map(|(operation, index)| common::Step {
                index,
                time,
                max_value_bytes: MAX_VALUE,
                operation,
            })
            .collect();
        self.log.extend(steps.iter().cloned());
        self.replica.batch(&steps)
    }

    pub(crate) fn ownership(&self) -> Arc<Ownership> {
        self.replica.machine.ownership()
    }

    /// Returns the step to a configuration, from what it has accepted. `deltas` lead to the configuration.
    pub(crate) fn configure(&self, config: &ShardConfig, deltas: &[ConfigDelta]) -> Step {
        let ownership = self.ownership();
        let step = Configure::to(config, self.gid, CONTROLLER, &ownership);
        if config.num() >= ownership.config {
            let mut news = News::default();
            for delta in deltas {
                news.add(delta);
            }
            let by_news = Configure::by_news(&news, config, self.gid, CONTROLLER, &ownership);
            assert_eq!(by_news, step, "what changed is all that is news");
        }
        Step::Configure(step)
    }

    pub(crate) fn served(&self) -> BTreeSet<ShardId> {
        let ownership = self.ownership();
        let shards = ownership.shards.keys().copied();
        shards
            .filter(|shard| ownership.check_served(*shard).is_ok())
            .collect()
    }
}
