//! Cases at the edges of decisions: each fails if one comparison or one part of a condition is missing.

use super::table::{delete_volumes, drained, retired, shown, world};
use super::*;
use crate::crd::GroupPhase;
use crate::parts::{Component, Kind};

const TWO: &[(u64, u64)] = &[(1, 5), (2, 5)];

#[test]
fn the_next_gid_is_above_all_that_are_visible_anywhere() {
    let next = |seen: &State| {
        let actions = decide(seen).actions.into_iter();
        let created = actions.filter_map(|action| match action {
            Action::CreateGroup {
                gid,
                stage: Stage::New,
            } => Some(gid),
            _ => None,
        });
        created.collect::<Vec<_>>()
    };
    let seen =
        |sets: &str, members: &[u64], settled: &[(u64, u64)]| world(3, sets, members, settled);
    assert_eq!(next(&seen("1 member, 20 new!", &[1], &[(1, 5)])), [21]);
    assert_eq!(next(&seen("1 member", &[1, 30], &[(1, 5)])), [31]);
    assert_eq!(next(&seen("1 member", &[1], &[(1, 5), (40, 4)])), [41]);
    let mut of_volumes = seen("1 member, 2 member", &[1, 2], TWO);
    of_volumes.volumes = [50].into();
    assert_eq!(next(&of_volumes), [51]);
    let mut recorded = seen("1 member, 2 member", &[1, 2], TWO);
    recorded.recorded_gid = 60;
    assert_eq!(next(&recorded), [61]);
}

#[test]
fn a_group_that_has_served_serves_whatever_it_still_waits_for() {
    let mut seen = world(2, "1 member, 2 member", &[1, 2], &[(1, 4), (2, 4)]);
    seen.sets.get_mut(&1).unwrap().has_served = true;
    assert_eq!(shown(&decide(&seen)), "1 Serving, 2 Joining => ");
    seen.store = None;
    assert_eq!(shown(&decide(&seen)), "1 Serving, 2 Joining => ");
    // The controllers don't know a group that has served.
    let mut seen = world(2, "1 member, 2 member", &[1], &[(1, 5)]);
    seen.sets.get_mut(&2).unwrap().has_served = true;
    assert_eq!(decide(&seen).phases[&2], GroupPhase::Serving);
}

#[test]
fn deleted_controllers_are_made_again_while_they_still_answer() {
    let mut seen = world(1, "1 member", &[1], &[(1, 5)]);
    seen.controllers = None;
    assert_eq!(shown(&decide(&seen)), "1 Serving => create controllers");
}

/// It may have been a member of controllers that have lost their disks.
#[test]
fn a_group_that_was_marked_before_any_joined_is_not_kept_for_another() {
    let seen = world(2, "1 new!, 2 leaving", &[], &[]);
    let expected = "1 Provisioning, 2 Removing => create 10 new";
    assert_eq!(shown(&decide(&seen)), expected);
}

#[test]
fn so_many_groups_join_at_once_and_the_others_later() {
    let sets = (1..=66).map(|gid| format!("{gid} new"));
    let seen = world(66, &sets.collect::<Vec<_>>().join(", "), &[], &[]);
    let joins: Vec<Action> = decide(&seen)
        .actions
        .into_iter()
        .filter(|it| !it.updates())
        .collect();
    assert_eq!(joins, [Action::Join((1..=64).collect())]);
}

#[test]
fn a_gid_is_recorded_only_if_the_status_does_not_show_it() {
    let gone = |gid: u64| {
        drained(
            world(1, &format!("1 member, {gid} leaving"), &[1], &[(1, 5)]),
            &[gid],
        )
    };
    let records = |seen: &State| decide(seen).recorded_gid();
    assert_eq!(records(&gone(8)), None);
    assert_eq!(records(&gone(9)), None, "as the status says");
    assert_eq!(records(&gone(10)), Some(10));
    let both = drained(
        world(1, "1 member, 10 leaving, 11 leaving", &[1], &[(1, 5)]),
        &[10, 11],
    );
    assert_eq!(records(&both), Some(11));
    // An unknown group's gid, too.
    let unknown = world(1, "1 member, 10 leaving", &[1], &[(1, 5)]);
    assert_eq!(records(&unknown), Some(10));
}

#[test]
fn volumes_are_deleted_only_if_there_are_some_and_the_resource_says_so() {
    let gone = || retired(world(1, "1 member, 2 leaving", &[1], &[(1, 5)]), &[2]);
    let deletes = |seen: &State| decide(seen).actions.contains(&Action::DeleteVolumes(2));
    assert!(deletes(&delete_volumes(gone())));
    let mut none = delete_volumes(gone());
    none.volumes = [1].into();
    assert!(!deletes(&none));
    let mut kept = delete_volumes(gone());
    kept.on_group_removal = Retention::Retain;
    assert!(!deletes(&kept));
}

