//! The interactive client: the commands on keys at a prompt.
//!
//! At a terminal there is line editing, a history file and completion; an error is shown and the next line is read. With
//! standard input from a file or pipe there is no prompt; every line runs, and the exit code is that of the first that
//! failed.

mod editor;
mod words;

use std::ffi::OsString;
use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write};

use clap::{Parser, Subcommand};
use rustyline::error::ReadlineError;
use shardkv_client::Client;
use tokio::runtime::Runtime;

use crate::admin::AdminCommand;
use crate::encoding::Encoding;
use crate::exit::{Exit, Failure};
use crate::global::GlobalArgs;
use crate::kv::KvCommand;
use crate::output::Format;
use crate::verbs::Verbs;

/// The longest line of a script, in bytes.
const MAX_LINE_BYTES: u64 = 16 << 20;

const ABOUT: &str = "\
Quoting: 'single quotes' keep everything; elsewhere \\n \\t \\r \\\\ \\\" \\' \\xNN are escapes; # starts a comment.
`help get` tells more about `get`. Ctrl-C stops a command, Ctrl-D leaves.";

/// Commands of the shell
#[derive(Debug, Parser)]
#[command(
    name = "",
    no_binary_name = true,
    disable_help_flag = true,
    after_help = ABOUT,
    help_template = "{subcommands}\n\n{after-help}"
)]
struct Line {
    #[command(subcommand)]
    command: ShellCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ShellCommand {
    #[command(flatten)]
    Kv(KvCommand),
    #[command(flatten)]
    Admin(AdminCommand),
    /// Choose the format of all later results
    Output {
        /// The format
        format: Format,
    },
    /// Choose the encoding of all later keys and values
    Encoding {
        /// The encoding
        encoding: Encoding,
    },
    /// Leave the shell
    #[command(visible_alias = "exit")]
    Quit,
}

/// The action after a line.
#[derive(Debug, PartialEq, Eq)]
enum After {
    Next(Exit),
    Quit,
}

/// Reads commands until the end of the input or `quit`.
pub(crate) fn run(global: GlobalArgs, runtime: &Runtime) -> Result<Exit, Failure> {
    // The client starts its tasks on the runtime in which it is made.
    let client = {
        let _within = runtime.enter();
        global.client()?
    };
    let mut shell = Shell {
        global,
        client,
        runtime,
    };
    if io::stdin().is_terminal() && io::stdout().is_terminal() {
        shell.at_terminal()
    } else {
        shell.run_script()
    }
}

struct Shell<'a> {
    global: GlobalArgs,
    client: Client,
    runtime: &'a Runtime,
}

impl Shell<'_> {
    fn at_terminal(&mut self) -> Result<Exit, Failure> {
        let broken = |error: &ReadlineError| {
            Failure::failed(
                format!("the terminal can't be read: {error}"),
                "pipe the commands into `shardkv shell` instead",
            )
        };
        let mut editor = editor::Editor::new().map_err(|error| broken(&error))?;
        println!(
            "ShardKV {}; `help` lists the commands",
            env!("CARGO_PKG_VERSION")
        );
        loop {
            match editor.read("shardkv> ") {
                Ok(line) => match self.line(line.as_bytes()) {
                    Ok(After::Quit) => break,
                    Ok(After::Next(_)) => {}
                    Err(failure) if failure.exit() == Exit::Ok => {}
                    Err(failure) => eprintln!("{failure}"),
                },
                Err(ReadlineError::Interrupted) => {}
                Err(ReadlineError::Eof) => break,
                Err(error) => return Err(broken(&error)),
            }
        }
        Ok(Exit::Ok)
    }

    fn run_script(&mut self) -> Result<Exit, Failure> {
        let mut input = io::stdin().lock();
        let mut worst = Exit::Ok;
        let mut line = Vec::new();
        for number in 1u64.. {
            line.clear();
            let read = input
                .by_ref()
                .take(MAX_LINE_BYTES + 1)
                .read_until(b'\n', &mut line);
            let read = read.map_err(|error| {
                Failure::failed(
                    format!("can't read line {number}: {error}"),
                    "check the input",
                )
            })?;
            if read == 0 {
                break;
            }
            if read as u64 > MAX_LINE_BYTES {
                return Err(Failure::usage(
                    format!("line {number} is longer than {MAX_LINE_BYTES} bytes"),
                    "use `shardkv put --file` or `shardkv import` for large values",
                ));
            }
            let exit = match self.line(&line) {
                Ok(After::Quit) => break,
                Ok(After::Next(exit)) => exit,
                // The reader of the output has closed it.
                Err(failure) if failure.exit() == Exit::Ok => break,
                Err(failure) => {
                    let exit = failure.exit();
                    eprintln!("{}", failure.context(&format!("line {number}")));
                    exit
                }
            };
            if worst == Exit::Ok {
                worst = exit;
            }
        }
        Ok(worst)
    }

    fn line(&mut self, line: &[u8]) -> Result<After, Failure> {
        let mut out = io::BufWriter::new(io::stdout().lock());
        let Some(command) = parse(line, &mut out)? else {
            out.flush()?;
            return Ok(After::Next(Exit::Ok));
        };
        let after = self.command(command, &mut out);
        let flushed = out.flush();
        // The command's own failure says more than that of a flush after it.
        let after = after?;
        flushed?;
        Ok(after)
    }

    fn command(&mut self, command: ShellCommand, out: &mut dyn Write) -> Result<After, Failure> {
        let exit = match command {
            ShellCommand::Kv(command) => {
                let verbs = Verbs {
                    client: &self.client,
                    style: self.global.style(),
                    dash_is_stdin: false,
                };
                self.runtime
                    .block_on(interruptible(verbs.run(&command, out)))?
            }
            ShellCommand::Admin(command) => {
                let run = crate::admin::run(&command, &self.client, &self.global, out);
                match self.runtime.block_on(interruptible(run)) {
                    // Ctrl-C is the normal end of a command that never ends by itself.
                    Err(failure)
                        if failure.exit() == Exit::OutcomeUnknown && command.only_asks() =>
                    {
                        Exit::Ok
                    }
                    result => result?,
                }
            }
            ShellCommand::Output { format } => {
                self.global.output = format;
                Exit::Ok
            }
            ShellCommand::Encoding { encoding } => {
                self.global.encoding = encoding;
                Exit::Ok
            }
            ShellCommand::Quit => return Ok(After::Quit),
        };
        Ok(After::Next(exit))
    }
}

