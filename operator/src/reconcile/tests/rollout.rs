//! Rollouts: one part after the other, and what is told meanwhile.

use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use super::writes::{all, created};
use super::*;
use crate::build::names;
use crate::reconcile::Memory;
use crate::reconcile::applied::Turn;
use crate::reconcile::build::Write;
use crate::reconcile::ordinals;

impl Scene {
    /// Returns a scene in which all objects exist and two groups serve.
    pub(super) fn made_and_serving() -> Self {
        let (mut scene, serving) = (Self::made(), Self::serving());
        scene.observed.sets = serving.observed.sets;
        scene.observed.health = serving.observed.health;
        scene.observed.view = serving.observed.view;
        scene.observed.resource.status = serving.observed.resource.status;
        assert_eq!(all(&scene.prepared()), [""; 0]);
        scene
    }

    /// Performs the planned changes of `StatefulSet`s and returns their parts. Kubernetes has done nothing yet.
    fn roll(&mut self) -> Vec<Component> {
        self.roll_but(&[])
    }

    /// Likewise, but the API server refuses the changes of some parts.
    fn roll_but(&mut self, refused: &[Component]) -> Vec<Component> {
        let mut rolled = Vec::new();
        self.perform(|action, write| {
            let (Action::Update(part, Kind::Set), Write::Apply(wanted, _)) = (action, write) else {
                return Written::Unchanged;
            };
            if refused.contains(part) {
                return Written::Refused("a quota".to_owned());
            }
            rolled.push((*part, wanted.clone()));
            Written::Changed
        });
        for (part, wanted) in &rolled {
            self.observed.children.insert(wanted.key(), created(wanted));
            self.set(*part).rolling = Some(0);
        }
        rolled.into_iter().map(|(part, _)| part).collect()
    }

    /// All pods of a part are replaced, and ready again.
    fn rolled(&mut self, part: Component) {
        self.set(part).rolling = None;
    }
}

#[test]
fn parts_are_replaced_one_after_the_other() {
    let mut scene = Scene::made_and_serving();
    let parts = [
        Component::Controller,
        Component::Group(1),
        Component::Group(2),
    ];
    scene.desired.cluster.spec.image = "next".to_owned();
    for part in parts {
        assert_eq!(scene.roll(), [part]);
        assert_eq!(scene.roll(), [], "{part:?} is being replaced");
        scene.rolled(part);
        // Kubernetes calls the pods ready, but a node doesn't vote yet.
        scene.observed.health.get_mut(&part).unwrap().whole = false;
        assert_eq!(scene.roll(), []);
        scene.observed.health.get_mut(&part).unwrap().whole = true;
        scene.set(part).ready = 2;
        assert_eq!(scene.roll(), []);
        scene.set(part).ready = 3;
    }
    assert_eq!(all(&scene.prepared()), [""; 0]);
}

/// A bad image harms one part, and the good one is written there without waiting for it.
#[test]
fn a_stuck_rollout_can_be_called_back() {
    let mut scene = Scene::made_and_serving();
    scene.desired.cluster.spec.image = "bad".to_owned();
    assert_eq!(scene.roll(), [Component::Controller]);
    scene.set(Component::Controller).ready = 2;
    let pods = ready(Component::Controller, &[true, true, false]);
    scene.observed.ordinals = ordinals::by_part(&named("a"), &pods);
    for _ in 0..3 {
        assert_eq!(scene.roll(), []);
    }
    scene.desired.cluster.spec.image = named("a").spec.image;
    assert_eq!(scene.roll(), [Component::Controller]);
    scene.rolled(Component::Controller);
    scene.set(Component::Controller).ready = 3;
    scene.observed.ordinals.clear();
    assert_eq!(all(&scene.prepared()), [""; 0], "no other part has changed");
}

#[test]
fn a_held_change_is_known_and_not_written() {
    let mut scene = Scene::made_and_serving();
    scene.desired.cluster.spec.image = "next".to_owned();
    let results = |scene: &Scene, result: &Written| -> Vec<Written> {
        let applied = scene.perform(|_, _| result.clone());
        let results = applied.results.into_iter();
        results.flat_map(|(_, results)| results).collect()
    };
    let held = || Written::Held;
    let changed = results(&scene, &Written::Changed);
    assert_eq!(changed, [Written::Changed, held(), held()]);
    // Somebody else has changed it, and may roll it.
    let raced = results(&scene, &Written::Raced);
    assert_eq!(raced, [Written::Raced, held(), held()]);
    // A lost machine: Kubernetes would take a second pod of the group away.
    scene.set(Component::Group(2)).ready = 2;
    let waits = results(&scene, &Written::Changed);
    assert_eq!(waits, [held(), held(), held()]);
    // Other objects of the parts don't wait.
    scene.desired.cluster.spec.image = named("a").spec.image;
    scene.desired.cluster.spec.pod_disruption_budget.enabled = false;
    assert_eq!(all(&scene.prepared()).len(), 3);
}

/// Returns the pods of a part, and whether they are ready.
fn ready(part: Component, states: &[bool]) -> Vec<Pod> {
    let cluster = named("a");
    let pods = states.iter().enumerate().map(|(ordinal, ready)| {
        let name = format!("{}-{ordinal}", names::part(&cluster, part));
        let answer = if *ready { "True" } else { "False" };
        let conditions = json!([{"type": "Ready", "status": answer}]);
        json!({"metadata": {"name": name}, "status": {"conditions": conditions}})
    });
    pods.map(|pod| serde_json::from_value(pod).unwrap())
        .collect()
}

/// A name, the expected state of the pods of group 1, and what differs from a cluster that serves.
type Row<'a> = (&'a str, plan::Pods, &'a dyn Fn(&mut Scene));

