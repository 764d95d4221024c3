//! Payloads of log entries: decoding any bytes never panics, and what was decoded survives encoding.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use raft::Payload;

fuzz_target!(|input: &[u8]| {
    if let Ok(value) = Payload::decode(Bytes::copy_from_slice(input)) {
        assert_eq!(Payload::decode(value.encode()), Ok(value));
    }
});
