//! Writers of keys that are written once, and the check that all of them are there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::TryStreamExt as _;
use shardkv_client::{Client, ScanOptions};
use tokio::task::JoinSet;

const PREFIX: &str = "kept/";
const WRITERS: u32 = 3;

/// Writers of new keys, each one after the other. No key is written again, so none may be missing later.
pub(crate) struct Keeper {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<Kept>,
}

/// The keys and values that were acknowledged.
#[derive(Default)]
pub(crate) struct Kept(BTreeMap<String, String>);

impl Keeper {
    /// Starts to write keys under `name`.
    pub(crate) fn start(client: &Client, name: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for writer in 0..WRITERS {
            let (client, stop) = (client.clone(), Arc::clone(&stop));
            let place = format!("{PREFIX}{name}/{writer}");
            tasks.spawn(async move {
                let mut kept = Kept::default();
                while !stop.load(Ordering::Relaxed) {
                    let key = format!("{place}/{}", kept.len());
                    // Long enough that the files of the log are soon full.
                    let value = format!("{key:0>2000}");
                    client.put(key.clone(), value.clone()).await.unwrap();
                    kept.0.insert(key, value);
                }
                kept
            });
        }
        Self { stop, tasks }
    }

    /// Ends the writers, and returns what was acknowledged.
    pub(crate) async fn finish(mut self) -> Kept {
        self.stop.store(true, Ordering::Relaxed);
        let mut kept = Kept::default();
        while let Some(more) = self.tasks.join_next().await {
            kept.extend(more.unwrap());
        }
        kept
    }
}

impl Kept {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn extend(&mut self, more: Self) {
        self.0.extend(more.0);
    }

    /// Reads everything, and returns the keys that are missing or have another value.
    pub(crate) async fn lost(&self, client: &Client) -> Vec<&String> {
        let pairs: Vec<_> = client
            .scan(ScanOptions::prefix(PREFIX))
            .try_collect()
            .await
            .unwrap();
        let found: BTreeMap<&[u8], &[u8]> = pairs
            .iter()
            .map(|pair| (pair.key.as_ref(), pair.value.as_ref()))
            .collect();
        let there = |(key, value): &(&String, &String)| {
            found.get(key.as_bytes()) == Some(&value.as_bytes())
        };
        let lost = self.0.iter().filter(|it| !there(it));
        lost.map(|(key, _)| key).collect()
    }
}
