//! Random requests over few keys, so that they meet.

use bytes::Bytes;
use keyspace::{
    Compare, DeleteRange, LeaseId, Op, Put, Range, Relation, SortOrder, SortTarget, Span, Target,
    Txn, Write,
};

/// A seeded source of random numbers (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.draw() % limit
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Clone>(&mut self, all: &[T]) -> T {
        let at = self.below(all.len() as u64) as usize;
        all[at].clone()
    }
}

pub struct Source {
    pub random: Random,
}

const KEYS: [&[u8]; 10] = [
    b"a",
    b"a\0",
    b"a\0\0",
    b"a\0\xff",
    b"ab",
    b"b",
    b"\0",
    b"\xff\xff",
    b"c/1",
    b"c/2",
];
const ENDS: [&[u8]; 8] = [b"", b"", b"\0", b"b", b"a\0\x01", b"c0", b"\xff", b"a"];
const VALUES: [&[u8]; 4] = [b"", b"v", b"w", b"a longer value"];

impl Source {
    pub fn new(seed: u64) -> Self {
        Self {
            random: Random(seed),
        }
    }

    pub fn key(&mut self) -> Bytes {
        Bytes::from_static(self.random.pick(&KEYS))
    }

    pub fn span(&mut self) -> Span {
        let end = Bytes::from_static(self.random.pick(&ENDS));
        Span::new(self.key(), end)
    }

    fn value(&mut self) -> Bytes {
        Bytes::from_static(self.random.pick(&VALUES))
    }

    pub fn lease(&mut self) -> LeaseId {
        LeaseId(self.random.pick(&[0, 0, 0, 1, 2, -3]))
    }

    pub fn put(&mut self) -> Put {
        let mut put = Put {
            key: self.key(),
            value: self.value(),
            lease: self.lease(),
            prev_kv: self.random.one_in(3),
            ignore_value: self.random.one_in(5),
            ignore_lease: self.random.one_in(5),
        };
        if put.ignore_value {
            put.value = Bytes::new();
        }
        if put.ignore_lease {
            put.lease = LeaseId(0);
        }
        put
    }

    fn delete_range(&mut self) -> DeleteRange {
        DeleteRange {
            span: self.span(),
            prev_kv: self.random.one_in(3),
        }
    }

    fn bound(&mut self, revision: i64) -> i64 {
        if self.random.one_in(4) {
            revision - self.random.below(6) as i64
        } else {
            0
        }
    }

    /// A range at a revision near the newest.
    pub fn range(&mut self, newest: i64) -> Range {
        let revision = match self.random.below(8) {
            0..=3 => 0,
            4 => newest + self.random.below(2) as i64,
            5 => -(self.random.below(3) as i64),
            _ => newest - self.random.below(12) as i64,
        };
        Range {
            span: self.span(),
            limit: self.random.pick(&[0, 0, -1, 1, 2, 3, i64::MAX]),
            revision,
            sort_order: self.random.pick(&[
                SortOrder::None,
                SortOrder::None,
                SortOrder::Ascending,
                SortOrder::Descending,
            ]),
            sort_target: self.random.pick(&[
                SortTarget::Key,
                SortTarget::Version,
                SortTarget::Create,
                SortTarget::Mod,
                SortTarget::Value,
            ]),
            keys_only: self.random.one_in(4),
            count_only: self.random.one_in(6),
            min_mod_revision: self.bound(newest),
            max_mod_revision: self.bound(newest),
            min_create_revision: self.bound(newest),
            max_create_revision: self.bound(newest),
        }
    }

    fn compare(&mut self, newest: i64) -> Compare {
        let near = newest - self.random.below(5) as i64;
        let target = match self.random.below(7) {
            0 => Target::Version(self.random.below(3) as i64),
            1 => Target::Create(self.random.pick(&[0, near])),
            2 => Target::Mod(self.random.pick(&[0, near])),
            3 => Target::Lease(self.lease().0),
            4 => Target::Unknown,
            _ => Target::Value(self.value()),
        };
        Compare {
            span: self.span(),
            target,
            relation: self.random.pick(&[
                Relation::Equal,
                Relation::NotEqual,
                Relation::Greater,
                Relation::Less,
                Relation::Unknown,
            ]),
        }
    }

    pub fn txn(&mut self, newest: i64, depth: u64) -> Txn {
        let mut txn = Txn::default();
        for _ in 0..self.random.below(3) {
            let compare = self.compare(newest);
            txn.compare.push(compare);
        }
        for _ in 0..self.random.below(4) {
            let op = self.op(newest, depth);
            txn.success.push(op);
        }
        for _ in 0..self.random.below(4) {
            let op = self.op(newest, depth);
            txn.failure.push(op);
        }
        txn
    }

    fn op(&mut self, newest: i64, depth: u64) -> Op {
        match self.random.below(8) {
            0 | 1 => Op::Range(self.range(newest)),
            2 | 3 => Op::DeleteRange(self.delete_range()),
            4 if depth > 0 => Op::Txn(self.txn(newest, depth - 1)),
            _ => Op::Put(self.put()),
        }
    }

    pub fn write(&mut self, newest: i64) -> Write {
        match self.random.below(20) {
            0..=6 => Write::Put(self.put()),
            7..=9 => Write::DeleteRange(self.delete_range()),
            10..=15 => Write::Txn(self.txn(newest, 2)),
            16 => Write::Compact {
                revision: newest - self.random.below(8) as i64 + 1,
            },
            17 | 18 => Write::Grant {
                id: LeaseId(self.random.pick(&[1, 2, -3])),
                ttl: self.random.below(5) as i64,
            },
            _ => Write::Revoke {
                id: LeaseId(self.random.pick(&[1, 2, -3])),
            },
        }
    }
}
