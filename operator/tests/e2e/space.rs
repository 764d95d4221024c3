//! A namespace, and the client pod in it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::tools::{feed, image, must, run, try_run, until};

/// A namespace of a scenario. Clones refer to the same namespace.
#[derive(Clone)]
pub(crate) struct Space {
    /// Name of the namespace.
    pub(crate) name: String,
    /// Client of the API server.
    pub(crate) client: Client,
    /// Names of all namespaces of the scenario.
    all: Arc<Mutex<Vec<String>>>,
}

impl Space {
    /// Creates the first namespace of a scenario. Deletes the namespace first if an interrupted run left it.
    pub(crate) async fn create(scenario: &str) -> Self {
        let client = Client::try_default()
            .await
            .expect("KUBECONFIG names a Kubernetes");
        let all = Arc::default();
        Self::named(format!("e2e-{scenario}"), client, all).await
    }

    /// Creates another namespace of the scenario.
    pub(crate) async fn another(&self, suffix: &str) -> Self {
        let name = format!("{}-{suffix}", self.name);
        Self::named(name, self.client.clone(), self.all.clone()).await
    }

    async fn named(name: String, client: Client, all: Arc<Mutex<Vec<String>>>) -> Self {
        all.lock().unwrap().push(name.clone());
        must(remove(&name).await);
        let manifest = json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": {
                "pod-security.kubernetes.io/enforce": "restricted",
                // `run.sh` finds namespaces of interrupted runs by this label.
                "shardkv.io/e2e": "true",
            }},
        });
        let space = Self { name, client, all };
        space.apply(&manifest).await;
        space
    }

    /// Returns the names of all namespaces of the scenario.
    pub(crate) fn names(&self) -> Vec<String> {
        self.all.lock().unwrap().clone()
    }

    /// Removes all namespaces of the scenario. Only prints errors, because the scenario is over.
    pub(crate) async fn remove(&self) {
        for name in self.names() {
            if let Err(error) = remove(&name).await {
                println!("{name} can't be removed: {error:#}");
            }
        }
    }

    /// Runs `kubectl apply`, which must succeed.
    pub(crate) async fn apply(&self, manifest: &Value) {
        let text = manifest.to_string();
        must(feed("kubectl", &["apply", "-f", "-"], text.as_bytes()).await);
    }

    /// Runs `kubectl` in this namespace. The command must succeed.
    pub(crate) async fn kubectl(&self, args: &[&str]) -> String {
        run("kubectl", &self.args(args)).await
    }

    /// Runs `kubectl` in this namespace.
    pub(crate) async fn try_kubectl(&self, args: &[&str]) -> anyhow::Result<String> {
        try_run("kubectl", &self.args(args)).await
    }

    /// Runs `kubectl` in this namespace with this standard input.
    pub(crate) async fn feed_kubectl(&self, args: &[&str], input: &[u8]) -> anyhow::Result<String> {
        feed("kubectl", &self.args(args), input).await
    }

    fn args<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        [&["--namespace", &self.name], args].concat()
    }

    /// Returns the API for objects of a kind in this namespace.
    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// Lists the pods with these labels.
    pub(crate) async fn pods(&self, labels: &str) -> Result<Vec<Pod>, kube::Error> {
        let list = ListParams::default().labels(labels);
        Ok(self.api::<Pod>().list(&list).await?.items)
    }

    /// Starts the client pod, in which [`Self::shardkv`] runs commands, on none of these machines.
    ///
    /// The image has no shell and no sleep: the pod runs `shardkv shell`, whose standard input stays open.
    pub(crate) async fn start_client(&self, away_from: &[&str]) {
        let mut manifest = self.pod("client", away_from, &["shell"]);
        // SIGTERM doesn't end the first process of a container.
        manifest["spec"]["terminationGracePeriodSeconds"] = 1.into();
        self.apply(&manifest).await;
        self.kubectl(&[
            "wait",
            "pod/client",
            "--for=condition=Ready",
            "--timeout=120s",
        ])
        .await;
    }

    /// Runs the CLI in the client pod, with this standard input.
    pub(crate) async fn shardkv(&self, args: &[&str], input: &[u8]) -> anyhow::Result<String> {
        let exec = ["exec", "-i", "client", "--", "shardkv"];
        self.feed_kubectl(&[&exec, args].concat(), input).await
    }

    /// Returns the manifest of a pod that runs the CLI and satisfies the profile `restricted`.
    pub(crate) fn pod(&self, name: &str, away_from: &[&str], command: &[&str]) -> Value {
        let command = [&["shardkv"], command].concat();
        let affinity = (!away_from.is_empty()).then(|| {
            let machines = json!({"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": away_from},
            ]});
            json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [machines],
            }}})
        });
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": self.name},
            "spec": {
                "restartPolicy": "Never",
                "affinity": affinity,
                "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [{
                    "name": "shardkv",
                    "image": image(),
                    "imagePullPolicy": "IfNotPresent",
                    "command": command,
                    "stdin": true,
                    "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "256Mi"}},
                    "securityContext": {
                        "allowPrivilegeEscalation": false,
                        "readOnlyRootFilesystem": true,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }],
            },
        })
    }

    /// Waits until no pod with these labels is left.
    pub(crate) async fn no_pods(&self, labels: &str) {
        until("all pods are deleted", async || {
            let pods = self.pods(labels).await?;
            let left: Vec<_> = pods
                .into_iter()
                .filter_map(|pod| pod.metadata.name)
                .collect();
            crate::tools::holds(left.is_empty(), format!("{left:?}"))
        })
        .await;
    }

    /// Returns the resource version of each object in this namespace, by kind and name. Covers the operator's kinds and events.
    pub(crate) async fn versions(&self) -> BTreeMap<String, String> {
        let kinds = "skv,statefulset,service,configmap,serviceaccount,networkpolicy,poddisruptionbudget,pvc,event.events.k8s.io";
        let columns = r#"jsonpath={range .items[*]}{.kind}/{.metadata.name} {.metadata.resourceVersion}{"\n"}{end}"#;
        let text = self.kubectl(&["get", kinds, "-o", columns]).await;
        let pairs = text.lines().filter_map(|line| line.split_once(' '));
        pairs
            .map(|(name, version)| (name.to_owned(), version.to_owned()))
            .collect()
    }
}

/// Removes a namespace. Deletes its clusters first, while the operator can finish their deletion.
async fn remove(name: &str) -> anyhow::Result<()> {
    let get = ["get", "namespace", name, "--ignore-not-found", "-o", "name"];
    if try_run("kubectl", &get).await?.is_empty() {
        return Ok(());
    }
    let clusters = [
        "delete",
        "skv",
        "--all",
        "--namespace",
        name,
        "--timeout=120s",
    ];
    let deleted = try_run("kubectl", &clusters).await;
    try_run("kubectl", &["delete", "namespace", name, "--timeout=120s"]).await?;
    deleted.map(|_| ())
}
