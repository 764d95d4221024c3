//! Configurations, from the controllers into the log.

use types::{ClusterId, ConfigDelta, ConfigNum, Gid, Group, ShardConfig};

use crate::stage::{
    CONTROLLER, SHARDS, Stage, after_delta, configs, delta, failed, group, mover, plan,
    settled_configs,
};
use shardkv::mover::{Mover, Outcome as ActionOutcome};
use shardkv::{Configure, MoverOptions, Step};

/// Configurations `from` to `to`, each of which changes the address of group 9.
fn others(from: u64, to: u64) -> Vec<ConfigDelta> {
    let moved = |num| Group {
        addresses: vec![format!("g9-{num}:7000")],
        ..group(9)
    };
    let change = |num| ConfigDelta {
        num: ConfigNum(num),
        groups: [(Gid(9), Some(moved(num)))].into(),
        ..ConfigDelta::default()
    };
    (from..=to).map(change).collect()
}

/// A configuration of the groups 1 and 9 in which all is so since `num`.
fn full(num: u64, owner: u64) -> ShardConfig {
    after_delta(
        &ShardConfig::empty(SHARDS),
        &ConfigDelta {
            groups: [1, 9].map(|gid| (Gid(gid), Some(group(gid)))).into(),
            ..delta(num, &[(0, SHARDS, 0, owner)])
        },
    )
}

#[test]
fn a_new_group_goes_to_the_latest_at_once() {
    let mut stage = Stage::new();
    assert_eq!(stage.turn(), ["fetch configurations after 0"]);
    let deltas = [
        delta(1, &[(50, 50, 0, 9)]),
        delta(2, &[(50, 25, 9, 2)]),
        delta(3, &[(0, 25, 0, 1)]),
    ];
    stage.end("fetch configurations after 0", configs(None, &deltas));
    assert_eq!(
        stage.turn(),
        ["propose: configuration 3", "fetch configurations after 3"]
    );
    stage.commit("propose: configuration 3");
    assert_eq!(stage.turn(), ["report 3"]);
    assert_eq!(stage.accepted(), 3);
    assert!(stage.serves(0) && !stage.serves(30) && !stage.serves(99));
}

#[test]
fn a_group_that_comes_late_is_given_the_whole_configuration() {
    let mut stage = Stage::new();
    stage.turn();
    let answer = configs(Some(full(7, 9)), &[delta(8, &[(0, 10, 9, 1)])]);
    stage.end("fetch configurations after 0", answer);
    assert_eq!(stage.turn()[0], "propose: configuration 8");
    stage.commit("propose: configuration 8");
    assert_eq!(stage.moves()[0], "pull s0@8 from g9 after start");
}

#[test]
fn a_group_begins_also_without_any_configuration() {
    let mut stage = Stage::new();
    stage.turn();
    stage.end("fetch configurations after 0", configs(None, &[]));
    stage.turn();
    stage.commit("propose: configuration 0");
    assert_eq!(stage.moves(), [""; 0]);
    let ownership = stage.group.machine.ownership();
    assert_eq!(ownership.controller, Some(CONTROLLER));
}

#[test]
fn a_lost_proposal_is_proposed_again() {
    let mut stage = Stage::new();
    stage.turn();
    stage.end("fetch configurations after 0", configs(None, &[]));
    stage.turn();
    stage.fail("propose: configuration 0");
    assert_eq!(stage.moves(), [""; 0], "after a pause");
    assert!(
        stage
            .pass(10)
            .contains(&"propose: configuration 0".to_owned())
    );
}

#[test]
fn configurations_dont_wait_for_shards() {
    let mut stage = Stage::after(mover(), &[delta(1, &[(0, 10, 9, 1)])]);
    stage.turn();
    let answer = configs(Some(stage.config.clone()), &others(2, 5));
    stage.end("fetch configurations after 0", answer);
    assert_eq!(stage.moves(), ["propose: configuration 5"]);
    stage.commit("propose: configuration 5");
    assert!(!stage.serves(0));
    let pull = stage.open.values().map(crate::show::action);
    let pull = pull.filter(|it| it.starts_with("pull"));
    assert_eq!(pull.count(), 1, "it goes on as if nothing had happened");
}

