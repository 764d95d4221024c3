//! Table of statuses: the observed state on the left, the output of `kubectl get` and `kubectl describe` on the right.

mod edges;
mod model;
mod rollout;
mod rules;
mod scene;
mod versions;
mod writes;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use scene::{Scene, led, set};

use super::Pace;
use super::applied::{Applied, Written};
use super::facts::Facts;
use super::observed::{Observed, ObservedSet, Volume};
use super::pods::Trouble;
use super::status::{next, status};
use crate::build::tests::named;
use crate::crd::{
    GroupPhase, GroupStatus, Retention, ShardKvCluster, ShardKvClusterSpec, ShardKvClusterStatus,
};
use crate::metrics::Outcome;
use crate::parts::{Component, Kind};
use crate::plan::{self, Action, Object, Plan, Stage};
use crate::store::{Health, StoreError, View};
use crate::validate::{Desired, Intent, Invalid};

#[test]
fn a_cluster_that_is_created() {
    let mut scene = Scene::new();
    let creating = ["False Creating", "True Creating", "False AsExpected"];
    scene.shows(creating, "The controllers are being created.");
    // Its pods start, and the controllers don't answer yet: nothing is wrong with that.
    scene.observed.sets = [
        (Component::Controller, set(Stage::Member, 1)),
        (Component::Group(1), set(Stage::New, 0)),
    ]
    .into();
    scene.observed.view = Some(Err(StoreError::Unreachable("refused".to_owned())));
    let message = "Waiting for the controllers to answer. Pods ready: 1 of 3 of a-controller, 0 of 3 of a-group-1.";
    let told = scene.shows(creating, message);
    assert_eq!((told.replicas, told.config_num), (Some(0), None));
    assert_eq!(told.groups[0].phase, GroupPhase::Provisioning);
    // The controllers' pods are ready, and still don't answer the operator.
    scene.set(Component::Controller).ready = 3;
    let cut_off = ["False Creating", "True Creating", "True StoreUnreachable"];
    scene.shows(cut_off, "can the operator reach port 7400");
    scene.observed.view = Some(Ok(View::default()));
    scene.shows(creating, "Waiting for groups to elect leaders and join.");
    // A configuration alone doesn't serve keys.
    scene.observed.view = Some(Ok(View {
        plan: plan::Progress {
            num: 1,
            members: [1].into(),
            settled: [(1, 0)].into(),
            ..plan::Progress::default()
        },
        shards: [(1, 12)].into(),
        unserved: 12,
        ..View::default()
    }));
    scene.observed.health = [(Component::Group(1), led("a-group-1-0"))].into();
    let told = scene.shows(creating, "Waiting for them to serve their shards.");
    assert_eq!((told.replicas, told.shards_moving), (Some(1), Some(12)));
    assert_eq!(told.groups[0].phase, GroupPhase::Joining);
}

#[test]
fn a_cluster_at_rest() {
    let scene = Scene::serving();
    let resting = ["True AllServing", "False Stable", "False AsExpected"];
    let told = scene.shows(resting, "every group that owns shards has a leader");
    let group = |gid, pod: &str| GroupStatus {
        gid,
        phase: GroupPhase::Serving,
        ready_replicas: 3,
        leader: Some(pod.to_owned()),
        shards: 6,
    };
    assert_eq!(
        told.groups,
        [group(1, "a-group-1-0"), group(2, "a-group-2-1")]
    );
    assert_eq!(told.observed_generation, Some(7));
    assert_eq!((told.config_num, told.replicas), (Some(5), Some(2)));
    assert_eq!(told.endpoint.as_deref(), Some("a-client.default.svc:7400"));
    assert_eq!(
        told.selector.as_deref(),
        Some(
            "app.kubernetes.io/component=group,app.kubernetes.io/instance=a,app.kubernetes.io/name=shardkv,\
            apps.kubernetes.io/pod-index=0"
        )
    );
    assert_eq!(told, scene.observed.status(), "nothing to write");
}

