//! The table of states and steps, cell by cell.

use super::*;
use crate::SessionClock;

/// The steps of configurations. The shard's row is for the group..
pub(super) fn configuration(name: &str) -> Option<Configure> {
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

pub(super) fn step(name: &str) -> Step {
    if let Some(step) = configuration(name) {
        return Step::Configure(step);
    }
    let next = || Next::Chunk(Cursor::Sessions(None));
    let clock = SessionClock {
        horizon: LogTime(2_000),
        time: LogTime(2_000),
    };
    let ttl_ms = GENESIS.session_ttl_ms;
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
                    let changed = after.take(&step, LogTime(9_000), Bugs::default());
                    assert_ne!(after, before, "{state} {step_name} was due");
                    assert_recorded(&before, &after, &changed);
                    assert_cleared(&before, &after, &step, &changed);
                    assert_lost(&before, &after, &step, &changed);
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
pub(super) fn assert_recorded(before: &Ownership, after: &Ownership, changed: &Changed) {
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
pub(super) fn assert_cleared(
    before: &Ownership,
    after: &Ownership,
    step: &Step,
    changed: &Changed,
) {
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
    // What was kept for a group that is still there is old, if the shard comes from nobody.
    let was_old = match before.state(SHARD) {
        Some(ShardState::Fenced { to, .. }) => after.groups.contains_key(to),
        _ => false,
    };
    let is_served = matches!(after.state(SHARD), Some(ShardState::Serving { .. }));
    let useless = match step {
        Step::Configure(step) => {
            let begins = step.groups.get(&OWN).is_some_and(Option::is_some);
            (was_pulling && !is_pulling) || (was_old && is_served) || (begins && has_rows(before))
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

/// A configuration that makes a shard served which wasn't, or not with the same content, says that a group was forgotten.
fn assert_lost(before: &Ownership, after: &Ownership, step: &Step, changed: &Changed) {
    let is_served = |of: &Ownership| matches!(of.state(SHARD), Some(ShardState::Serving { .. }));
    let stays = is_served(before) && !changed.cleared.contains(&SHARD);
    let lost = matches!(step, Step::Configure(_)) && is_served(after) && !stays;
    assert_eq!(changed.lost.contains(&SHARD), lost, "{before:?} {after:?}");
}

/// The step's configuration is accepted, and the plan is the row's.
pub(super) fn assert_follows(after: &Ownership, step: &Configure) {
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
