//! The first step: reads the observed state of a round, live.
//!
//! This module decides which objects belong to a cluster. Children are objects whose controller is the resource, by
//! uid: an object that only resembles a child, or belonged to a deleted resource of the same name, isn't a child.
//! Volumes have no owner, because they outlive the resource; the name that Kubernetes gives them and the labels
//! identify them.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::Duration;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use kube::api::DynamicObject;

use super::objects::{Kind, Objects, is_owned_by};
use super::pods::{self, Trouble};
use crate::build::{Component, STAGE_ANNOTATION, names};
use crate::crd::{GroupPhase, ShardKvClusterStatus};
use crate::plan::{Intent, Object, Observed, Set, Stage};
use crate::store::{Health, Store, StoreError, View};
use crate::validate::Cluster;

/// Time limit for any answer of the store, whatever its client promises.
const LONGEST_CALL: Duration = Duration::from_secs(15);

/// Usual time until pods are ready, with a margin.
const STARTING_SECONDS: i64 = 60;

/// Observed state of a cluster.
#[derive(Default)]
pub(super) struct Snapshot {
    /// Objects that the resource owns.
    pub(super) children: BTreeMap<(Kind, String), DynamicObject>,
    /// Relevant facts of its `StatefulSet`s.
    pub(super) sets: BTreeMap<Component, ObservedSet>,
    /// The cluster's volumes.
    pub(super) volumes: Vec<Volume>,
    /// Pods that don't run, with the reasons.
    pub(super) pods: BTreeMap<Component, Vec<Trouble>>,
    /// Answer of the controllers; `None` if they weren't asked.
    pub(super) view: Option<Result<View, StoreError>>,
    /// Health of the nodes.
    pub(super) health: BTreeMap<Component, Health>,
}

/// Relevant facts of a `StatefulSet`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ObservedSet {
    pub(super) object: Object,
    pub(super) stage: Stage,
    /// Number of pods wanted.
    pub(super) replicas: i32,
    pub(super) ready: i32,
    /// Number of pods of the latest revision; `None` once all pods are of that revision, and ready.
    pub(super) rolling: Option<i32>,
    /// True if the `StatefulSet` is so new that pods that aren't ready are still starting.
    pub(super) young: bool,
}

/// A volume of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Volume {
    pub(super) part: Component,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) terminating: bool,
}

/// Reads the observed state of a cluster. Asks the store only about parts that run, and not at all when the cluster is
/// to be deleted: deletion needs no answer.
pub(super) async fn observe<S: Store>(
    objects: &Objects<'_>,
    store: &S,
    cluster: &Cluster,
    deleting: bool,
    now: &Time,
) -> Result<Snapshot, kube::Error> {
    let labels = selector(&names::selector(cluster));
    let (found, volumes, pods) = tokio::try_join!(
        objects.list(&labels),
        objects.volumes(&labels),
        objects.pods(&labels)
    )?;
    let mut snapshot = Snapshot::default();
    for (kind, object) in found {
        if !is_owned_by(&object, &cluster.owner.uid) {
            continue;
        }
        let name = object.name_any();
        if let (Kind::Set, Some(part)) = (kind, names::part_of(cluster, &name)) {
            let parsed = object.clone().try_parse::<StatefulSet>();
            let set = parsed.map_err(|error| kube::Error::Service(error.into()))?;
            snapshot.sets.insert(part, observe_set(&set, now));
        }
        snapshot.children.insert((kind, name), object);
    }
    snapshot.volumes = volumes
        .iter()
        .filter_map(|it| volume(cluster, it))
        .collect();
    snapshot.pods = pods::troubles(cluster, &pods, now);
    if !deleting {
        query_store(store, cluster, &mut snapshot).await;
    }
    Ok(snapshot)
}

async fn query_store<S: Store>(store: &S, cluster: &Cluster, snapshot: &mut Snapshot) {
    if !snapshot.sets.contains_key(&Component::Controller) {
        return;
    }
    let parts: BTreeSet<Component> = snapshot.sets.keys().copied().collect();
    let health = tokio::time::timeout(LONGEST_CALL, store.health(cluster, &parts));
    let (view, health) = tokio::join!(bounded(store.view(cluster)), health);
    snapshot.view = Some(view);
    snapshot.health = health.unwrap_or_default();
}

