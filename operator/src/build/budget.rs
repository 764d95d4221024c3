//! Protection from evictions: one node of a group at a time, whatever its size.
//!
//! A group of one may be evicted as well. Forbidding it would block the drain of its machine for ever, and whoever runs one copy
//! has chosen that it may be away.

use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::names::{self, Component};
use super::{matching, meta};
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
                // A pod that isn't ready holds nothing up: else a group that never comes up would block the drain of a machine.
                unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
                ..PodDisruptionBudgetSpec::default()
            }),
            ..PodDisruptionBudget::default()
        })
}
