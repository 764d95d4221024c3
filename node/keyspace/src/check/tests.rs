use std::cell::Cell;

use super::*;
use crate::{Compare, LeaseId, Relation, Target};

thread_local! {
    /// The keys and ranges that checks of this thread have looked up or moved.
    static STEPS: Cell<usize> = const { Cell::new(0) };
}

pub(super) fn step(keys: usize) {
    STEPS.set(STEPS.get() + keys);
}

fn key(key: &'static str) -> Bytes {
    Bytes::from_static(key.as_bytes())
}

fn put(name: &'static str) -> Op {
    Op::Put(Put {
        key: key(name),
        ..Put::default()
    })
}

fn delete(start: &'static str, end: &'static str) -> Op {
    Op::DeleteRange(DeleteRange {
        span: Span::new(key(start), key(end)),
        prev_kv: false,
    })
}

fn nested(success: Vec<Op>, failure: Vec<Op>) -> Op {
    Op::Txn(Txn {
        success,
        failure,
        ..Txn::default()
    })
}

#[test]
fn duplicate_keys_are_found_as_etcd_finds_them() {
    let duplicate: Vec<Vec<Op>> = vec![
        vec![put("a"), put("a")],
        vec![put("a"), delete("a", "")],
        vec![delete("a", "c"), put("b")],
        vec![delete("a", "c"), delete("b", "d"), put("c")],
        vec![nested(vec![put("a")], vec![]), put("a")],
        vec![nested(vec![], vec![put("a")]), put("a")],
        vec![
            nested(vec![put("a")], vec![]),
            nested(vec![], vec![put("a")]),
        ],
        vec![nested(vec![delete("a", "")], vec![]), put("a")],
        vec![
            nested(vec![], vec![delete("a", "b")]),
            nested(vec![put("a")], vec![]),
        ],
        vec![delete("a", ""), nested(vec![], vec![put("a")])],
        vec![delete("a", ""), nested(vec![put("a")], vec![put("a")])],
        vec![
            nested(vec![nested(vec![put("a")], vec![])], vec![]),
            put("a"),
        ],
    ];
    let found_deep = [
        deep(vec![put("a"), put("b")], 3, |level| match level {
            2 => vec![put("b")],
            _ => vec![put_number(level)],
        }),
        deep(vec![put("a"), put("b")], 3, |level| match level {
            2 => vec![delete("b", "")],
            _ => vec![delete("x", "y")],
        }),
        // More deletions than puts.
        deep(vec![put("b")], 2, |_| {
            vec![delete("a", ""), delete("b", "c"), delete("d", "")]
        }),
    ];
    for ops in duplicate.into_iter().chain(found_deep) {
        assert_eq!(
            check_list(&ops).err(),
            Some(Refusal::DuplicateKey),
            "{ops:?}"
        );
    }
    let fine: Vec<Vec<Op>> = vec![
        vec![put("a"), put("b"), delete("c", "")],
        vec![delete("a", ""), delete("a", "")],
        vec![delete("a", "c"), put("c"), put("Z")],
        // Only one list is carried out.
        vec![nested(vec![put("a")], vec![put("a")])],
        vec![nested(vec![put("a")], vec![delete("a", "")])],
        // Ranges without an end, and reversed ones.
        vec![delete("a", "\0"), put("b")],
        vec![delete("b", "a"), put("b"), put("a")],
        // Deletions of later transactions are not compared with puts of earlier ones.
        vec![
            nested(vec![put("a")], vec![]),
            nested(vec![delete("a", "")], vec![]),
        ],
    ];
    for ops in fine {
        assert!(check_list(&ops).is_ok(), "{ops:?}");
    }
}

/// Nests a list, with further operations on each level.
fn deep(mut ops: Vec<Op>, depth: usize, more: impl Fn(usize) -> Vec<Op>) -> Vec<Op> {
    for level in 0..depth {
        let inner = nested(ops, vec![]);
        ops = more(level);
        ops.push(inner);
    }
    ops
}

fn put_number(number: usize) -> Op {
    Op::Put(Put {
        key: format!("{number:06}").into(),
        ..Put::default()
    })
}

