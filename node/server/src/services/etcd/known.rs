//! The memory of the keyspaces that this node has looked up.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::store::Identity;

/// The most remembered keyspaces. One takes some 200 bytes.
const MAX_KNOWN: usize = 16 << 10;

/// Remembers the identities of keyspaces, by their names.
#[derive(Debug, Default)]
pub(crate) struct Known(Mutex<BTreeMap<String, Identity>>);

impl Known {
    pub(super) fn get(&self, name: &str) -> Option<Identity> {
        self.lock().get(name).copied()
    }

    pub(super) fn insert(&self, name: &str, identity: Identity) {
        let mut known = self.lock();
        if known.len() >= MAX_KNOWN && !known.contains_key(name) {
            known.pop_first();
        }
        known.insert(name.to_owned(), identity);
    }

    pub(super) fn forget(&self, name: &str) {
        self.lock().remove(name);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Identity>> {
        // Each change is one call, so a poisoned lock is as good.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use keyspace::{KeyspaceId, Place};
    use types::ShardId;

    use super::*;

    #[test]
    fn the_remembered_keyspaces_are_bounded() {
        let known = Known::default();
        let identity = |id| Identity {
            place: Place {
                shard: ShardId(0),
                id: KeyspaceId(id),
            },
            cluster_id: id,
        };
        for id in 0..2 * MAX_KNOWN as u64 {
            known.insert(&format!("{id:09}"), identity(id));
        }
        assert_eq!(known.lock().len(), MAX_KNOWN);
        let newest = 2 * MAX_KNOWN as u64 - 1;
        let name = format!("{newest:09}");
        assert_eq!(known.get(&name), Some(identity(newest)));
        known.forget(&name);
        assert_eq!(known.get(&name), None);
    }
}
