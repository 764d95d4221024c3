//! Runs a scenario: sets it up, reports its failure, and cleans up.

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::{PoisonError, RwLock};
use std::time::Instant;

use futures::FutureExt as _;
use tokio::runtime::Builder;

use crate::space::Space;
use crate::tools::say;
use crate::{dump, operator, surroundings};

/// Concurrency of a scenario with others.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Company {
    /// Runs next to other scenarios: it disturbs only its own objects.
    SideBySide,
    /// Runs alone: it stops machines or the operator, which all scenarios share.
    Alone,
}

/// Scenarios that run side by side hold the read lock; a scenario that runs alone holds the write lock.
static PEACE: RwLock<()> = RwLock::new(());

/// Runs a scenario in its own namespace, once all machines and the operator are ready. If the scenario fails, writes logs and
/// objects to files, and starts again what the scenario has stopped, for the next one.
pub(crate) fn scenario(name: &'static str, company: Company, body: impl AsyncFnOnce(Space)) {
    let shared = || PEACE.read().unwrap_or_else(PoisonError::into_inner);
    let alone = || PEACE.write().unwrap_or_else(PoisonError::into_inner);
    let _peace = (
        (company == Company::SideBySide).then(shared),
        (company == Company::Alone).then(alone),
    );
    operator::install_once();
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let began = Instant::now();
    let failure = runtime.block_on(async {
        let space = Space::create(name).await;
        let steps = async {
            surroundings::are_ready(&space.client).await;
            body(space.clone()).await;
        };
        let outcome = AssertUnwindSafe(steps).catch_unwind().await;
        if outcome.is_err() {
            dump::dump(name, &space).await;
            surroundings::repair().await;
        }
        space.remove().await;
        outcome.err()
    });
    if let Some(failure) = failure {
        resume_unwind(failure);
    }
    say(&format!("done in {} s", began.elapsed().as_secs()));
}