#[test]
fn targets_that_change_again_leave_no_trace() {
    let mut stage = Stage::after(mover(), &[delta(1, &[(0, 10, 0, 1), (10, 10, 0, 2)])]);
    stage.turn();
    let deltas = [
        plan(2, &[(0, 10, 1, 2), (10, 10, 2, 1)]),
        plan(3, &[(0, 10, 2, 1), (10, 10, 1, 2)]),
        plan(4, &[(0, 1, 1, 2)]),
    ];
    let answer = configs(Some(stage.config.clone()), &deltas);
    stage.end("fetch configurations after 0", answer);
    assert_eq!(stage.moves(), ["propose: configuration 4"]);
    stage.commit("propose: configuration 4");
    assert_eq!(stage.moves(), [""; 0]);
    let planned = stage.group.machine.ownership().planned.clone();
    let targets = planned.iter().map(|(shard, it)| (shard.0, it.target.since));
    assert_eq!(targets.collect::<Vec<_>>(), [(0, ConfigNum(4))]);
    assert!((0..10).all(|shard| stage.serves(shard)));
}

#[test]
fn configurations_that_come_while_one_is_proposed_become_one_proposal() {
    let mut stage = Stage::after(mover(), &[]);
    stage.turn();
    stage.end("fetch configurations after 0", configs(None, &others(1, 3)));
    assert_eq!(stage.moves(), ["propose: configuration 3"]);
    for num in 4..=6 {
        let fetch = format!("fetch configurations after {}", num - 1);
        stage.end(&fetch, configs(None, &others(num, num)));
        assert_eq!(stage.moves(), [""; 0], "one at a time");
    }
    stage.commit("propose: configuration 3");
    assert_eq!(stage.moves(), ["propose: configuration 6"]);
    stage.commit("propose: configuration 6");
    assert_eq!(stage.moves(), [""; 0]);
    assert_eq!(stage.accepted(), 6);
}

#[test]
fn what_came_since_a_proposal_was_lost_is_proposed_with_it() {
    let mut stage = Stage::after(mover(), &[]);
    stage.turn();
    stage.end("fetch configurations after 0", configs(None, &others(1, 3)));
    stage.turn();
    stage.end("fetch configurations after 3", configs(None, &others(4, 4)));
    stage.fail("propose: configuration 3");
    assert_eq!(stage.moves(), [""; 0]);
    assert_eq!(
        stage.mover.lags_because(stage.now).unwrap(),
        "own log: connection refused; next try in 10 ms"
    );
    let asked = stage.pass(10);
    assert!(
        asked.contains(&"propose: configuration 4".to_owned()),
        "{asked:?}"
    );
    stage.commit("propose: configuration 4");
    stage.turn();
    assert_eq!(stage.accepted(), 4);
    assert_eq!(stage.mover.lags_because(stage.now), None);
}

#[test]
fn an_entry_that_does_not_follow_changes_nothing_and_is_made_anew() {
    let mut stage = Stage::after(mover(), &[]);
    stage.turn();
    stage.end("fetch configurations after 0", configs(None, &others(1, 3)));
    stage.turn();
    // A proposal of an earlier leader was committed before.
    stage.configure(&others(1, 1).remove(0));
    stage.commit("propose: configuration 3");
    assert_eq!(
        stage.accepted(),
        1,
        "an entry after another configuration changes nothing"
    );
    assert_eq!(stage.moves(), [""; 0]);
    let asked = stage.pass(10);
    assert!(
        asked.contains(&"propose: configuration 3".to_owned()),
        "{asked:?}"
    );
    stage.commit("propose: configuration 3");
    assert_eq!(stage.accepted(), 3);
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
        configs(None, &others(1, 100)),
    );
    assert_eq!(stage.moves(), ["propose: configuration 100"]);
    // The log stands still, the controllers don't.
    for num in (101..=1_000).step_by(100) {
        let fetch = format!("fetch configurations after {}", num - 1);
        stage.end(&fetch, configs(None, &others(num, num + 99)));
        assert_eq!(stage.moves(), [""; 0]);
        assert_eq!(stage.open.len(), 3, "a proposal, a fetch and a report");
    }
    stage.commit("propose: configuration 100");
    assert_eq!(stage.moves(), ["propose: configuration 1000"]);
    stage.commit("propose: configuration 1000");
    assert_eq!(stage.accepted(), 1_000);
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
    assert_eq!(stage.moves(), ["propose: configuration 2"]);
    assert_eq!(
        stage.mover.lags_because(stage.now).unwrap(),
        "controllers: what the controllers sent doesn't fit: a delta to configuration 4 can't follow configuration 2; next \
         try in 10 ms"
    );
    assert!(
        stage
            .pass(100)
            .contains(&"fetch configurations after 2".to_owned())
    );
}

