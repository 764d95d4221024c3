//! Measures the write pause of a shard that moves, by its size, and the latency of the other shards meanwhile.
//!
//! For each size one shard is filled: its keys share a `{tag}`, so that they are all in it. Then writes come at a steady
//! rate, to this shard and to all others, whether or not earlier ones were answered; latency counts from when a write was
//! due, so that a pause can't hide. In the middle of it the shard is moved to another group. What was filled is deleted
//! again.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use futures::StreamExt as _;
use indicatif::ProgressBar;
use serde::Serialize;
use shardkv_client::{Client, Error, Gid, ShardConfig, ShardId};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use types::shard_of;

use super::latencies::{Latencies, Row, table};
use super::operation::Shape;
use crate::client_error::call_failure;
use crate::cluster_view::views;
use crate::exit::{Exit, Failure};
use crate::global::GlobalArgs;
use crate::move_progress::MoveTracker;
use crate::output::{Format, Table, grouped, json_line};
use crate::parse::{byte_size, duration};

/// Writes at once while a shard is filled or cleared.
const FILL_IN_FLIGHT: usize = 256;
/// Interval between polls until the shard has arrived.
const POLL: Duration = Duration::from_millis(10);
/// The keys that other shards are written by.
const OTHER_KEYS: u64 = 10_000;

/// The arguments of `bench handoff`.
#[derive(Debug, Args)]
pub(super) struct HandoffArgs {
    /// The sizes of a shard to move, one after the other: bytes, or with kB, MB or GB
    #[arg(long, value_name = "SIZE,...", value_delimiter = ',', value_parser = byte_size, default_value = "1MB,100MB")]
    sizes: Vec<u64>,
    /// The size of a value, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 4_096, value_parser = clap::value_parser!(u32).range(1..=(1 << 20)))]
    value_bytes: u32,
    /// Writes a second to the shard that moves
    #[arg(long, value_name = "PER_SECOND", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Writes a second to all other shards together
    #[arg(long, value_name = "PER_SECOND", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    other_rate: u32,
    /// Duration of the writes before the move, and again after it
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "5s")]
    steady: Duration,
    /// Time limit of a hand-off
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "10m")]
    patience: Duration,
}

/// The hand-off of one shard. Times are in milliseconds.
#[derive(Clone, Debug, Serialize)]
struct Handoff {
    shard: u32,
    from: u64,
    to: u64,
    /// Of keys and values that the shard was filled with.
    bytes: u64,
    keys: u64,
    /// From the Move until the new owner served the shard, and until the old one had deleted it.
    arrived_ms: f64,
    settled_ms: f64,
    /// The longest time without an acknowledged write of the shard, before the move and from it on.
    gap_before_ms: f64,
    write_gap_ms: f64,
    /// Writes of the other shards before, and from the Move until all was settled.
    others_before: Row,
    others_during: Row,
    failed_writes: u64,
}

#[derive(Debug, Serialize)]
struct Report {
    value_bytes: u32,
    rate: u32,
    other_rate: u32,
    handoffs: Vec<Handoff>,
}

/// Measures each size and writes the report.
pub(super) async fn run(args: &HandoffArgs, global: &GlobalArgs) -> Result<Exit, Failure> {
    let client = global.client()?;
    let mut handoffs = Vec::new();
    for (number, bytes) in (0..).zip(&args.sizes) {
        handoffs.push(measure(args, &client, number, *bytes).await?);
    }
    let report = Report {
        value_bytes: args.value_bytes,
        rate: args.rate,
        other_rate: args.other_rate,
        handoffs,
    };
    write(&report, global.output, &mut io::stdout().lock())?;
    Ok(Exit::Ok)
}

/// The shard that is moved, and where.
struct Chosen {
    tag: String,
    shard: ShardId,
    from: Gid,
    to: Gid,
}

