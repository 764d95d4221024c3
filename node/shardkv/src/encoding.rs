//! Pieces that all encodings share: version bytes and checksums.

use bytes::Bytes;
use types::{DecodeError, Writer};

pub(crate) use types::known_version as known;

/// The version byte of every operation.
pub(crate) const VERSION: u8 = 1;

/// The bytes of a checksum.
const CHECKSUM_BYTES: usize = 4;

/// Appends a checksum over the whole content, for what travels between groups.
pub(crate) fn with_checksum(content: &Bytes) -> Bytes {
    let checksum = crc32fast::hash(content);
    let mut out = Writer::with_capacity(content.len() + CHECKSUM_BYTES);
    out.raw(content).raw(&checksum.to_be_bytes());
    out.finish()
}

/// Verifies the checksum at the end of `input` and returns the content before it.
pub(crate) fn checked(mut input: Bytes) -> Result<Bytes, DecodeError> {
    let Some(at) = input.len().checked_sub(CHECKSUM_BYTES) else {
        return Err(DecodeError::Truncated("checksum"));
    };
    let checksum = input.split_off(at);
    if crc32fast::hash(&input).to_be_bytes() == checksum.as_ref() {
        Ok(input)
    } else {
        Err(DecodeError::OutOfRange("checksum"))
    }
}
