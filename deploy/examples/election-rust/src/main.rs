//! An application with leader election: several copies run, one leads and works, and another one takes over when it dies.
//!
//! ```text
//! shardkv-election work NAME    runs a copy until all steps are done
//! shardkv-election report       prints each step with the copy that did it
//! ```
//!
//! `ENDPOINTS` has the addresses of the keyspace. On Kubernetes that is the name and namespace of a `ShardKvKeyspace`:
//! `orders.default:2379`.

use std::time::Duration;

use anyhow::{Context as _, bail};
use etcd_client::{
    Client, Compare, CompareOp, EventType, GetOptions, PutOptions, Txn, TxnOp, WatchOptions,
};
use tokio::time::{Instant, interval, sleep, timeout_at};

const STEPS: u32 = 30;
const LEADER: &str = "election-rust/leader";
const DONE: &str = "election-rust/done";
const STEP: &str = "election-rust/step/";
/// A leader that dies is replaced after this many seconds.
const TTL: u32 = 2;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["work", name] => {
            loop {
                match Box::pin(lead(name)).await {
                    Ok(()) => return Ok(()),
                    // The outcome of a step may be unknown. The next leader reads what was done.
                    Err(error) => println!("{name}: {error:#}; candidate again"),
                }
                sleep(Duration::from_millis(200)).await;
            }
        }
        ["report"] => report().await,
        _ => bail!("usage: shardkv-election work NAME | shardkv-election report"),
    }
}

async fn connect() -> anyhow::Result<Client> {
    let endpoints = std::env::var("ENDPOINTS").context("ENDPOINTS")?;
    let endpoints: Vec<&str> = endpoints.split(',').collect();
    Ok(Client::connect(endpoints, None).await?)
}

/// Waits to be the leader, and works until all steps are done. Fails when the lease may have ended.
async fn lead(name: &str) -> anyhow::Result<()> {
    let mut client = connect().await?;
    let lease = client.lease_grant(i64::from(TTL), None).await?.id();
    let worked = tokio::select! {
        worked = campaign_and_work(client.clone(), name, lease) => worked,
        ended = renew(client.clone(), lease) => ended.context("the lease ended"),
    };
    // The next copy need not wait for the end of the lease.
    let _ = client.lease_revoke(lease).await;
    worked
}

/// Renews a lease until it may have ended.
async fn renew(mut client: Client, lease: i64) -> anyhow::Result<()> {
    let term = Duration::from_secs(TTL.into());
    let (mut keeper, mut answers) = client.lease_keep_alive(lease).await?;
    let mut until = Instant::now() + term;
    let mut ticks = interval(term / 4);
    loop {
        ticks.tick().await;
        let asked = Instant::now();
        keeper.keep_alive().await?;
        let answer = timeout_at(until, answers.message()).await??;
        if answer.is_none_or(|answer| answer.ttl() <= 0) {
            bail!("the store doesn't know it");
        }
        until = asked + term;
    }
}

async fn campaign_and_work(mut client: Client, name: &str, lease: i64) -> anyhow::Result<()> {
    campaign(&mut client, name, lease).await?;
    println!("{name} leads");
    while let Some(number) = work(&mut client, name, lease).await? {
        println!("{name} did step {number}");
    }
    Ok(())
}

/// Waits until this copy leads: it has made the key of the leader, which goes with its lease.
async fn campaign(client: &mut Client, name: &str, lease: i64) -> anyhow::Result<()> {
    loop {
        let free = Compare::version(LEADER, CompareOp::Equal, 0);
        let put = TxnOp::put(LEADER, name, Some(PutOptions::new().with_lease(lease)));
        let answer = client.txn(Txn::new().when([free]).and_then([put])).await?;
        if answer.succeeded() {
            return Ok(());
        }
        let revision = answer.header().context("a header")?.revision();
        let from = WatchOptions::new().with_start_revision(revision + 1);
        let mut changes = client.watch(LEADER, Some(from)).await?;
        let mut gone = false;
        while !gone {
            let change = changes.message().await?.context("the watch ended")?;
            gone = change
                .events()
                .iter()
                .any(|event| event.event_type() == EventType::Delete);
        }
    }
}

/// Does the next step, and returns its number, or none once all are done. The transaction changes nothing if another copy leads by now, so
/// no step is done twice.
async fn work(client: &mut Client, name: &str, lease: i64) -> anyhow::Result<Option<u32>> {
    let done = client.get(DONE, None).await?;
    let done = done.kvs().first().map(|pair| pair.value_str());
    let number = match done {
        Some(text) => text?.parse::<u32>()? + 1,
        None => 1,
    };
    if number > STEPS {
        return Ok(None);
    }
    // The work.
    sleep(Duration::from_millis(100)).await;
    let step = format!("{STEP}{number:03}");
    let leads = Compare::lease(LEADER, CompareOp::Equal, lease);
    let undone = Compare::version(step.as_str(), CompareOp::Equal, 0);
    let puts = [
        TxnOp::put(step.as_str(), name, None),
        TxnOp::put(DONE, number.to_string(), None),
    ];
    let answer = client.txn(Txn::new().when([leads, undone]).and_then(puts));
    if !answer.await?.succeeded() {
        bail!("another copy leads");
    }
    Ok(Some(number))
}

async fn report() -> anyhow::Result<()> {
    let mut client = connect().await?;
    let steps = client
        .get(STEP, Some(GetOptions::new().with_prefix()))
        .await?;
    for pair in steps.kvs() {
        let (key, name) = (pair.key_str()?, pair.value_str()?);
        println!("{} {name}", key.strip_prefix(STEP).unwrap_or(key));
    }
    Ok(())
}
