//! Shards that are copied while their owners serve them.

use raft::Index;
use replica::{StateMachine, StateStore, Transaction};
use shardkv::mover::{Action, Mover, Outcome as ActionOutcome};
use shardkv::{
    CopyCursor, JournalError, JournalStep, MoverOptions, Part, PartNext, PlannedMove, Position,
    ShardState, Target,
};
use types::{ConfigNum, Gid, ShardId};

use crate::cluster::{Clients, Cluster, Weather};
use crate::common::{Random, Replica};
use crate::stage::{SHARDS as STAGE_SHARDS, Stage, delta};

const SHARDS: u32 = 12;
const GROUPS: u64 = 3;

fn options() -> MoverOptions {
    MoverOptions {
        chunk_bytes: 30,
        ..MoverOptions::default()
    }
}

fn weather(seed: u64) -> Weather {
    let mut cluster = Cluster::new(GROUPS, SHARDS, options());
    let all = (0..SHARDS).map(|shard| (ShardId(shard), Gid(1 + u64::from(shard) % GROUPS)));
    let all: Vec<(ShardId, Gid)> = all.collect();
    cluster.give(&all);
    Weather {
        cluster,
        random: Random(seed),
        told: Vec::new(),
        trouble: true,
    }
}

/// Targets change, the controllers cut when they are told or at any time, groups fail, and clients write. Returns the cuts that
/// followed a report, the copies that were completed, and those that were useless at the cut.
fn run(seed: u64, make: Option<fn(Gid) -> Mover>) -> [u64; 3] {
    let mut weather = weather(seed);
    if let Some(make) = make {
        for (gid, member) in &mut weather.cluster.members {
            member.mover = make(*gid);
        }
    }
    let mut clients = Clients::default();
    for round in 0..2_000 {
        if round % 160 == 50 {
            let random = &mut weather.random;
            let moves = (0..SHARDS).map(|shard| (ShardId(shard), Gid(1 + random.below(GROUPS))));
            let mut moves: Vec<(ShardId, Gid)> = moves.collect();
            let random = &mut weather.random;
            moves.retain(|_| random.one_in(3));
            weather.cluster.aim(&moves);
        }
        if round % 160 == 130 && weather.random.one_in(3) {
            // The controllers cut what has not caught up.
            let planned = weather.cluster.planned.iter();
            let cut: Vec<(ShardId, Gid)> =
                planned.map(|(shard, it)| (*shard, it.target.to)).collect();
            weather.cluster.give(&cut);
        }
        clients.write(&mut weather.cluster, &mut weather.random);
        weather.step();
        if round % 50 == 49 {
            for member in weather.cluster.members.values_mut() {
                member.up = true;
            }
        }
    }
    weather.trouble = false;
    let calm = weather.cluster.now;
    while !weather.cluster.is_settled() || !weather.cluster.planned.is_empty() {
        weather.step();
        assert!(
            weather.cluster.now < calm + 30_000,
            "seed {seed}: {:?}",
            weather.cluster.planned
        );
    }
    clients.check(&weather.cluster);
    let cluster = &weather.cluster;
    [cluster.cuts, cluster.completed, cluster.restarted]
}

#[test]
fn planned_moves_end_and_lose_nothing() {
    let mut seen = [0; 3];
    for seed in 0..20 {
        let of_seed = run(seed, None);
        println!("{seed} {of_seed:?}");
        for (all, more) in seen.iter_mut().zip(of_seed) {
            *all += more;
        }
    }
    let [cuts, completed, restarted] = seen;
    assert!(
        cuts > 200 && completed > cuts && restarted * 10 < cuts,
        "{seen:?}"
    );
}

#[cfg(feature = "bugs")]
#[test]
fn a_generation_dropped_too_early_is_noticed() {
    use shardkv::Bug;

    fn make(gid: Gid) -> Mover {
        let bug = Some(Bug::GenerationDroppedEarly);
        Mover::with_bug(gid, SHARDS, options(), bug)
    }
    let finds = |seed| std::panic::catch_unwind(|| run(seed, Some(make))).is_err();
    assert!((0..50).any(finds));
}

