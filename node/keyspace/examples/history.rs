//! Prints a random history of calls to a keyspace, with the answer to each, for a comparison with a real etcd (`make test-etcd`).
//!
//! Usage: `history SEED WRITES`. A line is a path of etcd's JSON gateway, the request and the answer, separated by tabs. The last
//! line is a watch from the compacted revision on, with all its events.
//!
//! Left out are the calls that stop an etcd; see docs/internals/keyspaces.md.

// Helpers of tests may panic as tests do.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use common::Keyspace;
use common::source::Source;
use keyspace::{
    Answer, Compare, DeleteRange, DeleteRangeAnswer, Event, KeyValue, KeyspaceOptions, Op,
    OpAnswer, Put, PutAnswer, Range, RangeAnswer, Refusal, Relation, SortOrder, SortTarget, Span,
    Target, Txn, TxnAnswer, Write, events, previous,
};
use serde_json::{Map, Value, json};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut number = || arguments.next().and_then(|text| text.parse::<u64>().ok());
    let (Some(seed), Some(writes)) = (number(), number()) else {
        eprintln!("usage: history SEED WRITES");
        std::process::exit(2);
    };
    let mut source = Source::new(seed);
    let mut keyspace = Keyspace::new(KeyspaceOptions::default());
    let mut reborn = BTreeSet::new();
    for _ in 0..writes {
        let mut write = source.write(keyspace.record().revision);
        if let Write::Grant { ttl, .. } = &mut write {
            // No lease may expire while the history is compared.
            *ttl += 100_000;
        }
        if deadly(&keyspace, &write, &reborn) {
            continue;
        }
        let (path, mut body) = request(&write);
        if let Write::Compact { .. } = write {
            body["physical"] = source.random.one_in(2).into();
        }
        let outcome = keyspace.write(write);
        reborn.extend(put_after_deletion(outcome.events()));
        print(path, &body, outcome.answer.map(|answer| of_answer(&answer)));
        if source.random.one_in(3) {
            keyspace.ok(Write::Clear);
        }
        let range = source.range(keyspace.record().revision);
        let answer = keyspace.range(&range).map(|ranged| of_range(&ranged));
        print("kv/range", &range_request(&range), answer);
    }
    print_watch(&keyspace);
}

fn print(path: &str, body: &Value, answer: Result<Value, Refusal>) {
    let answer = answer.unwrap_or_else(|refusal| json!({ "error": refusal.to_string() }));
    println!("{path}\t{body}\t{answer}");
}

fn print_watch(keyspace: &Keyspace) {
    let from = keyspace.record().compacted + 1;
    let most = (usize::MAX, usize::MAX, usize::MAX);
    let page = events(&keyspace.store, keyspace.place, (from, 0), |_| true, most);
    let found = page.unwrap().unwrap().events;
    let of_event = |event: &Event| {
        let before = previous(&keyspace.store, keyspace.place, event).unwrap();
        let kind = if event.deleted { "DELETE" } else { "PUT" };
        json!({ "type": kind, "kv": of_pair(&event.kv), "prev_kv": before.as_ref().map(of_pair) })
    };
    let mut create = span_request(&Span::From(Bytes::from_static(b"\0")));
    create["start_revision"] = from.into();
    create["prev_kv"] = true.into();
    let all: Vec<Value> = found.iter().map(of_event).collect();
    print(
        "watch",
        &json!({ "create_request": create }),
        Ok(all.into()),
    );
}

/// Returns true if the call would stop an etcd: a put that keeps what its transaction has deleted, and a compaction at the
/// revision of a transaction that put a key after deleting it.
fn deadly(keyspace: &Keyspace, write: &Write, reborn: &BTreeSet<i64>) -> bool {
    match write {
        Write::Txn(txn) => {
            let refusal = keyspace.clone().refusal(write.clone());
            refusal == Some(Refusal::KeyNotFound) && deletes_without_end(txn)
        }
        Write::Compact { revision } => reborn.contains(revision),
        _ => false,
    }
}

