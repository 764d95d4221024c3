//! A namespace, and the client pod in it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::tools::{feed, image, run, try_run, until};

/// A namespace of a scenario. Clones are the same.
#[derive(Clone)]
pub(crate) struct Space {
    /// Its name.
    pub(crate) name: String,
    /// The API server.
    pub(crate) client: Client,
    /// All namespaces of the scenario.
    all: Arc<Mutex<Vec<String>>>,
}

impl Space {
    /// Makes the first namespace of a scenario. What an interrupted run left under that name goes first.
    pub(crate) async fn create(scenario: &str) -> Self {
        let client = Client::try_default()
            .await
            .expect("KUBECONFIG names a Kubernetes");
        let all = Arc::default();
        Self::named(format!("e2e-{scenario}"), client, all).await
    }

    /// Makes one more.
    pub(crate) async fn another(&self, suffix: &str) -> Self {
        let name = format!("{}-{suffix}", self.name);
        Self::named(name, self.client.clone(), self.all.clone()).await
    }

    async fn named(name: String, client: Client, all: Arc<Mutex<Vec<String>>>) -> Self {
        all.lock().unwrap().push(name.clone());
        remove(&name)
            .await
            .unwrap_or_else(|error| panic!("{error}"));
        let manifest = json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": {
                "pod-security.kubernetes.io/enforce": "restricted",
                // By this `run.sh` finds what an interrupted run left.
                "shardkv.io/e2e": "true",
            }},
        });
        let space = Self { name, client, all };
        space.apply(&manifest).await;
        space
    }

    /// The names of all namespaces of the scenario.
    pub(crate) fn names(&self) -> Vec<String> {
        self.all.lock().unwrap().clone()
    }

    /// Removes all namespaces of the scenario. Says what can't be removed, and fails nothing by it: the scenario is over.
    pub(crate) async fn remove(&self) {
        for name in self.names() {
            if let Err(error) = remove(&name).await {
                println!("{name} can't be removed: {error}");
            }
        }
    }

    /// `kubectl apply`.
    pub(crate) async fn apply(&self, manifest: &Value) {
        let text = manifest.to_string();
        feed("kubectl", &["apply", "-f", "-"], text.as_bytes())
            .await
            .unwrap_or_else(|error| panic!("{error}"));
    }

    /// `kubectl` in this namespace.
    pub(crate) async fn kubectl(&self, args: &[&str]) -> String {
        run("kubectl", &self.args(args)).await
    }

    /// `kubectl` in this namespace, which may fail.
    pub(crate) async fn try_kubectl(&self, args: &[&str]) -> Result<String, String> {
        try_run("kubectl", &self.args(args)).await
    }

    fn args<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        [&["--namespace", &self.name], args].concat()
    }

    /// The objects of a kind in this namespace.
    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// The pods with these labels.
    pub(crate) async fn pods(&self, labels: &str) -> Result<Vec<Pod>, kube::Error> {
        let list = ListParams::default().labels(labels);
        Ok(self.api::<Pod>().list(&list).await?.items)
    }

    /// Starts the pod that [`Self::shardkv`] runs commands in, away from these machines.
    ///
    /// The image has no shell and no sleep: `shardkv shell` waits on its standard input, which nobody closes.
    pub(crate) async fn start_client(&self, away_from: &[&str]) {
        let mut manifest = self.pod("client", away_from, &["shell"]);
        // As the first process of its container it isn't ended by SIGTERM.
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

    /// Runs the command line in the client pod, with this standard input.
    pub(crate) async fn shardkv(&self, args: &[&str], input: &[u8]) -> Result<String, String> {
        let exec = ["exec", "-i", "client", "--", "shardkv"];
        feed("kubectl", &self.args(&[&exec, args].concat()), input).await
    }

    /// A pod that runs the command line, as the profile `restricted` wants it.
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
        until("the end of all pods", async || {
            let pods = self.pods(labels).await.map_err(|error| error.to_string())?;
            let left: Vec<_> = pods
                .into_iter()
                .filter_map(|pod| pod.metadata.name)
                .collect();
            crate::tools::holds(left.is_empty(), format!("{left:?}"))
        })
        .await;
    }

    /// Of each object of our kinds in this namespace its version, by kind and name.
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

/// Removes a namespace: first the clusters in it, by their operator, then the rest.
async fn remove(name: &str) -> Result<(), String> {
    let gone = ["get", "namespace", name, "--ignore-not-found", "-o", "name"];
    if try_run("kubectl", &gone).await?.is_empty() {
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