/// A stage whose group is to copy these shards from group 2.
fn planned(shards: &[u32], options: MoverOptions) -> Stage {
    let mover = Mover::new(Gid(1), STAGE_SHARDS, options);
    let mut stage = Stage::after(mover, &[delta(1, &[(0, 10, 0, 2)])]);
    for shard in shards {
        let planned = PlannedMove {
            owner: Gid(2),
            owner_since: ConfigNum(1),
            target: Target {
                to: Gid(1),
                since: ConfigNum(1),
            },
        };
        let Replica { machine, state, .. } = &mut stage.group;
        let mut transaction = Transaction::new(&*state);
        machine.plan(ShardId(*shard), Some(planned), &mut transaction);
        machine.finish_batch(&mut transaction).unwrap();
        let (batch, applied) = (transaction.into_batch(), state.applied());
        state.commit(batch, applied).unwrap();
    }
    stage
}

/// The answer of a source whose shards are empty and don't change.
fn answer(action: &Action) -> Option<ActionOutcome> {
    Some(match action {
        Action::Journal {
            step: JournalStep::Begin { .. },
            ..
        } => ActionOutcome::Begun(Index(9)),
        Action::Journal { .. } | Action::ReportCut { .. } => ActionOutcome::Done,
        Action::Copy { request, .. } => {
            let generation = match &request.after {
                CopyCursor::Base(_) => 1,
                CopyCursor::Page { generation, .. } => generation + 1,
            };
            ActionOutcome::Part(Part {
                shard: request.shard,
                copy: request.copy,
                after: request.after.clone(),
                changes: Vec::new(),
                next: PartNext::At(CopyCursor::Page {
                    generation,
                    after: Position::default(),
                }),
            })
        }
        _ => return None,
    })
}

/// Answers what the mover asks and commits what it proposes, until it asks nothing more. Returns what it asked.
fn settle(stage: &mut Stage, answer: impl Fn(&Action) -> Option<ActionOutcome>) -> Vec<String> {
    let mut said = Vec::new();
    loop {
        let now = stage.moves();
        if now.is_empty() {
            return said;
        }
        for what in now {
            let open = stage
                .open
                .iter()
                .find(|(_, it)| crate::show::action(it) == what);
            let (_, action) = open.unwrap();
            match (answer(action), action) {
                (_, Action::Propose(_)) => stage.commit(&what),
                (Some(outcome), _) => stage.end(&what, outcome),
                (None, _) => {}
            }
            said.push(what);
        }
    }
}

fn count(said: &[String], what: &str) -> usize {
    said.iter().filter(|it| it.contains(what)).count()
}

fn is_copying(stage: &Stage, shard: u32) -> bool {
    let ownership = stage.group.machine.ownership();
    matches!(
        ownership.state(ShardId(shard)),
        Some(ShardState::Copying { .. })
    )
}

#[test]
fn a_copy_that_has_caught_up_is_reported_each_second_and_renewed_each_minute() {
    let mut stage = planned(&[4], MoverOptions::default());
    let said = settle(&mut stage, answer);
    assert!(said[0].starts_with("tell g2: Begin"), "{said:?}");
    assert!(said[1].starts_with("propose: copy Start"), "{said:?}");
    assert!(
        said[2].starts_with("copy s4 from g2 after Base"),
        "{said:?}"
    );
    assert!(is_copying(&stage, 4));
    assert_eq!(count(&said, "controllers that s4 may be cut"), 1);
    assert_eq!(stage.moves(), [""; 0], "all is quiet for a second");
    let mut later = Vec::new();
    for _ in 0..120 {
        stage.now += 1_000;
        let said = settle(&mut stage, answer);
        assert_eq!(count(&said, "controllers that s4 may be cut"), 1);
        assert!(count(&said, "Seal") <= 1, "{said:?}");
        later.extend(said);
    }
    assert!(count(&later, "Seal") > 50, "{later:?}");
    assert!(count(&later, "Drop") > 50, "{later:?}");
    assert_eq!(count(&later, "Renew"), 2);
}

