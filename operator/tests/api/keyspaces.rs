//! Keyspaces: created, changed, taken over and deleted, with services that clients dial.

use std::collections::BTreeMap;

use kube::Client;
use serde_json::{Value, json};
use shardkv_client::{Gid, Keyspace, KeyspaceOptions, ShardId};
use shardkv_operator::crd::ShardKvKeyspace;
use shardkv_operator::reconcile::{KEYSPACE_FINALIZER, reconcile_keyspace};
use shardkv_operator::store::{KeyspaceStore, StoreError};
use shardkv_operator::validate::Cluster;

use crate::apiserver::ApiServer;
use crate::definition::namespace;
use crate::faults::Fault;
use crate::raw;
use crate::rounds::{settled, small};
use crate::stores::FakeStore;
use crate::world::World;

/// The keyspaces of a fake store.
#[derive(Default)]
pub(crate) struct Keyspaces {
    pub(crate) all: BTreeMap<String, Keyspace>,
    last_id: u64,
}

impl Keyspaces {
    pub(crate) fn create(&mut self, name: &str, options: KeyspaceOptions) -> Keyspace {
        self.last_id += 1;
        let keyspace = Keyspace {
            name: name.to_owned(),
            cluster_id: self.last_id,
            options,
            revision: 1,
            compacted: None,
            bytes: 0,
            no_space: false,
            auth_enabled: false,
            shard: ShardId(3),
            gid: Gid(1),
        };
        self.all.insert(name.to_owned(), keyspace.clone());
        keyspace
    }

    /// Returns the keyspace of this name and cluster id.
    fn same(&mut self, keyspace: &Keyspace) -> Result<&mut Keyspace, StoreError> {
        let found = self.all.get_mut(&keyspace.name);
        let found = found.filter(|it| it.cluster_id == keyspace.cluster_id);
        found.ok_or_else(|| StoreError::Refused("there is no such keyspace".to_owned()))
    }
}

impl FakeStore {
    async fn change_keyspace<T>(
        &self,
        cluster: &Cluster,
        verb: &str,
        name: &str,
        change: impl FnOnce(&mut Keyspaces) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.stores.with(cluster, |model| model.answers())?;
        let change = || {
            self.stores
                .with(cluster, |model| change(&mut model.keyspaces))
        };
        let lost = || Err(StoreError::Unreachable("the answer was lost".to_owned()));
        let changed = self.faults.store(verb, name, change).await;
        changed.unwrap_or_else(lost)
    }
}

impl KeyspaceStore for FakeStore {
    async fn keyspace(
        &self,
        cluster: &Cluster,
        name: &str,
    ) -> Result<Option<Keyspace>, StoreError> {
        self.stores.with(cluster, |model| {
            model.answers()?;
            Ok(model.keyspaces.all.get(name).cloned())
        })
    }

    async fn create_keyspace(
        &self,
        cluster: &Cluster,
        name: &str,
        options: KeyspaceOptions,
    ) -> Result<Keyspace, StoreError> {
        self.change_keyspace(cluster, "create", name, |keyspaces| {
            if keyspaces.all.contains_key(name) {
                return Err(StoreError::Refused("it exists".to_owned()));
            }
            Ok(keyspaces.create(name, options))
        })
        .await
    }

    async fn set_keyspace_options(
        &self,
        cluster: &Cluster,
        keyspace: &Keyspace,
        options: KeyspaceOptions,
    ) -> Result<Keyspace, StoreError> {
        self.change_keyspace(cluster, "set", &keyspace.name, |keyspaces| {
            let keyspace = keyspaces.same(keyspace)?;
            keyspace.options = options;
            Ok(keyspace.clone())
        })
        .await
    }

    async fn delete_keyspace(
        &self,
        cluster: &Cluster,
        keyspace: &Keyspace,
    ) -> Result<(), StoreError> {
        self.change_keyspace(cluster, "delete", &keyspace.name, |keyspaces| {
            if keyspaces.same(keyspace).is_ok() {
                keyspaces.all.remove(&keyspace.name);
            }
            Ok(())
        })
        .await
    }
}

/// The keyspace `orders` of a world's cluster.
pub(crate) struct Orders {
    namespace: String,
    admin: Client,
}

