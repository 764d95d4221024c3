//! Parts of a copy: decoding any bytes never panics, and what was decoded survives encoding.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use shardkv::Part;

fuzz_target!(|input: &[u8]| {
    if let Ok(value) = Part::decode(Bytes::copy_from_slice(input)) {
        assert_eq!(Part::decode(value.encode()), Ok(value));
    }
});
