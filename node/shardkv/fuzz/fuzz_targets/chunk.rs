//! Chunks of a shard in transfer: decoding any bytes never panics, and what was decoded survives encoding.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use shardkv::Chunk;

fuzz_target!(|input: &[u8]| {
    if let Ok(value) = Chunk::decode(Bytes::copy_from_slice(input)) {
        assert_eq!(Chunk::decode(value.encode()), Ok(value));
    }
});
