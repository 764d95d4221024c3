//! Makes a change of the configuration, waits for it, and reports it.

use std::io::{self, Write};
use std::time::Duration;

use clap::Args;
use serde_json::json;
use shardkv_client::{Client, ConfigChange, Error, Forgotten, ShardList};
use tokio::time::{Instant, sleep};

use crate::cluster_view::views;
use crate::exit::{Exit, Failure};
use crate::global::GlobalArgs;
use crate::move_progress::{MoveProgressBar, MoveTracker};
use crate::output::{Format, grouped, json_line};
use crate::parse::duration;

/// Interval between polls of the progress.
const POLL: Duration = Duration::from_millis(100);

/// Options to wait until the moved shards are in place.
#[derive(Clone, Debug, Args)]
pub(crate) struct WaitArgs {
    /// Wait until the new owners serve the shards and the old owners have deleted them
    #[arg(long, short)]
    wait: bool,
    /// Time limit for --wait
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "1h")]
    wait_timeout: Duration,
}

/// Makes a change, waits for it with `--wait`, and reports it.
pub(super) async fn changed(
    client: &Client,
    wait: &WaitArgs,
    global: &GlobalArgs,
    out: &mut dyn Write,
    change: impl AsyncFn() -> Result<ConfigChange, Error>,
) -> Result<Exit, Failure> {
    // The moves are the differences from the configuration before.
    let before = if wait.wait {
        Some(client.controller().query(None).await?.config)
    } else {
        None
    };
    let changed = change().await?;
    let settled = before.is_some();
    if let Some(before) = before {
        wait_until_settled(client, MoveTracker::new(before), wait.wait_timeout).await?;
    }
    match global.output {
        Format::Json => {
            let line = json!({
                "num": changed.num.0,
                "changed": changed.changed,
                "moved_shards": changed.moved_shards,
                "settled": settled,
            });
            json_line(out, &line)?;
        }
        Format::Table | Format::Raw => writeln!(out, "{}", changed_line(&changed, settled))?,
    }
    Ok(Exit::Ok)
}

pub(super) fn changed_line(changed: &ConfigChange, settled: bool) -> String {
    let num = changed.num;
    if !changed.changed {
        return format!("ok: nothing to change in configuration {num}");
    }
    let shards = grouped(changed.moved_shards.into());
    let what = if settled { "have moved" } else { "move" };
    format!("ok: configuration {num}; {shards} shards {what}")
}

/// Waits, with a progress bar, until the new owners serve all shards and the old owners have deleted them.
async fn wait_until_settled(
    client: &Client,
    mut tracker: MoveTracker,
    patience: Duration,
) -> Result<(), Failure> {
    let deadline = Instant::now() + patience;
    let mut bar = MoveProgressBar::new();
    loop {
        let view = client.controller().query(None).await?;
        let (moving, done) = tracker.look(&view, &views(client, &view).await);
        bar.show(&moving);
        if done {
            bar.finish();
            return Ok(());
        }
        if Instant::now() >= deadline {
            bar.finish();
            return Err(Failure::new(
                Exit::Unavailable,
                format!(
                    "not done within {} s: {}",
                    patience.as_secs(),
                    moving.line()
                ),
                "the change is made and goes on by itself; `shardkv shards` shows what waits and why",
            ));
        }
        sleep(POLL).await;
    }
}

pub(super) fn write_forgotten(
    forgotten: &Forgotten,
    format: Format,
    out: &mut dyn Write,
) -> io::Result<()> {
    let Forgotten {
        num,
        emptied,
        returned,
    } = forgotten;
    if format == Format::Json {
        let list =
            |list: &ShardList| json!({"count": list.count, "shards": list.listed.to_string()});
        let line = json!({"num": num.0, "emptied": list(emptied), "returned": list(returned)});
        return json_line(out, &line);
    }
    let list = |list: &ShardList| match list.count {
        0 => "no shards".to_owned(),
        count => {
            let more = u64::from(count) > list.listed.len();
            let more = if more { ",..." } else { "" };
            format!("{} shards ({}{more})", grouped(count.into()), list.listed)
        }
    };
    writeln!(
        out,
        "ok: configuration {num}; {} begin empty, {} go back to earlier owners",
        list(emptied),
        list(returned)
    )
}