#[test]
fn other_controllers_are_refused_and_their_own_still_heard() {
    let mut stage = Stage::after(mover(), &[]);
    stage.turn();
    let answer = ActionOutcome::Configs {
        controller: ClusterId(0xbad),
        shards: SHARDS,
        settled: ConfigNum(0),
        held: ConfigNum(0),
        full: None,
        deltas: others(1, 1),
    };
    stage.end("fetch configurations after 0", answer);
    assert_eq!(stage.moves(), [""; 0], "nothing of it is proposed");
    assert_eq!(stage.mover.fatal(), None);
    let why = stage.mover.lags_because(stage.now).unwrap();
    assert!(
        why.contains("follows the controllers c00000000000000c0"),
        "{why}"
    );
    let again = "fetch configurations after 0";
    assert!(stage.pass(100).contains(&again.to_owned()));
    stage.end(again, configs(None, &others(1, 1)));
    assert_eq!(stage.moves(), ["propose: configuration 1"]);
}

#[test]
fn another_groups_state_is_fatal() {
    let other = Mover::new(Gid(2), SHARDS, MoverOptions::default());
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
        settled: ConfigNum(0),
        held: ConfigNum(0),
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

/// The answer to a group without any state, whose data the controllers know to have been there, as of configuration 7.
fn had_all() -> ActionOutcome {
    settled_configs((7, 0), Some(full(7, 1)), &[])
}

#[test]
fn a_group_that_lost_its_data_is_told_so_once_the_log_confirms_it() {
    let mut stage = Stage::new();
    stage.turn();
    stage.end("fetch configurations after 0", had_all());
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
        why.contains("g1 had the shards 0-99 when it had settled configuration 7"),
        "{why}"
    );
    assert_eq!(stage.pass(100_000), [""; 0]);
}

#[test]
fn a_group_that_lost_what_it_was_to_hand_over_is_told_so() {
    let mut stage = Stage::new();
    stage.turn();
    let mut latest = full(7, 1);
    latest.apply(&delta(8, &[(5, 10, 1, 9)])).unwrap();
    let answer = settled_configs((7, 0), Some(latest), &[delta(9, &[(15, 85, 1, 9)])]);
    stage.end("fetch configurations after 0", answer);
    let proof = "propose: s0@0 is deleted at its source";
    assert_eq!(stage.turn(), [proof]);
    stage.commit(proof);
    stage.turn();
    let why = stage.mover.fatal().unwrap();
    assert!(why.contains("g1 had the shards 0-99 when"), "{why}");
}

#[test]
fn a_group_that_gave_all_away_has_lost_nothing() {
    let mut latest = full(7, 1);
    latest.apply(&delta(8, &[(0, SHARDS, 1, 9)])).unwrap();
    let mut stage = Stage::new();
    stage.turn();
    let answer = settled_configs((8, 0), Some(latest), &others(9, 9));
    stage.end("fetch configurations after 0", answer);
    assert_eq!(
        stage.turn(),
        ["propose: configuration 9", "fetch configurations after 9"]
    );
    stage.commit("propose: configuration 9");
    stage.turn();
    assert_eq!((stage.mover.fatal(), stage.accepted()), (None, 9));
}

#[test]
fn a_group_with_new_disks_takes_what_it_had_not_settled() {
    let mut latest = full(7, 9);
    latest.apply(&delta(8, &[(0, 1, 9, 1)])).unwrap();
    let mut stage = Stage::new();
    stage.turn();
    let answer = settled_configs((7, 0), Some(latest), &[]);
    stage.end("fetch configurations after 0", answer);
    assert_eq!(stage.turn()[0], "propose: configuration 8");
    stage.commit("propose: configuration 8");
    assert_eq!(stage.moves(), ["pull s0@8 from g9 after start"]);
    assert_eq!(stage.mover.fatal(), None);
}

