//! A view of a keyspace's keys: the rows of the store, and on top of them what a transaction has drafted.

use std::collections::{BTreeMap, btree_map};
use std::iter::Peekable;
use std::ops::Bound;

use bytes::Bytes;
use raft::StoreError;
use replica::{Bounds, Order, PairReader};

use crate::failure::Failure;
use crate::keys::{Table, end_of, split_event, split_version, without_place};
use crate::limits::Budget;
use crate::rows::{Meta, damaged, decode_version};
use crate::store::{Rows, get};
use crate::{Place, Span};

/// The drafted keys of a transaction: the new version with its value, or `None` if the key is deleted.
pub(crate) type Drafted = BTreeMap<Bytes, Option<(Meta, Bytes)>>;

/// A key that exists at the revision that is read.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) key: Bytes,
    pub(crate) meta: Meta,
    /// The value, if it was read with the row.
    pub(crate) value: Option<Bytes>,
}

/// Reads keys as of now or as of an old revision.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) reader: &'a dyn PairReader,
    pub(crate) place: Place,
    pub(crate) drafted: Option<&'a Drafted>,
}

/// The store's bounds of a span in `Current`.
struct Stored {
    start: Bytes,
    end: Bound<Bytes>,
}

impl Stored {
    fn new(place: Place, span: &Span) -> Self {
        let end = match span {
            Span::Key(key) => Bound::Included(place.current(key)),
            Span::Range(_, end) => Bound::Excluded(place.current(end)),
            Span::From(_) => end_of(&place.prefix(Table::Current)),
        };
        Self {
            start: place.current(span.start()),
            end,
        }
    }

    fn bounds(&self) -> Bounds<'_> {
        let end = self.end.as_ref().map(AsRef::as_ref);
        (Bound::Included(&self.start), end)
    }
}

impl<'a> View<'a> {
    /// Returns the newest version of a key.
    pub(crate) fn newest(&self, key: &Bytes) -> Result<Option<Row>, StoreError> {
        let row = |meta, value| Row {
            key: key.clone(),
            meta,
            value,
        };
        if let Some(drafted) = self.drafted.and_then(|drafted| drafted.get(key)) {
            let newest = drafted.clone();
            return Ok(newest.map(|(meta, value)| row(meta, Some(value))));
        }
        let stored = get(self.reader, &self.place.current(key))?;
        let meta = stored.map(Meta::decode).transpose()?;
        Ok(meta.map(|meta| row(meta, None)))
    }

    /// Returns the newest versions of a span's keys, in order.
    pub(crate) fn walk(&self, span: &Span) -> Result<Walk<'a>, StoreError> {
        let drafted = match (self.drafted, span) {
            (Some(drafted), Span::Key(key)) => drafted.range(key.clone()..=key.clone()),
            (Some(drafted), Span::Range(start, end)) if start < end => {
                drafted.range(start.clone()..end.clone())
            }
            (Some(drafted), Span::From(start)) => drafted.range(start.clone()..),
            _ => btree_map::Range::default(),
        };
        let stored = if let Span::Key(key) = span {
            // A point lookup is cheaper than a cursor.
            let row = get(self.reader, &self.place.current(key))?;
            StoredRows::One(row.map(|row| (key.clone(), row)))
        } else {
            let bounds = Stored::new(self.place, span);
            let cursor = Rows::new(self.reader, bounds.bounds(), Order::Ascending);
            StoredRows::Many(cursor?)
        };
        Walk::new(stored, drafted.peekable())
    }

    /// Returns the value of a row.
    pub(crate) fn value(&self, row: &Row) -> Result<Bytes, StoreError> {
        if let Some(value) = &row.value {
            return Ok(value.clone());
        }
        if let Some(Some((meta, value))) = self.drafted.and_then(|drafted| drafted.get(&row.key))
            && meta.mod_revision == row.meta.mod_revision
        {
            return Ok(value.clone());
        }
        self.version(&row.key, row.meta.mod_revision)?
            .map(|(_, value)| value)
            .ok_or_else(|| damaged("a key's newest version", &"its value is missing"))
    }

    /// Returns the version of a key that was written at exactly this revision.
    pub(crate) fn version(
        &self,
        key: &Bytes,
        mod_revision: i64,
    ) -> Result<Option<(Meta, Bytes)>, StoreError> {
        let stored = self.place.version(key, mod_revision);
        let row = get(self.reader, &stored)?;
        row.map(|row| decode_version(row, key, mod_revision))
            .transpose()
    }

    /// Returns the version of a key at a revision, from the stored versions: one step back from the revision.
    pub(crate) fn at(&self, key: &Bytes, revision: i64) -> Result<Option<Row>, StoreError> {
        let first = self.place.first_version(key);
        let last = self.place.deleted(key, revision);
        let bounds = (
            Bound::Included(first.as_ref()),
            Bound::Included(last.as_ref()),
        );
        let mut cursor = Rows::new(self.reader, bounds, Order::Descending)?;
        let Some((stored, row)) = cursor.next()? else {
            return Ok(None);
        };
        let split = split_version(&stored).ok_or_else(|| damaged("a version", &"bad key"))?;
        if split.deleted {
            return Ok(None);
        }
        let (meta, value) = decode_version(row, key, split.revision)?;
        Ok(Some(Row {
            key: key.clone(),
            meta,
            value: Some(value),
        }))
    }
}

