//! Objects in files: the API server must accept each of them.

use std::path::{Path, PathBuf};

use kube::Client;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::apiserver::ApiServer;
use crate::definition::namespace;
use crate::raw;

/// Returns the root folder of the project.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Returns all documents of a YAML file, or of all YAML files in a folder, with their paths.
pub(crate) fn documents(of: &Path) -> Vec<(PathBuf, Value)> {
    let mut found = Vec::new();
    let files = if of.is_dir() {
        let entries = std::fs::read_dir(of).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    } else {
        vec![of.to_owned()]
    };
    for path in files {
        if path
            .extension()
            .is_none_or(|it| it != "yaml" && it != "yml")
        {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for document in serde_yaml::Deserializer::from_str(&text) {
            let value = Value::deserialize(document).unwrap();
            if value.is_object() {
                found.push((path.clone(), value));
            }
        }
    }
    assert!(!found.is_empty(), "no YAML in {}", of.display());
    found
}

/// Returns the API path of an object. Supports the kinds that the project's files use.
pub(crate) fn path_of(object: &Value, namespace: &str) -> String {
    let version = object["apiVersion"].as_str().unwrap();
    let base = if version.contains('/') {
        format!("/apis/{version}")
    } else {
        format!("/api/{version}")
    };
    let kind = object["kind"].as_str().unwrap();
    let singular = kind.to_ascii_lowercase();
    let plural = match singular.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None if singular.ends_with('s') => format!("{singular}es"),
        None => format!("{singular}s"),
    };
    let name = object["metadata"]["name"].as_str().unwrap();
    match kind {
        "Namespace" | "StorageClass" | "PriorityClass" | "ClusterRole" | "ClusterRoleBinding" => {
            format!("{base}/{plural}/{name}")
        }
        _ => format!("{base}/namespaces/{namespace}/{plural}/{name}"),
    }
}

async fn dry_run(client: &Client, object: &Value, namespace: &str) -> raw::Answer {
    let path = format!(
        "{}?dryRun=All&fieldValidation=Strict&fieldManager=test",
        path_of(object, namespace)
    );
    raw::apply(client, &path, object).await
}

#[tokio::test]
async fn samples_are_accepted() {
    let client = ApiServer::shared().admin();
    for (file, object) in documents(&root().join("deploy/samples")) {
        let answer = dry_run(&client, &object, "default").await;
        assert!(
            answer.status < 300 && answer.warnings.is_empty(),
            "{}: {answer:?}",
            file.display()
        );
    }
}

#[tokio::test]
async fn built_objects_and_their_pods_are_accepted_in_a_restricted_namespace() {
    let client = ApiServer::shared().admin();
    let restricted = json!({"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/warn": "restricted"});
    namespace(&client, "prod", &restricted).await;
    let priority = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "important"}, "value": 5});
    raw::post(
        &client,
        "/apis/scheduling.k8s.io/v1/priorityclasses",
        &priority,
    )
    .await
    .good();
    let mut pods = 0;
    for (file, mut object) in documents(&root().join("operator/tests/objects")) {
        // The golden files have different namespaces.
        object["metadata"]["namespace"] = json!("prod");
        let answer = dry_run(&client, &object, "prod").await;
        assert!(
            answer.status < 300 && answer.warnings.is_empty(),
            "{}: {answer:?}",
            file.display()
        );
        if object["kind"] == "StatefulSet" {
            accepts_pod(&client, &object).await;
            pods += 1;
        }
    }
    assert!(pods >= 6, "{pods}");
}

/// Checks that a pod of this StatefulSet would be accepted. Creates its account first, because admission reads the account even
/// in a dry run.
async fn accepts_pod(client: &Client, set: &Value) {
    let template = &set["spec"]["template"];
    let account = template["spec"]["serviceAccountName"].as_str().unwrap();
    let object =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account}});
    let path = format!("/api/v1/namespaces/prod/serviceaccounts/{account}?fieldManager=test");
    raw::apply(client, &path, &object).await.good();
    let name = format!("{}-0", set["metadata"]["name"].as_str().unwrap());
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"], "spec": template["spec"]});
    pod["metadata"]["name"] = json!(name);
    // The StatefulSet controller mounts the claims that it creates.
    let volumes = pod["spec"]["volumes"].as_array_mut().unwrap();
    for claim in set["spec"]["volumeClaimTemplates"].as_array().unwrap() {
        let name = claim["metadata"]["name"].as_str().unwrap();
        volumes.push(json!({"name": name, "persistentVolumeClaim": {"claimName": name}}));
    }
    let answer = dry_run(client, &pod, "prod").await;
    assert!(
        answer.status < 300 && answer.warnings.is_empty(),
        "{name}: {answer:?}"
    );
}
