//! Steps of a hand-off: decoding any bytes never panics, and what was decoded survives encoding.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use shardkv::Step;

fuzz_target!(|input: &[u8]| {
    if let Ok(value) = Step::decode(Bytes::copy_from_slice(input)) {
        assert_eq!(Step::decode(value.encode()), Ok(value));
    }
});
