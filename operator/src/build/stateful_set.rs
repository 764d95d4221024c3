//! StatefulSet of the controllers, or of a group.
//!
//! - All pods start at the same time: if they started one by one, the first pod of three would never become ready, because one
//!   node can't elect a leader. A rolling update replaces one pod at a time, and waits until it is ready.
//! - A pod that stops is first removed from the services' endpoints (the pause before SIGTERM). On SIGTERM the node transfers
//!   its leadership.
//! - Kubernetes never deletes the volumes. The operator deletes them when the spec says so and they hold no needed data.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{
    RollingUpdateStatefulSetStrategy, StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy,
    StatefulSetSpec, StatefulSetUpdateStrategy,
};
use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EnvVar, EnvVarSource,
    HTTPGetAction, Lifecycle, LifecycleHandler, LocalObjectReference, ObjectFieldSelector,
    PersistentVolumeClaim, PersistentVolumeClaimSpec, PodAffinityTerm, PodAntiAffinity,
    PodSecurityContext, PodSpec, PodTemplateSpec, Probe, SeccompProfile, SecurityContext,
    SleepAction, TopologySpreadConstraint, Volume, VolumeMount, VolumeResourceRequirements,
    WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::meta::{matching, meta};
use super::names::{self, STAGE_ANNOTATION};
use super::ports::{CLIENT_PORT, METRICS_PORT};
use super::{account, config};
use crate::parts::Component;
use crate::plan::Stage;
use crate::validate::Cluster;

/// User and group id that the node runs as.
const USER: i64 = 65_532;
/// Pause between the pod's removal from the endpoints and SIGTERM, in seconds.
const LEAVE_SECONDS: i64 = 2;
/// Time until the pod is killed, in seconds: the pause, the node's own orderly stop (at most 5), and a margin.
const GRACE_SECONDS: i64 = 30;
const DATA_FOLDER: &str = "/data";
const OPTIONS: &str = "options";
const OPTIONS_FOLDER: &str = "/etc/shardkv";

pub(super) fn build(cluster: &Cluster, part: Component, stage: Option<Stage>) -> StatefulSet {
    let labels = names::part_selector(cluster, part);
    let name = names::part(cluster, part);
    let mut metadata = meta(cluster, name.clone(), labels.clone());
    metadata.annotations =
        stage.map(|stage| [(STAGE_ANNOTATION.to_owned(), stage.name().to_owned())].into());
    StatefulSet {
        metadata,
        spec: Some(StatefulSetSpec {
            service_name: Some(name),
            replicas: Some(replicas(cluster, part)),
            pod_management_policy: Some("Parallel".to_owned()),
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateStatefulSetStrategy {
                    partition: Some(0),
                    ..RollingUpdateStatefulSetStrategy::default()
                }),
            }),
            persistent_volume_claim_retention_policy: Some(
                StatefulSetPersistentVolumeClaimRetentionPolicy {
                    when_deleted: Some("Retain".to_owned()),
                    when_scaled: Some("Retain".to_owned()),
                },
            ),
            revision_history_limit: Some(3),
            selector: matching(labels.clone()),
            template: template(cluster, part, labels.clone()),
            volume_claim_templates: Some(vec![claim(cluster, part, labels)]),
            ..StatefulSetSpec::default()
        }),
        ..StatefulSet::default()
    }
}

fn replicas(cluster: &Cluster, part: Component) -> i32 {
    match part {
        Component::Controller => cluster.controllers,
        Component::Group(_) => cluster.replicas,
    }
}

fn template(
    cluster: &Cluster,
    part: Component,
    labels: BTreeMap<String, String>,
) -> PodTemplateSpec {
    let spec = &cluster.spec.pod_template;
    let mut all = spec.labels.clone();
    all.extend(names::owned(labels));
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(all),
            annotations: some_map(spec.annotations.clone()),
            ..ObjectMeta::default()
        }),
        spec: Some(pod(cluster, part)),
    }
}

