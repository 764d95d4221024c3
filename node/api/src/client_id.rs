//! A session's id on the wire: 16 bytes that are opaque to clients.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use types::{ClientId, LogTime};

/// Returns the 16 bytes of a client id: birth, then nonce, big-endian.
pub fn encode_client_id(client: ClientId) -> Bytes {
    let mut out = BytesMut::with_capacity(16);
    out.put_u64(client.birth.0);
    out.put_u64(client.nonce);
    out.freeze()
}

/// Returns the client id in `bytes`, or `None` unless there are exactly 16.
pub fn decode_client_id(mut bytes: &[u8]) -> Option<ClientId> {
    (bytes.len() == 16).then(|| ClientId {
        birth: LogTime(bytes.get_u64()),
        nonce: bytes.get_u64(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_ids_round_trip_and_other_lengths_are_refused() {
        let client = ClientId {
            birth: LogTime(1 << 40),
            nonce: u64::MAX,
        };
        let bytes = encode_client_id(client);
        assert_eq!(decode_client_id(&bytes), Some(client));
        assert_eq!(decode_client_id(&bytes[1..]), None);
        assert_eq!(decode_client_id(&[0; 17]), None);
        assert_eq!(decode_client_id(&[]), None);
    }
}
