//! Shards that are copied while their owners serve them.

use raft::Index;
use shardkv::mover::{Action, Mover, Outcome as ActionOutcome, Room};
use shardkv::{
    CopyCursor, CopyStep, JournalError, JournalStep, MoverOptions, Part, PartNext, Position,
    ShardState, Step,
};
use types::{ConfigDelta, ConfigNum, Gid, Incarnation, JournalId, ShardId};

use crate::cluster::{Cluster, Counts};
use crate::stage::{SHARDS as STAGE_SHARDS, Stage, delta, group, plan};
use crate::weather::Weather;

const SHARDS: u32 = 12;
const GROUPS: u64 = 3;

fn options() -> MoverOptions {
    MoverOptions {
        chunk_bytes: 30,
        ..MoverOptions::default()
    }
}

/// Targets change, the controllers cut when they are told or when an old report arrives, groups fail, and clients write.
fn run(seed: u64) -> Counts {
    let cluster = Cluster::new(GROUPS, SHARDS, options());
    let mut weather = Weather::new(cluster, seed);
    let all = (0..SHARDS).map(|shard| (ShardId(shard), Gid(1 + u64::from(shard) % GROUPS)));
    let all: Vec<(ShardId, Gid)> = all.collect();
    weather.cluster.controllers.aim(&all);
    weather.storm(|weather, round| {
        if round % 160 == 50 {
            weather.aim(3);
        }
        if round % 160 == 130 && weather.random.one_in(3) {
            weather.cluster.cut_late();
        }
    });
    weather.calm(30_000);
    weather.cluster.counts
}

#[test]
fn planned_moves_end_and_lose_nothing() {
    let mut seen = Counts::default();
    for seed in 0..20 {
        let of_seed = run(seed);
        println!("{seed} {of_seed:?}");
        seen += of_seed;
    }
    let Counts {
        cuts,
        completed,
        restarted,
        ..
    } = seen;
    assert!(
        cuts > 200 && completed > cuts && restarted * 10 < cuts,
        "{seen:?}"
    );
}

/// Returns the number of drops that the mover asks for while the log doesn't have the first page.
fn early_drops(mover: Mover) -> usize {
    let mut stage = Stage::after(
        mover,
        &[delta(1, &[(0, 10, 0, 2)]), plan(2, &[(4, 1, 2, 1)])],
    );
    let mut said = Vec::new();
    loop {
        let now = stage.moves();
        if now.is_empty() {
            return count(&said, "to drop");
        }
        for what in now {
            let mut open = stage.open.values();
            let action = open.find(|it| crate::show::action(it) == what).unwrap();
            let is_page = |part: &Part| matches!(part.after, CopyCursor::Page { .. });
            match (answer(action), action) {
                (_, Action::Propose(Step::Copy(CopyStep::Take(part)))) if is_page(part) => {}
                (_, Action::Propose(_)) => stage.commit(&what),
                (Some(outcome), _) => stage.end(&what, outcome),
                (None, _) => {}
            }
            said.push(what);
        }
    }
}

#[test]
fn a_generation_is_dropped_only_once_the_log_has_it() {
    let mover = Mover::new(Gid(1), STAGE_SHARDS, MoverOptions::default());
    assert_eq!(early_drops(mover), 0);
}

#[cfg(feature = "bugs")]
#[test]
fn a_generation_dropped_too_early_is_noticed() {
    let bug = Some(shardkv::Bug::GenerationDroppedEarly);
    let mover = Mover::with_bug(Gid(1), STAGE_SHARDS, MoverOptions::default(), bug);
    assert_eq!(early_drops(mover), 1);
}

/// A shard goes from group 1 to group 2. Group 1 goes down before it has deleted what it kept. Then the shard is to go to group 3.
#[test]
fn a_shard_goes_on_although_its_former_owner_is_down() {
    let shard = ShardId(0);
    let mut weather = Weather::new(Cluster::new(GROUPS, 1, options()), 1);
    weather.trouble = false;
    weather.cluster.controllers.aim(&[(shard, Gid(1))]);
    weather
        .clients
        .write(&mut weather.cluster, &mut weather.random);
    weather.cluster.controllers.aim(&[(shard, Gid(2))]);
    let owes = |weather: &Weather| {
        let ownership = weather.cluster.members[&Gid(2)].replica.machine.ownership();
        !ownership.pending_deletes.is_empty()
    };
    while !owes(&weather) {
        weather.step();
    }
    let first = |weather: &mut Weather, up| {
        weather.cluster.members.get_mut(&Gid(1)).unwrap().up = up;
    };
    first(&mut weather, false);
    weather.cluster.controllers.aim(&[(shard, Gid(3))]);
    let end = weather.cluster.now + 15_000;
    while weather.cluster.config().owner(shard) != Gid(3) {
        assert!(weather.cluster.now < end, "group 1 isn't needed");
        weather.step();
    }
    first(&mut weather, true);
    weather.calm(15_000);
    assert_eq!(weather.cluster.config().owner(shard), Gid(3));
}