#[test]
fn the_pods_of_a_part_are_judged() {
    use plan::Pods::{Broken, Curable, Rolling, Short, Whole};
    let part = Component::Group(1);
    let trouble = |curable| Trouble {
        pod: "a-group-1-0".to_owned(),
        why: "it crashes".to_owned(),
        curable,
    };
    let crashing = |scene: &mut Scene, states: &[bool]| {
        let cluster = &scene.desired.cluster;
        scene.observed.ordinals = ordinals::by_part(cluster, &ready(part, states));
        scene.observed.pods.insert(part, vec![trouble(true)]);
        scene.set(part).ready = 2;
    };
    let accept = |scene: &mut Scene| {
        let annotation = ("shardkv.io/accept-outage".to_owned(), "true".to_owned());
        let meta = &mut scene.observed.resource.metadata;
        meta.annotations = Some([annotation].into());
    };
    let rows: [Row<'_>; 17] = [
        ("all is well", Whole, &|_| {}),
        ("being replaced", Rolling, &|it| {
            it.set(part).rolling = Some(3);
        }),
        ("one is missing", Short, &|it| it.set(part).ready = 2),
        ("two are missing", Broken, &|it| it.set(part).ready = 1),
        ("a pod crashes that is replaced first", Curable, &|it| {
            crashing(it, &[true, true, false]);
        }),
        ("another pod crashes", Short, &|it| {
            crashing(it, &[false, true, true]);
        }),
        ("and somebody accepts an outage", Curable, &|it| {
            crashing(it, &[false, true, true]);
            accept(it);
        }),
        ("it crashes while pods are replaced", Short, &|it| {
            crashing(it, &[false, true, true]);
            it.set(part).rolling = Some(2);
        }),
        ("which somebody accepts", Rolling, &|it| {
            crashing(it, &[false, true, true]);
            it.set(part).rolling = Some(2);
            accept(it);
        }),
        ("a pod ends that counts as ready", Short, &|it| {
            let mut pods = ready(part, &[true; 3]);
            pods[0].metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
            it.observed.ordinals = ordinals::by_part(&it.desired.cluster, &pods);
        }),
        ("a pod is late", Short, &|it| {
            it.set(part).ready = 2;
            it.observed.pods.insert(part, vec![trouble(false)]);
        }),
        ("a pod of another part crashes", Whole, &|it| {
            let other = vec![trouble(true)];
            it.observed.pods.insert(Component::Group(2), other);
        }),
        ("a node doesn't vote", Short, &|it| {
            it.observed.health.get_mut(&part).unwrap().whole = false;
        }),
        ("its nodes weren't asked", Short, &|it| {
            it.observed.health.remove(&part);
        }),
        ("no node can be asked", Whole, &|it| {
            it.observed.health.clear();
        }),
        ("being deleted", Short, &|it| {
            it.set(part).object.terminating = true;
        }),
        ("half is no majority", Broken, &|it| {
            it.set(part).replicas = 4;
            it.set(part).ready = 2;
        }),
    ];
    for (name, pods, change) in rows {
        let mut scene = Scene::serving();
        change(&mut scene);
        let state = scene.observed.state(&scene.desired);
        assert_eq!(state.pods[&part], pods, "{name}");
    }
}

#[test]
fn the_progress_of_a_rollout_is_told() {
    let mut scene = Scene::made_and_serving();
    scene.observed.resource.status = Some(scene.told());
    scene.set(Component::Group(1)).rolling = Some(1);
    scene.set(Component::Group(1)).ready = 2;
    scene.held(&[2, 3]);
    scene.shows(
        ["True AllServing", "True RollingOut", "False AsExpected"],
        "1 of 3 pods of a-group-1 are of the latest revision. 2 more StatefulSets follow, one after the other. \
         Pods ready: 2 of 3 of a-group-1.",
    );
    // It is neither a failure nor a change.
    assert!(!scene.applied.changed() && !scene.applied.outdated());
    assert_eq!(scene.applied.problems(), []);
}

/// Such as by an admission webhook, or a quota of the controllers' resources.
#[test]
fn a_part_whose_change_is_refused_holds_up_no_other() {
    let mut scene = Scene::made_and_serving();
    scene.desired.cluster.spec.image = "next".to_owned();
    let refused = [Component::Controller];
    for part in [Component::Group(1), Component::Group(2)] {
        assert_eq!(scene.roll_but(&refused), [part], "one at a time");
        assert_eq!(scene.roll_but(&refused), []);
        scene.rolled(part);
    }
    assert_eq!(scene.roll_but(&refused), []);
    assert_eq!(scene.roll(), [Component::Controller]);
}

/// The longer parts wait, for a pod that a lost machine had, the rarer the operator looks.
#[test]
fn rounds_become_rare_while_parts_are_held() {
    let mut scene = Scene::made_and_serving();
    scene.set(Component::Group(1)).ready = 2;
    scene.held(&[1, 2]);
    let told = scene.told();
    let pause = |scene: &Scene, held| {
        let pace = Pace::default();
        let (outcome, pause) = next(&told, &scene.applied, &Written::Unchanged, held, pace);
        assert_eq!(outcome, Outcome::Busy);
        pause.as_secs()
    };
    let pauses = [0, 1, 2, 3, 4, 99].map(|held| pause(&scene, held));
    assert_eq!(pauses, [1, 2, 4, 8, 15, 15]);
    // A part whose turn has come is watched closely.
    let update = Action::Update(Component::Group(3), Kind::Set);
    scene
        .applied
        .add(update, Turn::Queued, vec![Written::Changed]);
    assert_eq!(pause(&scene, 9), 1);
    let memory = Memory::default();
    let held = [true, true, false, true].map(|it| memory.held("ns", "a", it));
    assert_eq!(held, [0, 1, 2, 0]);
}
