//! Objects as the operator wants them, compared with live ones. Pure.
//!
//! An object that already matches isn't written. The operator never changes an object that isn't the cluster's own.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::DynamicObject;
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde_json::{Value, json};

use super::applied::Written;
use super::differ;
use crate::build::{STAGE_ANNOTATION, names};
use crate::parts::Kind;
use crate::plan::Stage;

/// Annotation with a hash of the content that was applied last.
pub(super) const APPLIED_ANNOTATION: &str = "shardkv.io/applied";

/// Annotation with the version of the operator that applied the content last.
pub(super) const VERSION_ANNOTATION: &str = "shardkv.io/operator-version";

/// Version of this operator.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Kind and name of an object.
pub(super) type Key = (Kind, String);

/// Hash of applied content, and the version of the object that it was applied to.
pub(super) type Tried = (String, String);

/// An object as the operator wants it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Wanted {
    pub(super) kind: Kind,
    pub(super) name: String,
    value: Value,
    hash: String,
}

/// Result of comparing a wanted object with the live one of the same name.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Comparison {
    /// They differ, and the operator may write.
    Differs,
    /// Nothing is to be written: the object matches, or isn't the operator's to change.
    Settled(Written),
}

impl Wanted {
    /// Builds it from an object of [`crate::build`].
    pub(super) fn new<K: Resource + Serialize>(
        kind: Kind,
        object: &K,
    ) -> Result<Self, serde_json::Error> {
        let value = serde_json::to_value(object)?;
        let mut hashed = value.clone();
        // The stage changes independently, and a new stage doesn't mean that other content is to be applied.
        let annotations = hashed.pointer_mut("/metadata/annotations");
        if let Some(annotations) = annotations.and_then(Value::as_object_mut) {
            annotations.remove(STAGE_ANNOTATION);
        }
        Ok(Self {
            kind,
            name: object.name_any(),
            hash: format!("{:016x}", names::fnv1a(hashed.to_string().as_bytes())),
            value,
        })
    }

    pub(super) fn key(&self) -> Key {
        (self.kind, self.name.clone())
    }

    /// Returns a hash of the wanted content.
    pub(super) fn hash(&self) -> &str {
        &self.hash
    }

    /// Returns true if a live object has the same data, as a config map has.
    pub(super) fn has_data_of(&self, live: &DynamicObject) -> bool {
        self.value.get("data") == live.data.get("data")
    }

    /// Compares with the live object of the same name. `fruitless` is the memory of content that was applied to a
    /// version of an object without effect: something else, such as an admission webhook, always alters it.
    pub(super) fn compare(
        &self,
        owner: &OwnerReference,
        live: &DynamicObject,
        fruitless: &BTreeMap<Key, Tried>,
    ) -> Result<Comparison, serde_json::Error> {
        if let Some(reason) = reason_to_keep_off(self.kind, owner, live) {
            return Ok(Comparison::Settled(reason));
        }
        let version = live.resource_version().unwrap_or_default();
        let in_vain = fruitless.get(&self.key()) == Some(&(self.hash.clone(), version));
        if in_vain || self.is_in(live)? {
            return Ok(Comparison::Settled(Written::Unchanged));
        }
        if let Some(text) = outranked(self.kind, live) {
            return Ok(Comparison::Settled(Written::Outranked(text)));
        }
        Ok(Comparison::Differs)
    }

    /// Returns true if the live object already matches.
    fn is_in(&self, live: &DynamicObject) -> Result<bool, serde_json::Error> {
        if live.annotations().get(APPLIED_ANNOTATION) != Some(&self.hash) {
            return Ok(false);
        }
        let mut wanted = self.clone();
        wanted.keep_stage(live);
        if let Some(wanted) = wanted.value.as_object_mut() {
            // Objects from a list carry no type.
            wanted.remove("apiVersion");
            wanted.remove("kind");
        }
        Ok(differ::contains(
            &serde_json::to_value(live)?,
            &wanted.value,
        ))
    }

