//! Waiting for conditions.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// How long a condition may take before the test fails. Far longer than it ever takes, because these tests run
/// on loaded machines: reaching it is a bug, not bad luck.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// Asks until `condition` gives a value. Fails the test with `what` and the last refusal after [`PATIENCE`].
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
            // The pause between two questions; nothing depends on its length.
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// `Ok` if `holds`, for conditions of [`until`] that only hold or don't.
pub(crate) fn holds(holds: bool, otherwise: impl Into<String>) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise.into()) }
}
