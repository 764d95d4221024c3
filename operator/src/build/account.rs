//! The account of the pods. They call no Kubernetes API: it has no rights, and no token is mounted.

use k8s_openapi::api::core::v1::ServiceAccount;

use super::{meta, names};
use crate::validate::Cluster;

pub(super) fn build(cluster: &Cluster) -> Option<ServiceAccount> {
    let wish = &cluster.spec.service_account;
    if wish.name.is_some() {
        return None;
    }
    let mut metadata = meta(cluster, names::node(cluster), names::selector(cluster));
    if !wish.annotations.is_empty() {
        metadata.annotations = Some(wish.annotations.clone());
    }
    Some(ServiceAccount {
        metadata,
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    })
}

/// The name of the account that the pods run as.
pub(super) fn name(cluster: &Cluster) -> String {
    let given = cluster.spec.service_account.name.clone();
    given.unwrap_or_else(|| names::node(cluster))
}
