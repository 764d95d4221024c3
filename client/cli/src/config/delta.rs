//! Changes of the configuration: one line each, as text or JSON.

use std::collections::BTreeMap;
use std::io::{self, Write};

use futures::StreamExt as _;
use serde_json::{Value, json};
use shardkv_client::{ConfigDelta, ConfigEvent, Controller, Gid, ShardMove};

use super::view::write_map;
use crate::exit::{Exit, Failure};
use crate::output::{Format, grouped, json_line};

/// Writes the latest configuration, and then each change when it happens.
pub(super) async fn watch(
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

pub(super) fn write_delta(
    delta: &ConfigDelta,
    format: Format,
    out: &mut dyn Write,
) -> io::Result<()> {
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
