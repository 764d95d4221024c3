//! The work of Kubernetes' controllers and kubelets, as far as the operator sees it.

use serde_json::{Value, json};

use super::{KINDS, World, text};
use crate::raw;

impl World {
    /// Does the work of the StatefulSet controller and kubelets: creates volumes and reports ready pods, without pods.
    pub(super) async fn run(&self, set: &Value, claims: &[Value]) -> bool {
        let mut changed = false;
        let replicas = set["spec"]["replicas"].as_u64().unwrap();
        let name = text(set, "name");
        for template in set["spec"]["volumeClaimTemplates"].as_array().unwrap() {
            for ordinal in 0..replicas {
                let of = template["metadata"]["name"].as_str().unwrap();
                let claim_name = format!("{of}-{name}-{ordinal}");
                if claims.iter().any(|claim| text(claim, "name") == claim_name) {
                    continue;
                }
                let claim = json!({
                    "apiVersion": "v1",
                    "kind": "PersistentVolumeClaim",
                    "metadata": {"name": claim_name, "labels": template["metadata"]["labels"]},
                    "spec": template["spec"],
                });
                let path = format!(
                    "/api/v1/namespaces/{}/persistentvolumeclaims",
                    self.namespace
                );
                raw::post(&self.admin, &path, &claim).await.good();
                changed = true;
            }
        }
        let status = json!({
            "replicas": replicas,
            "readyReplicas": replicas,
            "availableReplicas": replicas,
            "currentReplicas": replicas,
            "updatedReplicas": replicas,
            "observedGeneration": set["metadata"]["generation"],
            "currentRevision": "1",
            "updateRevision": "1",
        });
        let stale = status
            .as_object()
            .unwrap()
            .iter()
            .any(|(key, value)| set["status"][key] != *value);
        if stale {
            let path = format!("{}/status", self.path_of_object("statefulsets", set));
            raw::merge(&self.admin, &path, &json!({"status": status}))
                .await
                .good();
        }
        changed || stale
    }

    /// Does the work of the garbage collector: deletes the objects of a deleted resource.
    pub(super) async fn collect(&self, resource: Option<&Value>) -> bool {
        let foreground = |object: &Value| {
            let finalizers = object["metadata"]["finalizers"].as_array();
            let mut finalizers = finalizers.into_iter().flatten();
            finalizers.any(|it| it == "foregroundDeletion")
        };
        if resource.is_some_and(|it| !foreground(it)) {
            return false;
        }
        let mut changed = false;
        let mut left = 0;
        for (_, plural) in KINDS {
            for object in self.list(plural).await {
                if object["metadata"]["ownerReferences"].is_null() {
                    continue;
                }
                left += 1;
                let path = self.path_of_object(plural, &object);
                let answer = raw::delete(&self.admin, &path, &Value::Null).await;
                assert!(matches!(answer.status, 200 | 404), "{answer:?}");
                changed = true;
            }
        }
        if let Some(resource) = resource
            && left == 0
        {
            let finalizers = resource["metadata"]["finalizers"].as_array().unwrap();
            let others = finalizers.iter().filter(|it| *it != "foregroundDeletion");
            let others: Vec<_> = others.collect();
            let patch = json!({"metadata": {"finalizers": others}});
            raw::merge(&self.admin, &self.path(), &patch).await.good();
            changed = true;
        }
        changed
    }
}
