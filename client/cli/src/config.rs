//! `config`: shows and changes the configuration of the controllers, which assigns shards to groups.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use clap::{Args, Subcommand};
use futures::StreamExt as _;
use serde_json::{Value, json};
use shardkv_client::{
    Client, ConfigChange, ConfigDelta, ConfigEvent, ConfigNum, ConfigView, Controller,
    DrainedGroup, Error, Forgotten, Gid, Incarnation, ShardConfig, ShardId, ShardList, ShardMove,
};
use tokio::time::{Instant, sleep};

use crate::cluster_view::views;
use crate::exit::{Exit, Failure};
use crate::global::GlobalArgs;
use crate::move_progress::{MoveProgressBar, MoveTracker};
use crate::output::{Format, Table, grouped, json_line, shorten};
use crate::parse::{duration, parse_gid, parse_group, parse_shard};

/// Interval between polls of the progress.
const POLL: Duration = Duration::from_millis(100);

/// The commands to the controllers.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Show a configuration: the groups, their addresses and their shards
    #[command(
        after_help = "Examples:\n  shardkv config query\n  shardkv config query 7\n  shardkv config query --output json | jq '.groups[].gid'\n\n\
        SETTLED is the configuration up to which a group has completed all hand-offs: pulled, given away, deleted. A group that\n\
        left is listed until it is drained."
    )]
    Query {
        /// The number of the configuration; default: the latest
        num: Option<u64>,
    },
    /// Add groups, or change the addresses of groups; shards rebalance with the fewest moves
    #[command(
        after_help = "Examples:\n  shardkv config join 3=10.0.0.7:7400,10.0.0.8:7400,10.0.0.9:7400\n  \
        shardkv config join 3=h7:7400,h8:7400 4=h9:7400,h10:7400 --wait\n\n\
        Start the groups' nodes first, with --role shards, their --gid and the same --controllers. The controllers ask the addresses: a\n\
        quorum must be nodes of that group of this cluster, and none may be something else."
    )]
    Join {
        /// A group's id and the addresses of its nodes
        #[arg(required = true, value_name = "GID=HOST:PORT,...", value_parser = parse_group)]
        groups: Vec<(Gid, Vec<String>)>,
        /// Don't ask the addresses. For tests: shards wait for a group that doesn't exist
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Remove groups; their shards move to the other groups
    #[command(
        after_help = "Examples:\n  shardkv config leave 2 --wait\n\nKeep a group's nodes running until it is drained: --wait waits for that, and\n\
        `shardkv config query` shows it."
    )]
    Leave {
        /// The groups' ids
        #[arg(required = true, value_name = "GID", value_parser = parse_gid)]
        gids: Vec<Gid>,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Assign one shard to a group; a later rebalance may move it again
    #[command(after_help = "Examples:\n  shardkv config move 17 2 --wait")]
    Move {
        /// The shard
        #[arg(value_parser = parse_shard)]
        shard: ShardId,
        /// The group's id
        #[arg(value_parser = parse_gid)]
        gid: Gid,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Remove groups that are gone for good, with the data that only they had
    #[command(
        after_help = "Examples:\n  shardkv config forget 2                      # refused, and says what would be lost\n  \
        shardkv config forget 2 --accept-data-loss\n\n\
        Without --accept-data-loss the command forgets only a group that has nothing, for example one that joined with a wrong address.\n\n\
        For groups whose disks are lost. Use `config leave` for a group that runs: it hands its shards over and loses nothing.\n\
        Stop the group's nodes first: until a node hears of the change, it serves old data to clients that know it.\n\n\
        Shards that only these groups had begin empty at other groups. Shards that were on their way to them and had not arrived\n\
        go back to the groups that have them still. Restore what was lost from a backup with `shardkv import`."
    )]
    Forget {
        /// The groups' ids
        #[arg(required = true, value_name = "GID", value_parser = parse_gid)]
        gids: Vec<Gid>,
        /// Go ahead although the data of shards are lost
        #[arg(long)]
        accept_data_loss: bool,
    },
    /// Retire the number of a group that is drained, so that no group joins under it again
    #[command(
        after_help = "Examples:\n  shardkv config leave 2 --wait && shardkv config retire 2\n\n\
        Retire a group's number before you delete its volumes: nodes that come back with old volumes, or new ones under the same\n\
        number, can't join by mistake. The controllers remember the last 10,000 groups that were drained."
    )]
    Retire {
        /// The group's id
        #[arg(value_parser = parse_gid)]
        gid: Gid,
    },
    /// Print each change of the configuration when it happens, until Ctrl-C
    #[command(
        after_help = "Examples:\n  shardkv config watch\n  shardkv config watch --output json | jq .num"
    )]
    Watch,
}

