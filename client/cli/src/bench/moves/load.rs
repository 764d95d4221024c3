//! The load while shards move: writers to the moving shard and to the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use shardkv_client::Client;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::cluster::{Chosen, Fill};
use super::record::{Figures, Record, Shards};
use crate::random::Random;

/// The most scheduled writes in flight: to the moving shard, and again to the others.
pub(super) const WRITERS: u32 = 512;
/// The largest value that other shards get.
const OTHER_VALUE_BYTES: usize = 256;

/// The pace of the writes to other shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// So many writers, each as fast as it gets answers.
    Closed(u32),
    /// So many writes a second.
    Open(u32),
}

impl Pace {
    /// Returns the name of the load.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Closed(_) => "closed",
            Self::Open(_) => "open",
        }
    }
}

/// A running load. Dropping it stops the writers.
pub(super) struct Load {
    pub(super) record: Arc<Record>,
    writers: JoinSet<()>,
    stop: watch::Sender<bool>,
}

impl Load {
    /// Starts the writers.
    pub(super) fn start(
        client: &Client,
        chosen: &Chosen,
        fill: &Fill,
        rate: u32,
        pace: Pace,
    ) -> Self {
        let begin = Instant::now();
        let (stop, stopped) = watch::channel(false);
        let mut load = Self {
            record: Arc::new(Record::new(begin)),
            writers: JoinSet::new(),
            stop,
        };
        let others = chosen.other_keys();
        let other_value = fill.value.slice(..fill.value.len().min(OTHER_VALUE_BYTES));
        let chosen = chosen.clone();
        let keys = fill.keys;
        let kinds = [
            (
                Shards::Moving,
                Pace::Open(rate),
                fill.value.clone(),
                Arc::new(move |random: &mut Random| chosen.key(random.below(keys))) as Keys,
            ),
            (
                Shards::Others,
                pace,
                other_value,
                Arc::new(move |random: &mut Random| draw(&others, random)),
            ),
        ];
        for (shards, pace, value, keys) in kinds {
            let (count, schedule) = match pace {
                Pace::Closed(clients) => (clients, None),
                Pace::Open(rate) => (WRITERS, Some(Arc::new(Schedule::new(begin, rate)))),
            };
            for number in 0..count {
                let writer = Writer {
                    client: client.clone(),
                    record: Arc::clone(&load.record),
                    shards,
                    schedule: schedule.clone(),
                    keys: Arc::clone(&keys),
                    random: Random::new(u64::from(number)),
                    value: value.clone(),
                };
                load.writers.spawn(writer.run(stopped.clone()));
            }
        }
        load
    }

    /// Stops the writers, waits for the writes in flight, and returns the figures.
    pub(super) async fn finish(mut self) -> Figures {
        self.stop.send_replace(true);
        while self.writers.join_next().await.is_some() {}
        self.record.finish(Instant::now())
    }
}

/// Draws a key.
type Keys = Arc<dyn Fn(&mut Random) -> Bytes + Send + Sync>;

fn draw(keys: &[Bytes], random: &mut Random) -> Bytes {
    let number = usize::try_from(random.below(keys.len() as u64)).unwrap_or(0);
    keys.get(number).cloned().unwrap_or_default()
}

/// A number of writes a second, which several writers share.
struct Schedule {
    begin: Instant,
    rate: u32,
    next: AtomicU64,
}

impl Schedule {
    fn new(begin: Instant, rate: u32) -> Self {
        Self {
            begin,
            rate,
            next: AtomicU64::new(0),
        }
    }

    /// Takes the next write's time.
    fn take(&self) -> Instant {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let nanos = u128::from(number) * 1_000_000_000 / u128::from(self.rate.max(1));
        self.begin + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// Makes one write after the other.
struct Writer {
    client: Client,
    record: Arc<Record>,
    shards: Shards,
    schedule: Option<Arc<Schedule>>,
    keys: Keys,
    random: Random,
    value: Bytes,
}

impl Writer {
    async fn run(mut self, mut stopped: watch::Receiver<bool>) {
        loop {
            let due = match &self.schedule {
                Some(schedule) => schedule.take(),
                None => Instant::now(),
            };
            // `biased`, so that a writer that is behind its schedule stops too.
            tokio::select! {
                biased;
                _ = stopped.wait_for(|stop| *stop) => return,
                () = sleep_until(due) => {}
            }
            let key = (self.keys)(&mut self.random);
            match self.client.put(key, self.value.clone()).await {
                Ok(()) => self.record.acknowledged(self.shards, due, Instant::now()),
                Err(error) => self.record.failed(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_is_even_and_shared() {
        let begin = Instant::now();
        let schedule = Schedule::new(begin, 200);
        let times: Vec<Duration> = (0..3).map(|_| schedule.take() - begin).collect();
        assert_eq!(times, [0, 5, 10].map(Duration::from_millis));
    }
}
