//! Sources are told to delete.

use types::{ConfigNum, Gid, ShardId};

use crate::stage::{Stage, delta, failed, mover, part};
use shardkv::Step;

/// A group in which shards 0 to 9, from group 2, and 10 to 19, from group 3, are installed.
fn installed() -> Stage {
    let moves = delta(1, &[(0, 10, 2, 1), (10, 10, 3, 1)]);
    let mut stage = Stage::after(mover(), &[moves]);
    for shard in 0..20 {
        stage.apply(&Step::Install(part(shard, 1, 0, 1, 10)));
    }
    stage
}

#[test]
fn a_source_is_told_until_it_confirms() {
    let mut stage = installed();
    let tell = "tell g2 to delete s0@1";
    let first = [tell, "tell g3 to delete s10@1"];
    assert_eq!(stage.moves(), first, "each has to prove that it answers");
    stage.fail(tell);
    assert!(!stage.moves().contains(&tell.to_owned()));
    assert_eq!(
        stage.waits_for(0).unwrap(),
        "g2 has to delete it: g2: connection refused; next try in 10 ms"
    );
    let mut told = Vec::new();
    while !told.contains(&tell.to_owned()) {
        told = stage.pass(1_000);
        for action in told
            .iter()
            .filter(|it| *it != tell && it.starts_with("tell g2"))
        {
            stage.fail(action);
        }
        stage.turn();
    }
    stage.done(tell);
    let noted = "propose: s0@1 is deleted at its source";
    assert!(stage.moves().contains(&noted.to_owned()));
    stage.commit(noted);
    stage.turn();
    let ownership = stage.group.machine.ownership();
    assert!(
        !ownership
            .pending_deletes
            .contains_key(&(ShardId(0), ConfigNum(1)))
    );
}

#[test]
fn sixteen_deletes_of_a_source_are_requested_at_once() {
    let moves = delta(1, &[(0, 50, 2, 1)]);
    let mut stage = Stage::after(mover(), &[moves]);
    for shard in 0..50 {
        stage.apply(&Step::Install(part(shard, 1, 0, 1, 10)));
    }
    stage.moves();
    stage.done("tell g2 to delete s0@1");
    let mut moves = stage.moves();
    moves.retain(|it| it.starts_with("tell"));
    assert_eq!(moves.len(), 15, "and the confirmed one: {moves:?}");
}

#[test]
fn a_confirmation_that_the_log_lost_is_proposed_again() {
    let mut stage = installed();
    stage.turn();
    stage.done("tell g2 to delete s0@1");
    let noted = "propose: s0@1 is deleted at its source";
    let moves = stage.moves();
    assert_eq!(moves[0], noted);
    assert_eq!(moves.len(), 10, "all others of the source: {moves:?}");
    stage.end(noted, failed("not the leader"));
    assert_eq!(stage.moves(), [""; 0]);
    assert_eq!(stage.pass(10), [noted], "and the source isn't told again");
}

#[test]
fn a_source_that_refuses_delays_nobody_else() {
    let mut stage = installed();
    for _ in 0..40 {
        let open: Vec<String> = stage.open.values().map(crate::show::action).collect();
        for action in open {
            if action.starts_with("tell g2") {
                stage.fail(&action);
            } else if action.starts_with("tell g3") {
                stage.done(&action);
            } else if action.starts_with("propose") {
                stage.commit(&action);
            }
        }
        stage.turn();
    }
    let ownership = stage.group.machine.ownership();
    assert!(
        ownership
            .pending_deletes
            .values()
            .all(|source| *source == Gid(2))
    );
    assert_eq!(ownership.pending_deletes.len(), 10);
}

#[test]
fn a_silent_source_delays_nobody_else() {
    let moves = delta(1, &[(0, 50, 2, 1), (50, 10, 3, 1)]);
    let mut stage = Stage::after(mover(), &[moves]);
    for shard in 0..60 {
        stage.apply(&Step::Install(part(shard, 1, 0, 1, 10)));
    }
    let begin = stage.now;
    stage.turn();
    while stage
        .group
        .machine
        .ownership()
        .pending_deletes
        .values()
        .any(|source| *source == Gid(3))
    {
        let open: Vec<String> = stage.open.values().map(crate::show::action).collect();
        for action in open {
            if action.starts_with("tell g3") {
                stage.done(&action);
            } else if action.starts_with("propose") {
                stage.commit(&action);
            }
        }
        stage.turn();
        stage.pass(1);
        assert!(stage.now < begin + 100, "it waits");
    }
}
