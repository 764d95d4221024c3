//! Compaction. One entry raises the compacted revision; steps of clearing remove what can't be read any more.
//!
//! Clearing walks the events up to the compacted revision, in order. An event names the version that it replaced and that
//! version's size, so a step reads nothing else, and the quota stays exact:
//!
//! - An event *before* the compacted revision goes, with the version that it replaced and, if it is a deletion, with its marks.
//! - An event *at* the compacted revision stays, because a watch may start there. The version that it replaced goes, unless it
//!   was written in the same revision, where the watch needs it. The event forgets that version, so the next compaction, which
//!   visits the event again, doesn't count it twice.
//!
//! A reader's view doesn't depend on how far clearing has come: revisions before the compacted one are refused, and at it
//! and after it nothing is removed that belongs to them.

use std::ops::Bound;

use raft::StoreError;
use replica::{Order, PairReader};

use crate::failure::Failure;
use crate::rows::EventRow;
use crate::store::{Rows, Store};
use crate::view::event_at;
use crate::{Limits, Place, Record, Refusal, sizes};

/// Raises the compacted revision.
pub(crate) fn compact(record: &mut Record, revision: i64) -> Result<(), Refusal> {
    if revision <= record.compacted {
        let compacted = record.compacted;
        return Err(Refusal::Compacted { compacted });
    }
    if revision > record.revision {
        return Err(Refusal::FutureRevision);
    }
    // A step may have stopped amid the events at the old compacted revision. Those before the cursor stayed, and go now.
    if record.clear_at.0 == record.compacted {
        record.clear_at.1 = 0;
    }
    record.compacted = revision;
    record.clearing = true;
    Ok(())
}

/// The work of a step of clearing on the events that it visits.
struct Step {
    events: Vec<((i64, u32), EventRow)>,
    /// The first event that isn't visited, if there is one up to the compacted revision.
    next: Option<(i64, u32)>,
}

/// Clears the next events. Returns true if there are more.
pub(crate) fn clear(
    place: Place,
    record: &mut Record,
    limits: &Limits,
    store: &mut dyn Store,
) -> Result<bool, Failure> {
    if !record.clearing {
        return Ok(false);
    }
    let step = read_step(place, record, limits, store)?;
    for (at, event) in step.events {
        clear_event(place, record, at, &event, store)?;
    }
    record.clearing = step.next.is_some();
    // The next compaction begins with the events that stayed.
    record.clear_at = step.next.unwrap_or((record.compacted, 0));
    Ok(record.clearing)
}

fn read_step(
    place: Place,
    record: &Record,
    limits: &Limits,
    reader: &dyn PairReader,
) -> Result<Step, Failure> {
    let (revision, position) = record.clear_at;
    let start = place.event(revision, position);
    let end = place.event(record.compacted, u32::MAX);
    let bounds = (
        Bound::Included(start.as_ref()),
        Bound::Included(end.as_ref()),
    );
    // With a compacted revision of 0 and below there is nothing to clear.
    let mut events = Vec::new();
    let mut bytes = 0;
    if record.compacted <= 0 {
        return Ok(Step { events, next: None });
    }
    let mut cursor = Rows::new(reader, bounds, Order::Ascending)?;
    while let Some((stored, row)) = cursor.next()? {
        let at = event_at(&stored)?;
        let enough = events.len() >= limits.max_clear_rows.max(1) as usize
            || bytes >= limits.max_write_bytes.max(1) as usize;
        if enough {
            return Ok(Step {
                events,
                next: Some(at),
            });
        }
        bytes += row.len();
        events.push((at, EventRow::decode(row)?));
    }
    Ok(Step { events, next: None })
}

fn clear_event(
    place: Place,
    record: &mut Record,
    (revision, position): (i64, u32),
    event: &EventRow,
    store: &mut dyn Store,
) -> Result<(), StoreError> {
    let stays = revision == record.compacted;
    let stored = place.event(revision, position);
    let replaced = event.prev_mod != 0 && !(stays && event.prev_mod == revision);
    if replaced {
        store.remove(place.version(&event.key, event.prev_mod));
        record.release(event.prev_size)?;
    }
    if !stays {
        if event.marked {
            store.remove(place.deleted(&event.key, revision));
            store.remove(place.deletion(&event.key, revision));
            record.release(sizes::marks(&event.key))?;
        }
        store.remove(stored);
        record.release(sizes::event(&event.key))?;
    } else if replaced {
        let forgetful = EventRow {
            prev_mod: 0,
            prev_size: 0,
            deleted: event.deleted,
            marked: event.marked,
            key: event.key.clone(),
        };
        store.put(stored, forgetful.encode());
    }
    Ok(())
}