/// Parses a line. Returns `None` if the line is blank, or asked for help, which is written to `out`.
pub(crate) fn parse(line: &[u8], out: &mut dyn Write) -> Result<Option<ShellCommand>, Failure> {
    let words = split(line)?;
    if words.is_empty() {
        return Ok(None);
    }
    match Line::try_parse_from(words) {
        Ok(line) => Ok(Some(line.command)),
        Err(error) if !error.use_stderr() => {
            write!(out, "{}", error.render())?;
            Ok(None)
        }
        Err(error) => {
            let text = error.render().to_string();
            // clap appends a usage and a pointer to --help, which the shell does not have.
            let first = text.split("\n\nUsage:").next().unwrap_or(&text);
            let first = first.strip_prefix("error: ").unwrap_or(first).trim_end();
            Err(Failure::usage(
                first,
                "`help` lists the commands, `help COMMAND` explains one",
            ))
        }
    }
}

/// Splits a line into words by the quoting rules of the shell.
pub(crate) fn split(line: &[u8]) -> Result<Vec<OsString>, Failure> {
    words::split(line)
        .map_err(|error| Failure::usage(error.to_string(), "`help` shows how to quote"))
}

/// Runs a command until it ends or Ctrl-C is pressed.
async fn interruptible(
    command: impl Future<Output = Result<Exit, Failure>>,
) -> Result<Exit, Failure> {
    tokio::select! {
        result = command => result,
        Ok(()) = tokio::signal::ctrl_c() => Err(Failure::new(
            Exit::OutcomeUnknown,
            "interrupted; a write may have been applied",
            "read the key, then decide whether to write again",
        )),
    }
}

/// Returns all words that can start a line, for completion.
fn command_names() -> Vec<String> {
    let line = <Line as clap::CommandFactory>::command();
    let mut names: Vec<String> = line
        .get_subcommands()
        .map(|command| command.get_name().to_owned())
        .collect();
    names.extend(["exit".to_owned(), "help".to_owned()]);
    names.sort();
    names.dedup();
    names
}

/// Returns the words that may follow `first`: options and named values.
fn argument_names(first: &str) -> Vec<String> {
    let line = <Line as clap::CommandFactory>::command();
    if first == "help" {
        return command_names();
    }
    let Some(command) = line.find_subcommand(first) else {
        return Vec::new();
    };
    let options = command
        .get_arguments()
        .filter_map(|argument| argument.get_long());
    let values = command
        .get_positionals()
        .flat_map(clap::Arg::get_possible_values)
        .map(|value| value.get_name().to_owned());
    let nested = command
        .get_subcommands()
        .map(|nested| nested.get_name().to_owned());
    let mut names: Vec<String> = options
        .map(|long| format!("--{long}"))
        .chain(values)
        .chain(nested)
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Option<ShellCommand>, Failure> {
        parse(line.as_bytes(), &mut Vec::new())
    }

    #[test]
    fn the_shell_speaks_the_language_of_the_command_line() {
        for line in [
            "get a",
            "put a 1",
            "put a -1",
            "append a 'b c'",
            "del a",
            "cas a --expect 1 --set 2",
            "cas a --expect-absent --set ''",
            "scan --prefix a -n 3 -k",
            "status",
            "transfer-leader n3",
            "transfer-leader --group ctrl",
            "config join 3=h:1,i:1 --wait",
            "config move 7 g2",
            "shards --watch",
            "member add-learner h:1 --node n4",
            "output json",
            "encoding hex",
        ] {
            assert!(
                matches!(parsed(line), Ok(Some(_))),
                "{line}: {:?}",
                parsed(line)
            );
        }
        assert!(matches!(parsed("exit"), Ok(Some(ShellCommand::Quit))));
    }

    #[test]
    fn help_is_written_and_errors_point_to_it() {
        let mut out = Vec::new();
        assert!(parse(b"help", &mut out).unwrap().is_none());
        let help = String::from_utf8(out).unwrap();
        for name in ["get", "cas", "status", "quit", "Quoting"] {
            assert!(help.contains(name), "{help}");
        }
        for line in [
            "gte a",
            "get",
            "put a",
            "put a 1 2",
            "cas a",
            "cas a --set 1",
            "output xml",
        ] {
            let failure = parsed(line).unwrap_err();
            assert_eq!(failure.exit(), Exit::Usage, "{line}");
            let text = failure.to_string();
            assert!(
                text.contains("`help` lists") && !text.contains("--help"),
                "{text}"
            );
        }
    }

    #[test]
    fn completion_knows_commands_and_their_arguments() {
        let names = command_names();
        assert!(names.is_sorted() && names.iter().any(|name| name == "transfer-leader"));
        assert!(argument_names("cas").contains(&"--expect-absent".to_owned()));
        assert_eq!(argument_names("output"), ["json", "raw", "table"]);
        assert!(argument_names("member").contains(&"promote".to_owned()));
        assert!(argument_names("nonsense").is_empty());
    }
}
