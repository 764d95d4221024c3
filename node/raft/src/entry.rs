//! Log entries and their encoding.

use bytes::Bytes;
use types::{DecodeError, Reader, Writer, known_version};

use crate::{EntryId, Index, Membership, Term};

/// The version byte of an encoded payload.
const PAYLOAD_VERSION: u8 = 1;

/// One entry of the replicated log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The term and index, which identify the entry.
    pub id: EntryId,
    /// The content.
    pub payload: Payload,
}

/// The content of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Nothing: a new leader's first entry. Committing it commits all entries before it (Raft §5.4.2, §8).
    Noop,
    /// Commands for the state machine; opaque to Raft.
    Command(Bytes),
    /// The group's membership from this entry on. It takes effect when it is *appended* (thesis §4.1).
    Membership(Membership),
}

impl Entry {
    /// Creates an entry.
    pub const fn new(term: Term, index: Index, payload: Payload) -> Self {
        Self {
            id: EntryId::new(term, index),
            payload,
        }
    }

    /// Returns the approximate size in memory, on the wire and on disk, in bytes.
    pub fn size(&self) -> usize {
        32 + match &self.payload {
            Payload::Noop => 0,
            Payload::Command(data) => data.len(),
            Payload::Membership(membership) => membership.encoded_size(),
        }
    }
}

impl Payload {
    /// Encodes the payload as version, kind and content. The caller stores the entry's id.
    pub fn encode(&self) -> Bytes {
        let mut out = Writer::with_capacity(8);
        out.byte(PAYLOAD_VERSION);
        match self {
            Self::Noop => {
                out.byte(0);
            }
            Self::Command(data) => {
                out.byte(1).raw(data);
            }
            Self::Membership(membership) => {
                out.byte(2);
                membership.encode(&mut out);
            }
        }
        out.finish()
    }

    /// Decodes the output of [`Payload::encode`], sharing the input's memory.
    pub fn decode(input: Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(input);
        let version = input.byte("payload version")?;
        known_version("payload version", version, PAYLOAD_VERSION)?;
        match input.byte("payload kind")? {
            0 => input.finish().map(|()| Self::Noop),
            1 => Ok(Self::Command(input.rest())),
            2 => {
                let membership = Membership::decode(&mut input)?;
                input.finish().map(|()| Self::Membership(membership))
            }
            kind => Err(DecodeError::Unknown {
                what: "payload kind",
                value: kind.into(),
            }),
        }
    }
}
