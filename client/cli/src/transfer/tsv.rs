//! A record as `key TAB value` with four escapes.

use super::record::{LineError, Looks, Record};

/// Decodes a line.
pub(super) fn decode(line: &[u8]) -> Result<Record, LineError> {
    if line.ends_with(b"\r") {
        return Err(LineError::CarriageReturn);
    }
    let mut fields = line.split(|&byte| byte == b'\t');
    let (Some(key), Some(value), rest) = (fields.next(), fields.next(), fields.next()) else {
        return Err(LineError::NoTab(Looks::no_tsv(line)));
    };
    if rest.is_some() {
        return Err(LineError::SecondTab);
    }
    Ok(Record {
        key: unescape(key)?,
        value: unescape(value)?,
    })
}

/// Adds the line of a record to `out`, without a newline.
pub(super) fn encode(key: &[u8], value: &[u8], out: &mut Vec<u8>) {
    escape(key, out);
    out.push(b'\t');
    escape(value, out);
}

fn escape(bytes: &[u8], out: &mut Vec<u8>) {
    for &byte in bytes {
        match byte {
            b'\t' => out.extend_from_slice(br"\t"),
            b'\n' => out.extend_from_slice(br"\n"),
            b'\r' => out.extend_from_slice(br"\r"),
            b'\\' => out.extend_from_slice(br"\\"),
            byte => out.push(byte),
        }
    }
}

fn unescape(field: &[u8]) -> Result<Vec<u8>, LineError> {
    let mut out = Vec::with_capacity(field.len());
    let mut bytes = field.iter();
    while let Some(&byte) = bytes.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        out.push(match bytes.next() {
            Some(b't') => b'\t',
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b'\\') => b'\\',
            Some(other) => return Err(LineError::UnknownEscape(*other)),
            None => return Err(LineError::LoneBackslash),
        });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes() {
        let record = decode(b"a\\tb\\\\\t\\n\\r\xff").unwrap();
        assert_eq!(record.key, b"a\tb\\");
        assert_eq!(record.value, b"\n\r\xff");
        let mut line = Vec::new();
        encode(&record.key, &record.value, &mut line);
        assert_eq!(line, b"a\\tb\\\\\t\\n\\r\xff");
    }

    #[test]
    fn bad_lines_say_what_is_wrong() {
        for (line, words) in [
            (&b"no tab"[..], "no TAB"),
            (b"a,b", "CSV"),
            (br#"{"key":"a"}"#, "--format jsonl"),
            (b"a\tb\tc", "second TAB"),
            (b"a\tb\r", "CR LF"),
            (b"a\t\\q", r"\q is not an escape"),
            (b"a\t\\\xff", r"\\xff is not an escape"),
            (b"a\\\tb", "lone backslash"),
        ] {
            let error = decode(line).unwrap_err().to_string();
            assert!(error.contains(words), "{}: {error}", line.escape_ascii());
        }
    }

    #[test]
    fn an_empty_value_is_a_value() {
        assert_eq!(decode(b"a\t").unwrap().value, b"");
    }
}
