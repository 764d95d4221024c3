//! Copies that have begun and fail: they come before the queue of their source, and block nobody.

use shardkv::MoverOptions;
use shardkv::mover::{Action, Outcome as ActionOutcome};
use types::ShardId;

use crate::copies::{answer, count, cut, planned, settle};
use crate::stage::{Stage, failed};

fn one_slot() -> MoverOptions {
    MoverOptions {
        max_concurrent_pulls: 1,
        ..MoverOptions::default()
    }
}

fn is_part_of(action: &Action, wanted: u32) -> bool {
    matches!(action, Action::Copy { request, .. } if request.shard == ShardId(wanted))
}

/// Answers all but the parts of shard 2, which fail, and the journals of other shards, which don't begin.
fn only_shard_2(action: &Action) -> Option<ActionOutcome> {
    match action {
        Action::Copy { .. } => Some(failed("connection lost")),
        Action::Journal { step, .. } if step.shard() != ShardId(2) => None,
        _ => answer(action),
    }
}

#[test]
fn a_copy_that_has_begun_goes_before_the_queue_after_a_failed_call() {
    let shards: Vec<u32> = (2..10).collect();
    let mut stage = planned(&shards, one_slot());
    let said = settle(&mut stage, only_shard_2);
    assert_eq!(count(&said, "copy s2 from g2 after"), 1, "{said:?}");
    assert_eq!(
        count(&said, "begin a journal"),
        1,
        "the source is paused: {said:?}"
    );
    stage.now += 10;
    let said = settle(&mut stage, answer);
    let first = said
        .iter()
        .find(|it| it.starts_with("tell g2 to") || it.starts_with("copy "));
    assert!(first.unwrap().starts_with("copy s2 from g2"), "{said:?}");
}

#[test]
fn a_copy_that_fails_for_ever_blocks_no_other_and_its_journal_lives() {
    let mut stage = planned(&[2, 3, 4], one_slot());
    let fails = |action: &Action| {
        if is_part_of(action, 2) {
            Some(failed("connection lost"))
        } else {
            answer(action)
        }
    };
    let mut said = Vec::new();
    for _ in 0..2_000 {
        said.extend(settle(&mut stage, fails));
        stage.now += 100;
    }
    for shard in [3, 4] {
        let report = format!("s{shard} of g2 since 1 may be cut");
        assert!(count(&said, &report) > 0, "{shard}");
    }
    assert!(
        count(&said, "copy s2 from g2 after") > 100,
        "it is tried on and on"
    );
    assert!(count(&said, "renew the journal of s2") >= 3);
}

/// The source answers steps of journals, and parts of no shard. Eleven minutes is more than a journal lives without renewals.
#[test]
fn a_journal_is_renewed_while_its_copy_waits() {
    let mut stage = planned(&[2, 3], one_slot());
    settle(&mut stage, only_shard_2);
    let mut renewed = 0;
    for _ in 0..11 * 60 {
        stage.now += 1_000;
        let said = settle(&mut stage, only_shard_2);
        renewed += count(&said, "renew the journal of s2");
        // The other shard has the slot, or takes it in turn, and its journal doesn't begin.
    }
    assert!((10..=12).contains(&renewed), "{renewed}");
}

#[test]
fn a_new_leader_resumes_copies_that_have_begun_first() {
    let mut stage = planned(&[2, 3, 4], one_slot());
    // Shard 4 has begun.
    let begins_4 = |action: &Action| match action {
        Action::Journal { step, .. } if step.shard() != ShardId(4) => {
            Some(failed("connection lost"))
        }
        Action::Copy { .. } => None,
        _ => answer(action),
    };
    for _ in 0..50 {
        settle(&mut stage, begins_4);
        stage.now += 100;
    }
    stage.leads = false;
    stage.turn();
    stage.leads = true;
    stage.open.clear();
    let said = stage.moves();
    assert_eq!(said, ["tell g2 to renew the journal of s4"]);
}

#[test]
fn a_busy_source_only_makes_the_copy_pause() {
    let mut stage = planned(&[2, 3], one_slot());
    let busy = |action: &Action| match action {
        Action::Copy { .. } => Some(ActionOutcome::Busy("too many readers".to_owned())),
        _ => answer(action),
    };
    let mut said = Vec::new();
    for _ in 0..100 {
        said.extend(settle(&mut stage, busy));
        stage.now += 100;
    }
    assert_eq!(count(&said, "begin a journal"), 1, "it keeps its slot");
    assert!(count(&said, "copy s2 from g2 after") >= 10);
    let why = stage.waits_for(2).unwrap();
    assert!(why.starts_with("g2: too many readers"), "{why}");
    stage.now += 1_000;
    let said = settle(&mut stage, answer);
    assert_eq!(count(&said, "begin a journal"), 1, "the other's turn");
}

#[test]
fn a_cut_ends_the_pause_of_a_copy() {
    let mut stage = planned(&[2], MoverOptions::default());
    settle(&mut stage, answer);
    // Rounds fail until the pauses are long.
    let fails = |action: &Action| match action {
        Action::ReportCut { .. } => Some(ActionOutcome::Done),
        Action::Copy { .. } | Action::Journal { .. } => Some(failed("connection lost")),
        _ => None,
    };
    for _ in 0..100 {
        stage.now += 100;
        settle(&mut stage, fails);
    }
    stage.configure(&cut(3, &[(2, 1, 2, 1)]));
    let said = stage.moves();
    assert_eq!(count(&said, "copy s2 from g2 after"), 1, "{said:?}");
}

#[test]
fn reports_that_fail_become_rarer() {
    let mut stage = planned(&[4], MoverOptions::default());
    let down = |action: &Action| match action {
        Action::ReportCut { .. } => Some(failed("connection refused")),
        _ => answer(action),
    };
    let mut reports = Vec::new();
    let mut run = |stage: &mut Stage, answer: &dyn Fn(&Action) -> Option<ActionOutcome>| {
        for _ in 0..600 {
            let said = settle(stage, answer);
            if count(&said, "tell the controllers") > 0 {
                reports.push(stage.now);
            }
            stage.now += 50;
        }
        std::mem::take(&mut reports)
    };
    let times = run(&mut stage, &down);
    let pauses: Vec<u64> = times.windows(2).map(|it| it[1] - it[0]).collect();
    assert_eq!(pauses[..4], [200, 400, 800, 1_600]);
    assert!(pauses[4..].iter().all(|it| *it == 2_000), "{pauses:?}");
    let times = run(&mut stage, &answer);
    let pauses = times.windows(2).map(|it| it[1] - it[0]);
    assert!(pauses.skip(1).all(|it| it == 200));
}
