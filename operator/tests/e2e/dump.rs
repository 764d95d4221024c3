//! Writes the logs, events and objects of a failed scenario into a folder.

use std::fs;
use std::path::{Path, PathBuf};

use crate::operator;
use crate::space::Space;
use crate::tools::{checkout, try_run};

/// Writes logs, events and objects of a scenario's namespaces and of the operator, and prints the folder.
pub(crate) async fn dump(scenario: &str, space: &Space) {
    let folder = folder(scenario);
    for namespace in space
        .names()
        .iter()
        .map(String::as_str)
        .chain([operator::NAMESPACE])
    {
        let below = folder.join(namespace);
        fs::create_dir_all(&below).expect("target/ can be written");
        objects(&below, namespace).await;
        logs(&below, namespace).await;
    }
    write(
        &folder.join("nodes.txt"),
        &["get", "nodes,pods", "--all-namespaces", "-o", "wide"],
    )
    .await;
    println!("logs, events and objects: {}", folder.display());
}

/// Creates and returns the folder for a scenario's files: recorded histories, and the dump of a failure.
pub(crate) fn folder(scenario: &str) -> PathBuf {
    let target = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| checkout("target"));
    let folder = Path::new(&target).join("e2e").join(scenario);
    fs::create_dir_all(&folder).expect("target/ can be written");
    folder.canonicalize().unwrap_or(folder)
}

async fn objects(below: &Path, namespace: &str) {
    let kinds = "skv,pods,statefulsets,deployments,replicasets,services,endpointslices,pvc,pdb,configmaps,leases,networkpolicies";
    write(
        &below.join("objects.yaml"),
        &["get", kinds, "--namespace", namespace, "-o", "yaml"],
    )
    .await;
    write(
        &below.join("described.txt"),
        &["describe", "skv,pods", "--namespace", namespace],
    )
    .await;
    let sorted = "--sort-by=.metadata.creationTimestamp";
    write(
        &below.join("events.txt"),
        &[
            "get",
            "events",
            "--namespace",
            namespace,
            "-o",
            "wide",
            sorted,
        ],
    )
    .await;
}

async fn logs(below: &Path, namespace: &str) {
    let pods = ["get", "pods", "--namespace", namespace, "-o", "name"];
    let pods = try_run("kubectl", &pods).await.unwrap_or_default();
    for pod in pods.lines() {
        let name = pod.trim_start_matches("pod/");
        let args = [
            "logs",
            pod,
            "--namespace",
            namespace,
            "--timestamps",
            "--tail=20000",
        ];
        write(&below.join(format!("{name}.log")), &args).await;
        // The log before the last restart, if there was one.
        let before = [&args[..], &["--previous"]].concat();
        if let Ok(text) = try_run("kubectl", &before).await {
            let _ = fs::write(below.join(format!("{name}.previous.log")), text);
        }
    }
}

/// Writes the output of `kubectl`, or its error, into a file.
async fn write(file: &Path, args: &[&str]) {
    let output = try_run("kubectl", args).await;
    let text = output.unwrap_or_else(|error| format!("{error:#}"));
    if let Err(error) = fs::write(file, text) {
        println!("{}: {error}", file.display());
    }
}
