//! Table of single observations and the decision for each.

use super::*;
use crate::parts::{Component, Kind};

/// Returns an observed state. `sets` lists `gid stage` of each `StatefulSet`; the suffix `!` means no leader, `~` means
/// that it is being deleted.
pub(super) fn world(wanted: u32, sets: &str, members: &[u64], settled: &[(u64, u64)]) -> State {
    let sets = sets.split_terminator(',').map(|text| {
        let (gid, stage) = text.trim().split_once(' ').unwrap();
        let gid: u64 = gid.parse().unwrap();
        let stage_name = stage.trim_end_matches(['!', '~']);
        let object = Object {
            uid: gid.to_string(),
            version: "1".to_owned(),
            terminating: stage.ends_with('~'),
        };
        let stage_of = Stage::ALL
            .into_iter()
            .find(|it| it.name() == stage_name)
            .unwrap();
        let has_leader = !stage.contains('!');
        (
            gid,
            Set {
                object,
                stage: stage_of,
                has_leader,
                has_served: false,
            },
        )
    });
    let sets: BTreeMap<u64, Set> = sets.collect();
    let parts = sets.keys().copied().map(Component::Group);
    let parts = parts.chain([Component::Controller]);
    State {
        intent: Intent::Run(wanted),
        has_finalizer: true,
        left_alone: false,
        on_group_removal: Retention::Retain,
        on_cluster_deletion: Retention::Delete,
        recorded_gid: 9,
        controllers: Some(Object {
            uid: "c".to_owned(),
            version: "1".to_owned(),
            terminating: false,
        }),
        controller_volumes: true,
        pods: parts.map(|part| (part, Pods::Whole)).collect(),
        sets,
        volumes: BTreeSet::new(),
        satellites: BTreeSet::new(),
        unused_options: BTreeSet::new(),
        store: Some(Progress {
            num: 5,
            members: members.iter().copied().collect(),
            settled: settled.iter().copied().collect(),
            awaiting: BTreeSet::new(),
            removed: BTreeMap::new(),
        }),
    }
}

/// The same, where volumes of removed groups are to be deleted and each group has some.
pub(super) fn delete_volumes(mut world: State) -> State {
    world.on_group_removal = Retention::Delete;
    world.volumes = world.sets.keys().copied().collect();
    world
}

/// The same, with groups that the controllers call drained.
pub(super) fn drained(world: State, gids: &[u64]) -> State {
    removed(world, gids, false, false)
}

/// The same, with groups that the controllers call drained and retired.
pub(super) fn retired(world: State, gids: &[u64]) -> State {
    removed(world, gids, false, true)
}

/// The same, with groups that the controllers call forgotten.
fn forgotten(world: State, gids: &[u64]) -> State {
    removed(world, gids, true, false)
}

fn removed(mut world: State, gids: &[u64], forgotten: bool, retired: bool) -> State {
    let removed = |gid: &u64| {
        let removed = Removed {
            incarnation: gid + 100,
            forgotten,
            retired,
        };
        (*gid, removed)
    };
    if let Some(store) = &mut world.store {
        store.removed = gids.iter().map(removed).collect();
    }
    world
}

/// The same, with members that own no shard yet and are to get some.
fn awaiting(mut world: State, gids: &[u64]) -> State {
    if let Some(store) = &mut world.store {
        store.awaiting = gids.iter().copied().collect();
    }
    world
}

