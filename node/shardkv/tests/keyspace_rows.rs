//! Rows of keyspaces in a shard: no query of pairs shows them, they count in sizes, they go with the shard, and no group takes them below
//! their feature level.

// Helpers of tests may panic as tests do.
#![allow(clippy::unwrap_used)]

mod common;

use std::num::NonZeroU64;

use bytes::Bytes;
use common::replicas::{CONTROLLER, GENESIS, SHARD, configuration};
use common::{Replica, bytes, put};
use replica::Table;
use shardkv::{
    AUTH_LEVEL, Chunk, Configure, Cursor, KEYSPACE_LEVEL, KvError, Next, PageRequest, Query,
    Response, SessionClock, Step, encode_keyspace_operation, estimate_shard,
};
use types::{ConfigNum, Gid, ShardConfig, ShardId, ShardSet, shard_of};

const OWN: Gid = Gid(1);
const OTHER: Gid = Gid(2);

/// Applies a step as the next entry of a group of this level.
fn step(replica: &mut Replica, level: u32, step: &Step) -> Response {
    replica.level = level;
    replica.step(200, step)
}

/// Creates a keyspace, which has three rows.
fn create(replica: &mut Replica, shard: ShardId) -> Response {
    let operation = keyspace::Operation {
        cluster_id: None,
        shard,
        limits: keyspace::Limits::default(),
        action: keyspace::Action::Create {
            name: "n".repeat(100),
            options: keyspace::KeyspaceOptions::default(),
            nonce: NonZeroU64::MIN,
        },
    };
    replica.level = KEYSPACE_LEVEL;
    replica.apply_bytes(200, 100, encode_keyspace_operation(&operation))
}

fn configure(replica: &mut Replica, config: &ShardConfig, level: u32) {
    let ownership = replica.machine.ownership();
    let configure = Configure::to(config, OWN, CONTROLLER, &ownership);
    let answer = step(replica, level, &Step::Configure(configure));
    assert_eq!(answer, Response::Stepped);
}

fn first() -> ShardConfig {
    configuration(&ShardConfig::empty(2), OWN, OWN, OWN)
}

/// Returns a group that serves both shards, with a pair and rows in each.
fn serving() -> Replica {
    let mut replica = Replica::new(GENESIS);
    configure(&mut replica, &first(), KEYSPACE_LEVEL);
    for shard in [ShardId(0), ShardId(1)] {
        let key = (0..).map(|n| format!("k{n}"));
        let key = { key }.find(|key| shard_of(key.as_bytes(), 2) == shard);
        replica.apply(200, None, put(&key.unwrap(), "v"));
        let created = create(&mut replica, shard);
        assert!(matches!(created, Response::Keyspace(_)), "{created:?}");
    }
    replica
}

fn stored_rows(replica: &Replica) -> Vec<Bytes> {
    let pairs = replica.state.pairs().keys();
    let data = pairs.filter(|(table, _)| *table == Table::Data);
    let rows = data.filter(|(_, key)| key.first().is_some_and(|first| *first >= 0x80));
    rows.map(|(_, key)| key.clone()).collect()
}

#[test]
fn queries_of_pairs_show_no_rows() {
    let replica = serving();
    for shards in [None, Some(ShardSet::all(2))] {
        let page = PageRequest {
            shards,
            start: Bytes::new(),
            end: Bytes::new(),
            limit: 100,
            max_bytes: 100_000,
            keys_only: false,
        };
        let Response::Page { pairs, more } = replica.query(&Query::Page(page)) else {
            panic!("no page");
        };
        assert_eq!((pairs.len(), more), (2, false));
    }
    for shard in [ShardId(0), ShardId(1)] {
        let all = (Bytes::new(), Bytes::new());
        let (start, end) = all;
        let Response::View(view) = replica.query(&Query::Export { shard, start, end }) else {
            panic!("no view");
        };
        assert_eq!(view.next_page().unwrap().unwrap().len(), 1);
        let after = Bytes::new();
        let count = replica.query(&Query::Count { shard, after });
        let Response::Count { keys, next, .. } = count else {
            panic!("{count:?}");
        };
        assert_eq!((keys, next), (1, None));
    }
}

#[test]
fn sizes_have_rows() {
    let replica = serving();
    let shards = ShardSet::all(2);
    let sizes = replica.query(&Query::Sizes { shards });
    let Response::Sizes(sizes) = sizes else {
        panic!("{sizes:?}");
    };
    for (shard, bytes) in (0..).map(ShardId).zip(sizes) {
        assert!((250..500).contains(&bytes), "{bytes}");
        assert_eq!(estimate_shard(&replica.state, shard).unwrap(), bytes);
    }
}

#[test]
fn rows_go_with_their_shard() {
    let mut replica = serving();
    let planned = configuration(&first(), OWN, OTHER, OWN);
    let cut = configuration(&planned, OWN, OTHER, OTHER);
    configure(&mut replica, &planned, KEYSPACE_LEVEL);
    configure(&mut replica, &cut, KEYSPACE_LEVEL);
    assert_eq!(stored_rows(&replica).len(), 6);
    let delete = Step::Delete {
        shard: SHARD,
        config: cut.num(),
    };
    assert_eq!(
        step(&mut replica, KEYSPACE_LEVEL, &delete),
        Response::Stepped
    );
    let left = stored_rows(&replica);
    assert_eq!(left.len(), 3);
    assert!(left.iter().all(|key| key.starts_with(&[0x80, 0, 0, 0])));
}

