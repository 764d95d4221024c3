//! Objects that stand in files: each must be what the API server takes.

use std::path::{Path, PathBuf};

use kube::Client;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::apiserver::ApiServer;
use crate::definition::namespace;
use crate::raw;

/// The folder of the whole project.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All documents of a YAML file, or of all of a folder, with the names of their files.
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

/// Where an object of this kind is; all that our files have.
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
async fn samples_are_taken_as_they_are() {
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
async fn what_is_built_is_taken_without_a_warning_and_its_pods_too_where_they_are_restricted() {
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
        // Whatever namespace it is for.
        object["metadata"]["namespace"] = json!("prod");
        let answer = dry_run(&client, &object, "prod").await;
        assert!(
            answer.status < 300 && answer.warnings.is_empty(),
            "{}: {answer:?}",
            file.display()
        );
        if object["kind"] == "StatefulSet" {
            take_pod(&client, &object).await;
            pods += 1;
        }
    }
    assert!(pods >= 6, "{pods}");
}

/// Would a pod of this StatefulSet be taken? Its account must be there, as the admission of accounts has no dry run.
async fn take_pod(client: &Client, set: &Value) {
    let template = &set["spec"]["template"];
    let account = template["spec"]["serviceAccountName"].as_str().unwrap();
    let object =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account}});
    let path = format!("/api/v1/namespaces/prod/serviceaccounts/{account}?fieldManager=test");
    raw::apply(client, &path, &object).await.good();
    let name = format!("{}-0", set["metadata"]["name"].as_str().unwrap());
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"], "spec": template["spec"]});
    pod["metadata"]["name"] = json!(name);
    // As the StatefulSet's controller mounts the volumes that it makes.
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
