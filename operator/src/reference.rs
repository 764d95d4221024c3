//! The references of the resources, generated from their definitions: `docs/reference.md` and `docs/keyspace-reference.md`.
//!
//! Fields, types, bounds, defaults, rules and descriptions come from the schema. Reasons and events aren't in the schema: the
//! module `catalog` lists them, and tests compare it with the code that reports them.

mod catalog;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use kube::CustomResourceExt as _;
use schemars::{Schema, schema_for};
use serde_json::Value;

use crate::crd::{
    DeletionPolicy, GroupPhase, ImagePullPolicy, Retention, ShardKvCluster, ShardKvKeyspace,
};

/// A resource, and what its schema doesn't say.
struct Subject {
    /// Path of the page in the repository.
    file: &'static str,
    /// Beginning of the page.
    head: &'static str,
    /// Short name of the resource.
    short: &'static str,
    /// Name of a resource in examples, with the short name.
    example: &'static str,
    /// The condition that users wait for.
    awaited: &'static str,
    definition: fn() -> serde_json::Result<Value>,
    /// Schemas of enums.
    choices: fn() -> Vec<Schema>,
    reasons: &'static [catalog::ConditionEntry],
    events: &'static [catalog::EventEntry],
}

const CLUSTER: Subject = Subject {
    file: "docs/reference.md",
    head: CLUSTER_HEAD,
    short: "skv",
    example: "skv/demo",
    awaited: "Available",
    definition: || serde_json::to_value(ShardKvCluster::crd()),
    choices: || {
        vec![
            schema_for!(GroupPhase),
            schema_for!(ImagePullPolicy),
            schema_for!(Retention),
        ]
    },
    reasons: catalog::REASONS,
    events: catalog::EVENTS,
};

const KEYSPACE: Subject = Subject {
    file: "docs/keyspace-reference.md",
    head: KEYSPACE_HEAD,
    short: "skvks",
    example: "skvks/orders",
    awaited: "Ready",
    definition: || serde_json::to_value(ShardKvKeyspace::crd()),
    choices: || vec![schema_for!(DeletionPolicy)],
    reasons: catalog::keyspace::REASONS,
    events: catalog::keyspace::EVENTS,
};

const KEYSPACE_HEAD: &str = "\
<!-- Generated from operator/src/crd by `cargo run -p shardkv-operator --bin crdgen`: do not edit. -->
# ShardKvKeyspace

