//! A cluster in a namespace, with an operator whose rounds a test starts, and with time that a test advances.

mod kubernetes;
mod timeless;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kube::client::ClientBuilder;
use kube::runtime::events::Reporter;
use kube::{Client, Config};
use serde_json::{Value, json};
use shardkv_operator::build::{Component, config_name, names};
use shardkv_operator::crd::ShardKvCluster;
use shardkv_operator::metrics::Metrics;
use shardkv_operator::reconcile::{Context, Pace, ReconcileError, ended, reconcile};
use shardkv_operator::run::watch_and_reconcile;
use shardkv_operator::validate::{Cluster, identify};
use shardkv_operator::yaml;
use tokio::time::sleep;

use crate::apiserver::{ADMIN, ApiServer, on_another_thread, results};
use crate::definition::{clusters, namespace, resource};
use crate::faults::{FaultInjector, FaultLayer, Write};
use crate::raw;
use crate::stores::{FakeStore, Model, Stores};
use timeless::timeless;

/// The kinds of a cluster's objects and volumes: API prefix and plural.
const KINDS: [(&str, &str); 7] = [
    ("/apis/apps/v1", "statefulsets"),
    ("/apis/networking.k8s.io/v1", "networkpolicies"),
    ("/apis/policy/v1", "poddisruptionbudgets"),
    ("/api/v1", "configmaps"),
    ("/api/v1", "persistentvolumeclaims"),
    ("/api/v1", "serviceaccounts"),
    ("/api/v1", "services"),
];

/// Limit of rounds until the cluster settles.
const MAX_ROUNDS: usize = 60;

/// Outcome of a round.
#[derive(Debug)]
pub(crate) enum Round {
    /// The round completed, with or without an error.
    Ended(Result<(), ReconcileError>),
    /// A fault broke the connections.
    Disconnected,
    /// The operator crashed, and a new one was started.
    Crashed,
    /// The resource doesn't exist.
    NoResource,
}

/// A cluster with its operator and store.
pub(crate) struct World {
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// Client with all rights, whose writes aren't counted.
    pub(crate) admin: Client,
    pub(crate) faults: Arc<FaultInjector>,
    pub(crate) stores: Arc<Stores>,
    /// The clusters whose connections the operator closed.
    pub(crate) forgotten: Arc<Mutex<Vec<String>>>,
    admin_config: Config,
    /// Credentials of the operator.
    config: Config,
    pub(crate) context: Arc<Context<FakeStore>>,
    /// The cluster in the last round.
    cluster: Option<Cluster>,
    watch: Watch,
    /// Turns the check of deletions off: the test itself deletes objects that the operator must not delete.
    pub(crate) allow_deletions: bool,
}

/// Objects of the last tick, to detect forbidden deletions.
#[derive(Default)]
struct Watch {
    /// Uids of the groups' StatefulSets and volumes, by gid.
    sets: BTreeMap<u64, String>,
    volumes: BTreeMap<u64, BTreeSet<String>>,
    /// Gids of drained groups whose StatefulSet was deleted.
    removed: BTreeSet<u64>,
}

