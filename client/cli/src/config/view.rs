//! A configuration: its groups, their addresses and their shards, as a table or JSON.

use std::io::{self, Write};

use serde_json::{Value, json};
use shardkv_client::{ConfigView, DrainedGroup, Gid, ShardConfig};

use crate::output::{Format, Table, grouped, json_line, shorten};

pub(super) fn write_map(map: &ConfigView, format: Format, out: &mut dyn Write) -> io::Result<()> {
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
        "configuration {} of cluster {}: {} shards, {} groups{older}; kept from {} on\n",
        config.num(),
        map.cluster_id,
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
        "cluster_id": map.cluster_id.to_string(),
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