#[test]
fn groups_that_come_and_go() {
    let mut scene = Scene::serving();
    scene.desired.intent = Intent::Run(3);
    let out = ["True AllServing", "True ScalingOut", "False AsExpected"];
    scene.shows(out, "There are 2 groups; 3 are wanted.");
    scene
        .observed
        .sets
        .insert(Component::Group(3), set(Stage::New, 1));
    scene.shows(
        out,
        "group 3 is Provisioning. Pods ready: 1 of 3 of a-group-3.",
    );

    let mut scene = Scene::serving();
    scene.desired.intent = Intent::Run(1);
    let back = ["True AllServing", "True ScalingIn", "False AsExpected"];
    scene.shows(back, "group 2 is Draining.");
    scene.set(Component::Group(2)).stage = Stage::Leaving;
    let led_by = scene.observed.health.remove(&Component::Group(1)).unwrap();
    let headless = ["False NoLeader", "True ScalingIn", "False AsExpected"];
    let message = "No group is let go while no leader is seen in group 1.";
    scene.shows(headless, message);
    scene.observed.health.insert(Component::Group(1), led_by);
    let view = scene.view();
    view.plan.num = 6;
    view.plan.members = [1].into();
    view.plan.settled = [(1, 6), (2, 6)].into();
    view.copying = 6;
    scene.shows(back, "group 2 is Draining. 6 shards are being copied");
    // The group is no member any more, but serves its shards until others have them.
    let led_by = scene.observed.health.remove(&Component::Group(2)).unwrap();
    scene.shows(headless, "is seen in group 2");
    scene.observed.health.insert(Component::Group(2), led_by);
    let view = scene.view();
    view.copying = 0;
    view.plan.settled = [(1, 5), (2, 5)].into();
    view.shards = [(1, 12)].into();
    view.unserved = 4;
    let told = scene.shows(back, "group 2 is Draining. 4 shards are on their way.");
    assert_eq!(told.replicas, Some(1));
    // The group owns nothing any more, but other groups wait for its shards.
    let led_by = scene.observed.health.remove(&Component::Group(2)).unwrap();
    scene.shows(headless, "is seen in group 2");
    scene.observed.health.insert(Component::Group(2), led_by);
    let view = scene.view();
    view.plan.settled = [(1, 6)].into();
    view.unserved = 0;
    scene.shows(back, "group 2 is Removing");
}

#[test]
fn a_store_that_does_not_answer() {
    let mut scene = Scene::serving();
    scene.observed.view = Some(Err(StoreError::Unreachable("refused".to_owned())));
    let message = "The controllers don't answer. Their pods are ready";
    let told = scene.shows(
        [
            "Unknown StoreUnreachable",
            "False Stable",
            "True StoreUnreachable",
        ],
        message,
    );
    let kept = |it: &ShardKvClusterStatus| (it.config_num, it.replicas, it.shards_moving);
    assert_eq!(kept(&told), kept(&scene.observed.status()));
    assert_eq!(
        told.groups,
        scene.observed.status().groups,
        "what was last known"
    );
    // Without an answer of the nodes, the leader is unknown.
    scene.observed.health.clear();
    assert_eq!(scene.told().groups[0].leader, None);
}

#[test]
fn a_group_without_a_leader() {
    let mut scene = Scene::serving();
    scene
        .observed
        .health
        .insert(Component::Group(2), Health::default());
    scene.set(Component::Group(2)).ready = 1;
    scene.shows(
        ["False NoLeader", "False Stable", "True PodsNotReady"],
        "No leader, so no quorum, is seen in group 2",
    );
    // A group without shards doesn't affect availability.
    scene.view().shards = [(1, 12), (2, 0)].into();
    scene.shows(
        ["True AllServing", "False Stable", "True PodsNotReady"],
        "Pods ready: 1 of 3 of a-group-2.",
    );
}

