//! Exit codes, and failures that carry an exit code and a next step.

use std::fmt;
use std::io;
use std::process::ExitCode;

/// The exit codes of `shardkv`. The numbers are part of the interface: scripts test them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done.
    Ok = 0,
    /// A failure without a code of its own: a file, a process, a damaged answer.
    Failed = 1,
    /// The command line, an encoded argument or an input file is wrong.
    Usage = 2,
    /// The key, or the keyspace, does not exist.
    NotFound = 3,
    /// `cas`: the value was not what was expected. Nothing was changed.
    CasMismatch = 4,
    /// No leader answered in time. Nothing was done.
    Unavailable = 5,
    /// A write was sent and its answer was lost: it may or may not have taken effect.
    OutcomeUnknown = 6,
    /// The cluster refused the request: it is too large, the disk is full, it contradicts the present configuration, or the caller may
    /// not make it. Or one side refused the other's certificate.
    Refused = 7,
}

/// The exit codes as `--help` shows them.
pub(crate) const EXIT_CODES_HELP: &str = "\
Exit codes:
  0  done
  1  failed (a file, a process, a damaged answer)
  2  usage: the command line, an encoded argument or an input file is wrong
  3  the key, or the keyspace, does not exist
  4  cas: the value was not what was expected; nothing was changed
  5  no leader answered in time; nothing was done
  6  outcome unknown: a write was sent and its answer was lost
  7  the cluster refused the request (too large, disk full, exists already, not allowed, not now), or a certificate was refused";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// The reason why a command failed, its exit code, and the next step for the user.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    message: String,
    next: String,
}

impl Failure {
    /// Makes a failure. `next` is the next step for the user, in the imperative.
    pub(crate) fn new(exit: Exit, message: impl Into<String>, next: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            next: next.into(),
        }
    }

    /// A failure of the command line or of input.
    pub(crate) fn usage(message: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message, next)
    }

    /// A failure without a number of its own.
    pub(crate) fn failed(message: impl Into<String>, next: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message, next)
    }

    /// A file that could not be read or written.
    pub(crate) fn file(what: &str, path: &std::path::Path, error: &io::Error) -> Self {
        Self::failed(
            format!("can't {what} {}: {error}", path.display()),
            "check the path and its permissions, and that the disk has space",
        )
    }

    /// The code that the process ends with.
    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }

    /// Returns the next step.
    pub(crate) fn next(&self) -> &str {
        &self.next
    }

    /// Returns the message and the next step.
    pub(crate) fn into_words(self) -> (String, String) {
        (self.message, self.next)
    }

    /// The same failure of a command that did a part of its work before: its code doesn't say that nothing was done.
    #[must_use]
    pub(crate) fn after_some(mut self, done: bool) -> Self {
        if done && self.exit == Exit::Unavailable {
            self.exit = Exit::Failed;
        }
        self
    }

    /// The same failure with words before its message.
    #[must_use]
    pub(crate) fn context(mut self, words: &str) -> Self {
        self.message = format!("{words}: {}", self.message);
        self
    }

    /// The same failure with another next step.
    #[must_use]
    pub(crate) fn with_next(mut self, next: impl Into<String>) -> Self {
        self.next = next.into();
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}\n next: {}", self.message, self.next)
    }
}

/// Writing to standard output failed. A reader that went away (`shardkv scan | head`) is no error.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::new(Exit::Ok, String::new(), String::new());
        }
        Self::failed(
            format!("can't write the output: {error}"),
            "check where the output goes, and that the disk has space",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_lists_each_code_once() {
        let all = [
            Exit::Ok,
            Exit::Failed,
            Exit::Usage,
            Exit::NotFound,
            Exit::CasMismatch,
            Exit::Unavailable,
            Exit::OutcomeUnknown,
            Exit::Refused,
        ];
        for (number, exit) in all.into_iter().enumerate() {
            assert_eq!(exit as usize, number, "{exit:?}");
            assert_eq!(
                EXIT_CODES_HELP.matches(&format!("\n  {number}  ")).count(),
                1,
                "{exit:?}"
            );
        }
        assert_eq!(EXIT_CODES_HELP.lines().count(), all.len() + 1);
    }

    #[test]
    fn an_error_ends_with_a_next_step() {
        let failure = Failure::usage("bad key", "give another key").context("line 3");
        assert_eq!(
            failure.to_string(),
            "error: line 3: bad key\n next: give another key"
        );
    }

    #[test]
    fn a_reader_that_left_is_no_error() {
        let gone = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(gone.exit(), Exit::Ok);
        let full = Failure::from(io::Error::from(io::ErrorKind::StorageFull));
        assert_eq!(full.exit(), Exit::Failed);
    }

    #[test]
    fn a_part_that_was_done_is_never_nothing() {
        for (exit, after) in [
            (Exit::Unavailable, Exit::Failed),
            (Exit::OutcomeUnknown, Exit::OutcomeUnknown),
            (Exit::Refused, Exit::Refused),
        ] {
            let failure = || Failure::new(exit, "x", "y");
            assert_eq!(failure().after_some(true).exit(), after);
            assert_eq!(failure().after_some(false).exit(), exit);
        }
    }
}
