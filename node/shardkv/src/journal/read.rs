//! Reads parts of a copy at the source: base parts and pages, by one cursor.

use std::ops::Bound;

use bytes::Bytes;
use raft::StoreError;
use replica::{StateReader, Table};
use types::{LogTime, ShardId};

use super::rows::Name;
use super::{Journal, Journals};
use crate::bug::{Bug, Bugs};
use crate::clocks::{SessionClock, read_session_clock};
use crate::ownership::Fence;
use crate::pull::{Cutter, drop_oversized, no_row};
use crate::{
    CopyCursor, CopyRequest, Cursor, Genesis, JournalError, KvError, MAX_SCAN_BYTES, Ownership,
    Part, PartNext, Position, RowChange, Upto, keys, records,
};

/// The most changes of a page.
const MAX_CHANGES: usize = 16_384;
/// The most names of one read.
const MAX_NAMES: usize = 1_024;

/// Answers [`crate::Query::Copy`] from a state as of one commit, without the state machine, so that any thread can do it.
pub fn read_part(
    state: &dyn StateReader,
    request: &CopyRequest,
) -> Result<Result<Part, KvError>, StoreError> {
    let shard = request.shard;
    match Genesis::load(state)? {
        Some(genesis) => read(state, &genesis, request, Bugs::default()),
        // The node waits for its first snapshot.
        None => Ok(Err(KvError::ShardNotReady { shard })),
    }
}

/// Returns the next part of a copy. Correct on any replica that has applied what the request asks for: the journal's beginning for
/// a base part, the seal of the generation for a page. Both are read from the same state as the part.
pub(crate) fn read(
    state: &dyn StateReader,
    genesis: &Genesis,
    request: &CopyRequest,
    bugs: Bugs,
) -> Result<Result<Part, KvError>, StoreError> {
    let shard = request.shard;
    let ownership = &records::load_shard(state, genesis, shard)?;
    let journals = &Journals::load_shard(state, shard, bugs)?;
    let refused = |error| Ok(Err(KvError::Journal { shard, error }));
    let room = request.max_bytes.clamp(1, MAX_SCAN_BYTES) as usize;
    let part = |changes, next| Part {
        shard,
        copy: request.copy,
        after: request.after.clone(),
        changes,
        next,
    };
    let journal = match find(journals, ownership, request) {
        Ok(journal) => Some(journal),
        Err(KvError::Journal { .. }) if request.fence.is_some() && bugs.has(Bug::EndedCopyUsed) => {
            let (clock, ttl_ms) = (SessionClock::default(), genesis.session_ttl_ms);
            return Ok(Ok(part(Vec::new(), PartNext::Done { clock, ttl_ms })));
        }
        Err(_) if bugs.has(Bug::CopyBeginsEarly) => None,
        Err(error) => return Ok(Err(error)),
    };
    let (generation, after) = match (&request.after, journal) {
        (CopyCursor::Base(after), _) => {
            let (changes, next) = base(state, shard, after, room, bugs)?;
            let next = next.map_or(CopyCursor::page(1), CopyCursor::Base);
            return Ok(Ok(part(changes, PartNext::At(next))));
        }
        (CopyCursor::Page { generation, after }, Some(_)) => (*generation, after),
        (CopyCursor::Page { .. }, None) => {
            let journal = request.copy.journal;
            return refused(JournalError::Unknown { journal });
        }
    };
    let Some(journal) = journal else {
        let journal = request.copy.journal;
        return refused(JournalError::Unknown { journal });
    };
    if let Err(error) = check_generation(journal, generation, bugs) {
        // After the cut a copy that lacks a dropped generation can't be completed.
        let ended = JournalError::Ended {
            journal: journal.id,
        };
        let useless = matches!(error, JournalError::Dropped { .. }) && request.fence.is_some();
        return refused(if useless { ended } else { error });
    }
    let mut page = Page {
        state,
        shard,
        generation,
        room,
        changes: Vec::new(),
        bugs,
    };
    let next = match page.read(after)? {
        Err(error) => return refused(error),
        Ok(Some(after)) => PartNext::At(CopyCursor::Page { generation, after }),
        Ok(None) if generation == journal.open && journal.fence.is_some() => {
            let fenced = ownership.shards.get(&shard);
            let at = fenced.map_or(LogTime(0), |fenced| fenced.since);
            let clock = read_session_clock(state, shard, at)?;
            let ttl_ms = genesis.session_ttl_ms;
            PartNext::Done { clock, ttl_ms }
        }
        Ok(None) => PartNext::At(CopyCursor::page(generation + 1)),
    };
    Ok(Ok(part(page.changes, next)))
}

