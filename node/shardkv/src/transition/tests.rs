//! The table of states and steps, cell by cell, and what else a step changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use raft::Index;
use types::{Assignment, ClusterId, ConfigNum, Gid, Group, Incarnation, ShardId, ShardRun};

use super::*;
use crate::{
    Configure, CopyCursor, CopyId, CopyStep, Cursor, GroupKind, Part, PartNext, PlannedMove,
    Position, Shard, Target,
};

/// This group, another, and a third.
const OWN: Gid = Gid(1);
const OTHER: Gid = Gid(2);
const THIRD: Gid = Gid(3);

const CONTROLLER: ClusterId = ClusterId(7);
/// The configuration that the group has accepted.
const ACCEPTED: ConfigNum = ConfigNum(9);
/// The shard that it is about.
const SHARD: ShardId = ShardId(2);
/// A part of it has arrived already.
const ARRIVED: Cursor = Cursor::Data(Bytes::from_static(b"arrived"));

const GENESIS: Genesis = Genesis {
    kind: GroupKind::Shards,
    shards: 4,
    session_ttl_ms: 10_000,
    max_sessions_per_shard: 6,
    max_results_per_session: 4,
};

fn group(gid: Gid) -> Group {
    vec![format!("{gid}:1")].into()
}

/// Another group with the same gid.
fn again(gid: Gid) -> Group {
    Group {
        incarnation: Incarnation(10),
        ..group(gid)
    }
}

fn all_groups() -> BTreeMap<Gid, Group> {
    [OWN, OTHER, THIRD]
        .into_iter()
        .map(|gid| (gid, group(gid)))
        .collect()
}

fn plan(owner: Gid, target: Gid, since: u64) -> PlannedMove {
    PlannedMove {
        owner,
        owner_since: ConfigNum(5),
        target: Target {
            to: target,
            since: ConfigNum(since),
        },
    }
}

fn copy(since: u64, journal: u64) -> CopyId {
    CopyId {
        since: ConfigNum(since),
        journal: Index(journal),
    }
}

/// The cursor of a copy of which the base and some generations have arrived.
fn page(generation: u64) -> CopyCursor {
    CopyCursor::Page {
        generation,
        after: Position::default(),
    }
}

/// The ownership that [`name`] names: the state, and the target of a planned move.
fn ownership_of(name: &str) -> Ownership {
    let mut ownership = Ownership {
        gid: OWN,
        controller: Some(CONTROLLER),
        config: ACCEPTED,
        groups: Arc::new(all_groups()),
        ..Ownership::default()
    };
    let (state, target) = name.split_once(',').unwrap_or((name, ""));
    let planned = match target {
        "to1@6" => Some(plan(OTHER, OWN, 6)),
        "to3@8" => Some(plan(OWN, THIRD, 8)),
        _ => None,
    };
    ownership.planned = Arc::new(planned.map(|it| (SHARD, it)).into_iter().collect());
    let config = ConfigNum(5);
    let (source, copy, cursor, bytes) = (OTHER, copy(6, 40), page(3), 100);
    let state = match state {
        "serving5" => ShardState::Serving { config },
        "pulling5" => ShardState::Pulling {
            config,
            source,
            after: ARRIVED,
            bytes,
        },
        "fenced5" => ShardState::Fenced { config, to: OTHER },
        "copying6" => ShardState::Copying {
            source,
            copy,
            cursor,
            bytes,
        },
        "completing7" => ShardState::Completing {
            config: ConfigNum(7),
            source,
            copy,
            cursor,
            bytes,
        },
        _ => return ownership,
    };
    let shard = Shard {
        state,
        since: LogTime(1),
        clock: LogTime(50),
    };
    ownership.shards.insert(SHARD, Arc::new(shard));
    ownership
}

/// The name of an ownership. After `!` nothing of the shard has arrived, after `+` more than before.
fn name(ownership: &Ownership) -> String {
    let of_cursor = |cursor: &CopyCursor| match cursor {
        cursor if *cursor == page(3) => "",
        cursor if *cursor == CopyCursor::default() => "!",
        _ => "+",
    };
    let mut name = match ownership.state(SHARD) {
        None => "absent".to_owned(),
        Some(ShardState::Serving { config }) => format!("serving{config}"),
        Some(ShardState::Pulling { config, after, .. }) => match after {
            after if *after == ARRIVED => format!("pulling{config}"),
            after if *after == Cursor::default() => format!("pulling{config}!"),
            _ => format!("pulling{config}+"),
        },
        Some(ShardState::Fenced { config, .. }) => format!("fenced{config}"),
        Some(ShardState::Copying { copy, cursor, .. }) => {
            format!("copying{}{}", copy.since, of_cursor(cursor))
        }
        Some(ShardState::Completing { config, cursor, .. }) => {
            format!("completing{config}{}", of_cursor(cursor))
        }
    };
    if let Some(planned) = ownership.planned.get(&SHARD) {
        let Target { to, since } = planned.target;
        name = format!("{name},to{}@{since}", to.0);
    }
    name
}

