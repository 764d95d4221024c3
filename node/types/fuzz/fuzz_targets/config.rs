//! Configurations of shards: decoding any bytes never panics, and what was decoded survives encoding.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use types::ShardConfig;

fuzz_target!(|input: &[u8]| {
    if let Ok(value) = ShardConfig::decode(Bytes::copy_from_slice(input)) {
        assert_eq!(ShardConfig::decode(value.encode()), Ok(value));
    }
});
