//! Shards that come.

use types::{ConfigDelta, ConfigNum, Gid, ShardId};

use crate::stage::{SHARDS, Stage, delta, failed, mover, part, whole};
use shardkv::MoverOptions;
use shardkv::mover::{Action, Mover, Outcome as ActionOutcome, Progress, Room};

fn mover_of(options: MoverOptions) -> Mover {
    Mover::new(Gid(1), SHARDS, options)
}

/// Shards 0 to 9 come from group 2, shards 10 to 19 from group 3.
fn from_two() -> [ConfigDelta; 1] {
    [delta(1, &[(0, 10, 2, 1), (10, 10, 3, 1)])]
}

fn from_one() -> [ConfigDelta; 1] {
    [delta(1, &[(0, 10, 2, 1)])]
}

#[test]
fn the_next_part_is_fetched_while_one_goes_through_the_log() {
    let mut stage = Stage::after(mover(), &[delta(1, &[(4, 1, 2, 1)])]);
    assert_eq!(stage.moves(), ["pull s4@1 from g2 after start"]);
    let parts = [0, 1, 2].map(|number| part(4, 1, number, 3, 10));
    let shown = parts.each_ref().map(crate::show::chunk);
    let pulled = |number: usize| ActionOutcome::Pulled(parts[number].clone());
    stage.end("pull s4@1 from g2 after start", pulled(0));
    let second = stage.moves();
    assert_eq!(second[0], format!("propose: install {}", shown[0]));
    assert!(second[1].starts_with("pull s4@1 from g2 after key k0000"));
    stage.end(&second[1], pulled(1));
    assert_eq!(stage.moves(), [""; 0], "two parts are the most");
    stage.commit(&second[0]);
    let third = stage.moves();
    assert_eq!(third[0], format!("propose: install {}", shown[1]));
    assert!(third[1].starts_with("pull s4@1 from g2 after key k0001"));
    stage.end(&third[1], pulled(2));
    stage.commit(&third[0]);
    let last = stage.moves();
    assert_eq!(last, [format!("propose: install {}", shown[2])]);
    assert!(!stage.serves(4));
    stage.commit(&last[0]);
    assert!(stage.serves(4));
    assert_eq!(stage.moves(), ["tell g2 to delete s4@1"]);
}

#[test]
fn the_source_is_asked_where_it_is() {
    let mut stage = Stage::after(mover(), &[delta(1, &[(4, 1, 2, 1)])]);
    stage.turn();
    let asked = stage.open.values().find_map(|action| match action {
        Action::Pull { addresses, .. } => Some(addresses.clone()),
        _ => None,
    });
    assert_eq!(asked.unwrap(), ["g2:7000"]);
}

/// Answers a pull with the whole shard and commits its install. Returns what the mover asks for then.
fn bring(stage: &mut Stage, shard: u32, config: u64, source: u64) -> Vec<String> {
    let pull = format!("pull s{shard}@{config} from g{source} after start");
    stage.end(&pull, whole(shard, config));
    let mut moves = stage.moves();
    let install = moves.iter().position(|it| it.contains("install"));
    let install = moves.remove(install.unwrap());
    stage.commit(&install);
    moves.extend(stage.moves());
    moves.retain(|it| it.starts_with("pull"));
    moves
}