/// A row: the owner and since when, the owner before, the target and since when.
fn row(owner: (Gid, u64), previous: Gid, target: (Gid, u64)) -> Assignment {
    Assignment {
        owner: owner.0,
        owner_since: ConfigNum(owner.1),
        previous,
        target: target.0,
        target_since: ConfigNum(target.1),
    }
}

/// The step from the accepted configuration to `num`, with rows of runs of shards.
fn configure_rows(num: u64, rows: &[(u32, u32, Assignment)]) -> Configure {
    let rows = rows.iter().map(|(first, count, row)| {
        let (first, count) = (ShardId(*first), *count);
        (ShardRun { first, count }, *row)
    });
    Configure {
        gid: OWN,
        controller: CONTROLLER,
        after: ACCEPTED,
        num: ConfigNum(num),
        groups: BTreeMap::new(),
        rows: rows.collect(),
    }
}

fn configure(num: u64, row: Assignment) -> Configure {
    configure_rows(num, &[(SHARD.0, 1, row)])
}

fn install(config: u64, after: Cursor, next: Next) -> Step {
    Step::Install(Chunk {
        shard: SHARD,
        config: ConfigNum(config),
        after,
        pairs: Vec::new(),
        sessions: Vec::new(),
        next,
    })
}

fn part(copy: CopyId, next: PartNext) -> Step {
    Step::Copy(CopyStep::Take(Part {
        shard: SHARD,
        copy,
        after: page(3),
        changes: Vec::new(),
        next,
    }))
}

/// The steps of configurations. The shard's row is for the group..
fn configuration(name: &str) -> Option<Configure> {
    let gives = configure(10, row((OWN, 10), OTHER, (OWN, 8)));
    Some(match name {
        // .. the only owner that the shard ever had,
        "nobody-gives" => configure(10, row((OWN, 10), Gid::NONE, (OWN, 10))),
        // .. the one that goes on without a forgotten group,
        "nobody-keeps" => configure(10, row((OWN, 5), Gid::NONE, (OWN, 5))),
        "nobody-gives-on" => configure(10, row((OWN, 10), Gid::NONE, (THIRD, 10))),
        "nobody-takes" => configure(10, row((THIRD, 10), Gid::NONE, (THIRD, 10))),
        "other-goes" => Configure {
            groups: [(OTHER, None)].into(),
            ..configure(12, row((THIRD, 10), OTHER, (THIRD, 10)))
        },
        "other-gives" => Configure {
            groups: [(OTHER, None)].into(),
            ..configure(10, row((OWN, 10), Gid::NONE, (OWN, 10)))
        },
        // .. whose fence is for the group that has the gid now,
        "other-begins" => Configure {
            groups: [(OTHER, Some(again(OTHER)))].into(),
            ..configure(10, row((OTHER, 10), OWN, (OTHER, 8)))
        },
        // .. a forgotten one itself, which may hear of it late, and one that joins again,
        "own-goes" => Configure {
            groups: [(OWN, None)].into(),
            ..configure(10, row((THIRD, 10), Gid::NONE, (THIRD, 10)))
        },
        "own-goes-later" => Configure {
            groups: [(OWN, None)].into(),
            ..configure(12, row((OTHER, 10), THIRD, (OTHER, 8)))
        },
        "own-goes-gives" => Configure {
            groups: [(OWN, None)].into(),
            ..configure(10, row((OWN, 10), Gid::NONE, (OWN, 10)))
        },
        "own-begins" => Configure {
            groups: [(OWN, Some(again(OWN)))].into(),
            ..configure(12, row((THIRD, 10), OWN, (THIRD, 10)))
        },
        "own-begins-plan" => Configure {
            groups: [(OWN, Some(again(OWN)))].into(),
            ..configure(12, row((THIRD, 10), Gid::NONE, (OWN, 12)))
        },
        "own-begins-gives" => Configure {
            groups: [(OWN, Some(again(OWN)))].into(),
            ..configure(10, row((OWN, 10), Gid::NONE, (OWN, 10)))
        },
        "own-begins-pulls" => Configure {
            groups: [(OWN, Some(again(OWN)))].into(),
            ..configure(10, row((OWN, 10), OTHER, (OWN, 8)))
        },
        // .. the end of a planned move to it,
        "gives" => gives,
        "third-gives" => configure(10, row((OWN, 10), THIRD, (OWN, 8))),
        "gives-skipped" => configure(12, row((OWN, 11), OTHER, (OWN, 10))),
        "gives-on" => configure(12, row((OWN, 10), OTHER, (THIRD, 11))),
        // .. the end of a planned move from it,
        "takes" => configure(10, row((OTHER, 10), OWN, (OTHER, 8))),
        "takes-skipped" => configure(12, row((THIRD, 11), OWN, (THIRD, 10))),
        "takes-back" => configure(12, row((OTHER, 10), OWN, (OWN, 11))),
        // .. of no concern,
        "elsewhere" => configure(10, row((THIRD, 10), OTHER, (THIRD, 10))),
        // .. without a new owner, and without a planned move,
        "kept" => configure(10, row((OWN, 5), OTHER, (OWN, 5))),
        "kept-cut" => configure(10, row((OWN, 7), OTHER, (OWN, 6))),
        "kept-fence" => configure(10, row((OTHER, 5), OWN, (OTHER, 5))),
        // .. or with one.
        "plans-here" => configure(10, row((OTHER, 5), OWN, (OWN, 10))),
        "plans-same" => configure(10, row((OTHER, 5), OWN, (OWN, 6))),
        "plans-there" => configure(10, row((OTHER, 5), OWN, (THIRD, 10))),
        "plans-away" => configure(10, row((OWN, 5), OTHER, (THIRD, 10))),
        "plans-on" => configure(10, row((OWN, 7), OTHER, (THIRD, 10))),
        // Of a later configuration than the step's.
        "early-owner" => configure(10, row((OWN, 11), OTHER, (OWN, 8))),
        "early-target" => configure(10, row((OWN, 10), OTHER, (THIRD, 11))),
        // Steps that don't follow, and those of others.
        "again" => Configure {
            num: ACCEPTED,
            ..gives
        },
        "older" => Configure {
            num: ConfigNum(8),
            after: ConfigNum(7),
            ..gives
        },
        "from-older" => Configure {
            after: ConfigNum(8),
            ..gives
        },
        "from-later" => Configure {
            after: ConfigNum(10),
            num: ConfigNum(11),
            ..gives
        },
        "from-nothing" => Configure {
            after: ConfigNum(0),
            ..gives
        },
        "other-controller" => Configure {
            controller: ClusterId(8),
            ..gives
        },
        "other-gid" => Configure {
            gid: OTHER,
            ..gives
        },
        "no-gid" => Configure {
            gid: Gid::NONE,
            ..gives
        },
        _ => return None,
    })
}