impl World {
    /// Creates a namespace with a cluster `demo`. No round has run yet.
    pub(crate) async fn new(test: &str, spec: &Value) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{test}-{count}");
        let world = Self::empty(&name, "demo");
        namespace(&world.admin, &name, &json!({})).await;
        world.create(spec).await;
        world
    }

    /// Returns the world of a cluster in an existing namespace, without creating the resource.
    pub(crate) fn empty(namespace: &str, name: &str) -> Self {
        Self::at(ApiServer::shared().config(ADMIN), namespace, name)
    }

    /// Like [`Self::empty`], with the test's own API server. `config` has all rights.
    pub(crate) fn at(config: Config, namespace: &str, name: &str) -> Self {
        let (faults, stores) = (FaultInjector::new(), Arc::default());
        let forgotten: Arc<Mutex<Vec<String>>> = Arc::default();
        let context = context(&config, &faults, &stores, &forgotten);
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            admin: Client::try_from(config.clone()).unwrap(),
            faults,
            stores,
            forgotten,
            admin_config: config.clone(),
            config,
            context,
            cluster: None,
            watch: Watch::default(),
            allow_deletions: false,
        }
    }

    /// Replaces the operator by one with other credentials.
    pub(crate) fn operated_by(&mut self, config: Config) {
        self.config = config;
        self.restart();
    }

    /// Creates the resource.
    pub(crate) async fn create(&self, spec: &Value) {
        let path = clusters(&self.namespace);
        let object = resource(&self.name, spec);
        raw::post(&self.admin, &path, &object).await.good();
    }

    /// Returns the API path of the resource.
    pub(crate) fn path(&self) -> String {
        format!("{}/{}", clusters(&self.namespace), self.name)
    }

    /// Returns the API path of an object of the cluster, from its plural and the suffix of its name.
    pub(crate) fn path_of(&self, plural: &str, suffix: &str) -> String {
        let (group, _) = KINDS.iter().find(|(_, it)| *it == plural).unwrap();
        let (namespace, name) = (&self.namespace, &self.name);
        format!("{group}/namespaces/{namespace}/{plural}/{name}-{suffix}")
    }

    /// Returns the suffix of the name of the config map with the cluster's options, as of the last round.
    pub(crate) fn options(&self) -> String {
        let cluster = self.cluster.as_ref().expect("a round has been");
        let name = config_name(cluster);
        let suffix = name.strip_prefix(&format!("{}-", names::base(cluster)));
        suffix.unwrap().to_owned()
    }

    /// Reads an object of the cluster, if it exists.
    pub(crate) async fn object(&self, plural: &str, suffix: &str) -> Option<Value> {
        let answer = raw::get(&self.admin, &self.path_of(plural, suffix)).await;
        (answer.status != 404).then(|| answer.good())
    }

    /// Reads the resource, if it exists.
    pub(crate) async fn resource(&self) -> Option<Value> {
        let answer = raw::get(&self.admin, &self.path()).await;
        (answer.status != 404).then(|| answer.good())
    }

    /// Changes the resource's spec by a merge patch.
    pub(crate) async fn patch_spec(&self, spec: &Value) {
        raw::merge(&self.admin, &self.path(), &json!({"spec": spec}))
            .await
            .good();
    }

    /// Changes the resource's spec as soon as the API server accepts it. The server follows a changed definition a moment after
    /// it has stored it.
    pub(crate) async fn patch_spec_once_allowed(&self, spec: &Value) {
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            let answer = raw::merge(&self.admin, &self.path(), &json!({"spec": spec})).await;
            if answer.status != 422 || Instant::now() >= until {
                answer.good();
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Deletes the resource.
    pub(crate) async fn delete(&self) {
        raw::delete(&self.admin, &self.path(), &Value::Null)
            .await
            .good();
    }

    /// Returns reason, status and message of a condition.
    pub(crate) async fn condition(&self, of: &str) -> (String, String, String) {
        let resource = self.resource().await.expect("the resource");
        let conditions = resource["status"]["conditions"].as_array();
        let mut conditions = conditions.into_iter().flatten();
        let found = conditions.find(|it| it["type"] == of);
        let found = found.unwrap_or_else(|| panic!("no condition {of}: {}", resource["status"]));
        let text = |key: &str| found[key].as_str().unwrap().to_owned();
        (text("reason"), text("status"), text("message"))
    }

    /// Returns the phases in the status, by gid.
    pub(crate) async fn phases(&self) -> BTreeMap<u64, String> {
        let resource = self.resource().await.expect("the resource");
        let groups = resource["status"]["groups"]
            .as_array()
            .into_iter()
            .flatten();
        let phase = |group: &Value| group["phase"].as_str().unwrap().to_owned();
        groups
            .map(|group| (group["gid"].as_u64().unwrap(), phase(group)))
            .collect()
    }

    /// Reads or changes the store's model.
    pub(crate) fn store<T>(&self, act: impl FnOnce(&mut Model) -> T) -> T {
        let cluster = self.cluster.as_ref().expect("a round has been");
        self.stores.with(cluster, act)
    }

    /// Replaces the operator by a new one without memory.
    pub(crate) fn restart(&mut self) {
        self.context = context(&self.config, &self.faults, &self.stores, &self.forgotten);
    }

    /// Runs one round for the cluster.
    pub(crate) async fn round(&mut self) -> Round {
        let Some(resource) = self.resource().await else {
            return Round::NoResource;
        };
        let resource: ShardKvCluster = serde_json::from_value(resource).unwrap();
        self.cluster = Some(identify(&resource).unwrap());
        let (resource, context) = (Arc::new(resource), Arc::clone(&self.context));
        let result = tokio::select! {
            biased;
            () = self.faults.crash() => None,
            result = Box::pin(reconcile(resource, context)) => Some(result),
        };
        let Some(result) = result else {
            self.faults.heal();
            self.restart();
            return Round::Crashed;
        };
        if self.faults.heal() {
            return Round::Disconnected;
        }
        Round::Ended(result.map(|_| ()))
    }

    /// Runs the operator's watches of the namespace, which start rounds, for as long as the future is polled.
    pub(crate) async fn watched(&self) {
        let (_running, stop) = tokio::sync::watch::channel(false);
        let namespaces = vec![self.namespace.clone()];
        watch_and_reconcile(Arc::clone(&self.context), namespaces, 1, stop).await;
    }

    /// Tells the operator that the watch has seen the end of this resource.
    pub(crate) async fn ended(&self, resource: Value) {
        let resource: ShardKvCluster = serde_json::from_value(resource).unwrap();
        ended(&resource, &self.context).await;
    }

    /// Runs one round, which must succeed.
    #[track_caller]
    pub(crate) fn round_succeeds(&mut self) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            let round = self.round().await;
            assert!(matches!(round, Round::Ended(Ok(()))), "{caller}: {round:?}");
        }
    }

    /// Runs rounds and ticks until nothing is written and nothing changes any more. Every round without a fault must succeed.
    pub(crate) async fn settle(&mut self) {
        for _ in 0..MAX_ROUNDS {
            // Refused writes don't count: the operator retries them later, without effect.
            let before = self.faults.accepted();
            let whole = match self.round().await {
                Round::Ended(result) => result.map(|()| true).unwrap(),
                Round::Disconnected | Round::Crashed => false,
                Round::NoResource => true,
            };
            let wrote = self.faults.accepted() != before;
            if !self.tick().await && whole && !wrote {
                return;
            }
        }
        let writes = self
            .faults
            .writes_after(self.faults.count().saturating_sub(5));
        panic!("not settled after {MAX_ROUNDS} rounds; the last writes: {writes:#?}");
    }

    /// Lists this cluster's objects of a kind.
    async fn list(&self, plural: &str) -> Vec<Value> {
        let (group, _) = KINDS.iter().find(|(_, it)| *it == plural).unwrap();
        let Some(cluster) = &self.cluster else {
            return Vec::new();
        };
        let selector = format!("app.kubernetes.io%2Finstance%3D{}", names::base(cluster));
        let path = format!(
            "{group}/namespaces/{}/{plural}?labelSelector={selector}",
            self.namespace
        );
        let list = raw::get(&self.admin, &path).await.good();
        list["items"].as_array().unwrap().clone()
    }

    /// Does one step of the work of Kubernetes and the store. Returns true if anything changed.
    pub(crate) async fn tick(&mut self) -> bool {
        let resource = self.resource().await;
        let mut changed = self.collect(resource.as_ref()).await;
        let sets = self.list("statefulsets").await;
        let claims = self.list("persistentvolumeclaims").await;
        self.check_deletions(resource.as_ref(), &sets, &claims);
        let mut up = BTreeSet::new();
        for set in &sets {
            changed |= self.run(set, &claims).await;
            up.insert(part(set));
        }
        for claim in &claims {
            let pods = sets.iter().any(|set| part(set) == part(claim));
            if is_terminating(claim) && !pods {
                // Nobody mounts it any more.
                let path = self.path_of_object("persistentvolumeclaims", claim);
                let none = json!({"metadata": {"finalizers": null}});
                raw::merge(&self.admin, &path, &none).await.good();
                changed = true;
            }
        }
        if let Some(cluster) = &self.cluster {
            changed |= self.stores.with(cluster, |model| model.tick(up));
        }
        changed
    }

    /// Checks that no group was deleted before it was drained, and no gid was used twice.
    fn check_deletions(&mut self, resource: Option<&Value>, sets: &[Value], claims: &[Value]) {
        let now: BTreeMap<u64, String> = sets
            .iter()
            .filter_map(|set| Some((gid(set)?, text(set, "uid"))))
            .collect();
        let mut volumes: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
        for claim in claims.iter().filter(|claim| !is_terminating(claim)) {
            if let Some(gid) = gid(claim) {
                volumes.entry(gid).or_default().insert(text(claim, "uid"));
            }
        }
        let ends = resource.is_none_or(is_terminating);
        if !ends && !self.allow_deletions && self.cluster.is_some() {
            for (gid, uid) in &self.watch.sets {
                if now.get(gid) != Some(uid) {
                    assert!(
                        !self.store(|it| it.needs(*gid)),
                        "group {gid} was deleted and is not drained"
                    );
                    self.watch.removed.insert(*gid);
                }
            }
            for (gid, before) in &self.watch.volumes {
                let there = volumes.get(gid).is_some_and(|now| now.is_superset(before));
                assert!(
                    there || !self.store(|it| it.needs_volumes(*gid)),
                    "volumes of group {gid} were deleted, and it is not drained and retired"
                );
            }
            for gid in now.keys() {
                assert!(
                    !self.watch.removed.contains(gid),
                    "gid {gid} was used again"
                );
            }
        }
        self.watch.sets = now;
        self.watch.volumes = volumes;
    }

    fn path_of_object(&self, plural: &str, object: &Value) -> String {
        let (group, _) = KINDS.iter().find(|(_, it)| *it == plural).unwrap();
        let (namespace, name) = (&self.namespace, text(object, "name"));
        format!("{group}/namespaces/{namespace}/{plural}/{name}")
    }

    /// Returns the reasons of all events in the namespace.
    pub(crate) async fn event_reasons(&self) -> BTreeSet<String> {
        let path = format!(
            "/apis/events.k8s.io/v1/namespaces/{}/events",
            self.namespace
        );
        let events = raw::get(&self.admin, &path).await.good();
        let events = events["items"].as_array().unwrap().iter();
        let reasons = events.map(|event| event["reason"].as_str().unwrap().to_owned());
        reasons.collect()
    }

    /// Returns all objects by name, without the fields that differ between runs.
    pub(crate) async fn objects(&self) -> BTreeMap<String, Value> {
        let mut found = BTreeMap::new();
        for (_, plural) in KINDS {
            for object in self.list(plural).await {
                let name = format!("{plural}/{}", text(&object, "name"));
                found.insert(name, timeless(object, &self.namespace));
            }
        }
        if let Some(resource) = self.resource().await {
            found.insert("resource".to_owned(), timeless(resource, &self.namespace));
        }
        found
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let writes = self.faults.writes_after(0);
        // The client belongs to a runtime that may have ended.
        let (config, namespace) = (self.admin_config.clone(), self.namespace.clone());
        let path = on_another_thread(async move {
            let client = Client::try_from(config).unwrap();
            dump(&client, &namespace, &writes).await
        });
        eprintln!("the objects of the cluster: {}", path.display());
    }
}

