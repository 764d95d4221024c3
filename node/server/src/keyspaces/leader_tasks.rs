//! The tasks of a leader for keyspaces. This one reads the leases, and what is to be cleared, of the shards that the group serves; others
//! revoke leases that have expired ([`expiry`](super::expiry)), compact ([`compaction`](super::compaction)), and clear ([`clearing`](super::clearing)).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::v1::ErrorDetail;
use keyspace::{AutoCompaction, Place};
use raft::{StoreError, Term};
use replica::PairReader;
use shardkv::{Ownership, read_keyspaces};
use tokio::time::sleep;
use types::{ConfigNum, ShardId};

use super::clearing::Clearer;
use super::lessor::Lessor;
use super::loading::{Queue, read_parts, set_timers};
use crate::metrics::Metrics;
use crate::reads::{ReadKind, Readers};
use crate::routing::Routing;
use crate::services::etcd::store::Keyspaces;

/// The shards whose keyspaces are listed in one read.
pub(super) const SHARDS_OF_A_READ: usize = 256;
/// The keyspaces of a shard of one read.
const PAGE: usize = 1_000;
/// The pause before a failed read is tried again.
const PAUSE: Duration = Duration::from_millis(200);

/// The bounds of these reads: each task makes one after the other.
pub(crate) const READ_KIND: ReadKind = ReadKind {
    what: "reads of leases",
    max_running: 1,
    max_admitted: 2,
};

/// The parts of the tasks.
pub(crate) struct LeaderTasks {
    pub(crate) lessor: Arc<Lessor>,
    pub(crate) clearer: Arc<Clearer>,
    pub(crate) routing: Arc<Routing>,
    pub(crate) keyspaces: Arc<Keyspaces>,
    pub(crate) readers: Readers,
    pub(crate) metrics: Arc<Metrics>,
}

/// A keyspace that was listed.
pub(super) struct Listed {
    pub(super) place: Place,
    pub(super) name: String,
    pub(super) bytes: u64,
    /// The configuration since which its shard is served.
    config: ConfigNum,
    pub(super) deleted: bool,
    pub(super) revision: i64,
    pub(super) compacted: i64,
    pub(super) auto_compaction: AutoCompaction,
    /// True if compaction or deletion has left something.
    leaves: bool,
}

impl LeaderTasks {
    /// Reads the leases of all shards that the group serves while this node leads.
    pub(crate) async fn load(self: Arc<Self>) {
        let mut terms = self.lessor.watch_term();
        let mut owned = self.routing.watch_ownership();
        let mut listed: BTreeMap<ShardId, ConfigNum> = BTreeMap::new();
        let mut queue = Queue::default();
        let mut of = None;
        loop {
            let term = *terms.borrow_and_update();
            let ownership = Arc::clone(&owned.borrow_and_update());
            if of != term {
                of = term;
                listed.clear();
                queue.clear();
            }
            listed.retain(|shard, config| ownership.served_since(*shard) == Some(*config));
            let Some(term) = term else {
                if terms.changed().await.is_err() {
                    return;
                }
                continue;
            };
            let missing: Vec<_> = missing(&ownership, &listed).collect();
            for shards in missing.chunks(SHARDS_OF_A_READ) {
                if self.list_leases(term, shards, &mut queue).await.is_ok() {
                    listed.extend(shards.iter().copied());
                } else {
                    sleep(PAUSE).await;
                }
                if *self.lessor.watch_term().borrow() != Some(term) {
                    break;
                }
            }
            let unchanged = || {
                let changed = [terms.has_changed(), owned.has_changed()];
                changed.iter().all(|changed| matches!(changed, Ok(false)))
            };
            // At least one turn: shards may come and go all the time.
            while !queue.is_empty() {
                if self.load_turn(term, &mut queue).await.is_err() {
                    sleep(PAUSE).await;
                }
                if !unchanged() {
                    break;
                }
            }
            let complete =
                queue.is_empty() && missing.iter().all(|(shard, _)| listed.contains_key(shard));
            tokio::select! {
                changed = terms.changed() => if changed.is_err() { return },
                changed = owned.changed() => if changed.is_err() { return },
                () = std::future::ready(()), if !complete => {}
            }
        }
    }

    /// Lists the keyspaces of shards, deleted ones that are being cleared included.
    pub(super) async fn list_shards(
        &self,
        shards: &[(ShardId, ConfigNum)],
    ) -> Result<Vec<Listed>, ErrorDetail> {
        let asked = shards.to_vec();
        let listed = self.readers.read(move |state| {
            let mut found = Vec::new();
            for (shard, config) in asked {
                let listed = read_keyspaces(state, shard, |reader| list(reader, shard, config))?;
                // The shard went away meanwhile. The ownership says so, too.
                found.extend(listed.unwrap_or_default());
            }
            Ok(found)
        });
        listed.await
    }

    /// Lists the keyspaces of shards, and adds those whose leases are to be read, from the beginning.
    async fn list_leases(
        &self,
        term: Term,
        shards: &[(ShardId, ConfigNum)],
        queue: &mut Queue,
    ) -> Result<(), ErrorDetail> {
        let all = self.list_shards(shards).await?;
        for (shard, _) in shards {
            queue.drop_shard(*shard);
        }
        for listed in all {
            let place = listed.place;
            if listed.leaves {
                self.clearer.add(term, place);
            }
            if !listed.deleted && self.lessor.begin(term, place, listed.config) {
                queue.add(place);
            }
        }
        Ok(())
    }

    /// Reads the next leases.
    async fn load_turn(&self, term: Term, queue: &mut Queue) -> Result<(), ErrorDetail> {
        let parts = queue.turn();
        let read = self.readers.read(move |state| {
            read_parts(&parts, |place, after, limit| {
                let leases = read_keyspaces(state, place.shard, |reader| {
                    keyspace::read_leases(reader, place, after, limit)
                })?;
                Ok(leases.ok())
            })
        });
        let loaded = read.await?;
        set_timers(&self.lessor, term, &loaded);
        queue.settle(&loaded);
        Ok(())
    }
}

/// Returns the shards that are served, and whose keyspaces are not listed.
fn missing<'a>(
    ownership: &'a Ownership,
    listed: &'a BTreeMap<ShardId, ConfigNum>,
) -> impl Iterator<Item = (ShardId, ConfigNum)> + 'a {
    served(ownership).filter(|(shard, _)| !listed.contains_key(shard))
}

/// Returns the shards that are served, with the configuration since which they are.
pub(super) fn served(ownership: &Ownership) -> impl Iterator<Item = (ShardId, ConfigNum)> + '_ {
    let shards = ownership.shards.keys().copied();
    shards.filter_map(|shard| Some((shard, ownership.served_since(shard)?)))
}

/// Returns the keyspaces of a shard, deleted ones that are being cleared included.
fn list(
    reader: &dyn PairReader,
    shard: ShardId,
    config: ConfigNum,
) -> Result<Vec<Listed>, StoreError> {
    let mut found = Vec::new();
    let mut after = None;
    loop {
        let page = keyspace::list(reader, shard, after, PAGE)?;
        let last = page.len() < PAGE;
        after = page.last().map(|(id, _)| *id);
        found.extend(page.into_iter().map(|(id, record)| Listed {
            place: Place { shard, id },
            name: record.name,
            bytes: record.bytes,
            config,
            deleted: record.deleted,
            revision: record.revision,
            compacted: record.compacted,
            auto_compaction: record.options.auto_compaction,
            leaves: record.deleted || record.clearing,
        }));
        if last {
            return Ok(found);
        }
    }
}