/// A stage whose group is to copy these shards from group 2.
pub(crate) fn planned(shards: &[u32], options: MoverOptions) -> Stage {
    let mover = Mover::new(Gid(1), STAGE_SHARDS, options);
    let targets: Vec<_> = shards.iter().map(|shard| (*shard, 1, 2, 1)).collect();
    Stage::after(mover, &[delta(1, &[(0, 10, 0, 2)]), plan(2, &targets)])
}

/// The report of shards that group 1 is to get from group 2.
fn report(shards: &[u32]) -> String {
    let cuts = shards.iter();
    let cuts = cuts.map(|shard| format!("s{shard} of g2 since 1 may be cut for g1 since 2"));
    let cuts: Vec<String> = cuts.collect();
    format!("tell the controllers: {}", cuts.join(", "))
}

/// The answer of a source whose shards are empty and don't change.
pub(crate) fn answer(action: &Action) -> Option<ActionOutcome> {
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
pub(crate) fn settle(
    stage: &mut Stage,
    answer: impl Fn(&Action) -> Option<ActionOutcome>,
) -> Vec<String> {
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

/// Answers what is under way.
fn answer_all(stage: &mut Stage) {
    let open: Vec<String> = stage.open.values().map(crate::show::action).collect();
    for what in open {
        let mut open = stage.open.values();
        let action = open.find(|it| crate::show::action(it) == what).unwrap();
        match (answer(action), action) {
            (_, Action::Propose(_)) => stage.commit(&what),
            (Some(outcome), _) => stage.end(&what, outcome),
            (None, _) => {}
        }
    }
}

fn reports(mut said: Vec<String>) -> Vec<String> {
    said.retain(|it| it.starts_with("tell the controllers"));
    said
}

/// A configuration that cuts shards, each `(first, count, from, to)`.
pub(crate) fn cut(num: u64, moves: &[(u32, u32, u64, u64)]) -> ConfigDelta {
    ConfigDelta {
        targets: Vec::new(),
        ..delta(num, moves)
    }
}

pub(crate) fn count(said: &[String], what: &str) -> usize {
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
fn a_copy_that_has_caught_up_is_reported_while_it_is_close_and_renewed_each_minute() {
    let mut stage = planned(&[4], MoverOptions::default());
    let said = settle(&mut stage, answer);
    assert!(
        said[0].starts_with("tell g2 to begin a journal of s4"),
        "{said:?}"
    );
    assert!(said[1].starts_with("propose: begin to copy s4"), "{said:?}");
    assert!(
        said[2].starts_with("copy s4 from g2 after start"),
        "{said:?}"
    );
    assert!(is_copying(&stage, 4));
    assert_eq!(count(&said, &report(&[4])), 1);
    assert_eq!(stage.moves(), [""; 0], "all is quiet for a moment");
    let mut later = Vec::new();
    for _ in 0..120 {
        stage.now += 1_000;
        let said = settle(&mut stage, answer);
        assert_eq!(count(&said, &report(&[4])), 1, "{said:?}");
        assert!(count(&said, "seal") <= 1, "{said:?}");
        later.extend(said);
    }
    assert!(count(&later, "seal") > 50, "{later:?}");
    assert!(count(&later, "to drop") > 50, "{later:?}");
    assert_eq!(count(&later, "renew"), 2);
}

#[test]
fn a_copy_pauses_while_the_disks_lack_room_for_its_rest() {
    let mut stage = planned(&[4], MoverOptions::default());
    let room = |bytes| {
        let node = "n:1".to_owned();
        Some(Room { node, bytes })
    };
    stage.mover.copy_measured(ShardId(4), 3 << 20);
    stage.mover.set_room(room(4 << 20));
    let no_parts = |action: &Action| match action {
        Action::Copy { .. } => None,
        other => answer(other),
    };
    settle(&mut stage, no_parts);
    assert!(is_copying(&stage, 4));
    stage.fail("copy s4 from g2 after start");
    stage.moves();
    // Something else fills the disks before the copy goes on.
    stage.mover.set_room(room(1 << 20));
    stage.now += 10_000;
    let said = settle(&mut stage, answer);
    assert_eq!(count(&said, "copy s4"), 0, "{said:?}");
    let why = stage.waits_for(4).unwrap();
    assert!(why.starts_with("no room: the disk of n:1"), "{why}");
    stage.now += 10_000;
    stage.mover.set_room(room(4 << 20));
    let said = settle(&mut stage, answer);
    assert_eq!(count(&said, "copy s4 from g2 after start"), 1, "{said:?}");
    assert_eq!(stage.waits_for(4), None);
}

#[test]
fn a_copy_that_fits_goes_on_beside_one_that_does_not() {
    // Shard 2 comes from another source, and is asked for first.
    let mover = Mover::new(Gid(1), STAGE_SHARDS, MoverOptions::default());
    let owners = delta(1, &[(0, 3, 0, 3), (3, 7, 0, 2)]);
    let mut stage = Stage::after(mover, &[owners, plan(2, &[(2, 1, 3, 1), (4, 1, 2, 1)])]);
    let node = "n:1".to_owned();
    stage.mover.copy_measured(ShardId(2), 100 << 20);
    stage.mover.copy_measured(ShardId(4), 3 << 20);
    let bytes = 4 << 20;
    stage.mover.set_room(Some(Room { node, bytes }));
    let mut said = Vec::new();
    for _ in 0..20 {
        said.extend(settle(&mut stage, answer));
        stage.now += 1_000;
    }
    assert!(count(&said, &report(&[4])) > 10, "{said:?}");
    assert!(!is_copying(&stage, 2));
    let why = stage.waits_for(2).unwrap();
    assert!(why.starts_with("no room: the disk of n:1"), "{why}");
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
        reports += count(&said, &report(&[4]));
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
    assert_eq!(count(&said, &report(&[4])), 1, "{said:?}");
}

#[test]
fn copies_that_have_caught_up_leave_the_slots_to_others() {
    let options = MoverOptions {
        max_concurrent_pulls: 1,
        ..MoverOptions::default()
    };
    let mut stage = planned(&[2, 3, 4], options);
    let begun = |stage: &mut Stage| count(&stage.moves(), "begin a journal");
    assert_eq!(begun(&mut stage), 1, "one slot");
    let first = stage.open.values().find_map(|action| match action {
        Action::Journal { .. } => Some(crate::show::action(action)),
        _ => None,
    });
    stage.end(&first.unwrap(), ActionOutcome::Begun(Index(9)));
    let said = settle(&mut stage, answer);
    assert_eq!(count(&said, "begin a journal"), 2, "{said:?}");
    stage.now += 200;
    let said = settle(&mut stage, answer);
    assert_eq!(said, [report(&[2, 3, 4])], "one report tells of all");
}

#[test]
fn a_shard_that_is_to_come_tells_what_it_waits_for() {
    let options = MoverOptions {
        max_concurrent_pulls: 1,
        ..MoverOptions::default()
    };
    let mut stage = planned(&[2, 3], options);
    stage.moves();
    assert_eq!(stage.waits_for(2), None);
    assert_eq!(stage.waits_for(3).unwrap(), "waits for the slot of g2");
    stage.fail("tell g2 to begin a journal of s2 for g1 since 2");
    assert_eq!(stage.moves(), [""; 0]);
    let refused = "g2: connection refused; next try in 10 ms";
    assert_eq!(stage.waits_for(2).unwrap(), refused);
    assert_eq!(stage.waits_for(3).unwrap(), refused);
    settle(&mut stage, answer);
    stage.now += 10;
    settle(&mut stage, answer);
    assert_eq!((stage.waits_for(2), stage.waits_for(3)), (None, None));
    assert_eq!(stage.waits_for(4), None, "no move of it is planned");
}

#[test]
fn a_source_that_refuses_to_begin_is_asked_ever_less_often() {
    let mut stage = planned(&[2, 3, 4], MoverOptions::default());
    let mut asked = 0;
    for _ in 0..1_000 {
        stage.pass(10);
        let open = stage.open.values().map(crate::show::action);
        let begin = open.filter(|it| it.contains("begin a journal"));
        for what in begin.collect::<Vec<_>>() {
            stage.fail(&what);
            asked += 1;
        }
        stage.turn();
    }
    assert!((10..20).contains(&asked), "{asked} in 10 s");
}

#[test]
fn a_report_names_exactly_what_it_is_about() {
    let mut stage = planned(&[4], MoverOptions::default());
    // Both groups joined again since, or so.
    let incarnation = |number| Incarnation(number);
    let groups = [(1, 2), (2, 1)].map(|(gid, number)| {
        let group = types::Group {
            incarnation: incarnation(number),
            ..group(gid)
        };
        (Gid(gid), Some(group))
    });
    stage.configure(&ConfigDelta {
        num: ConfigNum(3),
        groups: groups.into(),
        ..ConfigDelta::default()
    });
    settle(&mut stage, answer);
    stage.now += 200;
    let moves = stage.moves();
    assert_eq!(moves, [report(&[4])]);
    let cuts = stage.open.values().find_map(|action| match action {
        Action::ReportCut { cuts } => Some(cuts.clone()),
        _ => None,
    });
    let cut = types::Cut {
        owner: Gid(2),
        owner_incarnation: Incarnation(1),
        owner_since: ConfigNum(1),
        target: Gid(1),
        target_incarnation: Incarnation(2),
        target_since: ConfigNum(2),
        journal: JournalId(9),
    };
    assert_eq!(cuts, Some([(ShardId(4), cut)].into()));
}

#[test]
fn a_report_is_repeated_once_it_has_ended() {
    let mut stage = planned(&[4], MoverOptions::default());
    settle(&mut stage, answer);
    for _ in 0..30 {
        assert_eq!(reports(stage.pass(199)), [""; 0]);
        answer_all(&mut stage);
        assert_eq!(reports(stage.pass(1)), [report(&[4])]);
        answer_all(&mut stage);
        stage.turn();
    }
    stage.pass(200);
    let rounds_alone = |action: &Action| match action {
        Action::ReportCut { .. } => None,
        _ => answer(action),
    };
    let mut again = 0;
    for _ in 0..9 {
        again += count(&settle(&mut stage, rounds_alone), &report(&[4]));
        stage.now += 1_000;
    }
    assert_eq!(again, 0, "a report without an answer is pending");
}

#[test]
fn a_target_that_changes_ends_the_copy() {
    let mut stage = planned(&[4], MoverOptions::default());
    settle(&mut stage, answer);
    stage.configure(&plan(3, &[(4, 1, 1, 3)]));
    assert!(!is_copying(&stage, 4));
    stage.now += 1_000;
    assert_eq!(stage.moves(), [""; 0]);
    stage.configure(&plan(4, &[(4, 1, 3, 1)]));
    let said = settle(&mut stage, answer);
    let begin = "tell g2 to begin a journal of s4 for g1 since 4";
    assert_eq!(said.first().map(String::as_str), Some(begin));
    assert!(is_copying(&stage, 4));
}

#[test]
fn a_cut_without_a_copy_is_a_pull() {
    let mut stage = planned(&[4], MoverOptions::default());
    stage.moves();
    stage.configure(&cut(3, &[(4, 1, 2, 1)]));
    assert_eq!(stage.moves(), ["pull s4@3 from g2 after start"]);
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
    assert_eq!(count(&said, "propose: drop the copy of s4"), 1, "{said:?}");
    assert!(!is_copying(&stage, 4));
    stage.now += 1_000;
    let again = settle(&mut stage, ended);
    assert_eq!(
        count(&said, "begin a journal") + count(&again, "begin a journal"),
        1
    );
}

#[test]
fn a_useless_copy_at_the_cut_becomes_a_pull_of_the_whole_shard() {
    let mut stage = planned(&[4], MoverOptions::default());
    settle(&mut stage, answer);
    stage.configure(&cut(3, &[(4, 1, 2, 1)]));
    let journal = Index(9);
    let ended = |action: &Action| match action {
        Action::Copy { request, .. } => {
            assert_eq!(request.fence, Some(ConfigNum(3)));
            Some(ActionOutcome::Refused(JournalError::Ended { journal }))
        }
        _ => answer(action),
    };
    let said = settle(&mut stage, ended);
    assert_eq!(count(&said, "propose: pull s4@3 whole"), 1, "{said:?}");
    assert_eq!(count(&said, "pull s4@3 from g2 after start"), 1, "{said:?}");
}
