//! The bounds on the work that a node accepts at the same time: requests, scans, exports and watches.

use std::sync::Arc;
use std::time::Duration;

use api::errors;
use api::v1::ErrorDetail;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use types::MAX_GROUPS;

use crate::budget::Budget;
use crate::keyspaces::budgets::KeyspaceShares;
use crate::options::{Limits, MIN_PAGE_WINDOW_BYTES};
use crate::page_budget::{PageBudget, PageShare};

/// The most watches of nodes: those of three nodes of each group, and of each group's leader once more. All of them may come to one
/// controller, while the others are down.
const MAX_NODE_WATCHERS: usize = 4 * MAX_GROUPS;

/// Admits work up to the limits of the options, and refuses more as `Overloaded`.
pub(crate) struct Admission {
    /// The budget of unanswered requests.
    pub(crate) budget: Arc<Budget>,
    /// The budget of pages that are read here.
    pub(crate) pages: PageBudget,
    /// The budget of pages that other nodes read. It is a budget of its own, because a scan over all groups waits for pages of
    /// this node's group, too.
    pub(crate) relayed_pages: PageBudget,
    /// The budget of pages that scans over all groups hold, one of each group, until they are merged.
    pub(crate) merged_pages: PageBudget,
    /// The budgets that keyspaces share.
    pub(crate) keyspaces: KeyspaceShares,
    /// The window of HTTP/2 of a stream of pages from another node, which a node may fill before anything is read.
    pub(crate) page_window_bytes: u32,
    scans: Arc<Semaphore>,
    /// Slots of their own for scans over all groups, because each needs a scan of this node's group, too.
    relayed_scans: Arc<Semaphore>,
    max_scans: usize,
    exports: Arc<Semaphore>,
    max_exports: usize,
    watchers: Arc<Semaphore>,
    max_watchers: usize,
    /// Slots of their own for watchers that are nodes: however many clients watch, each group still hears of new
    /// configurations.
    node_watchers: Arc<Semaphore>,
}

impl Admission {
    /// Creates the bounds. A page of a scan waits for its share for at most `patience`.
    pub(crate) fn new(limits: &Limits, patience: Duration) -> Self {
        Self {
            budget: Arc::new(Budget::new(limits)),
            pages: PageBudget::new(limits.max_scan_bytes, patience),
            relayed_pages: PageBudget::new(limits.max_scan_bytes, patience),
            merged_pages: PageBudget::new(limits.max_scan_bytes, patience),
            keyspaces: KeyspaceShares::new(limits, patience),
            page_window_bytes: page_window_bytes(limits),
            scans: Arc::new(Semaphore::new(limits.max_scans)),
            relayed_scans: Arc::new(Semaphore::new(limits.max_scans)),
            max_scans: limits.max_scans,
            exports: Arc::new(Semaphore::new(limits.max_exports)),
            max_exports: limits.max_exports,
            watchers: Arc::new(Semaphore::new(limits.max_watchers)),
            max_watchers: limits.max_watchers,
            node_watchers: Arc::new(Semaphore::new(MAX_NODE_WATCHERS)),
        }
    }

    /// Returns the bytes of all pages that were read and not fetched.
    pub(crate) fn page_bytes(&self) -> usize {
        self.pages.used() + self.relayed_pages.used() + self.merged_pages.used()
    }

    /// Takes the share of the window of a stream of pages that is relayed.
    pub(crate) async fn relayed_window(&self) -> Result<PageShare, ErrorDetail> {
        self.relayed_pages
            .take(self.page_window_bytes as usize)
            .await
    }

    /// Admits a scan of this node's group for as long as the permit lives.
    pub(crate) fn scan(&self) -> Result<OwnedSemaphorePermit, ErrorDetail> {
        acquire(&self.scans, "open scans", self.max_scans)
    }

    /// Admits a scan over all groups for as long as the permit lives.
    pub(crate) fn relayed_scan(&self) -> Result<OwnedSemaphorePermit, ErrorDetail> {
        acquire(
            &self.relayed_scans,
            "open scans over all groups",
            self.max_scans,
        )
    }