/// Formats phases and actions, without updates of existing objects.
pub(super) fn shown(plan: &Plan) -> String {
    let action = |action: &Action| match action {
        Action::AddFinalizer => "add finalizer".to_owned(),
        Action::UpdateShared(kind) => format!("update {}", kind.name()),
        Action::Update(part, kind) => format!("update {} of {part:?}", kind.name()),
        Action::DeleteStray(part, kind) => format!("sweep {} of {part:?}", kind.name()),
        Action::DeleteOptions(name) => format!("delete options {name}"),
        Action::DropFinalizer => "release".to_owned(),
        Action::RecordGid(gid) => format!("record {gid}"),
        Action::CreateControllers => "create controllers".to_owned(),
        Action::CreateGroup { gid, stage } => format!("create {gid} {}", stage.name()),
        Action::SetStage { gid, stage } => format!("mark {gid} {}", stage.name()),
        Action::Join(gids) => format!("join {gids:?}"),
        Action::Leave(gids) => format!("leave {gids:?}"),
        Action::Retire { gid, incarnation } => format!("retire {gid} {incarnation}"),
        Action::DeleteVolumes(gid) => format!("delete volumes {gid}"),
        Action::DeleteGroup(gid, object) => format!("delete {gid} {}", object.uid),
        Action::DeleteControllerVolumes => "delete controller volumes".to_owned(),
        Action::DeleteControllers(_) => "delete controllers".to_owned(),
        Action::RemoveFinalizer => "end".to_owned(),
    };
    let phases = plan
        .phases
        .iter()
        .map(|(gid, phase)| format!("{gid} {phase:?}"));
    let phases: Vec<_> = phases.collect();
    let changes = plan.actions.iter().filter(|action| !action.updates());
    let actions: Vec<_> = changes.map(action).collect();
    format!("{} => {}", phases.join(", "), actions.join(", "))
}

#[test]
fn each_row_of_the_table() {
    let member = &[(1, 5)][..];
    let two = &[(1, 5), (2, 5)][..];
    #[rustfmt::skip]
    let rows: &[(&str, State, &str)] = &[
        ("nothing to do", world(1, "1 member", &[1], member), "1 Serving => "),
        ("a member that waits for shards", world(1, "1 member", &[1], &[(1, 4)]), "1 Joining => "),
        ("a member whose first shards are copied", awaiting(world(2, "1 member, 2 member", &[1, 2], two), &[2]), "1 Serving, 2 Joining => "),
        ("the gid after all others", world(2, "1 member", &[1], member), "1 Serving => create 10 new"),
        ("a new group without a leader waits", world(2, "1 member, 2 new!", &[1], member), "1 Serving, 2 Provisioning => "),
        ("a new group with a leader joins", world(2, "1 member, 2 new", &[1], member), "1 Serving, 2 Provisioning => join [2]"),
        ("all that are ready join at once", world(4, "1 new, 2 new, 3 new!, 4 new", &[], &[]), "1 Provisioning, 2 Provisioning, 3 Provisioning, 4 Provisioning => join [1, 2, 4]"),
        ("it has joined", world(2, "1 member, 2 new", &[1, 2], &[(1, 5), (2, 4)]), "1 Serving, 2 Joining => mark 2 member"),
        ("one too many is marked first", world(1, "1 member, 2 member", &[1, 2], two), "1 Serving, 2 Draining => mark 2 leaving"),
        ("and then leaves", world(1, "1 member, 2 leaving", &[1, 2], two), "1 Serving, 2 Draining => leave [2]"),
        ("but not in favour of a group without a leader", world(1, "1 member!, 2 leaving", &[1, 2], two), "1 Serving, 2 Draining => "),
        ("nor of one whose StatefulSet is gone", world(1, "2 leaving", &[1, 2], &[(1, 5), (2, 5)]), "1 Serving, 2 Draining => create 1 member"),
        ("one without a leader may go itself", world(1, "1 member, 2 leaving!", &[1, 2], two), "1 Serving, 2 Draining => leave [2]"),
        ("it hands over", world(1, "1 member, 2 leaving", &[1], &[(1, 5), (2, 4)]), "1 Serving, 2 Draining => "),
        ("settled isn't drained: it owns shards still", delete_volumes(world(1, "1 member, 2 leaving", &[1], two)), "1 Serving, 2 Draining => "),
        ("it is wanted again before it left", world(2, "1 member, 2 leaving", &[1, 2], two), "1 Serving, 2 Serving => mark 2 member"),
        ("and after", world(2, "1 member, 2 leaving", &[1], &[(1, 5), (2, 4)]), "1 Serving, 2 Draining => join [2]"),
        ("drained", drained(world(1, "1 member, 2 leaving", &[1], member), &[2]), "1 Serving, 2 Removing => retire 2 102, delete 2 2"),
        ("drained, and wanted again too late", drained(world(2, "1 member, 2 leaving", &[1], member), &[2]), "1 Serving, 2 Removing => retire 2 102, delete 2 2, create 10 new"),
        ("its gid is recorded first", drained(world(1, "1 member, 12 leaving", &[1], member), &[12]), "1 Serving, 12 Removing => record 12, retire 12 112, delete 12 12"),
        ("absence doesn't prove that it is drained", delete_volumes(world(1, "1 member, 2 leaving", &[1], member)), "1 Serving, 2 Removing => delete 2 2"),
        ("if it is drained, its volumes go", drained(delete_volumes(world(1, "1 member, 2 leaving", &[1], member)), &[2]), "1 Serving, 2 Removing => retire 2 102, delete volumes 2, delete 2 2"),
        ("it is retired once", retired(delete_volumes(world(1, "1 member, 2 leaving", &[1], member)), &[2]), "1 Serving, 2 Removing => delete volumes 2, delete 2 2"),
        ("a group that joined again isn't drained", retired(world(2, "1 member, 2 member", &[1, 2], two), &[2]), "1 Serving, 2 Serving => "),
        ("a forgotten group is replaced and marked first", forgotten(delete_volumes(world(2, "1 member, 2 member", &[1], member)), &[2]), "1 Serving, 2 Removing => mark 2 leaving, create 10 new"),
        ("then deleted, and its volumes stay", forgotten(delete_volumes(world(1, "1 member, 2 leaving", &[1], member)), &[2]), "1 Serving, 2 Removing => retire 2 102, delete 2 2"),
        ("a new one was forgotten", forgotten(world(1, "1 member, 2 new", &[1], member), &[2]), "1 Serving, 2 Removing => mark 2 leaving"),
        ("what is being deleted is waited for", world(1, "1 member, 2 leaving~", &[1], member), "1 Serving, 2 Removing => "),
        ("new ones go before members", world(2, "1 member, 2 member, 3 new", &[1, 2], two), "1 Serving, 2 Serving, 3 Removing => mark 3 leaving"),
        ("a member that leaves goes before one that doesn't", world(1, "1 leaving, 2 member", &[1, 2], two), "1 Draining, 2 Serving => leave [1]"),
        ("somebody else let a group go", world(2, "1 member, 2 member", &[1], &[(1, 5), (2, 4)]), "1 Serving, 2 Draining => join [2]"),
        ("and it is one too many anyway", world(1, "1 member, 2 member", &[1], &[(1, 5), (2, 4)]), "1 Serving, 2 Draining => mark 2 leaving"),
        ("somebody deleted a member's StatefulSet", world(2, "1 member", &[1, 2], two), "1 Serving, 2 Serving => create 2 member"),
        ("and that of one that hands over", world(1, "1 member", &[1], &[(1, 5), (2, 4)]), "1 Serving, 2 Draining => create 2 leaving"),
        ("the controllers forgot a member", world(3, "1 member, 2 new", &[], &[]), "1 Joining, 2 Provisioning => "),
        ("and are not believed that others are drained", world(1, "1 member, 2 leaving", &[], &[]), "1 Joining, 2 Draining => "),
        ("let go before anybody joined", world(1, "1 new!, 2 leaving", &[], &[]), "1 Provisioning, 2 Removing => "),
    ];
    for (name, seen, expected) in rows {
        assert_eq!(shown(&decide(seen)), *expected, "{name}");
    }
}