    /// Returns the request body. An object that exists must still be the same one; a deleted one isn't created again.
    pub(super) fn body(mut self, live: Option<&DynamicObject>) -> Value {
        let hash = self.hash.clone();
        self.annotate(APPLIED_ANNOTATION, &hash);
        self.annotate(VERSION_ANNOTATION, VERSION);
        if let Some(live) = live {
            self.keep_stage(live);
            let staged = self.kind == Kind::Set;
            if let Some(metadata) = self.metadata() {
                metadata.insert("uid".to_owned(), json!(live.uid()));
                // Only a `StatefulSet` carries more than the built content: its stage.
                if staged {
                    metadata.insert("resourceVersion".to_owned(), json!(live.resource_version()));
                }
            }
        }
        self.value
    }

    /// Keeps the live object's stage: only the action for the stage changes it. One that was removed or garbled is replaced.
    fn keep_stage(&mut self, live: &DynamicObject) {
        let stage = live.annotations().get(STAGE_ANNOTATION);
        if let Some(stage) = stage.and_then(|it| Stage::named(it)) {
            self.annotate(STAGE_ANNOTATION, stage.name());
        }
    }

    fn annotate(&mut self, key: &str, text: &str) {
        let annotations = self
            .metadata()
            .map(|metadata| metadata.entry("annotations").or_insert_with(|| json!({})));
        if let Some(annotations) = annotations.and_then(Value::as_object_mut) {
            annotations.insert(key.to_owned(), json!(text));
        }
    }

    fn metadata(&mut self) -> Option<&mut serde_json::Map<String, Value>> {
        self.value.get_mut("metadata")?.as_object_mut()
    }
}

/// Returns an object with the version of the operator that applied it last, as readable text, if that is newer than this one. Two
/// operators of different versions, each with content of its own, would write the object, and so replace pods, by turns: the older one
/// gives way.
pub(super) fn outranked(kind: Kind, live: &DynamicObject) -> Option<String> {
    let version = live.annotations().get(VERSION_ANNOTATION)?;
    is_newer(version).then(|| format!("{} {} (by {version})", kind.name(), live.name_any()))
}

/// Returns true if a version is newer than that of this operator.
pub(super) fn is_newer(version: &str) -> bool {
    numbers(version) > numbers(VERSION)
}

/// Returns the numbers of a version such as `1.20.3`, without what follows a `-` or `+`. Other texts are older than any version.
fn numbers(version: &str) -> Option<Vec<u64>> {
    let release = version.split(['-', '+']).next()?;
    release
        .split('.')
        .map(|number| number.parse().ok())
        .collect()
}

/// Returns true if the object's controller is the owner with this uid.
pub(super) fn is_owned_by(object: &DynamicObject, uid: &str) -> bool {
    let mut owners = object.owner_references().iter();
    owners.any(|owner| owner.controller == Some(true) && owner.uid == uid)
}

/// Returns the word for a kind of resource.
fn noun(kind: &str) -> &'static str {
    if kind == "ShardKvKeyspace" {
        "keyspace"
    } else {
        "cluster"
    }
}

/// Returns the reason why the operator may not write an object: it isn't the cluster's, or it is being deleted.
fn reason_to_keep_off(kind: Kind, owner: &OwnerReference, live: &DynamicObject) -> Option<Written> {
    let called = format!("{} {}", kind.name(), live.name_any());
    if is_owned_by(live, &owner.uid) {
        let deleted = live.metadata.deletion_timestamp.is_some();
        return deleted.then(|| Written::Waits(format!("{called} is being deleted")));
    }
    let owners = live.owner_references();
    let same_name = |it: &OwnerReference| it.kind == owner.kind && it.name == owner.name;
    if owners.iter().any(same_name) {
        return Some(Written::Waits(format!(
            "{called} is left of a {} of the same name, and will be removed by Kubernetes",
            noun(&owner.kind)
        )));
    }
    let of = owners.first().map_or(String::new(), |owner| {
        format!(" (of {} {})", owner.kind, owner.name)
    });
    Some(Written::Taken(format!("{called}{of}")))
}
