//! Quantities of Kubernetes: amounts of CPU, memory and storage.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// An amount such as `500m`, `2` or `4Gi`. The operator checks amounts itself, because for an invalid amount in a pod template
/// the API server's error doesn't name the field.
#[derive(Serialize, Clone, Debug, PartialEq, Eq)]
pub struct Amount(pub String);

/// Digits with at most one point, then a unit or an exponent. Negative amounts are not allowed.
const PATTERN: &str = r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]{1,2})?$";
const MAX_LENGTH: usize = 32;

impl Amount {
    /// Returns true if the text is an amount. A definition older than the operator may accept other texts.
    pub fn is_valid(&self) -> bool {
        let text = self.0.as_str();
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
        let (number, unit) = text.split_at(end.unwrap_or(text.len()));
        let digits = number.bytes().filter(u8::is_ascii_digit).count();
        let exponent = |unit: &str| {
            let power = unit.strip_prefix(['e', 'E'])?;
            let power = power.strip_prefix(['+', '-']).unwrap_or(power);
            let good = (1..=2).contains(&power.len()) && power.bytes().all(|b| b.is_ascii_digit());
            good.then_some(())
        };
        text.len() <= MAX_LENGTH
            && digits > 0
            && number.len() - digits <= 1
            && (matches!(
                unit,
                "" | "n" | "u" | "m" | "k" | "M" | "G" | "T" | "P" | "E"
            ) || matches!(unit, "Ki" | "Mi" | "Gi" | "Ti" | "Pi" | "Ei")
                || exponent(unit).is_some())
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for Amount {
    /// Reads a text or a number: users write `cpu: 2`.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl Visitor<'_> for Any {
            type Value = Amount;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an amount such as 500m, 2 or 4Gi")
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Amount, E> {
                Ok(Amount(number.to_string()))
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Amount, E> {
                Ok(Amount(number.to_string()))
            }

            fn visit_f64<E: Error>(self, number: f64) -> Result<Amount, E> {
                Ok(Amount(number.to_string()))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Amount, E> {
                Ok(Amount(text.to_owned()))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

impl JsonSchema for Amount {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Amount".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"x-kubernetes-int-or-string": true, "pattern": PATTERN, "maxLength": MAX_LENGTH})
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_amounts_are_valid() {
        for good in [
            "0", "2", "2.", ".5", "1.5Gi", "500m", "10k", "1e3", "1E-2", "3E", "7Ei", "100n",
        ] {
            assert!(Amount(good.to_owned()).is_valid(), "{good}");
        }
        let long = "1".repeat(33);
        for bad in [
            "", "many", "1.2.3", "-1", "+1", "1 Gi", "1Gb", "Gi", ".", "1e", "1e+", "1e123", "1ki",
            "²", &long,
        ] {
            assert!(!Amount(bad.to_owned()).is_valid(), "{bad}");
        }
    }

    #[test]
    fn numbers_are_read_as_amounts() {
        let amounts: Vec<Amount> = serde_json::from_value(json!([2, -1, 0.5, "4Gi"])).unwrap();
        let texts: Vec<&str> = amounts.iter().map(|it| it.0.as_str()).collect();
        assert_eq!(texts, ["2", "-1", "0.5", "4Gi"]);
        assert!(serde_json::from_value::<Amount>(json!({})).is_err());
    }
}
