//! A client's connection to one group, and its requests in flight.

use replica::RequestId;
use request::{BatchStream, Leader, Limits, Stamp, StreamOptions, Time};
use shardkv::SessionRef;
use types::{ClientId, Gid, LogTime, Sequence};

use super::operation::Call;
use super::options::ClientOptions;
use crate::network::{HostId, host_at};
use crate::queue::Micros;

/// The engine of one group and its connection.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) engine: BatchStream<Call>,
    /// The node that the stream is connected to.
    pub(super) leader: Option<Leader>,
    /// The number of the connection.
    pub(super) connection: u64,
    /// The request for a session that is in flight.
    pub(super) opening: Option<RequestId>,
    /// The connections that were lost to silence since the last answer.
    pub(super) losses: u32,
}

/// A request in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    /// The operation.
    pub(super) number: u64,
    /// The group of its stream.
    pub(super) gid: Gid,
    /// The engine's id of the call.
    pub(super) call: u64,
    /// The connection that it was sent on; `None` for a copy.
    pub(super) connection: Option<u64>,
    pub(super) at: Micros,
}

impl Stream {
    pub(super) fn host(&self) -> Option<HostId> {
        host_at(&self.leader.as_ref()?.address)
    }
}

pub(super) fn time(now: Micros) -> Time {
    Time::from_micros(now)
}

/// Encodes a session's identity for the engine, which doesn't look into it.
pub(super) fn encode(client: ClientId) -> bytes::Bytes {
    [client.birth.0.to_be_bytes(), client.nonce.to_be_bytes()]
        .concat()
        .into()
}

fn decode(bytes: &[u8]) -> Option<ClientId> {
    let (birth, nonce) = bytes.split_first_chunk()?;
    Some(ClientId {
        birth: LogTime(u64::from_be_bytes(*birth)),
        nonce: u64::from_be_bytes(nonce.try_into().ok()?),
    })
}

pub(super) fn session_of(stamp: &Stamp) -> Option<SessionRef> {
    Some(SessionRef {
        client: decode(&stamp.client_id)?,
        sequence: Sequence(stamp.sequence),
        acked_below: Sequence(stamp.acked_below),
    })
}

pub(super) fn stream_options(options: &ClientOptions) -> StreamOptions {
    StreamOptions {
        limits: Limits {
            max_in_flight: 64,
            max_unacknowledged: 64,
            max_batch_items: 8,
            max_batch_bytes: 1 << 20,
        },
        min_backoff: Time::from_millis(5),
        max_backoff: Time::from_millis(100),
        silence_timeout: time(options.patience),
        bugs: options.bugs,
    }
}

impl Sent {
    /// Creates the record of a unary request.
    pub(super) fn unary(number: u64, gid: Gid, at: Micros) -> Self {
        Self {
            number,
            gid,
            call: 0,
            connection: None,
            at,
        }
    }
}
