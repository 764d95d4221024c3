//! Exit codes of the process, and the errors that carry them.

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
    /// Stored data is damaged or lost: the node refuses to vote.
    Damaged = 3,
    /// The disk failed while the node ran.
    DiskFailed = 4,
    /// The data directory belongs to another cluster or group or was created with other values, or the controllers are
    /// those of another cluster.
    WrongIdentity = 5,
    /// The listen address can't be bound.
    CannotListen = 6,
}

/// The table of exit codes for `--help`.
pub(crate) const HELP: &str = "\
Exit codes:
  0  an orderly stop
  1  an unforeseen error; the log has it
  2  the options are not valid
  3  stored data is damaged or lost: the node refuses to vote; wipe its data directory to have it rejoin as a new member
  4  the disk failed while the node ran
  5  the data directory belongs to another cluster or group, was created with other values, or the controllers belong to another cluster
  6  the listen address can't be bound";

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