impl Orders {
    /// Creates the resource in the world's namespace.
    pub(crate) async fn new(world: &World, spec: &Value) -> Self {
        Self::within(world, &world.namespace, spec).await
    }

    /// Creates the resource in a namespace.
    async fn within(world: &World, namespace: &str, spec: &Value) -> Self {
        let orders = Self {
            namespace: namespace.to_owned(),
            admin: world.admin.clone(),
        };
        orders.create(spec).await;
        orders
    }

    async fn create(&self, spec: &Value) {
        let path = keyspaces(&self.namespace);
        raw::post(&self.admin, &path, &object("orders", spec))
            .await
            .good();
    }

    fn path(&self) -> String {
        format!("{}/orders", keyspaces(&self.namespace))
    }

    fn service_path(&self) -> String {
        format!("/api/v1/namespaces/{}/services/orders", self.namespace)
    }

    async fn get(&self, path: &str) -> Option<Value> {
        let answer = raw::get(&self.admin, path).await;
        (answer.status != 404).then(|| answer.good())
    }

    /// Returns the resource.
    pub(crate) async fn resource(&self) -> Option<Value> {
        self.get(&self.path()).await
    }

    async fn service(&self) -> Option<Value> {
        self.get(&self.service_path()).await
    }

    async fn patch(&self, spec: &Value) {
        let patch = json!({"spec": spec});
        raw::merge(&self.admin, &self.path(), &patch).await.good();
    }

    /// Deletes the resource, as `kubectl delete` does.
    pub(crate) async fn delete(&self) {
        raw::delete(&self.admin, &self.path(), &Value::Null)
            .await
            .good();
    }

    /// Returns status and reason of the condition.
    async fn ready(&self) -> (String, String) {
        let resource = self.resource().await.unwrap();
        let condition = &resource["status"]["conditions"][0];
        assert_eq!(condition["type"], "Ready", "{resource}");
        let text = |key: &str| condition[key].as_str().unwrap().to_owned();
        (text("status"), text("reason"))
    }

    async fn is(&self, status: &str, reason: &str) {
        let expected = (status.to_owned(), reason.to_owned());
        let resource = self.resource().await;
        assert_eq!(self.ready().await, expected, "{resource:?}");
    }

    /// Runs a round. Returns false if a fault ended it.
    pub(crate) async fn round(&self, world: &mut World) -> bool {
        let Some(resource) = self.resource().await else {
            return true;
        };
        let resource: ShardKvKeyspace = serde_json::from_value(resource).unwrap();
        let context = std::sync::Arc::clone(&world.context);
        let whole = tokio::select! {
            biased;
            () = world.faults.crash() => false,
            _ = Box::pin(reconcile_keyspace(&resource, &context, 1)) => true,
        };
        let broken = world.faults.heal();
        if !whole {
            world.restart();
        }
        whole && !broken
    }

    /// Runs rounds until a whole one writes nothing.
    async fn settle(&self, world: &mut World) {
        for _ in 0..20 {
            let before = world.faults.accepted();
            let whole = self.round(world).await;
            if whole && world.faults.accepted() == before {
                return;
            }
        }
        let last = world.faults.writes_after(world.faults.count() - 3);
        panic!("not settled: {last:#?}");
    }
}

fn keyspaces(namespace: &str) -> String {
    format!("/apis/shardkv.io/v1alpha1/namespaces/{namespace}/shardkvkeyspaces")
}

fn object(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "shardkv.io/v1alpha1",
        "kind": "ShardKvKeyspace",
        "metadata": {"name": name},
        "spec": spec,
    })
}

fn in_demo(more: &Value) -> Value {
    let mut spec = json!({"clusterRef": {"name": "demo"}});
    let more = more.as_object().unwrap().clone();
    spec.as_object_mut().unwrap().extend(more);
    spec
}

fn stored(world: &World, name: &str) -> Option<Keyspace> {
    world.store(|it| it.keyspaces.all.get(name).cloned())
}

