//! The output formats. Only this module knows them, so that all commands look the same.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::{Map, Value};

use crate::encoding::{Encoding, confuses};

/// The format of results.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// One JSON object a line.
    Json,
    /// Aligned text for a terminal.
    #[default]
    Table,
    /// Bytes as they are, with nothing around them.
    Raw,
}

/// The format of results and the encoding of the bytes in them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Style {
    pub(crate) format: Format,
    pub(crate) encoding: Encoding,
}

/// The result of a command on keys.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer<'a> {
    /// `get`: the value, or `None` if the key does not exist.
    Value {
        key: &'a [u8],
        value: Option<&'a [u8]>,
    },
    /// `put` was done.
    Put { key: &'a [u8] },
    /// `append`: the length in bytes afterwards.
    Length { key: &'a [u8], length: u64 },
    /// `delete`: true if the key existed.
    Deleted { key: &'a [u8], existed: bool },
    /// `delete --prefix`: the number of keys that existed.
    DeletedAll { prefix: &'a [u8], deleted: u64 },
    /// `cas`: true if the value was changed.
    Swapped { key: &'a [u8], swapped: bool },
    /// One pair of a scan; no value with `--keys-only`.
    Pair {
        key: &'a [u8],
        value: Option<&'a [u8]>,
    },
}

impl Style {
    /// Writes one answer.
    pub(crate) fn write(self, out: &mut dyn Write, answer: &Answer<'_>) -> io::Result<()> {
        match self.format {
            Format::Json => self.write_json(out, answer),
            Format::Table => self.write_text(out, answer),
            Format::Raw => write_raw(out, answer),
        }
    }

    fn write_json(self, out: &mut dyn Write, answer: &Answer<'_>) -> io::Result<()> {
        let mut object = Map::new();
        let mut bytes = |name: &str, bytes: &[u8]| {
            let (name, text) = self.encoding.json_field(name, bytes);
            object.insert(name, Value::String(text));
        };
        match *answer {
            Answer::Value { key, value } => {
                bytes("key", key);
                if let Some(value) = value {
                    bytes("value", value);
                }
                object.insert("found".into(), value.is_some().into());
            }
            Answer::Put { key } => bytes("key", key),
            Answer::Length { key, length } => {
                bytes("key", key);
                object.insert("length".into(), length.into());
            }
            Answer::Deleted { key, existed } => {
                bytes("key", key);
                object.insert("existed".into(), existed.into());
            }
            Answer::DeletedAll { prefix, deleted } => {
                bytes("prefix", prefix);
                object.insert("deleted".into(), deleted.into());
            }
            Answer::Swapped { key, swapped } => {
                bytes("key", key);
                object.insert("swapped".into(), swapped.into());
            }
            Answer::Pair { key, value } => {
                bytes("key", key);
                if let Some(value) = value {
                    bytes("value", value);
                }
            }
        }
        json_line(out, &object)
    }

    fn write_text(self, out: &mut dyn Write, answer: &Answer<'_>) -> io::Result<()> {
        let show = |bytes| self.encoding.show(bytes);
        match *answer {
            Answer::Value { value: None, .. } => Ok(()),
            Answer::Value {
                value: Some(value), ..
            } => writeln!(out, "{}", show(value)),
            Answer::Put { .. } => writeln!(out, "ok"),
            Answer::Length { length, .. } => writeln!(out, "ok: {length} bytes now"),
            Answer::Deleted { existed: true, .. } => writeln!(out, "ok: deleted"),
            Answer::Deleted { existed: false, .. } | Answer::DeletedAll { deleted: 0, .. } => {
                writeln!(out, "nothing to delete")
            }
            Answer::DeletedAll { deleted, .. } => {
                writeln!(out, "ok: {} keys deleted", grouped(deleted))
            }
            Answer::Swapped { swapped: true, .. } => writeln!(out, "ok: swapped"),
            Answer::Swapped { swapped: false, .. } => writeln!(out, "not swapped"),
            Answer::Pair { key, value: None } => writeln!(out, "{}", show(key)),
            Answer::Pair {
                key,
                value: Some(value),
            } => writeln!(out, "{}\t{}", show(key), show(value)),
        }
    }
}

/// Bytes as they are: a value alone, so that it can be piped; of a scan, key TAB value NEWLINE.
fn write_raw(out: &mut dyn Write, answer: &Answer<'_>) -> io::Result<()> {
    match *answer {
        Answer::Value { value, .. } => out.write_all(value.unwrap_or_default()),
        Answer::Length { length, .. } => write!(out, "{length}"),
        Answer::DeletedAll { deleted, .. } => write!(out, "{deleted}"),
        Answer::Put { .. } | Answer::Deleted { .. } | Answer::Swapped { .. } => Ok(()),
        Answer::Pair { key, value } => {
            out.write_all(key)?;
            if let Some(value) = value {
                out.write_all(b"\t")?;
                out.write_all(value)?;
            }
            out.write_all(b"\n")
        }
    }
}

/// Writes `value` as one line of JSON.
pub(crate) fn json_line(out: &mut dyn Write, value: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_string(value)?;
    if !text.contains(confuses) {
        return writeln!(out, "{text}");
    }
    // Only strings have such characters, and there \u means the same.
    for c in text.chars() {
        if confuses(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(out, "\\u{unit:04x}")?;
            }
        } else {
            write!(out, "{c}")?;
        }
    }
    out.write_all(b"\n")
}

/// A table for a terminal: columns as wide as their cells, numbers aligned to the right.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these column names.
    pub(crate) fn new(header: &[&str]) -> Self {
        Self {
            rows: vec![header.iter().map(|&name| name.to_owned()).collect()],
        }
    }

    /// Adds a row; short ones end with empty cells.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Writes the header and the rows.
    pub(crate) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let shapes: Vec<(usize, bool)> = (0..columns).map(|column| self.shape(column)).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (column, &(width, numeric)) in shapes.iter().enumerate() {
                let cell = row.get(column).map_or("", String::as_str);
                let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
                let (before, after) = if numeric {
                    (padding.as_str(), "")
                } else {
                    ("", padding.as_str())
                };
                if column > 0 {
                    line.push_str("  ");
                }
                line.push_str(before);
                line.push_str(cell);
                line.push_str(after);
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }

    /// A column's width in characters, and a flag that is true if all its cells are numbers.
    fn shape(&self, column: usize) -> (usize, bool) {
        let cells = || self.rows.iter().filter_map(|row| row.get(column));
        let width = cells().map(|cell| cell.chars().count()).max().unwrap_or(0);
        let mut body = cells().skip(1).filter(|cell| !cell.is_empty()).peekable();
        let numeric = body.peek().is_some()
            && body.all(|cell| {
                cell.starts_with(|c: char| c.is_ascii_digit())
                    && cell
                        .chars()
                        .all(|c| c.is_ascii_digit() || ".,%".contains(c))
            });
        (width, numeric)
    }
}

/// Formats a whole number with commas between groups of three digits.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Formats a number of bytes in binary units.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1_024 {
        return format!("{bytes} B");
    }
    let mut unit = 0;
    let mut shift = 10;
    while unit + 1 < UNITS.len() && bytes >> (shift + 10) > 0 {
        unit += 1;
        shift += 10;
    }
    // Integer arithmetic gives exact tenths.
    let tenths = (u128::from(bytes) * 10) >> shift;
    format!(
        "{}.{} {}",
        tenths / 10,
        tenths % 10,
        UNITS.get(unit).unwrap_or(&"")
    )
}