#[test]
fn lost_groups_are_named_and_stop_everything() {
    let plan = decide(&world(
        5,
        "1 member, 2 member, 3 leaving, 4 new",
        &[1],
        &[(1, 5)],
    ));
    assert_eq!(plan.lost, BTreeSet::from([2]));
    assert_eq!(plan.actions, []);
}

#[test]
fn a_pause_shows_phases_and_does_nothing() {
    let mut seen = world(1, "1 member, 2 new, 3 leaving", &[1], &[(1, 5)]);
    seen.intent = Intent::Pause;
    assert_eq!(
        shown(&decide(&seen)),
        "1 Serving, 2 Provisioning, 3 Removing => "
    );
    seen.store = None;
    assert_eq!(decide(&seen).actions, []);
}

#[test]
fn without_an_answer_only_the_first_groups_are_made() {
    let mut seen = world(3, "1 new", &[], &[]);
    seen.store = None;
    assert_eq!(
        shown(&decide(&seen)),
        "1 Provisioning => ",
        "gids were given before"
    );
    seen.recorded_gid = 0;
    assert_eq!(
        shown(&decide(&seen)),
        "1 Provisioning => create 2 new, create 3 new"
    );
    seen.volumes.insert(7);
    assert_eq!(
        shown(&decide(&seen)),
        "1 Provisioning => ",
        "a group lived here before"
    );
    let mut seen = world(3, "1 member, 2 leaving", &[], &[]);
    (seen.store, seen.recorded_gid) = (None, 0);
    assert_eq!(shown(&decide(&seen)), "1 Joining, 2 Draining => ");
    seen.controllers = None;
    assert_eq!(
        shown(&decide(&seen)),
        "1 Joining, 2 Draining => create controllers"
    );
}