#[test]
fn a_copy_whose_source_falls_silent_is_not_reported_any_more() {
    let mut stage = planned(&[4], MoverOptions::default());
    settle(&mut stage, answer);
    let silent = |action: &Action| match action {
        Action::ReportCut { .. } => Some(ActionOutcome::Done),
        _ => None,
    };
    let mut reports = 0;
    for _ in 0..30 {
        stage.now += 1_000;
        let said = settle(&mut stage, silent);
        reports += count(&said, "controllers that s4 may be cut");
    }
    assert!((1..=2).contains(&reports), "{reports}");
    // The source answers again, and the requests that it didn't answer have ended.
    stage.now += 10_000;
    settle(&mut stage, silent);
    stage.open.clear();
    stage.now += 10_000;
    settle(&mut stage, answer);
    stage.now += 1_000;
    let said = settle(&mut stage, answer);
    assert_eq!(
        count(&said, "controllers that s4 may be cut"),
        1,
        "{said:?}"
    );
}

#[test]
fn copies_that_have_caught_up_leave_the_slots_to_others() {
    let options = MoverOptions {
        max_concurrent_pulls: 1,
        ..MoverOptions::default()
    };
    let mut stage = planned(&[2, 3, 4], options);
    let begun = |stage: &mut Stage| count(&stage.moves(), "Begin");
    assert_eq!(begun(&mut stage), 1, "one slot");
    let first = stage.open.values().find_map(|action| match action {
        Action::Journal { .. } => Some(crate::show::action(action)),
        _ => None,
    });
    stage.end(&first.unwrap(), ActionOutcome::Begun(Index(9)));
    let said = settle(&mut stage, answer);
    for shard in [2, 3, 4] {
        let report = format!("controllers that s{shard} may be cut");
        assert_eq!(count(&said, &report), 1, "{said:?}");
    }
}

#[test]
fn a_copy_whose_journal_ended_is_dropped_and_begins_anew() {
    let mut stage = planned(&[4], MoverOptions::default());
    settle(&mut stage, answer);
    stage.now += 1_000;
    let journal = Index(9);
    let ended = |action: &Action| match action {
        Action::Journal {
            step: JournalStep::Begin { .. },
            ..
        } => None,
        Action::Journal { .. } => Some(ActionOutcome::Refused(JournalError::Unknown { journal })),
        _ => answer(action),
    };
    let said = settle(&mut stage, ended);
    assert_eq!(count(&said, "propose: copy Drop"), 1, "{said:?}");
    assert!(!is_copying(&stage, 4));
    stage.now += 1_000;
    let again = settle(&mut stage, ended);
    assert_eq!(count(&said, "Begin") + count(&again, "Begin"), 1);
}

#[test]
fn a_useless_copy_at_the_cut_becomes_a_pull_of_the_whole_shard() {
    let mut stage = planned(&[4], MoverOptions::default());
    settle(&mut stage, answer);
    stage.configure(delta(2, &[(4, 1, 2, 1)]));
    let journal = Index(9);
    let ended = |action: &Action| match action {
        Action::Copy { request, .. } => {
            assert_eq!(request.fence, Some(ConfigNum(2)));
            Some(ActionOutcome::Refused(JournalError::Ended { journal }))
        }
        _ => answer(action),
    };
    let said = settle(&mut stage, ended);
    assert_eq!(count(&said, "propose: copy Restart"), 1, "{said:?}");
    assert_eq!(count(&said, "pull s4@2 from g2 after start"), 1, "{said:?}");
}
