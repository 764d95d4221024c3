//! The binary `shardkv-node`. See the library of this crate.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(shardkv_server::run(std::env::args_os()) as u8)
}