#[test]
fn each_source_has_two_slots_which_are_filled_oldest_first() {
    let mut stage = Stage::after(mover(), &from_two());
    assert_eq!(
        stage.moves(),
        [
            "pull s0@1 from g2 after start",
            "pull s10@1 from g3 after start",
        ],
        "each source has to prove that it answers"
    );
    assert_eq!(stage.waits_for(0), None);
    let why = stage.waits_for(5).unwrap();
    assert_eq!(why, "waits for one of the 2 slots of g2");
    assert_eq!(
        bring(&mut stage, 0, 1, 2),
        [
            "pull s1@1 from g2 after start",
            "pull s2@1 from g2 after start",
        ]
    );
    stage.configure(&delta(2, &[(20, 1, 2, 1)]));
    assert_eq!(stage.moves(), [""; 0]);
    for shard in 1..8 {
        let next = format!("pull s{}@1 from g2 after start", shard + 2);
        assert_eq!(bring(&mut stage, shard, 1, 2), [next]);
    }
    let last = bring(&mut stage, 8, 1, 2);
    assert_eq!(last, ["pull s20@2 from g2 after start"]);
    let others = stage.open.values().map(crate::show::action);
    let others: Vec<String> = others.filter(|it| it.contains("from g3")).collect();
    assert_eq!(others, ["pull s10@1 from g3 after start"]);
}

#[test]
fn a_source_that_refuses_delays_its_own_shards_alone() {
    let mut stage = Stage::after(mover(), &from_two());
    stage.moves();
    stage.fail("pull s0@1 from g2 after start");
    assert_eq!(stage.moves(), [""; 0]);
    assert_eq!(
        stage.waits_for(0).unwrap(),
        "g2: connection refused; next try in 10 ms"
    );
    for shard in 10..20 {
        let open: Vec<String> = stage.open.values().map(crate::show::action).collect();
        for pull in open.iter().filter(|it| it.contains("from g2")) {
            stage.fail(pull);
        }
        bring(&mut stage, shard, 1, 3);
        stage.pass(5);
    }
    assert!((10..20).all(|shard| stage.serves(shard)));
}

#[test]
fn a_source_that_failed_is_tried_with_one_shard_then_with_all() {
    let mut stage = Stage::after(mover(), &from_one());
    stage.moves();
    bring(&mut stage, 0, 1, 2);
    for shard in 1..3 {
        stage.fail(&format!("pull s{shard}@1 from g2 after start"));
    }
    stage.turn();
    let tried = stage.pass(10);
    assert_eq!(
        tried,
        ["pull s3@1 from g2 after start"],
        "another one than before"
    );
    assert_eq!(
        bring(&mut stage, 3, 1, 2),
        [
            "pull s4@1 from g2 after start",
            "pull s5@1 from g2 after start",
        ]
    );
}

#[test]
fn a_silent_source_keeps_its_slots_and_takes_no_other() {
    let mut stage = Stage::after(mover(), &from_one());
    stage.moves();
    bring(&mut stage, 0, 1, 2);
    assert_eq!(stage.pass(2_000), [""; 0]);
    assert_eq!(stage.waits_for(1).unwrap(), "g2: no answer for 2000 ms");
    stage.configure(&delta(2, &[(10, 10, 3, 1)]));
    assert_eq!(stage.moves(), ["pull s10@2 from g3 after start"]);
    assert_eq!(bring(&mut stage, 10, 2, 3).len(), 2);
    assert_eq!(stage.pass(5_000), [""; 0], "no request is repeated");
    assert_eq!(
        bring(&mut stage, 1, 1, 2),
        ["pull s3@1 from g2 after start"],
        "a late answer counts"
    );
}

#[test]
fn many_sources_share_the_memory_for_chunks() {
    let sizes = |sources: u32| {
        let moves: Vec<_> = (0..sources).map(|n| (n, 1, u64::from(n) + 2, 1)).collect();
        let mut stage = Stage::after(mover(), &[delta(1, &moves)]);
        stage.turn();
        let sizes = stage.open.values().filter_map(|action| match action {
            Action::Pull { max_bytes, .. } => Some(*max_bytes),
            _ => None,
        });
        sizes.collect::<Vec<u32>>()
    };
    assert_eq!(sizes(32), [512 << 10; 32]);
    // Two slots of two chunks each.
    let few = (64 << 20) / (2 * 2 * 100);
    assert_eq!(sizes(100), [few; 100]);
}

