//! Sets of named spans, which find the spans that include a key.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use keyspace::Span;

use crate::intervals::{End, Intervals};

/// Spans by their ids.
#[derive(Clone, Debug, Default)]
pub struct Spans {
    keys: BTreeMap<Bytes, BTreeSet<i64>>,
    wide: Intervals,
}

impl Spans {
    /// Adds a span under an id that has none.
    pub(crate) fn add(&mut self, id: i64, span: &Span) {
        match range(span) {
            Ok((start, end)) => self.wide.add(id, start, end),
            Err(key) => {
                self.keys.entry(key.clone()).or_default().insert(id);
            }
        }
    }

    /// Removes the span of an id.
    pub(crate) fn remove(&mut self, id: i64, span: &Span) {
        match range(span) {
            Ok((start, end)) => self.wide.remove(id, start, end),
            Err(key) => {
                if let Some(ids) = self.keys.get_mut(key) {
                    ids.remove(&id);
                    if ids.is_empty() {
                        self.keys.remove(key);
                    }
                }
            }
        }
    }

    /// Returns true if a span includes the key.
    pub fn contains(&self, key: &[u8]) -> bool {
        self.keys.contains_key(key) || self.wide.of(key).next().is_some()
    }

    /// Returns the ids of the spans that include the key.
    pub(crate) fn of<'a>(&'a self, key: &'a [u8]) -> impl Iterator<Item = i64> + 'a {
        let exact = self.keys.get(key).into_iter().flatten().copied();
        exact.chain(self.wide.of(key))
    }
}

/// Returns the start and the end of a span, or its only key.
fn range(span: &Span) -> Result<(Bytes, End), &Bytes> {
    match span {
        Span::Key(key) => Err(key),
        Span::Range(start, end) => Ok((start.clone(), End::Before(end.clone()))),
        Span::From(start) => Ok((start.clone(), End::Never)),
    }
}
