//! A record of a file, and the errors of lines that hold none.

use std::ascii::escape_default;

/// A key and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
}

/// A reason that a line is not a record. The text says how to write it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LineError {
    /// The key is empty, in any format.
    #[error("the key is empty")]
    EmptyKey,
    /// JSON Lines: the line is not JSON, or not an object of the known fields.
    #[error("not a record in JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// JSON Lines: the key or the value is missing.
    #[error(r#"there is no "{0}" (or "{0}_base64", "{0}_hex")"#)]
    MissingField(&'static str),
    /// JSON Lines: the key or the value is given in two encodings.
    #[error(r#""{0}" is given twice, in two encodings"#)]
    RepeatedField(&'static str),
    /// JSON Lines: a field's text is not valid in its encoding.
    #[error(r#""{0}" is not in the encoding that its name says"#)]
    Encoding(&'static str),
    /// TSV: the file comes from Windows.
    #[error(
        r"the line ends with CR LF: convert the file with `tr -d '\r'`, or write a carriage return that belongs to the value as \r"
    )]
    CarriageReturn,
    /// TSV: the line has one field.
    #[error("there is no TAB between key and value")]
    NoTab,
    /// TSV: the line has more than two fields.
    #[error(r"there is a second TAB: write a tab inside a value as \t")]
    SecondTab,
    /// TSV: a backslash stands before a byte that it can't escape.
    #[error(r"\{} is not an escape: write a backslash as \\", escape_default(*.0))]
    UnknownEscape(u8),
    /// TSV: a backslash is the last byte of a field.
    #[error(r"a field ends with a lone backslash: write it as \\")]
    LoneBackslash,
}
