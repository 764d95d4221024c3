//! Machines and operator, which all scenarios share. Each scenario starts when they are ready, and repairs them if it fails, so
//! that one failure doesn't cause others.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use crate::machines;
use crate::operator;
use crate::tools::{holds, say, until};

/// Waits until every machine is ready and the operator is fully available. Fails the scenario before its start otherwise.
pub(crate) async fn are_ready(client: &Client) {
    let nodes = Api::<Node>::all(client.clone());
    until("before the scenario: all machines are ready", async || {
        let nodes = nodes.list(&ListParams::default()).await?.items;
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
            let deployment = deployments.get(operator::NAME).await?;
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

/// Starts what a failed scenario has stopped: the control plane, machines, the operator. Never fails, because the test must
/// report the failure of the scenario itself.
pub(crate) async fn repair() {
    if machines::are_ours() {
        machines::start_all().await;
    }
    if let Err(error) = operator::install() {
        say(&format!("the operator can't be installed again: {error:#}"));
    }
}

/// Returns true if a machine is ready and accepts pods.
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