fn deletes_without_end(txn: &Txn) -> bool {
    txn.success.iter().chain(&txn.failure).any(|op| match op {
        Op::DeleteRange(request) => matches!(request.span, Span::From(_)),
        Op::Txn(nested) => deletes_without_end(nested),
        _ => false,
    })
}

fn put_after_deletion(events: &[Event]) -> Option<i64> {
    let reborn = |(at, event): (usize, &Event)| {
        let mut before = events[..at].iter();
        let same = before.any(|other| other.kv.key == event.kv.key);
        (same && !event.deleted).then_some(event.kv.mod_revision)
    };
    events.iter().enumerate().find_map(reborn)
}

fn base64(bytes: &Bytes) -> Value {
    STANDARD.encode(bytes).into()
}

fn request(write: &Write) -> (&'static str, Value) {
    match write {
        Write::Put(put) => ("kv/put", put_request(put)),
        Write::DeleteRange(request) => ("kv/deleterange", delete_request(request)),
        Write::Txn(txn) => ("kv/txn", txn_request(txn)),
        Write::Compact { revision } => ("kv/compaction", json!({ "revision": revision })),
        Write::Grant { id, ttl } => ("lease/grant", json!({ "ID": id.0, "TTL": ttl })),
        Write::Revoke { id } => ("lease/revoke", json!({ "ID": id.0 })),
        other => panic!("not drawn: {other:?}"),
    }
}

fn span_request(span: &Span) -> Value {
    let zero = Bytes::from_static(b"\0");
    match span {
        Span::Key(key) => json!({ "key": base64(key) }),
        Span::Range(start, end) => json!({ "key": base64(start), "range_end": base64(end) }),
        Span::From(start) => json!({ "key": base64(start), "range_end": base64(&zero) }),
    }
}

fn range_request(range: &Range) -> Value {
    let mut body = span_request(&range.span);
    let order = match range.sort_order {
        SortOrder::None => "NONE",
        SortOrder::Ascending => "ASCEND",
        SortOrder::Descending => "DESCEND",
    };
    let target = match range.sort_target {
        SortTarget::Key => "KEY",
        SortTarget::Version => "VERSION",
        SortTarget::Create => "CREATE",
        SortTarget::Mod => "MOD",
        SortTarget::Value => "VALUE",
    };
    let fields: [(&str, Value); 10] = [
        ("limit", range.limit.into()),
        ("revision", range.revision.into()),
        ("sort_order", order.into()),
        ("sort_target", target.into()),
        ("keys_only", range.keys_only.into()),
        ("count_only", range.count_only.into()),
        ("min_mod_revision", range.min_mod_revision.into()),
        ("max_mod_revision", range.max_mod_revision.into()),
        ("min_create_revision", range.min_create_revision.into()),
        ("max_create_revision", range.max_create_revision.into()),
    ];
    for (name, value) in fields {
        body[name] = value;
    }
    body
}

fn put_request(put: &Put) -> Value {
    json!({
        "key": base64(&put.key),
        "value": base64(&put.value),
        "lease": put.lease.0,
        "prev_kv": put.prev_kv,
        "ignore_value": put.ignore_value,
        "ignore_lease": put.ignore_lease,
    })
}

fn delete_request(request: &DeleteRange) -> Value {
    let mut body = span_request(&request.span);
    body["prev_kv"] = request.prev_kv.into();
    body
}

fn txn_request(txn: &Txn) -> Value {
    let ops = |ops: &[Op]| ops.iter().map(op_request).collect::<Vec<_>>();
    let compares: Vec<Value> = txn.compare.iter().map(compare_request).collect();
    json!({ "compare": compares, "success": ops(&txn.success), "failure": ops(&txn.failure) })
}

