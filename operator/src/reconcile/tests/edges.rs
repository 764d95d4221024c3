//! Cases at the edges: each fails if one comparison or one part of a condition is missing.

use kube::api::DynamicObject;
use serde_json::{Value, json};

use super::writes::now;
use super::*;
use crate::crd::condition::DEGRADED;
use crate::reconcile::memory::Memory;
use crate::reconcile::notes;
use crate::store::Change;

const ONE: Component = Component::Group(1);

/// Returns what is observed of a `StatefulSet` of generation 2 with this status, that was made at second 100 before now.
fn observed(status: &Value, age: i64) -> ObservedSet {
    let mut scene = Scene::made();
    let key = (Kind::Set, "a-group-1".to_owned());
    let mut live: DynamicObject = scene.observed.children[&key].clone();
    live.metadata.generation = Some(2);
    live.metadata.creation_timestamp = Some(Time(Timestamp::from_second(1_000 - age).unwrap()));
    live.data["status"] = status.clone();
    let cluster = &scene.desired.cluster;
    let added = scene.observed.add_object(cluster, Kind::Set, live, &now());
    added.unwrap();
    scene.set(ONE).clone()
}

fn set_status(generation: i64, revisions: [&str; 2], updated: i32) -> Value {
    json!({"observedGeneration": generation, "replicas": 3, "readyReplicas": 2, "updatedReplicas": updated,
        "currentRevision": revisions[0], "updateRevision": revisions[1]})
}

#[test]
fn a_stateful_set_is_read() {
    let equal = ["r", "r"];
    let rested = observed(&set_status(2, equal, 3), 100);
    assert_eq!((rested.rolling, rested.unseen), (None, false));
    assert_eq!((rested.replicas, rested.existing, rested.ready), (3, 3, 2));
    let mixed = observed(&set_status(2, ["r", "s"], 1), 100);
    assert_eq!((mixed.rolling, mixed.unseen), (Some(1), false));
    // All are updated, and the last isn't ready yet.
    let last = observed(&set_status(2, ["r", "s"], 3), 100);
    assert_eq!(last.rolling, Some(3));
    // The number of pods of the latest revision leaves out pods that end, so it doesn't tell a change.
    let ends = observed(&set_status(2, equal, 1), 100);
    assert_eq!((ends.rolling, ends.revision.as_str()), (None, "r"));
    // No pod is of a template that Kubernetes hasn't seen.
    for revisions in [equal, ["r", "s"]] {
        let unseen = observed(&set_status(1, revisions, 3), 100);
        assert_eq!((unseen.rolling, unseen.unseen), (Some(0), true));
    }
    let new = observed(&json!({"replicas": 0}), 100);
    assert_eq!((new.rolling, new.unseen, new.ready), (None, true, 0));
    assert!(observed(&json!({}), 59).young);
    assert!(!observed(&json!({}), 60).young);
}

#[test]
fn only_parts_with_too_few_pods_lack_some() {
    let mut scene = Scene::serving();
    assert!(scene.observed.lacking().is_empty());
    scene.set(ONE).existing = 4;
    assert!(scene.observed.lacking().is_empty());
    scene.set(ONE).existing = 2;
    assert_eq!(scene.observed.lacking(), [(ONE, "u".to_owned())].into());
}

#[test]
fn a_resource_is_left_alone_while_it_is_deleted_without_its_objects() {
    let mut scene = Scene::serving();
    let left_alone = |scene: &Scene| scene.observed.state(&scene.desired).left_alone;
    let meta = &mut scene.observed.resource.metadata;
    meta.finalizers = Some(vec!["orphan".to_owned()]);
    assert!(!left_alone(&scene));
    scene.observed.resource.metadata.deletion_timestamp = Some(now());
    assert!(left_alone(&scene));
    let others = vec!["of others".to_owned()];
    scene.observed.resource.metadata.finalizers = Some(others);
    assert!(!left_alone(&scene));
    // Volumes go with their namespace.
    scene.observed.namespace_ends = true;
    assert!(left_alone(&scene));
}