/// The answer to a group without any state that had settled configuration 7, waits for shard 0 since configuration 8, and served shard 1
/// by configuration 9.
fn served_beside_a_late_shard() -> ActionOutcome {
    let mut latest = full(7, 9);
    latest.apply(&delta(8, &[(0, 1, 9, 1)])).unwrap();
    latest.apply(&delta(9, &[(1, 1, 9, 1)])).unwrap();
    settled_configs((7, 9), Some(latest), &[])
}

#[test]
fn a_group_that_lost_what_it_served_beside_a_late_shard_is_told_so() {
    let mut stage = Stage::new();
    stage.turn();
    stage.end("fetch configurations after 0", served_beside_a_late_shard());
    let proof = "propose: s0@0 is deleted at its source";
    assert_eq!(stage.turn(), [proof]);
    stage.commit(proof);
    stage.turn();
    let why = stage.mover.fatal().unwrap();
    assert!(why.contains("g1 had the shards 0-1 when"), "{why}");
}

#[cfg(feature = "bugs")]
#[test]
fn the_loss_of_what_was_served_beside_a_late_shard_may_stay_unseen() {
    let bug = Some(shardkv::Bug::UnsettledLossUnseen);
    let mover = Mover::with_bug(Gid(1), SHARDS, MoverOptions::default(), bug);
    let mut stage = Stage::with(mover);
    stage.turn();
    stage.end("fetch configurations after 0", served_beside_a_late_shard());
    assert_eq!(stage.turn()[0], "propose: configuration 9");
}

#[test]
fn a_step_that_is_too_large_for_one_entry_is_proposed_in_parts() {
    let options = MoverOptions {
        chunk_bytes: 64,
        ..MoverOptions::default()
    };
    let mut stage = Stage::with(Mover::new(Gid(1), SHARDS, options));
    stage.turn();
    let rows: Vec<_> = (0..SHARDS)
        .map(|shard| (shard, 1, 0, 1 + u64::from(shard % 2) * 8))
        .collect();
    stage.end(
        "fetch configurations after 0",
        configs(None, &[delta(1, &rows)]),
    );
    let mut parts = 0;
    while stage.accepted() == 0 {
        let turn = stage.turn();
        let part = turn.iter().find(|it| it.starts_with("propose: part"));
        let part = part.unwrap_or_else(|| panic!("{turn:?}")).clone();
        assert!(
            part.starts_with(&format!("propose: part {parts} of ")),
            "{part}"
        );
        if parts == 2 {
            // The next leader goes on, or begins anew.
            stage.group.restart();
        }
        stage.commit(&part);
        parts += 1;
    }
    assert!(parts > 5 && stage.serves(0) && stage.serves(2), "{parts}");
    assert_eq!(stage.group.machine.ownership().parts, None);
}

#[test]
fn a_leader_that_slept_finds_out_by_its_log_that_all_is_well() {
    let mut stage = Stage::new();
    stage.turn();
    stage.end("fetch configurations after 0", had_all());
    stage.turn();
    // Its followers had begun, long ago.
    stage.take_up(full(7, 1));
    stage.commit("propose: s0@0 is deleted at its source");
    let asked = stage.turn();
    assert_eq!(stage.mover.fatal(), None);
    assert!(asked.contains(&"report 7".to_owned()), "{asked:?}");
}

#[test]
fn a_group_that_is_far_behind_jumps_to_the_whole_configuration() {
    let mut stage = Stage::after(mover(), &[delta(1, &[(0, SHARDS, 0, 1)])]);
    stage.turn();
    stage.no_news();
    stage.turn();
    stage.pass(100);
    let mut latest = after_delta(&stage.config, &others(4, 4)[0]);
    latest = after_delta(&latest, &delta(6, &[(50, 50, 1, 9)]));
    let answer = configs(Some(latest), &others(7, 8));
    stage.end("fetch configurations after 1", answer);
    assert_eq!(stage.moves(), ["propose: configuration 8"]);
    stage.commit("propose: configuration 8");
    stage.turn();
    assert!(stage.serves(49) && !stage.serves(50));
    let ownership = stage.group.machine.ownership();
    assert_eq!(ownership.settled(), ConfigNum(5), "shard 50 is fenced");
}

