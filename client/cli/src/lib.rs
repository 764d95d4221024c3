//! The command line of `ShardKV`: the binary `shardkv`.
//!
//! # What it is
//!
//! One program for terminals and scripts: commands on keys (`get put append delete cas scan`), transfer of whole files
//! (`import export`), an interactive client (`shell`), a load generator (`bench`), administration of nodes
//! (`status transfer-leader member`), of the controllers (`config shards`) and of keyspaces (`keyspace`), and a whole cluster on the user's own machine
//! (`playground`).
//!
//! # How data flows through it
//!
//! [`run`] parses the command line (`args`), makes a client of the library when the command needs one (`global`),
//! and hands both to the command's module. Keys and values come in as arguments, files or standard input and are bytes
//! from there on; `encoding` is the only place that makes them text, and `output` the only one that knows formats.
//! Every error becomes an `exit::Failure`: a message, the next step for the user, and one of the documented exit codes
//! (`exit::Exit`). This module prints it, once.
//!
//! # Structure
//!
//! Each command is a module that declares its arguments and runs. Only this module and `args` know all commands. Modules that
//! several commands share know no command: `global` (options of all commands), `parse`, `range`, `nodes` and `cluster_view`
//! (the state of the cluster), `move_progress`, `output`, `encoding`, `exit`, `client_error`.
//!
//! Results go to standard output, everything else to standard error, so that every command can stand in a pipe.
//!
//! # What it does not do
//!
//! Retries, leaders, sessions and protobuf are the client library's. There is no configuration file; the environment
//! variables `SHARDKV_ENDPOINTS`, `SHARDKV_CA`, `SHARDKV_CERT` and `SHARDKV_KEY` are the only settings that outlive a command.

mod admin;
mod args;
mod bench;
mod client_error;
mod cluster_view;
mod config;
mod delete;
mod encoding;
mod environment;
mod exit;
#[doc(hidden)]
pub mod fuzzing;
mod global;
#[cfg(test)]
mod golden;
mod interrupt;
mod keyspace;
mod kv;
mod move_progress;
mod nodes;
mod output;
mod parse;
mod playground;
mod random;
mod range;
mod shards;
mod shell;
mod status;
mod transfer;
mod verbs;

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use tokio::runtime::{Builder, Runtime};

use args::{Cli, Command};
use exit::{Exit, Failure};

/// Runs the command line of this process, and returns the exit code.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    environment::warn();
    match runtime(&cli.command) {
        Ok(runtime) => {
            let result = dispatch(cli, &runtime);
            // A thread that still waits for standard input must not delay the exit.
            runtime.shutdown_background();
            finish(result)
        }
        Err(error) => finish(Err(Failure::failed(
            format!("can't start threads: {error}"),
            "raise the limit of processes (`ulimit -u`)",
        ))),
    }
}

/// Makes the runtime. A small command is faster without extra threads. The shell needs one besides its own, which keeps
/// connections alive while the user thinks; a load generator may need several.
fn runtime(command: &Command) -> io::Result<Runtime> {
    let threads = match command {
        Command::Bench(args) => args.threads(),
        _ => 1,
    };
    let mut builder = match command {
        Command::Shell => Builder::new_multi_thread(),
        _ if threads > 1 => Builder::new_multi_thread(),
        _ => Builder::new_current_thread(),
    };
    builder.worker_threads(threads).enable_all().build()
}

fn finish(result: Result<Exit, Failure>) -> ExitCode {
    match result {
        Ok(exit) => exit.into(),
        Err(failure) => {
            if failure.exit() != Exit::Ok {
                eprintln!("{failure}");
            }
            failure.exit().into()
        }
    }
}

fn dispatch(cli: Cli, runtime: &Runtime) -> Result<Exit, Failure> {
    let global = cli.global;
    let command = match cli.command {
        Command::Shell => return shell::run(global, runtime),
        Command::Completion { shell } => {
            // Generate into memory first: the generator panics when its reader closes the pipe (`completion bash | head`).
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "shardkv", &mut script);
            io::stdout().write_all(&script)?;
            return Ok(Exit::Ok);
        }
        command => command,
    };
    runtime.block_on(async {
        let mut out = io::BufWriter::new(io::stdout().lock());
        match &command {
            Command::Kv(command) => {
                let client = global.client()?;
                let verbs = verbs::Verbs {
                    client: &client,
                    style: global.style(),
                    dash_is_stdin: true,
                };
                // The command's own failure says more than that of a flush after it.
                let exit = verbs.run(command, &mut out).await?;
                out.flush()?;
                Ok(exit)
            }
            Command::Admin(command) => {
                let result = admin::run(command, &global.client()?, &global, &mut out).await;
                out.flush()?;
                result
            }
            other => {
                drop(out);
                long_running(other, &global).await
            }
        }
    })
}

/// Runs the commands that manage standard output themselves.
async fn long_running(command: &Command, global: &global::GlobalArgs) -> Result<Exit, Failure> {
    match command {
        Command::Import(args) => transfer::import(args, global).await,
        Command::Export(args) => transfer::export(args, &global.client()?, global).await,
        Command::Bench(args) => bench::run(args, global).await,
        Command::Playground(args) => playground::run(args, global).await,
        Command::Kv(_) | Command::Admin(_) | Command::Shell | Command::Completion { .. } => {
            Ok(Exit::Ok)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_argument_of_a_command_has_the_id_of_a_global_one() {
        // Its value would be that of the global one, too.
        fn check(command: &clap::Command, global: &[String]) {
            for argument in command.get_arguments() {
                let taken = global.contains(&argument.get_id().to_string());
                assert!(!taken, "{}: {argument}", command.get_name());
            }
            for nested in command.get_subcommands() {
                check(nested, global);
            }
        }
        let command = Cli::command();
        let global = command.get_arguments().filter(|it| it.is_global_set());
        let global: Vec<String> = global.map(|it| it.get_id().to_string()).collect();
        assert!(global.len() > 5, "{global:?}");
        for nested in command.get_subcommands() {
            check(nested, &global);
        }
    }

    #[test]
    fn help_matches_the_golden() {
        // Wide enough that nothing wraps, because the golden file must not depend on the terminal.
        let mut command = Cli::command().term_width(0);
        command.build();
        let mut help = String::new();
        render(&mut command, &mut help);
        golden::check("help.txt", &help);
    }

    fn render(command: &mut clap::Command, help: &mut String) {
        let (name, text) = (command.get_name().to_owned(), command.render_long_help());
        writeln!(help, "==== {name} ====\n{text}").unwrap();
        for nested in command
            .get_subcommands_mut()
            .filter(|nested| nested.get_name() != "help")
        {
            render(nested, help);
        }
    }
}
