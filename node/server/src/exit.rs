//! Exit codes of the process, and the errors that carry them.

use std::fmt::Display;

use storage::Cause;

/// The reason why the node did not start or stopped. The number is the process' exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// An orderly stop.
    Clean = 0,
    /// An unforeseen error. The log has it.
    Unexpected = 1,
    /// The options are not valid.
    BadOptions = 2,
    /// Stored data contradict their checksums, or acknowledged data are lost: the node refuses to vote.
    Damaged = 3,
    /// The disk can't be read or written. That proves nothing about its content.
    DiskFailed = 4,
    /// The data directory belongs to another cluster or group or to another program, or was created with other values, or the
    /// controllers are those of another cluster.
    WrongIdentity = 5,
    /// The listen address can't be bound.
    CannotListen = 6,
    /// The disk is full.
    DiskFull = 7,
    /// The process may not use the data directory, or the volume is read-only.
    NoAccess = 8,
    /// The limit of open files is too low.
    TooFewFiles = 9,
    /// There is too little memory, or no more threads may be started.
    TooLittleMemory = 10,
    /// Another process uses the data directory.
    InUse = 11,
    /// Another version of the program wrote the data directory.
    OtherVersion = 12,
    /// The state differs from that of a quorum of the group.
    Diverged = 13,
}

/// The table of exit codes for `--help`.
pub(crate) const HELP: &str = "\
Exit codes:
  0  an orderly stop
  1  an unforeseen error; the log has it
  2  the options are not valid
  3  stored data is damaged or lost, which is proven: the node refuses to vote; the log says what to do
  4  the disk can't be read or written; the data may be whole
  5  the data directory belongs to another cluster, group or program, was created with other values, or a new group's controllers belong to another cluster
  6  the listen address can't be bound
  7  the disk is full
  8  the process may not use the data directory, or the volume is read-only
  9  the limit of open files is too low
  10 there is too little memory, or no more threads may be started
  11 another process uses the data directory
  12 another version of the program wrote the data directory
  13 the state differs from that of a quorum of the group, which is proven; the log says what to do
Only codes 3 and 13 say that data are wrong. After all others keep the disk: remove the cause, and start again";

/// An error that ends the process.
#[derive(Debug)]
pub(crate) struct Fatal {
    /// The exit code.
    pub(crate) code: ExitCode,
    /// The error text: what happened, and what to do.
    pub(crate) error: anyhow::Error,
}

impl Fatal {
    /// Creates an error with its exit code.
    pub(crate) fn new(code: ExitCode, error: impl Into<anyhow::Error>) -> Self {
        Self {
            code,
            error: error.into(),
        }
    }

    /// Creates the error for an operation that the operating system refused, with the exit code of the cause and what to do.
    /// `otherwise` is the code if the cause has none of its own.
    pub(crate) fn of_system(what: impl Display, otherwise: ExitCode) -> Self {
        let what = what.to_string();
        let cause = Cause::of(&what);
        let code = match cause {
            Cause::OpenFiles => ExitCode::TooFewFiles,
            Cause::Access => ExitCode::NoAccess,
            Cause::Memory => ExitCode::TooLittleMemory,
            Cause::Space => ExitCode::DiskFull,
            Cause::Device | Cause::Other => otherwise,
        };
        Self::message(code, format!("{what}. {}", cause.cure()))
    }

    /// Creates an error from a message with its exit code.
    pub(crate) fn message(code: ExitCode, message: impl Into<String>) -> Self {
        Self::new(code, anyhow::Error::msg(message.into()))
    }
}

impl From<anyhow::Error> for Fatal {
    fn from(error: anyhow::Error) -> Self {
        Self::new(ExitCode::Unexpected, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_of_the_system_has_its_own_code() {
        let table = [
            (
                "x: Too many open files (os error 24)",
                ExitCode::TooFewFiles,
            ),
            ("x: Permission denied (os error 13)", ExitCode::NoAccess),
            ("x: Read-only file system (os error 30)", ExitCode::NoAccess),
            (
                "x: Cannot allocate memory (os error 12)",
                ExitCode::TooLittleMemory,
            ),
            (
                "x: No space left on device (os error 28)",
                ExitCode::DiskFull,
            ),
            ("x: Disk quota exceeded (os error 122)", ExitCode::DiskFull),
            ("x: Input/output error (os error 5)", ExitCode::DiskFailed),
            ("x: Is a directory (os error 21)", ExitCode::DiskFailed),
        ];
        for (text, code) in table {
            let fatal = Fatal::of_system(text, ExitCode::DiskFailed);
            assert_eq!(fatal.code, code, "{text}");
            let said = fatal.error.to_string();
            assert!(said.starts_with(text) && !said.contains("empty"), "{said}");
        }
    }

    #[test]
    fn the_help_has_each_code_once() {
        let codes: Vec<u8> = HELP
            .lines()
            .filter_map(|line| line.strip_prefix("  ")?.split(' ').next()?.parse().ok())
            .collect();
        let last = ExitCode::Diverged as u8;
        assert_eq!(codes, (0..=last).collect::<Vec<_>>());
    }
}
