//! Clients that write and read while a test injects faults.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use shardkv_client::Client;
use tokio::task::JoinSet;

use crate::cluster::Cluster;
use crate::history::{History, Recorded, Tally};
use crate::wait::{holds, until};

/// Few enough keys that operations meet, and enough that the checker is quick.
const KEYS: u64 = 24;
/// The maximum number of operations of a client. No test needs more, and the checker's work stays bounded.
const MAX_OPERATIONS: u64 = 20_000;

/// Working clients, each with its own connection and session.
pub(crate) struct Load {
    history: Arc<History>,
    stop: Arc<AtomicBool>,
    tasks: JoinSet<()>,
    reader: Client,
    /// The first part of the keys.
    place: String,
}

impl Load {
    /// Starts `clients` clients, and waits until the first operations were answered.
    pub(crate) async fn start(cluster: &Cluster, clients: u32) -> Self {
        Self::start_with(async || cluster.client().await, clients).await
    }

    /// Does the same with clients that `connect` creates.
    pub(crate) async fn start_with(connect: impl AsyncFn() -> Client, clients: u32) -> Self {
        Self::start_under("load", connect, clients).await
    }

    /// Does the same with keys under `place`. Two loads of one cluster need two places, since a history begins without keys.
    pub(crate) async fn start_under(
        place: &str,
        connect: impl AsyncFn() -> Client,
        clients: u32,
    ) -> Self {
        let history = Arc::new(History::new());
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for number in 1..=clients {
            let (history, stop) = (history.clone(), stop.clone());
            let client = connect().await;
            let place = place.to_owned();
            tasks.spawn(async move { work(&client, number, &place, &history, &stop).await });
        }
        let load = Self {
            history,
            stop,
            tasks,
            reader: connect().await,
            place: place.to_owned(),
        };
        load.answered(100).await;
        load
    }

    /// Waits until `more` operations that end from now on have succeeded.
    pub(crate) async fn answered(&self, more: usize) {
        let from = Instant::now();
        until("the load makes progress", async || {
            let tally = self.history.tally_since(from);
            holds(tally.ok >= more, format!("{tally:?} of {more}"))
        })
        .await;
    }

    /// Ends the load, reads every key once more, and has the whole history checked. Returns the counts of the load.
    pub(crate) async fn finish(mut self) -> Tally {
        self.stop().await;
        let tally = self.history.tally();
        self.read_all().await;
        self.history.check();
        tally
    }

    /// Ends the load.
    pub(crate) async fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(result) = self.tasks.join_next().await {
            result.unwrap();
        }
    }

    /// Does the same as [`Load::finish`], and returns what the checker said.
    pub(crate) async fn read_and_judge(mut self) -> Result<String, String> {
        self.stop().await;
        self.read_all().await;
        self.history.judge()
    }

    async fn read_all(&self) {
        let reader = Recorded {
            history: &self.history,
            client: &self.reader,
            number: 0,
        };
        for key in 0..KEYS {
            reader.get(&key_name(&self.place, key)).await.unwrap();
        }
    }
}

fn key_name(place: &str, key: u64) -> String {
    format!("{place}/{key}")
}

/// The work of one client: a mix that differs between clients and is the same in each run. Values are unique, so that a
/// read shows which write it saw.
async fn work(client: &Client, number: u32, place: &str, history: &History, stop: &AtomicBool) {
    let client = Recorded {
        history,
        client,
        number,
    };
    let mut rng = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut seen: Option<String> = None;
    for count in 0..MAX_OPERATIONS {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        // Xorshift: enough to mix.
        rng ^= rng << 13;
        rng ^= rng >> 7;
        rng ^= rng << 17;
        // Keys in pairs of rounds, so that a swap often expects the value that the same client read just before.
        let key = key_name(place, (rng >> 32) % KEYS);
        let value = format!("{number}.{count};");
        // Errors are in the history. The test decides whether any is allowed.
        match rng % 100 {
            0..40 => drop(client.put(&key, &value).await),
            40..55 => drop(client.append(&key, &value).await),
            55..60 => drop(client.delete(&key).await),
            60..70 => {
                if let Ok(now) = client.get(&key).await {
                    drop(client.swap(&key, now.as_deref(), Some(&value)).await);
                }
            }
            70..75 => drop(client.swap(&key, seen.as_deref(), None).await),
            _ => seen = client.get(&key).await.unwrap_or(seen),
        }
    }
}
