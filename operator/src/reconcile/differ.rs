//! Compares a live object with the wanted one. Pure.
//!
//! A live object has more fields than the operator set: defaults, and fields of other controllers. So the wanted object
//! must be *contained* in the live one. Containment doesn't show a field that was wanted once and isn't any more; a
//! changed hash of the last applied content, kept in an annotation, does.

use serde_json::{Map, Value};

/// Lists that several writers share, with the fields that identify their elements: elements added by other writers are
/// no difference. Every other list is compared as a whole.
const SHARED_LISTS: &[(&str, &[&str])] = &[
    ("containers", &["name"]),
    ("env", &["name"]),
    ("imagePullSecrets", &["name"]),
    ("ownerReferences", &["uid"]),
    (
        "topologySpreadConstraints",
        &["topologyKey", "whenUnsatisfiable"],
    ),
    ("volumeMounts", &["mountPath"]),
    ("volumes", &["name"]),
];

/// Maps with quantities as values: `0.1` and `100m` are equal.
const AMOUNTS: &[&str] = &["requests", "limits"];

/// Returns true if `live` contains all of `wanted`. Empty and absent are equal, and so are quantities of the same
/// value.
pub(super) fn contains(live: &Value, wanted: &Value) -> bool {
    value("", Some(live), wanted)
}

