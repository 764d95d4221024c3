//! `shards`: shows the owner of each shard, the progress of its hand-off, and the reason why it waits.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _, Write};
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use shardkv_client::{Client, Gid, ShardConfig, ShardId, ShardSet, ShardState, ShardStatus};
use tokio::time::sleep;

use crate::cluster_view::{Groups, check_known, groups};
use crate::exit::{Exit, Failure};
use crate::global::GlobalArgs;
use crate::output::{Format, Table, grouped, json_line, shorten, size};
use crate::parse::{duration, parse_gid};

/// The largest table with one row for each shard; a larger one merges equal rows.
const MAX_SINGLE_ROWS: usize = 32;

/// The arguments of `shards`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  shardkv shards\n  shardkv shards --watch\n  shardkv shards --group 2 --exact\n  \
    shardkv shards --output json | jq '.shards[] | select(.state != \"serving\")'\n\n\
    STATE is what the group's leader says: serving; copying: on its way here, while its owner serves it;\n\
    pulling: what is left of it is on its way here; fenced: on its way from here, and kept until\n\
    the new owner has it; owed: gone, and the old owner is still to be told. A shard that moves has a row for each group\n\
    that has to do with it. In tables of more than 32 rows, rows that say the same stand together: their keys and bytes are\n\
    added up, and the age is the oldest; --each prevents that. Keys and bytes are estimates that cost nothing, unless --exact counts them."
)]
pub(crate) struct ShardsArgs {
    /// Refresh the table until Ctrl-C
    #[arg(long, short)]
    watch: bool,
    /// Refresh interval of --watch
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "1s")]
    interval: Duration,
    /// Count keys and bytes exactly, by reading all of them
    #[arg(long)]
    exact: bool,
    /// Show only the shards that this group owns, receives or gives away
    #[arg(long, short, value_name = "GID", value_parser = parse_gid)]
    group: Option<Gid>,
    /// Show a row for each shard, however many there are
    #[arg(long)]
    each: bool,
}

/// The configuration, and the reports of the groups.
pub(crate) struct View {
    config: ShardConfig,
    groups: Groups,
}

/// Shows the shards, once or until Ctrl-C.
pub(crate) async fn run(
    args: &ShardsArgs,
    client: &Client,
    global: &GlobalArgs,
    out: &mut dyn Write,
) -> Result<Exit, Failure> {
    let live = args.watch && global.output != Format::Json && io::stdout().is_terminal();
    loop {
        let view = view(client, args).await?;
        if live {
            // Move the cursor home, and clear the rest of the screen after the table is written. This avoids flicker.
            write!(out, "\x1b[H\x1b[J")?;
        }
        write_view(&view, args, global.output, out)?;
        out.flush()?;
        if !args.watch {
            return outcome(&view);
        }
        sleep(args.interval).await;
        if !live && global.output != Format::Json {
            writeln!(out)?;
        }
    }
}

async fn view(client: &Client, args: &ShardsArgs) -> Result<View, Failure> {
    let view = client.controller().query(None).await?;
    if let Some(gid) = args.group {
        check_known(&view, gid)?;
    }
    let mut groups = groups(client, &view, args.exact).await;
    groups.retain(|gid, _| args.group.is_none_or(|only| only == *gid));
    Ok(View {
        config: view.config,
        groups,
    })
}

/// Fails if a group did not answer.
fn outcome(view: &View) -> Result<Exit, Failure> {
    let silent: Vec<String> = view
        .groups
        .iter()
        .filter(|(_, group)| group.is_err())
        .map(|(gid, _)| gid.to_string())
        .collect();
    if silent.is_empty() {
        return Ok(Exit::Ok);
    }
    Err(Failure::new(
        Exit::Unavailable,
        format!("{} did not answer", silent.join(", ")),
        "look at `shardkv status`",
    ))
}

