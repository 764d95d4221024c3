//! The steps between plan and status: which writes an action needs, which writes the results allow, and what is told.

use kube::ResourceExt;
use kube::api::DynamicObject;
use serde_json::{Value, json};

use super::*;
use crate::build::config_name;
use crate::reconcile::build::{Prepared, Write, build};
use crate::reconcile::notes;
use crate::reconcile::wanted::{Comparison, Wanted};

pub(super) fn now() -> Time {
    Time(Timestamp::from_second(1_000).unwrap())
}

/// Returns the live object that the creation of a wanted one leads to.
pub(super) fn created(wanted: &Wanted) -> DynamicObject {
    let mut body = wanted.clone().body(None);
    body["metadata"]["uid"] = json!(format!("uid of {}", wanted.name));
    body["metadata"]["resourceVersion"] = json!("1");
    serde_json::from_value(body).unwrap()
}

impl Scene {
    pub(super) fn prepared(&self) -> Prepared {
        build(&self.desired, &self.observed, &self.plan()).unwrap()
    }

    pub(super) fn built(&self, action: Action) -> Vec<Write> {
        let plan = Plan {
            actions: vec![action],
            ..Plan::default()
        };
        let mut prepared = build(&self.desired, &self.observed, &plan).unwrap();
        prepared.steps.pop().map_or(Vec::new(), |step| step.writes)
    }

    /// Returns a scene in which all objects have been created.
    pub(super) fn made() -> Self {
        let mut scene = Self::new();
        let steps = scene.prepared().steps.into_iter();
        for write in steps.flat_map(|step| step.writes) {
            let Write::Create(wanted) = write else {
                panic!("{write:?}");
            };
            let (cluster, object) = (&scene.desired.cluster, created(&wanted));
            let added = scene
                .observed
                .add_object(cluster, wanted.kind, object, &now());
            added.unwrap();
        }
        scene
    }

    /// Adds a volume of a group.
    pub(super) fn volume(&mut self, gid: u64, terminating: bool) {
        self.observed.volumes.push(Volume {
            part: Component::Group(gid),
            name: format!("data-a-group-{gid}-{}", self.observed.volumes.len()),
            uid: "v".to_owned(),
            terminating,
        });
    }
}

/// Formats writes: their kind and object.
pub(super) fn shown(writes: &[Write]) -> Vec<String> {
    let text = |write: &Write| match write {
        Write::Create(wanted) => format!("create {} {}", wanted.kind.name(), wanted.name),
        Write::Apply(wanted, live) => {
            assert_eq!(wanted.name, live.name_any());
            format!("apply {} {}", wanted.kind.name(), wanted.name)
        }
        Write::Delete(kind, live) => format!("delete {} {}", kind.name(), live.name_any()),
        Write::DeleteSet(part, object) => format!("delete set of {part:?}, {}", object.uid),
        Write::DeleteVolume { name, .. } => format!("delete volume {name}"),
        Write::Confirm(part) => format!("confirm {part:?}"),
        Write::Finalizers(finalizers) => format!("finalizers {finalizers:?}"),
        other => format!("{other:?}"),
    };
    writes.iter().map(text).collect()
}

pub(super) fn all(prepared: &Prepared) -> Vec<String> {
    let steps = prepared.steps.iter();
    steps.flat_map(|step| shown(&step.writes)).collect()
}

#[test]
fn what_is_missing_is_created_with_the_stateful_set_last() {
    let prepared = Scene::new().prepared();
    assert_eq!(
        all(&prepared),
        [
            "create ServiceAccount a-node",
            &format!("create ConfigMap {}", config_name(&named("a"))),
            "create NetworkPolicy a-node",
            "create Service a-client",
            "create Service a-controller",
            "create PodDisruptionBudget a-controller",
            "create StatefulSet a-controller",
            "create Service a-group-1",
            "create PodDisruptionBudget a-group-1",
            "create StatefulSet a-group-1",
            "create Service a-group-2",
            "create PodDisruptionBudget a-group-2",
            "create StatefulSet a-group-2",
        ]
    );
}