fn result(action: Action, results: &[Written]) -> Applied {
    Applied {
        results: vec![(action, results.to_vec())],
        ..Applied::default()
    }
}

#[test]
fn results_are_read() {
    let update = |kind| Action::Update(ONE, kind);
    let changed = [Written::Unchanged, Written::Changed];
    assert!(result(update(Kind::Set), &changed).rolled());
    assert!(!result(update(Kind::Service), &changed).rolled());
    assert!(!result(update(Kind::Set), &[Written::Raced]).rolled());
    for release in [Action::RemoveFinalizer, Action::DropFinalizer] {
        assert!(result(release.clone(), &changed).released());
        assert!(!result(release, &[Written::Raced]).released());
    }
    assert!(!result(Action::AddFinalizer, &changed).released());
    let one = |written: Written| result(update(Kind::Set), &[written]);
    let configured = Written::Configured(Change::default());
    for (written, changed, outdated) in [
        (Written::Created, true, false),
        (Written::Changed, true, false),
        (configured, true, false),
        (Written::Unchanged, false, false),
        (Written::Held, false, false),
        (Written::Vanished, false, true),
        (Written::Raced, false, true),
    ] {
        let applied = one(written.clone());
        assert_eq!(applied.changed(), changed, "{written:?}");
        assert_eq!(applied.outdated(), outdated, "{written:?}");
        assert_eq!(applied.held(), usize::from(written == Written::Held));
    }
    // Only these fail an action.
    let failed = |written: Written| {
        !result(Action::Join(vec![1]), &[written]).allows(&Action::Leave(vec![2]))
    };
    assert!(!failed(Written::Held) && !failed(Written::Vanished) && !failed(Written::Unchanged));
    assert!(failed(Written::Raced) && failed(Written::Waits(String::new())));
    // The end needs a look at what has changed meanwhile.
    let end = Action::RemoveFinalizer;
    assert!(one(Written::Changed).allows(&end) && !one(Written::Vanished).allows(&end));
    // A part whose `StatefulSet` was deleted in this round isn't brought up to date.
    let object = Scene::serving().set(ONE).object.clone();
    let deleted = result(Action::DeleteControllers(object), &[Written::Changed]);
    assert!(!deleted.allows(&Action::Update(Component::Controller, Kind::Budget)));
    assert!(deleted.allows(&update(Kind::Budget)));
}

#[test]
fn a_store_that_does_not_answer_refuses_nothing() {
    let mut scene = Scene::serving();
    let unreachable = StoreError::Unreachable("late".to_owned());
    scene.tried(vec![Written::Store(unreachable)]);
    let soon = |scene: &Scene| {
        next(
            &scene.told(),
            &scene.applied,
            &Written::Unchanged,
            0,
            Pace::default(),
        )
    };
    assert_eq!(soon(&scene).0, Outcome::Idle);
    scene.tried(vec![Written::Store(StoreError::Refused("no".to_owned()))]);
    assert_eq!(soon(&scene).0, Outcome::Refused);
}

#[test]
fn the_status_never_forgets_a_gid() {
    let mut scene = Scene::serving();
    let status = scene.observed.resource.status.as_mut().unwrap();
    status.last_gid = Some(9);
    assert_eq!(scene.told().last_gid, Some(9));
}

#[test]
fn a_long_message_is_cut_between_characters() {
    let mut scene = Scene::serving();
    scene.tried(vec![Written::Refused(format!("a{}", "é".repeat(5_000)))]);
    let told = scene.told();
    let degraded = told.conditions.iter().find(|it| it.type_ == DEGRADED);
    assert_eq!(degraded.unwrap().message.len(), 1_999);
    scene.tried(vec![Written::Refused("é".repeat(5_000))]);
    let told = scene.told();
    let degraded = told.conditions.iter().find(|it| it.type_ == DEGRADED);
    assert_eq!(degraded.unwrap().message.len(), 2_000);
}