/// A row: the report of a group on one shard, or on several shards with equal reports.
#[derive(Clone, Debug)]
struct Row {
    gid: Gid,
    /// In order; usually one.
    shards: Vec<ShardId>,
    /// `None` if the shard's owner did not answer, or the shard has no owner.
    said: Option<ShardStatus>,
}

impl Row {
    fn state(&self) -> &'static str {
        match &self.said {
            Some(said) => said.state.as_str(),
            None if self.gid == Gid::NONE => "unowned",
            None => ShardState::Unknown.as_str(),
        }
    }

    /// Adds another row with an equal report.
    fn add(&mut self, row: &Self) {
        self.shards.extend(&row.shards);
        if let (Some(sum), Some(said)) = (&mut self.said, &row.said) {
            sum.keys += said.keys;
            sum.bytes += said.bytes;
            sum.pulled_bytes += said.pulled_bytes;
            sum.whole_bytes += said.whole_bytes;
            sum.bytes_per_second += said.bytes_per_second;
            sum.handoff_age = sum.handoff_age.max(said.handoff_age);
        }
    }

    fn group(&self) -> String {
        match self.gid {
            Gid::NONE => "nobody".to_owned(),
            gid => gid.to_string(),
        }
    }
}

impl View {
    /// Makes a row for each shard and each group that reports it. A shard without an owner, or whose owner did not answer,
    /// has a row too.
    fn rows(&self, only: Option<Gid>) -> Vec<Row> {
        let wanted = |gid: &Gid| only.is_none_or(|only| only == *gid);
        let mut rows = Vec::new();
        for (gid, group) in self.groups.iter().filter(|(gid, _)| wanted(gid)) {
            let said = group.as_ref().map(|group| group.shards.as_slice());
            rows.extend(said.unwrap_or_default().iter().map(|said| Row {
                gid: *gid,
                shards: vec![said.shard],
                said: Some(said.clone()),
            }));
        }
        let owners = (0..).map(ShardId).zip(self.config.owners());
        for (shard, owner) in owners.filter(|(_, owner)| wanted(owner)) {
            if !matches!(self.groups.get(owner), Some(Ok(_))) {
                rows.push(Row {
                    gid: *owner,
                    shards: vec![shard],
                    said: None,
                });
            }
        }
        rows.sort_by_key(|row| (row.shards.first().copied(), row.gid));
        rows
    }
}

/// Merges rows with equal reports on different shards: adds up the figures and keeps the oldest age.
fn together(rows: Vec<Row>) -> Vec<Row> {
    let mut places = BTreeMap::new();
    let mut merged: Vec<Row> = Vec::new();
    for row in rows {
        let same = row.said.as_ref().map(|it| {
            let waits = it.waits_for.clone();
            (it.state, it.config_num, it.other_gid, waits)
        });
        let place = *places.entry((row.gid, same)).or_insert(merged.len());
        match merged.get_mut(place) {
            Some(first) => first.add(&row),
            None => merged.push(row),
        }
    }
    merged
}

fn write_view(
    view: &View,
    args: &ShardsArgs,
    format: Format,
    out: &mut dyn Write,
) -> io::Result<()> {
    let rows = view.rows(args.group);
    if format == Format::Json {
        return json_line(out, &view_json(view, &rows));
    }
    let said = rows.iter().filter_map(|row| row.said.as_ref());
    let under_way = said
        .filter(|said| matches!(said.state, ShardState::Copying | ShardState::Pulling))
        .count();
    writeln!(
        out,
        "configuration {}: {} shards, {} groups; {} on their way{}\n",
        view.config.num(),
        grouped(view.config.shards().into()),
        grouped(view.config.groups().len() as u64),
        grouped(under_way as u64),
        if args.exact {
            ""
        } else {
            "; keys and bytes are estimates"
        }
    )?;
    let rows = if rows.len() > MAX_SINGLE_ROWS && !args.each {
        together(rows)
    } else {
        rows
    };
    table(&rows).write(out)?;
    for (gid, group) in &view.groups {
        match group {
            Err(error) => writeln!(out, "{gid} did not answer: {error}")?,
            Ok(group) if group.config_num < view.config.num() => {
                writeln!(out, "{gid} is still at configuration {}", group.config_num)?;
            }
            Ok(_) => {}
        }
    }
    Ok(())
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new(&[
        "SHARD",
        "GROUP",
        "STATE",
        "CONFIG",
        "KEYS",
        "BYTES",
        "HAND-OFF",
        "AGE",
        "WAITS FOR",
    ]);
    for row in rows {
        let shards: ShardSet = row.shards.iter().copied().collect();
        let mut cells = vec![
            shorten(&shards.to_string()),
            row.group(),
            row.state().to_owned(),
        ];
        if let Some(said) = &row.said {
            cells.extend([
                said.config_num.to_string(),
                keys(said),
                size(said.bytes),
                hand_off(said),
                said.handoff_age.map(age).unwrap_or_default(),
                said.waits_for.clone().unwrap_or_default(),
            ]);
        }
        table.row(cells);
    }
    table
}