#[test]
fn what_matches_is_not_written() {
    let mut scene = Scene::made();
    assert_eq!(scene.observed.sets.len(), 3);
    assert_eq!(scene.prepared(), Prepared::default());
    // A stage isn't content.
    for object in scene.observed.children.values_mut() {
        let annotations = object.annotations_mut();
        if annotations.contains_key("shardkv.io/stage") {
            annotations.insert("shardkv.io/stage".to_owned(), "member".to_owned());
        }
    }
    assert_eq!(scene.prepared(), Prepared::default());
    scene.desired.cluster.spec.image = "other".to_owned();
    scene.desired.cluster.spec.pod_disruption_budget.enabled = false;
    assert_eq!(
        all(&scene.prepared()),
        [
            "delete PodDisruptionBudget a-controller",
            "apply StatefulSet a-controller",
            "delete PodDisruptionBudget a-group-1",
            "apply StatefulSet a-group-1",
            "delete PodDisruptionBudget a-group-2",
            "apply StatefulSet a-group-2",
        ]
    );
}

/// A group that hasn't joined yet, and has lost its stage, isn't one that the controllers have lost.
#[test]
fn a_removed_stage_is_read_from_the_status_and_written_again() {
    for (phase, stage) in [
        (GroupPhase::Provisioning, Stage::New),
        (GroupPhase::Removing, Stage::Leaving),
        (GroupPhase::Serving, Stage::Member),
    ] {
        for garbled in [None, Some("nonsense")] {
            let mut scene = Scene::made();
            let key = (Kind::Set, "a-group-2".to_owned());
            let mut live = scene.observed.children[&key].clone();
            live.annotations_mut().remove("shardkv.io/stage");
            let garbled = garbled.map(|text| ("shardkv.io/stage".to_owned(), text.to_owned()));
            live.annotations_mut().extend(garbled);
            scene.observed.resource.status = Some(ShardKvClusterStatus {
                groups: vec![GroupStatus {
                    gid: 2,
                    phase,
                    ready_replicas: 3,
                    leader: None,
                    shards: 0,
                }],
                ..ShardKvClusterStatus::default()
            });
            let cluster = &scene.desired.cluster;
            scene
                .observed
                .add_object(cluster, Kind::Set, live.clone(), &now())
                .unwrap();
            assert_eq!(scene.set(Component::Group(2)).stage, stage);
            let writes = scene.built(Action::Update(Component::Group(2), Kind::Set));
            let [Write::Apply(wanted, _)] = writes.as_slice() else {
                panic!("{writes:?}");
            };
            let body = wanted.clone().body(Some(&live));
            let annotations = &body["metadata"]["annotations"];
            assert_eq!(annotations["shardkv.io/stage"], stage.name());
            assert_eq!(body["metadata"]["resourceVersion"], "1");
        }
    }
}

#[test]
fn what_others_changed_is_applied_over_the_observed_version() {
    let mut scene = Scene::made();
    let key = (Kind::Service, "a-client".to_owned());
    let service = scene.observed.children.get_mut(&key).unwrap();
    service.data["spec"]["type"] = json!("NodePort");
    let steps = scene.prepared().steps;
    let [step] = steps.as_slice() else {
        panic!("{steps:?}");
    };
    assert_eq!(step.action, Action::UpdateShared(Kind::Service));
    let [Write::Apply(wanted, live)] = step.writes.as_slice() else {
        panic!("{step:?}");
    };
    let body = wanted.clone().body(Some(live));
    assert_eq!(body["metadata"]["uid"], "uid of a-client");
    assert_eq!(body["metadata"].get("resourceVersion"), None);
    // A `StatefulSet` carries its stage, so its version counts too, and its stage stays.
    let key = (Kind::Set, "a-group-1".to_owned());
    let live = scene.observed.children.get_mut(&key).unwrap();
    let stage = ("shardkv.io/stage".to_owned(), "leaving".to_owned());
    live.annotations_mut().extend([stage]);
    let live = live.clone();
    scene.desired.cluster.spec.image = "other".to_owned();
    let writes = scene.built(Action::Update(Component::Group(1), Kind::Set));
    let [Write::Apply(wanted, _)] = writes.as_slice() else {
        panic!("{writes:?}");
    };
    let body = wanted.clone().body(Some(&live));
    assert_eq!(body["metadata"]["resourceVersion"], "1");
    let annotations: &Value = &body["metadata"]["annotations"];
    assert_eq!(annotations["shardkv.io/stage"], "leaving");
}

