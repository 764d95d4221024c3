//! The records of journals.

use bytes::Bytes;
use raft::Index;
use types::{ConfigNum, DecodeError, Gid, LogTime, Reader, Writer};

use super::{Journal, MAX_GENERATIONS};
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
            let later = [&[VERSION + 1], &record[1..]].concat();
            let later = Journal::decode(later.into());
            assert!(matches!(later, Err(DecodeError::Version { .. })));
        }
    }
}
