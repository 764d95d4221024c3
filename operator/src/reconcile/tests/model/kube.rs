//! A model of what Kubernetes does with `StatefulSet`s: its controller, pods that start, fail and come back, and volumes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use kube::api::DynamicObject;
use serde_json::{Value, json};

use super::super::writes::{created, now};
use super::super::*;
use crate::build::names;
use crate::reconcile::wanted::{Key, Wanted};
use crate::validate::Cluster;

/// Ticks until a pod is ready, and until a node with an empty volume has caught up.
const START: u32 = 2;
const CATCH_UP: u32 = 3;
/// Part of the name of an image that no pod gets ready with.
pub(super) const BAD: &str = "bad";

/// A pod of a part.
pub(super) struct ModelPod {
    revision: String,
    age: u32,
    /// Ticks for which its machine is away.
    pub(super) away: u32,
    /// Ticks until its node has caught up.
    behind: u32,
}

/// A `StatefulSet` with its pods.
pub(super) struct ModelPart {
    pub(super) replicas: u32,
    /// The pods' templates, by revision.
    templates: BTreeMap<String, Value>,
    current: String,
    pub(super) update: String,
    /// True once the controller has seen the latest template.
    seen: bool,
    pub(super) pods: BTreeMap<u32, ModelPod>,
}

impl ModelPart {
    fn is_bad(&self, pod: &ModelPod) -> bool {
        let template = self.templates.get(&pod.revision);
        template.is_some_and(|it| it.to_string().contains(BAD))
    }

    pub(super) fn is_ready(&self, ordinal: u32) -> bool {
        let pod = self.pods.get(&ordinal);
        pod.is_some_and(|it| it.age >= START && it.away == 0 && !self.is_bad(it))
    }

    pub(super) fn ready(&self) -> u32 {
        let ready = (0..self.replicas).filter(|it| self.is_ready(*it));
        u32::try_from(ready.count()).unwrap()
    }

    pub(super) fn has_majority(&self) -> bool {
        self.ready() * 2 > self.replicas
    }

    pub(super) fn is_whole(&self) -> bool {
        self.ready() == self.replicas && self.pods.values().all(|it| it.behind == 0)
    }

    pub(super) fn rolls(&self) -> bool {
        self.current != self.update || self.pods.values().any(|it| it.revision != self.update)
    }

    pub(super) fn has_bad_pods(&self) -> bool {
        self.pods.values().any(|it| self.is_bad(it))
    }

    /// Returns true if replacing all pods, from the highest on and each once those above are ready, takes no majority away that is there.
    pub(super) fn survives_a_change(&self) -> bool {
        (0..self.replicas).all(|victim| {
            let others = (0..self.replicas).filter(|it| *it != victim);
            let ready = others
                .filter(|it| *it > victim || self.is_ready(*it))
                .count();
            !self.is_ready(victim) || ready * 2 > self.replicas as usize
        })
    }

    /// Replaces the highest pod of another revision, once all above it are ready.
    fn replace_next(&mut self) {
        for ordinal in (0..self.replicas).rev() {
            let old = |pod: &ModelPod| pod.revision != self.update;
            if self.pods.get(&ordinal).is_some_and(old) {
                self.pods.remove(&ordinal);
                return;
            }
            if !self.is_ready(ordinal) {
                return;
            }
        }
        self.current.clone_from(&self.update);
    }

    fn status(&self, generation: i64) -> Value {
        let updated = self.pods.values().filter(|it| it.revision == self.update);
        json!({
            "observedGeneration": generation - i64::from(!self.seen),
            "replicas": self.pods.len(),
            "readyReplicas": self.ready(),
            "updatedReplicas": updated.count(),
            "currentRevision": self.current,
            "updateRevision": if self.seen { &self.update } else { &self.current },
        })
    }
}

/// The objects of a cluster.
#[derive(Default)]
pub(super) struct Kube {
    pub(super) children: BTreeMap<Key, DynamicObject>,
    pub(super) parts: BTreeMap<Component, ModelPart>,
    /// Part and uid of each volume, by name.
    pub(super) volumes: BTreeMap<String, (Component, String)>,
    versions: u64,
}

fn revision(object: &DynamicObject) -> (String, Value) {
    let template = object.data["spec"]["template"].clone();
    let hash = names::fnv1a(template.to_string().as_bytes());
    (format!("{hash:x}"), template)
}

impl Kube {
    fn version(&mut self) -> String {
        self.versions += 1;
        self.versions.to_string()
    }

    /// Creates or replaces an object, as server-side apply does.
    pub(super) fn apply(&mut self, cluster: &Cluster, wanted: &Wanted) {
        let mut object = match self.children.get(&wanted.key()) {
            None => created(wanted),
            Some(live) => {
                let mut body = wanted.clone().body(Some(live));
                let generation = live.metadata.generation.unwrap_or(1) + 1;
                body["metadata"]["generation"] = json!(generation);
                serde_json::from_value(body).unwrap()
            }
        };
        object.metadata.resource_version = Some(self.version());
        object.metadata.generation.get_or_insert(1);
        if wanted.kind == Kind::Set {
            let part = names::part_of(cluster, &wanted.name).unwrap();
            let (update, template) = revision(&object);
            let replicas = object.data["spec"]["replicas"].as_u64().unwrap();
            let part = self.parts.entry(part).or_insert_with(|| ModelPart {
                replicas: u32::try_from(replicas).unwrap(),
                templates: BTreeMap::new(),
                current: update.clone(),
                update: update.clone(),
                seen: true,
                pods: BTreeMap::new(),
            });
            part.templates.insert(update.clone(), template);
            part.seen = false;
            part.update = update;
        }
        self.children.insert(wanted.key(), object);
    }