#[test]
fn an_answer_that_never_comes_is_given_up() {
    let options = MoverOptions {
        max_concurrent_pulls: 1,
        ..MoverOptions::default()
    };
    let mut stage = Stage::after(mover_of(options), &from_one());
    assert_eq!(stage.moves(), ["pull s0@1 from g2 after start"]);
    stage.open.clear();
    assert_eq!(stage.pass(9_999), [""; 0]);
    let again = stage.pass(11);
    assert!(
        again.contains(&"pull s1@1 from g2 after start".to_owned()),
        "{again:?}"
    );
}

#[test]
fn a_lost_install_is_fetched_and_proposed_again() {
    let mut stage = Stage::after(mover(), &[delta(1, &[(4, 1, 2, 1)])]);
    stage.moves();
    for number in 0..2 {
        let pull = stage.open.values().map(crate::show::action);
        let pull = pull.filter(|it| it.starts_with("pull")).last().unwrap();
        stage.end(&pull, ActionOutcome::Pulled(part(4, 1, number, 3, 10)));
        stage.turn();
    }
    let open = stage.open.values().map(crate::show::action);
    let install = open.filter(|it| it.contains("install")).last().unwrap();
    stage.end(&install, failed("overloaded"));
    assert_eq!(stage.moves(), [""; 0]);
    assert_eq!(
        stage.waits_for(4).unwrap(),
        "own log: overloaded; next try in 10 ms"
    );
    assert_eq!(stage.pass(10), ["pull s4@1 from g2 after start"]);
}

#[test]
fn an_install_that_changed_nothing_is_not_proposed_without_end() {
    let mut stage = Stage::after(mover(), &[delta(1, &[(4, 1, 2, 1)])]);
    let mut proposed = 0;
    for _ in 0..100 {
        for action in stage.pass(10).into_iter().chain(stage.moves()) {
            if action.starts_with("pull") {
                stage.end(&action, whole(4, 1));
            } else if action.contains("install") {
                stage.done(&action);
                proposed += 1;
            }
        }
    }
    assert!((3..15).contains(&proposed), "{proposed} in a second");
}

#[test]
fn a_part_that_was_not_asked_for_is_dropped() {
    let wrong = [
        ("another shard", part(5, 1, 0, 1, 10)),
        ("another configuration", part(4, 2, 0, 1, 10)),
        ("a later part", part(4, 1, 1, 3, 10)),
        ("one that leads nowhere", {
            let mut part = part(4, 1, 0, 2, 10);
            part.next = shardkv::Next::Chunk(part.after.clone());
            part
        }),
    ];
    for (what, part) in wrong {
        let mut stage = Stage::after(mover(), &[delta(1, &[(4, 1, 2, 1)])]);
        stage.moves();
        stage.end("pull s4@1 from g2 after start", ActionOutcome::Pulled(part));
        assert_eq!(stage.moves(), [""; 0], "{what}");
        assert_eq!(stage.pass(10), ["pull s4@1 from g2 after start"], "{what}");
        assert_eq!(stage.waits_for(4), None, "{what}: it was only a moment ago");
    }
}

#[test]
fn a_group_that_is_deposed_forgets_and_starts_anew() {
    let mut stage = Stage::after(mover(), &from_one());
    stage.moves();
    stage.leads = false;
    assert_eq!(stage.turn(), [""; 0]);
    assert_eq!(stage.mover.next_due(), None);
    assert_eq!(stage.waits_for(0), None);
    let late: Vec<String> = stage.open.values().map(crate::show::action).collect();
    for action in late {
        stage.fail(&action);
    }
    assert_eq!(stage.turn(), [""; 0]);
    stage.leads = true;
    assert_eq!(stage.moves().len(), 1);
    assert_eq!(
        stage.waits_for(0),
        None,
        "the late failures are not held against the source"
    );
}

