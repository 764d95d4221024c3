//! The permissions of a user, merged over the user's roles, and whether they cover a range.

use bytes::Bytes;

use super::rows::{Permission, Right};
use crate::Span;

/// An interval of keys. It has no end if the end is `None`.
type Interval = (Bytes, Option<Bytes>);

/// The merged permissions of a user. Both lists are in the order of the first keys.
#[derive(Debug, Default)]
pub(super) struct Permissions {
    read: Vec<Interval>,
    write: Vec<Interval>,
}

impl Permissions {
    /// Merges permissions.
    pub(super) fn new(permissions: impl Iterator<Item = Permission>) -> Self {
        let mut merged = Self::default();
        for permission in permissions {
            let interval = interval(&permission);
            match permission.right {
                Right::Read => merged.read.push(interval),
                Right::Write => merged.write.push(interval),
                Right::ReadWrite => {
                    merged.read.push(interval.clone());
                    merged.write.push(interval);
                }
                Right::Unknown(_) => {}
            }
        }
        merged.read.sort();
        merged.write.sort();
        merged
    }

    /// Returns true if all keys of the span may be read.
    pub(super) fn may_read(&self, span: &Span) -> bool {
        covers(&self.read, span)
    }

    /// Returns true if all keys of the span may be written.
    pub(super) fn may_write(&self, span: &Span) -> bool {
        covers(&self.write, span)
    }
}

fn interval(permission: &Permission) -> Interval {
    let Permission { key, range_end, .. } = permission;
    let end = match range_end.as_ref() {
        [] => Some(after(key)),
        [0] => None,
        _ => Some(range_end.clone()),
    };
    (key.clone(), end)
}

/// Returns the first key after a key.
fn after(key: &[u8]) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next.into()
}

/// Returns true if the intervals cover the span: one interval has the key, or several that touch have the range.
fn covers(intervals: &[Interval], span: &Span) -> bool {
    let (start, end) = match span {
        Span::Key(key) => {
            let has =
                |(first, end): &Interval| first <= key && end.as_ref().is_none_or(|end| key < end);
            return intervals.iter().any(has);
        }
        Span::Range(start, end) => (start, Some(end)),
        Span::From(start) => (start, None),
    };
    let mut covered: Option<(&Bytes, Option<&Bytes>)> = None;
    for (first, last) in intervals {
        let last = last.as_ref();
        if !meets((start, end), (first, last)) {
            continue;
        }
        let Some((_, until)) = &mut covered else {
            covered = Some((first, last));
            continue;
        };
        if until.is_some_and(|until| until < first) {
            return false;
        }
        if ends_before(*until, last) {
            *until = last;
        }
    }
    covered.is_some_and(|(from, until)| from <= start && !ends_before(until, end))
}

/// Returns true if an interval meets a range. As in etcd, also a range whose end isn't above its start meets an interval.
fn meets((start, end): (&Bytes, Option<&Bytes>), (first, last): (&Bytes, Option<&Bytes>)) -> bool {
    let is_left = start < first && end.is_some_and(|end| end <= first);
    let is_right = last.is_some_and(|last| start >= last);
    !is_left && !is_right
}

/// Returns true if one end is before another. `None` is no end.
fn ends_before(one: Option<&Bytes>, other: Option<&Bytes>) -> bool {
    match (one, other) {
        (None, _) => false,
        (Some(_), None) => true,
        (Some(one), Some(other)) => one < other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permissions(given: &[(Right, &'static str, &'static str)]) -> Permissions {
        let permission = |(right, key, end): &(Right, &'static str, &'static str)| Permission {
            right: *right,
            key: Bytes::from_static(key.as_bytes()),
            range_end: Bytes::from_static(end.as_bytes()),
        };
        Permissions::new(given.iter().map(permission))
    }

    fn span(key: &'static str, end: &'static str) -> Span {
        let bytes = |text: &'static str| Bytes::from_static(text.as_bytes());
        Span::new(bytes(key), bytes(end))
    }

    #[test]
    fn a_range_is_covered_by_intervals_that_touch() {
        let merged = permissions(&[
            (Right::Read, "e", "g"),
            (Right::Read, "a", "c"),
            (Right::Read, "c", "d"),
            (Right::Read, "d", ""),
            (Right::Read, "x", "\0"),
            (Right::Read, "z", ""),
        ]);
        let table = [
            ("a", "", true),
            ("b", "", true),
            ("d", "", true),
            ("d\0", "", false),
            ("g", "", false),
            ("x", "", true),
            ("zz", "", true),
            ("0", "", false),
            ("a", "d", true),
            ("a", "d\0", true),
            // From here to `e` nothing is allowed.
            ("a", "e", false),
            ("a", "f", false),
            ("b", "c", true),
            ("e", "g", true),
            ("e", "h", false),
            ("0", "b", false),
            ("x", "\0", true),
            ("y", "\0", true),
            ("w", "\0", false),
            ("\0", "\0", false),
        ];
        for (key, end, expected) in table {
            assert_eq!(
                merged.may_read(&span(key, end)),
                expected,
                "{key:?} {end:?}"
            );
            assert!(!merged.may_write(&span(key, end)));
        }
    }

    #[test]
    fn rights_are_told_apart_and_unknown_ones_give_none() {
        let merged = permissions(&[
            (Right::Read, "a", ""),
            (Right::Write, "b", ""),
            (Right::ReadWrite, "c", ""),
            (Right::Unknown(7), "d", ""),
        ]);
        let table = [
            ("a", true, false),
            ("b", false, true),
            ("c", true, true),
            ("d", false, false),
        ];
        for (key, read, write) in table {
            let rights = (
                merged.may_read(&span(key, "")),
                merged.may_write(&span(key, "")),
            );
            assert_eq!(rights, (read, write), "{key}");
        }
        for number in [0, 1, 2, -1, 7] {
            assert_eq!(Right::from_number(number).number(), number);
        }
    }

    #[test]
    fn one_interval_may_hold_all_others() {
        let merged = permissions(&[
            (Right::Write, "a", "z"),
            (Right::Write, "b", "c"),
            (Right::Write, "b", ""),
        ]);
        assert!(merged.may_write(&span("a", "z")));
        assert!(merged.may_write(&span("c", "y")));
        assert!(!merged.may_write(&span("a", "\0")));
        assert!(!merged.may_write(&span("z", "")));
    }
}
