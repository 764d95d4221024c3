//! The shard that is moved: its choice, its keys, and its moves.

use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use indicatif::{ProgressBar, ProgressStyle};
use shardkv_client::{Client, Error, Gid, ShardConfig, ShardId};
use tokio::time::{Instant, sleep};
use types::shard_of;

use crate::client_error::call_failure;
use crate::cluster_view::views;
use crate::exit::Failure;
use crate::move_progress::{MoveProgress, MoveProgressBar, MoveTracker};

/// Number of concurrent writes while a shard is filled or cleared.
const FILL_IN_FLIGHT: usize = 256;
/// Interval between polls until the shard has arrived and all groups have settled.
const POLL: Duration = Duration::from_millis(10);
/// A move's progress is shown if it takes longer than this.
const SHOWN_AFTER: Duration = Duration::from_secs(1);

/// The shard that is moved, and the groups between which it moves.
#[derive(Clone)]
pub(super) struct Chosen {
    tag: String,
    pub(super) shard: ShardId,
    /// Number of shards in the cluster.
    pub(super) shards: u32,
    pub(super) from: Gid,
    pub(super) to: Gid,
}

impl Chosen {
    /// Chooses a shard that has an owner, and another group for it. Different numbers give different shards if possible.
    pub(super) fn of(config: &ShardConfig, number: usize) -> Result<Self, Failure> {
        let tags = (0..).map(|n| format!("bench-moves-{n}"));
        let tags = tags.map(|tag| (shard_of(tag.as_bytes(), config.shards()), tag));
        let mut owned = tags
            .take(config.shards() as usize * 20 + number)
            .filter(|(shard, _)| config.owner(*shard) != Gid::NONE);
        let chosen = owned.nth(number);
        let other = chosen.and_then(|(shard, tag)| {
            let from = config.owner(shard);
            let to = *config.groups().keys().find(|gid| **gid != from)?;
            let shards = config.shards();
            Some(Self {
                tag,
                shard,
                shards,
                from,
                to,
            })
        });
        other.ok_or_else(|| {
            Failure::usage(
                "a shard can only move where there are two groups",
                "start a cluster that has them: `shardkv playground --groups 2`",
            )
        })
    }

    /// Returns a key of the shard.
    pub(super) fn key(&self, number: u64) -> Bytes {
        format!("{{{}}}/{number:012}", self.tag).into()
    }

    /// Returns the keys of other shards that get the load beside the move.
    pub(super) fn other_keys(&self) -> Vec<Bytes> {
        /// Number of keys before those of the chosen shard are left out.
        const OTHER_KEYS: u64 = 10_000;
        let keys = (0..OTHER_KEYS).map(|n| Bytes::from(format!("bench-moves-others/{n}")));
        keys.filter(|key| shard_of(key, self.shards) != self.shard)
            .collect()
    }
}

/// The keys and values that the shard is filled with.
pub(super) struct Fill {
    pub(super) keys: u64,
    pub(super) value: Bytes,
    key_bytes: u64,
}

impl Fill {
    /// Chooses the number of keys so that keys and values together have `bytes`.
    pub(super) fn new(chosen: &Chosen, bytes: u64, value: Bytes) -> Self {
        let key_bytes = chosen.key(0).len() as u64;
        let each = key_bytes + value.len() as u64;
        Self {
            keys: (bytes / each).max(1),
            value,
            key_bytes,
        }
    }

    /// Returns the size of all keys and values.
    pub(super) fn bytes(&self) -> u64 {
        self.keys * (self.key_bytes + self.value.len() as u64)
    }

    /// Writes every key once.
    pub(super) async fn put(&self, client: &Client, chosen: &Chosen) -> Result<(), Failure> {
        let puts = futures::stream::iter(0..self.keys)
            .map(|number| client.put(chosen.key(number), self.value.clone()));
        finish_all(puts.buffer_unordered(FILL_IN_FLIGHT), self.keys, "filling")
            .await
            .map_err(|failure| failure.context("while the shard was filled"))
    }
}

