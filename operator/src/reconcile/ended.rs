//! Work after the end of a resource: no round starts for it any more.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::context::Context;
use super::events::Events;
use super::notes;
use super::objects::Objects;
use super::observed::Observed;
use crate::build::names;
use crate::crd::ShardKvCluster;
use crate::store::Store;
use crate::validate;

/// Tells by an event which volumes a deleted resource leaves behind. Kubernetes deletes a resource whose volumes stay without a round
/// of the operator. Uses only the metadata of the resource. Says nothing if no volume is left: the last round has said so.
pub async fn ended<S: Store>(resource: &ShardKvCluster, context: &Context<S>) {
    let Ok(cluster) = validate::identify(resource) else {
        return;
    };
    let objects = Objects::new(&context.client, &context.metrics, &cluster.namespace);
    let labels = names::formatted(&names::selector(&cluster));
    let volumes = match objects.volumes(&labels).await {
        Ok(volumes) => volumes,
        // Such as in a namespace that is deleted, and the operator's rights with it.
        Err(error) => {
            let (namespace, name) = (&cluster.namespace, &cluster.name);
            tracing::info!(%namespace, %name, %error, "the volumes of a deleted cluster can't be listed");
            return;
        }
    };
    let mut observed = Observed::new(resource.clone());
    observed.add_pods(&cluster, &volumes, &[], &Time(Timestamp::now()));
    let left = observed.volumes_of(|_| true).len();
    if left > 0 {
        let events = Events::new(&context.client, &context.reporter, resource);
        events.publish(notes::cluster_deleted(&cluster, left)).await;
    }
}