/// Returns the journal of a request's copy. A replica that has fenced the shard by the request's configuration knows for good
/// if the copy's journal lives; one that is behind knows nothing.
fn find<'a>(
    journals: &'a Journals,
    ownership: &Ownership,
    request: &CopyRequest,
) -> Result<&'a Journal, KvError> {
    let shard = request.shard;
    let refused = |error| KvError::Journal { shard, error };
    let Some(config) = request.fence else {
        return journals.of_copy(shard, request.copy).map_err(refused);
    };
    match ownership.fence(shard, config) {
        Fence::Ahead => Err(KvError::ShardNotReady { shard }),
        Fence::Past => Err(KvError::ShardGone { shard, config }),
        Fence::Here => journals.of_copy(shard, request.copy).map_err(|_| {
            let journal = request.copy.journal;
            refused(JournalError::Ended { journal })
        }),
    }
}

fn check_generation(journal: &Journal, generation: u64, bugs: Bugs) -> Result<(), JournalError> {
    if generation < journal.first {
        return Err(JournalError::Dropped { generation });
    }
    let open = bugs.has(Bug::SealNotApplied) && generation == journal.open;
    if open || journal.is_sealed(generation) {
        Ok(())
    } else {
        Err(JournalError::NotSealed { generation })
    }
}

/// Reads the rows after a cursor of the base. Returns the cursor after them; `None` if they are the last.
fn base(
    state: &dyn StateReader,
    shard: ShardId,
    after: &Cursor,
    room: usize,
    bugs: Bugs,
) -> Result<(Vec<RowChange>, Option<Cursor>), StoreError> {
    let mut cutter = Cutter::new(state, shard, room);
    // The other bugs of chunks concern pulls.
    let concerns_base = bugs.has(Bug::CopyLeavesRowsOut);
    let bugs = if concerns_base { bugs } else { Bugs::default() };
    let next = cutter.cut(after, bugs)?;
    Ok((cutter.into_changes(), next))
}

/// Gathers a page: the present rows of a generation's names, until `room` bytes are used up.
struct Page<'a> {
    state: &'a dyn StateReader,
    shard: ShardId,
    generation: u64,
    room: usize,
    changes: Vec<RowChange>,
    bugs: Bugs,
}

