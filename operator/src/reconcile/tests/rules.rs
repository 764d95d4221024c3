//! One scene for each rule of the conditions, in which it is the rule that decides.

use super::*;
use crate::reconcile::conditions::{RULES, Rule};

/// A condition with its reason, a part of its message, and the difference from a serving cluster.
type Row = (&'static str, &'static str, &'static str, fn(&mut Scene));

fn unanswered(scene: &mut Scene) {
    scene.observed.view = Some(Err(StoreError::Unreachable("refused".to_owned())));
}

fn invalid(scene: &mut Scene) {
    scene.observed = Observed::new(scene.observed.resource.clone());
    scene.desired.intent = Intent::Pause;
    scene.desired.invalid = Some(Invalid::Name("a.b".to_owned()));
}

fn lost(scene: &mut Scene) {
    scene.view().plan = plan::Progress::default();
    scene.view().shards.clear();
}

fn stalled(scene: &mut Scene) {
    scene.view().unserved = 1;
    scene.observed.stalled = Some([2].into());
}

fn newborn(scene: &mut Scene) {
    *scene = Scene::new();
}

fn refused(error: StoreError) -> Vec<Written> {
    vec![Written::Store(error)]
}

#[rustfmt::skip]
const ROWS: &[Row] = &[
    ("Available", "InvalidSpec", "Nothing is changed until it is corrected.", invalid),
    ("Available", "Deleting", "is being deleted", |it| it.desired.intent = Intent::Delete),
    ("Available", "StoreUnreachable", "Clients that know the configuration go on.", unanswered),
    ("Available", "GroupsLost", "The controllers know no group", lost),
    ("Available", "Creating", "The controllers are being created.", newborn),
    ("Available", "NoLeader", "is seen in group 2", |it| drop(it.observed.health.remove(&Component::Group(2)))),
    ("Available", "Stalled", "their keys wait", stalled),
    ("Available", "AllServing", "every group that owns shards has a leader", |it| {
        it.view().copying = 1;
        it.observed.stalled = Some([1, 2].into());
    }),
    ("Available", "AllServing", "every group that owns shards has a leader", |_| {}),
    ("Progressing", "InvalidSpec", "`a.b`", invalid),
    ("Progressing", "Paused", "spec.paused is true", |it| it.desired.intent = Intent::Pause),
    ("Progressing", "GroupsLost", "Nothing is changed while", lost),
    ("Progressing", "Deleting", "3 StatefulSets are left.", |it| it.desired.intent = Intent::Delete),
    ("Progressing", "Creating", "The controllers are being created.", newborn),
    ("Progressing", "ScalingOut", "group 3 is Provisioning.", |it| {
        it.desired.intent = Intent::Run(3);
        it.observed.sets.insert(Component::Group(3), set(Stage::New, 3));
    }),
    ("Progressing", "ScalingIn", "group 2 is Draining.", |it| it.desired.intent = Intent::Run(1)),
    ("Progressing", "Creating", "it is created again then", |it| it.tried(vec![Written::Waits("Service a".to_owned())])),
    ("Progressing", "ScalingOut", "There are 2 groups; 3 are wanted.", |it| it.desired.intent = Intent::Run(3)),
    ("Progressing", "ScalingIn", "There are 2 groups; 1 are wanted.", |it| {
        unanswered(it);
        it.desired.intent = Intent::Run(1);
    }),
    ("Progressing", "RollingOut", "1 of 3 pods of a-group-1", |it| it.set(Component::Group(1)).rolling = Some(1)),
    ("Progressing", "RollingOut", "0 of 3 pods of a-controller are of the latest revision. 1 more StatefulSet follows.", |it| {
        it.set(Component::Controller).rolling = Some(0);
        it.held(&[1]);
    }),
    ("Progressing", "RollingOut", "The rollout waits until all pods of a-group-1 are ready, and all their nodes answer, vote and have caught up. 2 more", |it| {
        it.set(Component::Group(1)).ready = 2;
        it.held(&[1, 2]);
    }),
    ("Progressing", "Rebalancing", "1 shard is on its way.", |it| it.view().unserved = 1),
    ("Progressing", "Rebalancing", "1 shard waits to be copied; its group serves it meanwhile: see", |it| {
        it.view().copying = 1;
        it.observed.stalled = Some([1, 2].into());
    }),
    ("Progressing", "ScalingOut", "group 2 is Joining. 4 shards are being copied; their groups", |it| {
        it.observed.resource.status.as_mut().unwrap().groups.clear();
        it.set(Component::Group(2)).stage = Stage::Member;
        it.view().plan.awaiting = [2].into();
        it.view().copying = 4;
    }),
    ("Progressing", "Starting", "2 of 3 of a-group-1", |it| {
        it.set(Component::Group(1)).ready = 2;
        it.set(Component::Group(1)).young = true;
    }),
    ("Progressing", "RollingOut", "have just been changed", |it| {
        let update = Action::Update(Component::Group(1), Kind::Set);
        it.applied.results = vec![(update, vec![Written::Changed])];
    }),
    ("Progressing", "Stable", "All groups serve their shards.", |_| {}),
    ("Degraded", "InvalidSpec", "`a.b`", invalid),
    ("Degraded", "GroupsLost", "The controllers don't know group 1, group 2", lost),
    ("Degraded", "NameTaken", "Service a: what is there", |it| it.tried(vec![Written::Taken("Service a".to_owned())])),
    ("Degraded", "NewerOperator", "StatefulSet a (by 9.0.0): a newer operator", |it| it.tried(vec![Written::Outranked("StatefulSet a (by 9.0.0)".to_owned())])),
    ("Degraded", "ApplyRefused", "is invalid.", |it| it.tried(vec![Written::Refused("it is invalid".to_owned())])),
    ("Degraded", "Refused", "the controllers refuse: too many.", |it| it.tried(refused(StoreError::Refused("too many".to_owned())))),
    ("Degraded", "PodsNotReady", "Pod p: it crashes.", |it| {
        let trouble = Trouble { pod: "p".to_owned(), why: "it crashes".to_owned(), curable: true };
        it.observed.pods = [(Component::Group(1), vec![trouble])].into();
    }),
    ("Degraded", "StoreUnreachable", "The controllers don't answer. Their pods are ready", unanswered),
    ("Degraded", "StoreUnreachable", "it is asked again. Their pods", |it| it.tried(refused(StoreError::Unreachable("late".to_owned())))),
    ("Degraded", "Stalled", "Waiting for group 2", stalled),
    ("Degraded", "NodesInTrouble", "a-group-1-0: its disk is full.", |it| {
        let health = it.observed.health.get_mut(&Component::Group(1)).unwrap();
        health.troubles = [("a-group-1-0".to_owned(), "its disk is full".to_owned())].into();
    }),
    ("Degraded", "PodsNotReady", "Pods ready: 2 of 3 of a-controller.", |it| it.set(Component::Controller).ready = 2),
    ("Degraded", "AsExpected", "Nothing is wrong.", |_| {}),
    ("Paused", "Running", "", invalid),
    ("Paused", "Paused", "spec.paused is true", |it| it.desired.intent = Intent::Pause),
    ("Paused", "Running", "spec.paused is false.", |_| {}),
];

#[test]
fn each_rule_decides_in_its_scene() {
    let mut decided: Vec<&Rule> = Vec::new();
    for (of, reason, message, change) in ROWS {
        let mut scene = Scene::serving();
        change(&mut scene);
        let told = scene.told();
        let condition = told.conditions.iter().find(|it| it.type_ == *of).unwrap();
        assert_eq!(condition.reason, *reason, "{of}: {}", condition.message);
        let text = &condition.message;
        assert!(text.contains(message), "{of} {reason}: {text}");
        let plan = scene.plan();
        let facts = scene.facts(&plan);
        let mut rules = RULES.iter().filter(|rule| rule.of == *of);
        let first = rules.find(|rule| (rule.message)(&facts).is_some());
        decided.extend(first);
    }
    for rule in RULES {
        let is_tested = decided.iter().any(|it| std::ptr::eq(*it, rule));
        assert!(is_tested, "no scene for {} {}", rule.of, rule.reason);
    }
}

#[test]
fn all_problems_are_told_and_the_first_is_the_reason() {
    let mut scene = Scene::serving();
    stalled(&mut scene);
    unanswered(&mut scene);
    scene.tried(vec![Written::Refused("it is invalid".to_owned())]);
    scene.set(Component::Controller).ready = 2;
    let told = scene.told();
    let degraded = told.conditions.iter().find(|it| it.type_ == "Degraded");
    let degraded = degraded.unwrap();
    assert_eq!(degraded.reason, "ApplyRefused");
    let at = |text: &str| degraded.message.find(text);
    assert!(at("is invalid.") < at("don't answer."), "{degraded:?}");
    assert!(at("don't answer.") < at("No shard has moved"));
    assert_eq!(at("Pods ready"), None, "another problem explains it");
}
