//! Pages of the past: events that are read from a state, for watches that a feed can't serve.

use std::sync::Arc;

use keyspace::{Event, KeyValue, Place, Refusal};
use raft::StoreError;
use replica::PairReader;

use crate::feed::Batch;
use crate::spans::Spans;

/// The bounds of a page. A page has at least one whole revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageLimits {
    /// The most events.
    pub events: usize,
    /// The most events that are visited, of all keys.
    pub visited: usize,
    /// The bytes of keys and values after which a page ends.
    pub bytes: usize,
}

/// All events from a revision through another one, as far as they were wanted.
#[derive(Debug, PartialEq, Eq)]
pub struct Page {
    /// The first revision.
    pub from: i64,
    /// The last revision of which the page has everything.
    pub through: i64,
    /// The revisions with wanted events.
    pub batches: Vec<Arc<Batch>>,
}

/// Reads the events from a revision on whose keys are in `wanted`.
pub fn read_page(
    reader: &dyn PairReader,
    place: Place,
    from: i64,
    wanted: &Spans,
    limits: PageLimits,
) -> Result<Result<Page, Refusal>, StoreError> {
    let bounds = (limits.events, limits.visited, limits.bytes);
    let mut events: Vec<Event> = Vec::new();
    let mut at = (from, 0);
    loop {
        let part = keyspace::events(reader, place, at, |key| wanted.contains(key), bounds)?;
        let part = match part {
            Ok(part) => part,
            Err(refusal) => return Ok(Err(refusal)),
        };
        events.extend(part.events);
        // A page may end amid a revision. Then that revision begins the next page.
        let through = part.next.map_or(part.revision, |(next, _)| next - 1);
        let through = through.max(from - 1);
        match part.next {
            Some(next) if through < from => at = next,
            _ => {
                events.retain(|event| event.kv.mod_revision <= through);
                let batches = by_revision(events);
                return Ok(Ok(Page {
                    from,
                    through,
                    batches,
                }));
            }
        }
    }
}

fn by_revision(events: Vec<Event>) -> Vec<Arc<Batch>> {
    let mut batches = Vec::new();
    let mut rest = events.into_iter().peekable();
    while let Some(first) = rest.next() {
        let revision = first.kv.mod_revision;
        let mut same = vec![first];
        while let Some(event) = rest.next_if(|event| event.kv.mod_revision == revision) {
            same.push(event);
        }
        batches.push(Arc::new(Batch::new(revision, same)));
    }
    batches
}

/// Reads the pairs before the first of these events, whole revisions of at most `max_bytes`; `None` if a single revision exceeds
/// that.
pub fn read_previous(
    reader: &dyn PairReader,
    place: Place,
    events: &[Event],
    max_bytes: usize,
) -> Result<Option<Vec<Option<KeyValue>>>, StoreError> {
    let mut pairs: Vec<Option<KeyValue>> = Vec::with_capacity(events.len());
    let (mut bytes, mut whole) = (0, 0);
    for (at, event) in events.iter().enumerate() {
        let before = at.checked_sub(1).and_then(|at| events.get(at));
        if before.is_some_and(|before| before.kv.mod_revision != event.kv.mod_revision) {
            whole = at;
        }
        let pair = keyspace::previous(reader, place, event)?;
        if let Some(pair) = &pair {
            bytes += pair.key.len() + pair.value.len();
        }
        pairs.push(pair);
        if bytes > max_bytes {
            pairs.truncate(whole);
            return Ok((whole > 0).then_some(pairs));
        }
    }
    Ok(Some(pairs))
}