/// Waits for all calls, and shows the progress.
async fn finish_all<T>(
    calls: impl Stream<Item = Result<T, Error>>,
    count: u64,
    message: &'static str,
) -> Result<(), Failure> {
    let bar = ProgressBar::new(count).with_message(message);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {percent:>3} %  {msg}, {eta} left") {
        bar.set_style(style);
    }
    let mut calls = std::pin::pin!(calls);
    while let Some(called) = calls.next().await {
        called.map_err(|error| call_failure(&error))?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

/// Deletes the keys of the measurement, and moves the shard back to its first owner.
pub(super) async fn restore(
    client: &Client,
    chosen: &Chosen,
    fill: &Fill,
    patience: Duration,
) -> Result<(), Failure> {
    let others = chosen.other_keys();
    let count = fill.keys + others.len() as u64;
    let keys = (0..fill.keys).map(|number| chosen.key(number));
    let deletes = futures::stream::iter(keys.chain(others)).map(|key| client.delete(key));
    finish_all(deletes.buffer_unordered(FILL_IN_FLIGHT), count, "deleting")
        .await
        .map_err(|failure| failure.context("while the keys were deleted"))?;
    let config = client.controller().query(None).await?.config;
    if config.owner(chosen.shard) != chosen.from {
        move_to(client, chosen.shard, chosen.from, patience).await?;
    }
    Ok(())
}

/// The times that a move took since it was asked for.
#[derive(Clone, Copy)]
pub(super) struct Moved {
    /// Until the new owner served the shard.
    pub(super) arrived: Duration,
    /// Until the former owner had deleted the shard, and every group had done its part.
    pub(super) settled: Duration,
}

/// Moves the shard, and waits until all groups have settled.
pub(super) async fn move_to(
    client: &Client,
    shard: ShardId,
    to: Gid,
    patience: Duration,
) -> Result<Moved, Failure> {
    let controller = client.controller();
    let mut tracker = MoveTracker::new(controller.query(None).await?.config);
    let mut bar = MoveProgressBar::new();
    let asked = Instant::now();
    controller.move_shard(shard, to).await?;
    let mut arrived = None;
    loop {
        let view = controller.query(None).await?;
        let (progress, settled) = tracker.look(&view, &views(client, &view).await);
        let now = asked.elapsed();
        if view.config.owner(shard) == to {
            if progress.moved == progress.to_move {
                arrived.get_or_insert(now);
            }
            if settled {
                bar.finish();
                return Ok(Moved {
                    arrived: arrived.unwrap_or(now),
                    settled: now,
                });
            }
        }
        if now > patience {
            return Err(late(&progress));
        }
        if now > SHOWN_AFTER {
            bar.show(&progress);
        }
        sleep(POLL).await;
    }
}

fn late(progress: &MoveProgress) -> Failure {
    Failure::failed(
        format!("the move was not done in time: {}", progress.line()),
        "`shardkv shards` shows why it waits; --patience sets how long it may take",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use shardkv_client::ConfigNum;

    #[test]
    fn a_shard_is_chosen_with_another_group_for_it() {
        let group = |gid: u64| (Gid(gid), vec![format!("h{gid}:1")]);
        let two = ShardConfig::new(
            ConfigNum(1),
            [group(1), group(2)].into(),
            [(4, Gid(1)), (4, Gid(2))],
        );
        let two = two.unwrap();
        for number in 0..3 {
            let chosen = Chosen::of(&two, number).unwrap();
            assert_eq!(shard_of(&chosen.key(5), 8), chosen.shard);
            assert_eq!(two.owner(chosen.shard), chosen.from);
            assert_ne!(chosen.from, chosen.to);
            let others = chosen.other_keys();
            assert!(others.iter().all(|key| shard_of(key, 8) != chosen.shard));
            assert!(others.len() > 8_000);
        }
        let one = ShardConfig::new(ConfigNum(1), [group(1)].into(), [(8, Gid(1))]).unwrap();
        assert!(Chosen::of(&one, 0).is_err());
        assert!(Chosen::of(&ShardConfig::empty(8), 0).is_err());
    }

    #[test]
    fn a_fill_has_the_size_that_was_asked_for() {
        let group = |gid: u64| (Gid(gid), vec![format!("h{gid}:1")]);
        let groups = [group(1), group(2)].into();
        let config = ShardConfig::new(ConfigNum(1), groups, [(8, Gid(1))]).unwrap();
        let chosen = Chosen::of(&config, 0).unwrap();
        let fill = Fill::new(&chosen, 1_000_000, Bytes::from(vec![0; 4_096]));
        assert!(
            (995_000..=1_000_000).contains(&fill.bytes()),
            "{}",
            fill.bytes()
        );
        assert_eq!(Fill::new(&chosen, 1, Bytes::from_static(b"v")).keys, 1);
    }
}
