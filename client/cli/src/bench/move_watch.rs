//! The effect of moving shards on a load: the pause of each shard that moves, and the latency of the others.
//!
//! A task watches the controllers. Shards whose owner changes while the load runs are *moved*; from then on until every
//! group has settled, time is *during*. Each write that is acknowledged is counted by what its shard is at that moment, so
//! that a write that waited for a moving shard counts as one. Of shards that moved only what overlaps a move counts:
//! otherwise a pause would be lost among the chances of a long load.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use serde::Serialize;
use shardkv_client::{Client, ConfigEvent, Gid, ShardConfig};
use tokio::time::{Instant, sleep};
use types::shard_of;

use super::latencies::{Latencies, Row, table};
use crate::cluster_view::is_settled;
use crate::exit::Failure;
use crate::output::Table;

/// Interval between polls of the controllers until all groups have settled.
const POLL: Duration = Duration::from_millis(50);
/// Clusters of more shards are not watched shard by shard.
const MAX_WATCHED_SHARDS: u32 = 100_000;

/// Counts writes by shard.
pub(super) struct MoveWatch {
    begin: Instant,
    first: ShardConfig,
    shards: Vec<Watched>,
    during: AtomicBool,
    /// The end of the last *during* period, in nanoseconds since the beginning.
    during_until: AtomicU64,
    seen: Mutex<Seen>,
}

/// A shard. Times are nanoseconds since the beginning.
#[derive(Default)]
struct Watched {
    moved: AtomicBool,
    last_ack: AtomicU64,
    longest_gap: AtomicU64,
    /// The longest gap that overlaps moves of other shards, before the shard itself moved.
    longest_gap_stayed: AtomicU64,
    longest_write: AtomicU64,
}

/// The latest configuration, and the figures.
struct Seen {
    config: ShardConfig,
    moves: BTreeMap<u32, Moved>,
    began: Option<Instant>,
    lasted: Duration,
    before: Writes,
    others: Writes,
    moved: Writes,
}

/// The moves of a shard: how many, and the last one's owners.
#[derive(Clone, Copy)]
struct Moved {
    count: u32,
    from: Gid,
    to: Gid,
}

/// Writes of one kind.
struct Writes {
    latencies: Latencies,
    /// The start of the first write and the acknowledgement of the last.
    span: Option<(Instant, Instant)>,
}

impl Writes {
    fn new() -> Self {
        Self {
            latencies: Latencies::new(),
            span: None,
        }
    }

    fn add(&mut self, start: Instant, end: Instant) {
        self.latencies.add(end - start);
        let first = self.span.map_or(start, |(first, _)| first.min(start));
        self.span = Some((first, end));
    }

    fn row(&self) -> Option<Row> {
        let (first, last) = self.span?;
        Some(self.latencies.row((last - first).as_secs_f64()))
    }
}

/// The effect of the moved shards on the load.
#[derive(Clone, Debug, Serialize)]
pub(super) struct MovesReport {
    pub(super) config_before: u64,
    pub(super) config_after: u64,
    /// Seconds during which shards moved, until every group had settled.
    pub(super) seconds: f64,
    /// Writes of all shards before the first move.
    pub(super) before: Option<Row>,
    /// Writes of shards that did not move, while others did.
    pub(super) others: Option<Row>,
    /// Writes of the shards that moved, while shards moved.
    pub(super) moved: Option<Row>,
    /// The longest time without an acknowledged write of one shard: of those that moved, and of those that stayed meanwhile.
    pub(super) longest_moved: Option<Pause>,
    pub(super) longest_stayed: Option<Pause>,
    pub(super) moved_shards: Vec<MovedShard>,
}

/// A pause of one shard.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Pause {
    pub(super) shard: u32,
    pub(super) ms: f64,
}

