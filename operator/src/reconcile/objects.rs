//! The API server, as far as a cluster's objects are concerned: what is read and written, and what its refusals mean.
//!
//! Every write names the object that was looked at, so that nothing that came in its place is touched.

use futures::future::try_join_all;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, Preconditions,
    PropagationPolicy,
};
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde_json::{Value, json};

use super::{FIELD_MANAGER, differ};
use crate::build::{STAGE_ANNOTATION, names};
use crate::metrics::Metrics;
use crate::store::StoreError;

/// The annotation that says what was applied last: a hash of it.
pub(super) const APPLIED_ANNOTATION: &str = "shardkv.io/applied";

/// A kind of object that clusters consist of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Config,
    Account,
    Network,
    Service,
    Budget,
    Set,
}

impl Kind {
    pub(super) const ALL: [Self; 6] = [
        Self::Config,
        Self::Account,
        Self::Network,
        Self::Service,
        Self::Budget,
        Self::Set,
    ];

    fn resource(self) -> ApiResource {
        match self {
            Self::Config => ApiResource::erase::<ConfigMap>(&()),
            Self::Account => ApiResource::erase::<ServiceAccount>(&()),
            Self::Network => ApiResource::erase::<NetworkPolicy>(&()),
            Self::Service => ApiResource::erase::<Service>(&()),
            Self::Budget => ApiResource::erase::<PodDisruptionBudget>(&()),
            Self::Set => ApiResource::erase::<StatefulSet>(&()),
        }
    }

    /// As people call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Config => "ConfigMap",
            Self::Account => "ServiceAccount",
            Self::Network => "NetworkPolicy",
            Self::Service => "Service",
            Self::Budget => "PodDisruptionBudget",
            Self::Set => "StatefulSet",
        }
    }
}

/// An object as it is to be.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) kind: Kind,
    pub(super) name: String,
    value: Value,
    hash: String,
}

