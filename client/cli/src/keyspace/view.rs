//! Keyspaces as tables and JSON.

use std::io::{self, Write};

use serde_json::{Value, json};
use shardkv_client::{AutoCompaction, Keyspace};

use crate::output::{Format, Table, json_line, size};

/// The quota of a keyspace that was created without one.
const DEFAULT_QUOTA_BYTES: u64 = 2 << 30;

/// Writes keyspaces: a table, or an object a line.
pub(super) fn write_list(all: &[Keyspace], format: Format, out: &mut dyn Write) -> io::Result<()> {
    match format {
        Format::Json => all.iter().try_for_each(|it| json_line(out, &to_json(it))),
        // Names alone, for scripts.
        Format::Raw => all.iter().try_for_each(|it| writeln!(out, "{}", it.name)),
        Format::Table => {
            let mut table = Table::new(&[
                "NAME",
                "REVISION",
                "BYTES",
                "QUOTA",
                "COMPACTION",
                "SHARD",
                "GROUP",
                "",
            ]);
            for it in all {
                table.row(vec![
                    it.name.clone(),
                    it.revision.to_string(),
                    size(it.bytes),
                    size(quota(it)),
                    compaction(it),
                    it.shard.to_string(),
                    it.gid.to_string(),
                    alarm(it).to_owned(),
                ]);
            }
            table.write(out)
        }
    }
}

/// Writes one keyspace with all that is known of it.
pub(super) fn write_one(it: &Keyspace, format: Format, out: &mut dyn Write) -> io::Result<()> {
    if format == Format::Json {
        return json_line(out, &to_json(it));
    }
    let compacted = it.compacted.map(|at| format!(", compacted up to {at}"));
    let rows = [
        ("name", it.name.clone()),
        ("cluster id", format!("{:016x}", it.cluster_id)),
        (
            "revision",
            format!("{}{}", it.revision, compacted.unwrap_or_default()),
        ),
        (
            "bytes",
            format!("{} of {}", size(it.bytes), size(quota(it))),
        ),
        ("compaction", compaction(it)),
        ("place", format!("{} of {}", it.shard, it.gid)),
        ("users", users(it).to_owned()),
    ];
    for (name, value) in rows {
        writeln!(out, "{name:<12}{value}")?;
    }
    if it.no_space {
        writeln!(out, "{:<12}{}", "alarm", alarm(it))?;
    }
    Ok(())
}

fn quota(it: &Keyspace) -> u64 {
    it.options.quota_bytes.unwrap_or(DEFAULT_QUOTA_BYTES)
}

fn users(it: &Keyspace) -> &'static str {
    if it.auth_enabled {
        "must log in"
    } else {
        "anybody"
    }
}

fn alarm(it: &Keyspace) -> &'static str {
    if it.no_space {
        "no space: puts are refused"
    } else {
        ""
    }
}

fn compaction(it: &Keyspace) -> String {
    match it.options.auto_compaction {
        AutoCompaction::None => "by clients".to_owned(),
        AutoCompaction::Retention(time) => format!("keeps {} s", time.as_secs()),
        AutoCompaction::Revisions(kept) => format!("keeps {kept} revisions"),
    }
}

fn to_json(it: &Keyspace) -> Value {
    let (retention, revisions) = match it.options.auto_compaction {
        AutoCompaction::None => (None, None),
        AutoCompaction::Retention(time) => (Some(time.as_secs()), None),
        AutoCompaction::Revisions(kept) => (None, Some(kept)),
    };
    json!({
        "name": it.name,
        "cluster_id": format!("{:016x}", it.cluster_id),
        "revision": it.revision,
        "compacted": it.compacted,
        "bytes": it.bytes,
        "quota_bytes": quota(it),
        "compaction_retention_s": retention,
        "compaction_revisions": revisions,
        "no_space": it.no_space,
        "auth_enabled": it.auth_enabled,
        "shard": it.shard.0,
        "gid": it.gid.0,
    })
}
