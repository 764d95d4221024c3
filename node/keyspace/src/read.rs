//! Reads outside of the log: ranges, read-only transactions and events, from a state as of one commit.

use std::ops::Bound;

use raft::StoreError;
use replica::{Order, PairReader};

use crate::draft::{Draft, gone};
use crate::failure::Failure;
use crate::keys::{Table, end_of};
use crate::limits::Budget;
use crate::range::{self};
use crate::record::read_record;
use crate::rows::{EventRow, damaged};
use crate::store::Rows;
use crate::view::{View, event_at};
use crate::{
    Event, KeyValue, Limits, Place, Range, RangeAnswer, Record, Refusal, Txn, TxnAnswer, check, txn,
};

/// Reads the record of a keyspace that exists.
pub fn record(
    reader: &dyn PairReader,
    place: Place,
) -> Result<Result<Record, Refusal>, StoreError> {
    let record = read_record(reader, place)?.filter(|record| !record.deleted);
    Ok(record.ok_or(Refusal::KeyspaceNotFound))
}

fn live(reader: &dyn PairReader, place: Place) -> Result<Record, Failure> {
    Ok(record(reader, place)??)
}

/// Reads a range. It keeps at most `max_bytes` of keys and values.
pub fn range(
    reader: &dyn PairReader,
    place: Place,
    request: &Range,
    max_bytes: u64,
) -> Result<Result<RangeAnswer, Refusal>, StoreError> {
    let read = || {
        check::check_range(request)?;
        let record = live(reader, place)?;
        range::check_revision(request.revision, record.compacted, record.revision)?;
        let view = View {
            reader,
            place,
            drafted: None,
        };
        let mut budget = Budget::of_read(max_bytes);
        range::read(view, request, record.revision, true, &mut budget)
    };
    Failure::split(read())
}

/// Carries out a transaction that is [read-only](Txn::is_read_only). A transaction that isn't is refused.
pub fn read_txn(
    reader: &dyn PairReader,
    place: Place,
    request: &Txn,
    limits: &Limits,
    max_bytes: u64,
) -> Result<Result<TxnAnswer, Refusal>, StoreError> {
    let read = || {
        check::check_txn(request, limits)?;
        let record = live(reader, place)?;
        let budget = Budget::of_read(max_bytes);
        let mut draft = Draft::new(reader, place, &record, limits, budget)?;
        let mut budget = draft.budget.clone();
        let decided = txn::decide(draft.view(), request, &mut budget)?;
        draft.budget = budget;
        txn::check(&mut draft, &decided, &record)?;
        // The budget of a read has no changes, so a put or a deletion is refused.
        let mut answer = txn::execute(&mut draft, &decided, true)?;
        answer.revision = record.revision;
        Ok(answer)
    };
    Failure::split(read())
}

/// The place of an event: its revision, and its position among the changes of the revision.
pub type EventPosition = (i64, u32);

/// A part of the events of a keyspace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// The events, in order.
    pub events: Vec<Event>,
    /// The place of the first event that was left out; `None` if these are all up to `revision`.
    pub next: Option<EventPosition>,
    /// The newest revision.
    pub revision: i64,
}

/// Reads events from a place on: at most `limit`, ending with the one that reaches `max_bytes` of keys and values. `wanted` says
/// by the key which events are read; others count for neither. At most `max_visited` events are visited.
pub fn events(
    reader: &dyn PairReader,
    place: Place,
    from: EventPosition,
    wanted: impl Fn(&[u8]) -> bool,
    (limit, max_visited, max_bytes): (usize, usize, usize),
) -> Result<Result<Events, Refusal>, StoreError> {
    let read = || {
        let record = live(reader, place)?;
        if from.0 < record.compacted {
            let compacted = record.compacted;
            return Err(Refusal::Compacted { compacted }.into());
        }
        let view = View {
            reader,
            place,
            drafted: None,
        };
        let mut page = Events {
            revision: record.revision,
            ..Events::default()
        };
        let start = place.event(from.0.max(0), from.1);
        let end = end_of(&place.prefix(Table::Events));
        let bounds = (
            Bound::Included(start.as_ref()),
            end.as_ref().map(AsRef::as_ref),
        );
        let mut rows = Rows::new(reader, bounds, Order::Ascending)?;
        let (mut visited, mut bytes) = (0, 0);
        while let Some((stored, row)) = rows.next()? {
            let at = event_at(&stored)?;
            if page.events.len() >= limit.max(1)
                || visited >= max_visited.max(1)
                || bytes >= max_bytes.max(1)
            {
                page.next = Some(at);
                break;
            }
            visited += 1;
            let row = EventRow::decode(row)?;
            if wanted(&row.key) {
                let event = event(view, at, &row)?;
                bytes += event.kv.key.len() + event.kv.value.len();
                page.events.push(event);
            }
        }
        Ok(page)
    };
    Failure::split(read())
}

fn event(
    view: View<'_>,
    (revision, position): EventPosition,
    row: &EventRow,
) -> Result<Event, StoreError> {
    let kv = if row.deleted {
        gone(row.key.clone(), revision)
    } else {
        let version = view.version(&row.key, revision)?;
        let (meta, value) = version.ok_or_else(|| damaged("an event", &"no version"))?;
        meta.pair(row.key.clone(), value)
    };
    Ok(Event {
        kv,
        deleted: row.deleted,
        position,
    })
}

/// Reads the pair before an event, for watches that ask for it. As in etcd it is the pair at the revision before the event. There
/// is none if that revision is compacted, or if the event created the key.
pub fn previous(
    reader: &dyn PairReader,
    place: Place,
    event: &Event,
) -> Result<Option<KeyValue>, StoreError> {
    let Ok(record) = record(reader, place)? else {
        return Ok(None);
    };
    let before = event.kv.mod_revision.checked_sub(1);
    let before = before.ok_or_else(|| damaged("an event", &"its revision is the least number"))?;
    let created = !event.deleted && event.kv.create_revision == event.kv.mod_revision;
    if created || before < record.compacted {
        return Ok(None);
    }
    let view = View {
        reader,
        place,
        drafted: None,
    };
    let Some(row) = view.at(&event.kv.key, before)? else {
        return Ok(None);
    };
    let value = view.value(&row)?;
    Ok(Some(row.meta.pair(row.key, value)))
}