#[test]
fn pods_that_do_not_run() {
    let mut scene = Scene::serving();
    scene.set(Component::Group(1)).ready = 2;
    let degraded = ["True AllServing", "False Stable", "True PodsNotReady"];
    scene.shows(degraded, "Pods ready: 2 of 3 of a-group-1.");
    // One pod at a time may be away while pods are replaced.
    scene.set(Component::Group(1)).rolling = Some(1);
    scene.shows(
        ["True AllServing", "True RollingOut", "False AsExpected"],
        "1 of 3 pods of a-group-1 are of the latest revision.",
    );
    // Pods of a new group are still starting.
    scene.set(Component::Group(1)).rolling = None;
    scene.set(Component::Group(1)).young = true;
    let starting = ["True AllServing", "True Starting", "False AsExpected"];
    scene.shows(starting, "Pods ready: 2 of 3 of a-group-1.");
    scene.set(Component::Controller).young = true;
    scene.set(Component::Controller).ready = 2;
    scene.shows(starting, "2 of 3 of a-controller");
    scene.set(Component::Controller).ready = 3;
    scene.set(Component::Group(1)).rolling = Some(1);
    let trouble = Trouble {
        pod: "a-group-1-2".to_owned(),
        why: "ImagePullBackOff of b:1".to_owned(),
        curable: true,
    };
    scene.observed.pods = [(Component::Group(1), vec![trouble])].into();
    let stuck = ["True AllServing", "True RollingOut", "True PodsNotReady"];
    scene.shows(stuck, "Pod a-group-1-2: ImagePullBackOff of b:1.");
}

#[test]
fn shards_that_move_or_do_not() {
    let mut scene = Scene::serving();
    scene.view().unserved = 1;
    let moving = ["True AllServing", "True Rebalancing", "False AsExpected"];
    scene.shows(moving, "1 shard is on its way.");
    scene.view().copying = 2;
    scene.shows(
        moving,
        "2 shards are being copied; their groups serve them meanwhile. 1 shard is on its way.",
    );
    scene.view().copying = 0;
    scene.view().unserved = 0;
    scene.view().plan.settled.insert(2, 4);
    scene.shows(moving, "All shards have arrived; group 2 tidies up.");
    scene.observed.stalled = Some([2].into());
    scene.shows(
        ["True AllServing", "True Rebalancing", "True Stalled"],
        "Waiting for group 2: look at the logs",
    );
    // Neither groups that tidy up nor copies affect availability; shards that don't arrive do.
    scene.view().copying = 3;
    let message =
        "3 shards wait to be copied; their groups serve them meanwhile: see `shardkv shards`.";
    scene.shows(
        ["True AllServing", "True Rebalancing", "True Stalled"],
        message,
    );
    scene.view().unserved = 1;
    scene.shows(
        ["False Stalled", "True Rebalancing", "True Stalled"],
        "their keys wait",
    );
}

#[test]
fn what_is_refused_and_what_is_lost() {
    let mut scene = Scene::serving();
    let refused = Written::Refused("StatefulSet.apps \"a-group-1\" is invalid".to_owned());
    scene.tried(vec![
        refused.clone(),
        Written::Taken("Service a-client".to_owned()),
        Written::Taken("ConfigMap a-config (of Deployment b)".to_owned()),
    ]);
    let taken = ["True AllServing", "False Stable", "True NameTaken"];
    scene.shows(
        taken,
        "Service a-client, ConfigMap a-config (of Deployment b): what is there",
    );
    scene.shows(taken, "is invalid.");
    scene.tried(vec![refused]);
    scene.shows(
        ["True AllServing", "False Stable", "True ApplyRefused"],
        "is invalid.",
    );

    let mut scene = Scene::serving();
    scene.view().plan = plan::Progress::default();
    scene.view().shards.clear();
    scene.shows(
        ["False GroupsLost", "False GroupsLost", "True GroupsLost"],
        "The controllers don't know group 1, group 2, which were members",
    );
    // Only volumes are left of the groups.
    scene
        .observed
        .sets
        .retain(|part, _| *part == Component::Controller);
    scene.observed.volumes = vec![Volume {
        part: Component::Group(2),
        name: "data-a-group-2-0".to_owned(),
        uid: "u".to_owned(),
        terminating: false,
    }];
    scene.shows(
        ["False GroupsLost", "False GroupsLost", "True GroupsLost"],
        "delete the volumes of the pods of a-group-2",
    );
}

