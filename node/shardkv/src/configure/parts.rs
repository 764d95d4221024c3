//! The parts of a [`Configure`] that is too large for one entry of the log.
//!
//! A step to a configuration of a million shards may be many times as large as an entry. Then its encoding is cut into parts, each in an
//! entry of its own. Parts only gather. The last one judges and carries out the whole step, as if it had come in one entry. Parts of
//! another step, for example of a new leader's, begin anew. A part that doesn't follow the last one changes nothing.

use std::sync::Arc;

use bytes::Bytes;
use types::{ConfigNum, DecodeError, Reader, Writer};

use super::Configure;
use crate::Ownership;
use crate::change::{Changed, Verdict, due_if, nonsense};
use crate::encoding::known;

const VERSION: u8 = 1;
/// The most bytes of a step. The largest that controllers can ask for has about 64 MiB.
const MAX_BYTES: usize = 256 << 20;

/// Names a step that comes in parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Whole {
    /// The configuration that the group must have accepted before.
    pub after: ConfigNum,
    /// The configuration.
    pub num: ConfigNum,
    /// The number of parts.
    pub count: u32,
    /// The most bytes of a part: two leaders may have different options.
    pub part_bytes: u32,
    /// A checksum over all of them: two leaders may make different steps with the same numbers.
    pub checksum: u32,
}

/// A part of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigurePart {
    /// The step.
    pub whole: Whole,
    /// The number of the part, from 0 on.
    pub index: u32,
    /// Its share of the encoded step.
    pub bytes: Bytes,
}

/// The parts of a step that have arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigureParts {
    /// The step.
    pub whole: Whole,
    /// The shares of the parts, in order from the first on.
    pub shares: Vec<Bytes>,
}

impl ConfigurePart {
    /// Cuts a step into parts of at most `max_bytes`; `None` if it has no more bytes than that.
    pub fn cut(step: &Configure, max_bytes: usize) -> Option<Vec<Self>> {
        if step.bytes_at_most() <= max_bytes {
            return None;
        }
        let mut out = Writer::default();
        step.encode(&mut out);
        let encoded = out.finish();
        if encoded.len() <= max_bytes {
            return None;
        }
        let max_bytes = max_bytes.max(1);
        let whole = Whole {
            after: step.after,
            num: step.num,
            count: u32::try_from(encoded.len().div_ceil(max_bytes)).ok()?,
            part_bytes: u32::try_from(max_bytes).unwrap_or(u32::MAX),
            checksum: crc32fast::hash(&encoded),
        };
        let starts = (0..encoded.len()).step_by(max_bytes);
        let parts = (0..).zip(starts).map(|(index, start)| Self {
            whole,
            index,
            bytes: encoded.slice(start..encoded.len().min(start + max_bytes)),
        });
        Some(parts.collect())
    }

    /// Encodes the part's fields.
    pub(crate) fn encode(&self, out: &mut Writer) {
        self.whole.encode(out);
        out.number(self.index.into()).bytes(&self.bytes);
    }

    /// Decodes the output of [`ConfigurePart::encode`].
    pub(crate) fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let part = Self {
            whole: Whole::decode(input)?,
            index: input.number_u32("part")?,
            bytes: input.bytes("part")?,
        };
        if part.index >= part.whole.count || part.bytes.is_empty() {
            return Err(DecodeError::OutOfRange("part"));
        }
        Ok(part)
    }

    fn is_last(&self) -> bool {
        self.index + 1 == self.whole.count
    }
}

impl Whole {
    fn encode(&self, out: &mut Writer) {
        out.number(self.after.0)
            .number(self.num.0)
            .number(self.count.into())
            .number(self.part_bytes.into())
            .number(self.checksum.into());
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            after: ConfigNum(input.number("configuration before")?),
            num: ConfigNum(input.number("configuration number")?),
            count: input.number_u32("parts")?,
            part_bytes: input.number_u32("size of a part")?,
            checksum: input.number_u32("checksum")?,
        })
    }
}

impl ConfigureParts {
    /// Encodes the head of the record: all but the shares, which have records of their own.
    pub(crate) fn encode_head(&self) -> Bytes {
        let mut out = Writer::default();
        out.byte(VERSION);
        self.whole.encode(&mut out);
        out.number(self.shares.len() as u64);
        out.finish()
    }

    /// Decodes the output of [`Self::encode_head`]. Returns the number of shares, too, which are yet to be read.
    pub(crate) fn decode_head(record: Bytes) -> Result<(Self, u32), DecodeError> {
        let mut input = Reader::new(record);
        known("record version", input.byte("record version")?, VERSION)?;
        let whole = Whole::decode(&mut input)?;
        let arrived = input.number_u32("parts")?;
        input.finish()?;
        if arrived == 0 || arrived >= whole.count {
            return Err(DecodeError::OutOfRange("parts"));
        }
        let shares = Vec::new();
        Ok((Self { whole, shares }, arrived))
    }

