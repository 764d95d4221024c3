//! The keys of a span at an old revision.
//!
//! A key that exists now and was last written by then has the same version. One that was written since is looked up in the
//! versions, one step back from the revision. A key that is gone by now was deleted since: the table of deletions has it, in the
//! order of keys. So a range costs what its span holds, whatever has happened to other keys.

use std::cmp::Ordering;
use std::ops::Bound;

use bytes::Bytes;
use replica::Order;

use crate::Span;
use crate::failure::Failure;
use crate::keys::{Table, end_of, split_deletion};
use crate::limits::Budget;
use crate::rows::damaged;
use crate::store::Rows;
use crate::view::{Row, View, Walk};

/// Walks over the versions of a span's keys at an old revision, in order. It ignores drafts, which are newer.
pub(crate) enum OldWalk<'a> {
    One(Option<Row>),
    Many(Box<Merge<'a>>),
}

impl<'a> OldWalk<'a> {
    /// Begins a walk. The caller has counted one lookup.
    pub(crate) fn new(
        view: View<'a>,
        span: &Span,
        revision: i64,
        budget: &mut Budget,
    ) -> Result<Self, Failure> {
        let view = View {
            drafted: None,
            ..view
        };
        if let Span::Key(key) = span {
            return Ok(Self::One(view.at(key, revision)?));
        }
        budget.lookup()?;
        Ok(Self::Many(Box::new(Merge {
            view,
            revision,
            existing: view.walk(span)?,
            gone: Gone::new(view, span, revision, budget)?,
        })))
    }

    /// Returns the next row. It counts every row that it takes, also those of keys that didn't exist at the revision.
    pub(crate) fn next(&mut self, budget: &mut Budget) -> Result<Option<Row>, Failure> {
        match self {
            Self::One(None) => Ok(None),
            Self::One(row) => {
                budget.visit()?;
                Ok(row.take())
            }
            Self::Many(merge) => merge.next(budget),
        }
    }
}

/// Merges the keys that exist now with those that were deleted since.
pub(crate) struct Merge<'a> {
    view: View<'a>,
    revision: i64,
    existing: Walk<'a>,
    gone: Gone<'a>,
}

impl Merge<'_> {
    fn next(&mut self, budget: &mut Budget) -> Result<Option<Row>, Failure> {
        loop {
            let order = match (self.existing.peek(), &self.gone.next) {
                (_, None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(existing), Some(gone)) => existing.cmp(gone),
            };
            let key = if order == Ordering::Greater {
                self.gone.take(budget)?
            } else {
                if order == Ordering::Equal {
                    // It exists again.
                    self.gone.take(budget)?;
                }
                match self.existing.next(budget)? {
                    Some(row) if row.meta.mod_revision <= self.revision => return Ok(Some(row)),
                    row => row.map(|row| row.key),
                }
            };
            let Some(key) = key else {
                return Ok(None);
            };
            budget.lookup()?;
            if let Some(row) = self.view.at(&key, self.revision)? {
                return Ok(Some(row));
            }
        }
    }
}

/// Walks over the keys of a span that were deleted after a revision, each once.
struct Gone<'a> {
    rows: Rows<'a>,
    revision: i64,
    next: Option<Bytes>,
}

impl<'a> Gone<'a> {
    fn new(
        view: View<'a>,
        span: &Span,
        revision: i64,
        budget: &mut Budget,
    ) -> Result<Self, Failure> {
        let start = view.place.first_deletion(span.start());
        let end = match span {
            Span::Range(_, end) => Bound::Excluded(view.place.first_deletion(end)),
            Span::Key(_) | Span::From(_) => end_of(&view.place.prefix(Table::Deletions)),
        };
        let bounds = (
            Bound::Included(start.as_ref()),
            end.as_ref().map(AsRef::as_ref),
        );
        let rows = Rows::new(view.reader, bounds, Order::Ascending)?;
        let mut gone = Self {
            rows,
            revision,
            next: None,
        };
        gone.take(budget)?;
        Ok(gone)
    }

    /// Returns the next key, and moves on to the one after it.
    fn take(&mut self, budget: &mut Budget) -> Result<Option<Bytes>, Failure> {
        let taken = self.next.take();
        while let Some((stored, _)) = self.rows.next_key()? {
            budget.visit()?;
            let (key, revision) =
                split_deletion(&stored).ok_or_else(|| damaged("a deletion", &"bad key"))?;
            if revision > self.revision && taken.as_ref() != Some(&key) {
                self.next = Some(key);
                break;
            }
        }
        Ok(taken)
    }
}
