//! Shards that move between groups, step by step.

// Helpers of tests may panic as tests do.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;

use common::{Replica, SHARDS_GENESIS, append, bytes, put, session};
use replica::Keyspace;
use shardkv::{Chunk, Cursor, KvError, Next, Query, Response, Step, Written};
use types::{ClusterId, ConfigDelta, ConfigNum, Gid, ShardConfig, ShardId, shard_of};

const CONTROLLER: ClusterId = ClusterId(77);
const SHARDS: u32 = SHARDS_GENESIS.shards;

fn group(gid: u64) -> Replica {
    let mut replica = Replica::new(SHARDS_GENESIS);
    let begin = Step::Begin {
        gid: Gid(gid),
        controller: CONTROLLER,
        num: ConfigNum(0),
        groups: BTreeMap::new(),
    };
    assert_eq!(replica.step(1, &begin), Response::Stepped);
    replica
}

/// Configurations by their owners, from 1 on.
struct Configs(ShardConfig);

impl Configs {
    fn new() -> Self {
        Self(ShardConfig::empty(SHARDS))
    }

    /// The next one, in which shard `n` is of `owners[n]`.
    fn next(&mut self, owners: [u64; SHARDS as usize]) -> Step {
        let groups = owners.map(|gid| (Gid(gid), vec![format!("g{gid}:1")]));
        let delta = ConfigDelta::between(&self.0, &groups.into(), &owners.map(Gid));
        self.0.apply(&delta).unwrap();
        Step::Configure {
            controller: CONTROLLER,
            delta,
        }
    }
}

fn pull(source: &Replica, shard: ShardId, config: u64, after: Cursor, max_bytes: u32) -> Response {
    source.query(&Query::Pull {
        shard,
        config: ConfigNum(config),
        after,
        max_bytes,
    })
}

/// All parts of a shard.
fn parts(source: &Replica, shard: ShardId, config: u64, max_bytes: u32) -> Vec<Chunk> {
    let mut parts: Vec<Chunk> = Vec::new();
    let mut after = Cursor::default();
    loop {
        let Response::Chunk(chunk) = pull(source, shard, config, after, max_bytes) else {
            panic!("{shard} is fenced");
        };
        let next = chunk.next.clone();
        parts.push(*chunk);
        match next {
            Next::Chunk(cursor) => after = cursor,
            Next::Done { .. } => return parts,
        }
    }
}

fn key_of(shard: ShardId) -> String {
    let mut keys = (0..).map(|n| format!("k{n}"));
    keys.find(|key| shard_of(key.as_bytes(), SHARDS) == shard)
        .unwrap()
}

#[test]
fn a_shard_moves_with_its_data_and_sessions_and_leaves_nothing() {
    let (mut a, mut b) = (group(1), group(2));
    let mut configs = Configs::new();
    let first = configs.next([1; 5]);
    for replica in [&mut a, &mut b] {
        assert_eq!(replica.step(10, &first), Response::Stepped);
    }
    let shard = ShardId(3);
    let key = key_of(shard);
    let length = |length| Response::Written(Written::Append { length });
    assert_eq!(
        a.apply(1_000, session(900, 1, 1), append(&key, "x")),
        length(1)
    );
    for n in 0..50 {
        a.apply(1_000, None, put(&format!("{{{key}}}{n}"), "value"));
    }

    let second = configs.next([1, 1, 1, 2, 1]);
    a.step(2_000, &second);
    b.step(50, &second);
    let wrong = Response::Refused(KvError::WrongGroup {
        shard,
        config: ConfigNum(2),
    });
    let busy = Response::Refused(KvError::ShardNotReady { shard });
    let late = session(900, 2, 1);
    assert_eq!(a.apply(2_000, late, append(&key, "y")), wrong);
    assert_eq!(b.apply(60, late, append(&key, "y")), busy);
    assert_eq!(a.query(&Query::Get { key: bytes(&key) }), wrong);
    assert_eq!(b.query(&Query::Get { key: bytes(&key) }), busy);

    let parts = parts(&a, shard, 2, 100);
    assert!(parts.len() > 3, "{}", parts.len());
    for part in parts {
        assert_eq!(b.query(&Query::Get { key: bytes(&key) }), busy);
        let encoded = Chunk::decode(part.encode()).unwrap();
        assert_eq!(b.step(60, &Step::Install(encoded)), Response::Stepped);
    }
    assert_eq!(b.machine.ownership().settled(), ConfigNum(1));
    assert_eq!(b.get(&key).as_deref(), Some("x"));
    // The retry of what was answered at A, and the write that A refused.
    assert_eq!(
        b.apply(60, session(900, 1, 1), append(&key, "x")),
        length(1)
    );
    assert_eq!(b.apply(60, late, append(&key, "y")), length(2));

    let config = ConfigNum(2);
    assert_eq!(a.machine.ownership().settled(), ConfigNum(1));
    assert_eq!(
        a.step(3_000, &Step::Delete { shard, config }),
        Response::Stepped
    );
    assert_eq!(a.machine.ownership().settled(), config);
    b.step(60, &Step::Deleted { shard, config });
    assert_eq!(b.machine.ownership().settled(), config);
    let prefix = shard.0.to_be_bytes();
    let left = a
        .state
        .pairs()
        .keys()
        .filter(|(space, key)| *space != Keyspace::Meta && key.starts_with(&prefix));
    assert_eq!(left.count(), 0);
    assert_eq!(a.machine.session_count(), 0);
}
