//! Tests of the resource's definition: the API server accepts it, sets defaults, and refuses invalid resources.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use kube::{Client, CustomResourceExt};
use serde_json::{Value, json};
use shardkv_operator::crd::{ShardKvCluster, ShardKvClusterSpec, definitions};
use shardkv_operator::yaml;

use crate::apiserver::ApiServer;
use crate::raw::{self, Answer};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// Returns the API path of a namespace's resources.
pub(crate) fn clusters(namespace: &str) -> String {
    format!("/apis/shardkv.io/v1alpha1/namespaces/{namespace}/shardkvclusters")
}

/// Returns a resource as a user writes it.
pub(crate) fn resource(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "shardkv.io/v1alpha1",
        "kind": "ShardKvCluster",
        "metadata": {"name": name},
        "spec": spec,
    })
}

/// Creates a namespace.
pub(crate) async fn namespace(client: &Client, name: &str, labels: &Value) {
    let metadata = json!({"name": name, "labels": labels});
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata});
    raw::post(client, "/api/v1/namespaces", &object)
        .await
        .good();
}

/// Installs the definitions of `crds/`, as `kubectl apply --server-side` does, and waits until they are served.
pub(crate) async fn install(client: &Client) {
    for (_, text) in definitions().unwrap() {
        let definition: Value = yaml::read(&text).unwrap();
        install_one(client, &definition).await;
    }
}

