//! A session's id on the wire: 16 bytes that are opaque to clients.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use types::{ClientId, LogTime};

/// The 16 bytes of a client id: birth, then nonce, big-endian.
pub fn encode_client_id(client: ClientId) -> Bytes {
    let mut out = BytesMut::with_capacity(16);
    out.put_u64(client.birth.0);
    out.put_u64(client.nonce);
    out.freeze()
}

/// The client id in `bytes`, or `None` unless there are exactly 16.
pub fn decode_client_id(mut bytes: &[u8]) -> Option<ClientId> {
    (bytes.len() == 16).then(|| ClientId {
        birth: LogTime(bytes.get_u64()),
        nonce: bytes.get_u64(),
    })
}
