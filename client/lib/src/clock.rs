//! The clock and the randomness that the pure request engine is driven with.

use std::hash::{BuildHasher as _, RandomState};

use request::{Backoff, Jitter, Time};
use tokio::time::Instant;

use crate::ClientOptions;

/// The time since a client was made, which is the engine's [`Time`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin: Instant,
}

impl Clock {
    /// Starts a clock.
    pub(crate) fn start() -> Self {
        Self {
            origin: Instant::now(),
        }
    }

    /// Returns the time.
    pub(crate) fn now(self) -> Time {
        self.time(Instant::now())
    }

    /// Returns the engine's time of an instant.
    pub(crate) fn time(self, instant: Instant) -> Time {
        instant.saturating_duration_since(self.origin)
    }

    /// Returns the instant of an engine's time.
    pub(crate) fn instant(self, time: Time) -> Instant {
        self.origin + time
    }
}

/// Returns a generator of jitter with a random seed.
pub(crate) fn jitter() -> Jitter {
    Jitter::new(RandomState::new().hash_one(0))
}

/// Returns a backoff with the bounds of the options.
pub(crate) fn backoff(options: &ClientOptions) -> Backoff {
    Backoff::new(options.min_backoff, options.max_backoff, jitter())
}