This page lists every field of the resource, and every condition and event. `kubectl explain skvks.spec` shows the same text.
[operations.md](operations.md#keyspaces-on-kubernetes) explains how to use it.

The resource is `shardkv.io/v1alpha1`, namespaced; its short name is `skvks`. It is one keyspace of a [ShardKvCluster](reference.md), and a
service of the resource's name, which etcd's clients dial:

```yaml
apiVersion: shardkv.io/v1alpha1
kind: ShardKvKeyspace
metadata:
  name: orders
  namespace: team-x
spec:
  clusterRef: {name: demo}
```

```sh
etcdctl --endpoints orders.team-x:2379 put greeting hello
```

The keyspace's name in the store is `orders.team-x`, and clients must dial this name: `orders` alone names another keyspace. `.svc` and the
domain of the Kubernetes cluster may follow. The API server refuses a resource that breaks a rule, with the rule's message.
";

const CLUSTER_HEAD: &str = "\
<!-- Generated from operator/src/crd by `cargo run -p shardkv-operator --bin crdgen`: do not edit. -->
# ShardKvCluster

This page lists every field of the resource, and every condition and event. `kubectl explain skv.spec` shows the same text.
[operations.md](operations.md) explains how to size, upgrade and repair a cluster.

The resource is `shardkv.io/v1alpha1`, namespaced; its short name is `skv`. An empty spec is a whole cluster:

```yaml
apiVersion: shardkv.io/v1alpha1
kind: ShardKvCluster
metadata:
  name: demo
spec: {}
```

`kubectl scale skv/demo --replicas=4` sets `spec.groups`. The API server refuses a resource that breaks a rule, with the rule's message.
";

/// Types of Kubernetes: field, type, and anchor in the reference of Kubernetes.
const FOREIGN: [(&str, &str, &str); 4] = [
    ("affinity", "Affinity", "affinity-v1-core"),
    ("tolerations", "[]Toleration", "toleration-v1-core"),
    (
        "topologySpreadConstraints",
        "[]TopologySpreadConstraint",
        "topologyspreadconstraint-v1-core",
    ),
    ("conditions", "[]Condition", "condition-v1-meta"),
];
const KUBERNETES: &str = "https://kubernetes.io/docs/reference/generated/kubernetes-api/v1.34/#";

/// Returns all pages: their paths in the repository, and their texts.
pub fn pages() -> Result<Vec<(&'static str, String)>, serde_json::Error> {
    let subjects = [&CLUSTER, &KEYSPACE];
    let pages = subjects.map(|subject| Ok((subject.file, page(subject)?)));
    pages.into_iter().collect()
}

/// Returns the whole page of a resource.
fn page(subject: &Subject) -> Result<String, serde_json::Error> {
    let definition = (subject.definition)()?;
    let version = at(&definition, "/spec/versions/0");
    let root = at(version, "/schema/openAPIV3Schema");
    let choices = choices((subject.choices)())?;
    let mut page = Page {
        text: subject.head.to_owned(),
        choices,
    };
    for rule in rules(root) {
        page.line(&format!("\nRule of the whole resource: {rule}."));
    }
    for part in ["spec", "status"] {
        page.object(part, at(root, &format!("/properties/{part}")), None);
    }
    page.columns(subject, at(version, "/additionalPrinterColumns"));
    page.reasons(subject);
    page.events(subject);
    Ok(page.text)
}

struct Page {
    text: String,
    /// Meanings of the values of enums, by all values of the enum.
    choices: BTreeMap<String, String>,
}

impl Page {
    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn table(&mut self, head: &[&str]) {
        self.line(&format!("\n| {} |", head.join(" | ")));
        self.line(&format!("|{}", "---|".repeat(head.len())));
    }

    fn row<T: AsRef<str>>(&mut self, cells: &[T]) {
        let cells: Vec<String> = cells
            .iter()
            .map(|cell| cell.as_ref().replace('|', "\\|"))
            .collect();
        self.line(&format!("| {} |", cells.join(" | ")));
    }

    /// Writes the section of an object, then those of the objects in it. `preset` is the default that an outer object gives it.
    fn object(&mut self, path: &str, schema: &Value, preset: Option<&Value>) {
        let level = "#".repeat(2 + path.matches('.').count());
        self.line(&format!("\n{level} {path}\n"));
        self.line(&sentence(schema));
        for rule in rules(schema) {
            self.line(&format!("\nRule: {rule}."));
        }
        let asked = path.starts_with("spec");
        let head = ["Field", "Type", "Meaning", "Default"];
        self.table(if asked { &head } else { &head[..3] });
        let preset = schema.get("default").or(preset);
        let mut inner = Vec::new();
        for (name, field) in properties(schema) {
            let given = preset.and_then(|preset| preset.get(name));
            let below = format!("{path}.{name}");
            let needed = at(schema, "/required").as_array();
            let needed = needed.is_some_and(|all| all.iter().any(|it| it == name));
            let section = section(&below, name, field);
            let cells = [
                format!("`{name}`"),
                kind(section.as_ref().map(|(path, _)| path), name, field),
                meaning(field, &self.choices, section.is_some()),
                default(field, given, needed),
            ];
            self.row(if asked { &cells } else { &cells[..3] });
            inner.extend(section.map(|(path, schema)| (path, schema, given)));
        }
        for (path, field, given) in inner {
            self.object(&path, field, given);
        }
    }

    fn columns(&mut self, subject: &Subject, columns: &Value) {
        self.line(&format!("\n## What `kubectl get {}` shows", subject.short));
        self.table(&["Column", "From", "Meaning"]);
        for column in columns.as_array().into_iter().flatten() {
            let text = |of: &str| {
                at(column, &format!("/{of}"))
                    .as_str()
                    .unwrap_or_default()
                    .to_owned()
            };
            let name = text("name");
            let wide = at(column, "/priority").as_u64().unwrap_or(0) > 0;
            let name = if wide {
                format!("{name} (with `-o wide`)")
            } else {
                name
            };
            self.row(&[
                &name,
                &format!("`{}`", text("jsonPath")),
                &text("description"),
            ]);
        }
    }

    fn reasons(&mut self, subject: &Subject) {
        let (awaited, example) = (subject.awaited, subject.example);
        self.line("\n## Conditions\n");
        self.line(&format!("`kubectl wait --for=condition={awaited} {example}` waits for a condition. Each has a message that says more than its reason."));
        for (of, means, reasons) in subject.reasons {
            self.line(&format!("\n### {of}\n\n{means}"));
            self.table(&["Status", "Reason", "Meaning"]);
            for (status, reason, meaning) in *reasons {
                let reason = format!("`{reason}`");
                self.row(&[status, reason.as_str(), meaning]);
            }
        }
    }

    fn events(&mut self, subject: &Subject) {
        self.line("\n## Events\n");
        self.line(&format!(
            "`kubectl events --for {}` lists them. The operator reports each step that changed something once.",
            subject.example
        ));
        self.table(&["Type", "Reason", "When"]);
        for (kind, reason, when) in subject.events {
            let reason = format!("`{reason}`");
            self.row(&[*kind, reason.as_str(), when]);
        }
    }
}

/// Returns the path of the section that explains a field's own fields, and their schema.
fn section<'a>(path: &str, name: &str, field: &'a Value) -> Option<(String, &'a Value)> {
    if foreign(name).is_some() {
        None
    } else if properties(field).next().is_some() {
        Some((path.to_owned(), field))
    } else {
        let items = field.get("items")?;
        properties(items).next()?;
        Some((format!("{path}[]"), items))
    }
}

