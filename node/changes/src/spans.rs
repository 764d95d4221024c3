//! Sets of named spans, which find the spans that include a key.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use keyspace::Span;

/// Spans by their ids. Spans of one key are found by it; the others are tried one by one.
#[derive(Clone, Debug, Default)]
pub struct Spans {
    keys: BTreeMap<Bytes, BTreeSet<i64>>,
    wide: BTreeMap<i64, Span>,
}

impl Spans {
    /// Adds a span under an id that has none.
    pub(crate) fn add(&mut self, id: i64, span: &Span) {
        match span {
            Span::Key(key) => {
                self.keys.entry(key.clone()).or_default().insert(id);
            }
            wide => {
                self.wide.insert(id, wide.clone());
            }
        }
    }

    /// Removes the span of an id.
    pub(crate) fn remove(&mut self, id: i64, span: &Span) {
        match span {
            Span::Key(key) => {
                if let Some(ids) = self.keys.get_mut(key) {
                    ids.remove(&id);
                    if ids.is_empty() {
                        self.keys.remove(key);
                    }
                }
            }
            _ => {
                self.wide.remove(&id);
            }
        }
    }

    /// Returns true if a span includes the key.
    pub fn contains(&self, key: &[u8]) -> bool {
        self.keys.contains_key(key) || self.wide.values().any(|span| span.contains(key))
    }

    /// Returns the ids of the spans that include the key.
    pub(crate) fn of<'a>(&'a self, key: &'a [u8]) -> impl Iterator<Item = i64> + 'a {
        let exact = self.keys.get(key).into_iter().flatten().copied();
        let wide = self.wide.iter().filter(|(_, span)| span.contains(key));
        exact.chain(wide.map(|(id, _)| *id))
    }
}