impl Chosen {
    /// A tag whose shard has an owner, and another group for it. Different numbers give different shards if they can.
    fn of(config: &ShardConfig, number: usize) -> Result<Self, Failure> {
        let tags = (0..).map(|n| format!("handoff-{n}"));
        let tags = tags.map(|tag| (shard_of(tag.as_bytes(), config.shards()), tag));
        let mut owned = tags
            .take(config.shards() as usize * 20 + number)
            .filter(|(shard, _)| config.owner(*shard) != Gid::NONE);
        let chosen = owned.nth(number);
        let other = chosen.and_then(|(shard, tag)| {
            let from = config.owner(shard);
            let to = *config.groups().keys().find(|gid| **gid != from)?;
            Some(Self {
                tag,
                shard,
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

    fn key(&self, number: u64) -> Bytes {
        format!("{{{}}}/{number:012}", self.tag).into()
    }
}

async fn measure(
    args: &HandoffArgs,
    client: &Client,
    number: usize,
    bytes: u64,
) -> Result<Handoff, Failure> {
    let before = client.controller().query(None).await?.config;
    let chosen = Chosen::of(&before, number)?;
    let value_bytes = args.value_bytes as usize;
    let noise = Shape::noise(value_bytes, bytes);
    let value = noise.slice(..value_bytes);
    let each = (chosen.key(0).len() + value_bytes) as u64;
    let keys = (bytes / each).max(1);
    fill(client, &chosen, keys, &value).await?;

    let (stop, stopped) = watch::channel(false);
    let shards = before.shards();
    let moving = {
        let keys = (0..keys).map(|n| chosen.key(n)).cycle();
        steady(client, keys, value.clone(), args.rate, stopped.clone())
    };
    let others = {
        let shard = chosen.shard;
        let keys = (0..OTHER_KEYS).map(|n| Bytes::from(format!("handoff-others/{n}")));
        let keys = keys.filter(move |key| shard_of(key, shards) != shard);
        let keys: Vec<Bytes> = keys.collect();
        let value = noise.slice(..value_bytes.min(256));
        steady(
            client,
            keys.into_iter().cycle(),
            value,
            args.other_rate,
            stopped,
        )
    };
    let control = async {
        sleep(args.steady).await;
        let timed = move_it(client, &chosen, before, args.patience).await;
        sleep(args.steady).await;
        stop.send_replace(true);
        timed
    };
    let (moving, others, timed) = tokio::join!(moving, others, control);
    clear(client, &chosen, keys).await?;
    let timed = timed?;
    let [arrived_ms, settled_ms] = [timed.arrived, timed.settled].map(|at| ms(at - timed.asked));
    let during = (timed.settled - timed.asked).as_secs_f64();
    Ok(Handoff {
        shard: chosen.shard.0,
        from: chosen.from.0,
        to: chosen.to.0,
        bytes: keys * each,
        keys,
        arrived_ms,
        settled_ms,
        gap_before_ms: ms(moving.longest_gap(moving.begin, timed.asked)),
        write_gap_ms: ms(moving.longest_gap(timed.asked, Instant::now())),
        others_before: others
            .due_within(others.begin, timed.asked)
            .row((timed.asked - others.begin).as_secs_f64()),
        others_during: others.due_within(timed.asked, timed.settled).row(during),
        failed_writes: moving.failed + others.failed,
    })
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

async fn fill(client: &Client, chosen: &Chosen, keys: u64, value: &Bytes) -> Result<(), Failure> {
    let bar = ProgressBar::new(keys).with_message("filling");
    let puts = futures::stream::iter(0..keys).map(|n| client.put(chosen.key(n), value.clone()));
    let mut puts = std::pin::pin!(puts.buffer_unordered(FILL_IN_FLIGHT));
    while let Some(put) = puts.next().await {
        put.map_err(|error| call_failure(&error).context("while the shard was filled"))?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

async fn clear(client: &Client, chosen: &Chosen, keys: u64) -> Result<(), Failure> {
    let deletes = futures::stream::iter(0..keys).map(|n| client.delete(chosen.key(n)));
    let mut deletes = std::pin::pin!(deletes.buffer_unordered(FILL_IN_FLIGHT));
    while let Some(deleted) = deletes.next().await {
        deleted.map_err(|error| call_failure(&error).context("while the shard was cleared"))?;
    }
    Ok(())
}

/// The moments of a hand-off.
struct Timed {
    asked: Instant,
    arrived: Instant,
    settled: Instant,
}

async fn move_it(
    client: &Client,
    chosen: &Chosen,
    before: ShardConfig,
    patience: Duration,
) -> Result<Timed, Failure> {
    let mut tracker = MoveTracker::new(before);
    let controller = client.controller();
    let asked = Instant::now();
    controller.move_shard(chosen.shard, chosen.to).await?;
    let mut arrived = None;
    loop {
        let view = controller.query(None).await?;
        let (moving, done) = tracker.look(&view, &views(client, &view).await);
        let now = Instant::now();
        if moving.moved == moving.to_move && moving.to_move > 0 {
            arrived.get_or_insert(now);
        }
        if done {
            return Ok(Timed {
                asked,
                arrived: arrived.unwrap_or(now),
                settled: now,
            });
        }
        if asked.elapsed() > patience {
            return Err(Failure::failed(
                format!("the hand-off was not done in time: {}", moving.line()),
                "`shardkv shards` shows why it waits; --patience sets how long it may take",
            ));
        }
        sleep(POLL).await;
    }
}

/// Writes that came at a steady rate: when each was due and when it was acknowledged.
struct Written {
    begin: Instant,
    acknowledged: Vec<(Instant, Instant)>,
    failed: u64,
}

impl Written {
    /// The longest time without an acknowledgement that ends after `from` and begins before `to`.
    fn longest_gap(&self, from: Instant, to: Instant) -> Duration {
        let mut acknowledged: Vec<Instant> = self.acknowledged.iter().map(|it| it.1).collect();
        acknowledged.sort();
        let pairs = acknowledged.windows(2).filter_map(|pair| match pair {
            [first, second] => Some((*first, *second)),
            _ => None,
        });
        pairs
            .filter(|(first, second)| *second >= from && *first <= to)
            .map(|(first, second)| second - first)
            .max()
            .unwrap_or_default()
    }

    /// The latencies of writes that were due in a span of time.
    fn due_within(&self, from: Instant, to: Instant) -> Latencies {
        let mut latencies = Latencies::new();
        for (due, acknowledged) in &self.acknowledged {
            if (from..to).contains(due) {
                latencies.add(*acknowledged - *due);
            }
        }
        latencies
    }
}

/// Puts `rate` values a second until it is told to stop, and waits for those in flight.
async fn steady(
    client: &Client,
    mut keys: impl Iterator<Item = Bytes>,
    value: Bytes,
    rate: u32,
    mut stopped: watch::Receiver<bool>,
) -> Written {
    let begin = Instant::now();
    let client = Arc::new(client.clone());
    let mut writes: JoinSet<(Instant, Result<Instant, Error>)> = JoinSet::new();
    let mut written = Written {
        begin,
        acknowledged: Vec::new(),
        failed: 0,
    };
    let settle = |written: &mut Written, done| match done {
        Ok((due, Ok(acknowledged))) => written.acknowledged.push((due, acknowledged)),
        _ => written.failed += 1,
    };
    for number in 0u64.. {
        let Some(key) = keys.next() else { break };
        let nanos = u128::from(number) * 1_000_000_000 / u128::from(rate);
        let due = begin + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        tokio::select! {
            () = sleep_until(due) => {}
            _ = stopped.wait_for(|stop| *stop) => break,
        }
        while let Some(done) = writes.try_join_next() {
            settle(&mut written, done);
        }
        let (client, value) = (Arc::clone(&client), value.clone());
        writes.spawn(async move {
            let put = client.put(key, value).await;
            (due, put.map(|()| Instant::now()))
        });
    }
    while let Some(done) = writes.join_next().await {
        settle(&mut written, done);
    }
    written
}

fn write(report: &Report, format: Format, out: &mut dyn io::Write) -> io::Result<()> {
    if format == Format::Json {
        return json_line(out, report);
    }
    writeln!(
        out,
        "values of {} bytes, {} writes/s to the shard that moves, {} to the others\n",
        grouped(report.value_bytes.into()),
        grouped(report.rate.into()),
        grouped(report.other_rate.into())
    )?;
    let mut moved = Table::new(&[
        "SHARD",
        "FROM",
        "TO",
        "BYTES",
        "KEYS",
        "WRITE GAP ms",
        "GAP BEFORE ms",
        "ARRIVED ms",
        "SETTLED ms",
        "FAILED",
    ]);
    let mut names = Vec::new();
    for it in &report.handoffs {
        moved.row(vec![
            it.shard.to_string(),
            format!("g{}", it.from),
            format!("g{}", it.to),
            grouped(it.bytes),
            grouped(it.keys),
            format!("{:.1}", it.write_gap_ms),
            format!("{:.1}", it.gap_before_ms),
            format!("{:.1}", it.arrived_ms),
            format!("{:.1}", it.settled_ms),
            grouped(it.failed_writes),
        ]);
        let name = |when: &str| format!("{when} shard {} moved", it.shard);
        names.push((name("before"), &it.others_before));
        names.push((name("while"), &it.others_during));
    }
    moved.write(out)?;
    writeln!(out)?;
    let rows: Vec<(&str, &Row)> = names
        .iter()
        .map(|(name, row)| (name.as_str(), *row))
        .collect();
    table("WRITES OF OTHERS", &rows).write(out)
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
        }
        let one = ShardConfig::new(ConfigNum(1), [group(1)].into(), [(8, Gid(1))]).unwrap();
        assert!(Chosen::of(&one, 0).is_err());
        assert!(Chosen::of(&ShardConfig::empty(8), 0).is_err());
    }

    #[test]
    fn gaps_are_between_acknowledgements() {
        let begin = Instant::now();
        let at = |ms: u64| begin + Duration::from_millis(ms);
        let written = Written {
            begin,
            acknowledged: vec![
                (at(0), at(1)),
                (at(10), at(11)),
                (at(20), at(70)),
                (at(60), at(71)),
            ],
            failed: 0,
        };
        let ms = Duration::from_millis;
        assert_eq!(written.longest_gap(begin, at(10)), ms(10));
        assert_eq!(written.longest_gap(at(15), at(100)), ms(59));
        assert_eq!(written.longest_gap(at(90), at(100)), ms(0));
        assert_eq!(written.due_within(at(10), at(60)).count(), 2);
    }
}
