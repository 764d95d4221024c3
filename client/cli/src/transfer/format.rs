//! The formats of files: the choice of a format, and its lines.

use std::path::Path;

use super::record::{LineError, Record};
use super::{jsonl, tsv};

/// A file's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum FileFormat {
    /// JSON Lines: {"key":"a","value":"b"}
    Jsonl,
    /// key TAB value, with \t \n \r \\ as escapes
    Tsv,
}

impl FileFormat {
    /// Returns the format of a file: the requested one, or else the one that its extension names, or else JSON Lines.
    pub(crate) fn of(requested: Option<Self>, path: Option<&Path>) -> Self {
        let extension = path
            .and_then(Path::extension)
            .and_then(|extension| extension.to_str());
        requested.unwrap_or(match extension {
            Some("tsv" | "txt" | "tab") => Self::Tsv,
            _ => Self::Jsonl,
        })
    }

    /// Returns the name as `--format` takes it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Jsonl => "jsonl",
            Self::Tsv => "tsv",
        }
    }

    /// Decodes `line`, which has no newline. Returns `None` if the line is blank.
    pub(crate) fn decode(self, line: &[u8]) -> Result<Option<Record>, LineError> {
        if line.trim_ascii().is_empty() && (self == Self::Jsonl || line.is_empty()) {
            return Ok(None);
        }
        let record = match self {
            Self::Jsonl => jsonl::decode(line)?,
            Self::Tsv => tsv::decode(line)?,
        };
        if record.key.is_empty() {
            return Err(LineError::EmptyKey);
        }
        Ok(Some(record))
    }

    /// Adds the line of a record, with its newline, to `out`.
    pub(crate) fn encode(self, key: &[u8], value: &[u8], out: &mut Vec<u8>) {
        match self {
            Self::Jsonl => jsonl::encode(key, value, out),
            Self::Tsv => tsv::encode(key, value, out),
        }
        out.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    /// Draws bytes, with a bias to bytes that the formats treat specially.
    fn nasty_bytes(random: &mut Random, min_length: u64) -> Vec<u8> {
        const SPECIAL: &[u8] = b"\t\n\r\\\"{}tnr\x00\x1b\x7f\xff\xc3\xa9 ";
        let length = min_length + random.below(24);
        (0..length)
            .map(|_| match random.below(3) {
                0 => u8::try_from(random.below(256)).unwrap(),
                1 => SPECIAL[usize::try_from(random.below(SPECIAL.len() as u64)).unwrap()],
                _ => b'a' + u8::try_from(random.below(26)).unwrap(),
            })
            .collect()
    }

    #[test]
    fn any_record_survives_a_round_trip() {
        let mut random = Random::new(7);
        for format in [FileFormat::Jsonl, FileFormat::Tsv] {
            for round in 0..20_000 {
                let key = nasty_bytes(&mut random, 1);
                let value = nasty_bytes(&mut random, 0);
                let mut line = Vec::new();
                format.encode(&key, &value, &mut line);
                assert_eq!(line.pop(), Some(b'\n'));
                assert!(!line.contains(&b'\n'), "one line for each record");
                let decoded = format.decode(&line).unwrap();
                let expected = Some(Record { key, value });
                assert_eq!(decoded, expected, "{format:?}, round {round}");
            }
        }
    }

    #[test]
    fn no_line_makes_the_parsers_panic() {
        let mut random = Random::new(8);
        let mut refused = 0;
        for _ in 0..50_000 {
            let line = nasty_bytes(&mut random, 0);
            for format in [FileFormat::Jsonl, FileFormat::Tsv] {
                refused += u32::from(format.decode(&line).is_err());
            }
        }
        assert!(
            refused > 50_000,
            "most random lines must be refused, but only {refused} were"
        );
    }

    #[test]
    fn names_tell_formats() {
        let of = |requested, path: &str| FileFormat::of(requested, Some(Path::new(path)));
        assert_eq!(of(None, "a.tsv"), FileFormat::Tsv);
        assert_eq!(of(None, "a.jsonl"), FileFormat::Jsonl);
        assert_eq!(of(None, "a"), FileFormat::Jsonl);
        assert_eq!(of(Some(FileFormat::Jsonl), "a.tsv"), FileFormat::Jsonl);
        assert_eq!(FileFormat::of(None, None), FileFormat::Jsonl);
    }
}
