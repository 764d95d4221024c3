//! Every bug breaks a promise that a short scenario checks, and without the bug the scenario keeps it.

use std::collections::BTreeSet;
use std::sync::Arc;

use types::Gid;

use super::{Bug, Bugs};
use crate::leader::GroupLeader;
use crate::pending::harness::{HERE, Harness, Item, not_leader};
use crate::refusal::{Refusal, Rejection, Repeat};

/// Returns true if a write without a session is sent twice although its first attempt may have taken effect.
fn repeats_an_unrepeatable(bugs: Bugs) -> bool {
    let mut it = Harness::with(bugs);
    it.admit(Item::new(HERE, Repeat::Never));
    it.send();
    it.lose_connection();
    !it.send().is_empty()
}

/// Returns true if two of many writes get the same name.
fn gives_a_sequence_twice(bugs: Bugs) -> bool {
    let mut it = Harness::with(bugs);
    for _ in 0..32 {
        it.put();
    }
    let names: Vec<_> = it.send().into_iter().map(|(_, name)| name).collect();
    let distinct: BTreeSet<_> = names.iter().collect();
    distinct.len() < names.len()
}

/// Returns true if a write acknowledges an unanswered one before it.
fn acknowledges_too_much(bugs: Bugs) -> bool {
    let mut it = Harness::with(bugs);
    it.put();
    it.put();
    it.stamps().iter().any(|stamp| stamp.acked_below > 1)
}

/// Returns true if a new write acknowledges one that is being sent again.
fn forgets_a_fence(bugs: Bugs) -> bool {
    let mut it = Harness::with(bugs);
    it.put();
    it.send();
    it.lose_connection();
    it.put();
    it.stamps().iter().any(|stamp| stamp.acked_below > 1)
}

/// Returns true if a hint is still believed after its node refused.
fn follows_a_stale_hint(bugs: Bugs) -> bool {
    let mut group = GroupLeader::new(bugs);
    let first = group.found(Gid(1), "a:1".into(), 3);
    let hint: Arc<str> = "b:1".into();
    group.failed(&first, Some(&hint));
    let hinted = group.guess().unwrap().clone();
    for _ in 0..100 {
        group.failed(&hinted, None);
    }
    group.guess() == Some(&hinted)
}

/// Returns true if a call ends, but its caller hears nothing.
fn drops_a_late_answer(bugs: Bugs) -> bool {
    let mut it = Harness::with(bugs);
    let put = it.put();
    it.send();
    it.lose_connection();
    it.done(1);
    it.calls.is_empty() && !it.answered.contains_key(&put) && !it.failed.contains_key(&put)
}

/// Returns true if a write that may have taken effect is reported as certainly not applied.
fn forgets_a_doubt(bugs: Bugs) -> bool {
    let mut it = Harness::with(bugs);
    let put = it.put();
    it.send();
    it.lose_connection();
    it.send();
    let message = "full".to_owned();
    it.refuse(1, Refusal::Rejected(Rejection::DiskFull { message }));
    !it.failed[&put].maybe_applied()
}

/// Returns true if a write that may have taken effect gets another name.
fn renames_in_doubt(bugs: Bugs) -> bool {
    let mut it = Harness::with(bugs);
    it.put();
    let first = it.send();
    it.refuse(1, not_leader("b:1"));
    it.send();
    it.lose_connection();
    it.send();
    it.refuse(1, Refusal::SessionExpired);
    it.now = it.calls.next_due().unwrap_or(it.now);
    it.open_session("second");
    let again = it.send();
    !again.is_empty() && again != first
}

#[test]
fn every_bug_is_found_and_the_product_has_none() {
    for bug in Bug::ALL {
        let violated = match bug {
            Bug::RepeatsUnrepeatable => repeats_an_unrepeatable,
            Bug::SequenceGivenTwice => gives_a_sequence_twice,
            Bug::AcksTooMuch => acknowledges_too_much,
            Bug::FenceForgotten => forgets_a_fence,
            Bug::FollowsStaleHint => follows_a_stale_hint,
            Bug::DropsLateAnswer => drops_a_late_answer,
            Bug::DoubtForgotten => forgets_a_doubt,
            Bug::RenamedInDoubt => renames_in_doubt,
        };
        assert!(!violated(Bugs::NONE), "{bug:?} without the bug");
        #[cfg(feature = "bugs")]
        assert!(violated(Bugs::with(bug)), "{bug:?} is not found");
    }
}