#[test]
fn what_is_not_ours_is_kept_off() {
    let mut scene = Scene::new();
    let writes = scene.built(Action::UpdateShared(Kind::Config));
    let [Write::Create(wanted)] = writes.as_slice() else {
        panic!("{writes:?}");
    };
    let owner = scene.desired.cluster.owner.clone();
    let none = BTreeMap::new();
    let compared = |live: &DynamicObject| wanted.compare(&owner, live, &none).unwrap();
    let settled =
        |message: &str, of: fn(String) -> Written| Comparison::Settled(of(message.to_owned()));
    let (good, name) = (created(wanted), wanted.name.clone());
    assert_eq!(compared(&good), Comparison::Settled(Written::Unchanged));
    let mut free = good.clone();
    free.metadata.owner_references = None;
    assert_eq!(
        compared(&free),
        settled(&format!("ConfigMap {name}"), Written::Taken)
    );
    let mut other = good.clone();
    other.owner_references_mut()[0].kind = "Deployment".to_owned();
    other.owner_references_mut()[0].uid = "other".to_owned();
    let message = format!("ConfigMap {name} (of Deployment a)");
    assert_eq!(compared(&other), settled(&message, Written::Taken));
    let mut former = good.clone();
    former.owner_references_mut()[0].uid = "former".to_owned();
    let message = format!(
        "ConfigMap {name} is left of a cluster of the same name, and will be removed by Kubernetes"
    );
    assert_eq!(compared(&former), settled(&message, Written::Waits));
    let mut ends = good.clone();
    ends.metadata.deletion_timestamp = Some(now());
    let message = format!("ConfigMap {name} is being deleted");
    assert_eq!(compared(&ends), settled(&message, Written::Waits));
    // Observed as a child, it is told without a request.
    let key = wanted.key();
    scene.observed.children.insert(key.clone(), ends);
    let told = scene.built(Action::UpdateShared(Kind::Config));
    assert_eq!(told, [Write::Known(Written::Waits(message))]);
    // What was applied to this version in vain isn't applied again.
    let mut altered = good.clone();
    altered.data["data"] = json!({});
    assert_eq!(compared(&altered), Comparison::Differs);
    let tried = [(key, (wanted.hash().to_owned(), "1".to_owned()))].into();
    let again = wanted.compare(&owner, &altered, &tried).unwrap();
    assert_eq!(again, Comparison::Settled(Written::Unchanged));
}

#[test]
fn deletions_are_confirmed_and_name_what_was_observed() {
    let mut scene = Scene::made();
    scene.volume(2, false);
    scene.volume(2, true);
    scene.volume(1, false);
    let object = scene.set(Component::Group(2)).object.clone();
    let volumes = || Action::DeleteVolumes(2);
    let delete_volume = "delete volume data-a-group-2-0";
    let confirmed = ["confirm Group(2)", delete_volume];
    assert_eq!(shown(&scene.built(volumes())), confirmed);
    let group = [
        "delete set of Group(2), uid of a-group-2",
        "delete Service a-group-2",
        "delete PodDisruptionBudget a-group-2",
    ];
    let removal = || Action::DeleteGroup(2, object.clone());
    assert_eq!(shown(&scene.built(removal())), group);
    // What is being deleted already is left alone.
    let key = (Kind::Service, "a-group-2".to_owned());
    let service = scene.observed.children.get_mut(&key).unwrap();
    service.metadata.deletion_timestamp = Some(now());
    assert_eq!(shown(&scene.built(removal())), [group[0], group[2]]);
    let stray = Action::DeleteStray(Component::Group(2), Kind::Service);
    assert_eq!(shown(&scene.built(stray)), [""; 0]);
    scene.desired.intent = Intent::Delete;
    assert_eq!(shown(&scene.built(volumes())), [delete_volume]);
}

