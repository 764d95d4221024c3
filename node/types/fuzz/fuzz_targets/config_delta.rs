//! Differences between configurations: decoding any bytes never panics, and what was decoded survives encoding.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use types::ConfigDelta;

fuzz_target!(|input: &[u8]| {
    if let Ok(value) = ConfigDelta::decode(Bytes::copy_from_slice(input)) {
        assert_eq!(ConfigDelta::decode(value.encode()), Ok(value));
    }
});
