//! The program: parses the command line and runs the command.

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use tokio::runtime::Builder;

use crate::options::{Cli, Command, RunOptions};
use crate::run::{self, End};
use crate::{crd, yaml};

/// Limit of the threads that resolve names. Few, so that the process uses little memory.
const MAX_BLOCKING_THREADS: usize = 8;

/// Runs the command of the process' command line and returns the exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        None => start(cli.run),
        Some(Command::Run(options)) => start(*options),
        Some(Command::Crd) => print(definition()),
        Some(Command::Completion { shell }) => {
            let mut script = Vec::new();
            let name = "shardkv-operator";
            clap_complete::generate(shell, &mut Cli::command(), name, &mut script);
            print(Ok(script))
        }
    }
}

fn definition() -> Result<Vec<u8>, yaml::YamlError> {
    let files = crd::definitions()?;
    Ok(files
        .into_iter()
        .flat_map(|(_, text)| text.into_bytes())
        .collect())
}

fn print(text: Result<Vec<u8>, yaml::YamlError>) -> ExitCode {
    match text {
        Ok(text) => {
            // An error means that the reader has closed the pipe.
            let _ = io::stdout().write_all(&text);
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error, End::Failed),
    }
}

fn start(options: RunOptions) -> ExitCode {
    if let Err(error) = probes::telemetry::start(options.log.format(), &options.log.log_filter) {
        return fail(&format!("--log-filter: {error}"), End::BadOptions);
    }
    // One thread is enough: the operator waits nearly all the time, and each thread costs memory.
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(MAX_BLOCKING_THREADS)
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("the runtime can't start: {error}"), End::Failed),
    };
    let end = runtime.block_on(run::run(options));
    // A task that hangs on a dead connection must not keep the process alive.
    runtime.shutdown_background();
    let code = match end {
        Ok(()) => ExitCode::SUCCESS,
        Err(stop) => {
            tracing::error!(exit_code = stop.end as u8, "{:#}", stop.error);
            ExitCode::from(stop.end as u8)
        }
    };
    probes::telemetry::flush();
    code
}

fn fail(error: &dyn std::fmt::Display, end: End) -> ExitCode {
    let _ = writeln!(io::stderr(), "shardkv-operator: {error}");
    ExitCode::from(end as u8)
}