fn value(field: &str, live: Option<&Value>, wanted: &Value) -> bool {
    match (live, wanted) {
        (None | Some(Value::Null), wanted) => is_empty(wanted),
        (Some(Value::Object(live)), Value::Object(wanted)) => object(field, live, wanted),
        (Some(Value::Array(live)), Value::Array(wanted)) => list(field, live, wanted),
        (Some(live), Value::Null) => is_empty(live),
        (Some(live), wanted) => live == wanted,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

fn object(field: &str, live: &Map<String, Value>, wanted: &Map<String, Value>) -> bool {
    let amounts = AMOUNTS.contains(&field);
    wanted.iter().all(|(key, wanted)| match live.get(key) {
        Some(live) if amounts => same_amount(live, wanted),
        live => value(key, live, wanted),
    })
}

fn list(field: &str, live: &[Value], wanted: &[Value]) -> bool {
    let Some((_, keys)) = SHARED_LISTS.iter().find(|(name, _)| *name == field) else {
        let pairs = live.iter().zip(wanted);
        return live.len() == wanted.len()
            && pairs
                .into_iter()
                .all(|(live, wanted)| value("", Some(live), wanted));
    };
    wanted.iter().all(|wanted| {
        let same = |live: &&Value| keys.iter().all(|key| live.get(key) == wanted.get(key));
        let live = live.iter().find(same);
        live.is_some_and(|live| value("", Some(live), wanted))
    })
}

fn same_amount(live: &Value, wanted: &Value) -> bool {
    if live == wanted {
        return true;
    }
    let amount = |value: &Value| match value {
        Value::String(text) => nanos(text),
        Value::Number(number) => nanos(&number.to_string()),
        _ => None,
    };
    amount(live).is_some_and(|live| amount(wanted) == Some(live))
}

/// Returns the value of a Kubernetes quantity in billionths, its finest resolution; finer values are rounded up, as
/// Kubernetes does. Returns `None` if the text is not a quantity or is out of range.
fn nanos(text: &str) -> Option<i128> {
    let split = text.find(|c: char| !matches!(c, '0'..='9' | '.' | '+' | '-'));
    let (number, suffix) = text.split_at(split.unwrap_or(text.len()));
    let (multiplier, exponent) = scale(suffix)?;
    let (sign, number) = match number.strip_prefix('-') {
        Some(number) => (-1, number),
        None => (1, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}");
    // `parse` would accept a second sign, and report an empty text as an error of its own.
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value = digits.parse::<i128>().ok()?.checked_mul(multiplier)?;
    let shift = exponent + 9 - i32::try_from(fraction.len()).ok()?;
    let power = 10_i128.checked_pow(shift.unsigned_abs())?;
    let value = if shift >= 0 {
        value.checked_mul(power)?
    } else {
        value.div_euclid(power) + i128::from(value.rem_euclid(power) != 0)
    };
    Some(sign * value)
}

/// Returns a suffix as a factor and a power of ten.
fn scale(suffix: &str) -> Option<(i128, i32)> {
    let binary = |power: u32| Some((1_i128 << (10 * power), 0));
    match suffix {
        "" => Some((1, 0)),
        "n" => Some((1, -9)),
        "u" => Some((1, -6)),
        "m" => Some((1, -3)),
        "k" => Some((1, 3)),
        "M" => Some((1, 6)),
        "G" => Some((1, 9)),
        "T" => Some((1, 12)),
        "P" => Some((1, 15)),
        "E" => Some((1, 18)),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?.parse::<i32>().ok()?;
            (-18..=18).contains(&exponent).then_some((1, exponent))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn amounts_are_compared_by_value() {
        for (a, b) in [
            ("0.1", "100m"),
            ("1", "1000m"),
            ("1024Mi", "1Gi"),
            ("1Ki", "1024"),
            ("1e3", "1k"),
            ("1E3", "1000"),
            ("0.5Gi", "512Mi"),
            ("+1.50", "1.5"),
            (".5", "500m"),
            ("-1", "-1000m"),
            ("100n", "0.0000001"),
            ("0.0000000001", "1n"),
            ("1Ei", "1152921504606846976"),
        ] {
            assert!(nanos(a).is_some(), "{a}");
            assert_eq!(nanos(a), nanos(b), "{a} {b}");
        }
        for (a, b) in [("1G", "1Gi"), ("100m", "100"), ("1M", "1m"), ("1", "-1")] {
            assert_ne!(nanos(a), nanos(b), "{a} {b}");
        }
        for bad in [
            "", "Gi", "1 Gi", "1.2.3", "--1", "1-", "1gi", "1e99", "e3", "1e", "ten",
        ] {
            assert_eq!(nanos(bad), None, "{bad}");
        }
        let huge = "9".repeat(60);
        assert_eq!(nanos(&huge), None);
        assert!(same_amount(&json!("ten"), &json!("ten")));
        assert!(!same_amount(&json!("ten"), &json!("10")));
        assert!(same_amount(&json!(2), &json!("2000m")));
    }

    #[test]
    fn what_is_wanted_must_be_there() {
        let live = json!({
            "metadata": {"labels": {"a": "1", "of others": "x"}, "uid": "u"},
            "spec": {
                "replicas": 3,
                "args": ["--config", "f"],
                "resources": {"requests": {"cpu": "100m", "memory": "1Gi"}},
                "containers": [{"name": "sidecar"}, {"name": "node", "image": "i", "env": [{"name": "A", "value": "1"}]}],
                "egress": [{"ports": [{"port": 53}]}],
            },
        });
        for wanted in [
            json!({}),
            json!({"metadata": {"labels": {"a": "1"}}}),
            json!({"spec": {"replicas": 3, "args": ["--config", "f"]}}),
            json!({"spec": {"resources": {"requests": {"cpu": "0.1", "memory": "1024Mi"}, "limits": {}}}}),
            json!({"spec": {"containers": [{"name": "node", "image": "i"}]}}),
            json!({"spec": {"tolerations": [], "nodeSelector": {}, "priorityClassName": "", "none": null}}),
        ] {
            assert!(contains(&live, &wanted), "{wanted}");
        }
        for wanted in [
            json!({"metadata": {"labels": {"a": "2"}}}),
            json!({"metadata": {"labels": {"b": "1"}}}),
            json!({"spec": {"replicas": 1}}),
            json!({"spec": {"replicas": "3"}}),
            json!({"spec": {"args": ["f", "--config"]}}),
            json!({"spec": {"args": ["--config"]}}),
            json!({"spec": {"resources": {"requests": {"cpu": "1"}}}}),
            json!({"spec": {"resources": {"limits": {"cpu": "1"}}}}),
            json!({"spec": {"containers": [{"name": "node", "image": "j"}]}}),
            json!({"spec": {"containers": [{"name": "other"}]}}),
            json!({"spec": {"containers": [{"name": "node", "env": [{"name": "A", "value": "2"}]}]}}),
            json!({"spec": {"egress": []}}),
            json!({"spec": {"egress": [{"ports": [{"port": 53}]}, {}]}}),
            json!({"spec": {"paused": false}}),
            json!({"spec": [1]}),
        ] {
            assert!(!contains(&live, &wanted), "{wanted}");
        }
    }
}
