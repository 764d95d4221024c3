//! Service account of the pods. They don't call the Kubernetes API, so the account has no rights and no token is mounted.

use k8s_openapi::api::core::v1::ServiceAccount;

use super::meta::meta;
use super::names;
use crate::validate::Cluster;

pub(super) fn build(cluster: &Cluster) -> Option<ServiceAccount> {
    let spec = &cluster.spec.service_account;
    if spec.name.is_some() {
        return None;
    }
    let mut metadata = meta(cluster, names::node(cluster), names::selector(cluster));
    if !spec.annotations.is_empty() {
        metadata.annotations = Some(spec.annotations.clone());
    }
    Some(ServiceAccount {
        metadata,
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    })
}

/// Returns the name of the account that the pods run as.
pub(super) fn name(cluster: &Cluster) -> String {
    let given = cluster.spec.service_account.name.clone();
    given.unwrap_or_else(|| names::node(cluster))
}