impl Pause {
    /// Returns the longest; `None` without any that is longer than zero.
    fn longest(pauses: impl Iterator<Item = Self>) -> Option<Self> {
        pauses
            .filter(|pause| pause.ms > 0.0)
            .max_by(|one, other| one.ms.total_cmp(&other.ms))
    }
}

/// A shard that moved.
#[derive(Clone, Debug, Serialize)]
pub(super) struct MovedShard {
    pub(super) shard: u32,
    /// Number of moves of the shard; the owners are those of the last move.
    pub(super) moves: u32,
    /// Its owner before; null: nobody.
    pub(super) from: Option<u64>,
    pub(super) to: Option<u64>,
    /// The longest time without an acknowledged write of it that overlaps a move.
    pub(super) write_gap_ms: f64,
    /// The slowest write of it that overlaps a move.
    pub(super) slowest_write_ms: f64,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[allow(clippy::cast_precision_loss, reason = "figures to show")]
fn ms(nanos: u64) -> f64 {
    nanos as f64 / 1e6
}

impl MoveWatch {
    /// Watches from now on.
    pub(super) async fn start(client: &Client) -> Result<Self, Failure> {
        let first = client.controller().query(None).await?.config;
        Self::new(first)
    }

    fn new(first: ShardConfig) -> Result<Self, Failure> {
        if first.shards() > MAX_WATCHED_SHARDS {
            return Err(Failure::usage(
                format!("the cluster has more than {MAX_WATCHED_SHARDS} shards"),
                "leave --moves out",
            ));
        }
        Ok(Self {
            begin: Instant::now(),
            shards: (0..first.shards()).map(|_| Watched::default()).collect(),
            during: AtomicBool::new(false),
            during_until: AtomicU64::new(0),
            seen: Mutex::new(Seen {
                config: first.clone(),
                moves: BTreeMap::new(),
                began: None,
                lasted: Duration::ZERO,
                before: Writes::new(),
                others: Writes::new(),
                moved: Writes::new(),
            }),
            first,
        })
    }

    /// Follows the controllers; never ends.
    pub(super) async fn follow(&self, client: &Client) {
        let controller = client.controller();
        let mut config = self.first.clone();
        let mut events = controller.watch(config.num());
        loop {
            tokio::select! {
                Some(Ok(event)) = events.next() => {
                    let followed = match event {
                        ConfigEvent::Delta(delta) => config.apply(&delta).is_ok(),
                        ConfigEvent::Full(full) => {
                            config = full;
                            true
                        }
                    };
                    if followed {
                        self.configured(&config, true, Instant::now());
                    }
                }
                // If the controllers can't be reached, try again at the next poll.
                () = sleep(POLL) => if let Ok(view) = controller.query(None).await {
                    self.configured(&view.config, !is_settled(&view), Instant::now());
                },
            }
        }
    }

    fn configured(&self, config: &ShardConfig, moving: bool, now: Instant) {
        let mut seen = locked(&self.seen);
        if config.num() > seen.config.num() {
            let before = std::mem::replace(&mut seen.config, config.clone());
            let owners = before.owners().iter().zip(config.owners());
            for (shard, (watched, (from, to))) in (0..).zip(self.shards.iter().zip(owners)) {
                if from != to {
                    let count = seen.moves.get(&shard).map_or(0, |moved| moved.count) + 1;
                    let (from, to) = (*from, *to);
                    seen.moves.insert(shard, Moved { count, from, to });
                    watched.moved.store(true, Ordering::Relaxed);
                }
            }
        }
        let before = self.during.swap(moving, Ordering::Relaxed);
        match (before, moving) {
            (false, true) => seen.began = Some(now),
            (true, false) => {
                let until = nanos(now - self.begin);
                self.during_until.store(until, Ordering::Relaxed);
                let began = seen.began.take();
                seen.lasted += began.map(|at| now - at).unwrap_or_default();
            }
            _ => {}
        }
    }

