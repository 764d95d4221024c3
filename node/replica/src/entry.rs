//! The content of a log entry: a batch of operations, with the log time and the value limit that the leader stamped. A
//! batch costs one record in the log and one message to each follower.

use bytes::Bytes;
use types::{DecodeError, LogTime, Reader, Writer, known_version};

/// The version byte of an encoded batch.
const BATCH_VERSION: u8 = 1;
/// The first byte of an encoded raise of the feature level.
const RAISE_VERSION: u8 = 2;

/// The content of one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// Operations of the state machine.
    Operations(OperationBatch),
    /// From here on, the group's entries and state may use this feature level.
    Raise(u32),
}

impl Record {
    /// Encodes the raise of the feature level to `level`.
    pub(crate) fn encode_raise(level: u32) -> Bytes {
        let mut out = Writer::with_capacity(6);
        out.byte(RAISE_VERSION).number(level.into());
        out.finish()
    }

    pub(crate) fn decode(input: Bytes) -> Result<Self, DecodeError> {
        if input.first() != Some(&RAISE_VERSION) {
            return OperationBatch::decode(input).map(Self::Operations);
        }
        let mut input = Reader::new(input);
        input.byte("record version")?;
        let level = input.number_u32("feature level")?;
        input.finish()?;
        Ok(Self::Raise(level))
    }

    /// Refuses an entry that this version, which supports feature levels up to `supported`, can't read. It reads only
    /// the first bytes, so it is cheap for large batches.
    pub(crate) fn check_readable(input: &Bytes, supported: u32) -> Result<(), DecodeError> {
        match input.first() {
            Some(&BATCH_VERSION) => Ok(()),
            Some(&RAISE_VERSION) => match Self::decode(input.clone())? {
                Self::Raise(level) if level > supported => Err(DecodeError::Unknown {
                    what: "feature level",
                    value: level.into(),
                }),
                _ => Ok(()),
            },
            Some(version) => Err(DecodeError::Unknown {
                what: "record version",
                value: (*version).into(),
            }),
            None => Err(DecodeError::Truncated("record version")),
        }
    }
}

/// The operations of one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OperationBatch {
    pub(crate) time: LogTime,
    pub(crate) max_value_bytes: u32,
    pub(crate) operations: Vec<Bytes>,
}

/// The most bytes that an operation adds to a batch beside its own.
pub(crate) const OPERATION_OVERHEAD_BYTES: usize = 5;

impl OperationBatch {
    pub(crate) fn encode(&self) -> Bytes {
        let size: usize = self
            .operations
            .iter()
            .map(|operation| operation.len() + OPERATION_OVERHEAD_BYTES)
            .sum();
        let mut out = Writer::with_capacity(size + 24);
        out.byte(BATCH_VERSION)
            .number(self.time.0)
            .number(self.max_value_bytes.into());
        out.number(self.operations.len() as u64);
        for operation in &self.operations {
            out.bytes(operation);
        }
        out.finish()
    }

    pub(crate) fn decode(input: Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(input);
        let version = input.byte("batch version")?;
        known_version("batch version", version, BATCH_VERSION)?;
        let time = LogTime(input.number("batch time")?);
        let max_value_bytes = input.number_u32("largest value")?;
        let count = input.count("operations")?;
        let operations = (0..count)
            .map(|_| input.bytes("operation"))
            .collect::<Result<_, _>>()?;
        input.finish()?;
        Ok(Self {
            time,
            max_value_bytes,
            operations,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed test should panic")]
mod tests {
    use super::*;

    #[test]
    fn what_this_version_cant_read_is_noticed_by_its_first_bytes() {
        let batch = OperationBatch {
            time: LogTime(7),
            max_value_bytes: 9,
            operations: vec![Bytes::from_static(b"x")],
        };
        let encoded = batch.encode();
        assert_eq!(Record::check_readable(&encoded, 0), Ok(()));
        assert_eq!(Record::decode(encoded).unwrap(), Record::Operations(batch));

        let raise = Record::encode_raise(2);
        assert_eq!(Record::decode(raise.clone()).unwrap(), Record::Raise(2));
        assert_eq!(Record::check_readable(&raise, 2), Ok(()));
        let unknown = |what, value| Err(DecodeError::Unknown { what, value });
        assert_eq!(
            Record::check_readable(&raise, 1),
            unknown("feature level", 2)
        );
        let newer = Bytes::from_static(&[3, 1, 1]);
        assert_eq!(
            Record::check_readable(&newer, 2),
            unknown("record version", 3)
        );
        assert!(Record::decode(newer).is_err());
        assert!(Record::check_readable(&Bytes::new(), 2).is_err());
        assert!(Record::check_readable(&raise.slice(..1), 2).is_err());
    }
}
