//! Machines of the test Kubernetes of `deploy/kube`.

use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client};

use crate::tools::{checkout, holds, run, say, try_run, until};

/// Returns true if the tests may stop machines: only on the Kubernetes of `deploy/kube`.
pub(crate) fn are_ours() -> bool {
    let ours = std::env::var_os("E2E_OWN_KUBERNETES").is_some();
    if !ours {
        println!(
            "skipped: this Kubernetes isn't the one of deploy/kube, so its machines are not stopped"
        );
    }
    ours
}

/// Kills a machine, like a power failure.
pub(crate) async fn kill(machine: &str) {
    run(&checkout("deploy/kube/node"), &["kill", number(machine)]).await;
}

/// Starts a machine again.
pub(crate) async fn start(machine: &str) {
    run(&checkout("deploy/kube/node"), &["start", number(machine)]).await;
}

/// Kills all machines and the control plane, and starts everything again.
pub(crate) async fn restart_all() {
    run(&checkout("deploy/kube/down"), &["--keep"]).await;
    run(&checkout("deploy/kube/up"), &[]).await;
}

/// Starts the control plane and each machine, if they are stopped. Only prints errors.
pub(crate) async fn start_all() {
    let mut outcomes = vec![try_run(&checkout("deploy/kube/up"), &[]).await];
    for number in ["1", "2", "3"] {
        outcomes.push(try_run(&checkout("deploy/kube/node"), &["start", number]).await);
    }
    for error in outcomes.into_iter().filter_map(Result::err) {
        say(&format!("not started again: {error:#}"));
    }
}

fn number(machine: &str) -> &str {
    machine.trim_start_matches("node")
}

/// Waits until Kubernetes reports a machine as ready, or as not ready.
pub(crate) async fn is_ready(client: &Client, machine: &str, wanted: bool) {
    let nodes = Api::<Node>::all(client.clone());
    until(&format!("{machine} is ready: {wanted}"), async || {
        let node = nodes.get(machine).await?;
        let conditions = node
            .status
            .and_then(|status| status.conditions)
            .unwrap_or_default();
        let ready = conditions
            .iter()
            .any(|it| it.type_ == "Ready" && it.status == "True");
        holds(ready == wanted, format!("ready: {ready}"))
    })
    .await;
}
