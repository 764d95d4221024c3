//! A small example application that uses `ShardKV` from Rust.
//!
//! It connects to `SHARDKV_ENDPOINTS` (in Kubernetes: the client service, `demo-client:7400`), calls each operation once, and
//! compares each answer with the expected one. It exits with 0 only if all answers are right.
//!
//! The library finds groups, leaders and moved shards, retries where a retry is safe, and waits while the store starts. So this
//! application contains no retries.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::TryStreamExt as _;
use shardkv_client::{Client, ClientOptions, ScanOptions};

/// Number of keys: enough that each of a few groups owns some.
const KEYS: usize = 200;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let endpoints = std::env::var("SHARDKV_ENDPOINTS")
        .context("set SHARDKV_ENDPOINTS to host:port, such as demo-client:7400")?;
    // Each pod writes its own keys, and deletes them at the end.
    let name = std::env::var("HOSTNAME").unwrap_or_else(|_| std::process::id().to_string());
    let prefix = format!("example-rust/{name}/");
    let options = ClientOptions {
        request_timeout: Duration::from_secs(30),
        ..ClientOptions::new(endpoints.split(',').map(str::trim))
    };
    // `lazy` opens no connection yet: an application may start before its store.
    let client = Client::lazy(options)?;

    one_key(&client, &prefix).await?;
    many_keys(&client, &prefix).await?;
    let groups = client.config().map_or(0, |config| config.groups().len());
    println!(
        "{endpoints}: put, get, append, compare-and-swap, delete and scan work; groups: {groups}"
    );
    Ok(())
}

async fn one_key(client: &Client, prefix: &str) -> Result<()> {
    let key = format!("{prefix}greeting");
    client.put(key.clone(), "hello").await?;
    let length = client.append(key.clone(), ", world").await?;
    ensure!(length == 12, "append: {length} bytes, not 12");
    let value = client.get(key.clone()).await?;
    ensure!(
        value.as_deref() == Some(b"hello, world"),
        "get: {value:?} after put and append"
    );

    let swap = |from: &'static str, to: &'static str| {
        client.compare_and_swap(key.clone(), Some(from.into()), Some(to.into()))
    };
    ensure!(
        swap("hello, world", "goodbye").await?,
        "compare-and-swap refused the right value"
    );
    ensure!(
        !swap("hello, world", "again").await?,
        "compare-and-swap took a wrong value"
    );

    ensure!(client.delete(key.clone()).await?, "delete found no key");
    let value = client.get(key).await?;
    ensure!(value.is_none(), "get: {value:?} after delete");
    Ok(())
}

async fn many_keys(client: &Client, prefix: &str) -> Result<()> {
    let pairs: Vec<(String, String)> = (0..KEYS)
        .map(|number| (format!("{prefix}many/{number:04}"), number.to_string()))
        .collect();
    for result in client.put_many(pairs.clone()).await {
        result?;
    }
    let scan = client.scan(ScanOptions::prefix(format!("{prefix}many/")));
    let found: Vec<_> = scan.try_collect().await?;
    ensure!(
        found.len() == KEYS,
        "scan: {} pairs, not {KEYS}",
        found.len()
    );
    for (pair, (key, value)) in found.iter().zip(&pairs) {
        ensure!(
            pair.key == key && pair.value == value,
            "scan: {pair:?}, not {key} = {value}"
        );
    }
    for (key, _) in pairs {
        client.delete(key).await?;
    }
    Ok(())
}
