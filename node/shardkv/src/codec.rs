//! The encoding of operations in the log: clients' writes here, steps in the module `step`.
//!
//! Version and kind come first; the kind tells a write from a step. A client's write continues with a flag for the session,
//! the session if there is one, the key, and the fields of its kind.

use bytes::Bytes;
use replica::session::SessionRef;
use replica::{LOOKUP_WORK, WRITE_WORK, work_of_bytes};
use types::{DecodeError, Reader, Writer};

use crate::encoding::{VERSION, known};
use crate::upkeep::{EXPIRE, Expire};
use crate::{Command, JournalStep, Step, Write, copy, journal, keyspaces};

const PUT: u8 = 1;
const APPEND: u8 = 2;
const DELETE: u8 = 3;
const COMPARE_AND_SWAP: u8 = 4;
/// More than the work of a write beside its value: the key, the journal, and sessions that are forgotten.
const SIDE_WORK: u64 = 256;

/// An upper bound of a command's bytes beside its keys and values.
const OVERHEAD_BYTES: usize = 80;

/// The operation of a log entry.
pub(crate) enum Operation {
    /// A client's write.
    Command(Command),
    /// A step of a hand-off.
    Step(Step),
    /// A step of a journal.
    Journal(JournalStep),
    /// The upkeep of sessions and journals that nobody uses.
    Expire(Expire),
    /// An encoded operation of a keyspace.
    Keyspace(Bytes),
}

impl Operation {
    /// Decodes the output of [`Command::encode`], [`Step::encode`] and the other kinds.
    pub(crate) fn decode(input: Bytes) -> Result<Self, DecodeError> {
        if let Some(operation) = keyspaces::operation_in(&input) {
            return Ok(Self::Keyspace(operation));
        }
        match input.get(1) {
            Some(&EXPIRE) => Expire::decode(input).map(Self::Expire),
            Some(kind) if (journal::FIRST_KIND..copy::FIRST_KIND).contains(kind) => {
                JournalStep::decode(input).map(Self::Journal)
            }
            Some(kind) if *kind > COMPARE_AND_SWAP => Step::decode(input).map(Self::Step),
            _ => Command::decode(input).map(Self::Command),
        }
    }
}

impl Command {
    /// Encodes the command for a proposal.
    pub fn encode(&self) -> Bytes {
        let (kind, content) = match &self.write {
            Write::Put { value, .. } => (PUT, value.len()),
            Write::Append { suffix, .. } => (APPEND, suffix.len()),
            Write::Delete { .. } => (DELETE, 0),
            Write::CompareAndSwap { expected, new, .. } => (
                COMPARE_AND_SWAP,
                expected.as_ref().map_or(0, Bytes::len) + new.as_ref().map_or(0, Bytes::len),
            ),
        };
        let key = self.write.key();
        let mut out = Writer::with_capacity(OVERHEAD_BYTES + key.len() + content);
        out.byte(VERSION).byte(kind);
        SessionRef::encode(self.session, &mut out);
        out.bytes(key);
        match &self.write {
            Write::Put { value, .. } => {
                out.bytes(value);
            }
            Write::Append { suffix, .. } => {
                out.bytes(suffix);
            }
            Write::Delete { .. } => {}
            Write::CompareAndSwap { expected, new, .. } => {
                encode_optional(&mut out, expected.as_ref());
                encode_optional(&mut out, new.as_ref());
            }
        }
        out.finish()
    }

    /// Returns the most work of an encoded operation, beside that of its bytes: a write may read a value, or make a larger one, that
    /// isn't in the log. 0 for other operations.
    pub(crate) fn most_work(operation: &Bytes, max_value_bytes: u32) -> u64 {
        let value = work_of_bytes(max_value_bytes.into());
        let (read, write) = (LOOKUP_WORK + value, WRITE_WORK + value);
        match operation.get(1) {
            Some(&APPEND) => read + write + SIDE_WORK,
            Some(&DELETE | &COMPARE_AND_SWAP) => read + SIDE_WORK,
            _ => 0,
        }
    }

    /// Decodes the output of [`Command::encode`]. Keys and values share the input's memory.
    pub fn decode(input: Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(input);
        known(
            "operation version",
            input.byte("operation version")?,
            VERSION,
        )?;
        let kind = input.byte("operation kind")?;
        if !(PUT..=COMPARE_AND_SWAP).contains(&kind) {
            return Err(DecodeError::Unknown {
                what: "operation kind",
                value: kind.into(),
            });
        }
        let session = SessionRef::decode(&mut input)?;
        let key = input.bytes("key")?;
        let write = match kind {
            PUT => Write::Put {
                key,
                value: input.bytes("value")?,
            },
            APPEND => Write::Append {
                key,
                suffix: input.bytes("suffix")?,
            },
            DELETE => Write::Delete { key },
            _ => Write::CompareAndSwap {
                key,
                expected: decode_optional(&mut input, "expected value")?,
                new: decode_optional(&mut input, "new value")?,
            },
        };
        input.finish()?;
        Ok(Self { session, write })
    }
}

fn encode_optional(out: &mut Writer, value: Option<&Bytes>) {
    match value {
        Some(value) => out.byte(1).bytes(value),
        None => out.byte(0),
    };
}

fn decode_optional(input: &mut Reader, what: &'static str) -> Result<Option<Bytes>, DecodeError> {
    if input.flag(what)? {
        input.bytes(what).map(Some)
    } else {
        Ok(None)
    }
}
