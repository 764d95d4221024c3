//! The objects that a cluster consists of: the third of reconcile's five steps, pure, one file a kind.
//!
//! What is built is all that server-side apply is to own, and nothing else: fields that the API server defaults or other
//! controllers write are left out, so that applying the same cluster twice changes nothing.
//!
//! A group's objects are built for the gids that [`crate::plan`] says exist, never for `1..=groups`.

mod account;
mod budget;
mod config;
pub mod names;
mod network;
mod service;
mod stateful_set;
#[cfg(test)]
pub(crate) mod tests;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use std::collections::BTreeMap;

use crate::plan::Stage;
use crate::validate::Cluster;
pub use names::Component;

/// Where nodes serve clients and each other.
pub const CLIENT_PORT: i32 = 7400;
/// Where nodes serve `/metrics`, `/livez` and `/readyz`.
pub const METRICS_PORT: i32 = 7401;
/// The annotation of a group's StatefulSet that says how far its life is; see [`Stage`].
pub const STAGE_ANNOTATION: &str = "shardkv.io/stage";

/// What all pods of a cluster share.
#[derive(Clone, Debug)]
pub struct Common {
    /// The options file.
    pub config: ConfigMap,
    /// The account, unless the user has brought one.
    pub account: Option<ServiceAccount>,
    /// Who may talk to the pods, and to whom they may talk.
    pub network: NetworkPolicy,
    /// Where clients connect.
    pub client: Service,
}

/// What the controllers, or a group, consist of.
#[derive(Clone, Debug)]
pub struct Nodes {
    /// Gives each pod its name.
    pub service: Service,
    /// The pods and their volumes.
    pub set: StatefulSet,
    /// Protection from evictions, if it is wanted.
    pub budget: Option<PodDisruptionBudget>,
}

/// The objects that there is one of, however many groups there are.
pub fn common(cluster: &Cluster) -> Common {
    Common {
        config: config::build(cluster),
        account: account::build(cluster),
        network: network::build(cluster),
        client: service::client(cluster),
    }
}

/// The controllers' objects.
pub fn controllers(cluster: &Cluster) -> Nodes {
    nodes(cluster, Component::Controller, None)
}

/// A group's objects.
pub fn group(cluster: &Cluster, gid: u64, stage: Stage) -> Nodes {
    nodes(cluster, Component::Group(gid), Some(stage))
}

fn nodes(cluster: &Cluster, part: Component, stage: Option<Stage>) -> Nodes {
    Nodes {
        service: service::headless(cluster, part),
        set: stateful_set::build(cluster, part, stage),
        budget: budget::build(cluster, part),
    }
}

/// What stands at the head of every object.
fn meta(cluster: &Cluster, name: String, labels: BTreeMap<String, String>) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(cluster.namespace.clone()),
        labels: Some(names::owned(labels)),
        owner_references: Some(vec![cluster.owner.clone()]),
        ..ObjectMeta::default()
    }
}

fn matching(labels: BTreeMap<String, String>) -> LabelSelector {
    LabelSelector {
        match_labels: Some(labels),
        ..LabelSelector::default()
    }
}