fn step(name: &str) -> Step {
    if let Some(step) = configuration(name) {
        return Step::Configure(step);
    }
    let next = || Next::Chunk(Cursor::Sessions(None));
    let (clock, ttl_ms) = (LogTime(2_000), GENESIS.session_ttl_ms);
    let done = || Next::Done { clock, ttl_ms };
    let copied = PartNext::Done { clock, ttl_ms };
    let shard = SHARD;
    let delete = |config| Step::Delete {
        shard,
        config: ConfigNum(config),
    };
    let start = |source, since| {
        let copy = copy(since, 40);
        Step::Copy(CopyStep::Start {
            shard,
            source,
            copy,
        })
    };
    let drop = |copy| Step::Copy(CopyStep::Drop { shard, copy });
    let restart = |config, copy| {
        let config = ConfigNum(config);
        Step::Copy(CopyStep::Restart {
            shard,
            config,
            copy,
        })
    };
    match name {
        "part4" => install(4, ARRIVED, next()),
        "part5" => install(5, ARRIVED, next()),
        "first5" => install(5, Cursor::default(), Next::Chunk(ARRIVED)),
        "backwards5" => install(5, ARRIVED, Next::Chunk(Cursor::default())),
        "last5" => install(5, ARRIVED, done()),
        "last7" => install(7, ARRIVED, done()),
        "early-last5" => install(5, Cursor::default(), done()),
        "delete4" => delete(4),
        "delete5" => delete(5),
        "delete7" => delete(7),
        "delete10" => delete(10),
        "deleted5" => Step::Deleted {
            shard,
            config: ConfigNum(5),
        },
        "start5" => start(OTHER, 5),
        "start6" => start(OTHER, 6),
        "start6-third" => start(THIRD, 6),
        "copy6" => part(copy(6, 40), PartNext::At(page(4))),
        "copy6-skips" => part(copy(6, 40), PartNext::At(page(5))),
        "copy6-other" => part(copy(6, 41), PartNext::At(page(4))),
        "copied6" => part(copy(6, 40), copied),
        "drop6" => drop(copy(6, 40)),
        "drop6-other" => drop(copy(6, 41)),
        "restart6" => restart(6, copy(6, 40)),
        "restart7" => restart(7, copy(6, 40)),
        "restart7-other" => restart(7, copy(6, 41)),
        _ => panic!("{name}"),
    }
}

