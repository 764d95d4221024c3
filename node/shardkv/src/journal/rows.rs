//! Changes of rows: the only way by which the machine changes what a served shard has, so that none is forgotten in the journal.

use bytes::{BufMut, Bytes, BytesMut};
use raft::StoreError;
use replica::{Bounds, Cursor, Order, PairReader, Table, Transaction};
use types::{ClientId, LogTime, ShardId};

use super::Journals;
use crate::bug::Bug;
use crate::{MAX_KEY_BYTES, keys};

const PAIR: u8 = 0;
const SESSION: u8 = 1;
const RANGE: u8 = 2;
const ROW: u8 = 3;
const ROWS: u8 = 4;

/// The most bytes of a row's key that a journal names. A longer key is named by its first bytes, so the page has all rows that begin with
/// these. Real keys are far shorter; the limit keeps a journal from holding megabytes for each change.
pub(crate) const MAX_NAMED_ROW_BYTES: usize = 16 << 10;

/// A transaction over the rows of one shard. Each change is named in the shard's journal, in the same batch.
pub(crate) struct Rows<'a, 'state> {
    shard: ShardId,
    journals: &'a mut Journals,
    state: &'a mut Transaction<'state>,
}

impl<'a, 'state> Rows<'a, 'state> {
    pub(crate) fn new(
        shard: ShardId,
        journals: &'a mut Journals,
        state: &'a mut Transaction<'state>,
    ) -> Self {
        Self {
            shard,
            journals,
            state,
        }
    }

    /// Returns the value of a user's key.
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.state.get(Table::Data, &keys::data(self.shard, key))
    }

    /// Sets a user's key.
    pub(crate) fn put(&mut self, key: &[u8], value: Bytes) {
        self.state
            .put(Table::Data, keys::data(self.shard, key), value);
        self.name(&Name::Pair(key));
    }

    /// Removes a user's key.
    pub(crate) fn remove(&mut self, key: &[u8]) {
        self.state.remove(Table::Data, keys::data(self.shard, key));
        if !self.journals.bugs.has(Bug::JournalMissesDeletes) {
            self.name(&Name::Pair(key));
        }
    }

    /// Removes the users' keys of `[start, end)` at once; an empty `end` is the shard's end.
    pub(crate) fn clear(&mut self, start: &[u8], end: &[u8]) {
        let (from, to) = keys::data_range(self.shard, start, end);
        if from >= to {
            return;
        }
        self.state.clear(Table::Data, from, to);
        if !self.journals.bugs.has(Bug::JournalMissesRangeClears) {
            self.name(&Name::Range { start, end });
        }
    }

    /// Sets a row of a keyspace of this shard. `stored` is its whole key in `Data`.
    pub(crate) fn put_row(&mut self, stored: Bytes, value: Bytes) {
        self.name_row(&stored);
        self.state.put(Table::Data, stored, value);
    }

    /// Removes a row of a keyspace of this shard. `stored` is its whole key in `Data`.
    pub(crate) fn remove_row(&mut self, stored: Bytes) {
        self.name_row(&stored);
        self.state.remove(Table::Data, stored);
    }

    fn name_row(&mut self, stored: &Bytes) {
        let row = keys::split_row(stored.clone());
        debug_assert!(
            row.as_ref().is_some_and(|(shard, _)| *shard == self.shard),
            "a row of another shard"
        );
        if self.journals.bugs.has(Bug::JournalMissesRows) {
            return;
        }
        if let Some((_, rest)) = row {
            self.name(&Name::of_row(&rest));
        }
    }

    /// Names a session whose record the entry changes or removes. The record itself is written at the end of the batch.
    pub(crate) fn name_session(&mut self, client: ClientId) {
        if !self.journals.bugs.has(Bug::JournalNamesSessionsLate) {
            self.name(&Name::Session(client));
        }
    }

    fn name(&mut self, name: &Name<'_>) {
        self.journals.name(self.shard, name, self.state);
    }
}

/// Reads the state with the changes of the batch.
impl PairReader for Rows<'_, '_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.state.get(table, key)
    }

    fn cursor(
        &self,
        table: Table,
        bounds: Bounds<'_>,
        order: Order,
    ) -> Result<Box<dyn Cursor + '_>, StoreError> {
        self.state.cursor(table, bounds, order)
    }
}

