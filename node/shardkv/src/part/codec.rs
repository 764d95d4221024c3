//! The encoding of parts, of their cursors and of the errors, which travel between groups. A part ends with a checksum over all before it, as a
//! chunk does.

use bytes::Bytes;
use raft::Index;
use types::{ClientId, ConfigNum, DecodeError, Gid, Reader, ShardId, Writer};

use super::{CopyCursor, CopyId, JournalError, Part, PartNext, Position, RowChange, Upto};
use crate::cursor::{decode_cursor, encode_cursor};
use crate::encoding::{checked, known, with_checksum};
use crate::{SessionClock, Target};

const VERSION: u8 = 2;
/// The version of a part with users or roles of a keyspace, or the record of one that has some. Older versions refuse it.
const AUTH_VERSION: u8 = 3;

const ABSENT_PAIR: u8 = 0;
const PAIR: u8 = 1;
const ABSENT_SESSION: u8 = 2;
const SESSION: u8 = 3;
const CLEAR: u8 = 4;
const ABSENT_ROW: u8 = 5;
const ROW: u8 = 6;
const CLEAR_ROWS: u8 = 7;

/// The kinds of continuations.
const CURSOR: u8 = 0;
const DONE: u8 = 1;
/// The cursor at the part's last change, a row of a keyspace whose key may be long.
const AT_LAST_ROW: u8 = 2;

impl Part {
    /// Encodes the part, with its checksum.
    pub fn encode(&self) -> Bytes {
        let mut out = Writer::default();
        let has_auth = self.has_auth();
        out.byte(if has_auth { AUTH_VERSION } else { VERSION });
        out.number(self.shard.0.into());
        self.copy.encode(&mut out);
        encode_copy_cursor(&mut out, &self.after);
        out.number(self.changes.len() as u64);
        for change in &self.changes {
            encode_change(&mut out, change);
        }
        match &self.next {
            PartNext::At(cursor) if self.at_last_row().as_ref() == Some(cursor) => {
                out.byte(AT_LAST_ROW);
            }
            PartNext::At(cursor) => encode_copy_cursor(out.byte(CURSOR), cursor),
            PartNext::Done { clock, ttl_ms } => {
                clock.encode(out.byte(DONE));
                out.number(*ttl_ms);
            }
        }
        with_checksum(&out.finish())
    }

    /// Decodes the output of [`Part::encode`]. Keys and values share the input's memory.
    pub fn decode(input: Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(checked(input)?);
        match input.byte("part version")? {
            AUTH_VERSION => {}
            version => known("part version", version, VERSION)?,
        }
        let shard = ShardId(input.number_u32("shard")?);
        let copy = CopyId::decode(&mut input)?;
        let after = decode_copy_cursor(&mut input)?;
        // The list grows with the changes that are really present: so many as the count says would take far more memory than the input.
        let mut changes = Vec::new();
        for _ in 0..input.count("changes")? {
            changes.push(decode_change(&mut input)?);
        }
        let mut part = Self {
            shard,
            copy,
            after,
            changes,
            next: PartNext::At(CopyCursor::default()),
        };
        part.next = part.decode_next(&mut input)?;
        input.finish()?;
        Ok(part)
    }

    /// Decodes the continuation of a part of which all else is known.
    fn decode_next(&self, input: &mut Reader) -> Result<PartNext, DecodeError> {
        Ok(match input.byte("end of the copy")? {
            CURSOR => PartNext::At(decode_copy_cursor(input)?),
            DONE => PartNext::Done {
                clock: SessionClock::decode(input)?,
                ttl_ms: input.number("time to live")?,
            },
            AT_LAST_ROW => {
                let last = self.at_last_row();
                PartNext::At(last.ok_or(DecodeError::OutOfRange("end of the copy"))?)
            }
            value => {
                return Err(DecodeError::Unknown {
                    what: "end of the copy",
                    value: value.into(),
                });
            }
        })
    }

    /// Returns the bytes of keys, values and session records.
    pub fn content_bytes(&self) -> u64 {
        let bytes = self.changes.iter().map(|change| match change {
            RowChange::Pair(key, value) | RowChange::Row(key, value) => {
                key.len() + value.as_ref().map_or(0, Bytes::len)
            }
            RowChange::Session(_, record) => record.as_ref().map_or(0, Bytes::len),
            RowChange::Clear { start, end } => start.len() + end.len(),
            RowChange::ClearRows(prefix) => prefix.len(),
        });
        bytes.sum::<usize>() as u64
    }
}

