//! YAML out and in: the only module that knows the YAML library.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A value that has no form in YAML, or text that isn't what it should be.
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

/// The value as one document, without `---` in front.
pub fn write<T: Serialize>(value: &T) -> Result<String, YamlError> {
    // By way of JSON, whose maps are sorted: the order of keys then depends on no declaration.
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
    fn what_is_written_is_read_back() {
        let map = BTreeMap::from([("a".to_owned(), vec![1, 2]), ("b".to_owned(), vec![])]);
        let text = write(&map).unwrap();
        assert_eq!(text, "a:\n- 1\n- 2\nb: []\n");
        assert_eq!(read::<BTreeMap<String, Vec<i32>>>(&text).unwrap(), map);
        assert!(read::<Vec<i32>>(&text).is_err());
    }
}
