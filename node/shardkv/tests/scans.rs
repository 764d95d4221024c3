//! The cost of scans, and pages that are read beside the replica's thread.

// Helpers of tests may panic as tests do.
#![allow(clippy::unwrap_used)]

mod common;

use std::cell::Cell;

use bytes::Bytes;
use common::Replica;
use raft::StoreError;
use replica::memory::MemoryState;
use replica::{
    Bounds, Cursor, Listed, Order, PairReader, StateReader, StateStore, Table, View, WriteBatch,
};
use shardkv::{Genesis, PageRequest, Query, Response, read_page};
use types::shard_of;

/// The size of each value.
const LARGE: usize = 1 << 20;
const KEYS: usize = 400;

/// A state that counts the bytes of the pairs that are read from it.
struct Counted<'a> {
    below: &'a MemoryState,
    /// True if the store keeps large values apart from their keys.
    apart: bool,
    read: Cell<usize>,
}

impl Counted<'_> {
    fn count(&self, bytes: usize) {
        self.read.set(self.read.get() + bytes);
    }
}

impl PairReader for Counted<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let value = self.below.get(table, key)?;
        self.count(key.len() + value.as_ref().map_or(0, Bytes::len));
        Ok(value)
    }

    fn cursor(
        &self,
        _: Table,
        _: Bounds<'_>,
        _: Order,
    ) -> Result<Box<dyn Cursor + '_>, StoreError> {
        Err(StoreError::Io("a cursor's reads aren't counted".to_owned()))
    }
}

impl StateReader for Counted<'_> {
    fn scan(
        &self,
        table: Table,
        bounds: Bounds<'_>,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        let pairs = self.below.scan(table, bounds, limit, max_bytes)?;
        self.count(pairs.iter().map(|(k, v)| k.len() + v.len()).sum());
        Ok(pairs)
    }

    fn list(
        &self,
        table: Table,
        bounds: Bounds<'_>,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Vec<(Bytes, Listed)>, StoreError> {
        if self.apart {
            let found = self.below.list(table, bounds, limit, max_bytes)?;
            self.count(found.iter().map(|(k, v)| k.len() + v.read()).sum());
            return Ok(found);
        }
        let pairs = self.scan(table, bounds, limit, max_bytes)?.into_iter();
        Ok(pairs.map(|(k, v)| (k, Listed::Value(v))).collect())
    }

    fn view(&self, table: Table, start: Bytes, end: Bytes) -> Result<View, StoreError> {
        self.below.view(table, start, end)
    }

    fn estimate_bytes(&self, table: Table, start: &[u8], end: &[u8]) -> Result<u64, StoreError> {
        self.below.estimate_bytes(table, start, end)
    }
}

/// A replica of a group of 64 shards that holds the large values.
fn replica() -> Replica {
    let genesis = Genesis::default();
    let mut replica = Replica::new(genesis);
    // All values share their memory, which no write could give them.
    let value = Bytes::from(vec![7; LARGE]);
    let mut batch = WriteBatch::default();
    for n in 0..KEYS {
        let key = format!("k{n:03}");
        let shard = shard_of(key.as_bytes(), genesis.shards);
        let stored = [&shard.0.to_be_bytes(), key.as_bytes()].concat();
        batch.put(Table::Data, stored.into(), value.clone());
    }
    let applied = replica.state.applied();
    replica.state.commit(batch, applied).unwrap();
    replica
}

/// The cost of a scan of everything.
#[derive(Debug, Default)]
struct Cost {
    keys: usize,
    pages: usize,
    /// The bytes that all pages, and the most expensive page, read.
    total: usize,
    most: usize,
}

fn scan(state: &MemoryState, apart: bool, keys_only: bool) -> Cost {
    let mut cost = Cost::default();
    let mut start = Bytes::new();
    loop {
        let counted = Counted {
            below: state,
            apart,
            read: Cell::new(0),
        };
        let request = PageRequest {
            start,
            end: Bytes::new(),
            limit: 1_000,
            max_bytes: 256 << 10,
            keys_only,
            shards: None,
        };
        let page = read_page(&counted, &request).unwrap().unwrap();
        let Response::Page { pairs, more } = page else {
            panic!("{page:?}");
        };
        let length = if keys_only { 0 } else { LARGE };
        assert!(pairs.iter().all(|(_, value)| value.len() == length));
        cost.keys += pairs.len();
        cost.pages += 1;
        cost.total += counted.read.get();
        cost.most = cost.most.max(counted.read.get());
        match pairs.last() {
            Some((last, _)) if more => start = [&last[..], &[0]].concat().into(),
            _ => return cost,
        }
    }
}

#[test]
fn keys_alone_cost_no_values() {
    let replica = replica();
    let cost = scan(&replica.state, true, true);
    assert_eq!((cost.keys, cost.pages), (KEYS, 1));
    assert!(cost.total < KEYS * 100, "{cost:?}");
    // With values a page reads its own, and no other shard's.
    let cost = scan(&replica.state, true, false);
    assert_eq!((cost.keys, cost.pages), (KEYS, KEYS));
    assert!(cost.most < LARGE + 64 * 100, "{cost:?}");
}

#[test]
fn a_page_is_bounded_in_what_it_reads() {
    let replica = replica();
    // The store reads values with their keys: the first keys of 64 shards cost 64 values, and a page may read as much again.
    let cost = scan(&replica.state, false, true);
    assert_eq!(cost.keys, KEYS);
    assert!(cost.most <= 2 * 64 * (LARGE + 100) + 2 * LARGE, "{cost:?}");
    assert!(cost.total < 3 * KEYS * LARGE, "{cost:?}");
}

#[test]
fn a_page_is_what_the_machine_answers() {
    let replica = replica();
    let request = PageRequest {
        start: "k100".into(),
        end: "k200".into(),
        limit: 7,
        max_bytes: u32::MAX,
        keys_only: true,
        shards: None,
    };
    let page = read_page(&replica.state, &request).unwrap();
    assert_eq!(page.unwrap(), replica.query(&Query::Page(request)));
    assert_eq!(replica.query(&Query::Confirm), Response::Confirmed);
}
