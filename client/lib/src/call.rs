//! A call between its caller and the wire.

use std::sync::Arc;
use std::time::Duration;

use api::v1::batch_item::Request as Wire;
use api::v1::batch_result::Response as WireResponse;
use api::v1::{
    self, AppendRequest, CompareAndSwapRequest, DeleteRequest, ErrorDetail, GetRequest, PutRequest,
};
use bytes::Bytes;
use request::{Repeat, Stamp, Time};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::Error;

/// A call on its way from its caller to a batch stream.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) request: Request,
    /// The hash of its key.
    pub(crate) hash: u64,
    pub(crate) timeout: Duration,
    pub(crate) deadline: Time,
    pub(crate) answer: oneshot::Sender<Result<Answer, Error>>,
    /// Its share of the bytes in flight.
    pub(crate) share: Share,
}

impl Call {
    /// Reports that no stream takes the call, because the client's runtime is shutting down.
    pub(crate) fn close(self, maybe_applied: bool) {
        // The caller may have dropped its future.
        let _ = self.answer.send(Err(Error::Closed { maybe_applied }));
    }
}

impl request::Call for Call {
    fn hash(&self) -> u64 {
        self.hash
    }

    fn cost(&self) -> usize {
        self.request.cost()
    }

    fn repeat(&self) -> Repeat {
        self.request.repeat()
    }

    fn deadline(&self) -> Time {
        self.deadline
    }

    fn is_abandoned(&self) -> bool {
        self.answer.is_closed()
    }

    fn release_budget(&mut self) {
        self.share.exchange();
    }
}

/// A call's share of its group's bytes in flight, given back when it is dropped. It goes with the call to other groups, so that
/// the bytes of all calls stay bounded wherever they are.
#[derive(Debug)]
pub(crate) struct Share {
    held: OwnedSemaphorePermit,
    /// The bytes of calls that wait for their shard, which are bounded separately; `None` once the call has a share of them.
    waiting: Option<Arc<Semaphore>>,
}

impl Share {
    /// Creates the share `held`, which may be exchanged for one of `waiting`.
    pub(crate) fn new(held: OwnedSemaphorePermit, waiting: &Arc<Semaphore>) -> Self {
        Self {
            held,
            waiting: Some(Arc::clone(waiting)),
        }
    }

    /// Gives the share back for one of the bytes of waiting calls, if there is room among them.
    fn exchange(&mut self) {
        let Some(waiting) = &self.waiting else { return };
        let bytes = u32::try_from(self.held.num_permits()).unwrap_or(u32::MAX);
        if let Ok(held) = Arc::clone(waiting).try_acquire_many_owned(bytes) {
            self.held = held;
            self.waiting = None;
        }
    }
}

/// An operation on one key. Clones share the bytes, because a request is kept until it is answered.
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

/// The answer to a [`Request`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Value(Option<Bytes>),
    Put,
    Length(u64),
    Existed(bool),
    Swapped(bool),
}

/// The cost of a call beyond its bytes, so that the bounds also limit the number of small calls.
const OVERHEAD_BYTES: usize = 128;

impl Request {
    /// Returns the key, which decides the shard.
    pub(crate) fn key(&self) -> &Bytes {
        match self {
            Self::Get { key }
            | Self::Put { key, .. }
            | Self::Append { key, .. }
            | Self::Delete { key }
            | Self::CompareAndSwap { key, .. } => key,
        }
    }

    /// Returns true if the request changes something, and so needs a session.
    pub(crate) fn is_write(&self) -> bool {
        !matches!(self, Self::Get { .. })
    }

    /// Returns the right to make the request again: the library names each write.
    pub(crate) fn repeat(&self) -> Repeat {
        if self.is_write() {
            Repeat::ByName
        } else {
            Repeat::Freely
        }
    }

    /// Returns the bytes that the request counts against the bounds.
    pub(crate) fn cost(&self) -> usize {
        let payload = match self {
            Self::Get { key } | Self::Delete { key } => key.len(),
            Self::Put { key, value } => key.len() + value.len(),
            Self::Append { key, suffix } => key.len() + suffix.len(),
            Self::CompareAndSwap { key, expected, new } => {
                let length = |value: &Option<Bytes>| value.as_ref().map_or(0, Bytes::len);
                key.len() + length(expected) + length(new)
            }
        };
        payload + OVERHEAD_BYTES
    }

    /// Encodes the request with its name.
    pub(crate) fn to_wire(&self, stamp: Option<Stamp>) -> Wire {
        let session = stamp.map(session_to_wire);
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

    /// Returns true if `answer` answers this kind of request.
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

/// Encodes a write's name.
pub(crate) fn session_to_wire(stamp: Stamp) -> v1::Session {
    v1::Session {
        client_id: stamp.client_id,
        sequence: stamp.sequence,
        acked_below: stamp.acked_below,
    }
}

/// Decodes a batch result into its answer or error.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn share(held: &Arc<Semaphore>, waiting: &Arc<Semaphore>) -> Share {
        let held = Arc::clone(held).try_acquire_many_owned(40).unwrap();
        Share::new(held, waiting)
    }

    #[test]
    fn waiting_calls_hold_bytes_too_and_each_byte_once() {
        let flying = Arc::new(Semaphore::new(100));
        let waiting = Arc::new(Semaphore::new(100));
        let mut shares = Vec::new();
        while flying.available_permits() >= 40 {
            let mut share = share(&flying, &waiting);
            share.exchange();
            share.exchange();
            shares.push(share);
            assert!(shares.len() <= 4, "two in flight, and two that wait");
        }
        assert_eq!(shares.len(), 4);
        assert_eq!(flying.available_permits(), 20);
        assert_eq!(waiting.available_permits(), 20);
        drop(shares);
        assert_eq!(flying.available_permits(), 100);
        assert_eq!(waiting.available_permits(), 100);
    }
}