enum StoredRows<'a> {
    One(Option<(Bytes, Bytes)>),
    Many(Rows<'a>),
}

impl StoredRows<'_> {
    /// Returns the next key of the user and its row.
    fn next(&mut self) -> Result<Option<(Bytes, Bytes)>, StoreError> {
        match self {
            Self::One(row) => Ok(row.take()),
            Self::Many(rows) => {
                let Some((stored, row)) = rows.next()? else {
                    return Ok(None);
                };
                let key = without_place(&stored);
                let key = key.ok_or_else(|| damaged("a key's newest version", &"bad key"))?;
                Ok(Some((key, row)))
            }
        }
    }
}

/// Walks over newest versions: merges the store's rows with drafted ones, which win.
pub(crate) struct Walk<'a> {
    stored: StoredRows<'a>,
    next_stored: Option<(Bytes, Bytes)>,
    drafted: Peekable<btree_map::Range<'a, Bytes, Option<(Meta, Bytes)>>>,
}

impl<'a> Walk<'a> {
    fn new(
        mut stored: StoredRows<'a>,
        drafted: Peekable<btree_map::Range<'a, Bytes, Option<(Meta, Bytes)>>>,
    ) -> Result<Self, StoreError> {
        let next_stored = stored.next()?;
        Ok(Self {
            stored,
            next_stored,
            drafted,
        })
    }

    /// Returns the key of the next row of the store.
    pub(crate) fn peek(&self) -> Option<&Bytes> {
        self.next_stored.as_ref().map(|(key, _)| key)
    }

    /// Returns the next row. It counts every row that it takes, also those that the draft hides, because they cost as much.
    pub(crate) fn next(&mut self, budget: &mut Budget) -> Result<Option<Row>, Failure> {
        loop {
            let drafted_first = match (&self.next_stored, self.drafted.peek()) {
                (None, None) => return Ok(None),
                (Some((stored, _)), Some((drafted, _))) => *drafted <= stored,
                (stored, _) => stored.is_none(),
            };
            budget.visit()?;
            if !drafted_first {
                return Ok(self.take_stored()?);
            }
            let Some((key, draft)) = self.drafted.next() else {
                return Ok(None);
            };
            if self
                .next_stored
                .as_ref()
                .is_some_and(|(stored, _)| stored == key)
            {
                budget.visit()?;
                self.next_stored = self.stored.next()?;
            }
            if let Some((meta, value)) = draft {
                return Ok(Some(Row {
                    key: key.clone(),
                    meta: *meta,
                    value: Some(value.clone()),
                }));
            }
        }
    }

    fn take_stored(&mut self) -> Result<Option<Row>, StoreError> {
        let Some((key, row)) = self.next_stored.take() else {
            return Ok(None);
        };
        self.next_stored = self.stored.next()?;
        Ok(Some(Row {
            key,
            meta: Meta::decode(row)?,
            value: None,
        }))
    }
}

/// The bounds of all rows of a keyspace in a table.
pub(crate) fn whole(place: Place, table: Table) -> (Bound<Bytes>, Bound<Bytes>) {
    with_prefix(place.prefix(table))
}

/// Borrows bounds.
pub(crate) fn borrowed(bounds: &(Bound<Bytes>, Bound<Bytes>)) -> Bounds<'_> {
    let start = bounds.0.as_ref().map(AsRef::as_ref);
    (start, bounds.1.as_ref().map(AsRef::as_ref))
}

/// Returns revision and position of a stored key of `Events`.
pub(crate) fn event_at(stored: &[u8]) -> Result<(i64, u32), StoreError> {
    split_event(stored).ok_or_else(|| damaged("an event", &"bad key"))
}

/// Returns the bounds of the stored keys with a prefix.
pub(crate) fn with_prefix(prefix: Bytes) -> (Bound<Bytes>, Bound<Bytes>) {
    let end = end_of(&prefix);
    (Bound::Included(prefix), end)
}
