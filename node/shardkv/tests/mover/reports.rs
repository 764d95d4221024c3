//! Tests of progress reports to the controllers.

use types::{ConfigNum, ShardId};

use crate::stage::{Stage, delta, mover, part};
use shardkv::Step;

fn stage() -> Stage {
    Stage::after(mover(), &[delta(1, &[(0, 1, 2, 1)])])
}

fn reports(shown: Vec<String>) -> Vec<String> {
    let reports = shown.into_iter().filter(|it| it.starts_with("report"));
    reports.collect()
}

#[test]
fn progress_is_told_at_once_and_the_rest_now_and_then() {
    let mut stage = stage();
    assert_eq!(reports(stage.turn()), ["report 0"]);
    stage.done("report 0");
    stage.turn();
    stage.pass(200);
    let (shard, config) = (ShardId(0), ConfigNum(1));
    stage.apply(&Step::Install(part(0, 1, 0, 1, 10)));
    // The delete is pending, but the controllers are to know at once that the group has something.
    assert_eq!(reports(stage.turn()), ["report 0, served by 1"]);
    stage.done("report 0, served by 1");
    assert_eq!(reports(stage.turn()), [""; 0]);
    stage.pass(200);
    stage.apply(&Step::Deleted { shard, config });
    assert_eq!(reports(stage.turn()), ["report 1"]);
    stage.done("report 1");
    stage.turn();
    assert_eq!(reports(stage.pass(29_900)), [""; 0]);
    assert_eq!(reports(stage.pass(200)), ["report 1"]);
}

#[test]
fn rapid_progress_is_told_in_steps() {
    let mut stage = stage();
    stage.turn();
    let mut told = 0;
    for num in 2..1_000 {
        stage.configure(&delta(num, &[(9, 1, 8 + num % 2, 9 - num % 2)]));
        let shown = [stage.turn(), stage.pass(1), stage.turn()].concat();
        for report in reports(shown) {
            stage.done(&report);
            told += 1;
        }
        if num == 10 {
            // From now on everything is settled at once.
            let (shard, config) = (ShardId(0), ConfigNum(1));
            stage.apply(&Step::Install(part(0, 1, 0, 1, 10)));
            stage.apply(&Step::Deleted { shard, config });
            stage.done("report 0");
        }
    }
    assert!((8..=11).contains(&told), "{told} in a second");
}

#[test]
fn a_report_that_failed_is_told_again() {
    let mut stage = stage();
    stage.turn();
    stage.fail("report 0");
    assert_eq!(reports(stage.turn()), [""; 0]);
    assert_eq!(reports(stage.pass(100)), ["report 0"]);
}

#[test]
fn a_group_that_follows_nobody_has_nothing_to_tell() {
    let mut stage = Stage::new();
    assert_eq!(reports(stage.turn()), [""; 0]);
    assert_eq!(reports(stage.pass(100_000)), [""; 0]);
}
