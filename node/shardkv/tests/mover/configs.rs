//! Configurations, from the controllers into the log.

use types::{ClusterId, ConfigNum, Gid, ShardConfig};

use crate::stage::{SHARDS, Stage, configs, delta, failed, mover};
use shardkv::mover::Outcome as ActionOutcome;

/// Configurations `from` to `to`, in which shard 0 goes to and fro between groups 8 and 9.
fn others(from: u64, to: u64) -> Vec<types::ConfigDelta> {
    let swap = |num| {
        if num % 2 == 0 {
            (0, 1, 8, 9)
        } else {
            (0, 1, 9, 8)
        }
    };
    (from..=to).map(|num| delta(num, &[swap(num)])).collect()
}

fn full(num: u64, owner: u64) -> ShardConfig {
    let groups = [1, 9].map(|gid| (Gid(gid), vec![format!("g{gid}:7000")]));
    ShardConfig::new(ConfigNum(num), groups.into(), [(SHARDS, Gid(owner))]).unwrap()
}

#[test]
fn a_new_group_begins_before_the_first_and_takes_what_follows() {
    let mut stage = Stage::new();
    assert_eq!(stage.turn(), ["fetch configurations after 0"]);
    let deltas = [
        delta(1, &[(0, SHARDS, 0, 1)]),
        delta(2, &[(50, 50, 1, 2)]),
        delta(3, &[(0, 25, 1, 3)]),
    ];
    stage.end("fetch configurations after 0", configs(None, &deltas));
    assert_eq!(
        stage.turn(),
        [
            "propose: begin at configuration 0",
            "fetch configurations after 3"
        ]
    );
    stage.commit("propose: begin at configuration 0");
    assert_eq!(
        stage.turn(),
        [
            "propose: configuration 1",
            "propose: configuration 2",
            "propose: configuration 3",
            "report 0"
        ],
        "all at once"
    );
    for num in 1..=3 {
        stage.commit(&format!("propose: configuration {num}"));
    }
    assert_eq!(stage.turn(), [""; 0]);
    assert_eq!(stage.accepted(), 3);
    assert!(stage.serves(30) && !stage.serves(0) && !stage.serves(99));
}

#[test]
fn a_group_that_comes_late_begins_with_the_oldest_that_is_kept() {
    let mut stage = Stage::new();
    stage.turn();
    let answer = configs(Some(full(7, 9)), &[delta(8, &[(0, 10, 9, 1)])]);
    stage.end("fetch configurations after 0", answer);
    assert_eq!(stage.turn()[0], "propose: begin at configuration 7");
    stage.commit("propose: begin at configuration 7");
    assert_eq!(stage.turn()[0], "propose: configuration 8");
    stage.commit("propose: configuration 8");
    assert_eq!(stage.moves()[0], "pull s0@8 from g9 after start");
}

#[test]
fn a_lost_begin_is_proposed_again() {
    let mut stage = Stage::new();
    stage.turn();
    stage.end("fetch configurations after 0", configs(None, &[]));
    stage.turn();
    stage.fail("propose: begin at configuration 0");
    assert_eq!(stage.moves(), [""; 0], "after a pause");
    assert!(
        stage
            .pass(10)
            .contains(&"propose: begin at configuration 0".to_owned())
    );
}

#[test]
fn configurations_dont_wait_for_shards() {
    let mut stage = Stage::after(mover(), &[delta(1, &[(0, 10, 9, 1)])]);
    stage.turn();
    let next = others(2, 5);
    stage.end("fetch configurations after 1", configs(None, &next));
    let asked = stage.turn();
    for num in 2..=5 {
        assert!(
            asked.contains(&format!("propose: configuration {num}")),
            "{asked:?}"
        );
    }
    assert!(!stage.serves(0));
}