#[tokio::test]
async fn a_resource_becomes_a_keyspace_and_a_service() {
    let mut world = settled("keyspace", 1).await;
    let orders = Orders::new(&world, &in_demo(&json!({"quota": "1Mi"}))).await;
    orders.settle(&mut world).await;
    orders.is("True", "Served").await;
    let name = format!("orders.{}", world.namespace);
    let keyspace = stored(&world, &name).unwrap();
    assert_eq!(keyspace.options.quota_bytes, Some(1 << 20));
    let status = &orders.resource().await.unwrap()["status"];
    assert_eq!(status["keyspace"], name.as_str());
    assert_eq!(status["endpoint"], format!("{name}.svc:2379"));
    assert_eq!(
        (&status["group"], &status["shard"], &status["revision"]),
        (&json!(1), &json!(3), &json!(1))
    );
    assert_eq!(status["id"], format!("{:016x}", keyspace.cluster_id));
    let service = orders.service().await.unwrap();
    assert_eq!(service["metadata"]["ownerReferences"][0]["name"], "orders");
    assert_eq!(service["spec"]["ports"][0]["port"], 2379);
    let client = world.object("services", "client").await.unwrap();
    assert_eq!(service["spec"]["selector"], client["spec"]["selector"]);

    // A new operator writes nothing. The rounds of the cluster leave the service alone, and it them.
    let rest = world.faults.count();
    world.restart();
    world.settle().await;
    orders.settle(&mut world).await;
    let more = world.faults.writes_after(rest);
    assert!(more.is_empty(), "{more:#?}");

    orders
        .patch(&json!({"quota": "2Mi", "compaction": {"retention": "1h"}}))
        .await;
    raw::delete(&world.admin, &orders.service_path(), &Value::Null)
        .await
        .good();
    orders.settle(&mut world).await;
    let changed = stored(&world, &name).unwrap();
    assert_eq!(changed.options.quota_bytes, Some(2 << 20));
    assert_eq!(changed.cluster_id, keyspace.cluster_id);
    assert!(orders.service().await.is_some(), "made again");
    let events = world.event_reasons().await;
    for reason in ["KeyspaceCreated", "OptionsChanged"] {
        assert!(events.contains(reason), "{events:?}");
    }
}

#[tokio::test]
async fn a_keyspace_stays_by_default_and_a_new_resource_takes_it_over() {
    let mut world = settled("retained", 1).await;
    let orders = Orders::new(&world, &in_demo(&json!({}))).await;
    orders.settle(&mut world).await;
    let name = format!("orders.{}", world.namespace);
    let before = stored(&world, &name);
    orders.delete().await;
    assert!(orders.resource().await.is_none(), "nothing holds it up");
    assert_eq!(stored(&world, &name), before);
    // The garbage collector doesn't run here.
    raw::delete(&world.admin, &orders.service_path(), &Value::Null)
        .await
        .good();
    orders.create(&in_demo(&json!({}))).await;
    orders.settle(&mut world).await;
    orders.is("True", "Served").await;
    assert_eq!(stored(&world, &name), before);
    assert!(world.event_reasons().await.contains("KeyspaceAdopted"));
}

#[tokio::test]
async fn a_keyspace_is_deleted_with_its_resource_if_wanted() {
    let mut world = settled("deleted", 1).await;
    world.store(|it| it.keyspaces.create("by-hand", KeyspaceOptions::default()));
    let delete = in_demo(&json!({"deletionPolicy": "Delete"}));
    let orders = Orders::new(&world, &delete).await;
    orders.settle(&mut world).await;
    let name = format!("orders.{}", world.namespace);
    assert!(stored(&world, &name).is_some());

    world.store(|it| it.unreachable = true);
    orders.delete().await;
    orders.settle(&mut world).await;
    orders.is("False", "Deleting").await;
    world.store(|it| it.unreachable = false);
    orders.round(&mut world).await;
    assert!(orders.resource().await.is_none());
    assert_eq!(stored(&world, &name), None);
    assert!(stored(&world, "by-hand").is_some());
    assert!(world.event_reasons().await.contains("KeyspaceDeleted"));

    // Without a cluster, nothing holds up the deletion.
    orders.create(&delete).await;
    raw::delete(&world.admin, &orders.service_path(), &Value::Null)
        .await
        .good();
    orders.settle(&mut world).await;
    world.delete().await;
    orders.delete().await;
    orders.round(&mut world).await;
    assert!(orders.resource().await.is_none());
    assert!(world.event_reasons().await.contains("KeyspaceLeft"));
}