/// `=`: nothing changes; `!`: refused as nonsense; `~`: refused as not ready; otherwise what the shard becomes. In a cell `pulling5!`
/// nothing has arrived, in `pulling5+` more than before.
const TABLE: &str = "
step             absent            absent,to1@6      copying6,to1@6      completing7       pulling5       serving5        serving5,to3@8  fenced5
nobody-gives     serving10         serving10         serving10           serving10         serving10      serving10       serving10       serving10
nobody-keeps     !                 !                 !                   !                 pulling5       serving5        serving5        !
nobody-gives-on  serving10,to3@10  serving10,to3@10  serving10,to3@10    serving10,to3@10  serving10,to3@10 serving10,to3@10 serving10,to3@10 serving10,to3@10
nobody-takes     absent            absent            absent              !                 !              !               !               fenced5
other-goes       absent            absent            absent              !                 !              !               !               absent
other-gives      serving10         serving10         serving10           serving10         serving10      serving10       serving10       serving10
other-begins     absent            absent            absent              !                 !              fenced10        fenced10        !
own-goes         absent            absent            absent              absent            absent         fenced10        fenced10        fenced5
own-goes-later   absent            absent            absent              absent            absent         fenced10        fenced10        fenced5
own-goes-gives   !                 !                 !                   !                 !              !               !               !
own-begins       absent            absent            absent              absent            absent         absent          absent          absent
own-begins-plan  absent,to1@12     absent,to1@12     absent,to1@12       absent,to1@12     absent,to1@12  absent,to1@12   absent,to1@12   absent,to1@12
own-begins-gives serving10         serving10         serving10           serving10         serving10      serving10       serving10       serving10
own-begins-pulls pulling10!        pulling10!        pulling10!          pulling10!        pulling10!     pulling10!      pulling10!      pulling10!
gives            pulling10!        pulling10!        completing10        !                 !              !               !               !
third-gives      pulling10!        pulling10!        pulling10!          !                 !              !               !               !
gives-skipped    pulling11!        pulling11!        completing11        !                 !              !               !               !
gives-on         pulling10!,to3@11 pulling10!,to3@11 completing10,to3@11 !                 !              !               !               !
takes            absent            absent            absent              !                 !              fenced10        fenced10        !
takes-skipped    absent            absent            absent              !                 !              fenced11        fenced11        !
takes-back       absent,to1@11     absent,to1@11     absent,to1@11       !                 !              fenced10,to1@11 fenced10,to1@11 !
elsewhere        absent            absent            absent              !                 !              !               !               fenced5
kept             !                 !                 !                   !                 pulling5       serving5        serving5        !
kept-cut         !                 !                 !                   completing7       !              !               !               !
kept-fence       absent            absent            absent              !                 !              !               !               fenced5
plans-here       absent,to1@10     absent,to1@10     absent,to1@10       !                 !              !               !               fenced5,to1@10
plans-same       absent,to1@6      absent,to1@6      copying6,to1@6      !                 !              !               !               fenced5,to1@6
plans-there      absent            absent            absent              !                 !              !               !               fenced5
plans-away       !                 !                 !                   !                 pulling5,to3@10 serving5,to3@10 serving5,to3@10 !
plans-on         !                 !                 !                   completing7,to3@10 !             !               !               !
early-owner      !                 !                 !                   !                 !              !               !               !
early-target     !                 !                 !                   !                 !              !               !               !
again            =                 =                 =                   =                 =              =               =               =
older            =                 =                 =                   =                 =              =               =               =
from-older       =                 =                 =                   =                 =              =               =               =
from-later       =                 =                 =                   =                 =              =               =               =
from-nothing     =                 =                 =                   =                 =              =               =               =
other-controller !                 !                 !                   !                 !              !               !               !
other-gid        !                 !                 !                   !                 !              !               !               !
no-gid           !                 !                 !                   !                 !              !               !               !
part4            =                 =                 =                   =                 =              =               =               =
part5            =                 =                 =                   =                 pulling5+      =               =               =
first5           =                 =                 =                   =                 =              =               =               =
backwards5       =                 =                 =                   =                 !              =               =               =
last5            =                 =                 =                   =                 serving5       =               =               =
last7            =                 =                 =                   =                 =              =               =               =
early-last5      =                 =                 =                   =                 =              =               =               =
delete4          =                 =                 =                   =                 =              =               =               =
delete5          =                 =                 =                   =                 ~              ~               ~               absent
delete7          =                 =                 =                   ~                 ~              ~               ~               ~
delete10         ~                 ~                 ~                   ~                 ~              ~               ~               ~
deleted5         =                 =                 =                   =                 =              =               =               =
start5           =                 =                 =                   =                 =              =               =               =
start6           =                 copying6!,to1@6   =                   =                 =              =               =               =
start6-third     =                 =                 =                   =                 =              =               =               =
copy6            =                 =                 copying6+,to1@6     completing7+      =              =               =               =
copy6-skips      =                 =                 !                   !                 =              =               =               =
copy6-other      =                 =                 =                   =                 =              =               =               =
copied6          =                 =                 =                   serving7          =              =               =               =
drop6            =                 =                 absent,to1@6        =                 =              =               =               =
drop6-other      =                 =                 =                   =                 =              =               =               =
restart6         =                 =                 =                   =                 =              =               =               =
restart7         =                 =                 =                   pulling7!         =              =               =               =
restart7-other   =                 =                 =                   =                 =              =               =               =
";

