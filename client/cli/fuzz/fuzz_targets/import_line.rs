//! Lines of a file for `shardkv import`, in both formats.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| shardkv_cli::fuzzing::import_line(input));