impl CopyCursor {
    /// Encodes the cursor.
    pub fn encode(&self) -> Bytes {
        let mut out = Writer::default();
        out.byte(VERSION);
        encode_copy_cursor(&mut out, self);
        out.finish()
    }

    /// Decodes the output of [`CopyCursor::encode`].
    pub fn decode(input: Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(input);
        known("cursor version", input.byte("cursor version")?, VERSION)?;
        let cursor = decode_copy_cursor(&mut input)?;
        input.finish()?;
        Ok(cursor)
    }
}

pub(crate) fn encode_copy_cursor(out: &mut Writer, cursor: &CopyCursor) {
    match cursor {
        CopyCursor::Base(cursor) => encode_cursor(out.byte(0), cursor),
        CopyCursor::Page { generation, after } => {
            out.byte(1).number(*generation).bytes(&after.name);
            match &after.upto {
                Upto::Row(key) => out.byte(0).bytes(key),
                Upto::End => out.byte(1),
            };
        }
    }
}

pub(crate) fn decode_copy_cursor(input: &mut Reader) -> Result<CopyCursor, DecodeError> {
    if !input.flag("kind of cursor")? {
        return decode_cursor(input).map(CopyCursor::Base);
    }
    let generation = input.number("generation")?;
    let name = input.bytes("name")?;
    let upto = if input.flag("end of the name")? {
        Upto::End
    } else {
        Upto::Row(input.bytes("key")?)
    };
    let after = Position { name, upto };
    Ok(CopyCursor::Page { generation, after })
}

fn encode_change(out: &mut Writer, change: &RowChange) {
    match change {
        RowChange::Pair(key, None) => {
            out.byte(ABSENT_PAIR).bytes(key);
        }
        RowChange::Pair(key, Some(value)) => {
            out.byte(PAIR).bytes(key).bytes(value);
        }
        RowChange::Session(client, None) => client.encode(out.byte(ABSENT_SESSION)),
        RowChange::Session(client, Some(record)) => {
            client.encode(out.byte(SESSION));
            out.bytes(record);
        }
        RowChange::Clear { start, end } => {
            out.byte(CLEAR).bytes(start).bytes(end);
        }
        RowChange::Row(key, None) => {
            out.byte(ABSENT_ROW).bytes(key);
        }
        RowChange::Row(key, Some(value)) => {
            out.byte(ROW).bytes(key).bytes(value);
        }
        RowChange::ClearRows(prefix) => {
            out.byte(CLEAR_ROWS).bytes(prefix);
        }
    }
}

fn decode_change(input: &mut Reader) -> Result<RowChange, DecodeError> {
    Ok(match input.byte("change")? {
        ABSENT_PAIR => RowChange::Pair(input.bytes("key")?, None),
        PAIR => RowChange::Pair(input.bytes("key")?, Some(input.bytes("value")?)),
        ABSENT_SESSION => RowChange::Session(ClientId::decode(input)?, None),
        SESSION => RowChange::Session(ClientId::decode(input)?, Some(input.bytes("session")?)),
        CLEAR => RowChange::Clear {
            start: input.bytes("start")?,
            end: input.bytes("end")?,
        },
        ABSENT_ROW => RowChange::Row(input.bytes("row")?, None),
        ROW => RowChange::Row(input.bytes("row")?, Some(input.bytes("value")?)),
        CLEAR_ROWS => RowChange::ClearRows(input.bytes("rows")?),
        value => {
            return Err(DecodeError::Unknown {
                what: "change",
                value: value.into(),
            });
        }
    })
}

impl CopyId {
    /// Encodes the id as a part of a record.
    pub(crate) fn encode(self, out: &mut Writer) {
        out.number(self.since.0).number(self.journal.0);
    }

    /// Decodes the output of [`CopyId::encode`].
    pub(crate) fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            since: ConfigNum(input.number("target")?),
            journal: Index(input.number("journal")?),
        })
    }
}

const OTHER_TARGET: u8 = 0;
const NO_TARGET: u8 = 1;
const TOO_MANY_JOURNALS: u8 = 2;
const TOO_MANY_GENERATIONS: u8 = 3;
const UNKNOWN: u8 = 4;
const ENDED: u8 = 5;
const NOT_SEALED: u8 = 6;
const DROPPED: u8 = 7;
const BAD_CURSOR: u8 = 8;

