//! The budget of pages of scans: what was read for clients and not fetched yet.
//!
//! A client may open a stream and never fetch from it. Its page then waits here, so pages have a budget of their own: streams
//! that nobody fetches can't take the room of other requests.

use std::sync::Arc;
use std::time::Duration;

use api::errors;
use api::v1::ErrorDetail;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::keyspaces::shares::Share;

/// The unit in which bytes are counted, because a semaphore counts in 32 bits.
const UNIT_BYTES: usize = 1 << 10;
/// The time after which a refused client should try again, in milliseconds.
const RETRY_AFTER_MS: u32 = 1_000;

/// A bound on the bytes of pages.
#[derive(Debug)]
pub(crate) struct PageBudget {
    units: Arc<Semaphore>,
    total: u32,
    max_bytes: usize,
    patience: Duration,
}

/// A page's share of a budget, given back on drop.
#[derive(Debug)]
pub(crate) enum PageShare {
    /// Of a [`PageBudget`].
    Pages(OwnedSemaphorePermit),
    /// Of a budget that keyspaces share.
    Keyspace(Arc<Share>),
}

impl From<Share> for PageShare {
    fn from(share: Share) -> Self {
        Self::Keyspace(Arc::new(share))
    }
}

impl PageBudget {
    /// Creates a budget. A page waits for its share for at most `patience`.
    pub(crate) fn new(max_bytes: usize, patience: Duration) -> Self {
        let total = units(max_bytes);
        Self {
            units: Arc::new(Semaphore::new(total as usize)),
            total,
            max_bytes,
            patience,
        }
    }

    /// Takes the share of a page of at most `bytes`. A page that exceeds the whole budget takes all of it.
    pub(crate) async fn take(&self, bytes: usize) -> Result<PageShare, ErrorDetail> {
        let wanted = units(bytes).min(self.total);
        let taken = Arc::clone(&self.units).acquire_many_owned(wanted);
        match timeout(self.patience, taken).await {
            Ok(Ok(permit)) => Ok(PageShare::Pages(permit)),
            _ => Err(errors::overloaded(
                "bytes of pages that clients have not fetched",
                self.max_bytes as u64,
                RETRY_AFTER_MS,
            )),
        }
    }

    /// Returns the bytes of the shares that are taken.
    pub(crate) fn used(&self) -> usize {
        let taken = (self.total as usize).saturating_sub(self.units.available_permits());
        taken * UNIT_BYTES
    }
}

impl PageShare {
    /// Gives back what a page of `bytes` doesn't need.
    pub(crate) fn shrink(&mut self, bytes: usize) {
        match self {
            Self::Pages(permit) => {
                let surplus = permit.num_permits().saturating_sub(units(bytes) as usize);
                drop(permit.split(surplus));
            }
            Self::Keyspace(share) => share.shrink(bytes),
        }
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX >> 4)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pages_wait_for_room_and_are_refused_in_the_end() {
        let budget = PageBudget::new(100 << 10, Duration::from_secs(10));
        let mut first = budget.take(80 << 10).await.unwrap();
        assert!(budget.take(30 << 10).now_or_never().is_none(), "it waits");
        let error = budget.take(30 << 10).await.unwrap_err();
        assert!(
            matches!(error.kind, Some(api::v1::error_detail::Kind::Overloaded(_))),
            "{error:?}"
        );
        first.shrink(10 << 10);
        assert_eq!(budget.used(), 10 << 10);
        let second = budget.take(90 << 10).await.unwrap();
        drop(first);
        first = budget.take(1).await.unwrap();
        drop((first, second));
        assert_eq!(budget.used(), 0);
        let whole = budget.take(usize::MAX).await.unwrap();
        assert_eq!(budget.used(), 100 << 10, "at most the whole budget");
        drop(whole);
    }
}
