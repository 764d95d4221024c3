//! The observed state of a cluster: the value that a round starts from. Pure.
//!
//! This module decides which objects belong to a cluster. Children are objects whose controller is the resource, by
//! uid: an object that only resembles a child, or belonged to a deleted resource of the same name, isn't a child.
//! Volumes have no owner, because they outlive the resource; the name that Kubernetes gives them and the labels
//! identify them.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use kube::api::DynamicObject;

use super::ordinals::{self, Ordinals};
use super::pods::{self, Trouble};
use super::wanted::{Key, Tried, is_owned_by, outranked};
use crate::build::{STAGE_ANNOTATION, config_name, names};
use crate::crd::{GroupPhase, ShardKvCluster, ShardKvClusterStatus};
use crate::parts::{Component, Kind};
use crate::plan::{Object, Pods, Set, Stage, State};
use crate::store::{Health, StoreError, View};
use crate::validate::{Cluster, Desired};

/// Finalizer that keeps a deleted resource until its volumes are deleted.
pub const FINALIZER: &str = "shardkv.io/drain";

/// Annotation of a resource whose changes are written also where Kubernetes would take the majority of a part away: `true`.
const ACCEPT_OUTAGE: &str = "shardkv.io/accept-outage";

/// Usual time until pods are ready, with a margin.
const STARTING_SECONDS: i64 = 60;

/// Observed state of a cluster.
#[derive(Clone, Debug)]
pub(super) struct Observed {
    /// The resource.
    pub(super) resource: ShardKvCluster,
    /// True if the namespace is being deleted, and the objects can't be read any more.
    pub(super) namespace_ends: bool,
    /// Objects that the resource owns.
    pub(super) children: BTreeMap<Key, DynamicObject>,
    /// Relevant facts of its `StatefulSet`s.
    pub(super) sets: BTreeMap<Component, ObservedSet>,
    /// The config maps that `StatefulSet`s and pods mount.
    pub(super) mounted: BTreeSet<String>,
    /// The cluster's volumes.
    pub(super) volumes: Vec<Volume>,
    /// Pods that don't run, with the reasons.
    pub(super) pods: BTreeMap<Component, Vec<Trouble>>,
    /// Its pods by ordinal.
    pub(super) ordinals: BTreeMap<Component, Ordinals>,
    /// Answer of the controllers; `None` if they weren't asked.
    pub(super) view: Option<Result<View, StoreError>>,
    /// Health of the nodes.
    pub(super) health: BTreeMap<Component, Health>,
    /// Groups that are waited for, if shards are to move and nothing has moved for too long.
    pub(super) stalled: Option<BTreeSet<u64>>,
    /// Content that was applied to a version of an object without effect.
    pub(super) fruitless: BTreeMap<Key, Tried>,
}

/// Relevant facts of a `StatefulSet`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ObservedSet {
    pub(super) object: Object,
    pub(super) stage: Stage,
    /// Number of pods wanted.
    pub(super) replicas: i32,
    /// Number of pods that exist.
    pub(super) existing: i32,
    pub(super) ready: i32,
    /// Number of pods of the latest revision; `None` once all pods are of that revision, and ready.
    pub(super) rolling: Option<i32>,
    /// The latest revision.
    pub(super) revision: String,
    /// True if Kubernetes hasn't handled the latest change yet, so that it may still start a pod as it was before.
    pub(super) unseen: bool,
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

impl Observed {
    /// Returns the observed state of a resource of which nothing else was read.
    pub(super) fn new(resource: ShardKvCluster) -> Self {
        Self {
            resource,
            namespace_ends: false,
            children: BTreeMap::new(),
            sets: BTreeMap::new(),
            mounted: BTreeSet::new(),
            volumes: Vec::new(),
            pods: BTreeMap::new(),
            ordinals: BTreeMap::new(),
            view: None,
            health: BTreeMap::new(),
            stalled: None,
            fruitless: BTreeMap::new(),
        }
    }

    /// Adds an object that has the cluster's labels, if it is a child.
    pub(super) fn add_object(
        &mut self,
        cluster: &Cluster,
        kind: Kind,
        object: DynamicObject,
        now: &Time,
    ) -> Result<(), serde_json::Error> {
        if !is_owned_by(&object, &cluster.owner.uid) {
            return Ok(());
        }
        let name = object.name_any();
        if let (Kind::Set, Some(part)) = (kind, names::part_of(cluster, &name)) {
            let set: StatefulSet = serde_json::from_value(serde_json::to_value(&object)?)?;
            let stage = stage(&set).unwrap_or_else(|| Stage::implied(self.phase(part)));
            self.sets.insert(part, observe_set(&set, stage, now));
            let template = set.spec.and_then(|spec| spec.template.spec);
            self.mounted.extend(template.iter().flat_map(mounted));
        }
        self.children.insert((kind, name), object);
        Ok(())
    }

