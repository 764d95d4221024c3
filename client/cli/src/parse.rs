//! Parsers of the values that several commands take: ids of groups and shards, durations, sizes and shares.

use std::time::Duration;

use shardkv_client::{ClusterId, Gid, ShardId};
use types::{BadAddresses, check_addresses};

/// The longest duration that an option accepts: 30 days.
const MAX_DURATION_MS: u64 = 86_400_000 * 30;

/// The largest size that an option accepts: 100 GB.
const MAX_SIZE_BYTES: u64 = 100_000_000_000;

/// An argument that has another form than its option expects. The text names the form and gives an example.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ParseError {
    /// The text is no id of a group.
    #[error("a group id is a whole number from 1, such as 3 or g3")]
    Gid,
    /// The text is no id of a cluster.
    #[error("a cluster's id is `c` and 16 hexadecimal digits, as `shardkv config query` shows it")]
    Cluster,
    /// The text names neither a group nor the controllers.
    #[error("a group is its id, such as 3 or g3, or `ctrl` for the controllers")]
    GroupName,
    /// The text is no number of a shard.
    #[error("a shard is a whole number from 0, such as 17 or s17")]
    Shard,
    /// The text is no group with addresses.
    #[error("write a group as GID=HOST:PORT,..., such as 3=10.0.0.7:7400")]
    Group,
    /// An address of a group is wrong, or is listed twice.
    #[error(transparent)]
    Addresses(#[from] BadAddresses),
    /// The text is no duration.
    #[error("a duration is a whole number with the unit ms, s, m or h, such as 10s")]
    Duration,
    /// The duration is longer than any option accepts.
    #[error("the duration is longer than 30 days")]
    DurationTooLong,
    /// The text is no size.
    #[error(
        "a size is a whole number of bytes, or a whole number with the unit kB, MB or GB, such as 100MB"
    )]
    Size,
    /// The size is larger than any option accepts.
    #[error("the size is larger than 100 GB")]
    SizeTooLarge,
    /// The text is no name of a keyspace.
    #[error(
        "a keyspace's name has 1 to 128 of a-z, 0-9 and '-', and begins and ends with a letter or digit; names with a dot belong to the operator"
    )]
    KeyspaceName,
    /// The text is no share.
    #[error("a share is a number from 0 to 1, such as 0.9")]
    Share,
}

/// Parses the id of a group, with or without the `g` that tables show.
pub(crate) fn parse_gid(text: &str) -> Result<Gid, ParseError> {
    let digits = text.strip_prefix('g').unwrap_or(text);
    match digits.parse() {
        Ok(0) | Err(_) => Err(ParseError::Gid),
        Ok(gid) => Ok(Gid(gid)),
    }
}

/// Parses the id of a cluster as tables show it.
pub(crate) fn parse_cluster(text: &str) -> Result<ClusterId, ParseError> {
    let digits = text.strip_prefix('c').filter(|digits| digits.len() == 16);
    let id = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
    match id {
        None | Some(0) => Err(ParseError::Cluster),
        Some(id) => Ok(ClusterId(id)),
    }
}

/// Parses the name of a group as tables show it: `ctrl`, `g2` or `2`.
pub(crate) fn parse_group_name(text: &str) -> Result<Gid, ParseError> {
    match text {
        "ctrl" => Ok(Gid::NONE),
        text => parse_gid(text).map_err(|_| ParseError::GroupName),
    }
}

/// Parses the number of a shard, with or without the `s` that tables show.
pub(crate) fn parse_shard(text: &str) -> Result<ShardId, ParseError> {
    let digits = text.strip_prefix('s').unwrap_or(text);
    digits.parse().map(ShardId).map_err(|_| ParseError::Shard)
}

/// Parses a group with the addresses of its nodes: `GID=HOST:PORT,...`.
pub(crate) fn parse_group(text: &str) -> Result<(Gid, Vec<String>), ParseError> {
    let (gid, addresses) = text.split_once('=').ok_or(ParseError::Group)?;
    let addresses: Vec<String> = addresses
        .split(',')
        .map(|it| it.trim().to_owned())
        .collect();
    check_addresses(&addresses)?;
    Ok((parse_gid(gid)?, addresses))
}

/// Parses a share: a number from 0 to 1.
pub(crate) fn share(text: &str) -> Result<f64, ParseError> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err(ParseError::Share),
    }
}