fn op_request(op: &Op) -> Value {
    match op {
        Op::Range(range) => json!({ "request_range": range_request(range) }),
        Op::Put(put) => json!({ "request_put": put_request(put) }),
        Op::DeleteRange(request) => json!({ "request_delete_range": delete_request(request) }),
        Op::Txn(nested) => json!({ "request_txn": txn_request(nested) }),
    }
}

fn compare_request(compare: &Compare) -> Value {
    let mut body = span_request(&compare.span);
    // The numbers of etcd's enums; 9 is none of them.
    let (target, field, value): (_, _, Value) = match &compare.target {
        Target::Version(version) => (0, "version", (*version).into()),
        Target::Create(revision) => (1, "create_revision", (*revision).into()),
        Target::Mod(revision) => (2, "mod_revision", (*revision).into()),
        Target::Value(value) => (3, "value", base64(value)),
        Target::Lease(lease) => (4, "lease", (*lease).into()),
        Target::Unknown => (9, "version", 0.into()),
    };
    let result = match compare.relation {
        Relation::Equal => 0,
        Relation::Greater => 1,
        Relation::Less => 2,
        Relation::NotEqual => 3,
        Relation::Unknown => 9,
    };
    body["target"] = target.into();
    body[field] = value;
    body["result"] = result.into();
    body
}

fn of_pair(pair: &KeyValue) -> Value {
    json!({
        "key": base64(&pair.key),
        "value": base64(&pair.value),
        "create_revision": pair.create_revision,
        "mod_revision": pair.mod_revision,
        "version": pair.version,
        "lease": pair.lease.0,
    })
}

/// Returns an answer with a header.
fn answer<const N: usize>(revision: i64, fields: [(&str, Value); N]) -> Value {
    let mut body = Map::new();
    body.insert("header".to_owned(), json!({ "revision": revision }));
    body.extend(fields.map(|(name, value)| (name.to_owned(), value)));
    body.into()
}

fn of_range(ranged: &RangeAnswer) -> Value {
    let pairs: Vec<Value> = ranged.kvs.iter().map(of_pair).collect();
    let (more, count) = (ranged.more.into(), ranged.count.into());
    let fields = [("kvs", pairs.into()), ("more", more), ("count", count)];
    answer(ranged.revision, fields)
}

fn of_put(put: &PutAnswer) -> Value {
    let before = put.prev_kv.as_ref().map(of_pair);
    answer(put.revision, [("prev_kv", before.into())])
}

fn of_deletion(deleted: &DeleteRangeAnswer) -> Value {
    let before: Vec<Value> = deleted.prev_kvs.iter().map(of_pair).collect();
    let fields = [
        ("deleted", deleted.deleted.into()),
        ("prev_kvs", before.into()),
    ];
    answer(deleted.revision, fields)
}

fn of_txn(txn: &TxnAnswer) -> Value {
    let of_op = |op: &OpAnswer| match op {
        OpAnswer::Range(ranged) => json!({ "response_range": of_range(ranged) }),
        OpAnswer::Put(put) => json!({ "response_put": of_put(put) }),
        OpAnswer::DeleteRange(deleted) => json!({ "response_delete_range": of_deletion(deleted) }),
        OpAnswer::Txn(nested) => json!({ "response_txn": of_txn(nested) }),
    };
    let responses: Vec<Value> = txn.responses.iter().map(of_op).collect();
    let fields = [
        ("succeeded", txn.succeeded.into()),
        ("responses", responses.into()),
    ];
    answer(txn.revision, fields)
}

fn of_answer(given: &Answer) -> Value {
    match given {
        Answer::Put(put) => of_put(put),
        Answer::DeleteRange(deleted) => of_deletion(deleted),
        Answer::Txn(txn) => of_txn(txn),
        Answer::Done { revision } => answer(*revision, []),
        Answer::Granted {
            revision, id, ttl, ..
        } => answer(*revision, [("ID", id.0.into()), ("TTL", (*ttl).into())]),
        other => panic!("not drawn: {other:?}"),
    }
}