fn pod(cluster: &Cluster, part: Component) -> PodSpec {
    let spec = &cluster.spec;
    let scheduling = &spec.scheduling;
    let secrets = spec.image_pull_secrets.iter();
    let secrets = secrets.map(|secret| LocalObjectReference {
        name: secret.name.clone(),
    });
    PodSpec {
        service_account_name: Some(account::name(cluster)),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        image_pull_secrets: some(secrets.collect()),
        termination_grace_period_seconds: Some(GRACE_SECONDS),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            fs_group: Some(USER),
            fs_group_change_policy: Some("OnRootMismatch".to_owned()),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                localhost_profile: None,
            }),
            ..PodSecurityContext::default()
        }),
        affinity: Some(
            scheduling
                .affinity
                .clone()
                .unwrap_or_else(|| apart(cluster, part)),
        ),
        tolerations: some(scheduling.tolerations.clone()),
        node_selector: some_map(scheduling.node_selector.clone()),
        topology_spread_constraints: some(spread(cluster, part)),
        priority_class_name: scheduling.priority_class_name.clone(),
        containers: vec![node(cluster, part)],
        volumes: Some(vec![Volume {
            name: OPTIONS.to_owned(),
            config_map: Some(ConfigMapVolumeSource {
                // Another file has another name, so a change restarts the pods.
                name: config::name(cluster),
                ..ConfigMapVolumeSource::default()
            }),
            ..Volume::default()
        }]),
        ..PodSpec::default()
    }
}

/// Returns none for an empty list, because server-side apply would make the operator the owner of an empty list.
fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

/// Like [`some`], for maps.
fn some_map<K, V>(map: BTreeMap<K, V>) -> Option<BTreeMap<K, V>> {
    (!map.is_empty()).then_some(map)
}

/// Returns an affinity that prefers different machines for the nodes of a part. A strict rule would leave pods pending on small
/// clusters.
fn apart(cluster: &Cluster, part: Component) -> Affinity {
    Affinity {
        pod_anti_affinity: Some(PodAntiAffinity {
            preferred_during_scheduling_ignored_during_execution: Some(vec![
                WeightedPodAffinityTerm {
                    weight: 100,
                    pod_affinity_term: PodAffinityTerm {
                        topology_key: "kubernetes.io/hostname".to_owned(),
                        label_selector: Some(matching(names::part_selector(cluster, part))),
                        ..PodAffinityTerm::default()
                    },
                },
            ]),
            ..PodAntiAffinity::default()
        }),
        ..Affinity::default()
    }
}

fn spread(cluster: &Cluster, part: Component) -> Vec<TopologySpreadConstraint> {
    let own = matching(names::part_selector(cluster, part));
    let default = || {
        vec![TopologySpreadConstraint {
            max_skew: 1,
            topology_key: "topology.kubernetes.io/zone".to_owned(),
            when_unsatisfiable: "ScheduleAnyway".to_owned(),
            ..TopologySpreadConstraint::default()
        }]
    };
    let wanted = cluster.spec.scheduling.topology_spread_constraints.clone();
    let mut constraints = wanted.unwrap_or_else(default);
    for constraint in &mut constraints {
        constraint.label_selector.get_or_insert_with(|| own.clone());
    }
    constraints
}

fn node(cluster: &Cluster, part: Component) -> Container {
    let spec = &cluster.spec;
    let resources = match part {
        Component::Controller => &spec.controllers.resources,
        Component::Group(_) => &spec.resources,
    };
    let opened = |name: &str, number| ContainerPort {
        name: Some(name.to_owned()),
        container_port: number,
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    };
    let mount = |name: &str, path: &str, read_only: Option<bool>| VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only,
        ..VolumeMount::default()
    };
    Container {
        name: "node".to_owned(),
        image: Some(spec.image.clone()),
        image_pull_policy: Some(spec.image_pull_policy.name().to_owned()),
        args: Some(vec![
            "--config".to_owned(),
            format!("{OPTIONS_FOLDER}/{}", config::FILE),
        ]),
        env: Some(environment(cluster, part)),
        ports: Some(vec![
            opened("grpc", CLIENT_PORT),
            opened("metrics", METRICS_PORT),
        ]),
        resources: Some(resources.into()),
        volume_mounts: Some(vec![
            mount(names::CLAIM, DATA_FOLDER, None),
            mount(OPTIONS, OPTIONS_FOLDER, Some(true)),
        ]),
        // A node that reads a long log may need minutes to start. The other probes begin after the startup probe succeeds.
        startup_probe: Some(probe("/livez", 2, 300)),
        liveness_probe: Some(probe("/livez", 10, 6)),
        readiness_probe: Some(probe("/readyz", 2, 3)),
        lifecycle: Some(Lifecycle {
            pre_stop: Some(LifecycleHandler {
                sleep: Some(SleepAction {
                    seconds: LEAVE_SECONDS,
                }),
                ..LifecycleHandler::default()
            }),
            ..Lifecycle::default()
        }),
        // `kubectl describe pod` then shows the last log lines of a failed node, which name the cause.
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                add: None,
            }),
            ..SecurityContext::default()
        }),
        ..Container::default()
    }
}