    /// Returns the number of open scans, of this node's group and over all groups.
    pub(crate) fn open_scans(&self) -> usize {
        let free = self.scans.available_permits() + self.relayed_scans.available_permits();
        (2 * self.max_scans).saturating_sub(free)
    }

    /// Admits an export for as long as the permit lives.
    pub(crate) fn export(&self) -> Result<OwnedSemaphorePermit, ErrorDetail> {
        acquire(&self.exports, "exports", self.max_exports)
    }

    /// Admits a client that watches configurations, for as long as the permit lives.
    pub(crate) fn watcher(&self) -> Result<OwnedSemaphorePermit, ErrorDetail> {
        acquire(&self.watchers, "watchers", self.max_watchers)
    }

    /// Admits a node that watches configurations, for its routing or for its group, for as long as the permit lives.
    pub(crate) fn node_watcher(&self) -> Result<OwnedSemaphorePermit, ErrorDetail> {
        acquire(&self.node_watchers, "watchers", MAX_NODE_WATCHERS)
    }

    /// Returns the number of open watches of clients.
    pub(crate) fn open_watchers(&self) -> usize {
        self.max_watchers
            .saturating_sub(self.watchers.available_permits())
    }
}

/// Returns the window of a stream of pages from another node: so small that those of all open scans together take a quarter of
/// the budget, unless they would be too small to be of use. Even then they take half of it at most, as the options ensure.
pub(crate) fn page_window_bytes(limits: &Limits) -> u32 {
    let share = limits.max_scan_bytes / 4 / limits.max_scans.max(1);
    u32::try_from(share)
        .unwrap_or(u32::MAX)
        .clamp(MIN_PAGE_WINDOW_BYTES, 1 << 20)
}

/// Returns the window of a connection for such streams. The budget bounds their windows, so none waits for the others.
pub(crate) fn all_pages_window_bytes(limits: &Limits) -> u32 {
    u32::try_from(limits.max_scan_bytes)
        .unwrap_or(u32::MAX)
        .min((1 << 31) - 1)
}

fn acquire(
    slots: &Arc<Semaphore>,
    what: &str,
    limit: usize,
) -> Result<OwnedSemaphorePermit, ErrorDetail> {
    let full = |_| errors::overloaded(what, limit as u64, 1_000);
    Arc::clone(slots).try_acquire_owned().map_err(full)
}

/// Returns the smallest limits, for tests.
#[cfg(test)]
pub(crate) fn limits() -> Limits {
    Limits {
        max_value_bytes: 1,
        max_request_bytes: 1,
        max_batch_items: 1,
        max_stream_inflight_items: 1,
        max_pending_requests: 1,
        max_inflight_bytes: 1,
        max_streams_per_connection: 1,
        max_pending_resets: 1,
        max_stream_errors: 1,
        max_connections: 1,
        scan_page_bytes: 1,
        scan_page_pairs: 1,
        max_scans: 1,
        max_scan_bytes: 1,
        max_keyspace_read_bytes: 1,
        max_keyspace_share_percent: 66,
        max_keyspace_requests: 1,
        max_keyspace_proposals: 1,
        max_exports: 1,
        max_watchers: 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A thousand groups of three nodes follow one controller, whatever the number of clients that watch it.
    #[test]
    fn nodes_have_places_of_their_own_for_watches() {
        let admission = Admission::new(&limits(), Duration::ZERO);
        let clients = [(); 2].map(|()| admission.watcher().unwrap());
        assert!(admission.watcher().is_err(), "no more clients");
        assert_eq!(admission.open_watchers(), 2);
        let nodes: Vec<_> = (0..4_000)
            .map(|_| admission.node_watcher().unwrap())
            .collect();
        drop(clients);
        assert!(admission.watcher().is_ok());
        assert_eq!((nodes.len(), admission.open_watchers()), (4_000, 0));
    }
}
