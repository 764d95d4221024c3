use std::fmt::Write as _;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference, Time};
use k8s_openapi::jiff::Timestamp;
use shardkv_client::{AutoCompaction, Gid, Keyspace, KeyspaceOptions, ShardId};

use super::plan::{Asked, ClusterSeen, ServiceSeen, State, Step, decide, silence};
use super::{service, spread};
use crate::build::tests::named;
use crate::crd::{
    DeletionPolicy, GroupPhase, GroupStatus, ShardKvClusterStatus, ShardKvKeyspaceStatus,
};
use crate::store::StoreError;
use crate::validate::keyspace::{InvalidKeyspace, Names};
use crate::yaml;

fn options(quota: u64) -> KeyspaceOptions {
    KeyspaceOptions {
        quota_bytes: Some(quota),
        auto_compaction: AutoCompaction::None,
    }
}

fn keyspace(id: u64) -> Keyspace {
    Keyspace {
        name: "orders.team-x".to_owned(),
        cluster_id: id,
        options: options(100),
        revision: 5,
        compacted: None,
        bytes: 10,
        no_space: false,
        auth_enabled: false,
        shard: ShardId(3),
        gid: Gid(1),
    }
}

/// A keyspace in use.
fn state() -> State {
    State {
        name: "orders.team-x".to_owned(),
        cluster_name: "demo".to_owned(),
        policy: DeletionPolicy::Retain,
        deleting: false,
        has_finalizer: false,
        options: Ok(options(100)),
        known_id: Some(format!("{:016x}", 7)),
        cluster: ClusterSeen::Found,
        service: ServiceSeen::Settled,
        asked: Asked::Yes(Ok(Some(keyspace(7)))),
        hurries: false,
    }
}

/// Returns the plan as one line: steps, status and reason.
fn planned(change: impl FnOnce(&mut State)) -> String {
    let mut state = state();
    change(&mut state);
    let plan = decide(&state);
    let mut line = String::new();
    for step in &plan.steps {
        let _ = match step {
            Step::AddFinalizer => write!(line, "+finalizer "),
            Step::RemoveFinalizer => write!(line, "-finalizer "),
            Step::Create(_) => write!(line, "create "),
            Step::Adopt(it) => write!(line, "adopt {} ", it.cluster_id),
            Step::SetOptions(it, _) => write!(line, "set {} ", it.cluster_id),
            Step::ApplyService => write!(line, "service "),
            Step::Delete { keyspace, hurries } => {
                write!(line, "delete {} hurries={hurries} ", keyspace.cluster_id)
            }
            Step::ReportLeft(why) => write!(line, "left({why}) "),
        };
    }
    let holds = plan
        .verdict
        .holds
        .map_or("Unknown".to_owned(), |it| it.to_string());
    format!("{line}{holds} {}", plan.verdict.reason)
}

fn unreachable() -> Asked {
    Asked::Yes(Err(StoreError::Unreachable("down".to_owned())))
}

#[test]
fn a_keyspace_in_use_needs_no_step() {
    assert_eq!(planned(|_| {}), "true Served");
    let full = Keyspace {
        no_space: true,
        auth_enabled: false,
        ..keyspace(7)
    };
    let asked = Asked::Yes(Ok(Some(full)));
    assert_eq!(planned(|it| it.asked = asked), "false QuotaExhausted");
}

#[test]
fn a_new_resource_creates_its_keyspace_or_takes_it_over() {
    let new = |it: &mut State| {
        it.known_id = None;
        it.service = ServiceSeen::Differs;
    };
    let created = planned(|it| {
        new(it);
        it.asked = Asked::Yes(Ok(None));
    });
    assert_eq!(created, "create service true Served");
    assert_eq!(planned(new), "adopt 7 service true Served");
    let protected = planned(|it| {
        new(it);
        it.asked = Asked::Yes(Ok(None));
        it.policy = DeletionPolicy::Delete;
    });
    assert_eq!(protected, "+finalizer create service true Served");
}