#[test]
fn a_volume_that_was_kept_keeps_its_gid() {
    let mut seen = world(2, "1 member", &[1], &[(1, 5)]);
    seen.volumes.insert(41);
    assert_eq!(shown(&decide(&seen)), "1 Serving => create 42 new");
}

#[test]
fn volumes_of_groups_that_nobody_knows_stop_everything() {
    let mut seen = world(2, "", &[], &[]);
    seen.volumes = [1, 2].into();
    let plan = decide(&seen);
    assert_eq!((plan.lost, plan.actions), ([1, 2].into(), Vec::new()));
    // Groups created since then show that a person has handled the volumes, or that the cluster is new.
    let mut seen = world(2, "3 new", &[], &[]);
    seen.volumes = [1, 3].into();
    assert_eq!(
        shown(&decide(&seen)),
        "3 Provisioning => join [3], create 10 new"
    );
}

#[test]
fn an_unknown_annotation_is_a_member() {
    for stage in Stage::ALL {
        assert_eq!(Stage::named(stage.name()), Some(stage));
    }
    assert_eq!(Stage::named("nonsense"), None);
    assert_eq!(Stage::implied(None), Stage::Member);
}

#[test]
fn what_is_deleted_goes_in_order_and_needs_no_store() {
    let mut seen = world(2, "1 member, 2 member~", &[1, 2], &[]);
    seen.intent = Intent::Delete;
    seen.volumes = [1, 7].into();
    seen.store = None;
    assert_eq!(
        shown(&decide(&seen)),
        "1 Removing, 2 Removing => delete volumes 1, delete volumes 7, delete 1 1"
    );
    seen.sets.clear();
    seen.volumes.clear();
    assert_eq!(
        shown(&decide(&seen)),
        " => delete controller volumes, delete controllers"
    );
    (seen.controllers, seen.controller_volumes) = (None, false);
    assert_eq!(shown(&decide(&seen)), " => end");
}

#[test]
fn a_running_cluster_is_kept_up_to_date() {
    let mut seen = world(2, "1 member, 2 member~", &[1, 2], &[(1, 5), (2, 5)]);
    let updates = |seen: &State| -> Vec<Action> {
        let actions = decide(seen).actions.into_iter();
        actions.filter(Action::updates).collect()
    };
    let mut expected: Vec<_> = Kind::SHARED.map(Action::UpdateShared).into();
    for part in [Component::Controller, Component::Group(1)] {
        expected.extend(Kind::OF_PART.map(|kind| Action::Update(part, kind)));
    }
    // The end of a `StatefulSet` is waited for.
    expected.push(Action::Update(Component::Group(2), Kind::Set));
    assert_eq!(updates(&seen), expected);
    seen.intent = Intent::Pause;
    assert_eq!(decide(&seen).actions, []);
    seen.intent = Intent::Delete;
    assert_eq!(updates(&seen), []);
}

#[test]
fn shared_objects_come_before_groups_and_sweeps_last() {
    let mut seen = world(2, "1 member", &[1], &[(1, 5)]);
    seen.has_finalizer = false;
    seen.satellites = [(Component::Group(4), Kind::Service)].into();
    let actions = decide(&seen).actions;
    let at = |action: &Action| actions.iter().position(|it| it == action).unwrap();
    let create = at(&Action::CreateGroup {
        gid: 10,
        stage: Stage::New,
    });
    assert_eq!(at(&Action::AddFinalizer), 0);
    assert!(at(&Action::UpdateShared(Kind::Service)) < create);
    assert!(create < at(&Action::Update(Component::Controller, Kind::Service)));
    assert_eq!(
        at(&Action::DeleteStray(Component::Group(4), Kind::Service)),
        actions.len() - 1
    );
}

