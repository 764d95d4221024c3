//! The cursor of a state in memory.

use std::sync::Arc;

use bytes::Bytes;
use raft::StoreError;

use super::Pairs;
use crate::cursor::{Rest, missing};
use crate::{Bounds, Cursor, Listed, MAX_LISTED_BYTES, Order, Table};

/// A cursor over the pairs of one moment. It shares them with the state, so it doesn't borrow the state.
pub(super) struct MemoryCursor {
    pairs: Arc<Pairs>,
    table: Table,
    rest: Rest,
}

impl MemoryCursor {
    pub(super) fn new(pairs: Arc<Pairs>, table: Table, bounds: Bounds<'_>, order: Order) -> Self {
        Self {
            pairs,
            table,
            rest: Rest::new(table, bounds, order),
        }
    }
}

impl Cursor for MemoryCursor {
    fn next(&mut self) -> Result<Option<(Bytes, Listed)>, StoreError> {
        let Some((key, value)) = self.rest.first(&self.pairs) else {
            return Ok(None);
        };
        // As a store on disk, so that callers meet unread values here, too.
        let listed = if value.len() > MAX_LISTED_BYTES {
            Listed::Unread(value.len())
        } else {
            Listed::Value(value.clone())
        };
        self.rest.pass(key);
        Ok(Some((key.clone(), listed)))
    }

    fn seek(&mut self, key: &[u8]) -> Result<(), StoreError> {
        self.rest.seek(key);
        Ok(())
    }

    fn read(&self, key: &[u8], listed: Listed) -> Result<Bytes, StoreError> {
        match listed {
            Listed::Value(value) => Ok(value),
            Listed::Unread(_) => {
                let place = (self.table, Bytes::copy_from_slice(key));
                self.pairs.get(&place).cloned().ok_or_else(missing)
            }
        }
    }
}
