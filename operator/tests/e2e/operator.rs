//! The operator that all scenarios share.

use std::fs;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, bail};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use kube::{Api, Client, ResourceExt as _};

use crate::tools::{checkout, holds, run, say, try_run, until};

/// Namespace of the operator.
pub(crate) const NAMESPACE: &str = "shardkv-system";
/// Name of the Helm release, the Deployment and the Lease.
pub(crate) const NAME: &str = "shardkv-operator";

/// Installs the operator by Helm, once in a run.
pub(crate) fn install_once() {
    static INSTALLED: OnceLock<anyhow::Result<()>> = OnceLock::new();
    if let Err(error) = INSTALLED.get_or_init(install) {
        panic!("the operator can't be installed: {error:#}");
    }
}

/// Installs or upgrades the operator by Helm. Returns Helm's error output if that fails.
pub(crate) fn install() -> anyhow::Result<()> {
    let output = Command::new("helm").args(helm_install()).output();
    let output = output.context("helm")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// Returns the arguments of `helm` that install or upgrade the operator.
pub(crate) fn helm_install() -> Vec<String> {
    let image = image();
    let (repository, tag) = image.rsplit_once(':').expect("OPERATOR_IMAGE has a tag");
    let chart = checkout("charts/shardkv-operator");
    let words = [
        "upgrade",
        "--install",
        NAME,
        &chart,
        "--namespace",
        NAMESPACE,
    ];
    let more = ["--create-namespace", "--wait", "--timeout", "3m"];
    let settings = [
        format!("--set=image.repository={repository}"),
        format!("--set=image.tag={tag}"),
    ];
    let words = words.into_iter().chain(more).map(str::to_owned);
    words.chain(settings).collect()
}

/// Returns the operator's image.
pub(crate) fn image() -> String {
    std::env::var("OPERATOR_IMAGE")
        .unwrap_or_else(|_| format!("shardkv-operator:{}", env!("CARGO_PKG_VERSION")))
}

/// The active one of the two replicas of the operator: the holder of the Lease.
pub(crate) struct Operator {
    pods: Api<Pod>,
    leases: Api<Lease>,
}

impl Operator {
    pub(crate) fn new(client: &Client) -> Self {
        Self {
            pods: Api::namespaced(client.clone(), NAMESPACE),
            leases: Api::namespaced(client.clone(), NAMESPACE),
        }
    }

    /// Waits until a pod holds the Lease, is ready and isn't being deleted, and returns it.
    pub(crate) async fn pod(&self) -> Pod {
        until("an operator holds the Lease and is ready", async || {
            let lease = self.leases.get(NAME).await?;
            let holder = lease.spec.and_then(|spec| spec.holder_identity);
            let holder = holder.filter(|name| !name.is_empty());
            let holder = holder.context("the Lease has no holder")?;
            let pod = self.pods.get_opt(&holder).await?;
            pod.filter(is_ready)
                .with_context(|| format!("{holder} holds the Lease and isn't ready"))
        })
        .await
    }

    /// Returns the machine that the active replica runs on.
    pub(crate) async fn machine(&self) -> String {
        let spec = self.pod().await.spec;
        let machine = spec.and_then(|spec| spec.node_name);
        machine.expect("a ready pod has a machine")
    }

    /// Deletes the active replica's pod without a grace period. Returns when the pod is deleted, maybe before another acts.
    pub(crate) async fn kill(&self) {
        let pod = self.pod().await;
        let name = pod.name_any();
        let at_once = DeleteParams::default().grace_period(0);
        self.pods.delete(&name, &at_once).await.unwrap();
        until("the operator's pod is deleted", async || {
            let now = self.pods.get_opt(&name).await?;
            let deleted = now.is_none_or(|now| now.uid() != pod.uid());
            holds(deleted, "the pod still exists")
        })
        .await;
        say(&format!("killed {name}"));
    }

    /// Returns the sum of all samples of a metric whose line is `counted`. A counter without samples is 0.
    pub(crate) async fn metric(&self, name: &str, counted: impl Fn(&str) -> bool) -> f64 {
        let pod = self.pod().await.name_any();
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{pod}:8080/proxy/metrics");
        let text = run("kubectl", &["get", "--raw", &path]).await;
        assert!(
            text.contains(&format!("# TYPE {name} ")),
            "no {name} in\n{text}"
        );
        let samples = text
            .lines()
            .filter(|line| line.starts_with(name) && counted(line));
        samples
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
            .sum()
    }

    /// Returns the working set in bytes, as the kubelet measures it: without clean pages of the program's file.
    pub(crate) async fn working_set_bytes(&self) -> f64 {
        let pod = self.pod().await.name_any();
        let machine = self.machine().await;
        let path = format!("/api/v1/nodes/{machine}/proxy/metrics/resource");
        until("the kubelet has measured the operator", async || {
            let text = try_run("kubectl", &["get", "--raw", &path]).await?;
            let sample = text.lines().find(|line| {
                line.starts_with("container_memory_working_set_bytes{") && line.contains(&pod)
            });
            // The time of the measurement follows the value.
            let value = sample.and_then(|line| line.split(' ').nth(1)?.parse().ok());
            value.context("no sample for the operator's pod")
        })
        .await
    }

    /// Returns the resident memory in bytes, as the kernel of this machine counts it.
    pub(crate) async fn resident_bytes(&self) -> f64 {
        let uid = self.pod().await.uid().unwrap();
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let mut own = processes.filter_map(|process| {
            let read = |file: &str| fs::read_to_string(process.path().join(file)).ok();
            let is_it = read("cgroup")?.contains(&uid) && read("comm")?.starts_with("shardkv-op");
            let status = read("status").filter(|_| is_it)?;
            let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
            line.split_whitespace().nth(1)?.parse::<f64>().ok()
        });
        own.next()
            .expect("the operator is a process of this machine")
            * 1024.0
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let ready = conditions.is_some_and(|all| {
        all.iter()
            .any(|it| it.type_ == "Ready" && it.status == "True")
    });
    ready && pod.metadata.deletion_timestamp.is_none()
}