/// Shortens a list of shard runs to the width of a table's cell: keeps the first runs.
pub(crate) fn shorten(runs: &str) -> String {
    const CHARS: usize = 40;
    if runs.len() <= CHARS {
        return runs.to_owned();
    }
    let kept = runs.get(..CHARS).and_then(|head| head.rfind(','));
    let kept = kept.and_then(|comma| runs.get(..comma)).unwrap_or_default();
    format!("{kept},...")
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    fn written(format: Format, encoding: Encoding, answer: &Answer<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        Style { format, encoding }.write(&mut out, answer).unwrap();
        out
    }

    /// All answers in all formats, as a script reads them: this is an interface.
    #[test]
    fn formats_match_the_golden() {
        let key = b"k\t1".as_slice();
        let answers = [
            Answer::Value {
                key,
                value: Some(b"v\n\xff"),
            },
            Answer::Value {
                key,
                value: Some(b"text"),
            },
            Answer::Value { key, value: None },
            Answer::Put { key },
            Answer::Length { key, length: 12 },
            Answer::Deleted { key, existed: true },
            Answer::Deleted {
                key,
                existed: false,
            },
            Answer::DeletedAll {
                prefix: key,
                deleted: 1_234,
            },
            Answer::DeletedAll {
                prefix: key,
                deleted: 0,
            },
            Answer::Swapped { key, swapped: true },
            Answer::Swapped {
                key,
                swapped: false,
            },
            Answer::Pair {
                key,
                value: Some(b"v"),
            },
            Answer::Pair { key, value: None },
        ];
        let mut golden = String::new();
        for answer in &answers {
            writeln!(golden, "# {answer:?}").unwrap();
            for format in [Format::Table, Format::Json, Format::Raw] {
                for encoding in [Encoding::Utf8, Encoding::Base64, Encoding::Hex] {
                    let bytes = written(format, encoding, answer);
                    let bytes = bytes.escape_ascii();
                    writeln!(golden, "{format:?} {encoding:?}: {bytes}").unwrap();
                }
            }
        }
        crate::golden::check("output.txt", &golden);
    }

    #[test]
    fn json_escapes_what_would_confuse_a_terminal() {
        let mut out = Vec::new();
        let value = serde_json::json!({"a\u{202e}b": "\u{7f}\u{9b}\u{e0001}\u{e9}"});
        json_line(&mut out, &value).unwrap();
        let line = String::from_utf8(out).unwrap();
        let expected = r#"{"a\u202eb":"\u007f\u009b\udb40\udc01é"}"#;
        assert_eq!(line.trim_end(), expected);
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), value);
    }

    #[test]
    fn a_table_aligns_text_left_and_numbers_right() {
        let mut table = Table::new(&["name", "count", "note"]);
        table.row(vec!["é".into(), "7".into(), "x".into()]);
        table.row(vec!["longer".into(), "1,234".into()]);
        let mut out = Vec::new();
        table.write(&mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "name    count  note\né           7  x\nlonger  1,234\n"
        );
    }

    #[test]
    fn numbers_are_grouped() {
        let shown: Vec<String> = [0, 999, 1_000, 1_234_567].map(grouped).to_vec();
        assert_eq!(shown, ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn sizes_are_for_people() {
        let shown = [0, 1_023, 1_024, 1_536, 1 << 20, 5 << 40, u64::MAX].map(size);
        assert_eq!(
            shown,
            [
                "0 B",
                "1023 B",
                "1.0 KiB",
                "1.5 KiB",
                "1.0 MiB",
                "5.0 TiB",
                "16383.9 PiB"
            ]
        );
    }
}