/// The store is in another namespace and doesn't answer; the operator may read namespaces.
#[tokio::test]
async fn the_end_of_a_namespace_waits_for_no_store() {
    let mut world = settled("ending", 1).await;
    let tenant = format!("{}-tenant", world.namespace);
    namespace(&world.admin, &tenant, &json!({})).await;
    world
        .patch_spec(&json!({"keyspaceNamespaces": [tenant]}))
        .await;
    let spec = json!({
        "clusterRef": {"name": "demo", "namespace": world.namespace},
        "deletionPolicy": "Delete",
    });
    let orders = Orders::within(&world, &tenant, &spec).await;
    orders.settle(&mut world).await;
    orders.is("True", "Served").await;
    world.store(|it| it.unreachable = true);
    let path = format!("/api/v1/namespaces/{tenant}");
    raw::delete(&world.admin, &path, &Value::Null).await.good();
    orders.delete().await;
    orders.round(&mut world).await;
    assert!(orders.resource().await.is_none());
}

#[tokio::test]
async fn a_service_of_another_owner_is_never_taken() {
    let mut world = settled("taken", 1).await;
    let services = format!("/api/v1/namespaces/{}/services", world.namespace);
    let other = json!({"metadata": {"name": "orders"}, "spec": {"ports": [{"port": 80}]}});
    let before = raw::post(&world.admin, &services, &other).await.good();
    let orders = Orders::new(&world, &in_demo(&json!({}))).await;
    orders.settle(&mut world).await;
    orders.is("False", "ServiceNameTaken").await;
    assert_eq!(orders.service().await.unwrap(), before);
    let name = format!("orders.{}", world.namespace);
    assert_eq!(stored(&world, &name), None);
    raw::delete(&world.admin, &orders.service_path(), &Value::Null)
        .await
        .good();
    orders.settle(&mut world).await;
    orders.is("True", "Served").await;
}

#[tokio::test]
async fn another_namespace_needs_the_consent_of_the_cluster() {
    let mut world = settled("consent", 1).await;
    let tenant = format!("{}-tenant", world.namespace);
    namespace(&world.admin, &tenant, &json!({})).await;
    let spec = json!({"clusterRef": {"name": "demo", "namespace": world.namespace}});
    let orders = Orders::within(&world, &tenant, &spec).await;
    orders.settle(&mut world).await;
    orders.is("False", "NotAdmitted").await;
    assert!(orders.service().await.is_none());
    world
        .patch_spec(&json!({"keyspaceNamespaces": [tenant]}))
        .await;
    orders.settle(&mut world).await;
    orders.is("True", "Served").await;
    assert!(stored(&world, &format!("orders.{tenant}")).is_some());
    let service = orders.service().await.unwrap();
    let target = format!("demo-client.{}.svc.cluster.local", world.namespace);
    assert_eq!(service["spec"]["externalName"], target);
}

#[tokio::test]
async fn a_lost_keyspace_is_reported_and_not_made_again() {
    let mut world = settled("lost", 1).await;
    let orders = Orders::new(&world, &in_demo(&json!({}))).await;
    orders.settle(&mut world).await;
    let name = format!("orders.{}", world.namespace);
    world.store(|it| it.keyspaces.all.remove(&name));
    orders.settle(&mut world).await;
    orders.is("False", "KeyspaceLost").await;
    assert_eq!(stored(&world, &name), None);
    world.store(|it| it.keyspaces.create(&name, KeyspaceOptions::default()));
    orders.settle(&mut world).await;
    orders.is("True", "Served").await;
    assert!(world.event_reasons().await.contains("KeyspaceReplaced"));
}

#[tokio::test]
async fn obstacles_are_told() {
    let mut world = World::new("obstacles", &small(1)).await;
    let orders = Orders::new(&world, &in_demo(&json!({}))).await;
    // The cluster has had no round.
    orders.settle(&mut world).await;
    orders.is("Unknown", "StoreUnreachable").await;
    world.settle().await;
    orders.settle(&mut world).await;
    orders.is("True", "Served").await;
    world.store(|it| it.unreachable = true);
    orders.settle(&mut world).await;
    orders.is("Unknown", "StoreUnreachable").await;
    world.delete().await;
    orders.settle(&mut world).await;
    orders.is("False", "ClusterNotFound").await;
}