#[test]
fn volumes_of_a_group_may_go_only_if_it_is_drained_and_retired() {
    let permits = |forgotten, retired, known: bool| {
        let removed = Removed {
            incarnation: 1,
            forgotten,
            retired,
        };
        let store = Progress {
            members: if known { [2].into() } else { [1].into() },
            removed: [(2, removed)].into(),
            ..Progress::default()
        };
        store.permits_deletion(2)
    };
    assert!(permits(false, true, false));
    assert!(
        !permits(false, false, false),
        "a late join may bring it back"
    );
    assert!(!permits(true, true, false), "it handed nothing over");
    assert!(!permits(false, true, true), "it is a member again");
    assert!(!Progress::default().permits_deletion(2));
}

#[test]
fn the_finalizer_stays_until_all_objects_are_gone() {
    let mut seen = world(1, "1 member~", &[1], &[(1, 5)]);
    seen.intent = Intent::Delete;
    assert_eq!(
        shown(&decide(&seen)),
        "1 Removing => ",
        "its end is awaited"
    );
    let mut alone = seen.clone();
    (alone.controllers, alone.controller_volumes) = (None, false);
    assert_eq!(shown(&decide(&alone)), "1 Removing => ", "the last group's");
    seen.sets.clear();
    seen.controller_volumes = false;
    seen.controllers.as_mut().unwrap().terminating = true;
    assert_eq!(
        shown(&decide(&seen)),
        " => ",
        "the controllers' end is awaited"
    );
    seen.controllers = None;
    seen.volumes = [1].into();
    assert_eq!(shown(&decide(&seen)), " => delete volumes 1");
    seen.volumes.clear();
    seen.controller_volumes = true;
    assert_eq!(shown(&decide(&seen)), " => delete controller volumes");
    seen.controller_volumes = false;
    assert_eq!(shown(&decide(&seen)), " => end");
}

#[test]
fn a_lost_stage_is_read_from_the_phase() {
    let rows = [
        (GroupPhase::Provisioning, Stage::New),
        (GroupPhase::Joining, Stage::Member),
        (GroupPhase::Serving, Stage::Member),
        (GroupPhase::Draining, Stage::Leaving),
        (GroupPhase::Removing, Stage::Leaving),
    ];
    for (phase, stage) in rows {
        assert_eq!(Stage::implied(Some(phase)), stage);
    }
}

/// The properties of an action that the other steps ask for.
#[test]
fn each_action_is_of_its_kind() {
    let object = || Object {
        uid: "u".to_owned(),
        version: "1".to_owned(),
        terminating: false,
    };
    let (new, leaving) = (Stage::New, Stage::Leaving);
    let (part, one) = (Component::Group(1), Some(Component::Group(1)));
    let all = [
        (Action::AddFinalizer, Needs::Nothing, None),
        (Action::DropFinalizer, Needs::Nothing, None),
        (Action::UpdateShared(Kind::Config), Needs::Nothing, None),
        (Action::RecordGid(1), Needs::Changes, None),
        (Action::CreateControllers, Needs::ChangesAndOptions, None),
        (
            Action::CreateGroup { gid: 1, stage: new },
            Needs::ChangesAndOptions,
            None,
        ),
        (
            Action::SetStage {
                gid: 1,
                stage: leaving,
            },
            Needs::Changes,
            one,
        ),
        (Action::Join(vec![1]), Needs::Changes, None),
        (Action::Leave(vec![1]), Needs::Changes, None),
        (
            Action::Retire {
                gid: 1,
                incarnation: 1,
            },
            Needs::Changes,
            None,
        ),
        (Action::DeleteVolumes(1), Needs::Changes, None),
        (Action::DeleteGroup(1, object()), Needs::Changes, one),
        (Action::DeleteControllerVolumes, Needs::Changes, None),
        (
            Action::DeleteControllers(object()),
            Needs::Changes,
            Some(Component::Controller),
        ),
        (Action::Update(part, Kind::Set), Needs::Options(part), None),
        (
            Action::Update(part, Kind::Budget),
            Needs::Untouched(part),
            None,
        ),
        (
            Action::DeleteStray(part, Kind::Service),
            Needs::Nothing,
            None,
        ),
        (Action::DeleteOptions(String::new()), Needs::Nothing, None),
        (Action::RemoveFinalizer, Needs::All, None),
    ];
    for (action, needs, touches) in all {
        assert_eq!(action.needs(), needs, "{action:?}");
        assert_eq!(action.touches(), touches, "{action:?}");
        let is = |of: fn(&Action) -> bool| of(&action);
        let creates = is(|it| matches!(it, Action::CreateControllers | Action::CreateGroup { .. }));
        assert_eq!(action.creates(), creates, "{action:?}");
        let updates = is(|it| matches!(it, Action::UpdateShared(_) | Action::Update(..)));
        assert_eq!(action.updates(), updates, "{action:?}");
        let releases = is(|it| matches!(it, Action::DropFinalizer | Action::RemoveFinalizer));
        assert_eq!(action.releases(), releases, "{action:?}");
    }
}