impl JournalError {
    /// Encodes the error for the destination.
    pub fn encode(&self) -> Bytes {
        let (kind, first, second) = match *self {
            Self::OtherTarget {
                accepted: Some(Target { to, since }),
            } => (OTHER_TARGET, to.0, since.0),
            Self::OtherTarget { accepted: None } => (NO_TARGET, 0, 0),
            Self::TooManyJournals { limit } => (TOO_MANY_JOURNALS, limit as u64, 0),
            Self::TooManyGenerations { limit } => (TOO_MANY_GENERATIONS, limit, 0),
            Self::Unknown { journal } => (UNKNOWN, journal.0, 0),
            Self::Ended { journal } => (ENDED, journal.0, 0),
            Self::NotSealed { generation } => (NOT_SEALED, generation, 0),
            Self::Dropped { generation } => (DROPPED, generation, 0),
            Self::BadCursor => (BAD_CURSOR, 0, 0),
        };
        let mut out = Writer::default();
        out.byte(VERSION).byte(kind).number(first).number(second);
        out.finish()
    }

    /// Decodes the output of [`JournalError::encode`].
    pub fn decode(input: Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(input);
        known("error version", input.byte("error version")?, VERSION)?;
        let kind = input.byte("kind of error")?;
        let first = input.number("number of an error")?;
        let second = input.number("number of an error")?;
        input.finish()?;
        let (journal, generation) = (Index(first), first);
        Ok(match kind {
            OTHER_TARGET => Self::OtherTarget {
                accepted: Some(Target {
                    to: Gid(first),
                    since: ConfigNum(second),
                }),
            },
            NO_TARGET => Self::OtherTarget { accepted: None },
            TOO_MANY_JOURNALS => Self::TooManyJournals {
                limit: usize::try_from(first).map_err(|_| DecodeError::OutOfRange("limit"))?,
            },
            TOO_MANY_GENERATIONS => Self::TooManyGenerations { limit: first },
            UNKNOWN => Self::Unknown { journal },
            ENDED => Self::Ended { journal },
            NOT_SEALED => Self::NotSealed { generation },
            DROPPED => Self::Dropped { generation },
            BAD_CURSOR => Self::BadCursor,
            value => {
                return Err(DecodeError::Unknown {
                    what: "kind of error",
                    value: value.into(),
                });
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::LogTime;

    use crate::Cursor;
    use crate::journal::Name;

    fn cursors() -> Vec<CopyCursor> {
        let client = ClientId {
            birth: LogTime(300),
            nonce: u64::MAX,
        };
        let page = |generation, name: &'static [u8], upto| CopyCursor::Page {
            generation,
            after: Position {
                name: Bytes::from_static(name),
                upto,
            },
        };
        vec![
            CopyCursor::default(),
            CopyCursor::Base(Cursor::Data(Bytes::from_static(b"k"))),
            CopyCursor::Base(Cursor::Sessions(None)),
            CopyCursor::Base(Cursor::Sessions(Some(client))),
            CopyCursor::Base(Cursor::Rows(Bytes::from_static(b"r"))),
            page(1, b"", Upto::End),
            page(1, b"\x00k", Upto::End),
            page(1, b"\x02\x00\x00", Upto::Row(Bytes::new())),
            page(1, b"\x02\x00\x00", Upto::Row(Bytes::from_static(b"k"))),
            page(1, b"\x02\x00\x00", Upto::End),
            page(1, b"\x03r", Upto::End),
            page(2, b"", Upto::End),
        ]
    }

    #[test]
    fn cursors_are_ordered_as_parts_are_sent_and_decode() {
        assert!(cursors().is_sorted());
        for cursor in cursors() {
            assert_eq!(CopyCursor::decode(cursor.encode()), Ok(cursor));
        }
    }

    #[test]
    fn parts_decode_to_what_was_encoded_and_damage_is_found() {
        let client = ClientId {
            birth: LogTime(300),
            nonce: 9,
        };
        let (key, value) = (Bytes::from_static(b"key"), Bytes::from_static(b"value"));
        let mut part = Part {
            shard: ShardId(300),
            copy: CopyId {
                since: ConfigNum(300),
                journal: Index(70_000),
            },
            after: CopyCursor::default(),
            changes: vec![
                RowChange::Pair(key.clone(), Some(value.clone())),
                RowChange::Pair(key.clone(), None),
                RowChange::Session(client, Some(value.clone())),
                RowChange::Session(client, None),
                RowChange::Clear {
                    start: key.clone(),
                    end: Bytes::new(),
                },
                RowChange::ClearRows(key.clone()),
                RowChange::Row(key.clone(), Some(value)),
                RowChange::Row(key, None),
            ],
            next: PartNext::Done {
                clock: SessionClock {
                    horizon: LogTime(8),
                    time: LogTime(9),
                },
                ttl_ms: 600_000,
            },
        };
        assert_eq!(part.content_bytes(), 2 * (3 + 5 + 3) + 5 + 3 + 3);
        assert_eq!(Part::decode(part.encode()), Ok(part.clone()));
        for cursor in cursors() {
            part.next = PartNext::At(cursor.clone());
            part.after = cursor;
            let encoded = part.encode();
            assert_eq!(Part::decode(encoded.clone()), Ok(part.clone()));
            for at in 0..encoded.len() {
                assert!(Part::decode(encoded.slice(..at)).is_err());
                let mut damaged = encoded.to_vec();
                damaged[at] ^= 1;
                assert!(Part::decode(damaged.into()).is_err());
            }
        }
    }

    fn part_of(after: CopyCursor, changes: Vec<RowChange>, next: CopyCursor) -> Part {
        Part {
            shard: ShardId(3),
            copy: CopyId {
                since: ConfigNum(4),
                journal: Index(5),
            },
            after,
            changes,
            next: PartNext::At(next),
        }
    }

    /// Groups of older versions take what has no rows of keyspaces.
    #[test]
    fn parts_without_rows_are_encoded_as_ever() {
        let pair = RowChange::Pair(Bytes::from_static(b"k"), Some(Bytes::from_static(b"v")));
        let next = CopyCursor::Base(Cursor::Data(Bytes::from_static(b"k")));
        let part = part_of(CopyCursor::default(), vec![pair], next);
        let expected = b"\x02\x03\x04\x05\0\0\0\x01\x01\x01k\x01v\0\0\0\x01k";
        let expected = with_checksum(&Bytes::from_static(expected));
        assert_eq!(part.encode(), expected);
        assert!(!part.has_rows());
    }

    /// A row's key may have megabytes, and an entry of the log holds few of them.
    #[test]
    fn a_part_has_the_key_of_its_last_row_once() {
        let key = Bytes::from(vec![7; 100_000]);
        let row = RowChange::Row(key.clone(), Some(Bytes::new()));
        let base = |key| CopyCursor::Base(Cursor::Rows(key));
        let page = |key: &Bytes| CopyCursor::Page {
            generation: 9,
            after: Position {
                name: Name::of_row(key).encode(),
                upto: Upto::Row(key.clone()),
            },
        };
        let first = Bytes::from_static(b"a");
        for part in [
            part_of(base(first.clone()), vec![row.clone()], base(key.clone())),
            part_of(CopyCursor::page(9), vec![row.clone()], page(&key)),
        ] {
            let encoded = part.encode();
            assert!(encoded.len() < 100_100, "{}", encoded.len());
            assert_eq!(Part::decode(encoded), Ok(part.clone()));
            assert!(part.has_rows());
        }
        // Another cursor is told.
        let other = part_of(base(first.clone()), vec![row], base(first));
        assert_eq!(Part::decode(other.encode()), Ok(other));
        let nothing = part_of(CopyCursor::default(), vec![], CopyCursor::default());
        let mut damaged = nothing.encode().to_vec();
        // The continuation and the checksum have four bytes each.
        damaged.truncate(damaged.len() - 8);
        damaged.push(AT_LAST_ROW);
        let damaged = with_checksum(&damaged.into());
        assert_eq!(
            Part::decode(damaged),
            Err(DecodeError::OutOfRange("end of the copy"))
        );
    }

    #[test]
    fn errors_decode_to_what_was_encoded() {
        let journal = Index(300);
        let generation = 70_000;
        let to = Gid(7);
        let since = ConfigNum(9);
        for error in [
            JournalError::OtherTarget {
                accepted: Some(Target { to, since }),
            },
            JournalError::OtherTarget { accepted: None },
            JournalError::TooManyJournals { limit: 1_024 },
            JournalError::TooManyGenerations { limit: 64 },
            JournalError::Unknown { journal },
            JournalError::Ended { journal },
            JournalError::NotSealed { generation },
            JournalError::Dropped { generation },
            JournalError::BadCursor,
        ] {
            let encoded = error.encode();
            assert_eq!(JournalError::decode(encoded.clone()), Ok(error));
            for at in 0..encoded.len() {
                assert!(JournalError::decode(encoded.slice(..at)).is_err());
            }
        }
    }
}
