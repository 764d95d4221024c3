//! JSON of messages, in the form that etcd's gateway has: field names as in the protobuf files, bytes in base64, numbers of 64 bits as
//! strings, and no fields with their default value. It reads other spellings, too, and ignores unknown fields.

use bytes::Bytes;
use prost::Message as _;
use prost_reflect::{DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions};
use serde_json::Deserializer;

/// A message up to this size is converted at once. A larger one would hold up the thread of the network, which also carries what
/// the members of the group tell each other.
const SMALL_BYTES: usize = 64 << 10;
/// The largest message that is written.
const MAX_WRITTEN_BYTES: usize = 16 << 20;

/// Reads the first JSON value of `text` as a message, and returns it encoded. Nothing but space is the empty message.
pub(super) fn read(of: MessageDescriptor, text: &[u8]) -> Result<Bytes, serde_json::Error> {
    if text.trim_ascii().is_empty() {
        return Ok(Bytes::new());
    }
    let options = DeserializeOptions::new().deny_unknown_fields(false);
    let mut input = Deserializer::from_slice(text);
    let message = DynamicMessage::deserialize_with_options(of, &mut input, &options)?;
    Ok(message.encode_to_vec().into())
}

/// Finds the ends of JSON objects in a text that arrives in pieces. It looks at each byte once.
#[derive(Debug, Default)]
pub(super) struct Objects {
    /// The bytes that were looked at.
    seen: usize,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Objects {
    /// Returns the length of the text up to the end of its first object; `None` if that isn't there yet. A text that begins with
    /// something else ends at once, so that reading it finds the fault. After an end the text begins anew.
    pub(super) fn end(&mut self, text: &[u8]) -> Option<usize> {
        let rest = text.get(self.seen..).unwrap_or_default();
        for byte in rest {
            self.seen += 1;
            if self.escaped {
                self.escaped = false;
                continue;
            }
            match byte {
                b'\\' if self.in_string => self.escaped = true,
                b'"' if self.depth > 0 => self.in_string = !self.in_string,
                b'{' if !self.in_string => self.depth += 1,
                b'}' if !self.in_string && self.depth > 1 => self.depth -= 1,
                b'}' if !self.in_string => return Some(std::mem::take(self).seen),
                byte if self.depth == 0 && !byte.is_ascii_whitespace() => {
                    return Some(std::mem::take(self).seen);
                }
                _ => {}
            }
        }
        None
    }
}

/// Writes an encoded message as JSON, on another thread if it is large.
pub(super) async fn write_apart(of: MessageDescriptor, message: Bytes) -> Result<Vec<u8>, String> {
    if message.len() > MAX_WRITTEN_BYTES {
        return Err(format!(
            "the answer has {} bytes, and at most {MAX_WRITTEN_BYTES} are told in JSON: ask for less, or by gRPC",
            message.len()
        ));
    }
    if message.len() <= SMALL_BYTES {
        return write(of, message);
    }
    let written = tokio::task::spawn_blocking(move || write(of, message)).await;
    written.map_err(|error| error.to_string())?
}

/// Writes an encoded message as JSON.
pub(super) fn write(of: MessageDescriptor, message: Bytes) -> Result<Vec<u8>, String> {
    let message = DynamicMessage::decode(of, message).map_err(|error| error.to_string())?;
    let options = SerializeOptions::new().use_proto_field_name(true);
    let mut text = Vec::new();
    let mut output = serde_json::Serializer::new(&mut text);
    let written = message.serialize_with_options(&mut output, &options);
    written.map_err(|error| error.to_string())?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::super::routes::Method;
    use super::*;

    fn put() -> Method {
        Method::named("etcdserverpb.KV", "Put").unwrap()
    }

    fn of(text: &str) -> Result<String, serde_json::Error> {
        let message = read(put().request(), text.as_bytes())?;
        Ok(String::from_utf8(write(put().request(), message).unwrap()).unwrap())
    }

    #[test]
    fn messages_are_written_as_etcds_gateway_does() {
        for (text, expected) in [
            ("", "{}"),
            ("  \n", "{}"),
            ("{}", "{}"),
            (
                r#"{"key":"Zm9v","value":"YmFy"}"#,
                r#"{"key":"Zm9v","value":"YmFy"}"#,
            ),
            // Both spellings of names; numbers with and without quotes; what is unknown or default is left out.
            (
                r#"{"prevKv":true,"lease":7,"key":"","nonsense":[1]}"#,
                r#"{"lease":"7","prev_kv":true}"#,
            ),
            (
                r#"{"prev_kv":true,"lease":"-7"} and more"#,
                r#"{"lease":"-7","prev_kv":true}"#,
            ),
        ] {
            assert_eq!(of(text).unwrap(), expected, "{text}");
        }
        for text in [
            "{",
            "[]",
            r#"{"key":"!!"}"#,
            r#"{"lease":"x"}"#,
            "\u{feff}{}",
        ] {
            assert!(of(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_of_enumerations_and_odd_fields_are_etcds() {
        let range = Method::named("etcdserverpb.KV", "Range").unwrap();
        for text in [
            r#"{"sort_order":"DESCEND","sort_target":"MOD"}"#,
            r#"{"sortOrder":2,"sortTarget":3}"#,
        ] {
            let message = read(range.request(), text.as_bytes()).unwrap();
            let text = write(range.request(), message).unwrap();
            assert_eq!(text, br#"{"sort_order":"DESCEND","sort_target":"MOD"}"#);
        }
        let grant = Method::named("etcdserverpb.Lease", "LeaseGrant").unwrap();
        let text = br#"{"TTL":"30","ID":"7"}"#;
        let message = read(grant.request(), text).unwrap();
        assert_eq!(write(grant.request(), message).unwrap(), text);
        let status = Method::named("etcdserverpb.Maintenance", "Status").unwrap();
        let text = br#"{"version":"3.7.3","dbSize":"5","raftIndex":"9"}"#;
        let message = read(status.answer(), text).unwrap();
        assert_eq!(write(status.answer(), message).unwrap(), text);
    }

    #[test]
    fn objects_in_a_row_are_told_apart_however_they_arrive() {
        for (text, expected) in [
            ("", None),
            (" ", None),
            ("{", None),
            (r#"{"a":"}"#, None),
            (r#"{"a":"\"}"#, None),
            (r#" {"a":"}"}{"#, Some(10)),
            (r#"{"a":"\"}","b":{}}{"#, Some(18)),
            ("{}\n{}", Some(2)),
            ("}", Some(1)),
            ("[]", Some(1)),
        ] {
            for pieces in [1, 3, text.len().max(1)] {
                let mut objects = Objects::default();
                let ends = (1..=text.len()).filter(|end| end % pieces == 0 || *end == text.len());
                let found = ends
                    .into_iter()
                    .find_map(|end| objects.end(&text.as_bytes()[..end]));
                assert_eq!(found, expected, "{text} by {pieces}");
            }
        }
        let mut objects = Objects::default();
        assert_eq!(objects.end(b"{} {}"), Some(2));
        assert_eq!(objects.end(b" {}"), Some(3), "it begins anew");
    }
}
