//! A record as one JSON object.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::record::{LineError, Looks, Record};
use crate::encoding::Encoding;

/// The fields of a record. An unknown field is refused, never dropped: it may be a misspelt `value`.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    key: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    key_base64: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    key_hex: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    value: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    value_base64: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    value_hex: Option<Cow<'a, str>>,
}

/// Decodes a line.
pub(super) fn decode(line: &[u8]) -> Result<Record, LineError> {
    let line: Line<'_> = serde_json::from_slice(line).map_err(|error| LineError::Json {
        error,
        looks: Looks::no_json(line),
    })?;
    Ok(Record {
        key: field("key", [line.key, line.key_base64, line.key_hex])?,
        value: field("value", [line.value, line.value_base64, line.value_hex])?,
    })
}

/// Decodes a field, which is given in exactly one of three encodings.
fn field(name: &'static str, texts: [Option<Cow<'_, str>>; 3]) -> Result<Vec<u8>, LineError> {
    let encodings = [Encoding::Utf8, Encoding::Base64, Encoding::Hex];
    let mut given = encodings
        .into_iter()
        .zip(texts)
        .filter_map(|(encoding, text)| Some((encoding, text?)));
    let Some((encoding, text)) = given.next() else {
        return Err(LineError::MissingField(name));
    };
    if given.next().is_some() {
        return Err(LineError::RepeatedField(name));
    }
    encoding.decode(&text).ok_or(LineError::Encoding(name))
}

/// Adds the line of a record to `out`, without a newline.
pub(super) fn encode(key: &[u8], value: &[u8], out: &mut Vec<u8>) {
    let mut line = Line::default();
    match std::str::from_utf8(key) {
        Ok(text) => line.key = Some(text.into()),
        Err(_) => line.key_base64 = Some(Encoding::Base64.show(key).into()),
    }
    match std::str::from_utf8(value) {
        Ok(text) => line.value = Some(text.into()),
        Err(_) => line.value_base64 = Some(Encoding::Base64.show(value).into()),
    }
    // Writing text fields to memory never fails.
    let _ = serde_json::to_writer(out, &line);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_their_own_names() {
        for line in [
            r#"{"key":"aÿ","value":"\u0000"}"#,
            r#" {"value_hex":"00", "key_base64":"YcO/"} "#,
        ] {
            let record = decode(line.as_bytes()).unwrap();
            assert_eq!((record.key, record.value), ("aÿ".into(), vec![0]), "{line}");
        }
        let mut line = Vec::new();
        encode(b"k", b"\xff", &mut line);
        assert_eq!(line, br#"{"key":"k","value_base64":"/w=="}"#);
    }

    #[test]
    fn bad_lines_say_what_is_wrong() {
        for (line, words) in [
            ("{", "not a record in JSON"),
            ("[]", "not a record in JSON"),
            (r#"{"key":"a"}"#, r#"no "value""#),
            (r#"{"value":"a"}"#, r#"no "key""#),
            (r#"{"key":"a","value":1}"#, "not a record"),
            (r#"{"key":"a","val":"b"}"#, "unknown field"),
            (r#"{"key":"a","key_hex":"61","value":""}"#, "twice"),
            (r#"{"key_hex":"6","value":""}"#, "encoding"),
            (r#"{"key":"a","value":"b"} x"#, "trailing"),
            ("a\tb", "--format tsv"),
            ("a,b", "CSV"),
            ("[{}]", "jq -c"),
            ("x", r#"such as {"key":"a","value":"b"}"#),
        ] {
            let error = decode(line.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(words), "{line}: {error}");
        }
    }
}
