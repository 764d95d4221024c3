//! Pod disruption budget: at most one node of a part is evicted at a time, whatever the number of its nodes.
//!
//! This allows the eviction of a group's only node. A stricter budget would block the drain of its machine for ever, and a user
//! who runs a single copy accepts that it may be unavailable.

use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::meta::{matching, meta};
use super::names;
use crate::parts::Component;
use crate::validate::Cluster;

pub(super) fn build(cluster: &Cluster, part: Component) -> Option<PodDisruptionBudget> {
    let labels = names::part_selector(cluster, part);
    cluster
        .spec
        .pod_disruption_budget
        .enabled
        .then(|| PodDisruptionBudget {
            metadata: meta(cluster, names::part(cluster, part), labels.clone()),
            spec: Some(PodDisruptionBudgetSpec {
                max_unavailable: Some(IntOrString::Int(1)),
                selector: Some(matching(labels)),
                // Pods that aren't ready may be evicted: otherwise a group that never becomes ready would block the drain of a machine.
                unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
                ..PodDisruptionBudgetSpec::default()
            }),
            ..PodDisruptionBudget::default()
        })
}