/// Returns a node's environment variables. Only the pod's name is a reference; all other values are literal, so that the golden
/// files show them.
fn environment(cluster: &Cluster, part: Component) -> Vec<EnvVar> {
    let name = names::part(cluster, part);
    let mut variables = vec![
        EnvVar {
            name: "POD_NAME".to_owned(),
            value_from: Some(EnvVarSource {
                field_ref: Some(ObjectFieldSelector {
                    field_path: "metadata.name".to_owned(),
                    ..ObjectFieldSelector::default()
                }),
                ..EnvVarSource::default()
            }),
            ..EnvVar::default()
        },
        // Kubernetes expands POD_NAME, which must therefore come earlier in the list.
        set("ADVERTISE", names::address(cluster, &name, "$(POD_NAME)")),
        set(
            "CLUSTER_NAME",
            format!("{}/{}", cluster.namespace, names::base(cluster)),
        ),
        set("DATA_DIR", format!("{DATA_FOLDER}/node")),
        set("LISTEN", format!("0.0.0.0:{CLIENT_PORT}")),
        set("METRICS_LISTEN", format!("0.0.0.0:{METRICS_PORT}")),
        set("LOG_FORMAT", "json".to_owned()),
        set("PEERS", names::addresses(cluster, part).join(",")),
        set("SHARDS", cluster.shards.to_string()),
        // A client of etcd that dials one of these means no keyspace by it, and gets none: two API servers that are configured by the
        // address of the cluster must not share a store by accident.
        set("SERVICE_NAMES", names::services(cluster, part).join(",")),
        set("FALLBACK_KEYSPACE", "none".to_owned()),
    ];
    match part {
        Component::Controller => variables.push(set("ROLE", "controller".to_owned())),
        Component::Group(gid) => {
            let controllers = names::addresses(cluster, Component::Controller).join(",");
            variables.push(set("ROLE", "shards".to_owned()));
            variables.push(set("GID", gid.to_string()));
            variables.push(set("CONTROLLERS", controllers));
            variables.push(temporary_files());
        }
    }
    variables
}

/// Puts temporary files on the data volume, because the root file system is read-only. `shardkv export` in the pod holds each shard
/// in one until the shard is complete. The volume has room for a shard, as a volume of fixed size beside it might not.
fn temporary_files() -> EnvVar {
    EnvVar {
        name: "TMPDIR".to_owned(),
        value: Some(DATA_FOLDER.to_owned()),
        value_from: None,
    }
}

fn set(option: &str, value: String) -> EnvVar {
    EnvVar {
        name: format!("SHARDKV_{option}"),
        value: Some(value),
        value_from: None,
    }
}

fn probe(path: &str, period_seconds: i32, failure_threshold: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String("metrics".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        timeout_seconds: Some(2),
        failure_threshold: Some(failure_threshold),
        ..Probe::default()
    }
}

fn claim(
    cluster: &Cluster,
    part: Component,
    labels: BTreeMap<String, String>,
) -> PersistentVolumeClaim {
    let storage = &cluster.spec.storage;
    let size = match part {
        Component::Controller => &cluster.spec.controllers.size,
        Component::Group(_) => &storage.size,
    };
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(names::CLAIM.to_owned()),
            // The operator finds a group's volumes by these labels. Without an owner they outlive the resource.
            labels: Some(names::owned(labels)),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            storage_class_name: storage.class_name.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some([("storage".to_owned(), Quantity(size.clone()))].into()),
                limits: None,
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    }
}