impl Page<'_> {
    /// Returns the position after the page; `None` if the page ends the generation.
    fn read(
        &mut self,
        after: &Position,
    ) -> Result<Result<Option<Position>, JournalError>, StoreError> {
        let mut at = after.clone();
        let mut skips = self.bugs.has(Bug::PageSkipsRow) && !at.name.is_empty();
        loop {
            if let Upto::Row(after) = &at.upto {
                let last = match Name::decode(&at.name) {
                    Some(Name::Range { start, end }) => self.read_range(start, end, after)?,
                    Some(Name::Rows(prefix)) => self.read_rows(prefix, after)?,
                    _ => return Ok(Err(JournalError::BadCursor)),
                };
                at.upto = last.map_or(Upto::End, Upto::Row);
                if self.is_full() {
                    return Ok(Ok(Some(at)));
                }
                continue;
            }
            let names = self.names(&at.name)?;
            if names.is_empty() {
                return Ok(Ok(None));
            }
            for name in names {
                at = Position {
                    name,
                    upto: Upto::End,
                };
                if std::mem::take(&mut skips) {
                    continue;
                }
                if self.read_name(&at.name)? {
                    at.upto = Upto::Row(Bytes::new());
                    break;
                }
                if self.is_full() {
                    return Ok(Ok(Some(at)));
                }
            }
        }
    }

    fn is_full(&self) -> bool {
        self.room == 0 || self.changes.len() >= MAX_CHANGES
    }

    fn use_room(&mut self, bytes: usize) {
        self.room = self.room.saturating_sub(bytes.max(1));
    }

    /// Returns the names after `after`, in order.
    fn names(&self, after: &[u8]) -> Result<Vec<Bytes>, StoreError> {
        // No name is empty, so the start is excluded like any other.
        let from = keys::journal_name(self.shard, self.generation, after);
        let end = keys::journal_name(self.shard, self.generation.saturating_add(1), &[]);
        let bounds = (
            Bound::Excluded(from.as_ref()),
            Bound::Excluded(end.as_ref()),
        );
        let stored = self
            .state
            .scan(Table::Journal, bounds, MAX_NAMES, self.room)?;
        stored
            .into_iter()
            .map(|(key, _)| keys::split_journal_name(key).ok_or_else(bad_name))
            .collect()
    }

    /// Adds the present row of a name. Returns true if the name is a range, whose pairs or rows are to follow.
    fn read_name(&mut self, name: &Bytes) -> Result<bool, StoreError> {
        let (change, bytes) = match Name::decode(name).ok_or_else(bad_name)? {
            Name::Pair(key) => {
                let value = self.state.get(Table::Data, &keys::data(self.shard, key))?;
                let bytes = value.as_ref().map_or(0, Bytes::len);
                (RowChange::Pair(name.slice_ref(key), value), bytes)
            }
            Name::Session(client) => {
                let key = keys::session(self.shard, client);
                let record = self.state.get(Table::Sessions, &key)?;
                let bytes = record.as_ref().map_or(0, Bytes::len);
                (RowChange::Session(client, record), bytes)
            }
            Name::Range { start, end } => {
                let (start, end) = (name.slice_ref(start), name.slice_ref(end));
                (RowChange::Clear { start, end }, 0)
            }
            Name::Row(key) => {
                let value = self.state.get(Table::Data, &keys::row(self.shard, key))?;
                let bytes = value.as_ref().map_or(0, Bytes::len);
                (RowChange::Row(name.slice_ref(key), value), bytes)
            }
            Name::Rows(prefix) => (RowChange::ClearRows(name.slice_ref(prefix)), 0),
        };
        let is_range = matches!(change, RowChange::Clear { .. } | RowChange::ClearRows(_));
        self.changes.push(change);
        self.use_room(name.len() + bytes);
        Ok(is_range)
    }

    /// Adds the present pairs of a cleared range after a key. Returns the last of them, unless they end the range.
    fn read_range(
        &mut self,
        start: &[u8],
        end: &[u8],
        after: &Bytes,
    ) -> Result<Option<Bytes>, StoreError> {
        if self.is_full() {
            return Ok(Some(after.clone()));
        }
        let (from, to) = keys::data_range(self.shard, start, end);
        let resumed = keys::data(self.shard, after);
        let from = if after.is_empty() {
            Bound::Included(from.as_ref())
        } else {
            Bound::Excluded(resumed.as_ref())
        };
        let limit = MAX_CHANGES.saturating_sub(self.changes.len());
        let bounds = (from, Bound::Excluded(to.as_ref()));
        let page = self.state.scan(Table::Data, bounds, limit, self.room)?;
        let count = page.len();
        let sizes = page.iter().map(|(key, value)| key.len() + value.len());
        let bytes: usize = sizes.sum();
        let whole = count < limit && bytes < self.room;
        let mut last = after.clone();
        for (stored, value) in page {
            let (_, key) = keys::split_data(stored)
                .ok_or_else(|| StoreError::Damaged("a key without a shard is stored".to_owned()))?;
            last = key.clone();
            self.changes.push(RowChange::Pair(key, Some(value)));
        }
        self.room = self.room.saturating_sub(bytes);
        Ok((!whole).then_some(last))
    }

    /// Adds the present rows whose keys begin with `prefix`, after a key. Returns the last of them, unless they are all.
    fn read_rows(&mut self, prefix: &[u8], after: &Bytes) -> Result<Option<Bytes>, StoreError> {
        if self.is_full() {
            return Ok(Some(after.clone()));
        }
        // The part has the key that it follows, too.
        self.room = self.room.saturating_sub(after.len()).max(1);
        let (start, end) = keys::rows_range(self.shard, prefix);
        let resumed = keys::row(self.shard, after);
        let from = if after.is_empty() {
            Bound::Included(start.as_ref())
        } else {
            Bound::Excluded(resumed.as_ref())
        };
        let limit = MAX_CHANGES.saturating_sub(self.changes.len());
        let bounds = (from, Bound::Excluded(end.as_ref()));
        let mut page = self.state.scan(Table::Data, bounds, limit, self.room)?;
        let sizes = page.iter().map(|(key, value)| key.len() + value.len());
        let bytes: usize = sizes.sum();
        let whole = page.len() < limit && bytes < self.room;
        drop_oversized(&mut page, self.room, self.changes.is_empty());
        let mut last = after.clone();
        for (stored, value) in page {
            let (_, key) = keys::split_row(stored).ok_or_else(no_row)?;
            last = key.clone();
            self.changes.push(RowChange::Row(key, Some(value)));
        }
        self.room = self.room.saturating_sub(bytes);
        Ok((!whole).then_some(last))
    }
}

fn bad_name() -> StoreError {
    StoreError::Damaged("a name of a journal is malformed".to_owned())
}

#[cfg(test)]
mod tests;
