//! Lines of `shardkv shell`: quoting and commands.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| shardkv_cli::fuzzing::shell_line(input));
