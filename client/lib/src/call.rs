//! A call between its caller and the wire.

use std::time::Duration;

use api::v1::batch_item::Request as Wire;
use api::v1::batch_result::Response as WireResponse;
use api::v1::{
    AppendRequest, CompareAndSwapRequest, DeleteRequest, ErrorDetail, GetRequest, PutRequest,
    Session,
};
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

use crate::Error;
use crate::session::Name;

/// A call on its way from its caller.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) request: Request,
    /// The hash of its key.
    pub(crate) hash: u64,
    pub(crate) timeout: Duration,
    pub(crate) deadline: Instant,
    pub(crate) answer: oneshot::Sender<Result<Answer, Error>>,
    /// Its share of the bytes in flight, given back when it ends or waits for its shard.
    pub(crate) permit: Option<OwnedSemaphorePermit>,
    pub(crate) trial: Trial,
}

/// What is known of a call that is being tried. It goes with the call wherever that goes.
#[derive(Debug, Default)]
pub(crate) struct Trial {
    /// The name of a write, once it has one. It is kept on every retry, at whatever group, unless no attempt can have
    /// taken effect.
    pub(crate) name: Option<Name>,
    /// Whether an attempt that ended without a certain answer may have taken effect.
    pub(crate) doubt: bool,
    /// What the latest attempt was told.
    pub(crate) last: Option<String>,
    /// Since when the shard keeps it waiting.
    pub(crate) turned_away: Option<Instant>,
}

impl Trial {
    /// The shard wasn't served where it was asked: nothing was done, for certain. A write that was never in doubt gives
    /// its name back, so that it doesn't hold up those that were named after it. Returns how long it waits already.
    pub(crate) fn turn_away(&mut self, now: Instant) -> Duration {
        if !self.doubt {
            self.name = None;
        }
        now - *self.turned_away.get_or_insert(now)
    }
}

/// What is asked. Copies share the bytes, because a request is kept until it is answered.
#[derive(Clone, Debug)]
pub(crate) enum Request {
    Get {
        key: Bytes,
    },
    Put {
        key: Bytes,
        value: Bytes,
    },
    Append {
        key: Bytes,
        suffix: Bytes,
    },
    Delete {
        key: Bytes,
    },
    CompareAndSwap {
        key: Bytes,
        expected: Option<Bytes>,
        new: Option<Bytes>,
    },
}

/// What is answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Value(Option<Bytes>),
    Put,
    Length(u64),
    Existed(bool),
    Swapped(bool),
}

/// What a call costs beyond its bytes, so that empty ones are bounded as well.
const OVERHEAD_BYTES: usize = 128;

impl Request {
    /// The key, which decides the shard.
    pub(crate) fn key(&self) -> &Bytes {
        match self {
            Self::Get { key }
            | Self::Put { key, .. }
            | Self::Append { key, .. }
            | Self::Delete { key }
            | Self::CompareAndSwap { key, .. } => key,
        }
    }

    /// Whether it changes something, and so needs a session.
    pub(crate) fn is_write(&self) -> bool {
        !matches!(self, Self::Get { .. })
    }

    /// What it counts against the bounds, in bytes.
    pub(crate) fn cost(&self) -> usize {
        let payload = match self {
            Self::Get { key } | Self::Delete { key } => key.len(),
            Self::Put { key, value } => key.len() + value.len(),
            Self::Append { key, suffix } => key.len() + suffix.len(),
            Self::CompareAndSwap { key, expected, new } => {
                let length = |part: &Option<Bytes>| part.as_ref().map_or(0, Bytes::len);
                key.len() + length(expected) + length(new)
            }
        };
        payload + OVERHEAD_BYTES
    }

    /// The request with its name, as the wire has it.
    pub(crate) fn to_wire(&self, session: Option<Session>) -> Wire {
        match self.clone() {
            Self::Get { key } => Wire::Get(GetRequest { key }),
            Self::Put { key, value } => Wire::Put(PutRequest {
                key,
                value,
                session,
            }),
            Self::Append { key, suffix } => Wire::Append(AppendRequest {
                key,
                suffix,
                session,
            }),
            Self::Delete { key } => Wire::Delete(DeleteRequest { key, session }),
            Self::CompareAndSwap { key, expected, new } => {
                Wire::CompareAndSwap(CompareAndSwapRequest {
                    key,
                    expected,
                    new,
                    session,
                })
            }
        }
    }

    /// Whether `answer` answers this kind of request.
    pub(crate) fn fits(&self, answer: &Answer) -> bool {
        matches!(
            (self, answer),
            (Self::Get { .. }, Answer::Value(_))
                | (Self::Put { .. }, Answer::Put)
                | (Self::Append { .. }, Answer::Length(_))
                | (Self::Delete { .. }, Answer::Existed(_))
                | (Self::CompareAndSwap { .. }, Answer::Swapped(_))
        )
    }
}

/// A batch result as an answer, or the error in it.
pub(crate) fn from_wire(response: WireResponse) -> Result<Answer, ErrorDetail> {
    Ok(match response {
        WireResponse::Get(it) => Answer::Value(it.found.then_some(it.value)),
        WireResponse::Put(_) => Answer::Put,
        WireResponse::Append(it) => Answer::Length(it.length),
        WireResponse::Delete(it) => Answer::Existed(it.existed),
        WireResponse::CompareAndSwap(it) => Answer::Swapped(it.swapped),
        WireResponse::Error(detail) => return Err(detail),
    })
}

/// An answer of another kind than the question: a node with a bug, or not one of ours.
pub(crate) fn mismatch(write: bool) -> Error {
    Error::Protocol {
        message: "the answer does not fit the question".to_owned(),
        maybe_applied: write,
    }
}