#[test]
fn each_state_takes_each_step_as_the_table_says() {
    let mut lines = TABLE.lines().filter(|line| !line.is_empty());
    let states: Vec<&str> = lines.next().unwrap().split_whitespace().skip(1).collect();
    let mut cells = 0;
    for line in lines {
        let mut words = line.split_whitespace();
        let step_name = words.next().unwrap();
        let step = step(step_name);
        for (state, expected) in states.iter().zip(words) {
            let before = ownership_of(state);
            assert_eq!(name(&before), *state);
            let mut after = before.clone();
            let verdict = before.judge(&step, &GENESIS, Bugs::default());
            let found = match verdict {
                Verdict::Idle => "=".to_owned(),
                Verdict::Refused(KvError::ShardNotReady { shard: SHARD }) => "~".to_owned(),
                Verdict::Refused(KvError::Malformed(_)) => "!".to_owned(),
                Verdict::Refused(other) => panic!("{other:?}"),
                Verdict::Due => {
                    let changed = after.take(&step, LogTime(9_000), &GENESIS, Bugs::default());
                    assert_ne!(after, before, "{state} {step_name} was due");
                    assert_recorded(&before, &after, &changed);
                    assert_cleared(&before, &after, &step, &changed);
                    if let Step::Configure(step) = &step {
                        assert_follows(&after, step);
                    }
                    name(&after)
                }
            };
            assert_eq!(found, expected, "{state} takes {step_name}");
            cells += 1;
        }
    }
    assert_eq!(cells, 8 * 64);
}

/// All that differs is among what `changed` names, or it would be lost at the next start.
fn assert_recorded(before: &Ownership, after: &Ownership, changed: &Changed) {
    let group = |of: &Ownership| (of.gid, of.controller, of.config);
    assert!(changed.group || group(before) == group(after));
    for shard in (0..GENESIS.shards).map(ShardId) {
        let same = before.shards.get(&shard) == after.shards.get(&shard);
        assert!(same || changed.shards.contains(&shard), "{shard}");
        let same = before.planned.get(&shard) == after.planned.get(&shard);
        assert!(same || changed.planned.contains(&shard), "{shard}");
    }
    let pending = before
        .pending_deletes
        .keys()
        .chain(after.pending_deletes.keys());
    for key in pending {
        let same = before.pending_deletes.get(key) == after.pending_deletes.get(key);
        assert!(same || changed.pending_deletes.contains(key), "{key:?}");
    }
    for gid in before.groups.keys().chain(after.groups.keys()) {
        let same = before.groups.get(gid) == after.groups.get(gid);
        assert!(same || changed.groups.contains(gid), "{gid}");
    }
}

/// The rows of a shard go exactly when the shard does, or when what has arrived is of no use.
fn assert_cleared(before: &Ownership, after: &Ownership, step: &Step, changed: &Changed) {
    let has_rows = |of: &Ownership| of.state(SHARD).is_some();
    let copied = |of: &Ownership| match of.state(SHARD) {
        Some(ShardState::Copying { copy, .. } | ShardState::Completing { copy, .. }) => Some(*copy),
        _ => None,
    };
    // A copy that ends makes the shard served.
    let ended = matches!(
        (before.state(SHARD), after.state(SHARD)),
        (
            Some(ShardState::Completing { .. }),
            Some(ShardState::Serving { .. })
        )
    ) && !matches!(step, Step::Configure(_));
    // A part of a pull is of no use without the source, and nothing is to a group that begins.
    let was_pulling = matches!(before.state(SHARD), Some(ShardState::Pulling { .. }));
    let is_pulling = matches!(after.state(SHARD), Some(ShardState::Pulling { .. }));
    let useless = match step {
        Step::Configure(step) => {
            let begins = step.groups.get(&OWN).is_some_and(Option::is_some);
            (was_pulling && !is_pulling) || (begins && has_rows(before))
        }
        _ => false,
    };
    let dropped = copied(before).is_some() && copied(before) != copied(after) && !ended;
    let goes = has_rows(before) && !has_rows(after);
    assert_eq!(
        changed.cleared.contains(&SHARD),
        goes || dropped || useless,
        "{before:?} {after:?}"
    );
}

