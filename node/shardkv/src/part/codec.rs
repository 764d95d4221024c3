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

const ABSENT_PAIR: u8 = 0;
const PAIR: u8 = 1;
const ABSENT_SESSION: u8 = 2;
const SESSION: u8 = 3;
const CLEAR: u8 = 4;

impl Part {
    /// Encodes the part, with its checksum.
    pub fn encode(&self) -> Bytes {
        let mut out = Writer::default();
        out.byte(VERSION).number(self.shard.0.into());
        self.copy.encode(&mut out);
        encode_copy_cursor(&mut out, &self.after);
        out.number(self.changes.len() as u64);
        for change in &self.changes {
            encode_change(&mut out, change);
        }
        match &self.next {
            PartNext::At(cursor) => encode_copy_cursor(out.byte(0), cursor),
            PartNext::Done { clock, ttl_ms } => {
                clock.encode(out.byte(1));
                out.number(*ttl_ms);
            }
        }
        with_checksum(&out.finish())
    }

    /// Decodes the output of [`Part::encode`]. Keys and values share the input's memory.
    pub fn decode(input: Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(checked(input)?);
        known("part version", input.byte("part version")?, VERSION)?;
        let shard = ShardId(input.number_u32("shard")?);
        let copy = CopyId::decode(&mut input)?;
        let after = decode_copy_cursor(&mut input)?;
        // The list grows with the changes that are really present: so many as the count says would take far more memory than the input.
        let mut changes = Vec::new();
        for _ in 0..input.count("changes")? {
            changes.push(decode_change(&mut input)?);
        }
        let next = if input.flag("end of the copy")? {
            PartNext::Done {
                clock: SessionClock::decode(&mut input)?,
                ttl_ms: input.number("time to live")?,
            }
        } else {
            PartNext::At(decode_copy_cursor(&mut input)?)
        };
        input.finish()?;
        Ok(Self {
            shard,
            copy,
            after,
            changes,
            next,
        })
    }

    /// Returns the bytes of keys, values and session records.
    pub fn content_bytes(&self) -> u64 {
        let bytes = self.changes.iter().map(|change| match change {
            RowChange::Pair(key, value) => key.len() + value.as_ref().map_or(0, Bytes::len),
            RowChange::Session(_, record) => record.as_ref().map_or(0, Bytes::len),
            RowChange::Clear { start, end } => start.len() + end.len(),
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
            page(1, b"", Upto::End),
            page(1, b"\x00k", Upto::End),
            page(1, b"\x02\x00\x00", Upto::Row(Bytes::new())),
            page(1, b"\x02\x00\x00", Upto::Row(Bytes::from_static(b"k"))),
            page(1, b"\x02\x00\x00", Upto::End),
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
                RowChange::Session(client, Some(value)),
                RowChange::Session(client, None),
                RowChange::Clear {
                    start: key,
                    end: Bytes::new(),
                },
            ],
            next: PartNext::Done {
                clock: SessionClock {
                    horizon: LogTime(8),
                    time: LogTime(9),
                },
                ttl_ms: 600_000,
            },
        };
        assert_eq!(part.content_bytes(), 3 + 5 + 3 + 5 + 3);
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
