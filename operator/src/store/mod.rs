//! The operator's requests to a cluster's store: the only access to it, and small enough for a fake in tests of
//! reconciliation.

mod interface;
mod live;

pub use interface::{Change, Health, KeyspaceStore, Store, StoreError, View};
pub use live::LiveStore;