/// Formats the number of keys of a shard. Empty if an estimate has bytes but no keys.
fn keys(said: &ShardStatus) -> String {
    if said.keys == 0 && said.bytes > 0 {
        return String::new();
    }
    grouped(said.keys)
}

/// Describes the hand-off of a shard: the other group, the bytes that have arrived, the pace and the time left.
fn hand_off(said: &ShardStatus) -> String {
    let Some(other) = said.other_gid else {
        return String::new();
    };
    match said.state {
        ShardState::Copying | ShardState::Pulling if said.pulled_bytes > 0 => {
            let of = if said.whole_bytes > said.pulled_bytes {
                format!(" of {}", size(said.whole_bytes))
            } else {
                String::new()
            };
            let pace = said.time_left().map_or_else(String::new, |left| {
                let pace = size(said.bytes_per_second);
                format!(", {pace}/s, {} left", age(left))
            });
            let pulled = size(said.pulled_bytes);
            format!("from {other}, {pulled}{of} arrived{pace}")
        }
        ShardState::Copying | ShardState::Pulling => format!("from {other}"),
        ShardState::Serving => format!("is to go to {other}"),
        ShardState::Fenced => format!("to {other}"),
        _ => format!("{other} is to delete"),
    }
}

/// Formats a duration for a terminal.
fn age(age: Duration) -> String {
    let ms = age.as_millis();
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        _ => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1_000),
    }
}

/// Makes the JSON output: a row for each shard and group.
fn view_json(view: &View, rows: &[Row]) -> Value {
    let groups: Vec<Value> = view
        .groups
        .iter()
        .map(|(gid, group)| match group {
            Ok(group) => json!({
                "gid": gid.0,
                "config_num": group.config_num.0,
                "settled": group.settled.0,
            }),
            Err(error) => json!({"gid": gid.0, "error": error.to_string()}),
        })
        .collect();
    let shards: Vec<Value> = rows.iter().filter_map(row_json).collect();
    json!({
        "config_num": view.config.num().0,
        "shard_count": view.config.shards(),
        "groups": groups,
        "shards": shards,
    })
}

/// Makes a row of one shard. Equal rows are merged later.
fn row_json(row: &Row) -> Option<Value> {
    let shard = row.shards.first()?.0;
    let gid = (row.gid != Gid::NONE).then_some(row.gid.0);
    let Some(said) = &row.said else {
        return Some(json!({"shard": shard, "gid": gid, "state": row.state()}));
    };
    Some(json!({
        "shard": shard,
        "gid": gid,
        "state": row.state(),
        "config_num": said.config_num.0,
        "other_gid": said.other_gid.map(|gid| gid.0),
        "keys": said.keys,
        "bytes": said.bytes,
        "pulled_bytes": said.pulled_bytes,
        "whole_bytes": said.whole_bytes,
        "bytes_per_second": said.bytes_per_second,
        "time_left_ms": said.time_left().map(|left| left.as_millis()),
        "handoff_age_ms": said.handoff_age.map(|age| age.as_millis()),
        "waits_for": said.waits_for,
    }))
}

