//! Options and versions: which config maps stay, and what an older operator leaves to a newer one.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::DynamicObject;
use serde_json::json;

use super::writes::{all, created, now, shown};
use super::*;
use crate::build::config_name;
use crate::reconcile::Memory;
use crate::reconcile::build::{Prepared, Write, build};

/// Otherwise two operators, each with its own template, would replace the pods by turns.
#[test]
fn an_older_operator_gives_way_to_a_newer_one() {
    let mut scene = Scene::made();
    scene.desired.cluster.spec.image = "other".to_owned();
    let update = Action::Update(Component::Group(1), Kind::Set);
    let key = (Kind::Set, "a-group-1".to_owned());
    let version = "shardkv.io/operator-version";
    let made = scene.observed.children[&key].annotations();
    assert_eq!(made[version], env!("CARGO_PKG_VERSION"));
    for (of, gives_way) in [
        (env!("CARGO_PKG_VERSION"), false),
        ("0.0.99", false),
        ("nonsense", false),
        ("0.1.0-rc.1", false),
        ("0.10.0", true),
        ("99.0.0-rc.1", true),
    ] {
        let live = scene.observed.children.get_mut(&key).unwrap();
        live.annotations_mut()
            .insert(version.to_owned(), of.to_owned());
        let writes = scene.built(update.clone());
        let outranked = format!("StatefulSet a-group-1 (by {of})");
        let expected = Write::Known(Written::Outranked(outranked));
        assert_eq!(writes == [expected], gives_way, "{of}: {writes:?}");
    }
    // What the newer one wrote alike is no difference, and a removed annotation lets the older one take over.
    scene.desired.cluster.spec.image = named("a").spec.image;
    assert_eq!(scene.built(update.clone()), []);
    scene.desired.cluster.spec.image = "other".to_owned();
    let live = scene.observed.children.get_mut(&key).unwrap();
    live.annotations_mut().remove(version);
    assert_eq!(shown(&scene.built(update)), ["apply StatefulSet a-group-1"]);
}

/// Otherwise each would restore its own content, or delete the options of the other.
#[test]
fn an_older_operator_leaves_all_objects_of_a_newer_one() {
    let version = |live: &mut DynamicObject, of: &str| {
        let version = ("shardkv.io/operator-version".to_owned(), of.to_owned());
        live.annotations_mut().extend([version]);
    };
    // Any object, not only a `StatefulSet`.
    let mut scene = Scene::made();
    let key = (Kind::Network, "a-node".to_owned());
    let policy = scene.observed.children.get_mut(&key).unwrap();
    policy.data["spec"]["ingress"] = json!([]);
    version(policy, "99.0.0");
    let update = Action::UpdateShared(Kind::Network);
    let outranked = |what: &str| Write::Known(Written::Outranked(format!("{what} (by 99.0.0)")));
    let gives_way = outranked("NetworkPolicy a-node");
    assert_eq!(scene.built(update.clone()), [gives_way]);
    let policy = scene.observed.children.get_mut(&key).unwrap();
    version(policy, "0.0.1");
    assert_eq!(shown(&scene.built(update)), ["apply NetworkPolicy a-node"]);

    // Options that no pod mounts yet.
    let mut scene = Scene::made();
    let present = (Kind::Config, config_name(&scene.desired.cluster));
    let other = (Kind::Config, "a-config-00000000".to_owned());
    let mut config = scene.observed.children[&present].clone();
    config.metadata.name = Some(other.1.clone());
    scene
        .observed
        .children
        .insert(other.clone(), config.clone());
    let delete = Action::DeleteOptions(other.1.clone());
    assert!(scene.plan().actions.contains(&delete));
    version(&mut config, "99.0.0");
    scene.observed.children.insert(other, config);
    assert!(!scene.plan().actions.contains(&delete));

    // Options that a newer operator has deleted, because its own StatefulSets don't mount them.
    scene.observed.children.remove(&present);
    let options = Action::UpdateShared(Kind::Config);
    let made = [format!("create ConfigMap {}", present.1)];
    assert_eq!(shown(&scene.built(options.clone())), made);
    let key = (Kind::Set, "a-group-1".to_owned());
    version(scene.observed.children.get_mut(&key).unwrap(), "99.0.0");
    scene.observed.mounted.clear();
    let gives_way = outranked("StatefulSet a-group-1");
    assert_eq!(scene.built(options.clone()), [gives_way]);
    // A pod that is there may start again.
    scene.observed.mounted.insert(present.1.clone());
    assert_eq!(shown(&scene.built(options.clone())), made);
    scene.observed.mounted.clear();
    // The pods of a new part need them.
    let create = Action::CreateGroup {
        gid: 3,
        stage: Stage::New,
    };
    let plan = Plan {
        actions: vec![options, create],
        ..Plan::default()
    };
    let prepared = build(&scene.desired, &scene.observed, &plan).unwrap();
    assert_eq!(all(&prepared)[..1], made);
}