fn context(
    config: &Config,
    faults: &Arc<FaultInjector>,
    stores: &Arc<Stores>,
    forgotten: &Arc<Mutex<Vec<String>>>,
) -> Arc<Context<FakeStore>> {
    let client = ClientBuilder::try_from(config.clone()).unwrap();
    let client = client.with_layer(&FaultLayer(Arc::clone(faults))).build();
    let store = FakeStore {
        stores: Arc::clone(stores),
        faults: Arc::clone(faults),
        forgotten: Arc::clone(forgotten),
    };
    let reporter = Reporter {
        controller: "shardkv-operator".to_owned(),
        instance: None,
    };
    Arc::new(Context::new(
        client,
        store,
        Arc::new(Metrics::default()),
        reporter,
        Pace::default(),
    ))
}

fn text(object: &Value, key: &str) -> String {
    object["metadata"][key].as_str().unwrap().to_owned()
}

fn gid(object: &Value) -> Option<u64> {
    let label = object["metadata"]["labels"][names::GID_LABEL].as_str()?;
    label.parse().ok()
}

fn part(object: &Value) -> Component {
    gid(object).map_or(Component::Controller, Component::Group)
}

fn is_terminating(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

/// Writes all objects of a namespace into a file, which helps to debug a failed test.
async fn dump(client: &Client, namespace: &str, writes: &[Write]) -> std::path::PathBuf {
    let mut text = "# Writes of the operator:\n".to_owned();
    for write in writes {
        let _ = writeln!(text, "# {} {}", write.verb, write.path);
    }
    let kinds = KINDS.iter().chain([
        &("/apis/shardkv.io/v1alpha1", "shardkvclusters"),
        &("/apis/events.k8s.io/v1", "events"),
    ]);
    for (group, plural) in kinds {
        let path = format!("{group}/namespaces/{namespace}/{plural}");
        let list = raw::get(client, &path).await;
        for object in list.body["items"].as_array().into_iter().flatten() {
            let mut object = object.clone();
            object["metadata"]["managedFields"] = Value::Null;
            let object = yaml::write(&object).unwrap();
            let _ = write!(text, "--- # {plural}\n{object}");
        }
    }
    let path = results().join(format!("{namespace}.yaml"));
    std::fs::write(&path, text).unwrap();
    path
}