/// Returns the meaning of a field. Its rules are in its section if it has one.
fn meaning(field: &Value, choices: &BTreeMap<String, String>, has_section: bool) -> String {
    let mut meaning = sentence(field);
    let values = at(field, "/enum").as_array().into_iter().flatten();
    if let Some(choice) = choices.get(&key(values.filter_map(Value::as_str))) {
        let _ = write!(meaning, " {choice}");
    }
    for rule in rules(field) {
        if !has_section {
            let _ = write!(meaning, " *Rule: {rule}.*");
        }
    }
    meaning
}

/// Returns the value at a path in a schema, or null.
fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    value.pointer(path).unwrap_or(&Value::Null)
}

/// Returns the type of the entries of a list or map, in the plural.
fn plural(schema: &Value) -> String {
    if at(schema, "/x-kubernetes-int-or-string") == true {
        return "numbers or strings".to_owned();
    }
    format!("{}s", at(schema, "/type").as_str().unwrap_or("value"))
}

fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    at(schema, "/properties").as_object().into_iter().flatten()
}

/// Returns the description on one line.
fn sentence(schema: &Value) -> String {
    let text = at(schema, "/description").as_str().unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn rules(schema: &Value) -> Vec<String> {
    let rules = at(schema, "/x-kubernetes-validations").as_array();
    let messages = rules.into_iter().flatten();
    let messages = messages.filter_map(|rule| at(rule, "/message").as_str());
    messages.map(str::to_owned).collect()
}

fn foreign(name: &str) -> Option<(&'static str, &'static str)> {
    let found = FOREIGN.iter().find(|(field, ..)| *field == name);
    found.map(|(_, kind, anchor)| (*kind, *anchor))
}

/// Returns a field's type with its bounds, and a link to its section if it has one.
fn kind(section: Option<&String>, name: &str, field: &Value) -> String {
    if let Some((kind, anchor)) = foreign(name) {
        return format!("[{kind}]({KUBERNETES}{anchor})");
    }
    if let Some(values) = at(field, "/enum").as_array() {
        let values = values.iter().filter_map(Value::as_str);
        return values
            .map(|it| format!("`{it}`"))
            .collect::<Vec<_>>()
            .join(" or ");
    }
    let mut kind = match at(field, "/type").as_str().unwrap_or_default() {
        "array" => match section {
            Some(section) => format!("list of [objects](#{})", anchor(section)),
            None => format!("list of {}", plural(at(field, "/items"))),
        },
        "object" if at(field, "/additionalProperties").is_object() => {
            format!("map of {}", plural(at(field, "/additionalProperties")))
        }
        "object" => match section {
            Some(section) => format!("[object](#{})", anchor(section)),
            None => "object".to_owned(),
        },
        other => other.to_owned(),
    };
    match (
        at(field, "/minimum").as_f64(),
        at(field, "/maximum").as_f64(),
    ) {
        (Some(least), Some(most)) => _ = write!(kind, ", {least} to {most}"),
        (Some(least), None) => _ = write!(kind, ", at least {least}"),
        (None, Some(most)) => _ = write!(kind, ", at most {most}"),
        (None, None) => {}
    }
    for (of, what) in [
        ("maxLength", "characters"),
        ("maxItems", "entries"),
        ("maxProperties", "entries"),
    ] {
        if let Some(most) = at(field, &format!("/{of}")).as_u64() {
            let _ = write!(kind, ", at most {most} {what}");
        }
    }
    if let Some(pattern) = at(field, "/pattern").as_str() {
        let _ = write!(kind, ", like `{pattern}`");
    }
    kind
}

/// Returns the anchor of a heading, as sites that show Markdown make it.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric());
    kept.flat_map(char::to_lowercase).collect()
}

fn default(field: &Value, given: Option<&Value>, needed: bool) -> String {
    if needed {
        return "required".to_owned();
    }
    let Some(value) = field.get("default").or(given) else {
        return String::new();
    };
    match value {
        // Its fields have defaults of their own.
        Value::Object(_) if properties(field).next().is_some() => String::new(),
        Value::String(text) => format!("`{text}`"),
        other => format!("`{other}`"),
    }
}

/// Returns the meanings of the values of enums.
fn choices(schemas: Vec<Schema>) -> Result<BTreeMap<String, String>, serde_json::Error> {
    let mut choices = BTreeMap::new();
    for schema in schemas {
        let schema = serde_json::to_value(schema)?;
        let variants: Vec<&Value> = at(&schema, "/oneOf")
            .as_array()
            .into_iter()
            .flatten()
            .collect();
        let name = |it: &&Value| at(it, "/const").as_str().map(str::to_owned);
        let names: Vec<String> = variants.iter().filter_map(name).collect();
        let explained = variants.iter().zip(&names);
        let explained = explained.map(|(it, name)| format!("`{name}`: {}", sentence(it)));
        choices.insert(
            key(names.iter().map(String::as_str)),
            explained.collect::<Vec<_>>().join(" "),
        );
    }
    Ok(choices)
}

/// Returns the key of an enum: its values, sorted.
fn key<'a>(values: impl Iterator<Item = &'a str>) -> String {
    let mut values: Vec<&str> = values.collect();
    values.sort_unstable();
    values.join(" ")
}
