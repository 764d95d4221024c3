//! Answers to queries at, below and above their limits.

// Helpers of tests may panic as tests do.
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::{GENESIS, Replica};
use replica::{StateStore, Table, WriteBatch};
use shardkv::{Genesis, MAX_SCAN_BYTES, MAX_SCAN_PAIRS, PageRequest, Query, Response, read_page};
use types::ShardId;

const SHARD: ShardId = ShardId(0);
const KEY_BYTES: usize = 6;

fn key(n: usize) -> String {
    format!("{n:06}")
}

/// A group of one shard that has these values.
fn group(values: &[usize]) -> Replica {
    let mut replica = Replica::new(Genesis {
        shards: 1,
        ..GENESIS
    });
    let mut batch = WriteBatch::default();
    for (n, bytes) in values.iter().enumerate() {
        let stored = [&SHARD.0.to_be_bytes(), key(n).as_bytes()].concat();
        batch.put(Table::Data, stored.into(), vec![b'v'; *bytes].into());
    }
    let applied = replica.state.applied();
    replica.state.commit(batch, applied).unwrap();
    replica
}

/// Counts all pairs. Returns the number of answers that it took, and the keys and bytes in all.
fn count(replica: &Replica) -> (usize, u64, u64) {
    let (mut answers, mut keys, mut bytes, mut after) = (0, 0, 0, Some(Bytes::new()));
    while let Some(from) = after {
        let query = Query::Count {
            shard: SHARD,
            after: from,
        };
        let Response::Count {
            keys: more_keys,
            bytes: more_bytes,
            next,
        } = replica.query(&query)
        else {
            panic!("it is served");
        };
        (answers, keys, bytes) = (answers + 1, keys + more_keys, bytes + more_bytes);
        after = next;
    }
    (answers, keys, bytes)
}

#[test]
fn a_count_with_the_most_pairs_goes_on() {
    let most = MAX_SCAN_PAIRS as usize;
    for (pairs, answers) in [(most - 1, 1), (most, 2), (most + 1, 2), (2 * most, 3)] {
        let replica = group(&vec![1; pairs]);
        let bytes = pairs * (KEY_BYTES + 1);
        assert_eq!(count(&replica), (answers, pairs as u64, bytes as u64));
    }
}

#[test]
fn a_count_with_the_most_bytes_goes_on() {
    // Short values are read whole, so they count; so does the prefix of a stored key.
    let value = 2_048 - KEY_BYTES - 4;
    let most = MAX_SCAN_BYTES as usize / 2_048;
    for (pairs, more, answers) in [
        (most, 0, 2),
        (most - 1, 0, 1),
        (most, 1, 2),
        (most - 1, 1, 1),
    ] {
        let mut values = vec![value; pairs];
        values.extend(vec![1; more]);
        let replica = group(&values);
        let bytes = pairs * (value + KEY_BYTES) + more * (1 + KEY_BYTES);
        let keys = values.len() as u64;
        assert_eq!(count(&replica), (answers, keys, bytes as u64));
    }
}

/// Reads a page of pairs from the start.
fn page(replica: &Replica, limit: u32, max_bytes: u32) -> (usize, bool) {
    let request = PageRequest {
        start: Bytes::new(),
        end: Bytes::new(),
        limit,
        max_bytes,
        keys_only: false,
        shards: None,
    };
    match read_page(&replica.state, &request).unwrap() {
        Ok(Response::Page { pairs, more }) => (pairs.len(), more),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_page_ends_at_its_limits_and_says_if_there_is_more() {
    let replica = group(&[1; 10]);
    let pair = u32::try_from(KEY_BYTES + 1).unwrap();
    let all = u32::MAX;
    for (limit, max_bytes, expected) in [
        (0, all, (1, true)),
        (9, all, (9, true)),
        (10, all, (10, false)),
        (11, all, (10, false)),
        (all, 0, (1, true)),
        (all, 9 * pair, (9, true)),
        (all, 9 * pair + 1, (10, false)),
        (all, 10 * pair, (10, false)),
    ] {
        assert_eq!(
            page(&replica, limit, max_bytes),
            expected,
            "{limit} {max_bytes}"
        );
    }
    let most = MAX_SCAN_PAIRS as usize;
    for (pairs, expected) in [
        (most - 1, (most - 1, false)),
        (most, (most, false)),
        (most + 1, (most, true)),
    ] {
        let replica = group(&vec![1; pairs]);
        for limit in [MAX_SCAN_PAIRS, MAX_SCAN_PAIRS + 1] {
            assert_eq!(page(&replica, limit, all), expected);
        }
    }
    let value = 2_048 - KEY_BYTES;
    let most = MAX_SCAN_BYTES as usize / 2_048;
    let replica = group(&vec![value; most + 1]);
    for max_bytes in [MAX_SCAN_BYTES, MAX_SCAN_BYTES + 1, all] {
        assert_eq!(page(&replica, all, max_bytes), (most, true));
    }
    assert_eq!(
        page(&replica, all, MAX_SCAN_BYTES - 2_048),
        (most - 1, true)
    );
}