/// The operator crashes, or loses its connections, at each write, and always reaches the same state.
#[tokio::test]
async fn faults_at_any_write_change_nothing_in_the_end() {
    let delete = in_demo(&json!({"deletionPolicy": "Delete"}));
    for fault in [Fault::Crash, Fault::LoseResponse, Fault::LoseRequest] {
        // Finalizer, creation, event, service, status; then deletion, event, finalizer.
        for number in 1..=6 {
            let mut world = settled("keyspace-faults", 1).await;
            let orders = Orders::new(&world, &delete).await;
            world.faults.inject_at(number, fault);
            orders.settle(&mut world).await;
            world.faults.cancel();
            orders.is("True", "Served").await;
            let name = format!("orders.{}", world.namespace);
            let keyspace = stored(&world, &name).unwrap();
            assert_eq!(keyspace.cluster_id, 1, "created once");
            assert!(orders.service().await.is_some());
            let resource = orders.resource().await.unwrap();
            assert_eq!(
                resource["metadata"]["finalizers"],
                json!([KEYSPACE_FINALIZER])
            );
            orders.delete().await;
            world.faults.inject_at(number, fault);
            orders.settle(&mut world).await;
            world.faults.cancel();
            assert!(orders.resource().await.is_none(), "{fault:?} {number}");
            assert_eq!(stored(&world, &name), None);
        }
    }
}

#[tokio::test]
async fn the_definition_refuses_what_cannot_be() {
    let client = ApiServer::shared().admin();
    let path = format!("{}?dryRun=All&fieldValidation=Strict", keyspaces("default"));
    let named = async |name: &str, spec: Value| {
        raw::post(&client, &path, &object(name, &in_demo(&spec))).await
    };
    let stored = named("orders", json!({})).await.good();
    assert_eq!(stored["spec"]["quota"], "2Gi");
    assert_eq!(stored["spec"]["deletionPolicy"], "Retain");
    named(&"a".repeat(63), json!({})).await.good();
    for (name, spec, needle) in [
        ("a.b", json!({}), "a service is named after it"),
        ("1a", json!({}), "a service is named after it"),
        (
            "a",
            json!({"compaction": {"retention": "1h", "revisions": 5}}),
            "not by both",
        ),
        (
            "a",
            json!({"compaction": {"retention": "1d"}}),
            "spec.compaction.retention",
        ),
        (
            "a",
            json!({"compaction": {"revisions": 0}}),
            "spec.compaction.revisions",
        ),
        ("a", json!({"quota": "0"}), "spec.quota"),
        ("a", json!({"quota": "1.5Gi"}), "spec.quota"),
        (
            "a",
            json!({"deletionPolicy": "Keep"}),
            "spec.deletionPolicy",
        ),
        (
            "a",
            json!({"clusterRef": {"name": ""}}),
            "spec.clusterRef.name",
        ),
        ("a", json!({"clusterRef": {}}), "spec.clusterRef.name"),
        ("a", json!({"clusterRef": null}), "spec.clusterRef"),
    ] {
        let refused = named(name, spec.clone()).await;
        assert!(refused.refused().contains(needle), "{spec}: {refused:?}");
    }
    let long = named(&"a".repeat(64), json!({})).await;
    assert!(long.refused().contains("at most 63 characters"), "{long:?}");
}

#[tokio::test]
async fn the_cluster_of_a_keyspace_is_fixed() {
    let world = World::new("fixed", &small(1)).await;
    let orders = Orders::new(&world, &in_demo(&json!({}))).await;
    for other in [json!({"name": "other"}), json!({"namespace": "other"})] {
        let patch = json!({"spec": {"clusterRef": other}});
        let refused = raw::merge(&world.admin, &orders.path(), &patch).await;
        assert!(
            refused.refused().contains("clusterRef can't be changed"),
            "{refused:?}"
        );
    }
    orders.patch(&json!({"deletionPolicy": "Delete"})).await;
}
