//! Checks of a request by itself, before the log and again in apply: syntax, number of operations, keys that are changed twice.
//!
//! The order of the checks is etcd's, so a request with several faults gets etcd's refusal.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use bytes::Bytes;

use crate::{DeleteRange, Limits, Op, Put, Range, Refusal, Span, Txn};

/// Checks a range.
pub fn check_range(range: &Range) -> Result<(), Refusal> {
    check_key(range.span.start())
}

/// Checks a put.
pub fn check_put(put: &Put) -> Result<(), Refusal> {
    check_key(&put.key)?;
    if put.ignore_value && !put.value.is_empty() {
        return Err(Refusal::ValueProvided);
    }
    if put.ignore_lease && put.lease.0 != 0 {
        return Err(Refusal::LeaseProvided);
    }
    Ok(())
}

/// Checks a deletion.
pub fn check_delete_range(request: &DeleteRange) -> Result<(), Refusal> {
    check_key(request.span.start())
}

/// Checks a transaction.
pub fn check_txn(txn: &Txn, limits: &Limits) -> Result<(), Refusal> {
    check_ops(txn, limits.max_ops as usize)?;
    check_list(&txn.success)?;
    check_list(&txn.failure)?;
    Ok(())
}

fn check_key(key: &[u8]) -> Result<(), Refusal> {
    if key.is_empty() {
        Err(Refusal::EmptyKey)
    } else {
        Ok(())
    }
}

/// Checks syntax and number. A transaction counts as its longest list, and its nested ones must fit into what it leaves.
fn check_ops(txn: &Txn, max_ops: usize) -> Result<(), Refusal> {
    let lists = [txn.compare.len(), txn.success.len(), txn.failure.len()];
    let longest = lists.into_iter().max().unwrap_or(0);
    let left = max_ops.checked_sub(longest).ok_or(Refusal::TooManyOps)?;
    for compare in &txn.compare {
        check_key(compare.span.start())?;
    }
    for op in txn.success.iter().chain(&txn.failure) {
        match op {
            Op::Range(range) => check_range(range)?,
            Op::Put(put) => check_put(put)?,
            Op::DeleteRange(request) => check_delete_range(request)?,
            Op::Txn(nested) => check_ops(nested, left)?,
        }
    }
    Ok(())
}

/// The keys that a list of operations may put and delete.
#[derive(Default)]
struct Changed<'a> {
    puts: BTreeSet<&'a Bytes>,
    deletes: Intervals,
}

/// Checks that no key is changed twice by a list. etcd's rules, which let some overlaps pass:
///
/// - A deletion of all keys from one on overlaps nothing.
/// - Nested transactions are checked in their order: their puts against the puts and deletions of those before, but not their
///   deletions against the puts of those before.
fn check_list(ops: &[Op]) -> Result<Changed<'_>, Refusal> {
    let mut changed = Changed::default();
    for op in ops {
        if let Op::DeleteRange(request) = op {
            changed.deletes.insert_span(&request.span);
        }
    }
    for op in ops {
        if let Op::Txn(nested) = op {
            check_nested(nested, &mut changed)?;
        }
    }
    for op in ops {
        if let Op::Put(put) = op {
            changed.put(&put.key)?;
        }
    }
    Ok(changed)
}

/// Checks a nested transaction and adds what it may change. Only one of its lists is carried out, so a key may be in both.
fn check_nested<'a>(nested: &'a Txn, changed: &mut Changed<'a>) -> Result<(), Refusal> {
    let mut either = check_list(&nested.success)?;
    let failure = check_list(&nested.failure)?;
    either.add(failure);
    if changed.deletes.overlap(&either.puts) || !disjoint(&changed.puts, &either.puts) {
        return Err(Refusal::DuplicateKey);
    }
    changed.add(either);
    Ok(())
}

impl<'a> Changed<'a> {
    fn put(&mut self, key: &'a Bytes) -> Result<(), Refusal> {
        if self.deletes.contains(key) || !self.puts.insert(key) {
            return Err(Refusal::DuplicateKey);
        }
        Ok(())
    }

    /// Adds the changes of another list.
    fn add(&mut self, other: Self) {
        merge(&mut self.puts, other.puts);
        self.deletes.merge(other.deletes);
    }
}

/// Moves the smaller set into the larger one. So a put moves into a set of at least twice the size each time, however deep its
/// transaction is nested, and a check costs little more than its keys.
fn merge<'a>(into: &mut BTreeSet<&'a Bytes>, mut other: BTreeSet<&'a Bytes>) {
    if other.len() > into.len() {
        std::mem::swap(into, &mut other);
    }
    step(other.len());
    into.extend(other);
}

fn disjoint(one: &BTreeSet<&Bytes>, other: &BTreeSet<&Bytes>) -> bool {
    let (few, many) = if one.len() < other.len() {
        (one, other)
    } else {
        (other, one)
    };
    step(few.len());
    few.iter().all(|key| !many.contains(key))
}

/// Counts the keys that a check looks up or moves; only a test wants to know.
#[cfg(not(test))]
fn step(_: usize) {}

/// A union of ranges of keys, as disjoint ranges from start to end.
#[derive(Default)]
struct Intervals(BTreeMap<Bytes, Bytes>);

impl Intervals {
    fn insert_span(&mut self, span: &Span) {
        match span {
            Span::Key(key) => {
                let end = [key, &b"\0"[..]].concat();
                self.insert(key.clone(), end.into());
            }
            Span::Range(start, end) => self.insert(start.clone(), end.clone()),
            // etcd takes the zero byte that stands for "no end" literally here, so the range is empty.
            Span::From(_) => {}
        }
    }

    fn insert(&mut self, mut start: Bytes, mut end: Bytes) {
        if start >= end {
            return;
        }
        // Ranges that overlap or touch the new one are merged into it, from the last one back.
        while let Some((from, to)) = self.last_start(&end) {
            if to < start {
                break;
            }
            self.0.remove(&from);
            start = start.min(from);
            end = end.max(to);
        }
        self.0.insert(start, end);
    }

    /// Returns the last range that begins at or before a key.
    fn last_start(&self, key: &Bytes) -> Option<(Bytes, Bytes)> {
        let bounds = (Bound::Unbounded, Bound::Included(key));
        let last = self.0.range::<Bytes, _>(bounds).next_back();
        last.map(|(from, to)| (from.clone(), to.clone()))
    }

    fn contains(&self, key: &Bytes) -> bool {
        self.last_start(key).is_some_and(|(_, end)| *key < end)
    }

    /// Returns true if one of the keys is in a range. It looks up the ranges or the keys, whichever are fewer.
    fn overlap(&self, keys: &BTreeSet<&Bytes>) -> bool {
        step(keys.len().min(self.0.len()));
        if keys.len() < self.0.len() {
            return keys.iter().any(|key| self.contains(key));
        }
        self.0.iter().any(|(start, end)| {
            let within = (Bound::Included(start), Bound::Excluded(end));
            keys.range::<Bytes, _>(within).next().is_some()
        })
    }

    fn merge(&mut self, mut other: Self) {
        if other.0.len() > self.0.len() {
            std::mem::swap(self, &mut other);
        }
        step(other.0.len());
        for (start, end) in other.0 {
            self.insert(start, end);
        }
    }
}

#[cfg(test)]
use tests::step;

#[cfg(test)]
mod tests;