/// The step's configuration is accepted, and the plan is the row's.
fn assert_follows(after: &Ownership, step: &Configure) {
    assert_eq!(after.config, step.num);
    for (run, row) in &step.rows {
        let own = row.is_moving() && (row.owner == OWN || row.target == OWN);
        let planned = own.then_some(PlannedMove {
            owner: row.owner,
            owner_since: row.owner_since,
            target: Target {
                to: row.target,
                since: row.target_since,
            },
        });
        for shard in run.shards() {
            assert_eq!(after.planned.get(&shard).copied(), planned, "{shard}");
        }
    }
}

fn judge(ownership: &Ownership, step: Configure) -> Verdict {
    ownership.judge(&Step::Configure(step), &GENESIS, Bugs::default())
}

/// Returns the reason of a refusal.
fn refusal(ownership: &Ownership, step: Configure) -> String {
    match judge(ownership, step) {
        Verdict::Refused(KvError::Malformed(why)) => why,
        other => panic!("{other:?}"),
    }
}

fn take(ownership: &mut Ownership, step: &Step, time: u64) -> Changed {
    let verdict = ownership.judge(step, &GENESIS, Bugs::default());
    assert_eq!(verdict, Verdict::Due, "{step:?}");
    let before = ownership.clone();
    let changed = ownership.take(step, LogTime(time), &GENESIS, Bugs::default());
    assert_recorded(&before, ownership, &changed);
    changed
}

#[test]
fn a_group_begins_with_any_configuration_and_follows_one_controller() {
    let first = Configure {
        after: ConfigNum(0),
        num: ConfigNum(3),
        groups: all_groups()
            .into_iter()
            .map(|(gid, it)| (gid, Some(it)))
            .collect(),
        ..configure(3, row((OWN, 2), OTHER, (THIRD, 3)))
    };
    let mut ownership = Ownership::default();
    let later = Configure {
        after: ConfigNum(3),
        num: ConfigNum(4),
        ..first.clone()
    };
    assert_eq!(judge(&ownership, later), Verdict::Idle);
    let nobody = Configure {
        gid: Gid::NONE,
        ..first.clone()
    };
    assert!(refusal(&ownership, nobody).contains("gid 0"));

    take(&mut ownership, &Step::Configure(first.clone()), 1);
    assert_eq!((ownership.gid, ownership.config), (OWN, ConfigNum(3)));
    assert_eq!(ownership.controller, Some(CONTROLLER));
    assert_eq!(*ownership.groups, all_groups());
    assert_eq!(name(&ownership), "pulling2!,to3@3");
    assert_eq!(ownership.settled(), ConfigNum(1));
    assert_eq!(judge(&ownership, first.clone()), Verdict::Idle);
    let foreign = Configure {
        controller: ClusterId(8),
        ..first
    };
    assert!(refusal(&ownership, foreign).contains("controller"));
}

#[test]
fn the_first_configuration_may_be_the_empty_one() {
    let mut ownership = Ownership::default();
    let empty = types::ShardConfig::empty(GENESIS.shards);
    let step = Configure::to(&empty, OWN, CONTROLLER, &ownership);
    take(&mut ownership, &Step::Configure(step.clone()), 1);
    assert_eq!((ownership.gid, ownership.config), (OWN, ConfigNum(0)));
    assert_eq!(judge(&ownership, step), Verdict::Idle);
}

#[test]
fn rows_that_are_not_of_this_groups_shards_in_order_are_refused() {
    let gives = row((OWN, 10), OTHER, (OWN, 8));
    let elsewhere = row((THIRD, 10), OTHER, (THIRD, 10));
    let most = u32::MAX;
    for rows in [
        &[(3, 2, elsewhere)][..],
        &[(4, 1, elsewhere)],
        &[(0, 5, elsewhere)],
        &[(2, 0, elsewhere)],
        &[(most, 1, elsewhere)],
        &[(most, most, elsewhere)],
        &[(1, most, elsewhere)],
        &[(0, 1, gives), (0, 1, elsewhere)],
        &[(0, 3, gives), (2, 1, elsewhere)],
        &[(2, 1, gives), (1, 1, elsewhere)],
    ] {
        let why = refusal(&ownership_of("absent"), configure_rows(10, rows));
        assert!(why.contains("out of order") && why.contains("4 shards"));
    }
    let all = &[(0, 2, gives), (2, 1, elsewhere), (3, 1, gives)];
    let mut ownership = ownership_of("absent");
    take(
        &mut ownership,
        &Step::Configure(configure_rows(10, all)),
        60,
    );
    let pulled: Vec<u32> = ownership.shards.keys().map(|shard| shard.0).collect();
    assert_eq!(pulled, [0, 1, 3]);
}

