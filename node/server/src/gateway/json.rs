//! JSON of messages, in the form that etcd's gateway has: field names as in the protobuf files, bytes in base64, numbers of 64 bits as
//! strings, and no fields with their default value. It reads other spellings, too, and ignores unknown fields.

use bytes::Bytes;
use prost::Message as _;
use prost_reflect::{DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions};
use serde_json::Deserializer;

/// Reads the first JSON value of `text` as a message, and returns the message encoded, and the rest of the text. Nothing but space
/// is the empty message.
pub(super) fn read(of: MessageDescriptor, text: &[u8]) -> Result<Bytes, serde_json::Error> {
    if text.trim_ascii().is_empty() {
        return Ok(Bytes::new());
    }
    let options = DeserializeOptions::new().deny_unknown_fields(false);
    let mut input = Deserializer::from_slice(text);
    let message = DynamicMessage::deserialize_with_options(of, &mut input, &options)?;
    Ok(message.encode_to_vec().into())
}

/// Returns the length of the first JSON value of `text`, with the space before it; `None` if it isn't whole yet.
pub(super) fn first_value(text: &[u8]) -> Result<Option<usize>, serde_json::Error> {
    let mut values = Deserializer::from_slice(text).into_iter::<serde::de::IgnoredAny>();
    match values.next() {
        Some(Ok(_)) => Ok(Some(values.byte_offset())),
        Some(Err(error)) if error.is_eof() => Ok(None),
        Some(Err(error)) => Err(error),
        None => Ok(None),
    }
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
    fn values_in_a_row_are_told_apart() {
        for (text, expected) in [
            ("", Some(None)),
            (" ", Some(None)),
            ("{", Some(None)),
            (r#"{"a":"}"#, Some(None)),
            (r#" {"a":"}"}{"#, Some(Some(10))),
            ("{}\n{}", Some(Some(2))),
            ("}", None),
        ] {
            let first = first_value(text.as_bytes()).ok();
            assert_eq!(first, expected, "{text}");
        }
    }
}