impl Wanted {
    /// From an object of [`crate::build`].
    pub(super) fn new<K: Resource + Serialize>(
        kind: Kind,
        object: &K,
    ) -> Result<Self, serde_json::Error> {
        let value = serde_json::to_value(object)?;
        let mut hashed = value.clone();
        // The stage has a life of its own, and doesn't mean that something else is to be applied.
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

    /// A hash of all that is wanted.
    pub(super) fn hash(&self) -> &str {
        &self.hash
    }

    /// Keeps the stage that the live object has: an object's stage is changed by its own action only.
    pub(super) fn keep_stage(&mut self, live: &DynamicObject) {
        if let Some(stage) = live.annotations().get(STAGE_ANNOTATION) {
            self.annotate(STAGE_ANNOTATION, stage);
        }
    }

    /// Whether the live object is like this already.
    pub(super) fn is_in(&self, live: &DynamicObject) -> Result<bool, serde_json::Error> {
        if live.annotations().get(APPLIED_ANNOTATION) != Some(&self.hash) {
            return Ok(false);
        }
        let mut wanted = self.value.clone();
        if let Some(wanted) = wanted.as_object_mut() {
            // Objects of a list don't say what they are.
            wanted.remove("apiVersion");
            wanted.remove("kind");
        }
        Ok(differ::contains(&serde_json::to_value(live)?, &wanted))
    }

    /// What is sent. An object that is there must still be the same one; it isn't made anew.
    fn body(mut self, live: Option<&DynamicObject>) -> Value {
        let hash = self.hash.clone();
        self.annotate(APPLIED_ANNOTATION, &hash);
        if let (Some(live), Some(metadata)) = (live, self.metadata()) {
            metadata.insert("uid".to_owned(), json!(live.uid()));
            // Only a StatefulSet carries more than what is built: its stage.
            if live.annotations().contains_key(STAGE_ANNOTATION) {
                metadata.insert("resourceVersion".to_owned(), json!(live.resource_version()));
            }
        }
        self.value
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

/// Why something wasn't done.
#[derive(Debug)]
pub(super) enum Failure {
    /// The world isn't any more what it was looked at as. The next round sees.
    Race,
    /// Something must disappear first, which happens by itself.
    Wait(String),
    /// The API server says no, and will say it again until a person changes something.
    Refused(String),
    /// The name belongs to an object that isn't ours.
    Taken(String),
    /// The controllers of the store don't do it, or don't answer.
    Store(StoreError),
    /// The API server doesn't answer, or not sensibly.
    Kube(kube::Error),
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => match status.code {
                404 | 409 | 410 => Self::Race,
                // 500 stands for what the API server can't make sense of, and for webhooks that don't answer: it concerns this
                // object, and a person, not the whole round.
                400 | 403 | 405 | 413 | 415 | 422 | 500 => Self::Refused(status.message.clone()),
                _ => Self::Kube(kube::Error::Api(status)),
            },
            error => Self::Kube(error),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::Kube(kube::Error::SerdeError(error))
    }
}

/// The objects of one namespace.
pub(super) struct Objects<'a> {
    pub(super) client: &'a Client,
    pub(super) namespace: &'a str,
    pub(super) metrics: &'a Metrics,
}

impl Objects<'_> {
    fn api(&self, kind: Kind) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), self.namespace, &kind.resource())
    }

    /// All objects of all kinds that carry these labels.
    pub(super) async fn list(
        &self,
        labels: &str,
    ) -> Result<Vec<(Kind, DynamicObject)>, kube::Error> {
        let parameters = ListParams::default().labels(labels);
        let lists = Kind::ALL.map(|kind| {
            let (api, parameters) = (self.api(kind), &parameters);
            async move {
                let list = api.list(parameters).await?;
                let items = list.items.into_iter().map(move |object| (kind, object));
                Ok::<_, kube::Error>(items.collect::<Vec<_>>())
            }
        });
        Ok(try_join_all(lists).await?.into_iter().flatten().collect())
    }

    /// All volumes that carry these labels.
    pub(super) async fn volumes(
        &self,
        labels: &str,
    ) -> Result<Vec<PersistentVolumeClaim>, kube::Error> {
        let api = Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), self.namespace);
        let parameters = ListParams::default().labels(labels);
        Ok(api.list(&parameters).await?.items)
    }

    /// All pods that carry these labels.
    pub(super) async fn pods(&self, labels: &str) -> Result<Vec<Pod>, kube::Error> {
        let api = Api::<Pod>::namespaced(self.client.clone(), self.namespace);
        let parameters = ListParams::default().labels(labels);
        Ok(api.list(&parameters).await?.items)
    }

    /// An object as it is at this moment.
    pub(super) async fn get(
        &self,
        kind: Kind,
        name: &str,
    ) -> Result<Option<DynamicObject>, kube::Error> {
        self.api(kind).get_opt(name).await
    }

    /// Makes an object like this; `live` is what was seen of it.
    pub(super) async fn apply(
        &self,
        wanted: Wanted,
        live: Option<&DynamicObject>,
    ) -> Result<DynamicObject, Failure> {
        let (kind, name) = (wanted.kind, wanted.name.clone());
        let mut parameters = PatchParams::apply(FIELD_MANAGER);
        // What is made must not overrun what somebody else makes at the same moment.
        parameters.force = live.is_some();
        let patch = Patch::Apply(wanted.body(live));
        let object = self.api(kind).patch(&name, &parameters, &patch).await?;
        self.metrics.object_written("apply", kind.name());
        Ok(object)
    }

    /// Changes an annotation of an object, if it is still as it was seen.
    pub(super) async fn annotate(
        &self,
        kind: Kind,
        live: &DynamicObject,
        key: &str,
        text: &str,
    ) -> Result<DynamicObject, Failure> {
        let patch = json!({"metadata": {
            "uid": live.uid(),
            "resourceVersion": live.resource_version(),
            "annotations": {key: text},
        }});
        let parameters = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let name = live.name_any();
        let object = self
            .api(kind)
            .patch(&name, &parameters, &Patch::Merge(patch))
            .await?;
        self.metrics.object_written("patch", kind.name());
        Ok(object)
    }

    /// Deletes an object, if it is still this one; with `version`, only as it was seen. What it owns goes in the background:
    /// nothing waits for pods on machines that are gone.
    pub(super) async fn delete(
        &self,
        kind: Kind,
        live: &DynamicObject,
        version: bool,
    ) -> Result<(), Failure> {
        let version = live.resource_version().filter(|_| version);
        let parameters = precisely(live.uid(), version);
        self.api(kind).delete(&live.name_any(), &parameters).await?;
        self.metrics.object_written("delete", kind.name());
        Ok(())
    }

    /// Deletes a volume, if it is still this one.
    pub(super) async fn delete_volume(&self, name: &str, uid: &str) -> Result<(), Failure> {
        let api = Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), self.namespace);
        let parameters = precisely(Some(uid.to_owned()), None);
        api.delete(name, &parameters).await?;
        self.metrics
            .object_written("delete", "PersistentVolumeClaim");
        Ok(())
    }
}

fn precisely(uid: Option<String>, resource_version: Option<String>) -> DeleteParams {
    DeleteParams {
        propagation_policy: Some(PropagationPolicy::Background),
        preconditions: Some(Preconditions {
            resource_version,
            uid,
        }),
        ..DeleteParams::default()
    }
}

/// Whether an object's controller is this one.
pub(super) fn is_owned_by(object: &DynamicObject, uid: &str) -> bool {
    let mut owners = object.owner_references().iter();
    owners.any(|owner| owner.controller == Some(true) && owner.uid == uid)
}
