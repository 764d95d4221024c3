//! The surroundings that all scenarios share: every machine and the operator. Each scenario begins with them whole, and
//! repairs them if it fails, so that one failure doesn't bring about others.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use crate::machines;
use crate::operator;
use crate::tools::{holds, say, until};

/// Fails the scenario before it begins unless every machine is ready and the operator is fully available. What has just been
/// started again gets the usual time to become ready.
pub(crate) async fn are_whole(client: &Client) {
    let nodes = Api::<Node>::all(client.clone());
    until("before the scenario: all machines are ready", async || {
        let nodes = nodes.list(&ListParams::default()).await;
        let nodes = nodes.map_err(|error| error.to_string())?.items;
        let unready: BTreeSet<_> = nodes
            .iter()
            .filter(|node| !is_usable(node))
            .map(ResourceExt::name_any)
            .collect();
        holds(
            !nodes.is_empty() && unready.is_empty(),
            format!("not ready: {unready:?} of {}", nodes.len()),
        )
    })
    .await;
    let deployments = Api::<Deployment>::namespaced(client.clone(), operator::NAMESPACE);
    until(
        "before the scenario: the operator is available",
        async || {
            let deployment = deployments.get(operator::NAME).await;
            let deployment = deployment.map_err(|error| error.to_string())?;
            let wanted = deployment.spec.and_then(|spec| spec.replicas).unwrap_or(1);
            let available = deployment
                .status
                .and_then(|status| status.available_replicas)
                .unwrap_or(0);
            holds(
                available == wanted,
                format!("{available} of {wanted} pods are available"),
            )
        },
    )
    .await;
}

/// Starts whatever a failed scenario has left dead: Kubernetes itself, machines, the operator. Never fails, because the
/// scenario's own failure must be the one that is reported.
pub(crate) async fn repair() {
    if machines::are_ours() {
        machines::start_all().await;
    }
    if let Err(error) = operator::install() {
        say(&format!("the operator can't be installed again: {error}"));
    }
}

/// Returns whether a machine is ready and takes pods.
fn is_usable(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| &status.conditions);
    let ready = conditions
        .flatten()
        .any(|it| it.type_ == "Ready" && it.status == "True");
    let taints = node.spec.iter().flat_map(|spec| &spec.taints).flatten();
    let tainted = taints
        .into_iter()
        .any(|taint| taint.key.starts_with("node.kubernetes.io/"));
    ready && !tainted
}