#[test]
fn a_check_costs_little_more_than_its_keys() {
    const PUTS: usize = 1_000;
    const DEPTH: usize = 100;
    let puts = || (0..PUTS).map(put_number).collect::<Vec<_>>();
    let deletes = || {
        let key = |n: usize| format!("x{n:06}").into();
        let delete = |n| {
            let span = Span::Key(key(n));
            Op::DeleteRange(DeleteRange {
                span,
                prev_kv: false,
            })
        };
        (0..PUTS).map(delete).collect::<Vec<_>>()
    };
    for ops in [
        deep(puts(), DEPTH, |_| vec![]),
        deep(puts(), DEPTH, |level| vec![put_number(PUTS + level)]),
        deep(puts(), DEPTH, |_| vec![delete("y", "z")]),
        deep(deletes(), DEPTH, |level| vec![put_number(level)]),
    ] {
        STEPS.set(0);
        assert!(check_list(&ops).is_ok());
        let steps = STEPS.get();
        assert!(steps <= 4 * DEPTH, "{steps}");
    }
}

#[test]
fn intervals_equal_a_list_of_ranges() {
    let mut seed = 1u64;
    let mut draw = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) % below
    };
    for _ in 0..300 {
        let (mut intervals, mut other) = (Intervals::default(), Intervals::default());
        let mut list = Vec::new();
        for n in 0..draw(12) {
            let name = |n| Bytes::from(vec![u8::try_from(n).unwrap()]);
            let (start, end) = (name(draw(30) + 1), name(draw(30) + 1));
            let into = if n % 3 == 0 {
                &mut other
            } else {
                &mut intervals
            };
            into.insert(start.clone(), end.clone());
            list.push((start, end));
        }
        intervals.merge(other);
        for n in 0..40 {
            let key = Bytes::from(vec![n]);
            let expected = list.iter().any(|(start, end)| *start <= key && key < *end);
            assert_eq!(intervals.contains(&key), expected, "{n} {list:?}");
        }
        let ends: Vec<_> = intervals.0.iter().collect();
        assert!(
            ends.windows(2).all(|pair| pair[0].1 < pair[1].0),
            "{ends:?}"
        );
    }
}

#[test]
fn syntax_is_checked_in_etcds_order() {
    let limits = Limits::default();
    let txn = |success| Txn {
        success,
        ..Txn::default()
    };
    let empty = Put::default();
    assert_eq!(check_put(&empty), Err(Refusal::EmptyKey));
    let keeps = Put {
        key: key("a"),
        value: key("v"),
        lease: LeaseId(1),
        ignore_value: true,
        ignore_lease: true,
        ..Put::default()
    };
    assert_eq!(check_put(&keeps), Err(Refusal::ValueProvided));
    let keeps = Put {
        value: Bytes::new(),
        ..keeps
    };
    assert_eq!(check_put(&keeps), Err(Refusal::LeaseProvided));
    let twice = txn(vec![put("a"), put("a"), put("")]);
    assert_eq!(check_txn(&twice, &limits), Err(Refusal::EmptyKey));
    let compare = Compare {
        span: Span::Key(Bytes::new()),
        target: Target::Mod(0),
        relation: Relation::Equal,
    };
    let unnamed = Txn {
        compare: vec![compare],
        ..Txn::default()
    };
    assert_eq!(check_txn(&unnamed, &limits), Err(Refusal::EmptyKey));
    assert_eq!(check_txn(&Txn::default(), &limits), Ok(()));
}

#[test]
fn operations_are_counted_as_etcd_counts_them() {
    let limits = Limits::default();
    let many = |count| vec![delete("a", ""); count];
    let txn = |success, failure| Txn {
        success,
        failure,
        ..Txn::default()
    };
    for (txn, expected) in [
        (txn(many(128), many(128)), Ok(())),
        (txn(many(129), vec![]), Err(Refusal::TooManyOps)),
        (txn(vec![], many(129)), Err(Refusal::TooManyOps)),
        // One for the list, 127 inside.
        (txn(vec![nested(many(127), vec![])], vec![]), Ok(())),
        (
            txn(vec![nested(many(128), vec![])], vec![]),
            Err(Refusal::TooManyOps),
        ),
        // Siblings count apart.
        (
            txn(
                vec![nested(many(126), vec![]), nested(many(126), many(126))],
                vec![],
            ),
            Ok(()),
        ),
    ] {
        assert_eq!(check_txn(&txn, &limits), expected);
    }
}
