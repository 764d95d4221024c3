//! The budget of clients' requests that the node holds at the same time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use api::errors;
use api::v1::ErrorDetail;

use crate::options::Limits;

/// The time after which a client should try again, in milliseconds.
const RETRY_AFTER_MS: u32 = 20;

/// A bound on unanswered requests, by count and by bytes.
#[derive(Debug)]
pub(crate) struct Budget {
    requests: AtomicUsize,
    bytes: AtomicUsize,
    max_requests: usize,
    max_bytes: usize,
}

/// A request's share of the budget, given back on drop.
#[derive(Debug)]
pub(crate) struct Permit {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            requests: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            max_requests: limits.max_pending_requests,
            max_bytes: limits.max_inflight_bytes,
        }
    }

    /// Takes the share of a request of `bytes`, or returns `Overloaded`.
    pub(crate) fn take(self: &Arc<Self>, bytes: usize) -> Result<Permit, ErrorDetail> {
        // Adding first and comparing then may refuse two requests where one would fit, but never admits too many.
        let permit = Permit {
            budget: Arc::clone(self),
            bytes,
        };
        let requests = self.requests.fetch_add(1, Ordering::Relaxed);
        let held = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let overloaded =
            |what, limit: usize| Err(errors::overloaded(what, limit as u64, RETRY_AFTER_MS));
        if requests >= self.max_requests {
            return overloaded("unanswered requests", self.max_requests);
        }
        if held.saturating_add(bytes) > self.max_bytes {
            return overloaded("bytes of unanswered requests", self.max_bytes);
        }
        Ok(permit)
    }

    /// Takes a share without a limit. Steps of hand-offs use it: they must not wait for clients, and have a bound of their
    /// own.
    pub(crate) fn grant(self: &Arc<Self>, bytes: usize) -> Permit {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Permit {
            budget: Arc::clone(self),
            bytes,
        }
    }

    /// Returns the number of unanswered requests and their bytes.
    pub(crate) fn used(&self) -> (usize, usize) {
        (
            self.requests.load(Ordering::Relaxed),
            self.bytes.load(Ordering::Relaxed),
        )
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.requests.fetch_sub(1, Ordering::Relaxed);
        self.budget.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_bounds_hold_and_room_returns() {
        let budget = Arc::new(Budget {
            requests: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            max_requests: 2,
            max_bytes: 100,
        });
        let first = budget.take(60).unwrap();
        assert!(budget.take(41).is_err(), "too many bytes");
        let second = budget.take(40).unwrap();
        assert!(budget.take(0).is_err(), "too many requests");
        assert_eq!(budget.used(), (2, 100), "refused requests hold nothing");
        drop((first, second));
        assert_eq!(budget.used(), (0, 0));
        assert!(budget.take(100).is_ok());
    }
}