#[test]
fn after_a_lost_proposal_all_behind_it_are_proposed_again() {
    let mut stage = Stage::after(mover(), &[]);
    stage.turn();
    stage.end("fetch configurations after 0", configs(None, &others(1, 3)));
    stage.turn();
    stage.fail("propose: configuration 1");
    stage.commit("propose: configuration 2");
    assert_eq!(stage.moves(), [""; 0], "the third is waited for");
    stage.commit("propose: configuration 3");
    assert_eq!(
        stage.accepted(),
        0,
        "an entry without the one before it changes nothing"
    );
    let asked = stage.pass(10);
    for num in 1..=3 {
        assert!(
            asked.contains(&format!("propose: configuration {num}")),
            "{asked:?}"
        );
    }
    for num in 1..=3 {
        stage.commit(&format!("propose: configuration {num}"));
    }
    stage.turn();
    assert_eq!(stage.accepted(), 3);
    assert_eq!(stage.mover.lags_because(stage.now), None);
}

#[test]
fn a_proposal_that_nobody_answers_is_given_up() {
    let mut stage = Stage::after(mover(), &[]);
    stage.turn();
    stage.end("fetch configurations after 0", configs(None, &others(1, 1)));
    stage.turn();
    stage
        .open
        .retain(|_, action| !crate::show::action(action).starts_with("propose"));
    let again = stage.pass(40_000);
    assert!(
        again.contains(&"propose: configuration 1".to_owned()),
        "{again:?}"
    );
}

#[test]
fn what_is_held_and_proposed_is_bounded() {
    let mut stage = Stage::after(mover(), &[]);
    stage.turn();
    stage.end(
        "fetch configurations after 0",
        configs(None, &others(1, 1_000)),
    );
    assert_eq!(stage.moves().len(), 8, "proposals");
    assert_eq!(
        stage.open.len(),
        9,
        "nothing is fetched while much is held, and a report"
    );
    let mut fetched = 0;
    while stage.accepted() < 1_000 {
        let open: Vec<String> = stage.open.values().map(crate::show::action).collect();
        for action in open {
            if action.starts_with("propose") {
                stage.commit(&action);
            } else if let Some(after) = action.strip_prefix("fetch configurations after ") {
                let after: u64 = after.parse().unwrap();
                fetched += 1;
                stage.end(&action, configs(None, &others(after + 1, 1_000)));
            }
        }
        stage.turn();
    }
    assert!((16..=40).contains(&fetched), "{fetched} fetches");
}

#[test]
fn a_quiet_controller_is_not_pestered() {
    let mut stage = Stage::after(mover(), &[]);
    stage.turn();
    stage.end("fetch configurations after 0", configs(None, &[]));
    assert_eq!(stage.turn(), [""; 0]);
    assert_eq!(stage.pass(99), [""; 0]);
    assert_eq!(stage.pass(1), ["fetch configurations after 0"]);
}

#[test]
fn a_controller_that_fails_is_asked_again_ever_less_often() {
    let mut stage = Stage::after(mover(), &[]);
    stage.turn();
    stage.done("report 0");
    let mut asked = 0;
    for _ in 0..100 {
        for action in stage
            .open
            .values()
            .map(crate::show::action)
            .collect::<Vec<_>>()
        {
            stage.fail(&action);
            asked += 1;
        }
        stage.turn();
        stage.pass(100);
    }
    assert!((10..20).contains(&asked), "{asked} in 10 s");
    stage.pass(1_000);
    stage.fail("fetch configurations after 0");
    stage.turn();
    assert_eq!(
        stage.mover.lags_because(stage.now).unwrap(),
        "controllers: connection refused; next try in 1000 ms"
    );
}

#[test]
fn a_gap_is_not_jumped() {
    let mut stage = Stage::after(mover(), &[]);
    stage.turn();
    let mut gap = others(1, 4);
    gap.remove(2);
    stage.end("fetch configurations after 0", configs(None, &gap));
    assert_eq!(stage.moves().len(), 2);
    assert_eq!(
        stage.mover.lags_because(stage.now).unwrap(),
        "controllers: the controllers sent configuration 4 where 3 was to follow; next try in 10 ms"
    );
    assert!(
        stage
            .pass(100)
            .contains(&"fetch configurations after 2".to_owned())
    );
}