#[cfg(test)]
mod tests {
    use shardkv_client::{ConfigNum, GroupShards};

    use super::*;

    fn row(shard: u32, state: ShardState) -> ShardStatus {
        ShardStatus {
            shard: ShardId(shard),
            state,
            config_num: ConfigNum(5),
            other_gid: None,
            keys: 1_000,
            bytes: 40_000,
            handoff_age: None,
            waits_for: None,
            pulled_bytes: 0,
            whole_bytes: 0,
            bytes_per_second: 0,
        }
    }

    fn view(shards: u32) -> View {
        let groups = [1, 2, 3].map(|gid| (Gid(gid), vec![format!("h{gid}:1")]));
        let rest = shards - 6;
        let runs = [
            (2, Gid(1)),
            (2, Gid(2)),
            (1, Gid(3)),
            (1, Gid::NONE),
            (rest, Gid(1)),
        ];
        let config = ShardConfig::new(ConfigNum(6), groups.into(), runs).unwrap();
        let leaving = ShardStatus {
            config_num: ConfigNum(6),
            other_gid: Some(Gid(2)),
            handoff_age: Some(Duration::from_millis(1_234)),
            ..row(3, ShardState::Fenced)
        };
        let coming = ShardStatus {
            config_num: ConfigNum(6),
            other_gid: Some(Gid(1)),
            handoff_age: Some(Duration::from_millis(1_200)),
            pulled_bytes: 20_480,
            whole_bytes: 102_400,
            bytes_per_second: 40_960,
            keys: 500,
            bytes: 20_480,
            waits_for: Some("the next part from g1".into()),
            ..row(3, ShardState::Pulling)
        };
        let owed = ShardStatus {
            other_gid: Some(Gid(1)),
            handoff_age: Some(Duration::from_secs(61)),
            ..row(2, ShardState::Owed)
        };
        let first = [0, 1].into_iter().chain(6..shards);
        let mut first: Vec<ShardStatus> = first.map(|n| row(n, ShardState::Serving)).collect();
        first.push(leaving);
        let says = |gid, config_num, shards| {
            Ok(GroupShards {
                gid: Gid(gid),
                config_num: ConfigNum(config_num),
                settled: ConfigNum(5),
                shards,
            })
        };
        View {
            config,
            groups: BTreeMap::from([
                (Gid(1), says(1, 6, first)),
                (
                    Gid(2),
                    says(2, 5, vec![coming, owed, row(2, ShardState::Serving)]),
                ),
                (
                    Gid(3),
                    Err(shardkv_client::Error::NotLeader { leader: None }),
                ),
            ]),
        }
    }

    fn args(words: &[&str]) -> ShardsArgs {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: ShardsArgs,
        }
        <Line as clap::Parser>::parse_from([&["shards"], words].concat()).args
    }

    #[test]
    fn shards_match_the_golden() {
        let mut out = Vec::new();
        for (shards, words, format) in [
            (8, &[][..], Format::Table),
            (100, &[][..], Format::Table),
            (100, &["--group", "g3", "--exact"][..], Format::Table),
            (7, &[][..], Format::Json),
        ] {
            write_view(&view(shards), &args(words), format, &mut out).unwrap();
            out.push(b'\n');
        }
        crate::golden::check("shards.txt", std::str::from_utf8(&out).unwrap());
    }

    #[test]
    fn each_shard_has_its_row_if_wanted() {
        let mut out = Vec::new();
        write_view(&view(100), &args(&["--each"]), Format::Table, &mut out).unwrap();
        assert!(String::from_utf8(out).unwrap().lines().count() > 100);
        let failure = outcome(&view(8)).unwrap_err();
        assert_eq!(failure.exit(), Exit::Unavailable);
        assert!(failure.to_string().contains("g3 did not answer"));
    }
}