    /// Returns the revision that a wanted `StatefulSet` leads to.
    pub(super) fn revision_of(wanted: &Wanted) -> String {
        revision(&created(wanted)).0
    }

    pub(super) fn annotate(&mut self, live: &DynamicObject, key: &str, text: &str) {
        let version = self.version();
        let key = (key.to_owned(), text.to_owned());
        let object = self
            .children
            .get_mut(&(Kind::Set, live.name_any()))
            .unwrap();
        object.annotations_mut().extend([key]);
        object.metadata.resource_version = Some(version);
    }

    pub(super) fn delete_part(&mut self, cluster: &Cluster, part: Component) {
        self.parts.remove(&part);
        self.children
            .remove(&(Kind::Set, names::part(cluster, part)));
    }

    /// Advances time: machines come back, pods start, and the controller does its next step.
    pub(super) fn tick(&mut self, cluster: &Cluster) {
        for (of, part) in &mut self.parts {
            for pod in part.pods.values_mut() {
                if pod.away == 0 {
                    pod.age += 1;
                    pod.behind = pod.behind.saturating_sub(1);
                }
                pod.away = pod.away.saturating_sub(1);
            }
            part.seen = true;
            for ordinal in 0..part.replicas {
                if part.pods.contains_key(&ordinal) {
                    continue;
                }
                let updated = part
                    .pods
                    .iter()
                    .filter(|(_, it)| it.revision == part.update);
                let lowest = updated.map(|(ordinal, _)| *ordinal).min();
                let above = part
                    .pods
                    .range(ordinal..)
                    .all(|(_, it)| it.revision == part.update);
                let is_new = lowest.is_some_and(|it| ordinal > it) || above;
                let name = format!("data-{}-{ordinal}", names::part(cluster, *of));
                let is_empty = !self.volumes.contains_key(&name);
                if is_empty {
                    self.versions += 1;
                    let uid = self.versions.to_string();
                    self.volumes.insert(name, (*of, uid));
                }
                let pod = ModelPod {
                    revision: if is_new { &part.update } else { &part.current }.clone(),
                    age: 0,
                    away: 0,
                    behind: if is_empty { CATCH_UP } else { 0 },
                };
                part.pods.insert(ordinal, pod);
            }
            part.replace_next();
        }
    }

    /// A disk is lost with its machine: pod and volume are made anew.
    pub(super) fn lose_volume(&mut self, cluster: &Cluster, of: Component, ordinal: u32) {
        let name = format!("data-{}-{ordinal}", names::part(cluster, of));
        self.volumes.remove(&name);
        if let Some(part) = self.parts.get_mut(&of) {
            part.pods.remove(&ordinal);
        }
    }

    /// Returns the objects as the operator reads them.
    pub(super) fn objects(&self, cluster: &Cluster) -> Vec<(Kind, DynamicObject)> {
        let read = |((kind, name), object): (&Key, &DynamicObject)| {
            let mut object = object.clone();
            let part = names::part_of(cluster, name).filter(|_| *kind == Kind::Set);
            if let Some(part) = part.and_then(|it| self.parts.get(&it)) {
                let generation = object.metadata.generation.unwrap_or(1);
                object.data["status"] = part.status(generation);
            }
            (*kind, object)
        };
        self.children.iter().map(read).collect()
    }

    pub(super) fn claims(&self) -> Vec<PersistentVolumeClaim> {
        let claim = |(name, (_, uid)): (&String, &(Component, String))| {
            serde_json::from_value(json!({"metadata": {"name": name, "uid": uid}})).unwrap()
        };
        self.volumes.iter().map(claim).collect()
    }

    pub(super) fn pods(&self, cluster: &Cluster) -> Vec<Pod> {
        let of_part = |(of, part): (&Component, &ModelPart)| {
            let set = names::part(cluster, *of);
            let pod = |(ordinal, pod): (&u32, &ModelPod)| {
                let ready = if part.is_ready(*ordinal) {
                    "True"
                } else {
                    "False"
                };
                let waiting = part.is_bad(pod).then(|| {
                    json!([{"name": "node", "ready": false, "restartCount": 0, "image": "", "imageID": "",
                        "state": {"waiting": {"reason": "ImagePullBackOff"}}}])
                });
                serde_json::from_value(json!({
                    "metadata": {"name": format!("{set}-{ordinal}"), "creationTimestamp": now(),
                        "labels": {"controller-revision-hash": pod.revision}},
                    "spec": part.templates[&pod.revision]["spec"],
                    "status": {"conditions": [{"type": "Ready", "status": ready}], "containerStatuses": waiting},
                }))
                .unwrap()
            };
            part.pods.iter().map(pod).collect::<Vec<Pod>>()
        };
        self.parts.iter().flat_map(of_part).collect()
    }
}
