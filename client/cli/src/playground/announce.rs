//! The announcement of a playground that is ready.

use std::io::{self, Write as _};
use std::path::Path;

use serde_json::json;

use super::layout::{Layout, NodeLayout};
use crate::exit::Failure;
use crate::output::{Format, Table, json_line};

/// Announces that the cluster is ready, with the addresses and commands that a user or a script needs next.
pub(super) fn announce(
    dir: &Path,
    layout: &Layout,
    leaders: &[NodeLayout],
    format: Format,
    prompt: bool,
) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    if format == Format::Json {
        // The controllers come first in the layout, but users connect to the other groups first.
        let leader = leaders.iter().find(|node| node.gid != 0);
        let names: Vec<&String> = leaders.iter().map(|node| &node.name).collect();
        let mut ready = json!({
            "leader": leader.map(|node| &node.name),
            "leaders": names,
            "dir": dir,
        });
        if let (Some(ready), Ok(serde_json::Value::Object(layout))) =
            (ready.as_object_mut(), serde_json::to_value(layout))
        {
            ready.extend(layout);
        }
        json_line(&mut out, &ready)?;
        return Ok(out.flush()?);
    }
    let mut table = Table::new(&["NODE", "ADDRESS", "METRICS", "PID", "LOG FILE", ""]);
    for node in &layout.nodes {
        let leads = leaders.iter().any(|leader| leader.name == node.name);
        table.row(vec![
            node.name.clone(),
            node.address.clone(),
            format!("http://{}/metrics", node.metrics),
            node.pid.map(|pid| pid.to_string()).unwrap_or_default(),
            node.log.display().to_string(),
            if leads { "leads" } else { "" }.to_owned(),
        ]);
    }
    table.write(&mut out)?;
    writeln!(
        out,
        "\nIn another terminal:\n  export SHARDKV_ENDPOINTS={}\n  shardkv put greeting hello && shardkv get greeting\n  \
         shardkv playground kill leader --dir {}",
        layout.endpoints,
        dir.display()
    )?;
    // An address names no keyspace, so its clients get the fallback keyspace.
    let node = layout.nodes.iter().find(|node| node.gid != 0);
    if let Some(node) = node {
        writeln!(
            out,
            "  etcdctl --endpoints={} put greeting hello",
            node.address
        )?;
    }
    if layout.is_sharded() {
        let more = layout.wanted_groups() + 1;
        writeln!(out, "  shardkv shards --watch")?;
        writeln!(
            out,
            "  shardkv playground scale {more} --dir {}",
            dir.display()
        )?;
    }
    let here = if prompt {
        "\nType `help` to see what can be done here. "
    } else {
        "\n"
    };
    writeln!(out, "{here}Ctrl-C stops the cluster.")?;
    Ok(out.flush()?)
}
