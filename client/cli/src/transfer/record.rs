//! A record of a file, and the errors of lines that hold none.

use std::ascii::escape_default;

/// A key and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
}

/// The shape of a record in JSON.
const SHAPE: &str = r#"{"key":"a","value":"b"}"#;

/// A guess at the format of a line that holds no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Looks {
    #[error("; it looks like TSV: give --format tsv")]
    Tsv,
    #[error("; it looks like JSON Lines: give --format jsonl")]
    Jsonl,
    #[error(
        "; it looks like CSV: write TSV, with a TAB between key and value, and give --format tsv"
    )]
    Csv,
    #[error("; it looks like a JSON array: take it apart with `jq -c '.[]'`")]
    Array,
    #[error("")]
    Unknown,
}

impl Looks {
    /// Guesses the format of a line that is not JSON of the known fields.
    pub(super) fn no_json(line: &[u8]) -> Self {
        match line.trim_ascii_start().first() {
            Some(b'[') => Self::Array,
            Some(b'{') => Self::Unknown,
            _ if line.contains(&b'\t') => Self::Tsv,
            _ if line.contains(&b',') => Self::Csv,
            _ => Self::Unknown,
        }
    }

    /// Guesses the format of a line without a TAB.
    pub(super) fn no_tsv(line: &[u8]) -> Self {
        let line = line.trim_ascii();
        if line.starts_with(b"{") && line.ends_with(b"}") {
            Self::Jsonl
        } else if line.contains(&b',') {
            Self::Csv
        } else {
            Self::Unknown
        }
    }
}

/// A reason that a line is not a record. The text says how to write it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LineError {
    /// The key is empty, in any format.
    #[error("the key is empty")]
    EmptyKey,
    /// JSON Lines: the line is not JSON, or not an object of the known fields.
    #[error("not a record in JSON such as {SHAPE} ({error}){looks}")]
    Json {
        error: serde_json::Error,
        looks: Looks,
    },
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
    #[error("there is no TAB between key and value{0}")]
    NoTab(Looks),
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