impl ConfigCommand {
    /// Returns true if the command changes nothing.
    pub(crate) fn only_asks(&self) -> bool {
        matches!(self, Self::Query { .. } | Self::Watch)
    }
}

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

/// Runs `command` and writes the result to `out`.
pub(crate) async fn run(
    command: &ConfigCommand,
    client: &Client,
    global: &GlobalArgs,
    out: &mut dyn Write,
) -> Result<Exit, Failure> {
    let controller = client.controller();
    match command {
        ConfigCommand::Query { num } => {
            let map = controller.query(num.map(ConfigNum)).await?;
            write_map(&map, global.output, out)?;
            Ok(Exit::Ok)
        }
        ConfigCommand::Join {
            groups,
            force,
            wait,
        } => {
            let mut distinct = BTreeMap::new();
            for (gid, addresses) in groups {
                if distinct.insert(*gid, addresses.clone()).is_some() {
                    return Err(Failure::usage(
                        format!("{gid} is listed twice"),
                        "give each group once, with all its addresses",
                    ));
                }
            }
            let change = async || match force {
                false => controller.join(distinct.clone()).await,
                true => controller.join_unproven(distinct.clone()).await,
            };
            changed(client, wait, global, out, change).await
        }
        ConfigCommand::Leave { gids, wait } => {
            let change = async || controller.leave(gids).await;
            changed(client, wait, global, out, change).await
        }
        ConfigCommand::Move { shard, gid, wait } => {
            let change = async || controller.move_shard(*shard, *gid).await;
            changed(client, wait, global, out, change).await
        }
        ConfigCommand::Forget {
            gids,
            accept_data_loss,
        } => {
            let forgotten = controller.forget(gids, *accept_data_loss).await?;
            write_forgotten(&forgotten, global.output, out)?;
            Ok(Exit::Ok)
        }
        ConfigCommand::Retire { gid } => {
            let view = controller.query(None).await?;
            // One that isn't drained is refused with the reason.
            let incarnation = view.drained.get(gid).map(|it| it.incarnation);
            let incarnation = incarnation.unwrap_or(Incarnation(view.latest.0));
            controller.retire(*gid, incarnation).await?;
            match global.output {
                Format::Json => json_line(out, &json!({"gid": gid.0, "retired": true}))?,
                Format::Table | Format::Raw => writeln!(out, "ok: no group joins as {gid} again")?,
            }
            Ok(Exit::Ok)
        }
        ConfigCommand::Watch => watch(&controller, global.output, out).await,
    }
}