/// One part that a newer operator has taken over doesn't keep the options from all others.
#[test]
fn parts_that_are_left_to_an_older_operator_get_new_options() {
    let mut scene = Scene::made();
    let version = (
        "shardkv.io/operator-version".to_owned(),
        "99.0.0".to_owned(),
    );
    let newer = (Kind::Set, "a-group-1".to_owned());
    let live = scene.observed.children.get_mut(&newer).unwrap();
    live.annotations_mut().extend([version.clone()]);
    scene.desired.cluster.spec.options.lease_reads = Some(true);
    let config = config_name(&scene.desired.cluster);
    let made = format!("create ConfigMap {config}");
    assert_eq!(all(&scene.prepared())[0], made);
    let mut written = Vec::new();
    let applied = scene.perform(|_, write| {
        written.extend(shown(std::slice::from_ref(write)));
        Written::Changed
    });
    let sets = ["a-controller", "a-group-2"].map(|set| format!("apply StatefulSet {set}"));
    assert_eq!(written, [&[made][..], &sets[..]].concat());
    let problems = applied.problems();
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].reason, "NewerOperator");

    // The newer operator made the same options: they are there, whoever wrote them.
    let mut same = created_options(&scene);
    same.annotations_mut().extend([version]);
    same.annotations_mut()
        .insert("shardkv.io/applied".to_owned(), "other".to_owned());
    let key = (Kind::Config, config);
    scene.observed.children.insert(key.clone(), same.clone());
    let mut written = Vec::new();
    scene.perform(|_, write| {
        written.extend(shown(std::slice::from_ref(write)));
        Written::Changed
    });
    assert_eq!(written, sets);
    // Unless their content differs, which the name should exclude.
    same.data["data"] = json!({});
    scene.observed.children.insert(key, same);
    let applied = scene.perform(|_, _| Written::Changed);
    assert!(!applied.rolled());
}

/// Returns the live object of the options that a scene wants.
fn created_options(scene: &Scene) -> DynamicObject {
    let prepared = scene.prepared();
    let mut writes = prepared.steps.into_iter().flat_map(|step| step.writes);
    let config = writes.find_map(|write| match write {
        Write::Create(wanted) if wanted.kind == Kind::Config => Some(created(&wanted)),
        _ => None,
    });
    config.unwrap()
}

/// Its volumes wait for it, and the newer operator may be gone.
#[test]
fn a_lost_part_is_made_again_with_the_objects_of_a_newer_operator() {
    let mut scene = Scene::made_and_serving();
    for kind in [Kind::Service, Kind::Budget] {
        let key = (kind, "a-group-1".to_owned());
        let live = scene.observed.children.get_mut(&key).unwrap();
        let newer = ["shardkv.io/operator-version", "shardkv.io/applied"];
        let newer = newer.map(|it| (it.to_owned(), "99.0.0".to_owned()));
        live.annotations_mut().extend(newer);
    }
    let lost = (Kind::Set, "a-group-1".to_owned());
    scene.observed.children.remove(&lost);
    scene.observed.sets.remove(&Component::Group(1));
    let mut written = Vec::new();
    let applied = scene.perform(|_, write| {
        written.extend(shown(std::slice::from_ref(write)));
        Written::Created
    });
    assert!(
        written.contains(&"create StatefulSet a-group-1".to_owned()),
        "{written:?}"
    );
    let reasons = applied.problems().into_iter().map(|it| it.reason);
    assert!(reasons.eq(["NewerOperator"; 2]), "{:?}", applied.problems());
}