/// The name of a change in a journal: a pair, a session, a row of a keyspace, or a cleared range of pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name<'a> {
    Pair(&'a [u8]),
    Session(ClientId),
    Range {
        start: &'a [u8],
        end: &'a [u8],
    },
    /// A row of a keyspace, by its key after the shard.
    Row(&'a [u8]),
    /// The rows whose keys, after the shard, are longer than [`MAX_NAMED_ROW_BYTES`] and begin with these bytes.
    Rows(&'a [u8]),
}

impl<'a> Name<'a> {
    /// Returns the name of a row, whose key after the shard is `rest`.
    pub(crate) fn of_row(rest: &'a [u8]) -> Self {
        match rest.get(..MAX_NAMED_ROW_BYTES) {
            Some(prefix) if rest.len() > prefix.len() => Self::Rows(prefix),
            _ => Self::Row(rest),
        }
    }

    /// Encodes the name as the last part of a stored key. Different names differ; none is empty.
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        match self {
            Self::Pair(key) => {
                out.put_u8(PAIR);
                out.put_slice(key);
            }
            Self::Session(client) => {
                out.put_u8(SESSION);
                out.put_u64(client.birth.0);
                out.put_u64(client.nonce);
            }
            Self::Range { start, end } => {
                out.put_u8(RANGE);
                // The caller checked that bounds are at most a byte longer than the longest key.
                out.put_u16(u16::try_from(start.len()).unwrap_or(u16::MAX));
                out.put_slice(start);
                out.put_slice(end);
            }
            Self::Row(rest) => {
                out.put_u8(ROW);
                out.put_slice(rest);
            }
            Self::Rows(prefix) => {
                out.put_u8(ROWS);
                out.put_slice(prefix);
            }
        }
        out.freeze()
    }

    /// Decodes the output of [`Name::encode`]; `None` for anything else.
    pub(crate) fn decode(name: &'a [u8]) -> Option<Self> {
        let (tag, rest) = name.split_first()?;
        match *tag {
            PAIR if (1..=MAX_KEY_BYTES).contains(&rest.len()) => Some(Self::Pair(rest)),
            SESSION => {
                let (birth, rest) = rest.split_first_chunk()?;
                Some(Self::Session(ClientId {
                    birth: LogTime(u64::from_be_bytes(*birth)),
                    nonce: u64::from_be_bytes(rest.try_into().ok()?),
                }))
            }
            RANGE => {
                let (length, rest) = rest.split_first_chunk()?;
                let (start, end) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
                Some(Self::Range { start, end })
            }
            ROW if (1..=MAX_NAMED_ROW_BYTES).contains(&rest.len()) => Some(Self::Row(rest)),
            ROWS if rest.len() == MAX_NAMED_ROW_BYTES => Some(Self::Rows(rest)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_decode_to_what_was_encoded() {
        let client = ClientId {
            birth: LogTime(3),
            nonce: u64::MAX,
        };
        let longest = vec![7; MAX_NAMED_ROW_BYTES];
        let longer = vec![7; MAX_NAMED_ROW_BYTES + 1];
        assert_eq!(Name::of_row(b"r"), Name::Row(b"r"));
        assert_eq!(Name::of_row(&longest), Name::Row(&longest));
        assert_eq!(Name::of_row(&longer), Name::Rows(&longest));
        for name in [
            Name::of_row(b"r"),
            Name::of_row(&longest),
            Name::of_row(&longer),
            Name::Pair(b"k"),
            Name::Session(client),
            Name::Range {
                start: b"",
                end: b"",
            },
            Name::Range {
                start: b"ab",
                end: b"b",
            },
        ] {
            assert_eq!(Name::decode(&name.encode()), Some(name));
        }
        for nonsense in [
            &b""[..],
            b"\x00",
            b"\x01short",
            b"\x02",
            b"\x02\x00\x09a",
            b"\x03",
            b"\x04short",
            b"\x07a",
        ] {
            assert_eq!(Name::decode(nonsense), None);
        }
    }
}