#[test]
fn an_answer_to_the_leader_of_before_is_not_taken() {
    let mut stage = Stage::after(mover(), &[delta(1, &[(4, 1, 2, 1)])]);
    stage.moves();
    let (old, _) = stage
        .open
        .iter()
        .find(|(_, it)| matches!(it, Action::Pull { .. }))
        .unwrap();
    let old = *old;
    stage.leads = false;
    stage.turn();
    stage.leads = true;
    assert_eq!(stage.moves(), ["pull s4@1 from g2 after start"]);
    stage.mover.ended(old, whole(4, 1));
    assert_eq!(stage.moves(), [""; 0]);
}

#[test]
fn the_pace_is_kept() {
    let options = MoverOptions {
        max_bytes_per_second: 1_000_000,
        chunk_bytes: 100_000,
        ..MoverOptions::default()
    };
    let mut stage = Stage::after(mover_of(options), &[delta(1, &[(0, 1, 2, 1)])]);
    let mut came = 0;
    let begin = stage.now;
    let mut number = 0;
    let mut actions = stage.moves();
    while number < 50 {
        for action in std::mem::take(&mut actions) {
            if action.starts_with("pull") {
                let part = part(0, 1, number, 1_000, 100_000);
                came += part.content_bytes();
                number += 1;
                stage.end(&action, ActionOutcome::Pulled(part));
            } else if action.contains("install") {
                stage.commit(&action);
            }
        }
        actions.extend(stage.turn());
        if actions.is_empty() {
            assert_eq!(
                stage.waits_for(0).unwrap(),
                "paced: the limit of bytes a second is reached"
            );
            actions.extend(stage.pass(1));
        }
        let allowed = 200_000 + (stage.now - begin) * 1_000;
        assert!(came <= allowed, "{came} in {} ms", stage.now - begin);
    }
    let took = stage.now - begin;
    assert!((4_700..=5_100).contains(&took), "5 MB took {took} ms");
}

#[test]
fn a_large_value_is_paid_for_afterwards() {
    let options = MoverOptions {
        max_bytes_per_second: 1_000_000,
        chunk_bytes: 100_000,
        ..MoverOptions::default()
    };
    let mut stage = Stage::after(mover_of(options), &[delta(1, &[(0, 1, 2, 1)])]);
    stage.moves();
    let large = ActionOutcome::Pulled(part(0, 1, 0, 2, 1_000_000));
    stage.end("pull s0@1 from g2 after start", large);
    assert_eq!(stage.moves().len(), 1, "the install alone");
    assert_eq!(stage.pass(990), [""; 0]);
    assert_eq!(stage.pass(20).len(), 1);
}

#[test]
fn empty_shards_dont_use_up_the_pace() {
    let options = MoverOptions {
        max_bytes_per_second: 1_000,
        ..MoverOptions::default()
    };
    let mut stage = Stage::after(mover_of(options), &from_one());
    let mut served = 0;
    for _ in 0..100 {
        for action in stage.moves() {
            if let Some(rest) = action.strip_prefix("pull s") {
                let (shard, _) = rest.split_once('@').unwrap();
                let shard: u32 = shard.parse().unwrap();
                let mut empty = part(shard, 1, 0, 1, 0);
                empty.pairs.clear();
                stage.end(&action, ActionOutcome::Pulled(empty));
            } else if action.contains("install") {
                stage.commit(&action);
                served += 1;
            }
        }
    }
    assert_eq!(served, 10, "without a moment's wait");
}

#[test]
fn reasons_tell_what_a_fenced_shard_waits_for() {
    let mut stage = Stage::after(
        mover(),
        &[delta(1, &[(0, 1, 0, 1)]), delta(2, &[(0, 1, 1, 3)])],
    );
    stage.turn();
    assert_eq!(
        stage.waits_for(0).unwrap(),
        "g3 has to fetch it and confirm"
    );
    stage.configure(&delta(3, &[(2, 1, 0, 3)]));
    stage.turn();
    assert_eq!(
        stage.waits_for(0).unwrap(),
        "g3 has to fetch it and confirm"
    );
    assert_eq!(stage.waits_for(1), None, "absent");
}

