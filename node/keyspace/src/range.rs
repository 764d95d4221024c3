//! Ranges: which pairs of a span an answer has, in which order.

use std::cmp::Ordering;

use bytes::Bytes;
use raft::StoreError;

use crate::failure::Failure;
use crate::limits::Budget;
use crate::old::OldWalk;
use crate::view::{Row, View, Walk};
use crate::{KeyValue, LeaseId, Range, RangeAnswer, Refusal, SortOrder, SortTarget};

/// The memory that a kept row takes beside its key and value.
const ROW_BYTES: u64 = 128;

/// Refuses a revision that a range outside of a transaction can't read. 0 and below mean the newest.
pub(crate) fn check_revision(revision: i64, compacted: i64, newest: i64) -> Result<(), Refusal> {
    if revision > newest {
        Err(Refusal::FutureRevision)
    } else if revision > 0 && revision < compacted {
        Err(Refusal::Compacted { compacted })
    } else {
        Ok(())
    }
}

enum Rows<'a> {
    Newest(Walk<'a>),
    Old(OldWalk<'a>),
}

impl Rows<'_> {
    /// Returns the next row, and counts the rows that were visited for it.
    fn next(&mut self, budget: &mut Budget) -> Result<Option<Row>, Failure> {
        match self {
            Self::Newest(rows) => rows.next(budget),
            Self::Old(rows) => rows.next(budget),
        }
    }
}

/// Reads a range. `newest` is the revision that the view shows, drafts included. The caller has checked the revision.
///
/// With `answer` false, the values are not loaded and the pairs left out, but the budget is charged as if they were, so that
/// all replicas decide alike.
pub(crate) fn read(
    view: View<'_>,
    range: &Range,
    newest: i64,
    answer: bool,
    budget: &mut Budget,
) -> Result<RangeAnswer, Failure> {
    budget.lookup()?;
    let mut rows = if range.revision > 0 && range.revision < newest {
        Rows::Old(OldWalk::new(view, &range.span, range.revision, budget)?)
    } else {
        Rows::Newest(view.walk(&range.span)?)
    };
    let by_value = range.sort_target == SortTarget::Value;
    let mut found = Vec::new();
    let mut count = 0;
    let most = most_found(range);
    while let Some(mut row) = rows.next(budget)? {
        count += 1;
        if range.count_only || found.len() >= most || !wanted(range, &row) {
            continue;
        }
        // Kept rows cost memory also if only few of them are in the answer.
        budget.read(ROW_BYTES + row.key.len() as u64)?;
        if by_value || (!range.keys_only && most != usize::MAX) {
            budget.value(row.meta.size)?;
        } else {
            row.value = None;
        }
        found.push(row);
    }
    if by_value && answer {
        for row in &mut found {
            row.value = Some(view.value(row)?);
        }
    }
    sort(range, &mut found);
    let limit = usize::try_from(range.limit.max(0)).unwrap_or(usize::MAX);
    let more = limit > 0 && found.len() > limit;
    if more {
        found.truncate(limit);
    }
    if !by_value && !range.keys_only && most == usize::MAX {
        for row in &found {
            budget.value(row.meta.size)?;
        }
    }
    let kvs = if answer {
        let pairs = found.into_iter().map(|row| pair(view, range, row));
        pairs.collect::<Result<_, _>>()?
    } else {
        Vec::new()
    };
    Ok(RangeAnswer {
        revision: newest,
        kvs,
        more,
        count,
    })
}

/// The most rows that are kept. As in etcd, a range without an order is cut before it is sorted by its target.
fn most_found(range: &Range) -> usize {
    let filters = [
        range.min_mod_revision,
        range.max_mod_revision,
        range.min_create_revision,
        range.max_create_revision,
    ];
    let by_key = range.sort_target == SortTarget::Key;
    let in_order = match range.sort_order {
        SortOrder::None => true,
        SortOrder::Ascending => by_key,
        SortOrder::Descending => false,
    };
    if range.limit <= 0 || !in_order || filters != [0; 4] {
        return usize::MAX;
    }
    // One more shows whether there are more.
    usize::try_from(range.limit).map_or(usize::MAX, |limit| limit.saturating_add(1))
}

fn wanted(range: &Range, row: &Row) -> bool {
    let within = |value, min, max| (min == 0 || value >= min) && (max == 0 || value <= max);
    let (modified, created) = (row.meta.mod_revision, row.meta.create_revision);
    within(modified, range.min_mod_revision, range.max_mod_revision)
        && within(
            created,
            range.min_create_revision,
            range.max_create_revision,
        )
}

/// Sorts rows that are in the order of keys. Ties stay in it.
fn sort(range: &Range, rows: &mut [Row]) {
    let order = |a: &Row, b: &Row| match range.sort_target {
        SortTarget::Key => a.key.cmp(&b.key),
        SortTarget::Version => a.meta.version.cmp(&b.meta.version),
        SortTarget::Create => a.meta.create_revision.cmp(&b.meta.create_revision),
        SortTarget::Mod => a.meta.mod_revision.cmp(&b.meta.mod_revision),
        SortTarget::Value => a.value.cmp(&b.value),
    };
    match (range.sort_order, range.sort_target) {
        (SortOrder::None | SortOrder::Ascending, SortTarget::Key) => {}
        (SortOrder::None | SortOrder::Ascending, _) => rows.sort_by(order),
        (SortOrder::Descending, _) => {
            rows.sort_by(|a, b| -> Ordering { order(b, a) });
        }
    }
}

fn pair(view: View<'_>, range: &Range, row: Row) -> Result<KeyValue, StoreError> {
    if !range.keys_only {
        let value = view.value(&row)?;
        return Ok(row.meta.pair(row.key, value));
    }
    let mut pair = row.meta.pair(row.key, Bytes::new());
    if range.sort_target != SortTarget::Value {
        pair.lease = LeaseId::NONE;
    }
    Ok(pair)
}