    /// Sets the cluster's volumes and pods from the lists of objects that have its labels.
    pub(super) fn add_pods(
        &mut self,
        cluster: &Cluster,
        volumes: &[PersistentVolumeClaim],
        pods: &[Pod],
        now: &Time,
    ) {
        let volumes = volumes.iter();
        self.volumes = volumes.filter_map(|it| volume(cluster, it)).collect();
        self.pods = pods::troubles(cluster, pods, now);
        self.ordinals = ordinals::by_part(cluster, pods);
        let specs = pods.iter().filter_map(|pod| pod.spec.as_ref());
        self.mounted.extend(specs.flat_map(mounted));
    }

    /// Returns the parts with fewer pods than wanted, with the uids of their `StatefulSet`s.
    pub(super) fn lacking(&self) -> BTreeMap<Component, String> {
        let sets = self.sets.iter();
        let lacking = sets.filter(|(_, set)| set.existing < set.replicas);
        lacking
            .map(|(part, set)| (*part, set.object.uid.clone()))
            .collect()
    }

    /// Adds pods that Kubernetes can't create.
    pub(super) fn add_unmade(&mut self, unmade: BTreeMap<Component, Trouble>) {
        for (part, trouble) in unmade {
            self.pods.entry(part).or_default().push(trouble);
        }
    }

    /// Returns the current status.
    pub(super) fn status(&self) -> ShardKvClusterStatus {
        self.resource.status.clone().unwrap_or_default()
    }

    /// Returns true if the operator's finalizer is set.
    pub(super) fn has_finalizer(&self) -> bool {
        self.resource.finalizers().iter().any(|it| it == FINALIZER)
    }

    /// Returns true if the resource is marked for deletion and its objects are to stay (`kubectl delete
    /// --cascade=orphan`).
    pub(super) fn orphans(&self) -> bool {
        let finalizers = self.resource.finalizers();
        self.resource.metadata.deletion_timestamp.is_some()
            && finalizers.iter().any(|it| it == "orphan")
    }

    /// Returns the controllers' answer, if there is one.
    pub(super) fn view(&self) -> Option<&View> {
        self.view.as_ref().and_then(|view| view.as_ref().ok())
    }

    /// Returns the volumes of some parts, without those that are being deleted.
    pub(super) fn volumes_of(&self, of: impl Fn(Component) -> bool) -> Vec<&Volume> {
        let volumes = self.volumes.iter();
        volumes
            .filter(|volume| of(volume.part) && !volume.terminating)
            .collect()
    }

    /// Returns the config maps with options that nothing uses: no pod, no `StatefulSet`, and none that is to come. A newer operator may
    /// have written one that it is about to use.
    fn unused_options(&self, cluster: &Cluster) -> BTreeSet<String> {
        if self.sets.values().any(|set| set.unseen) {
            return BTreeSet::new();
        }
        let present = config_name(cluster);
        let is_unused = |((kind, name), object): &(&Key, &DynamicObject)| {
            *kind == Kind::Config
                && names::is_config(cluster, name)
                && *name != present
                && !self.mounted.contains(name)
                && outranked(*kind, object).is_none()
        };
        let unused = self.children.iter().filter(is_unused);
        unused.map(|((_, name), _)| name.clone()).collect()
    }

    /// Returns a `StatefulSet` that a newer operator applied last, as readable text.
    pub(super) fn outranked(&self) -> Option<String> {
        let mut children = self.children.iter();
        children.find_map(|((kind, _), live)| match kind {
            Kind::Set => outranked(*kind, live),
            _ => None,
        })
    }

    /// Returns the plan's input.
    pub(super) fn state(&self, desired: &Desired) -> State {
        let cluster = &desired.cluster;
        let recorded = self.resource.status.as_ref().and_then(|it| it.last_gid);
        let sets = self.sets.iter();
        let sets = sets.filter_map(|(part, set)| Some((part.gid()?, self.set(*part, set)?)));
        let volumes = self.volumes_of(|_| true);
        let controllers = self.sets.get(&Component::Controller);
        let satellites = self.children.keys().filter_map(|(kind, name)| {
            let is_satellite = matches!(kind, Kind::Service | Kind::Budget);
            let part = names::part_of(cluster, name).filter(|_| is_satellite)?;
            Some((part, *kind))
        });
        State {
            intent: desired.intent,
            has_finalizer: self.has_finalizer(),
            left_alone: self.orphans() || self.namespace_ends,
            on_group_removal: cluster.spec.storage.on_group_removal,
            on_cluster_deletion: cluster.spec.storage.on_cluster_deletion,
            recorded_gid: recorded.and_then(|gid| gid.try_into().ok()).unwrap_or(0),
            controllers: controllers.map(|set| set.object.clone()),
            pods: self
                .sets
                .iter()
                .map(|(part, set)| (*part, self.pods_of(*part, set)))
                .collect(),
            controller_volumes: volumes.iter().any(|it| it.part == Component::Controller),
            sets: sets.collect(),
            volumes: volumes.iter().filter_map(|it| it.part.gid()).collect(),
            satellites: satellites.collect(),
            unused_options: self.unused_options(cluster),
            store: self.view().map(|view| view.plan.clone()),
        }
    }

