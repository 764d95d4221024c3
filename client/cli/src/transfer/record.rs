//! A record of a file, and the error of a line that holds none.

/// A key and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
}

/// A line that is no record, with what is wrong.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BadLine(String);

impl BadLine {
    pub(super) fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}