/// Any part of a configuration that contradicts the group would be a guess.
#[test]
fn one_row_that_does_not_fit_refuses_the_whole_configuration() {
    let gives = row((OWN, 10), OTHER, (OWN, 8));
    for (state, wrong, verb) in [
        ("serving5", row((OTHER, 10), THIRD, (OTHER, 10)), "takes"),
        ("serving5", row((OWN, 6), OTHER, (OWN, 6)), "gives"),
        ("pulling5", row((OTHER, 10), OWN, (OTHER, 10)), "takes"),
        ("fenced5", row((OWN, 10), OTHER, (OWN, 10)), "gives"),
        ("fenced5", row((THIRD, 5), OTHER, (THIRD, 5)), "takes"),
        ("fenced5", row((OTHER, 4), OWN, (OTHER, 4)), "takes"),
        ("absent", row((OWN, 9), OTHER, (OWN, 9)), "gives"),
    ] {
        let ownership = ownership_of(state);
        let rows = [(0, 1, gives), (SHARD.0, 1, wrong), (3, 1, gives)];
        let why = refusal(&ownership, configure_rows(10, &rows));
        let expected = format!("configuration 10 {verb} {SHARD} against what this group knows");
        assert!(why.contains(&expected), "{why}");
    }
}

/// The owner of a shard changes only once it serves the shard.
#[test]
fn a_second_change_of_the_owner_before_the_first_is_done_is_refused() {
    // Given, and taken again before it has arrived.
    let mut ownership = ownership_of("absent");
    take(&mut ownership, &step("gives"), 60);
    let taken = Configure {
        after: ConfigNum(10),
        ..configure(11, row((THIRD, 11), OWN, (THIRD, 11)))
    };
    assert!(refusal(&ownership, taken.clone()).contains("takes"));
    take(&mut ownership, &install(10, Cursor::default(), done()), 60);
    take(&mut ownership, &Step::Configure(taken), 60);
    assert_eq!(name(&ownership), "fenced11");
    // Taken, and given back before it is deleted.
    let back = Configure {
        after: ConfigNum(11),
        ..configure(12, row((OWN, 12), THIRD, (OWN, 12)))
    };
    assert!(refusal(&ownership, back.clone()).contains("gives"));
    // What the new owner does with it is no matter.
    let mut fenced = ownership.clone();
    let on = Configure {
        after: ConfigNum(11),
        ..configure(12, row((OTHER, 12), THIRD, (OTHER, 12)))
    };
    take(&mut fenced, &Step::Configure(on), 60);
    assert_eq!(name(&fenced), "fenced11");
    let (shard, config) = (SHARD, ConfigNum(11));
    take(&mut ownership, &Step::Delete { shard, config }, 60);
    take(&mut ownership, &Step::Configure(back), 60);
    assert_eq!(name(&ownership), "pulling12!");
}

fn done() -> Next {
    Next::Done {
        clock: LogTime(2_000),
        ttl_ms: GENESIS.session_ttl_ms,
    }
}

#[test]
fn clocks_rise_at_the_fence_and_come_with_the_shard() {
    let clock = |ownership: &Ownership| ownership.shards.get(&SHARD).unwrap().clock;
    let mut serving = ownership_of("serving5");
    take(&mut serving, &step("takes"), 40);
    assert_eq!(clock(&serving), LogTime(50), "the table may be ahead");
    let mut serving = ownership_of("serving5");
    take(&mut serving, &step("takes"), 60);
    assert_eq!(clock(&serving), LogTime(60));
    for (state, last) in [("pulling5", "last5"), ("completing7", "copied6")] {
        let mut arriving = ownership_of(state);
        take(&mut arriving, &step(last), 60);
        assert_eq!(clock(&arriving), LogTime(2_000));
    }
    // Fenced again soon, by a log that is behind or ahead of the shard.
    for (time, expected) in [(60, 2_000), (3_000, 3_000)] {
        let mut passing = ownership_of("pulling5");
        take(&mut passing, &step("last5"), 60);
        take(&mut passing, &step("takes"), time);
        assert_eq!(clock(&passing), LogTime(expected));
    }
    // A plan changes no clock, and no time.
    let mut serving = ownership_of("serving5");
    let before = serving.shards.clone();
    take(&mut serving, &step("plans-away"), 60);
    assert_eq!(serving.shards, before);
    // The clock is of a table that is gone.
    let mut returning = ownership_of("fenced5");
    take(&mut returning, &step("delete5"), 60);
    take(&mut returning, &step("gives"), 60);
    assert_eq!(clock(&returning), LogTime(0));
}

#[test]
fn what_the_source_may_have_forgotten_stays_forgotten() {
    let own = GENESIS.session_ttl_ms;
    for (source_ttl, expected) in [(own, 100_000), (own - 7, 100_007), (own + 7, 99_993)] {
        let clock = clock_here(LogTime(100_000), source_ttl, own);
        assert_eq!(clock, LogTime(expected));
        // The oldest birth that is taken for new is the same in both groups.
        assert_eq!(clock.0 - own, 100_000 - source_ttl);
    }
    assert_eq!(clock_here(LogTime(5), 100, 20), LogTime(0));
    let end = LogTime(u64::MAX);
    assert_eq!(clock_here(end, 0, 20), end);
}