/// Awaits an answer of the store, with a time limit.
pub(super) async fn bounded<T>(
    call: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let late = |_| Err(StoreError::Unreachable("no answer in time".to_owned()));
    tokio::time::timeout(LONGEST_CALL, call)
        .await
        .unwrap_or_else(late)
}

/// Formats labels as a selector for the API server.
pub(super) fn selector(labels: &BTreeMap<String, String>) -> String {
    let pairs = labels.iter().map(|(key, value)| format!("{key}={value}"));
    pairs.collect::<Vec<_>>().join(",")
}

/// Returns the plan's view of an object.
pub(super) fn object(meta: &impl ResourceExt) -> Object {
    Object {
        uid: meta.uid().unwrap_or_default(),
        version: meta.resource_version().unwrap_or_default(),
        terminating: meta.meta().deletion_timestamp.is_some(),
    }
}

/// Returns the stage in an object's annotation.
pub(super) fn stage(object: &impl ResourceExt) -> Stage {
    Stage::of(
        object
            .annotations()
            .get(STAGE_ANNOTATION)
            .map(String::as_str),
    )
}

fn observe_set(set: &StatefulSet, now: &Time) -> ObservedSet {
    let born = set.metadata.creation_timestamp.as_ref();
    let age = born.map(|born| now.0.as_second() - born.0.as_second());
    let replicas = set.spec.as_ref().and_then(|spec| spec.replicas);
    let replicas = replicas.unwrap_or(1);
    let status = set.status.clone().unwrap_or_default();
    // Without a status, no Kubernetes controller has handled the `StatefulSet` yet; other fields already show that it
    // is new.
    let unseen = status.observed_generation < set.metadata.generation;
    let updated = status.updated_replicas.unwrap_or(0);
    // The revisions are equal again when all pods are of the latest revision, and ready.
    let mixed = status.update_revision != status.current_revision;
    let rolling = (status.observed_generation.is_some() && (unseen || mixed))
        .then_some(if unseen { 0 } else { updated });
    ObservedSet {
        object: object(set),
        stage: stage(set),
        replicas,
        ready: status.ready_replicas.unwrap_or(0),
        rolling,
        young: age.is_some_and(|age| age < STARTING_SECONDS),
    }
}

fn volume(cluster: &Cluster, claim: &PersistentVolumeClaim) -> Option<Volume> {
    let name = claim.name_any();
    Some(Volume {
        part: names::part_of_volume(cluster, &name)?,
        uid: claim.uid()?,
        terminating: claim.metadata.deletion_timestamp.is_some(),
        name,
    })
}

/// Builds the plan's input from the snapshot and the previous status.
pub(super) fn observed(
    cluster: &Cluster,
    intent: Intent,
    snapshot: &Snapshot,
    before: &ShardKvClusterStatus,
) -> Observed {
    let live = || snapshot.volumes.iter().filter(|volume| !volume.terminating);
    let has_served = |gid: u64| {
        let mut groups = before.groups.iter();
        groups.any(|it| u64::try_from(it.gid) == Ok(gid) && it.phase == GroupPhase::Serving)
    };
    let sets = snapshot.sets.iter().filter_map(|(part, set)| {
        let gid = gid(*part)?;
        let health = snapshot.health.get(part);
        let set = Set {
            object: set.object.clone(),
            stage: set.stage,
            has_leader: health.is_some_and(|health| health.leader.is_some()),
            has_served: has_served(gid),
        };
        Some((gid, set))
    });
    let view = snapshot.view.as_ref().and_then(|view| view.as_ref().ok());
    Observed {
        intent,
        on_group_removal: cluster.spec.storage.on_group_removal,
        on_cluster_deletion: cluster.spec.storage.on_cluster_deletion,
        recorded_gid: before
            .last_gid
            .and_then(|gid| u64::try_from(gid).ok())
            .unwrap_or(0),
        controllers: snapshot
            .sets
            .get(&Component::Controller)
            .map(|set| set.object.clone()),
        controller_volumes: live().any(|volume| volume.part == Component::Controller),
        sets: sets.collect(),
        volumes: live().filter_map(|volume| gid(volume.part)).collect(),
        store: view.map(|view| view.plan.clone()),
    }
}

/// Returns the gid of a part, or `None` for the controllers.
pub(super) fn gid(part: Component) -> Option<u64> {
    match part {
        Component::Controller => None,
        Component::Group(gid) => Some(gid),
    }
}