    /// Returns the number of parts that have arrived.
    pub fn arrived(&self) -> u32 {
        u32::try_from(self.shares.len()).unwrap_or(u32::MAX)
    }

    fn bytes(&self) -> usize {
        self.shares.iter().map(Bytes::len).sum()
    }
}

impl Ownership {
    /// Returns the parts of a step that have arrived.
    pub fn arrived_parts(&self, whole: Whole) -> u32 {
        let parts = self.parts.as_ref().filter(|parts| parts.whole == whole);
        parts.map_or(0, |parts| parts.arrived())
    }

    /// Returns true if the group may take the step now. The first step may lead from configuration 0 to configuration 0.
    pub fn awaits(&self, whole: Whole) -> bool {
        let is_later = self.controller.is_none() || whole.num > self.config;
        is_later && whole.after == self.config
    }

    /// Judges a part. The last one is due if the whole step is.
    pub(crate) fn judge_part_of_configure(
        &self,
        part: &ConfigurePart,
        judge: impl FnOnce(&Configure) -> Verdict,
    ) -> Verdict {
        let arrived = self.arrived_parts(part.whole);
        if !self.awaits(part.whole) || part.index != arrived {
            return Verdict::Idle;
        }
        let before = self.parts.as_ref().filter(|_| arrived > 0);
        if before.map_or(0, |parts| parts.bytes()) + part.bytes.len() > MAX_BYTES {
            return nonsense("a step to a configuration has too many parts");
        }
        if !part.is_last() {
            return due_if(true);
        }
        match self.assemble(part) {
            Ok(step) => judge(&step),
            Err(error) => nonsense(&error.to_string()),
        }
    }

    /// Takes a part that is due. Returns the whole step if this was the last part.
    pub(crate) fn take_part_of_configure(
        &mut self,
        part: &ConfigurePart,
        changed: &mut Changed,
    ) -> Option<Configure> {
        if part.is_last() {
            return self.assemble(part).ok();
        }
        if part.index == 0 {
            self.drop_parts(changed);
        }
        let whole = part.whole;
        let begun = || {
            Arc::new(ConfigureParts {
                whole,
                shares: Vec::new(),
            })
        };
        let parts = Arc::make_mut(self.parts.get_or_insert_with(begun));
        parts.shares.push(part.bytes.clone());
        changed.parts = true;
        None
    }

    /// Forgets the parts of a step, because the group has taken one.
    pub(crate) fn drop_parts(&mut self, changed: &mut Changed) {
        if let Some(parts) = self.parts.take() {
            changed.parts = true;
            changed.parts_gone = parts.arrived();
        }
    }

    /// Returns the step of which all parts but this last one have arrived.
    fn assemble(&self, last: &ConfigurePart) -> Result<Configure, DecodeError> {
        let parts = self.parts.as_ref().filter(|_| last.index > 0);
        let shares = parts.map_or(&[][..], |parts| &parts.shares);
        let mut encoded = shares.concat();
        encoded.extend_from_slice(&last.bytes);
        if crc32fast::hash(&encoded) != last.whole.checksum {
            return Err(DecodeError::OutOfRange("checksum"));
        }
        let mut input = Reader::new(encoded.into());
        let step = Configure::decode(&mut input)?;
        input.finish()?;
        if (step.after, step.num) != (last.whole.after, last.whole.num) {
            return Err(DecodeError::OutOfRange("configuration number"));
        }
        Ok(step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The share that makes the step as large as it may be, and one that has a byte more.
    #[test]
    fn a_step_has_a_most_number_of_bytes() {
        const SHARE: usize = 1 << 20;
        let shares = MAX_BYTES / SHARE;
        let whole = Whole {
            after: ConfigNum(0),
            num: ConfigNum(1),
            count: u32::MAX,
            part_bytes: 1,
            checksum: 0,
        };
        let share = Bytes::from(vec![0; SHARE + 1]);
        let parts = ConfigureParts {
            whole,
            shares: vec![share.slice(1..); shares - 1],
        };
        let ownership = Ownership {
            parts: Some(Arc::new(parts)),
            ..Ownership::default()
        };
        let judge = |bytes: usize| {
            let part = ConfigurePart {
                whole,
                index: ownership.arrived_parts(whole),
                bytes: share.slice(..bytes),
            };
            ownership.judge_part_of_configure(&part, |_| panic!("it isn't the last"))
        };
        assert_eq!(judge(SHARE - 1), Verdict::Due);
        assert_eq!(judge(SHARE), Verdict::Due);
        assert!(matches!(judge(SHARE + 1), Verdict::Refused(_)));
    }
}
