//! The options file: a flat YAML mapping. Only this module knows the YAML library.

use std::fmt;

use serde_yaml::Value;

use super::suggest::nearest;
use super::table::{ROWS, find};

/// An error in an options file, with its line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileError {
    /// The line, counted from 1, if it is known.
    pub(crate) line: Option<usize>,
    /// The reason.
    pub(crate) reason: String,
}

impl std::error::Error for FileError {}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.reason),
            None => f.write_str(&self.reason),
        }
    }
}

/// One setting of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    /// A key of the table.
    pub(crate) key: &'static str,
    /// Its value as text; a list is joined by commas.
    pub(crate) value: String,
    /// Its line, counted from 1.
    pub(crate) line: Option<usize>,
}

/// Reads the settings of an options file. An empty file has none.
pub(crate) fn parse(text: &str) -> Result<Vec<Setting>, FileError> {
    let whole: Value = serde_yaml::from_str(text).map_err(|error| FileError {
        line: error.location().map(|location| location.line()),
        reason: format!("not YAML: {error}"),
    })?;
    let mapping = match whole {
        Value::Null => return Ok(Vec::new()),
        Value::Mapping(mapping) => mapping,
        _ => {
            return Err(FileError {
                line: Some(1),
                reason: "expected `option: value` lines".to_owned(),
            });
        }
    };
    mapping
        .into_iter()
        .map(|(key, value)| setting(text, &key, value))
        .collect()
}

fn setting(text: &str, key: &Value, value: Value) -> Result<Setting, FileError> {
    let Some(name) = key.as_str() else {
        return Err(FileError {
            line: None,
            reason: format!("the name of an option must be a word, not {key:?}"),
        });
    };
    let line = line_of(text, name);
    let Some(row) = find(name) else {
        let hint = match nearest(name, ROWS.iter().map(|row| row.key)) {
            Some(right) => format!("did you mean `{right}`?"),
            None => "`shardkv-node --help` lists all options".to_owned(),
        };
        return Err(FileError {
            line,
            reason: format!("unknown option `{name}`; {hint}"),
        });
    };
    match as_text(value) {
        Some(value) => Ok(Setting {
            key: row.key,
            value,
            line,
        }),
        None => Err(FileError {
            line,
            reason: format!("`{name}` needs a value ({}), not a structure", row.unit),
        }),
    }
}

fn as_text(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Sequence(items) => {
            let items: Option<Vec<String>> = items
                .into_iter()
                .map(|item| match item {
                    Value::Sequence(_) => None,
                    scalar => as_text(scalar),
                })
                .collect();
            Some(items?.join(","))
        }
        Value::Null | Value::Mapping(_) | Value::Tagged(_) => None,
    }
}

/// Finds the line that sets `key` at the top level. The YAML library does not keep positions of keys.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let sets = |line: &str| {
        let line = line.trim_start_matches(['{', ' ', '"', '\'']);
        line.strip_prefix(key)
            .is_some_and(|rest| rest.trim_start_matches(['"', '\'', ' ']).starts_with(':'))
    };
    text.lines().position(sets).map(|at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_and_lists_are_read_with_their_lines() {
        let text =
            "# a node\ndata_dir: /d\n\npeers:\n  - a:1\n  - b:2\nlease_reads: true\ntick_ms: 5\n";
        let settings = parse(text).unwrap();
        let got: Vec<(&str, &str, Option<usize>)> = settings
            .iter()
            .map(|s| (s.key, s.value.as_str(), s.line))
            .collect();
        let expected = vec![
            ("data_dir", "/d", Some(2)),
            ("peers", "a:1,b:2", Some(4)),
            ("lease_reads", "true", Some(7)),
            ("tick_ms", "5", Some(8)),
        ];
        assert_eq!(got, expected);
        assert_eq!(parse("").unwrap(), vec![]);
        assert_eq!(parse("# nothing\n").unwrap(), vec![]);
    }

    #[test]
    fn a_typo_is_refused_with_its_line_and_the_right_name() {
        let error = parse("data_dir: /d\nelection_timeout: 400\n").unwrap_err();
        assert_eq!(error.line, Some(2));
        assert!(
            error.reason.contains("did you mean `election_timeout_ms`?"),
            "{error}"
        );
        let error = parse("colour: red").unwrap_err();
        assert!(error.reason.contains("--help"), "{error}");
    }

    #[test]
    fn what_is_no_setting_is_refused() {
        for (text, needle) in [
            ("data_dir: /d\ndata_dir: /e\n", "duplicate"),
            ("tick_ms:\n", "needs a value"),
            ("tick_ms:\n  a: 1\n", "needs a value"),
            ("- a\n- b\n", "expected"),
            ("7: 8\n", "must be a word"),
            ("a: [1\n", "not YAML"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.to_string().contains(needle), "{text:?}: {error}");
        }
    }
}
