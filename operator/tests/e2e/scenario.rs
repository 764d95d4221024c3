//! What surrounds every scenario.

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::{PoisonError, RwLock};
use std::time::Instant;

use futures::FutureExt as _;
use tokio::runtime::Builder;

use crate::space::Space;
use crate::tools::say;
use crate::{dump, operator, surroundings};

/// Whether others may run at the same time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Company {
    /// They may: this one hurts only what is its own.
    SideBySide,
    /// This one takes away what all share.
    Alone,
}

/// Held by those side by side to read, and by those alone to write.
static PEACE: RwLock<()> = RwLock::new(());

/// Runs a scenario in a namespace of its own, once all machines and the operator are ready. If it fails, everything about it is
/// written to files, and whatever it has left dead is started again for the next one.
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
        let whole = async {
            surroundings::are_whole(&space.client).await;
            body(space.clone()).await;
        };
        let outcome = AssertUnwindSafe(whole).catch_unwind().await;
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