#[test]
fn what_has_no_stateful_set_and_is_not_needed_is_swept() {
    let satellites = |seen: &mut State| {
        let parts = [1, 2, 3, 4, 10].map(Component::Group);
        let parts = parts.into_iter().chain([Component::Controller]);
        seen.satellites = parts.map(|part| (part, Kind::Service)).collect();
    };
    let swept = |seen: &State| -> Vec<Component> {
        let actions = decide(seen).actions.into_iter();
        let parts = actions.filter_map(|action| match action {
            Action::DeleteStray(part, _) => Some(part),
            _ => None,
        });
        parts.collect()
    };
    // 1 exists, 2 is a member, 3 hands over, 10 is created: 4 alone is a stray.
    let mut seen = world(4, "1 member", &[1, 2], &[(1, 5), (2, 5), (3, 4)]);
    satellites(&mut seen);
    assert_eq!(swept(&seen), [Component::Group(4)]);
    // Only the controllers know.
    seen.store = None;
    assert_eq!(swept(&seen), []);
    seen.intent = Intent::Delete;
    let all = [2, 3, 4, 10].map(Component::Group);
    assert_eq!(swept(&seen), all);
    seen.controllers = None;
    assert_eq!(swept(&seen)[0], Component::Controller);
}

#[test]
fn the_finalizer_comes_first_and_goes_last() {
    let mut seen = world(1, "1 member", &[1], &[(1, 5)]);
    seen.has_finalizer = false;
    assert_eq!(shown(&decide(&seen)), "1 Serving => add finalizer");
    seen.intent = Intent::Delete;
    let released = decide(&seen);
    assert_eq!(released, Plan::default(), "others keep the resource");
    seen.has_finalizer = true;
    seen.left_alone = true;
    assert_eq!(shown(&decide(&seen)), " => release");
    seen.left_alone = false;
    seen.sets.clear();
    (seen.controllers, seen.controller_volumes) = (None, false);
    seen.satellites = [(Component::Controller, Kind::Budget)].into();
    assert_eq!(
        shown(&decide(&seen)),
        " => sweep PodDisruptionBudget of Controller, end"
    );
    assert_eq!(Action::RemoveFinalizer.needs(), Needs::All);
}

/// Owner references do all that is left where volumes stay: a deletion must not wait for an operator that may be gone.
#[test]
fn a_cluster_whose_volumes_stay_has_no_finalizer() {
    let mut seen = world(1, "1 member", &[1], &[(1, 5)]);
    seen.on_cluster_deletion = Retention::Retain;
    assert_eq!(shown(&decide(&seen)), "1 Serving => release");
    seen.has_finalizer = false;
    assert_eq!(shown(&decide(&seen)), "1 Serving => ");
    // One that an older operator gave it, or the policy of before.
    seen.has_finalizer = true;
    seen.intent = Intent::Delete;
    assert_eq!(shown(&decide(&seen)), " => release");
}

/// Otherwise the volumes of a cluster that is deleted while it is paused, or while its resource is invalid, would stay.
#[test]
fn the_finalizer_follows_the_policy_also_while_nothing_else_may_change() {
    let mut seen = world(3, "1 member, 2 leaving", &[1, 2], &[(1, 5)]);
    seen.intent = Intent::Pause;
    for groups_are_lost in [false, true] {
        if groups_are_lost {
            seen.store = Some(Progress::default());
        }
        (seen.has_finalizer, seen.on_cluster_deletion) = (false, Retention::Delete);
        assert_eq!(decide(&seen).actions, [Action::AddFinalizer]);
        seen.has_finalizer = true;
        assert_eq!(decide(&seen).actions, []);
        seen.on_cluster_deletion = Retention::Retain;
        assert_eq!(decide(&seen).actions, [Action::DropFinalizer]);
        seen.has_finalizer = false;
        assert_eq!(decide(&seen).actions, []);
    }
}

#[test]
fn lost_groups_stop_upkeep_too_and_the_finalizer_stays_guarded() {
    let mut seen = world(2, "1 member, 2 member", &[1], &[(1, 5)]);
    seen.controllers = None;
    seen.satellites = [(Component::Group(4), Kind::Service)].into();
    let plan = decide(&seen);
    assert_eq!((plan.lost, plan.actions), ([2].into(), Vec::new()));
    seen.has_finalizer = false;
    assert_eq!(decide(&seen).actions, [Action::AddFinalizer]);
}