#[test]
fn what_disappears_first() {
    let mut scene = Scene::new();
    scene.tried(vec![Written::Waits(
        "ConfigMap a-config is being deleted".to_owned(),
    )]);
    let creating = ["False Creating", "True Creating", "False AsExpected"];
    scene.shows(creating, "ConfigMap a-config is being deleted.");
    let mut scene = Scene::serving();
    scene.tried(vec![Written::Waits(
        "Service a-client is being deleted".to_owned(),
    )]);
    scene.shows(
        ["True AllServing", "True Creating", "False AsExpected"],
        "Service a-client is being deleted; it is created again then.",
    );
}

#[test]
fn a_pause_and_the_end() {
    let mut scene = Scene::serving();
    scene.desired.intent = Intent::Pause;
    scene.set(Component::Group(2)).stage = Stage::Leaving;
    let told = scene.shows(
        ["True AllServing", "False Paused", "False AsExpected"],
        "spec.paused is true",
    );
    let paused = told.conditions.iter().find(|it| it.type_ == "Paused");
    assert_eq!(paused.unwrap().status, "True");

    let mut scene = Scene::serving();
    scene.desired.intent = Intent::Delete;
    scene.observed.view = None;
    scene.observed.health.clear();
    let told = scene.shows(
        ["False Deleting", "True Deleting", "False AsExpected"],
        "3 StatefulSets are left.",
    );
    assert_eq!(told.groups[0].phase, GroupPhase::Removing);
}

#[test]
fn a_spec_that_makes_no_sense() {
    let mut scene = Scene::serving();
    let before = scene.observed.status();
    // Only the resource of an invalid cluster is read.
    let mut resource = scene.observed.resource.clone();
    resource.metadata.generation = Some(8);
    scene.observed = Observed::new(resource);
    scene.desired.intent = Intent::Pause;
    scene.desired.invalid = Some(Invalid::Name("a.b".to_owned()));
    let told = scene.told();
    assert_eq!(
        (told.observed_generation, &told.groups),
        (Some(8), &before.groups)
    );
    assert_eq!(told.config_num, before.config_num);
    let shown: Vec<_> = told
        .conditions
        .iter()
        .map(|it| (it.type_.as_str(), it.status.as_str(), it.reason.as_str()))
        .collect();
    assert_eq!(
        shown,
        [
            ("Available", "Unknown", "InvalidSpec"),
            ("Degraded", "True", "InvalidSpec"),
            ("Paused", "False", "Running"),
            ("Progressing", "False", "InvalidSpec"),
        ]
    );
}

#[test]
fn how_soon_is_looked_again() {
    let seconds = |scene: &Scene| {
        let (outcome, pause) = next(
            &scene.told(),
            &scene.applied,
            &Written::Unchanged,
            0,
            Pace::default(),
        );
        (outcome, pause.as_secs())
    };
    let mut scene = Scene::serving();
    assert_eq!(seconds(&scene), (Outcome::Idle, 15));
    scene.tried(vec![Written::Raced]);
    assert_eq!(seconds(&scene), (Outcome::Busy, 1));
    scene.tried(Vec::new());
    scene.view().unserved = 1;
    assert_eq!(seconds(&scene), (Outcome::Busy, 1));
    scene.view().unserved = 0;
    scene.observed.health.clear();
    assert_eq!(
        seconds(&scene),
        (Outcome::Idle, 5),
        "a leader may come back unseen"
    );

    let mut scene = Scene::serving();
    scene.tried(vec![Written::Refused(String::new())]);
    assert_eq!(seconds(&scene), (Outcome::Refused, 15));
    scene.view().unserved = 1;
    assert_eq!(seconds(&scene), (Outcome::Refused, 5));
    scene.tried(vec![Written::Refused(String::new()), Written::Changed]);
    assert_eq!(seconds(&scene), (Outcome::Refused, 1));
}