#[test]
fn the_resource_keeps_what_others_wrote() {
    let mut scene = Scene::serving();
    let finalizers = |finalizers: &[&str]| {
        let finalizers = finalizers.iter().map(|it| (*it).to_owned());
        vec![Write::Finalizers(finalizers.collect())]
    };
    scene.observed.resource.metadata.finalizers = Some(vec!["of others".to_owned()]);
    let both = ["of others", "shardkv.io/drain"];
    assert_eq!(scene.built(Action::AddFinalizer), finalizers(&both));
    let both = both.map(str::to_owned).to_vec();
    scene.observed.resource.metadata.finalizers = Some(both);
    let kept = finalizers(&["of others"]);
    assert_eq!(scene.built(Action::RemoveFinalizer), kept);
    assert_eq!(scene.built(Action::DropFinalizer), kept);
    let recorded = |scene: &Scene, gid: u64| match scene.built(Action::RecordGid(gid)).pop() {
        Some(Write::Status(status)) => (status.last_gid, status.config_num),
        other => panic!("{other:?}"),
    };
    assert_eq!(recorded(&scene, 7), (Some(7), Some(5)));
    let status = scene.observed.resource.status.as_mut().unwrap();
    status.last_gid = Some(9);
    assert_eq!(recorded(&scene, 7), (Some(9), Some(5)));
    let stage = Action::SetStage {
        gid: 4,
        stage: Stage::Member,
    };
    assert_eq!(scene.built(stage), [Write::Known(Written::Raced)]);
}

/// An invalid resource may be deleted, and its volumes with it.
#[test]
fn an_invalid_resource_gets_its_finalizer_and_nothing_else() {
    let mut scene = Scene::made();
    scene.observed = Observed::new(scene.observed.resource.clone());
    scene.observed.resource.metadata.finalizers = None;
    scene.desired.intent = Intent::Pause;
    scene.desired.invalid = Some(Invalid::Name("a.b".to_owned()));
    let drain = r#"finalizers ["shardkv.io/drain"]"#;
    assert_eq!(all(&scene.prepared()), [drain]);
}

/// The gid of a deleted group is in the status even if the early record of it was cut off.
#[test]
fn the_status_records_the_gids_of_the_plan() {
    let mut scene = Scene::serving();
    scene.desired.intent = Intent::Run(1);
    scene.set(Component::Group(2)).stage = Stage::Leaving;
    let view = scene.view();
    view.plan.members = [1].into();
    view.plan.settled = [(1, 5)].into();
    assert!(scene.plan().actions.contains(&Action::RecordGid(2)));
    assert_eq!(scene.told().last_gid, Some(2));
}

pub(super) fn applied(results: Vec<(Action, Written)>) -> Applied {
    let results = results.into_iter();
    let results = results.map(|(action, result)| (action, vec![result]));
    Applied {
        results: results.collect(),
        ..Applied::default()
    }
}

#[test]
fn a_failed_action_blocks_what_depends_on_it() {
    let refused = || Written::Refused("no".to_owned());
    let update = Action::UpdateShared(Kind::Config);
    let part = Action::Update(Component::Group(1), Kind::Set);
    let stray = Action::DeleteStray(Component::Group(1), Kind::Service);
    let create = Action::CreateGroup {
        gid: 3,
        stage: Stage::New,
    };
    let (join, leave) = (Action::Join(vec![3]), Action::Leave(vec![2]));
    let end = Action::RemoveFinalizer;
    let actions = [&update, &part, &stray, &create, &join, &leave, &end];
    let allowed = |results: Vec<(&Action, Written)>| {
        let results = results.into_iter().map(|(it, result)| (it.clone(), result));
        let applied = applied(results.collect());
        actions.map(|action| applied.allows(action))
    };
    let all = [true; 7];
    let but_the_end = [true, true, true, true, true, true, false];
    let no_changes = [true, true, true, false, false, false, false];
    assert_eq!(allowed(vec![]), all);
    assert_eq!(allowed(vec![(&update, Written::Changed)]), all);
    assert_eq!(
        allowed(vec![(&Action::AddFinalizer, Written::Raced)]),
        [false; 7]
    );
    assert_eq!(
        allowed(vec![(&Action::AddFinalizer, Written::Changed)]),
        all
    );
    // A failed creation, update or sweep blocks the release of the resource alone.
    assert_eq!(allowed(vec![(&create, refused())]), but_the_end);
    // Pods can't start without their options, so no StatefulSet is told to mount them; nor what somebody else calls so.
    let no_rollout = [true, false, true, false, true, true, false];
    let taken = Written::Taken("ConfigMap a-config".to_owned());
    for missing in [refused(), taken] {
        assert_eq!(allowed(vec![(&update, missing)]), no_rollout);
    }
    let policy = Action::UpdateShared(Kind::Network);
    assert_eq!(allowed(vec![(&policy, refused())]), but_the_end);
    assert_eq!(allowed(vec![(&stray, Written::Raced)]), but_the_end);
    assert_eq!(allowed(vec![(&leave, refused())]), no_changes);
    assert_eq!(allowed(vec![(&leave, Written::Raced)]), no_changes);
    let late = Written::Store(StoreError::Unreachable("late".to_owned()));
    assert_eq!(allowed(vec![(&join, late)]), no_changes);
    // A volume that vanished blocks no change, but the next round looks again before the end.
    let volumes = Action::DeleteVolumes(2);
    assert_eq!(allowed(vec![(&volumes, Written::Vanished)]), but_the_end);
}