#[test]
fn a_group_that_comes_back_takes_the_whole_configuration() {
    let mut stage = Stage::after(mover(), &others(1, 2));
    stage.turn();
    let answer = configs(Some(full(7, 9)), &others(8, 8));
    stage.end("fetch configurations after 0", answer);
    assert_eq!(stage.turn()[0], "propose: configuration 8");
    stage.commit("propose: configuration 8");
    assert_eq!(stage.accepted(), 8);
}

#[test]
fn controllers_that_are_behind_the_group_are_not_believed() {
    let mut stage = Stage::after(mover(), &others(1, 3));
    stage.turn();
    let answer = configs(Some(after_delta(&full(2, 9), &others(2, 2)[0])), &[]);
    stage.end("fetch configurations after 0", answer);
    assert_eq!(stage.moves(), [""; 0]);
    let behind = "controllers: the controllers' latest configuration is 2, but this group has accepted 3: was their state \
                  restored from a backup?";
    let pause = format!("{behind}; next try in 10 ms");
    assert_eq!(stage.mover.lags_because(stage.now), Some(pause));
    // They catch up.
    assert_eq!(stage.pass(100), ["fetch configurations after 2"]);
    stage.end("fetch configurations after 2", configs(None, &[]));
    stage.turn();
    let why = stage.mover.lags_because(stage.now).unwrap();
    assert!(why.starts_with(behind), "{why}");
    stage.pass(100);
    stage.end("fetch configurations after 2", configs(None, &others(3, 4)));
    assert_eq!(stage.moves(), ["propose: configuration 4"]);
    assert_eq!(stage.mover.lags_because(stage.now), None);
}

#[test]
fn a_configuration_of_another_history_is_refused_and_proposed_ever_less_often() {
    let mut stage = Stage::after(mover(), &[delta(1, &[(0, 10, 0, 1)])]);
    stage.turn();
    // The group has shards 0 to 9, which this configuration gives to it and to another for the first time.
    let answer = configs(Some(full(7, 9)), &[]);
    stage.end("fetch configurations after 0", answer);
    let mut proposed = 0;
    for _ in 0..1_000 {
        let open = stage.open.values().map(crate::show::action);
        let refused = open.filter(|it| *it == "propose: configuration 7");
        for step in refused.collect::<Vec<_>>() {
            let open = stage.open.iter();
            let mut open = open.filter(|(_, it)| crate::show::action(it) == step);
            let Some((_, shardkv::mover::Action::Propose(Step::Configure(it)))) = open.next()
            else {
                panic!("{step}");
            };
            assert_eq!((it.after, it.num), (ConfigNum(1), ConfigNum(7)));
            stage.commit(&step);
            proposed += 1;
        }
        stage.turn();
        stage.pass(10);
    }
    assert_eq!(stage.accepted(), 1);
    assert!((0..10).all(|shard| stage.serves(shard)));
    assert!((10..20).contains(&proposed), "{proposed} in 10 s");
    let why = stage.mover.lags_because(stage.now).unwrap();
    assert!(
        why.contains("configuration 7 takes s0 against what this group knows of it"),
        "{why}"
    );
}

#[test]
fn a_shard_that_is_given_before_its_last_change_is_settled_is_refused() {
    let stage = Stage::after(mover(), &[delta(1, &[(4, 1, 2, 1)])]);
    let again = after_delta(&stage.config, &delta(2, &[(4, 1, 1, 3)]));
    let ownership = stage.group.machine.ownership();
    let step = Step::Configure(Configure::to(&again, Gid(1), CONTROLLER, &ownership));
    let mut stage = stage;
    let response = stage.apply(&step);
    let why = format!("{response:?}");
    assert!(
        why.contains("configuration 2 takes s4 against what this group knows of it"),
        "{why}"
    );
    assert_eq!(stage.accepted(), 1);
}