    /// A write of `key` that was started at `start` has been acknowledged.
    pub(super) fn acknowledged(&self, key: &[u8], start: Instant, now: Instant) {
        let shard = shard_of(key, self.first.shards());
        let Some(watched) = self.shards.get(shard.0 as usize) else {
            return;
        };
        let at = nanos(now - self.begin);
        let last = watched.last_ack.fetch_max(at, Ordering::Relaxed);
        let moved = watched.moved.load(Ordering::Relaxed);
        let during = self.during.load(Ordering::Relaxed);
        let until = self.during_until.load(Ordering::Relaxed);
        // A write that began before the end of a move overlaps the move.
        let overlaps = |began: u64| moved && (during || began < until);
        if during || last < until {
            let longest = if moved {
                &watched.longest_gap
            } else {
                &watched.longest_gap_stayed
            };
            longest.fetch_max(at.saturating_sub(last), Ordering::Relaxed);
        }
        let started = nanos(start - self.begin);
        if overlaps(started) {
            let slow = nanos(now - start);
            watched.longest_write.fetch_max(slow, Ordering::Relaxed);
        }
        let mut seen = locked(&self.seen);
        if overlaps(started) {
            seen.moved.add(start, now);
        } else if during && !moved {
            seen.others.add(start, now);
        } else if seen.moves.is_empty() {
            seen.before.add(start, now);
        }
    }

    /// Returns the figures so far.
    pub(super) fn report(&self, now: Instant) -> MovesReport {
        let end = nanos(now - self.begin);
        let seen = locked(&self.seen);
        let under_way = seen.began.map(|at| now - at).unwrap_or_default();
        let during = (seen.lasted + under_way).as_secs_f64();
        let owner = |gid: Gid| (gid != Gid::NONE).then_some(gid.0);
        let moving = self.during.load(Ordering::Relaxed);
        let moved_shards = seen.moves.iter().filter_map(|(shard, moved)| {
            let watched = self.shards.get(*shard as usize)?;
            let last = watched.last_ack.load(Ordering::Relaxed);
            // This pause has not ended.
            let open = if moving && last > 0 {
                end.saturating_sub(last)
            } else {
                0
            };
            let longest = watched.longest_gap.load(Ordering::Relaxed);
            Some(MovedShard {
                shard: *shard,
                moves: moved.count,
                from: owner(moved.from),
                to: owner(moved.to),
                write_gap_ms: ms(longest.max(open)),
                slowest_write_ms: ms(watched.longest_write.load(Ordering::Relaxed)),
            })
        });
        let moved_shards: Vec<MovedShard> = moved_shards.collect();
        let moved = moved_shards.iter().map(|it| Pause {
            shard: it.shard,
            ms: it.write_gap_ms,
        });
        let watched = (0..).zip(&self.shards);
        let stayed = watched
            .filter(|(_, it)| !it.moved.load(Ordering::Relaxed))
            .map(|(shard, it)| Pause {
                shard,
                ms: ms(it.longest_gap_stayed.load(Ordering::Relaxed)),
            });
        MovesReport {
            config_before: self.first.num().0,
            config_after: seen.config.num().0,
            seconds: during,
            before: seen.before.row(),
            others: seen.others.row(),
            moved: seen.moved.row(),
            longest_moved: Pause::longest(moved),
            longest_stayed: Pause::longest(stayed),
            moved_shards,
        }
    }
}

impl MovesReport {
    /// Writes the report as tables.
    pub(super) fn write(&self, out: &mut dyn std::io::Write) -> std::io::Result<()> {
        if self.moved_shards.is_empty() {
            return writeln!(out, "no shard moved");
        }
        writeln!(
            out,
            "\n{} shards moved in {:.1} s, from configuration {} to {}",
            self.moved_shards.len(),
            self.seconds,
            self.config_before,
            self.config_after
        )?;
        let rows = [
            ("before", &self.before),
            ("during, shards that stay", &self.others),
            ("during, shards that move", &self.moved),
        ];
        let rows: Vec<(&str, &Row)> = rows
            .into_iter()
            .filter_map(|(name, row)| Some((name, row.as_ref()?)))
            .collect();
        table("WRITES", &rows).write(out)?;
        for (kind, pause) in [
            ("moved", self.longest_moved),
            ("stayed", self.longest_stayed),
        ] {
            if let Some(Pause { shard, ms }) = pause {
                writeln!(
                    out,
                    "longest pause of a shard that {kind}: {ms:.1} ms (shard {shard})"
                )?;
            }
        }
        writeln!(out)?;
        let mut shards = Table::new(&[
            "SHARD",
            "FROM",
            "TO",
            "MOVES",
            "PAUSE ms",
            "SLOWEST WRITE ms",
        ]);
        let owner = |gid: Option<u64>| gid.map_or("nobody".to_owned(), |gid| format!("g{gid}"));
        for shard in &self.moved_shards {
            shards.row(vec![
                shard.shard.to_string(),
                owner(shard.from),
                owner(shard.to),
                shard.moves.to_string(),
                format!("{:.1}", shard.write_gap_ms),
                format!("{:.1}", shard.slowest_write_ms),
            ]);
        }
        shards.write(out)
    }
}

#[cfg(test)]
mod tests {
    use shardkv_client::ConfigNum;

