//! Sequences of steps, and what the table doesn't show.

use super::*;
use crate::SessionClock;

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
        clock: SessionClock {
            horizon: LogTime(2_000),
            time: LogTime(2_000),
        },
        ttl_ms: GENESIS.session_ttl_ms,
    }
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
        *deleting.pending_deletes,
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
        *copied.pending_deletes,
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
    let pending = [
        (of_other, OTHER),
        (of_third, THIRD),
        ((SHARD, ConfigNum(3)), OTHER),
    ];
    ownership.pending_deletes = Arc::new(pending.into());
    // Absence alone counts: a group that is leaving may have shards.
    let leaving = Group {
        leaving: true,
        ..group(OTHER)
    };
    let mut stays = ownership.clone();
    take(&mut stays, &regroup(9, &[(OTHER, Some(leaving))]), 60);
    assert_eq!(stays.pending_deletes, ownership.pending_deletes);

    let changed = take(&mut ownership, &regroup(9, &[(OTHER, None)]), 60);
    assert_eq!(*ownership.pending_deletes, [(of_third, THIRD)].into());
    let dropped = [of_other, (SHARD, ConfigNum(3))];
    assert_eq!(changed.pending_deletes, dropped.into());
    assert_eq!(ownership.settled(), ConfigNum(6));
    // It left and came back, while this group was behind: the new one owes nothing.
    let again = Group {
        incarnation: Incarnation(11),
        ..group(THIRD)
    };
    let changed = take(&mut ownership, &regroup(10, &[(THIRD, Some(again))]), 60);
    assert_eq!(*ownership.pending_deletes, [].into());
    assert_eq!(changed.pending_deletes, [of_third].into());
    assert_eq!(ownership.settled(), ConfigNum(11));
}