#[test]
fn the_status_of_a_newer_operator_is_left_alone_while_that_may_be_there() {
    let memory = Memory::default();
    let start = Instant::now();
    let of = |version: Option<&str>, config_num| ShardKvClusterStatus {
        operator_version: version.map(str::to_owned),
        config_num: Some(config_num),
        ..ShardKvClusterStatus::default()
    };
    let leaves = |status: &ShardKvClusterStatus, minutes: u64| {
        let now = start + Duration::from_secs(minutes * 60);
        memory.leaves_status("ns", "a", Some(status), now)
    };
    for own in [
        None,
        Some("0.0.1"),
        Some("nonsense"),
        Some(env!("CARGO_PKG_VERSION")),
    ] {
        assert!(!leaves(&of(own, 1), 0), "{own:?}");
    }
    assert!(!memory.leaves_status("ns", "a", None, start));
    let newer = |num| of(Some("99.0.0"), num);
    assert!(leaves(&newer(1), 0) && leaves(&newer(1), 9));
    // It has written again, so it is there.
    assert!(leaves(&newer(2), 10) && leaves(&newer(2), 19));
    // It hasn't for ten minutes: an operator that was downgraded brings the status up to date.
    assert!(!leaves(&newer(2), 20));
    // It is there after all, and gets more time.
    assert!(leaves(&newer(2), 21) && leaves(&newer(2), 40));
    assert!(!leaves(&newer(2), 41));
    assert!(leaves(&newer(2), 42) && leaves(&newer(2), 81));
    // What this operator says itself has its version.
    let own = Scene::serving().told();
    assert_eq!(
        own.operator_version.as_deref(),
        Some(env!("CARGO_PKG_VERSION"))
    );
}

/// A pod as Kubernetes would make it of a `StatefulSet`.
fn pod_of(set: &DynamicObject) -> Pod {
    let pod = json!({"metadata": {"name": format!("{}-0", set.name_any())}, "spec": set.data["spec"]["template"]["spec"]});
    serde_json::from_value(pod).unwrap()
}

#[test]
fn options_stay_as_long_as_a_pod_or_a_stateful_set_mounts_them() {
    let mut scene = Scene::made();
    let before = config_name(&scene.desired.cluster);
    let set = scene.observed.children[&(Kind::Set, "a-group-1".to_owned())].clone();
    scene.desired.cluster.spec.options.lease_reads = Some(true);
    let after = config_name(&scene.desired.cluster);
    // The new file is another object, which is written before any StatefulSet mounts it. The old one doesn't change.
    let mut writes = vec![format!("create ConfigMap {after}")];
    let sets = ["a-controller", "a-group-1", "a-group-2"];
    writes.extend(sets.map(|set| format!("apply StatefulSet {set}")));
    assert_eq!(all(&scene.prepared()), writes);
    let now_mounts = |scene: &mut Scene, pods: &[Pod]| {
        let mut made = Scene::new();
        made.desired = scene.desired.clone();
        let steps = made.prepared().steps.into_iter();
        for write in steps.flat_map(|step| step.writes) {
            let Write::Create(wanted) = write else {
                panic!("{write:?}");
            };
            let object = created(&wanted);
            let cluster = &made.desired.cluster;
            made.observed
                .add_object(cluster, wanted.kind, object, &now())
                .unwrap();
        }
        let key = (Kind::Config, before.clone());
        let old = scene.observed.children[&key].clone();
        made.observed.children.insert(key, old);
        let cluster = &made.desired.cluster;
        made.observed.add_pods(cluster, &[], pods, &now());
        made
    };
    // A pod that isn't replaced yet may start again at any time.
    let old_pod = pod_of(&set);
    let mut rolling = now_mounts(&mut scene, &[old_pod]);
    assert_eq!(rolling.prepared(), Prepared::default());
    let mut rolled = now_mounts(&mut scene, &[]);
    let deletes = [format!("delete ConfigMap {before}")];
    assert_eq!(all(&rolled.prepared()), deletes);
    // Kubernetes may not have seen the new template, and make a pod of the old one.
    rolled.set(Component::Group(2)).unseen = true;
    assert_eq!(rolled.prepared(), Prepared::default());
    rolled.set(Component::Group(2)).unseen = false;
    // A config map of another name isn't options of the cluster.
    let key = (Kind::Config, before.clone());
    let other = rolled.observed.children.remove(&key).unwrap();
    let key = (Kind::Config, "a-dashboard".to_owned());
    rolled.observed.children.insert(key, other);
    assert_eq!(rolled.prepared(), Prepared::default());
    // Nothing is removed while the cluster is paused.
    rolling.desired.intent = Intent::Pause;
    assert_eq!(rolling.prepared(), Prepared::default());
}