    use super::*;

    fn config(num: u64, owners: &[u64]) -> ShardConfig {
        let groups = owners
            .iter()
            .map(|gid| (Gid(*gid), vec![format!("h{gid}:1")]));
        let runs = owners.iter().map(|gid| (1, Gid(*gid)));
        ShardConfig::new(ConfigNum(num), groups.collect(), runs).unwrap()
    }

    #[test]
    fn writes_are_counted_by_what_their_shard_is() {
        let moves = MoveWatch::new(config(1, &[1, 2])).unwrap();
        let at = |ms: u64| moves.begin + Duration::from_millis(ms);
        let write = |shard: u32, from: u64, to: u64| {
            let mut keys = (0..).map(|n| format!("k{n}"));
            let key = keys.find(|key| shard_of(key.as_bytes(), 2).0 == shard);
            moves.acknowledged(key.unwrap().as_bytes(), at(from), at(to));
        };
        write(0, 0, 5);
        write(1, 5, 10);
        moves.configured(&config(2, &[1, 1]), true, at(10));
        write(0, 10, 20);
        write(1, 20, 60);
        write(1, 60, 61);
        moves.configured(&config(2, &[1, 1]), false, at(70));
        write(0, 70, 561);
        write(1, 300, 301);
        write(1, 560, 561);
        let report = moves.report(at(561));
        let count = |row: &Option<Row>| row.as_ref().unwrap().count;
        assert_eq!(
            [
                count(&report.before),
                count(&report.others),
                count(&report.moved)
            ],
            [2, 1, 2],
            "what comes after is neither"
        );
        assert!((report.seconds - 0.060).abs() < 1e-3, "{report:?}");
        let [shard] = &report.moved_shards[..] else {
            panic!("{report:?}")
        };
        assert_eq!((shard.shard, shard.from, shard.to), (1, Some(2), Some(1)));
        assert_eq!(shard.moves, 1);
        let longest = report.longest_moved.unwrap();
        assert_eq!((longest.shard, longest.ms), (1, shard.write_gap_ms));
        // The shard that stayed was written at 20 ms, and next at 561 ms. That pause began during the moves.
        let stayed = report.longest_stayed.unwrap();
        assert_eq!(stayed.shard, 0);
        assert!((stayed.ms - 541.0).abs() < 1.0, "{stayed:?}");
        // The pause lasts from 61 ms, when the shard still moved, to 301 ms. Later pauses are not caused by the move.
        assert!((shard.write_gap_ms - 240.0).abs() < 1.0, "{shard:?}");
        assert!((shard.slowest_write_ms - 40.0).abs() < 1.0, "{shard:?}");
    }
}
