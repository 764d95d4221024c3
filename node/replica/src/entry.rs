//! The content of a log entry: a batch of operations, with the log time and the value limit that the leader stamped. A
//! batch costs one record in the log and one message to each follower.

use bytes::Bytes;
use types::{DecodeError, LogTime, Reader, Writer};

/// The version byte of an encoded batch.
const BATCH_VERSION: u8 = 1;

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
        if version != BATCH_VERSION {
            return Err(DecodeError::Unknown {
                what: "batch version",
                value: version.into(),
            });
        }
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
