//! Log entries and how they are written down.

use bytes::Bytes;
use types::{DecodeError, Reader, Writer};

use crate::{EntryId, Index, Membership, Term};

/// The version byte of an encoded payload.
const PAYLOAD_VERSION: u8 = 1;

/// One entry of the replicated log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub id: EntryId,
    /// What it carries.
    pub payload: Payload,
}

/// What an entry carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Nothing: a new leader's first entry, whose commit commits all before it (Raft §5.4.2, §8).
    Noop,
    /// Commands for the state machine; Raft does not look inside.
    Command(Bytes),
    /// The group's membership from this entry on. It takes effect when it is *appended* (thesis §4.1).
    Membership(Membership),
}

impl Entry {
    /// An entry.
    pub const fn new(term: Term, index: Index, payload: Payload) -> Self {
        Self {
            id: EntryId::new(term, index),
            payload,
        }
    }

    /// Roughly how many bytes it takes in memory, on the wire and on disk.
    pub fn size(&self) -> usize {
        32 + match &self.payload {
            Payload::Noop => 0,
            Payload::Command(data) => data.len(),
            Payload::Membership(membership) => membership.encoded_size(),
        }
    }
}

impl Payload {
    /// The payload as bytes: version, kind, content. The position is the caller's to keep.
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

    /// Reads what [`Payload::encode`] wrote, sharing the input's memory.
    pub fn decode(input: Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(input);
        let version = input.byte("payload version")?;
        if version != PAYLOAD_VERSION {
            return Err(DecodeError::Unknown {
                what: "payload version",
                value: version.into(),
            });
        }
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