#[test]
fn a_keyspace_that_is_gone_is_not_made_again() {
    let lost = planned(|it| it.asked = Asked::Yes(Ok(None)));
    assert_eq!(lost, "false KeyspaceLost");
    let other = planned(|it| it.asked = Asked::Yes(Ok(Some(keyspace(8)))));
    assert_eq!(other, "adopt 8 true Served");
}

#[test]
fn changed_options_are_set() {
    assert_eq!(
        planned(|it| it.options = Ok(options(9))),
        "set 7 true Served"
    );
}

#[test]
fn an_obstacle_keeps_off_the_keyspace_and_the_service() {
    for (cluster, expected) in [
        (ClusterSeen::Absent, "false ClusterNotFound"),
        (ClusterSeen::Ends, "false ClusterDeleted"),
        (ClusterSeen::NotAdmitted, "false NotAdmitted"),
        (
            ClusterSeen::Unreadable("forbidden".to_owned()),
            "Unknown ClusterUnreadable",
        ),
    ] {
        let new = |it: &mut State| {
            it.cluster = cluster;
            it.service = ServiceSeen::Differs;
            it.asked = Asked::Yes(Ok(None));
            it.known_id = None;
        };
        assert_eq!(planned(new), expected);
    }
    for (service, expected) in [
        (
            ServiceSeen::Taken("Service x".to_owned()),
            "false ServiceNameTaken",
        ),
        (ServiceSeen::Waits("x".to_owned()), "false ServiceNotReady"),
    ] {
        let new = |it: &mut State| {
            it.service = service;
            it.asked = Asked::Yes(Ok(None));
            it.known_id = None;
        };
        assert_eq!(planned(new), expected);
    }
    let invalid = InvalidKeyspace::TwoCompactions;
    assert_eq!(planned(|it| it.options = Err(invalid)), "false InvalidSpec");
}

#[test]
fn a_store_that_cannot_be_asked_leaves_the_state_unknown_and_the_service_right() {
    for (asked, expected) in [
        (unreachable(), "service Unknown StoreUnreachable"),
        (
            Asked::No("no leader".to_owned()),
            "service Unknown StoreUnreachable",
        ),
        (
            Asked::Yes(Err(StoreError::Refused("no".to_owned()))),
            "service false StoreRefused",
        ),
    ] {
        let unasked = |it: &mut State| {
            it.asked = asked;
            it.service = ServiceSeen::Differs;
        };
        assert_eq!(planned(unasked), expected);
    }
}

#[test]
fn the_finalizer_follows_the_policy() {
    let deletes = planned(|it| it.policy = DeletionPolicy::Delete);
    assert_eq!(deletes, "+finalizer true Served");
    assert_eq!(
        planned(|it| it.has_finalizer = true),
        "-finalizer true Served"
    );
    // Also while nothing else can be done: the resource may be deleted then.
    let invalid = planned(|it| {
        it.has_finalizer = true;
        it.cluster = ClusterSeen::Absent;
    });
    assert_eq!(invalid, "-finalizer false ClusterNotFound");
}

#[test]
fn a_deletion_never_hangs() {
    type Change<'a> = &'a dyn Fn(&mut State);
    let ended = |change: Change<'_>| {
        let plan = planned(|it| {
            it.deleting = true;
            it.has_finalizer = true;
            it.policy = DeletionPolicy::Delete;
            change(it);
        });
        plan.strip_suffix("false Deleting")
            .unwrap()
            .trim()
            .to_owned()
    };
    let table: [(Change<'_>, &str); 11] = [
        (&|it| it.policy = DeletionPolicy::Retain, "-finalizer"),
        (&|it| it.has_finalizer = false, ""),
        (&|_| {}, "delete 7 hurries=false -finalizer"),
        (&|it| it.hurries = true, "delete 7 hurries=true -finalizer"),
        (&|it| it.asked = Asked::Yes(Ok(None)), "-finalizer"),
        (&|it| it.asked = unreachable(), ""),
        (
            &|it| (it.asked, it.hurries) = (unreachable(), true),
            "left(its cluster doesn't answer) -finalizer",
        ),
        (
            &|it| it.cluster = ClusterSeen::Absent,
            "left(its cluster is gone) -finalizer",
        ),
        (
            &|it| it.cluster = ClusterSeen::Ends,
            "left(its cluster is being deleted) -finalizer",
        ),
        (
            &|it| it.cluster = ClusterSeen::NotAdmitted,
            "left(its cluster doesn't list this namespace) -finalizer",
        ),
        (
            &|it| it.cluster = ClusterSeen::Unreadable("no".to_owned()),
            "",
        ),
    ];
    for (change, expected) in table {
        assert_eq!(ended(change), expected);
    }
    // A keyspace that another one has replaced still has the name of the resource.
    let replaced = ended(&|it| it.asked = Asked::Yes(Ok(Some(keyspace(8)))));
    assert_eq!(replaced, "delete 8 hurries=false -finalizer");
}

