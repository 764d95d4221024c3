//! The bounds on the work that a node accepts at the same time: requests, exports and watches.

use std::sync::Arc;

use api::errors;
use api::v1::ErrorDetail;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use types::MAX_GROUPS;

use crate::budget::Budget;
use crate::options::Limits;

/// Admits work up to the limits of the options, and refuses more as `Overloaded`.
pub(crate) struct Admission {
    /// The budget of unanswered requests.
    pub(crate) budget: Arc<Budget>,
    exports: Arc<Semaphore>,
    max_exports: usize,
    watchers: Arc<Semaphore>,
    max_watchers: usize,
    /// Slots of their own for watchers that are groups: however many clients watch, each group still hears of new
    /// configurations.
    group_watchers: Arc<Semaphore>,
}

impl Admission {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            budget: Arc::new(Budget::new(limits)),
            exports: Arc::new(Semaphore::new(limits.max_exports)),
            max_exports: limits.max_exports,
            watchers: Arc::new(Semaphore::new(limits.max_watchers)),
            max_watchers: limits.max_watchers,
            group_watchers: Arc::new(Semaphore::new(MAX_GROUPS)),
        }
    }

    /// Admits an export for as long as the permit lives.
    pub(crate) fn export(&self) -> Result<OwnedSemaphorePermit, ErrorDetail> {
        acquire(&self.exports, "exports", self.max_exports)
    }

    /// Admits a client that watches configurations, for as long as the permit lives.
    pub(crate) fn watcher(&self) -> Result<OwnedSemaphorePermit, ErrorDetail> {
        acquire(&self.watchers, "watchers", self.max_watchers)
    }

    /// Admits a replica group that watches configurations, for as long as the permit lives.
    pub(crate) fn group_watcher(&self) -> Result<OwnedSemaphorePermit, ErrorDetail> {
        acquire(&self.group_watchers, "watchers", MAX_GROUPS)
    }

    /// Returns the number of open watches of clients.
    pub(crate) fn open_watchers(&self) -> usize {
        self.max_watchers
            .saturating_sub(self.watchers.available_permits())
    }
}

fn acquire(
    slots: &Arc<Semaphore>,
    what: &str,
    limit: usize,
) -> Result<OwnedSemaphorePermit, ErrorDetail> {
    let full = |_| errors::overloaded(what, limit as u64, 1_000);
    Arc::clone(slots).try_acquire_owned().map_err(full)
}