/// Installs one definition.
pub(crate) async fn install_one(client: &Client, definition: &Value) {
    let name = definition["metadata"]["name"].as_str().unwrap();
    let path = format!("{DEFINITIONS}/{name}");
    let apply = format!("{path}?fieldManager=test&fieldValidation=Strict");
    raw::apply(client, &apply, definition).await.good();
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let stored = raw::get(client, &path).await.good();
        let conditions = stored["status"]["conditions"].as_array();
        let holds = |wanted: &str| {
            let mut conditions = conditions.into_iter().flatten();
            conditions.any(|it| it["type"] == wanted && it["status"] == "True")
        };
        assert!(!holds("NonStructuralSchema"), "{conditions:?}");
        // The condition becomes true a moment before the resource is served.
        let plural = definition["spec"]["names"]["plural"].as_str().unwrap();
        let resources = format!("/apis/shardkv.io/v1alpha1/{plural}");
        let served = holds("Established") && raw::get(client, &resources).await.status == 200;
        if served {
            return;
        }
        assert!(Instant::now() < until, "not established: {conditions:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Creates a resource in a dry run.
async fn try_create(client: &Client, spec: &Value) -> Answer {
    try_create_named(client, "demo", spec).await
}

async fn try_create_named(client: &Client, name: &str, spec: &Value) -> Answer {
    let path = format!("{}?dryRun=All&fieldValidation=Strict", clusters("default"));
    raw::post(client, &path, &resource(name, spec)).await
}

#[tokio::test]
async fn an_empty_spec_gets_the_defaults() {
    let client = ApiServer::shared().admin();
    for least in [
        json!({}),
        // Helm charts and templates write nulls and empty maps for missing values.
        json!({"groups": null, "image": null, "controllers": null, "storage": null, "options": null, "paused": null,
            "resources": null, "scheduling": null, "podTemplate": null, "imagePullPolicy": null}),
        json!({"controllers": {}, "storage": {}, "options": {}, "scheduling": {}, "podTemplate": {},
            "podDisruptionBudget": {}, "serviceAccount": {}, "imagePullSecrets": []}),
        json!({"controllers": {"replicas": null, "resources": null}, "storage": {"size": null, "onGroupRemoval": null},
            "podDisruptionBudget": {"enabled": null}}),
    ] {
        let stored = try_create(&client, &least).await.good();
        let spec: ShardKvClusterSpec = serde_json::from_value(stored["spec"].clone()).unwrap();
        assert_eq!(spec, ShardKvClusterSpec::default(), "{least}");
    }
}

#[tokio::test]
async fn defaults_are_stored_so_that_a_newer_operator_changes_no_cluster() {
    let client = ApiServer::shared().admin();
    let stored = try_create(&client, &json!({})).await.good();
    let default = serde_json::to_value(ShardKvClusterSpec::default()).unwrap();
    let unstored = |name: &&String| stored["spec"].get(name.as_str()) != default.get(name.as_str());
    let unstored: Vec<_> = default
        .as_object()
        .unwrap()
        .keys()
        .filter(unstored)
        .collect();
    assert!(unstored.is_empty(), "{unstored:?} of {}", stored["spec"]);
}

#[tokio::test]
async fn misspelt_fields_are_refused_or_warned_of() {
    let client = ApiServer::shared().admin();
    let path = format!("{}?dryRun=All", clusters("default"));
    let object = resource("demo", &json!({"group": 2, "storage": {"sise": "1Gi"}}));
    let warned = raw::post(&client, &path, &object).await;
    assert_eq!(warned.status, 201);
    assert!(
        warned
            .warnings
            .iter()
            .any(|it| it.contains("spec.storage.sise")),
        "{:?}",
        warned.warnings
    );
    assert!(warned.body["spec"].get("group").is_none());
    let strict = raw::post(&client, &format!("{path}&fieldValidation=Strict"), &object).await;
    assert!(strict.refused().contains("spec.group"), "{strict:?}");
}

/// A leaf of the schema with bounds.
#[derive(Debug)]
struct Bounded {
    path: Vec<String>,
    schema: Value,
}

/// Collects all own fields with their paths; `0` stands for the item of a list, and `key` for the value of a map.
fn fields(path: &[String], schema: &Value, found: &mut Vec<Bounded>) {
    const FOREIGN: [&str; 3] = ["affinity", "tolerations", "topologySpreadConstraints"];
    found.push(Bounded {
        path: path.to_vec(),
        schema: schema.clone(),
    });
    if path
        .last()
        .is_some_and(|name| FOREIGN.contains(&name.as_str()))
    {
        return;
    }
    let mut go = |name: &str, schema: &Value| {
        let path = [path, &[name.to_owned()]].concat();
        fields(&path, schema, found);
    };
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        go(name, field);
    }
    if schema["items"].is_object() {
        go("0", &schema["items"]);
    }
    if schema["additionalProperties"].is_object() {
        go("key", &schema["additionalProperties"]);
    }
}

/// Returns a spec in which one field has this value.
fn with(path: &[String], value: Value) -> Value {
    path.iter()
        .rev()
        .fold(value, |inner, name| match name.as_str() {
            "0" => json!([inner]),
            name => json!({name: inner}),
        })
}

fn schema() -> Value {
    let definition = serde_json::to_value(ShardKvCluster::crd()).unwrap();
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

fn text(length: u64) -> Value {
    Value::String("a".repeat(usize::try_from(length).unwrap()))
}

fn map(length: u64) -> Value {
    let pair = |number| (format!("key-{number}"), json!("1"));
    (0..length)
        .map(pair)
        .collect::<serde_json::Map<_, _>>()
        .into()
}

#[expect(clippy::cast_possible_truncation, reason = "bounds are whole")]
fn whole(number: &Value) -> i64 {
    number.as_f64().unwrap() as i64
}

/// Returns values just inside and just outside of each bound of a field.
fn edges(Bounded { path, schema }: &Bounded) -> (Vec<Value>, Vec<Value>) {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    let of = |name: &str| schema.get(name).filter(|it| it.is_number());
    if let Some(least) = of("minimum").map(whole) {
        good.push(json!(least));
        bad.push(json!(least - 1));
    }
    if let Some(most) = of("maximum").map(whole) {
        good.push(json!(most));
        bad.push(json!(most + 1));
    }
    let has_pattern = schema["pattern"].is_string();
    if let Some(most) = schema["maxLength"].as_u64() {
        bad.push(text(most + 1));
        if !has_pattern {
            good.push(text(most));
        }
    }
    if schema["minLength"].as_u64() == Some(1) {
        bad.push(json!(""));
    }
    if has_pattern {
        bad.push(json!("no such thing"));
    }
    if let Some(values) = schema["enum"].as_array() {
        // The list contains null if the field is optional.
        good.extend(values.iter().filter(|it| it.is_string()).cloned());
        bad.push(json!("NoSuchThing"));
    }
    if let Some(most) = schema["maxProperties"].as_u64() {
        bad.push(map(most + 1));
        // The values are valid as quantities and as labels.
        good.push(map(most));
    }
    if let Some(most) = schema["maxItems"].as_u64() {
        let item = match path.last().unwrap().as_str() {
            "imagePullSecrets" => json!({"name": "secret"}),
            "tolerations" => json!({"operator": "Exists"}),
            "keyspaceNamespaces" => json!("team-a"),
            _ => {
                json!({"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"})
            }
        };
        let list = |length: u64| Value::Array((0..length).map(|_| item.clone()).collect());
        good.push(list(most));
        bad.push(list(most + 1));
    }
    if schema["type"].is_string() {
        bad.push(match schema["type"].as_str() {
            Some("string") => json!([1]),
            _ => json!("a text"),
        });
    }
    (good, bad)
}

#[tokio::test]
async fn every_bound_holds_and_its_error_names_the_field() {
    let client = ApiServer::shared().admin();
    let mut all = Vec::new();
    fields(&[], &schema()["properties"]["spec"], &mut all);
    let (mut passed, mut refused) = (0, 0);
    for field in &all {
        let (good, bad) = edges(field);
        for value in good {
            let mut spec = with(&field.path, value.clone());
            // A rule compares the election timeout with the heartbeat interval.
            if field.path.ends_with(&["electionTimeoutMs".to_owned()]) {
                spec["options"]["heartbeatIntervalMs"] = json!(10);
            }
            if field.path.ends_with(&["heartbeatIntervalMs".to_owned()]) {
                spec["options"]["electionTimeoutMs"] = json!(60_000);
            }
            let answer = try_create(&client, &spec).await;
            assert_eq!(answer.status, 201, "{spec}: {}", answer.message());
            passed += 1;
        }
        for value in bad {
            let spec = with(&field.path, value.clone());
            let answer = try_create(&client, &spec).await;
            let name = field
                .path
                .iter()
                .rev()
                .find(|it| *it != "0" && *it != "key");
            let name = name.map_or("spec", String::as_str);
            let message = answer.refused();
            assert!(
                message.contains(name),
                "{}: {message}",
                field.path.join(".")
            );
            refused += 1;
        }
    }
    assert!(passed > 40 && refused > 80, "{passed}, {refused}");
}

/// Collects the messages of all rules of the definition.
fn messages(schema: &Value, found: &mut BTreeSet<String>) {
    let rules = schema["x-kubernetes-validations"].as_array();
    for rule in rules.into_iter().flatten() {
        found.insert(rule["message"].as_str().unwrap().to_owned());
    }
    for child in schema["properties"].as_object().into_iter().flatten() {
        messages(child.1, found);
    }
}

#[tokio::test]
async fn every_rule_refuses_its_bad_object_with_its_message() {
    let client = ApiServer::shared().admin();
    let mut unbroken = BTreeSet::new();
    messages(&schema(), &mut unbroken);
    let mut breaks = |answer: &Answer, what: &Value| {
        let message = answer.refused().to_owned();
        let before = unbroken.len();
        unbroken.retain(|rule| !message.contains(rule.as_str()));
        // Each example breaks another rule.
        assert!(unbroken.len() < before, "{what}: {message}");
    };
    for spec in [
        json!({"replicasPerGroup": 4}),
        json!({"controllers": {"replicas": 2}}),
        json!({"options": {"electionTimeoutMs": 299}}),
        json!({"options": {"heartbeatIntervalMs": 134}}),
        json!({"podTemplate": {"labels": {"app.kubernetes.io/name": "x"}}}),
        json!({"podTemplate": {"annotations": {"shardkv.io/x": "x"}}}),
    ] {
        breaks(&try_create(&client, &spec).await, &spec);
    }
    breaks(
        &try_create_named(&client, "1demo", &json!({})).await,
        &json!("1demo"),
    );

    let path = clusters("default");
    let whole = json!({"storage": {"className": "a"}, "options": {"sessionTtlMs": 5000, "maxSessionsPerShard": 5}});
    for (name, spec) in [("rules-of-none", json!({})), ("rules-of-all", whole)] {
        raw::post(&client, &path, &resource(name, &spec))
            .await
            .good();
    }
    let change = async |name: &str, spec: &Value| {
        let path = format!("{path}/{name}?dryRun=All");
        raw::merge(&client, &path, &json!({"spec": spec})).await
    };
    for spec in [
        json!({"shards": 65}),
        json!({"replicasPerGroup": 5}),
        json!({"controllers": {"replicas": 5}}),
        json!({"controllers": {"size": "2Gi"}}),
        json!({"storage": {"size": "20Gi"}}),
        json!({"storage": {"className": "a"}}),
        json!({"options": {"sessionTtlMs": 1000}}),
        json!({"options": {"maxSessionsPerShard": 6}}),
    ] {
        breaks(&change("rules-of-none", &spec).await, &spec);
    }
    assert!(
        unbroken.is_empty(),
        "no object here breaks these rules: {unbroken:?}"
    );

    // A fixed field can neither be changed nor removed; the message is the same.
    for (field, spec) in [
        ("storage.className", json!({"storage": {"className": "b"}})),
        ("storage.className", json!({"storage": {"className": null}})),
        ("storage.className", json!({"storage": null})),
        ("sessionTtlMs", json!({"options": {"sessionTtlMs": 5001}})),
        ("sessionTtlMs", json!({"options": null})),
        (
            "maxSessionsPerShard",
            json!({"options": {"maxSessionsPerShard": null}}),
        ),
    ] {
        let answer = change("rules-of-all", &spec).await;
        let expected = format!("{field} can't be changed");
        assert!(
            answer.refused().contains(&expected),
            "{spec}: {}",
            answer.message()
        );
    }
    // Everything else may be changed at any time.
    let free = json!({"groups": 4, "paused": true, "image": "b", "resources": {"limits": {"cpu": "1"}},
        "options": {"leaseReads": true}, "podDisruptionBudget": {"enabled": false},
        "storage": {"onGroupRemoval": "Delete", "onClusterDeletion": "Delete"},
        "scheduling": {"priorityClassName": "x"}, "serviceAccount": {"name": "x"}});
    for name in ["rules-of-none", "rules-of-all"] {
        change(name, &free).await.good();
        raw::delete(&client, &format!("{path}/{name}"), &Value::Null)
            .await
            .good();
    }
}

#[tokio::test]
async fn names_must_be_valid_in_names_of_services() {
    let client = ApiServer::shared().admin();
    let long = "a".repeat(253);
    for good in ["a", "a-1", "demo", "x9", long.as_str()] {
        try_create_named(&client, good, &json!({})).await.good();
    }
    for bad in ["1a", "a.b", "a-", "-a", "A", "a_b", ""] {
        let answer = try_create_named(&client, bad, &json!({})).await;
        assert!(!answer.refused().is_empty(), "{bad}");
    }
}
