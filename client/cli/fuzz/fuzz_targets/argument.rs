//! Values of options: addresses, ids, durations, sizes, shares, and keys in hexadecimal or base64.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &str| shardkv_cli::fuzzing::argument(input));
