//! Reports environment variables whose names are misspelt, because a variable with another name has no effect.

use std::ffi::OsString;

/// The variables that the commands read.
const KNOWN: [&str; 7] = [
    "SHARDKV_CA",
    "SHARDKV_CERT",
    "SHARDKV_ENDPOINTS",
    "SHARDKV_HISTORY",
    "SHARDKV_KEY",
    "SHARDKV_NODE_BINARY",
    "SHARDKV_PLAYGROUND_DIR",
];

const PREFIX: &str = "SHARDKV_";

/// The most edits between a misspelt name and the name that is meant, which may also be at most a third of the name without its
/// prefix. Names further away are other programs': a node has many options that begin with `SHARDKV_`, and Kubernetes adds
/// variables that are named after services.
const MAX_EDITS: usize = 3;

/// Reports misspelt variables of this process on standard error.
pub(crate) fn warn() {
    for (name, meant) in misspelt(std::env::vars_os().map(|(name, _)| name)) {
        eprintln!("warning: {name} has no effect; the variable that is read is {meant}");
    }
}

/// Returns the names that are close to a known one that isn't set.
fn misspelt(names: impl Iterator<Item = OsString>) -> Vec<(String, &'static str)> {
    let names: Vec<String> = names.filter_map(|name| name.into_string().ok()).collect();
    let unset = |known: &&&str| !names.iter().any(|name| name == **known);
    let unset: Vec<&str> = KNOWN.iter().filter(unset).copied().collect();
    let ours = |name: &&String| {
        let prefix = name.get(..PREFIX.len()).map(str::to_ascii_uppercase);
        prefix.as_deref() == Some(PREFIX) && !KNOWN.contains(&name.as_str())
    };
    let close = |name: &String| {
        let upper = name.to_ascii_uppercase();
        let distances = unset.iter().map(|known| (edits(&upper, known), *known));
        let (distance, known) = distances.min()?;
        let most = MAX_EDITS.min((known.len() - PREFIX.len()) / 3);
        (distance <= most).then(|| (name.clone(), known))
    };
    names.iter().filter(ours).filter_map(close).collect()
}

/// Returns the number of insertions, removals and replacements of bytes that turn `from` into `to` (Levenshtein's distance).
fn edits(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (above, a) in (1..).zip(from.bytes()) {
        let mut diagonal = above - 1;
        let mut left = above;
        let mut next = vec![above];
        for (b, up) in to.bytes().zip(row.iter().skip(1).copied()) {
            left = (diagonal + usize::from(a != b)).min(up + 1).min(left + 1);
            next.push(left);
            diagonal = up;
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(names: &[&str]) -> Vec<(String, &'static str)> {
        misspelt(names.iter().map(OsString::from))
    }

    #[test]
    fn misspelt_variables_are_found_and_others_are_not() {
        for name in ["SHARDKV_ENDPOINT", "SHARDKV_ENDPIONTS", "shardkv_endpoints"] {
            let expected = (name.to_owned(), "SHARDKV_ENDPOINTS");
            assert_eq!(found(&[name]), [expected], "{name}");
        }
        let cert = found(&["SHARDKV_CERTS"]);
        assert_eq!(cert, [("SHARDKV_CERTS".to_owned(), "SHARDKV_CERT")]);
        for name in [
            "SHARDKV_ENDPOINTS",
            "SHARDKV_MAX_VALUE_BYTES",
            "SHARDKV_GID",
            "SHARDKV_TLS_CERT",
            "SHARDKV_SERVICE_HOST",
            "SHARDKV_",
            "MY_ENDPOINTS",
            "\u{e9}SHARDKV",
        ] {
            assert_eq!(found(&[name]), [], "{name}");
        }
        assert_eq!(found(&["SHARDKV_ENDPOINT", "SHARDKV_ENDPOINTS"]), []);
    }

    #[test]
    fn edits_are_counted() {
        for (from, to, distance) in [
            ("", "", 0),
            ("a", "", 1),
            ("", "ab", 2),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(edits(from, to), distance, "{from} {to}");
        }
    }
}
