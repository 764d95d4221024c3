//! Splits a line into words, by the quoting rules of the interactive shell.
//!
//! Blanks separate words. Single quotes keep everything between them. Elsewhere a backslash escapes: `\n \t \r \\ \" \'`,
//! a blank, `#`, and `\xNN` for any byte; double quotes keep blanks together. `#` before a word starts a comment. What
//! tables print with backslashes reads back as the same bytes.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use crate::encoding::hex_digit;

/// A reason that a line can't be split into words.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum WordError {
    /// A quote or an escape is open at the end.
    #[error("the line ends inside {0}")]
    Open(&'static str),
    /// A backslash before something that isn't special.
    #[error(r"\{0} is not an escape; write a backslash as \\, or put the word in single quotes")]
    Escape(char),
}

/// Splits a line into words.
pub(super) fn split(line: &[u8]) -> Result<Vec<OsString>, WordError> {
    let mut words = Vec::new();
    let mut word: Option<Vec<u8>> = None;
    let mut bytes = line.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => words.extend(word.take().map(OsString::from_vec)),
            b'#' if word.is_none() => break,
            b'\'' => single_quoted(&mut bytes, word.get_or_insert_default())?,
            b'"' => double_quoted(&mut bytes, word.get_or_insert_default())?,
            b'\\' => word.get_or_insert_default().push(escaped(&mut bytes)?),
            byte => word.get_or_insert_default().push(byte),
        }
    }
    words.extend(word.map(OsString::from_vec));
    Ok(words)
}

fn single_quoted(
    bytes: &mut impl Iterator<Item = u8>,
    word: &mut Vec<u8>,
) -> Result<(), WordError> {
    loop {
        match bytes.next() {
            Some(b'\'') => return Ok(()),
            Some(byte) => word.push(byte),
            None => return Err(WordError::Open("single quotes")),
        }
    }
}

fn double_quoted(
    bytes: &mut impl Iterator<Item = u8>,
    word: &mut Vec<u8>,
) -> Result<(), WordError> {
    loop {
        match bytes.next() {
            Some(b'"') => return Ok(()),
            Some(b'\\') => word.push(escaped(bytes)?),
            Some(byte) => word.push(byte),
            None => return Err(WordError::Open("double quotes")),
        }
    }
}

fn escaped(bytes: &mut impl Iterator<Item = u8>) -> Result<u8, WordError> {
    let open = || WordError::Open("an escape");
    match bytes.next().ok_or_else(open)? {
        b'n' => Ok(b'\n'),
        b't' => Ok(b'\t'),
        b'r' => Ok(b'\r'),
        literal @ (b'\\' | b'"' | b'\'' | b' ' | b'#') => Ok(literal),
        b'x' => {
            let mut digit = || {
                let byte = bytes.next().ok_or_else(open)?;
                hex_digit(byte).ok_or(WordError::Escape('x'))
            };
            Ok(digit()? << 4 | digit()?)
        }
        other => Err(WordError::Escape(other.into())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt as _;

    use super::*;
    use crate::encoding::Encoding;
    use crate::random::Random;

    #[test]
    fn quoting() {
        for (line, words) in [
            ("", &[][..]),
            ("  # only a comment", &[]),
            ("put a 1", &["put", "a", "1"]),
            ("\tput  a#b 1 # why\r\n", &["put", "a#b", "1"]),
            (r"put 'a b' '\n'", &["put", "a b", r"\n"]),
            (r#"put "a 'b'\"c" """#, &["put", r#"a 'b'"c"#, ""]),
            (r"a\ b\\ \#c \'", &["a b\\", "#c", "'"]),
            (r#"x'1 2'"3"\n"#, &["x1 23\n"]),
        ] {
            let expected: Vec<OsString> = words.iter().map(OsString::from).collect();
            assert_eq!(split(line.as_bytes()), Ok(expected), "{line}");
        }
        assert_eq!(split(br"\xff\x00").unwrap()[0].as_bytes(), b"\xff\x00");
    }

    #[test]
    fn open_lines_are_refused() {
        for (line, error) in [
            ("'a", WordError::Open("single quotes")),
            ("\"a\\\"", WordError::Open("double quotes")),
            ("a\\", WordError::Open("an escape")),
            ("\\x1", WordError::Open("an escape")),
            ("\\xg1", WordError::Escape('x')),
            ("\\q", WordError::Escape('q')),
        ] {
            assert_eq!(split(line.as_bytes()), Err(error), "{line}");
        }
    }

    #[test]
    fn what_tables_show_reads_back() {
        let mut random = Random::new(3);
        for _ in 0..5_000 {
            let bytes: Vec<u8> = (0..random.below(12))
                .map(|_| u8::try_from(random.below(256)).unwrap())
                .collect();
            let quoted = format!("\"{}\"", Encoding::Utf8.show(&bytes).replace('"', "\\\""));
            let words = split(quoted.as_bytes()).unwrap();
            assert_eq!(words[0].as_bytes(), bytes, "{quoted}");
        }
    }
}
