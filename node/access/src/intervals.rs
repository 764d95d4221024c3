//! Sets of keys as sorted intervals.

/// A set of keys, of which prefixes are the parts.
///
/// Invariant: the intervals are sorted, not empty, and neither overlap nor touch each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Intervals(Vec<Interval>);

/// The keys of `[start, end)`; without an end, all from the start on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Interval {
    start: Vec<u8>,
    end: Option<Vec<u8>>,
}

/// The end of the interval that a key is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End<'a> {
    /// The first key after the interval.
    Before(&'a [u8]),
    /// The interval has no end.
    Never,
}

impl Intervals {
    /// Adds all keys.
    pub(crate) fn add_all(&mut self) {
        self.0 = vec![Interval {
            start: Vec::new(),
            end: None,
        }];
    }

    /// Adds the keys with a prefix. [`Intervals::merge`] follows.
    pub(crate) fn add_prefix(&mut self, prefix: &[u8]) {
        let (start, end) = (prefix.to_vec(), after(prefix));
        self.0.push(Interval { start, end });
    }

    /// Restores the invariant.
    pub(crate) fn merge(&mut self) {
        self.0.sort_by(|one, other| one.start.cmp(&other.start));
        self.0.dedup_by(|next, before| {
            let Some(end) = &before.end else { return true };
            if next.start > *end {
                return false;
            }
            if next.end.as_ref().is_none_or(|next| next > end) {
                before.end = next.end.take();
            }
            true
        });
    }

    /// Returns true if there is no key.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the end of the interval with `key`, or `None` if the key isn't in the set.
    pub(crate) fn end_at(&self, key: &[u8]) -> Option<End<'_>> {
        let next = self
            .0
            .partition_point(|interval| interval.start.as_slice() <= key);
        let interval = self.0.get(next.checked_sub(1)?)?;
        match &interval.end {
            None => Some(End::Never),
            Some(end) if key < end.as_slice() => Some(End::Before(end)),
            Some(_) => None,
        }
    }
}

/// Returns the first key after all that have the prefix, or `None` if there is none.
fn after(prefix: &[u8]) -> Option<Vec<u8>> {
    let kept = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix.get(..=kept)?.to_vec();
    *end.last_mut()? += 1;
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(prefixes: &[&[u8]]) -> Intervals {
        let mut set = Intervals::default();
        for prefix in prefixes {
            set.add_prefix(prefix);
        }
        set.merge();
        set
    }

    #[test]
    fn prefixes_that_touch_are_one_interval() {
        let set = of(&[b"b", b"a", b"ab", b"d"]);
        assert_eq!(set.0.len(), 2);
        assert_eq!(set.end_at(b"a"), Some(End::Before(b"c")));
        assert_eq!(set.end_at(b"bzz"), Some(End::Before(b"c")));
        assert_eq!(set.end_at(b"c"), None);
        assert_eq!(set.end_at(b""), None);
        assert_eq!(set.end_at(b"d\xff"), Some(End::Before(b"e")));
    }

    #[test]
    fn the_last_prefixes_have_no_end() {
        let set = of(&[b"\xff\xff", b"a\xff"]);
        assert_eq!(set.end_at(b"\xff\xff\xff"), Some(End::Never));
        assert_eq!(set.end_at(b"\xff"), None);
        assert_eq!(set.end_at(b"a\xff\xff"), Some(End::Before(b"b")));
        let mut all = of(&[b"a"]);
        all.add_all();
        all.merge();
        assert_eq!(all.end_at(b""), Some(End::Never));
    }
}