#[test]
fn a_part_that_was_changed_is_compared_by_the_next_round() {
    let stage = Action::SetStage {
        gid: 1,
        stage: Stage::Leaving,
    };
    let update = |gid| Action::Update(Component::Group(gid), Kind::Set);
    let done = applied(vec![(stage.clone(), Written::Changed)]);
    assert!(!done.allows(&update(1)) && done.allows(&update(2)));
    let raced = applied(vec![(stage, Written::Raced)]);
    assert!(raced.allows(&update(1)), "it is as it was observed");
}

#[test]
fn events_tell_what_was_done() {
    let mut scene = Scene::made();
    let told = |scene: &Scene, action: &Action, results: &[Written]| -> Vec<String> {
        let notes = notes::of(action, &scene.desired, &scene.observed, results);
        notes.into_iter().map(|note| note.reason).collect()
    };
    let none: [&str; 0] = [];
    let (created, changed) = (Written::Created, Written::Changed);
    for (stage, reason) in [
        (Stage::New, "GroupCreated"),
        (Stage::Member, "GroupRestored"),
    ] {
        let create = Action::CreateGroup { gid: 2, stage };
        assert_eq!(
            told(&scene, &create, &[created.clone(), created.clone()]),
            [reason]
        );
        // It existed, and had lost its labels.
        assert_eq!(
            told(&scene, &create, &[created.clone(), changed.clone()]),
            none
        );
        assert_eq!(
            told(&scene, &create, &[created.clone(), Written::Raced]),
            none
        );
    }
    let controllers = Action::CreateControllers;
    assert_eq!(
        told(&scene, &controllers, &[created]),
        ["ControllersCreated"]
    );
    assert_eq!(
        told(&scene, &controllers, std::slice::from_ref(&changed)),
        none
    );
    scene.volume(2, false);
    let object = scene.set(Component::Group(2)).object.clone();
    let remove = Action::DeleteGroup(2, object);
    let results = [changed.clone(), changed.clone(), changed];
    let kept = ["GroupRemoved", "VolumesRetained"];
    assert_eq!(told(&scene, &remove, &results), kept, "nobody knows it");
    for (forgotten, reasons) in [
        (false, &["Drained", "GroupRemoved", "VolumesRetained"][..]),
        (true, &kept),
    ] {
        let removed = plan::Removed {
            incarnation: 1,
            forgotten,
            retired: true,
        };
        let plan = plan::Progress {
            members: [1].into(),
            removed: [(2, removed)].into(),
            ..plan::Progress::default()
        };
        scene.observed.view = Some(Ok(View {
            plan,
            ..View::default()
        }));
        assert_eq!(told(&scene, &remove, &results), reasons);
    }
    let warns = notes::of(&remove, &scene.desired, &scene.observed, &results);
    assert!(warns.last().is_some_and(|note| note.warns));
    scene.desired.intent = Intent::Delete;
    assert_eq!(told(&scene, &remove, &results), ["GroupRemoved"]);
}

#[test]
fn a_status_that_could_not_be_written_is_due_again_soon() {
    let scene = Scene::serving();
    let (told, applied) = (scene.told(), Applied::default());
    let (outcome, pause) = next(&told, &applied, &Written::Raced, 0, Pace::default());
    assert_eq!((outcome, pause.as_secs()), (Outcome::Busy, 1));
}