/// The mover's room, as the server tells it.
fn room(bytes: u64) -> Room {
    let node = "n:1".to_owned();
    Room { node, bytes }
}

#[test]
fn a_shard_that_does_not_fit_on_the_disks_is_not_begun() {
    let mut stage = Stage::after(mover(), &from_two());
    stage.mover.set_room(Some(room(1_000)));
    stage.moves();
    let measured = |stage: &mut Stage, shard, bytes| {
        let mover = &mut stage.mover;
        mover.shard_measured(ShardId(shard), ConfigNum(1), bytes);
    };
    measured(&mut stage, 0, 1_001);
    stage.end("pull s0@1 from g2 after start", whole(0, 1));
    let moves = stage.moves();
    assert!(moves.iter().all(|it| !it.contains("install")), "{moves:?}");
    assert_eq!(
        stage.waits_for(0).unwrap(),
        "no room: the disk of n:1 takes 1000 more bytes of shards, 1001 are needed: enlarge it, or move fewer shards here; \
         next try in 10 ms"
    );
    // A smaller one of another source fits.
    measured(&mut stage, 10, 1_000);
    let pulls = bring(&mut stage, 10, 1, 3);
    assert!(stage.serves(10));
    assert!(pulls.iter().any(|it| it.contains("from g3")), "{pulls:?}");
    // Once there is room, the large one comes.
    stage.mover.set_room(Some(room(2_000)));
    for _ in 0..40 {
        let open: Vec<String> = stage.open.values().map(crate::show::action).collect();
        for action in open {
            if let Some(rest) = action.strip_prefix("pull s") {
                let shard: u32 = rest.split_once('@').unwrap().0.parse().unwrap();
                measured(&mut stage, shard, if shard == 0 { 1_001 } else { 100 });
                stage.end(&action, whole(shard, 1));
            } else if action.contains("install") {
                stage.commit(&action);
            }
        }
        stage.turn();
        stage.pass(10);
    }
    assert!((0..20).all(|shard| stage.serves(shard)));
}

#[test]
fn shards_that_are_on_their_way_count_as_if_they_were_here() {
    let mut stage = Stage::after(mover(), &from_one());
    stage.mover.set_room(Some(room(1_000)));
    stage.moves();
    bring(&mut stage, 0, 1, 2);
    for shard in [1, 2] {
        let mover = &mut stage.mover;
        mover.shard_measured(ShardId(shard), ConfigNum(1), 600);
        let first = ActionOutcome::Pulled(part(shard, 1, 0, 9, 10));
        stage.end(&format!("pull s{shard}@1 from g2 after start"), first);
    }
    let moves = stage.moves();
    let installs = moves.iter().filter(|it| it.contains("install"));
    assert_eq!(installs.count(), 1, "two have 1200 bytes: {moves:?}");
    let why = stage.waits_for(2).unwrap();
    assert!(why.contains("1200 are needed"), "{why}");
}

#[test]
fn the_progress_of_a_pull_is_known() {
    let mut stage = Stage::after(mover(), &[delta(1, &[(4, 1, 2, 1)])]);
    let progress = |stage: &Stage| stage.mover.progress(stage.now, ShardId(4));
    stage.moves();
    assert_eq!(progress(&stage), Some(Progress::default()));
    stage.mover.shard_measured(ShardId(4), ConfigNum(1), 5_000);
    let first = ActionOutcome::Pulled(part(4, 1, 0, 3, 994));
    stage.end("pull s4@1 from g2 after start", first);
    let install = stage.moves().remove(0);
    stage.commit(&install);
    stage.pass(500);
    let arrived = part(4, 1, 0, 3, 994).content_bytes();
    let known = Progress {
        whole_bytes: 5_000,
        bytes_per_second: 2 * arrived,
    };
    assert_eq!(progress(&stage), Some(known));
    assert_eq!(stage.mover.progress(stage.now, ShardId(5)), None);
}