#[test]
fn settled_stays_below_what_is_unfinished() {
    for (state, settled) in [
        ("absent", 9),
        ("absent,to1@6", 9),
        ("copying6,to1@6", 9),
        ("completing7", 6),
        ("serving5", 9),
        ("serving5,to3@8", 9),
        ("pulling5", 4),
        ("fenced5", 4),
    ] {
        assert_eq!(ownership_of(state).settled(), ConfigNum(settled), "{state}");
    }
    let mut deleting = ownership_of("pulling5");
    take(&mut deleting, &step("last5"), 60);
    assert_eq!(
        deleting.pending_deletes,
        [((SHARD, ConfigNum(5)), OTHER)].into()
    );
    assert_eq!(deleting.settled(), ConfigNum(4));
    take(&mut deleting, &step("deleted5"), 60);
    assert_eq!(deleting.settled(), ConfigNum(9));
    take(&mut deleting, &step("takes"), 60);
    assert_eq!(deleting.settled(), ConfigNum(9), "of configuration 10");
    let (shard, config) = (SHARD, ConfigNum(10));
    take(&mut deleting, &Step::Delete { shard, config }, 60);
    assert_eq!(deleting.settled(), ConfigNum(10));
    let mut copied = ownership_of("completing7");
    take(&mut copied, &step("copied6"), 60);
    assert_eq!(copied.settled(), ConfigNum(6));
    assert_eq!(
        copied.pending_deletes,
        [((SHARD, ConfigNum(7)), OTHER)].into()
    );
}

/// A configuration with these changes of groups.
fn regroup(after: u64, groups: &[(Gid, Option<Group>)]) -> Step {
    Step::Configure(Configure {
        after: ConfigNum(after),
        groups: groups.iter().cloned().collect(),
        ..configure_rows(after + 1, &[])
    })
}

#[test]
fn the_groups_are_those_of_the_accepted_configuration() {
    let mut ownership = ownership_of("pulling5");
    let moved: Group = vec!["back:1".to_owned(), "back:2".to_owned()].into();
    let leaving = Group {
        leaving: true,
        ..group(OTHER)
    };
    let some = [
        (THIRD, Some(moved.clone())),
        (OTHER, Some(leaving.clone())),
        (Gid(4), Some(group(Gid(4)))),
    ];
    let changed = take(&mut ownership, &regroup(9, &some), 60);
    assert_eq!(changed.groups, [OTHER, THIRD, Gid(4)].into());
    let expected = [
        (OWN, group(OWN)),
        (OTHER, leaving),
        (THIRD, moved.clone()),
        (Gid(4), group(Gid(4))),
    ];
    assert_eq!(*ownership.groups, expected.into());
    assert_eq!(ownership.addresses(THIRD), Some(moved.addresses));
    // One that is gone may not even have been known.
    let gone = [(THIRD, None), (Gid(4), None), (Gid(5), None)];
    take(&mut ownership, &regroup(10, &gone), 60);
    let left: Vec<Gid> = ownership.groups.keys().copied().collect();
    assert_eq!(left, [OWN, OTHER]);
    assert_eq!(ownership.addresses(THIRD), None);
    assert_eq!(name(&ownership), "pulling5");
}

#[test]
fn a_group_that_is_gone_has_deleted_all_that_it_gave_away() {
    let mut ownership = ownership_of("serving5");
    let (of_other, of_third) = ((SHARD, ConfigNum(5)), (ShardId(1), ConfigNum(7)));
    ownership.pending_deletes = [
        (of_other, OTHER),
        (of_third, THIRD),
        ((SHARD, ConfigNum(3)), OTHER),
    ]
    .into();
    // Absence alone counts: a group that is leaving may have shards.
    let leaving = Group {
        leaving: true,
        ..group(OTHER)
    };
    let mut stays = ownership.clone();
    take(&mut stays, &regroup(9, &[(OTHER, Some(leaving))]), 60);
    assert_eq!(stays.pending_deletes, ownership.pending_deletes);

    let changed = take(&mut ownership, &regroup(9, &[(OTHER, None)]), 60);
    assert_eq!(ownership.pending_deletes, [(of_third, THIRD)].into());
    let dropped = [of_other, (SHARD, ConfigNum(3))];
    assert_eq!(changed.pending_deletes, dropped.into());
    assert_eq!(ownership.settled(), ConfigNum(6));
    // It left and came back, while this group was behind: the new one owes nothing.
    let again = Group {
        incarnation: Incarnation(11),
        ..group(THIRD)
    };
    let changed = take(&mut ownership, &regroup(10, &[(THIRD, Some(again))]), 60);
    assert_eq!(ownership.pending_deletes, [].into());
    assert_eq!(changed.pending_deletes, [of_third].into());
    assert_eq!(ownership.settled(), ConfigNum(11));
}
