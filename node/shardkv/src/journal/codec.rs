//! The records of journals, and the ids of copies and the errors, which travel between source and destination.

use bytes::Bytes;
use raft::Index;
use types::{ConfigNum, DecodeError, Gid, LogTime, Reader, Writer};

use super::{CopyId, Journal, JournalError, MAX_GENERATIONS};
use crate::Target;
use crate::encoding::known;

/// The version byte of each record.
const VERSION: u8 = 1;

impl Journal {
    /// Encodes the journal, without its names, as a record.
    pub(super) fn encode(&self) -> Bytes {
        let mut out = Writer::default();
        out.byte(VERSION)
            .number(self.id.0)
            .number(self.target.to.0)
            .number(self.target.since.0)
            .number(self.first)
            .number(self.open)
            .byte(self.fence.is_some().into());
        if let Some(config) = self.fence {
            out.number(config.0);
        }
        out.number(self.renewed.0);
        for bytes in self.named.values() {
            out.number(*bytes);
        }
        out.finish()
    }

    /// Decodes the output of [`Journal::encode`].
    pub(super) fn decode(record: Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(record);
        known("record version", input.byte("record version")?, VERSION)?;
        let id = Index(input.number("journal")?);
        let target = Target {
            to: Gid(input.number("target")?),
            since: ConfigNum(input.number("configuration number")?),
        };
        let first = input.number("first generation")?;
        let open = input.number("open generation")?;
        let fence = if input.flag("fence")? {
            Some(ConfigNum(input.number("configuration number")?))
        } else {
            None
        };
        let renewed = LogTime(input.number("time of renewal")?);
        if first == 0 || open < first || open - first >= MAX_GENERATIONS {
            return Err(DecodeError::OutOfRange("generation"));
        }
        let named = (first..=open)
            .map(|generation| Ok((generation, input.number("bytes of names")?)))
            .collect::<Result<_, DecodeError>>()?;
        input.finish()?;
        Ok(Self {
            id,
            target,
            first,
            open,
            fence,
            renewed,
            named,
        })
    }
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

    #[test]
    fn records_decode_to_what_was_encoded() {
        let target = Target {
            to: Gid(7),
            since: ConfigNum(300),
        };
        for fence in [None, Some(ConfigNum(9))] {
            let journal = Journal {
                id: Index(1_000),
                target,
                first: 3,
                open: 5,
                fence,
                renewed: LogTime(8),
                named: [(3, 10), (4, 0), (5, 999)].into(),
            };
            let record = journal.encode();
            assert_eq!(Journal::decode(record.clone()), Ok(journal));
            for length in 0..record.len() {
                assert!(Journal::decode(record.slice(..length)).is_err());
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
