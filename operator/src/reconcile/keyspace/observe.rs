//! Reads what a keyspace's round needs to know.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use kube::api::DynamicObject;

use super::plan::{Asked, ClusterSeen, ServiceSeen, State, silence};
use super::{KEYSPACE_FINALIZER, service};
use crate::crd::{DeletionPolicy, ShardKvCluster, ShardKvKeyspace};
use crate::parts::Kind;
use crate::reconcile::applied::Written;
use crate::reconcile::context::{Context, ReconcileError};
use crate::reconcile::objects::Objects;
use crate::reconcile::observe::{bounded, is_forbidden};
use crate::reconcile::wanted::{Comparison, Wanted};
use crate::store::KeyspaceStore;
use crate::validate::keyspace::{Names, admits, names, options};
use crate::validate::{self, Cluster, Invalid};

/// Time for which a deletion waits for the store.
const DELETION_WAITS: Duration = Duration::from_mins(5);

/// Observed state of a keyspace.
pub(super) struct Seen {
    pub(super) resource: ShardKvKeyspace,
    pub(super) names: Names,
    /// The cluster, if its resource was read.
    pub(super) cluster: Option<Cluster>,
    /// The service as it is wanted, if the cluster is known.
    pub(super) wanted: Option<Wanted>,
    /// The object with the name of the service.
    pub(super) live: Option<DynamicObject>,
    /// The state that decisions depend on.
    pub(super) state: State,
}

/// Reads the state of a keyspace; `None` if the resource doesn't exist.
pub(super) async fn observe<S: KeyspaceStore>(
    context: &Context<S>,
    cached: &ShardKvKeyspace,
    now: &Time,
) -> Result<Option<Seen>, ReconcileError> {
    let namespace = cached.namespace().unwrap_or_default();
    let objects = Objects::new(&context.client, &context.metrics, &namespace);
    let name = cached.name_any();
    let Some(resource) = objects.resource::<ShardKvKeyspace>(&name).await? else {
        return Ok(None);
    };
    let names = names(&resource).ok_or(Invalid::Incomplete("uid"))?;
    let mut seen = Seen {
        state: state(&resource, &names, now),
        resource,
        names,
        cluster: None,
        wanted: None,
        live: None,
    };
    let state = &seen.state;
    // A resource that leaves its keyspace needs nothing more.
    if state.deleting && (state.policy == DeletionPolicy::Retain || !state.has_finalizer) {
        return Ok(Some(seen));
    }
    let cluster = read_cluster(context, &mut seen).await?;
    if !seen.state.deleting {
        read_service(context, &objects, &mut seen).await?;
    }
    ask(context, cluster.as_ref(), &mut seen).await;
    if seen.state.waits() {
        seen.state.hurries = objects.namespace_ends().await;
    }
    Ok(Some(seen))
}

/// Returns the state as the resource alone tells it.
fn state(resource: &ShardKvKeyspace, names: &Names, now: &Time) -> State {
    let since = resource.metadata.deletion_timestamp.as_ref();
    let waited = since.and_then(|since| Duration::try_from(now.0.duration_since(since.0)).ok());
    let finalizers = resource.finalizers();
    let has = |finalizer: &str| finalizers.iter().any(|it| it == finalizer);
    let cluster = &resource.spec.cluster_ref;
    let cluster_name = match &cluster.namespace {
        Some(namespace) => format!("{} in namespace {namespace}", cluster.name),
        None => cluster.name.clone(),
    };
    // `kubectl delete --cascade=orphan` leaves what belongs to a resource.
    let orphans = since.is_some() && has("orphan");
    State {
        name: names.keyspace.clone(),
        cluster_name,
        policy: if orphans {
            DeletionPolicy::Retain
        } else {
            names.policy
        },
        deleting: since.is_some(),
        has_finalizer: has(KEYSPACE_FINALIZER),
        options: options(resource),
        known_id: resource.status.as_ref().and_then(|it| it.id.clone()),
        cluster: ClusterSeen::Absent,
        service: ServiceSeen::Settled,
        asked: Asked::No("the cluster isn't known.".to_owned()),
        hurries: waited.is_some_and(|waited| waited >= DELETION_WAITS),
    }
}

/// Reads the cluster.
async fn read_cluster<S>(
    context: &Context<S>,
    seen: &mut Seen,
) -> Result<Option<ShardKvCluster>, ReconcileError> {
    let (namespace, name) = &seen.names.cluster;
    let objects = Objects::new(&context.client, &context.metrics, namespace);
    let cluster = match objects.resource::<ShardKvCluster>(name).await {
        Ok(cluster) => cluster,
        Err(error) if is_forbidden(&error) => {
            seen.state.cluster = ClusterSeen::Unreadable(error.to_string());
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    let Some(resource) = cluster else {
        return Ok(None);
    };
    // An invalid resource still runs as it did when it was valid, so its names are enough.
    let cluster = validate::identify(&resource)?;
    seen.state.cluster = if resource.metadata.deletion_timestamp.is_some() {
        ClusterSeen::Ends
    } else if admits(&cluster, &seen.names.namespace) {
        ClusterSeen::Found
    } else {
        ClusterSeen::NotAdmitted
    };
    seen.cluster = Some(cluster);
    Ok(Some(resource))
}

/// Reads the object that has the name of the service, and compares it with the wanted one.
async fn read_service<S>(
    context: &Context<S>,
    objects: &Objects<'_>,
    seen: &mut Seen,
) -> Result<(), ReconcileError> {
    let Some(cluster) = &seen.cluster else {
        return Ok(());
    };
    let service = service::build(&seen.names, cluster, &context.domain);
    let wanted = Wanted::new(Kind::Service, &service)?;
    seen.live = objects.get(Kind::Service, &seen.names.name).await?;
    let fruitless = context
        .memory
        .fruitless(&seen.names.namespace, &super::key(&seen.resource));
    seen.state.service = match &seen.live {
        None => ServiceSeen::Differs,
        Some(live) => match wanted.compare(&seen.names.owner, live, &fruitless)? {
            Comparison::Differs => ServiceSeen::Differs,
            Comparison::Settled(Written::Taken(by)) => ServiceSeen::Taken(by),
            Comparison::Settled(Written::Waits(why)) => ServiceSeen::Waits(why),
            Comparison::Settled(_) => ServiceSeen::Settled,
        },
    };
    seen.wanted = Some(wanted);
    Ok(())
}

/// Asks the store for the keyspace, if the store may answer and something depends on it.
async fn ask<S: KeyspaceStore>(
    context: &Context<S>,
    resource: Option<&ShardKvCluster>,
    seen: &mut Seen,
) {
    let (Some(cluster), ClusterSeen::Found) = (&seen.cluster, &seen.state.cluster) else {
        return;
    };
    let status = resource.and_then(|resource| resource.status.as_ref());
    if let Some(why) = silence(status, seen.resource.status.as_ref()) {
        seen.state.asked = Asked::No(why);
        return;
    }
    let asked = context.store.keyspace(cluster, &seen.names.keyspace);
    seen.state.asked = Asked::Yes(bounded(asked).await);
}