#[test]
fn other_controllers_are_fatal() {
    let mut stage = Stage::after(mover(), &[]);
    stage.turn();
    let answer = ActionOutcome::Configs {
        controller: ClusterId(0xbad),
        shards: SHARDS,
        full: None,
        deltas: others(1, 1),
    };
    stage.end("fetch configurations after 0", answer);
    assert_eq!(stage.turn(), [""; 0]);
    let why = stage.mover.fatal().unwrap();
    assert!(
        why.contains("belongs to the controllers c00000000000000c0"),
        "{why}"
    );
    assert_eq!(stage.pass(100_000), [""; 0]);
}

#[test]
fn another_groups_state_is_fatal() {
    let other = shardkv::mover::Mover::new(Gid(2), SHARDS, shardkv::MoverOptions::default());
    let mut stage = Stage::after(other, &[]);
    assert_eq!(stage.turn(), [""; 0]);
    let why = stage.mover.fatal().unwrap();
    assert!(why.contains("the state of g1"), "{why}");
}

#[test]
fn another_number_of_shards_is_fatal() {
    let mut stage = Stage::new();
    stage.turn();
    let answer = ActionOutcome::Configs {
        controller: ClusterId(0xc0),
        shards: SHARDS + 1,
        full: None,
        deltas: Vec::new(),
    };
    stage.end("fetch configurations after 0", answer);
    assert_eq!(stage.turn(), [""; 0]);
    let why = stage.mover.fatal().unwrap();
    assert!(
        why.contains("created for 100 shards, but the controllers have 101"),
        "{why}"
    );
}

#[test]
fn shards_given_to_a_group_that_has_nothing_are_fatal_once_the_log_confirms_it() {
    let mut stage = Stage::new();
    stage.turn();
    stage.end(
        "fetch configurations after 0",
        configs(Some(full(7, 1)), &[]),
    );
    let proof = "propose: s0@0 is deleted at its source";
    assert_eq!(stage.turn(), [proof]);
    assert_eq!(stage.mover.fatal(), None);
    stage.end(proof, failed("not the leader"));
    stage.turn();
    assert_eq!(stage.mover.fatal(), None, "no proof");
    assert_eq!(stage.pass(10), [proof]);
    stage.commit(proof);
    assert_eq!(stage.turn(), [""; 0]);
    let why = stage.mover.fatal().unwrap();
    assert!(
        why.contains("g1 owns shards 0-99 in configuration 7"),
        "{why}"
    );
}

#[test]
fn a_leader_that_slept_finds_out_by_its_log_that_all_is_well() {
    let mut stage = Stage::new();
    stage.turn();
    stage.end(
        "fetch configurations after 0",
        configs(Some(full(7, 1)), &[]),
    );
    stage.turn();
    // Its followers had begun, long ago.
    let mut groups = std::collections::BTreeMap::new();
    groups.insert(Gid(9), vec!["g9:7000".to_owned()]);
    stage.apply(&shardkv::Step::Begin {
        gid: Gid(1),
        controller: crate::stage::CONTROLLER,
        num: ConfigNum(7),
        groups,
    });
    stage.commit("propose: s0@0 is deleted at its source");
    let asked = stage.turn();
    assert_eq!(stage.mover.fatal(), None);
    assert!(asked.contains(&"report 7".to_owned()), "{asked:?}");
}

#[test]
fn a_history_that_is_lost_is_fatal_for_who_needs_it() {
    let mut stage = Stage::after(mover(), &[delta(1, &[(0, SHARDS, 0, 1)])]);
    stage.turn();
    stage.end(
        "fetch configurations after 1",
        configs(Some(full(7, 1)), &[]),
    );
    stage.turn();
    stage.commit("propose: s0@0 is deleted at its source");
    stage.turn();
    let why = stage.mover.fatal().unwrap();
    assert!(
        why.contains("as of configuration 1, but the controllers' oldest is 7"),
        "{why}"
    );
}

#[test]
fn a_drained_group_that_comes_back_begins_anew() {
    let mut stage = Stage::after(mover(), &others(1, 2));
    stage.turn();
    stage.end(
        "fetch configurations after 2",
        configs(Some(full(7, 9)), &others(8, 8)),
    );
    assert_eq!(stage.turn()[0], "propose: begin at configuration 7");
    stage.commit("propose: begin at configuration 7");
    assert_eq!(stage.turn()[0], "propose: configuration 8");
}