#[test]
fn an_event_tells_when_a_cluster_degrades_and_recovers() {
    let well = Scene::serving().told();
    let degraded = |reason: StoreError| {
        let mut scene = Scene::serving();
        scene.tried(vec![Written::Store(reason)]);
        scene.told()
    };
    let refused = degraded(StoreError::Refused("no".to_owned()));
    let late = degraded(StoreError::Unreachable("late".to_owned()));
    let told = |before, now| {
        let note = notes::of_status(before, now)?;
        Some((note.warns, note.reason, note.text))
    };
    let of = |warns, reason: &str, text: &str| Some((warns, reason.to_owned(), text.to_owned()));
    assert_eq!(told(&well, &well), None);
    assert_eq!(told(&refused, &refused), None);
    let no = of(true, "Refused", "the controllers refuse: no.");
    assert_eq!(told(&well, &refused), no);
    assert_eq!(told(&late, &refused), no);
    let over = of(false, "Recovered", "Refused is over.");
    assert_eq!(told(&refused, &well), over);
}

#[test]
fn events_count() {
    let mut scene = Scene::made();
    let text = |scene: &Scene, action: &Action, results: &[Written]| {
        let notes = notes::of(action, &scene.desired, &scene.observed, results);
        notes
            .into_iter()
            .map(|note| note.text)
            .collect::<Vec<_>>()
            .join(" ")
    };
    let configured = |num, moved| [Written::Configured(Change { num, moved })];
    let join = |gids: &[u64]| Action::Join(gids.to_vec());
    let leave = Action::Leave(vec![2]);
    assert_eq!(
        text(&scene, &join(&[3]), &configured(7, 1)),
        "Group 3 joined in configuration 7; moving: 1 shard."
    );
    assert_eq!(
        text(&scene, &join(&[3, 4]), &configured(7, 2)),
        "Groups 3, 4 joined in configuration 7; moving: 2 shards."
    );
    assert_eq!(
        text(&scene, &leave, &configured(8, 0)),
        "Group 2 told to leave in configuration 8; moving to other groups: 0 shards."
    );
    let created = [Written::Created];
    let controllers = Action::CreateControllers;
    assert_eq!(
        text(&scene, &controllers, &created),
        "3 controllers are created."
    );
    scene.desired.cluster.controllers = 1;
    assert_eq!(
        text(&scene, &controllers, &created),
        "1 controller is created."
    );
    scene.volume(1, false);
    scene.volume(1, true);
    scene.volume(2, false);
    let changed = [Written::Changed];
    let volumes = Action::DeleteVolumes(1);
    assert_eq!(
        text(&scene, &volumes, &changed),
        "Deleted 1 volume of group 1."
    );
    let end = Action::RemoveFinalizer;
    let left = text(&scene, &end, &changed);
    assert!(
        left.starts_with("Cluster a is deleted. It leaves 2 volumes with all data"),
        "{left}"
    );
    scene.observed.volumes.clear();
    assert_eq!(text(&scene, &end, &changed), "Cluster a is deleted.");
    for quiet in [
        Action::AddFinalizer,
        Action::DropFinalizer,
        Action::RecordGid(1),
    ] {
        assert_eq!(text(&scene, &quiet, &changed), "");
    }
    assert_eq!(
        text(&scene, &end, &[Written::Raced]),
        "",
        "nothing was done"
    );
}

#[test]
fn a_write_without_effect_is_remembered_until_one_has_an_effect() {
    let memory = Memory::default();
    let key = (Kind::Service, "a-client".to_owned());
    let tried = ("hash".to_owned(), "5".to_owned());
    let set = |tried| memory.set_fruitless("ns", "a", key.clone(), tried);
    assert_eq!(memory.fruitless("ns", "a"), BTreeMap::new());
    set(Some(tried.clone()));
    assert_eq!(memory.fruitless("ns", "a"), [(key.clone(), tried)].into());
    assert_eq!(memory.fruitless("ns", "b"), BTreeMap::new());
    set(None);
    assert_eq!(memory.fruitless("ns", "a"), BTreeMap::new());
}