/// Parses a duration: a whole number with the unit `ms`, `s`, `m` or `h`, of at most 30 days.
pub(crate) fn duration(text: &str) -> Result<Duration, ParseError> {
    let (number, unit) = split_unit(text);
    let number: u64 = number.parse().map_err(|_| ParseError::Duration)?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(ParseError::Duration),
    };
    number
        .checked_mul(millis)
        .filter(|&millis| millis <= MAX_DURATION_MS)
        .map(Duration::from_millis)
        .ok_or(ParseError::DurationTooLong)
}

/// Parses the name of a keyspace that a person creates.
pub(crate) fn keyspace_name(text: &str) -> Result<String, ParseError> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let inner = text.chars().all(|c| plain(c) || c == '-');
    if inner && text.len() <= 128 && text.starts_with(plain) && text.ends_with(plain) {
        return Ok(text.to_owned());
    }
    Err(ParseError::KeyspaceName)
}

/// Parses a number of bytes, with the decimal unit `B`, `kB`, `MB` or `GB` or none, of at most 100 GB.
pub(crate) fn byte_size(text: &str) -> Result<u64, ParseError> {
    let (number, unit) = split_unit(text);
    let unit: u64 = match unit {
        "" | "B" => 1,
        "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return Err(ParseError::Size),
    };
    let number: u64 = number.parse().map_err(|_| ParseError::Size)?;
    number
        .checked_mul(unit)
        .filter(|bytes| *bytes <= MAX_SIZE_BYTES)
        .ok_or(ParseError::SizeTooLarge)
}

/// Splits the letters off the end of `text`.
fn split_unit(text: &str) -> (&str, &str) {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    (number, text.strip_prefix(number).unwrap_or_default())
}

/// Returns true for a line that agrees.
pub(crate) fn is_yes(line: &str) -> bool {
    matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_shards_are_read_as_tables_show_them() {
        assert_eq!(parse_gid("3"), Ok(Gid(3)));
        assert_eq!(parse_gid("g3"), Ok(Gid(3)));
        assert_eq!(parse_shard("s17"), Ok(ShardId(17)));
        assert_eq!(
            parse_group("g2=a:1, b:2"),
            Ok((Gid(2), vec!["a:1".to_owned(), "b:2".to_owned()]))
        );
        for bad in ["", "0", "g0", "-1", "gg1", "x", "99999999999999999999"] {
            assert!(parse_gid(bad).is_err(), "{bad}");
        }
        assert!(parse_shard("-1").is_err());
        for bad in ["2", "2=", "=a:1", "2=a", "2=a:1,a:1", "0=a:1", "2=a:1,,b:2"] {
            assert!(parse_group(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_controllers_are_a_group_by_name() {
        assert_eq!(parse_group_name("ctrl"), Ok(Gid::NONE));
        assert_eq!(parse_group_name("g2"), Ok(Gid(2)));
        assert!(parse_group_name("0").is_err());
    }

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [("0", 0), ("7B", 7), ("2kB", 2_000), ("100MB", 100_000_000)] {
            assert_eq!(byte_size(text), Ok(bytes), "{text}");
        }
        for bad in [
            "",
            "MB",
            "1.5MB",
            "1mb",
            "-1",
            "101GB",
            "99999999999999999999",
        ] {
            assert!(byte_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_have_units() {
        for (text, millis) in [
            ("0s", 0),
            ("250ms", 250),
            ("10s", 10_000),
            ("2m", 120_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for bad in [
            "",
            "10",
            "s",
            "-1s",
            "1.5s",
            "1 s",
            "10sec",
            "99999999999999999999s",
            "10000h",
        ] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_of_keyspaces_have_no_dot() {
        for good in ["a", "0", "orders", "a-1", &"x".repeat(128)] {
            assert_eq!(keyspace_name(good).as_deref(), Ok(good));
        }
        for bad in [
            "",
            "-a",
            "a-",
            "A",
            "a_b",
            "a.b",
            "ü",
            "{a}",
            &"x".repeat(129),
        ] {
            assert!(keyspace_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn shares_are_from_0_to_1() {
        assert_eq!(share("0.25"), Ok(0.25));
        for bad in ["-0.1", "1.1", "NaN", "half", ""] {
            assert!(share(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_y_and_yes_agree_in_either_case() {
        for line in ["y\n", "Y\n", "yes\n", "YES\r\n", " Yes \n"] {
            assert!(is_yes(line), "{line:?}");
        }
        for line in ["", "\n", "n\n", "yes please\n", "yy\n"] {
            assert!(!is_yes(line), "{line:?}");
        }
    }
}