#[test]
fn a_cluster_that_is_down_is_not_asked() {
    let cluster = |status: &str, reason: &str, leader: Option<&str>| ShardKvClusterStatus {
        conditions: vec![Condition {
            type_: "Available".to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: "why".to_owned(),
            observed_generation: None,
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
        }],
        groups: vec![GroupStatus {
            gid: 1,
            phase: GroupPhase::Serving,
            ready_replicas: 3,
            leader: leader.map(str::to_owned),
            shards: 1,
        }],
        ..ShardKvClusterStatus::default()
    };
    let of = |group| ShardKvKeyspaceStatus {
        group: Some(group),
        ..ShardKvKeyspaceStatus::default()
    };
    let serves = cluster("True", "AllServing", Some("a"));
    let creating = cluster("False", "Creating", None);
    let unknown = cluster("Unknown", "StoreUnreachable", Some("a"));
    let leaderless = cluster("False", "NoLeader", None);
    assert_eq!(silence(Some(&serves), None), None);
    assert_eq!(silence(Some(&serves), Some(&of(1))), None);
    assert_eq!(silence(Some(&leaderless), None), None);
    assert_eq!(silence(Some(&leaderless), Some(&of(2))), None);
    for (cluster, keyspace) in [
        (None, None),
        (Some(&creating), None),
        (Some(&unknown), Some(&of(1))),
        (Some(&leaderless), Some(&of(1))),
    ] {
        assert!(silence(cluster, keyspace).is_some(), "{cluster:?}");
    }
}

#[test]
fn many_keyspaces_are_looked_at_less_often() {
    use std::time::Duration;
    let secs = Duration::from_secs;
    assert_eq!(spread(secs(60), 10), secs(60));
    assert_eq!(spread(secs(60), 1_000), secs(200));
    assert_eq!(spread(secs(5), 10), secs(5));
    assert_eq!(spread(secs(5), 1_000), secs(20));
}

/// The services as the API server gets them: in the namespace of the cluster, and in another.
#[test]
fn services_have_the_name_that_clients_dial() {
    let cluster = named("demo");
    let names = |namespace: &str| Names {
        name: "orders".to_owned(),
        namespace: namespace.to_owned(),
        keyspace: format!("orders.{namespace}"),
        owner: OwnerReference {
            kind: "ShardKvKeyspace".to_owned(),
            name: "orders".to_owned(),
            uid: "u".to_owned(),
            ..OwnerReference::default()
        },
        cluster: (cluster.namespace.clone(), cluster.name.clone()),
        policy: DeletionPolicy::Retain,
    };
    let mut text = String::new();
    for namespace in [cluster.namespace.as_str(), "team-x"] {
        let names = names(namespace);
        let service = service::build(&names, &cluster, "cluster.local");
        let _ = write!(
            text,
            "--- # {}\n{}",
            service::endpoint(&names),
            yaml::write(&service).unwrap()
        );
    }
    let file =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/keyspaces/services.yaml");
    if std::env::var_os("UPDATE_GOLDENFILES").is_some() {
        std::fs::write(&file, &text).unwrap();
    }
    assert_eq!(std::fs::read_to_string(file).unwrap_or_default(), text);
}
