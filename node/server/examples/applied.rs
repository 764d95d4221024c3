//! Prints the operations on keyspaces that a group without controllers has applied and accepted, in their order, as lines of JSON.
//!
//! Usage: `applied DIRECTORY...`: the data directories of all members, which must be stopped. An operation counts if a majority of
//! the members have its entry, and if the state machine accepts it when all are applied anew. The whole history must still be in
//! the logs. `make etcd-robustness` holds what clients were told against this list.

// A tool of tests may stop with a panic.
#![allow(clippy::print_stdout, clippy::expect_used)]

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use keyspace::memory::MemoryStore;
use keyspace::{
    Action, Applying, Compare, LeaseId, Op, Operation, Put, Range, Relation, Span, Target, Txn,
    Write,
};
use raft::{Entry, Index, LogReader as _, LogStore as _, Payload};
use serde_json::{Value, json};
use storage::StorageOptions;
use types::{ConfigNum, Reader};

/// The first entry of a new group, which begins with a snapshot that ends before it.
const FIRST: Index = Index(2);

fn main() -> anyhow::Result<()> {
    let directories: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    ensure!(!directories.is_empty(), "usage: applied DIRECTORY...");
    let logs = directories.iter().map(|directory| {
        read(directory).with_context(|| format!("can't read the log in {}", directory.display()))
    });
    let logs: Vec<Vec<Entry>> = logs.collect::<Result<_, _>>()?;
    let mut store = MemoryStore::default();
    let mut index = FIRST;
    while let Some(entry) = agreed(&logs, index) {
        if let Payload::Command(content) = &entry.payload {
            for operation in operations(content)? {
                apply(operation, entry, &mut store)?;
            }
        }
        index = index.next();
    }
    Ok(())
}

/// Reads all entries of a log, which must begin with the first.
fn read(directory: &Path) -> anyhow::Result<Vec<Entry>> {
    let mut opened = storage::open(directory, &StorageOptions::default())?;
    let content = opened.log.load()?;
    let base = content.base.last.index;
    ensure!(
        base.next() == FIRST,
        "the log begins after {base}: the history is not complete"
    );
    let entries = opened.log.entries(FIRST..=content.last_index, usize::MAX)?;
    Ok(entries)
}

/// Returns the entry at an index that a majority of the logs have.
fn agreed(logs: &[Vec<Entry>], index: Index) -> Option<&Entry> {
    let at = usize::try_from(index.0 - FIRST.0).ok()?;
    let found: Vec<&Entry> = logs.iter().filter_map(|log| log.get(at)).collect();
    let is_agreed = |entry: &&&Entry| {
        let votes = found.iter().filter(|other| other.id == entry.id);
        votes.count() * 2 > logs.len()
    };
    found.iter().find(is_agreed).copied()
}

/// Returns the operations on keyspaces in an entry, as `replica` and `shardkv` encode them.
fn operations(content: &Bytes) -> anyhow::Result<Vec<Bytes>> {
    let mut input = Reader::new(content.clone());
    match input.byte("record version")? {
        1 => {}
        // The group's feature level has risen.
        2 => return Ok(Vec::new()),
        version => bail!("an entry of version {version}"),
    }
    input.number("batch time")?;
    input.number("largest value")?;
    let count = input.number("operations")?;
    let mut found = Vec::new();
    for _ in 0..count {
        let operation = input.bytes("operation")?;
        if operation.starts_with(&[1, 96]) {
            found.push(operation.slice(2..));
        }
    }
    Ok(found)
}

fn apply(encoded: Bytes, entry: &Entry, store: &mut MemoryStore) -> anyhow::Result<()> {
    let applying = Applying {
        term: entry.id.term,
        config: ConfigNum::default(),
        answer: false,
    };
    let accepted = keyspace::apply(encoded.clone(), applying, store)?
        .answer
        .is_ok();
    let Ok(operation) = Operation::decode(encoded) else {
        return Ok(());
    };
    if let Action::In(_, write) = operation.action
        && accepted
        && let Some(line) = of_write(&write)
    {
        println!("{line}");
    }
    Ok(())
}

/// Returns a write as JSON; `None` for those that clients don't see.
fn of_write(write: &Write) -> Option<Value> {
    Some(match write.caller().1 {
        Write::Put(put) => json!({ "put": of_put(put) }),
        Write::DeleteRange(request) => json!({ "delete": of_key(&request.span) }),
        Write::Txn(txn) => json!({ "txn": of_txn(txn) }),
        Write::Compact { revision } => json!({ "compact": revision }),
        Write::Grant { id, .. } => json!({ "grant": id.0 }),
        Write::Revoke { id } | Write::Expire { id, .. } => json!({ "revoke": id.0 }),
        Write::Clear | Write::SetOptions(_) | Write::Delete | Write::Auth(_) | Write::As { .. } => {
            return None;
        }
    })
}

fn of_put(put: &Put) -> Value {
    let LeaseId(lease) = put.lease;
    json!({ "key": text(&put.key), "value": text(&put.value), "lease": lease })
}

fn of_txn(txn: &Txn) -> Value {
    let ops = |ops: &[Op]| ops.iter().map(of_op).collect::<Vec<_>>();
    let compare: Vec<_> = txn.compare.iter().map(of_compare).collect();
    json!({ "compare": compare, "success": ops(&txn.success), "failure": ops(&txn.failure) })
}

fn of_op(op: &Op) -> Value {
    match op {
        Op::Put(put) => json!({ "put": of_put(put) }),
        Op::DeleteRange(request) => json!({ "delete": of_key(&request.span) }),
        Op::Range(range) => json!({ "range": of_range(range) }),
        Op::Txn(_) => panic!("the traffic has no nested transactions"),
    }
}

fn of_range(range: &Range) -> Value {
    let Range {
        span,
        limit,
        keys_only,
        ..
    } = range;
    let end = match span {
        Span::Key(_) => Bytes::new(),
        Span::Range(_, end) => end.clone(),
        Span::From(_) => Bytes::from_static(&[0]),
    };
    json!({ "start": text(span.start()), "end": text(&end), "limit": limit, "keys_only": keys_only })
}

fn of_compare(compare: &Compare) -> Value {
    assert_eq!(
        compare.relation,
        Relation::Equal,
        "the traffic compares for equality"
    );
    let key = of_key(&compare.span);
    match compare.target {
        Target::Version(version) => json!({ "key": key, "version": version }),
        Target::Mod(revision) => json!({ "key": key, "mod": revision }),
        ref target => panic!("the traffic doesn't compare {target:?}"),
    }
}

/// Returns the only key of a span.
fn of_key(span: &Span) -> String {
    match span {
        Span::Key(key) => text(key),
        Span::Range(..) | Span::From(_) => panic!("the traffic deletes and compares single keys"),
    }
}

fn text(bytes: &Bytes) -> String {
    String::from_utf8(bytes.to_vec()).expect("keys and values of the traffic are text")
}