/// Older members can't decode such a chunk, so the others must leave it, too.
#[test]
fn rows_are_refused_below_their_level() {
    let mut replica = Replica::new(GENESIS);
    let given = configuration(&ShardConfig::empty(2), OTHER, OTHER, OTHER);
    let planned = configuration(&given, OTHER, OWN, OTHER);
    let cut = configuration(&planned, OTHER, OWN, OWN);
    configure(&mut replica, &cut, 1);
    let chunk = |after, rows: &[&str], next| {
        let rows = rows.iter().map(|row| (bytes(row), Bytes::new()));
        Step::Install(Chunk {
            shard: SHARD,
            config: cut.num(),
            after,
            pairs: Vec::new(),
            sessions: Vec::new(),
            rows: rows.collect(),
            next,
        })
    };
    let cursor = || Cursor::Rows(bytes("r1"));
    let done = || Next::Done {
        clock: SessionClock::default(),
        ttl_ms: GENESIS.session_ttl_ms,
    };
    let start = Cursor::default;
    let before = replica.state.pairs().clone();
    for refused in [
        chunk(start(), &["r1"], Next::Chunk(cursor())),
        chunk(start(), &["r1"], done()),
        chunk(start(), &[], Next::Chunk(cursor())),
        chunk(cursor(), &[], done()),
    ] {
        let needed = KEYSPACE_LEVEL;
        let level = 1;
        let error = KvError::FeatureLevel { needed, level };
        assert!(!error.is_final());
        let answer = step(&mut replica, level, &refused);
        assert_eq!(answer, Response::Refused(error));
        assert_eq!(*replica.state.pairs(), before);
    }
    let first = chunk(start(), &["r1"], Next::Chunk(cursor()));
    let last = chunk(cursor(), &["r2"], done());
    for taken in [first, last] {
        assert_eq!(
            step(&mut replica, KEYSPACE_LEVEL, &taken),
            Response::Stepped
        );
    }
    assert_eq!(stored_rows(&replica).len(), 2);
    assert!(replica.machine.ownership().check_served(SHARD).is_ok());
    assert_eq!(replica.machine.ownership().held, ConfigNum(3));
}

/// Older members can't read users and roles, nor the record of a keyspace that has some.
#[test]
fn users_and_roles_are_refused_below_their_level() {
    let operation = |action| {
        encode_keyspace_operation(&keyspace::Operation {
            cluster_id: None,
            shard: SHARD,
            limits: keyspace::Limits::default(),
            action,
        })
    };
    let mut replica = serving();
    let add = || keyspace::AuthWrite::UserAdd {
        name: "ann".to_owned(),
        hash: None,
    };
    let id = keyspace::KeyspaceId(1);
    let add = || operation(keyspace::Action::In(id, keyspace::Write::Auth(add())));
    let caller = keyspace::Principal {
        user: "ann".to_owned(),
        revision: 1,
    };
    let write = Box::new(keyspace::Write::Put(keyspace::Put {
        key: bytes("k"),
        ..keyspace::Put::default()
    }));
    let write = keyspace::Write::As { caller, write };
    let write = operation(keyspace::Action::In(id, write));
    let before = replica.state.pairs().clone();
    replica.level = KEYSPACE_LEVEL;
    let (level, needed) = (KEYSPACE_LEVEL, AUTH_LEVEL);
    let refused = Response::Refused(KvError::FeatureLevel { level, needed });
    for entry in [add(), write] {
        assert_eq!(replica.apply_bytes(200, 100, entry), refused);
    }
    assert_eq!(*replica.state.pairs(), before);
    replica.level = AUTH_LEVEL;
    let added = replica.apply_bytes(200, 100, add());
    assert!(matches!(added, Response::Keyspace(_)), "{added:?}");

    // The rows arrive at another group.
    let prefix = (SHARD.0 | 1 << 31).to_be_bytes();
    let rows = replica.state.pairs().iter();
    let rows = rows.filter(|((_, key), _)| key.starts_with(&prefix));
    let rows: Vec<_> = rows
        .map(|((_, key), value)| (key.slice(4..), value.clone()))
        .collect();
    let mut taker = Replica::new(GENESIS);
    let given = configuration(&ShardConfig::empty(2), OTHER, OTHER, OTHER);
    let planned = configuration(&given, OTHER, OWN, OTHER);
    let cut = configuration(&planned, OTHER, OWN, OWN);
    configure(&mut taker, &cut, KEYSPACE_LEVEL);
    let chunk = Step::Install(Chunk {
        shard: SHARD,
        config: cut.num(),
        after: Cursor::default(),
        pairs: Vec::new(),
        sessions: Vec::new(),
        rows,
        next: Next::Done {
            clock: SessionClock::default(),
            ttl_ms: GENESIS.session_ttl_ms,
        },
    });
    assert_eq!(step(&mut taker, KEYSPACE_LEVEL, &chunk), refused);
    assert_eq!(step(&mut taker, AUTH_LEVEL, &chunk), Response::Stepped);
    assert!(taker.machine.ownership().check_served(SHARD).is_ok());
}