    /// Returns the phase of a group in the status.
    fn phase(&self, part: Component) -> Option<GroupPhase> {
        let gid = part.gid()?;
        let status = self.resource.status.as_ref();
        let mut groups = status.iter().flat_map(|status| &status.groups);
        let group = groups.find(|it| u64::try_from(it.gid) == Ok(gid));
        group.map(|group| group.phase)
    }

    /// Returns the state of a part's pods.
    fn pods_of(&self, part: Component, set: &ObservedSet) -> Pods {
        let troubles = self.pods.get(&part);
        let curable = troubles.is_some_and(|all| all.iter().any(|it| it.curable));
        let pods = self.ordinals.get(&part).cloned().unwrap_or_default();
        let (replicas, ready) = (set.replicas, set.ready);
        let has_majority = pods.has_majority(replicas, ready);
        let is_safe = pods.keeps_majority(replicas, ready) || self.accepts_outage();
        let rolls = set.rolling.is_some() || pods.differ_from(&set.revision);
        let complete = ready >= replicas && pods.all_ready(replicas) && !set.object.terminating;
        match (rolls, has_majority) {
            (true, _) if is_safe || !has_majority => Pods::Rolling,
            (_, false) => Pods::Broken,
            (false, true) if curable && is_safe => Pods::Curable,
            (false, true) if complete && self.is_whole(part) => Pods::Whole,
            (_, true) => Pods::Short,
        }
    }

    /// Returns true if a person accepts that a change takes the majority of a part away.
    fn accepts_outage(&self) -> bool {
        let annotation = self.resource.annotations().get(ACCEPT_OUTAGE);
        annotation.is_some_and(|it| it == "true")
    }

    /// Returns true if the nodes of a part whose pods are ready are well. If no node of any part can be asked, readiness alone counts: a
    /// ready node votes, knows a leader and has caught up.
    fn is_whole(&self, part: Component) -> bool {
        let asked = self.health.values().any(|it| it.answering > 0);
        !asked || self.health.get(&part).is_some_and(|it| it.whole)
    }

    fn set(&self, part: Component, set: &ObservedSet) -> Option<Set> {
        part.gid()?;
        let health = self.health.get(&part);
        Some(Set {
            object: set.object.clone(),
            stage: set.stage,
            has_leader: health.is_some_and(|health| health.leader.is_some()),
            has_served: self.phase(part) == Some(GroupPhase::Serving),
        })
    }
}

/// Returns the plan's view of an object.
pub(super) fn object(meta: &impl ResourceExt) -> Object {
    Object {
        uid: meta.uid().unwrap_or_default(),
        version: meta.resource_version().unwrap_or_default(),
        terminating: meta.meta().deletion_timestamp.is_some(),
    }
}

/// Returns the stage in an object's annotation, unless somebody removed or garbled it.
pub(super) fn stage(object: &impl ResourceExt) -> Option<Stage> {
    let annotation = object.annotations().get(STAGE_ANNOTATION)?;
    Stage::named(annotation)
}

fn observe_set(set: &StatefulSet, stage: Stage, now: &Time) -> ObservedSet {
    let born = set.metadata.creation_timestamp.as_ref();
    let age = born.map(|born| now.0.as_second() - born.0.as_second());
    let replicas = set.spec.as_ref().and_then(|spec| spec.replicas);
    let replicas = replicas.unwrap_or(1);
    let status = set.status.clone().unwrap_or_default();
    // Without a status, no Kubernetes controller has handled the `StatefulSet` yet; other fields already show that it
    // is new.
    let unseen = status.observed_generation < set.metadata.generation;
    let updated = status.updated_replicas.unwrap_or(0);
    // The revisions are equal again when all pods are of the latest revision, and ready; or at once, if a change is taken back.
    let mixed = status.update_revision != status.current_revision;
    let rolling = (status.observed_generation.is_some() && (unseen || mixed))
        .then_some(if unseen { 0 } else { updated });
    ObservedSet {
        object: object(set),
        stage,
        replicas,
        existing: status.replicas,
        ready: status.ready_replicas.unwrap_or(0),
        rolling,
        revision: status.update_revision.unwrap_or_default(),
        unseen,
        young: age.is_some_and(|age| age < STARTING_SECONDS),
    }
}

/// Returns the names of the config maps that a pod mounts.
fn mounted(pod: &PodSpec) -> impl Iterator<Item = String> {
    let volumes = pod.volumes.iter().flatten();
    volumes.filter_map(|volume| Some(volume.config_map.as_ref()?.name.clone()))
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
