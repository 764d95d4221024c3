//! The commands at the playground's terminal.

use std::io::{self, IsTerminal as _};

use clap::{Parser, Subcommand};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::sync::mpsc;

use super::control::{Order, Request};
use super::start::group_count;
use crate::exit::Failure;

/// The longest line, in bytes.
const MAX_LINE_BYTES: u64 = 4_096;

/// Commands of a playground
#[derive(Debug, Parser)]
#[command(
    name = "",
    no_binary_name = true,
    disable_help_flag = true,
    help_template = "{subcommands}\n\nNODE is a name, an address, `leader` or `g2/leader`. Ctrl-C stops the cluster."
)]
struct Line {
    #[command(subcommand)]
    command: Typed,
}

/// The commands of the prompt.
#[derive(Debug, PartialEq, Eq, Subcommand)]
pub(super) enum Typed {
    /// Show the nodes with their processes
    Status,
    /// Have this many groups: new ones join, or the newest leave
    Scale {
        /// Number of groups
        #[arg(value_parser = group_count())]
        groups: u16,
    },
    /// Kill a node at once, like a crash (SIGKILL)
    Kill {
        /// The node, as `status` shows it
        node: String,
    },
    /// Freeze a node (SIGSTOP)
    Stop {
        /// The node, as `status` shows it
        node: String,
    },
    /// Resume a frozen node (SIGCONT)
    Cont {
        /// The node, as `status` shows it
        node: String,
    },
    /// Stop a node gracefully (SIGTERM), and wait for its end
    Term {
        /// The node, as `status` shows it
        node: String,
    },
    /// Start a node that ended, or stop and start one that runs
    Restart {
        /// The node, as `status` shows it
        node: String,
        /// Remove the node's data first, like a lost disk
        #[arg(long)]
        wipe: bool,
    },
    /// Stop the whole playground
    #[command(visible_aliases = ["quit", "exit"])]
    Down,
}

impl Typed {
    /// Returns the order of this command; `None` if it only shows something.
    pub(super) fn request(self) -> Option<Request> {
        let (order, node) = match self {
            Self::Status => return None,
            Self::Scale { groups } => (Order::Scale { groups }, String::new()),
            Self::Kill { node } => (Order::Kill, node),
            Self::Stop { node } => (Order::Stop, node),
            Self::Cont { node } => (Order::Cont, node),
            Self::Term { node } => (Order::Term, node),
            Self::Restart { node, wipe } => (Order::Restart { wipe }, node),
            Self::Down => (Order::Down, String::new()),
        };
        Some(Request { order, node })
    }
}

/// Parses a line. Returns `None` for a blank line and for a request for help, which is written to `out`.
pub(super) fn parse(line: &str, out: &mut dyn io::Write) -> Result<Option<Typed>, Failure> {
    let words: Vec<&str> = line.split_whitespace().collect();
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
            let first = text.split("\n\nUsage:").next().unwrap_or(&text);
            let first = first.strip_prefix("error: ").unwrap_or(first).trim_end();
            Err(Failure::usage(first, "`help` lists the commands"))
        }
    }
}

/// Reads the lines typed at the prompt.
pub(super) struct Prompt {
    lines: mpsc::Receiver<String>,
    /// True at a terminal: then a prompt is shown.
    person: bool,
}

impl Prompt {
    /// Reads standard input at a terminal, or if its end stops the playground. A playground in the background of a terminal
    /// does not read, because the kernel would stop it.
    pub(super) fn open(end_matters: bool) -> Option<Self> {
        let person = io::stdin().is_terminal() && io::stderr().is_terminal() && in_foreground();
        if !person && !end_matters {
            return None;
        }
        let (sender, lines) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut input = BufReader::new(tokio::io::stdin());
            loop {
                let mut line = Vec::new();
                let mut bounded = (&mut input).take(MAX_LINE_BYTES);
                match bounded.read_until(b'\n', &mut line).await {
                    Ok(read) if read > 0 => {}
                    _ => return,
                }
                let line = String::from_utf8_lossy(&line).into_owned();
                if sender.send(line).await.is_err() {
                    return;
                }
            }
        });
        Some(Self { lines, person })
    }

    /// Returns the next line; `None` at the end of the input.
    pub(super) async fn next(&mut self) -> Option<String> {
        self.lines.recv().await
    }

    /// Shows the prompt.
    pub(super) fn show(&self) {
        if self.person {
            eprint!("playground> ");
        }
    }
}

fn in_foreground() -> bool {
    let foreground = rustix::termios::tcgetpgrp(io::stdin());
    foreground.is_ok_and(|group| group == rustix::process::getpgrp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_orders() {
        let typed = |line: &str| parse(line, &mut Vec::new());
        assert_eq!(typed("  \n").unwrap(), None);
        assert_eq!(typed("status\n").unwrap(), Some(Typed::Status));
        let request = typed("scale 3\n").unwrap().unwrap().request().unwrap();
        assert_eq!(request.order, Order::Scale { groups: 3 });
        let request = typed("restart g1/leader --wipe").unwrap().unwrap();
        let request = request.request().unwrap();
        assert_eq!(request.order, Order::Restart { wipe: true });
        assert_eq!(request.node, "g1/leader");
        assert_eq!(typed("quit").unwrap(), Some(Typed::Down));
        for bad in ["scale", "scale 0", "scale x", "kill", "nonsense"] {
            assert!(typed(bad).is_err(), "{bad}");
        }
        let mut help = Vec::new();
        assert_eq!(parse("help", &mut help).unwrap(), None);
        assert!(String::from_utf8(help).unwrap().contains("scale"));
    }
}
