//! Commands to the controllers: decoding any bytes never panics, and what was decoded survives encoding.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use shardctrler::Command;

fuzz_target!(|input: &[u8]| {
    if let Ok(value) = Command::decode(Bytes::copy_from_slice(input)) {
        assert_eq!(Command::decode(value.encode()), Ok(value));
    }
});
