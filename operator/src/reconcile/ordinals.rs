//! Pods of a `StatefulSet` by their ordinals: whether the part keeps its majority if its template changes. Pure.
//!
//! Kubernetes replaces the pod with the highest ordinal first, also if a lower one is away, and goes on once the new pod is ready.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::build::names;
use crate::parts::Component;
use crate::validate::Cluster;

/// Label with the revision of a pod's template.
const REVISION: &str = "controller-revision-hash";

/// Listed pods of one part that aren't being deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ordinals {
    /// Readiness of the pods, by ordinal.
    ready: BTreeMap<u32, bool>,
    revisions: Vec<String>,
    terminating: usize,
}

/// Returns the pods of all parts.
pub(super) fn by_part(cluster: &Cluster, pods: &[Pod]) -> BTreeMap<Component, Ordinals> {
    let mut parts: BTreeMap<Component, Ordinals> = BTreeMap::new();
    for pod in pods {
        let name = pod.name_any();
        let ordinal = name.rsplit_once('-').and_then(|(_, it)| it.parse().ok());
        let (Some(part), Some(ordinal)) = (names::part_of_pod(cluster, &name), ordinal) else {
            continue;
        };
        parts.entry(part).or_default().add(ordinal, pod);
    }
    parts
}

impl Ordinals {
    fn add(&mut self, ordinal: u32, pod: &Pod) {
        // Kubernetes calls it ready until it has ended.
        if pod.metadata.deletion_timestamp.is_some() {
            self.terminating += 1;
            return;
        }
        let conditions = pod.status.iter().flat_map(|it| &it.conditions).flatten();
        let mut ready = conditions.filter(|it| it.type_ == "Ready");
        self.ready
            .insert(ordinal, ready.any(|it| it.status == "True"));
        self.revisions.extend(pod.labels().get(REVISION).cloned());
    }

    /// Returns true if a pod is of another revision.
    pub(super) fn differ_from(&self, revision: &str) -> bool {
        self.revisions.iter().any(|it| it != revision)
    }

    /// Returns the number of ready pods of `replicas`, of which Kubernetes reports `reported`.
    fn ready(&self, replicas: i32, reported: i32) -> i32 {
        if self.ready.is_empty() && self.terminating == 0 {
            return reported;
        }
        let ready = (0..replicas).filter(|it| self.is_ready(*it)).count();
        reported.min(i32::try_from(ready).unwrap_or(i32::MAX))
    }

    fn is_ready(&self, ordinal: i32) -> bool {
        let ordinal = u32::try_from(ordinal).unwrap_or(u32::MAX);
        self.ready.get(&ordinal).copied().unwrap_or(false)
    }

    /// Returns true if all pods are ready, as far as they are listed.
    pub(super) fn all_ready(&self, replicas: i32) -> bool {
        self.ready(replicas, replicas) == replicas
    }

    /// Returns true if a majority is ready.
    pub(super) fn has_majority(&self, replicas: i32, reported: i32) -> bool {
        self.ready(replicas, reported) * 2 > replicas
    }

    /// Returns true if a majority is ready, and stays so while Kubernetes replaces the pods: it has one to spare, or it replaces
    /// those first that aren't ready anyway.
    pub(super) fn keeps_majority(&self, replicas: i32, reported: i32) -> bool {
        let ready = self.ready(replicas, reported);
        let spare = (ready - 1) * 2 > replicas;
        let highest_first = ready == replicas || (0..ready).all(|it| self.is_ready(it));
        ready * 2 > replicas && (spare || highest_first)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::build::tests::named;

    fn pod(ordinal: u32, state: &str) -> Pod {
        let ready = if state == "ready" || state == "leaving" {
            "True"
        } else {
            "False"
        };
        let deleted = if state == "leaving" {
            json!("2026-01-01T00:00:00Z")
        } else {
            Value::Null
        };
        let pod = json!({
            "metadata": {"name": format!("a-group-1-{ordinal}"), "deletionTimestamp": deleted,
                "labels": {REVISION: format!("r{}", ordinal / 2)}},
            "status": {"conditions": [{"type": "Initialized", "status": "True"}, {"type": "Ready", "status": ready}]},
        });
        serde_json::from_value(pod).unwrap()
    }

    fn part(states: &[&str]) -> Ordinals {
        let pods = (0..).zip(states);
        let pods = pods.filter(|(_, state)| **state != "missing");
        let pods: Vec<Pod> = pods.map(|(ordinal, state)| pod(ordinal, state)).collect();
        let mut parts = by_part(&named("a"), &pods);
        parts.remove(&Component::Group(1)).unwrap_or_default()
    }

    #[test]
    fn a_change_must_not_cost_the_majority() {
        const R: &str = "ready";
        #[rustfmt::skip]
        let rows: &[(&[&str], i32, bool, bool)] = &[
            (&[R, R, R], 3, true, true),
            (&[R, R, "starts"], 2, true, true),
            (&[R, R, "missing"], 2, true, true),
            (&[R, "starts", R], 2, true, false),
            (&["missing", R, R], 2, true, false),
            // Kubernetes still counts a pod that ends as ready.
            (&["leaving", R, R], 3, true, false),
            (&[R, R, "leaving"], 3, true, true),
            (&["leaving", R, "leaving"], 3, false, false),
            (&["starts", "starts", R], 1, false, false),
            // Its report may be newer than the list.
            (&[R, R, R], 1, false, false),
            (&["starts", R, R, R, R], 4, true, true),
            (&["starts", R, R, R, "starts"], 3, true, false),
            (&[R, R, R, "starts", "starts"], 3, true, true),
            (&[R], 1, true, true),
            (&[R, R], 2, true, true),
            (&[R, "starts"], 1, false, false),
        ];
        for (states, reported, majority, kept) in rows {
            let part = part(states);
            let replicas = i32::try_from(states.len()).unwrap();
            let found = (
                part.has_majority(replicas, *reported),
                part.keeps_majority(replicas, *reported),
            );
            assert_eq!(found, (*majority, *kept), "{states:?} {reported}");
        }
        // Nothing is listed.
        let none = Ordinals::default();
        let found = [3, 2, 1].map(|it| (none.has_majority(3, it), none.keeps_majority(3, it)));
        assert_eq!(found, [(true, true), (true, false), (false, false)]);
    }

    #[test]
    fn pods_of_another_revision_are_found() {
        assert!(!part(&["ready", "starts"]).differ_from("r0"));
        assert!(part(&["ready", "ready", "starts"]).differ_from("r0"));
        assert!(!part(&["ready", "ready", "leaving"]).differ_from("r0"));
    }
}