fn write_forgotten(forgotten: &Forgotten, format: Format, out: &mut dyn Write) -> io::Result<()> {
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

/// Makes a change, waits for it with `--wait`, and reports it.
async fn changed(
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

fn changed_line(changed: &ConfigChange, settled: bool) -> String {
    let num = changed.num;
    if !changed.changed {
        return format!("ok: nothing to change in configuration {num}");
    }
    let shards = grouped(changed.moved_shards.into());
    let what = if settled { "have moved" } else { "move" };
    format!("ok: configuration {num}; {shards} shards {what}")
}

/// Waits, with a progress bar, until the new owners serve all shards and the old owners have deleted them.
pub(crate) async fn wait_until_settled(
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

/// Writes the latest configuration, and then each change when it happens.
async fn watch(
    controller: &Controller,
    format: Format,
    out: &mut dyn Write,
) -> Result<Exit, Failure> {
    let view = controller.query(None).await?;
    write_map(&view, format, out)?;
    out.flush()?;
    let mut config = view.config;
    let mut events = controller.watch(config.num());
    while let Some(event) = events.next().await {
        let delta = match event? {
            ConfigEvent::Delta(delta) => {
                // Deltas of the controllers always apply. If one does not, the printed line is still the delta that they sent.
                let _ = config.apply(&delta);
                delta
            }
            // The controllers no longer keep the deltas between.
            ConfigEvent::Full(full) => {
                let mut delta =
                    ConfigDelta::new(&config, full.groups(), full.targets(), full.owners());
                delta.num = full.num();
                config = full;
                delta
            }
        };
        write_delta(&delta, format, out)?;
        out.flush()?;
    }
    Ok(Exit::Ok)
}

fn write_delta(delta: &ConfigDelta, format: Format, out: &mut dyn Write) -> io::Result<()> {
    match format {
        Format::Json => json_line(out, &delta_json(delta)),
        Format::Table | Format::Raw => writeln!(out, "{}", delta_line(delta)),
    }
}

fn delta_line(delta: &ConfigDelta) -> String {
    let groups = delta.groups.iter().map(|(gid, group)| match group {
        Some(group) if group.leaving => format!("{gid} leaves"),
        Some(group) => format!("{gid} at {}", group.addresses.join(",")),
        None if delta.resets.is_empty() => format!("{gid} is drained"),
        None => format!("{gid} is forgotten"),
    });
    let mut parts: Vec<String> = groups.collect();
    let count = |moves: &[ShardMove]| -> u32 { moves.iter().map(|it| it.run.count).sum() };
    let targets = count(&delta.targets);
    if targets > 0 {
        parts.push(format!(
            "{} shards get another target",
            grouped(targets.into())
        ));
    }
    let shards = count(&delta.moves);
    parts.push(format!("{} shards move", grouped(shards.into())));
    let mut flows: BTreeMap<(Gid, Gid), u32> = BTreeMap::new();
    for it in &delta.moves {
        *flows.entry((it.from, it.to)).or_default() += it.run.count;
    }
    let flows: Vec<String> = flows
        .iter()
        .map(|((from, to), shards)| {
            let from = owner(*from).unwrap_or_else(|| "nobody".to_owned());
            format!("{} from {from} to {to}", grouped((*shards).into()))
        })
        .collect();
    let flows = if flows.is_empty() {
        String::new()
    } else {
        format!(": {}", flows.join(", "))
    };
    let resets = match count(&delta.resets) {
        0 => String::new(),
        shards => format!(
            "; {} shards go on without what only that group had",
            grouped(shards.into())
        ),
    };
    format!(
        "configuration {}: {}{flows}{resets}",
        delta.num,
        parts.join("; ")
    )
}

fn delta_json(delta: &ConfigDelta) -> Value {
    let groups: Vec<Value> = delta
        .groups
        .iter()
        .map(|(gid, group)| {
            json!({
                "gid": gid.0,
                "addresses": group.as_ref().map(|it| &it.addresses),
                "leaving": group.as_ref().is_some_and(|it| it.leaving),
            })
        })
        .collect();
    let step = |it: &ShardMove| {
        json!({
            "first": it.run.first.0,
            "count": it.run.count,
            "from": (it.from != Gid::NONE).then_some(it.from.0),
            "to": it.to.0,
        })
    };
    let moves: Vec<Value> = delta.moves.iter().map(step).collect();
    let targets: Vec<Value> = delta.targets.iter().map(step).collect();
    let resets: Vec<Value> = delta.resets.iter().map(step).collect();
    json!({
        "num": delta.num.0, "groups": groups, "targets": targets, "moves": moves, "resets": resets,
    })
}

/// Formats an owner; `None` if there is none.
fn owner(gid: Gid) -> Option<String> {
    (gid != Gid::NONE).then(|| gid.to_string())
}

fn write_map(map: &ConfigView, format: Format, out: &mut dyn Write) -> io::Result<()> {
    if format == Format::Json {
        return json_line(out, &map_json(map));
    }
    let config = &map.config;
    let older = if map.latest > config.num() {
        format!("; the latest is {}", map.latest)
    } else {
        String::new()
    };
    writeln!(
        out,
        "configuration {}: {} shards, {} groups{older}; kept from {} on\n",
        config.num(),
        grouped(config.shards().into()),
        grouped(config.groups().len() as u64),
        map.oldest
    )?;
    let mut table = Table::new(&["GROUP", "SHARDS", "TARGET", "SETTLED", "WHICH", "ADDRESSES"]);
    let settled = |gid: &Gid| {
        let progress = map.progress.iter().find(|it| it.gid == *gid);
        progress
            .map(|it| it.settled.to_string())
            .unwrap_or_default()
    };
    for (gid, group) in config.groups() {
        let shards = config.owned_by(*gid);
        let targets = config.targets().iter().filter(|it| *it == gid).count();
        table.row(vec![
            gid.to_string(),
            grouped(shards.len()),
            if group.leaving {
                "leaves".to_owned()
            } else {
                grouped(targets as u64)
            },
            settled(gid),
            shorten(&shards.to_string()),
            group.addresses.join(","),
        ]);
    }
    let nobody = config.owned_by(Gid::NONE);
    if !nobody.is_empty() {
        table.row(vec![
            "nobody".to_owned(),
            grouped(nobody.len()),
            String::new(),
            String::new(),
            shorten(&nobody.to_string()),
        ]);
    }
    table.write(out)?;
    write_gone(map, out)
}

/// Writes the groups that were forgotten or retired. Groups that were drained are many, and need no attention.
fn write_gone(map: &ConfigView, out: &mut dyn Write) -> io::Result<()> {
    let gids = |is: fn(&DrainedGroup) -> bool| {
        let gone = map.drained.iter().filter(|(_, it)| is(it));
        gone.map(|(gid, _)| gid.to_string()).collect::<Vec<_>>()
    };
    for (what, gids) in [
        ("forgotten", gids(|it| it.forgotten)),
        ("retired", gids(|it| it.retired)),
    ] {
        if !gids.is_empty() {
            writeln!(out, "\n{what}: {}", gids.join(", "))?;
        }
    }
    Ok(())
}

fn map_json(map: &ConfigView) -> Value {
    let config = &map.config;
    let progress = |gid: &Gid| map.progress.iter().find(|it| it.gid == *gid);
    let groups: Vec<Value> = config
        .groups()
        .iter()
        .map(|(gid, group)| {
            json!({
                "gid": gid.0,
                "incarnation": group.incarnation.0,
                "leaving": group.leaving,
                "addresses": group.addresses,
                "shards": config.owned_by(*gid).len(),
                "targets": config.targets().iter().filter(|it| *it == gid).count(),
                "settled": progress(gid).map(|it| it.settled.0),
            })
        })
        .collect();
    let leaving = config.groups().iter().filter(|(_, group)| group.leaving);
    let leaving: Vec<u64> = leaving.map(|(gid, _)| gid.0).collect();
    let drained: Vec<Value> = map
        .drained
        .iter()
        .map(|(gid, it)| {
            json!({
                "gid": gid.0,
                "incarnation": it.incarnation.0,
                "gone_in": it.gone_in.0,
                "forgotten": it.forgotten,
                "retired": it.retired,
            })
        })
        .collect();
    json!({
        "num": config.num().0,
        "latest": map.latest.0,
        "oldest": map.oldest.0,
        "shards": config.shards(),
        "groups": groups,
        "leaving": leaving,
        "drained": drained,
        "moving": config.moving(),
        "owners": owners_json(config),
    })
}

/// A run of neighbouring shards with the same owner and target.
fn owners_json(config: &ShardConfig) -> Vec<Value> {
    let mut runs: Vec<(u32, Gid, Gid)> = Vec::new();
    for (count, row) in config.row_runs() {
        match runs.last_mut() {
            // Rows of one run may differ in when they changed, which isn't shown.
            Some(last) if (last.1, last.2) == (row.owner, row.target) => last.0 += count,
            _ => runs.push((count, row.owner, row.target)),
        }
    }
    let mut first = 0;
    let run = |(count, owner, target): (u32, Gid, Gid)| {
        let gid = |gid: Gid| (gid != Gid::NONE).then_some(gid.0);
        let run = json!({"first": first, "count": count, "gid": gid(owner), "target": gid(target)});
        first += count;
        run
    };
    runs.into_iter().map(run).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use shardkv_client::{Group, GroupProgress};

    fn map() -> ConfigView {
        let address = |gid: u64| vec![format!("127.0.0.1:74{gid}1"), format!("127.0.0.1:74{gid}2")];
        let groups = [1, 2].map(|gid| (Gid(gid), address(gid)));
        let mut runs = vec![(1_000, Gid(1)), (1_000, Gid(2)), (3, Gid::NONE)];
        runs.extend((0..60).map(|n| (1, Gid(1 + n % 2))));
        let progress = |gid, settled| GroupProgress {
            gid: Gid(gid),
            settled: ConfigNum(settled),
            due: ConfigNum(7),
        };
        // Group 3 leaves, and has given all its shards away.
        let config = ShardConfig::new(ConfigNum(7), groups.into(), runs).unwrap();
        let mut groups = config.groups().clone();
        let leaving = Group {
            leaving: true,
            ..vec!["127.0.0.1:7431".to_owned()].into()
        };
        groups.insert(Gid(3), leaving);
        let config = ShardConfig::from_rows(ConfigNum(7), groups, config.row_runs()).unwrap();
        ConfigView {
            cluster_id: shardkv_client::ClusterId(1),
            config,
            latest: ConfigNum(9),
            oldest: ConfigNum(3),
            progress: vec![progress(1, 7), progress(2, 6), progress(3, 6)],
            drained: [
                (Gid(4), gone(2, false, false)),
                (Gid(5), gone(3, true, false)),
                (Gid(6), gone(4, false, true)),
                (Gid(7), gone(5, true, true)),
            ]
            .into(),
        }
    }

    fn gone(incarnation: u64, forgotten: bool, retired: bool) -> DrainedGroup {
        DrainedGroup {
            incarnation: Incarnation(incarnation),
            gone_in: ConfigNum(6),
            forgotten,
            retired,
        }
    }

    #[test]
    fn configurations_match_the_golden() {
        let mut out = Vec::new();
        for format in [Format::Table, Format::Json] {
            write_map(&map(), format, &mut out).unwrap();
            out.push(b'\n');
        }
        let before = ShardConfig::new(
            ConfigNum(1),
            [(Gid(1), vec!["h:1".into()]), (Gid(2), vec!["h:2".into()])].into(),
            [(2, Gid(1)), (2, Gid(2)), (2, Gid::NONE)],
        );
        let groups = [(Gid(1), vec!["h:1".into()]), (Gid(3), vec!["h:3".into()])].into();
        let owners = [1, 3, 3, 1, 1, 3].map(Gid);
        let delta = ConfigDelta::between(&before.unwrap(), &groups, &owners);
        for format in [Format::Table, Format::Json] {
            write_delta(&delta, format, &mut out).unwrap();
        }
        for (moved_shards, changed) in [(0, false), (1_200, true)] {
            let changed = ConfigChange {
                num: ConfigNum(8),
                changed,
                moved_shards,
            };
            for settled in [false, true] {
                writeln!(out, "{}", changed_line(&changed, settled)).unwrap();
            }
        }
        crate::golden::check("config.txt", std::str::from_utf8(&out).unwrap());
    }
}
