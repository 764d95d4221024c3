//! Reads and writes YAML. No other module uses the YAML library.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A value that can't be written as YAML, or a text that can't be read as the expected type.
#[derive(Debug, thiserror::Error)]
#[error("YAML: {0}")]
pub struct YamlError(String);

impl From<serde_yaml::Error> for YamlError {
    fn from(error: serde_yaml::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<serde_json::Error> for YamlError {
    fn from(error: serde_json::Error) -> Self {
        Self(error.to_string())
    }
}

/// Returns the value as one document, without a leading `---`.
pub fn write<T: Serialize>(value: &T) -> Result<String, YamlError> {
    // JSON's maps are sorted, so the order of keys doesn't depend on the order of fields in Rust.
    let value = serde_json::to_value(value)?;
    Ok(serde_yaml::to_string(&value)?)
}

/// Reads one document.
pub fn read<T: DeserializeOwned>(text: &str) -> Result<T, YamlError> {
    Ok(serde_yaml::from_str(text)?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_written_value_can_be_read_back() {
        let map = BTreeMap::from([("a".to_owned(), vec![1, 2]), ("b".to_owned(), vec![])]);
        let text = write(&map).unwrap();
        assert_eq!(text, "a:\n- 1\n- 2\nb: []\n");
        assert_eq!(read::<BTreeMap<String, Vec<i32>>>(&text).unwrap(), map);
        assert!(read::<Vec<i32>>(&text).is_err());
    }
}
