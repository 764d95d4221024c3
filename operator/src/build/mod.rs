//! Builds the Kubernetes objects of a cluster. Pure, one file per kind.
//!
//! The built objects contain exactly the fields that the operator owns by server-side apply. They leave out fields that the API
//! server defaults or other controllers write, so that applying the same cluster twice changes nothing.
//!
//! A group's objects are built for the gids that [`crate::plan`] returns, never for `1..=groups`.

mod account;
mod budget;
mod config;
mod meta;
pub mod names;
mod network;
mod ports;
mod service;
mod stateful_set;
#[cfg(test)]
pub(crate) mod tests;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;

pub use crate::parts::Component;
use crate::plan::Stage;
use crate::validate::Cluster;
pub use config::name as config_name;
pub use names::STAGE_ANNOTATION;
pub use ports::{CLIENT_PORT, ETCD_PORT, METRICS_PORT};
pub(crate) use service::etcd_port;

/// Objects that all pods of a cluster share.
#[derive(Clone, Debug)]
pub struct Common {
    /// The options file.
    pub config: ConfigMap,
    /// The service account, unless the spec names an existing one.
    pub account: Option<ServiceAccount>,
    /// Allowed connections from and to the pods.
    pub network: NetworkPolicy,
    /// The service for clients.
    pub client: Service,
}

/// Objects of the controllers, or of a group.
#[derive(Clone, Debug)]
pub struct Nodes {
    /// The headless service, which gives each pod its DNS name.
    pub service: Service,
    /// The pods and their volumes.
    pub set: StatefulSet,
    /// Protection from evictions, if enabled.
    pub budget: Option<PodDisruptionBudget>,
}

/// Builds the objects that exist once per cluster.
pub fn common(cluster: &Cluster) -> Common {
    Common {
        config: config::build(cluster),
        account: account::build(cluster),
        network: network::build(cluster),
        client: service::client(cluster),
    }
}

/// Builds the controllers' objects.
pub fn controllers(cluster: &Cluster) -> Nodes {
    nodes(cluster, Component::Controller, None)
}

/// Builds a group's objects.
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
