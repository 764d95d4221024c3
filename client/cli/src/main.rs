//! The binary `shardkv`.

use std::process::ExitCode;

fn main() -> ExitCode {
    shardkv_cli::run()
}
