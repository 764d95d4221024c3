//! Waiting for conditions.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// The maximum time for a condition. It is far longer than any condition needs, because these tests run on loaded machines:
/// reaching it is a bug and not bad luck.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// Calls `condition` until it returns a value. Fails the test with `what` and the last error after [`PATIENCE`].
pub(crate) async fn until<T, E: Debug>(
    what: &str,
    mut condition: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match condition().await {
            Ok(value) => return value,
            Err(error) if Instant::now() >= deadline => {
                panic!("{what}: not within {PATIENCE:?}; at last: {error:?}")
            }
            // The pause between two calls. Nothing depends on its length.
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Returns `Ok` if `holds`, for conditions of [`until`] that only hold or don't.
pub(crate) fn holds(holds: bool, otherwise: impl Into<String>) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise.into()) }
}
