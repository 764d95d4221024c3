//! Reading ranges.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::Stream;
use futures::stream::BoxStream;

use crate::Error;

/// A key and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The key.
    pub key: Bytes,
    /// The value; empty when the scan asked for keys only.
    pub value: Bytes,
}

/// Which pairs a scan returns. The default is all.
///
/// ```
/// use client::ScanOptions;
///
/// let users = ScanOptions::prefix("user/").limit(100).keys_only();
/// assert_eq!(users.end, "user0");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanOptions {
    /// The first key, inclusive; empty for the very first.
    pub start: Bytes,
    /// The end, exclusive; empty for none.
    pub end: Bytes,
    /// The most pairs; `None` for all.
    pub limit: Option<u64>,
    /// Leave values out.
    pub keys_only: bool,
}

impl ScanOptions {
    /// All pairs.
    pub fn all() -> Self {
        Self::default()
    }

    /// Pairs with `start <= key < end`; an empty `end` is no bound.
    pub fn range(start: impl Into<Bytes>, end: impl Into<Bytes>) -> Self {
        Self {
            start: start.into(),
            end: end.into(),
            ..Self::default()
        }
    }

    /// Pairs whose key starts with `prefix`.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start = prefix.into();
        let end = after_prefix(&start);
        Self::range(start, end)
    }

    /// At most `limit` pairs.
    #[must_use]
    pub fn limit(mut self, limit: u64) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Without values.
    #[must_use]
    pub fn keys_only(mut self) -> Self {
        self.keys_only = true;
        self
    }
}

/// The least key that is greater than all keys that start with `prefix`; empty if there is none.
fn after_prefix(prefix: &Bytes) -> Bytes {
    let kept = prefix.iter().rposition(|&byte| byte != u8::MAX);
    let Some((last, head)) = kept
        .and_then(|at| prefix.get(..=at))
        .and_then(<[u8]>::split_last)
    else {
        return Bytes::new();
    };
    let mut end = head.to_vec();
    end.push(last + 1);
    end.into()
}

/// The pairs of a scan, in key order: a [`Stream`].
pub struct Scan {
    pairs: BoxStream<'static, Result<Pair, Error>>,
}

impl Stream for Scan {
    type Item = Result<Pair, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.pairs.as_mut().poll_next(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_a_range() {
        for (prefix, end) in [
            (&b"a"[..], &b"b"[..]),
            (b"a\xff", b"b"),
            (b"\xff\xff", b""),
            (b"", b""),
            (b"a\xfe\xff", b"a\xff"),
        ] {
            let options = ScanOptions::prefix(Bytes::copy_from_slice(prefix));
            assert_eq!(options.start, prefix);
            assert_eq!(options.end, end, "{prefix:?}");
        }
    }
}
