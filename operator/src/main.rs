//! The binary `shardkv-operator`; see the library of this crate.

use std::process::ExitCode;

fn main() -> ExitCode {
    shardkv_operator::program::main()
}
