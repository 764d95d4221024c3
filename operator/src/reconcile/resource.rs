//! Reads and writes of the resource itself. Every write names the version that was read: if somebody else has written
//! since, the write fails and the next round reads again.

use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::json;

use super::objects::Failure;
use super::{FIELD_MANAGER, FINALIZER};
use crate::crd::{ShardKvCluster, ShardKvClusterStatus};
use crate::metrics::Metrics;

/// The resource of a round.
pub(super) struct Handle<'a> {
    api: Api<ShardKvCluster>,
    metrics: &'a Metrics,
    /// The resource as last read or written.
    pub(super) live: ShardKvCluster,
}

impl<'a> Handle<'a> {
    /// Reads the resource; `None` if it doesn't exist.
    pub(super) async fn read(
        client: &Client,
        metrics: &'a Metrics,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Self>, kube::Error> {
        let api = Api::<ShardKvCluster>::namespaced(client.clone(), namespace);
        let live = api.get_opt(name).await?;
        Ok(live.map(|live| Self { api, metrics, live }))
    }

    /// Returns the current status.
    pub(super) fn status(&self) -> ShardKvClusterStatus {
        self.live.status.clone().unwrap_or_default()
    }

    /// Returns true if the resource is marked for deletion.
    pub(super) fn is_deleted(&self) -> bool {
        self.live.meta().deletion_timestamp.is_some()
    }

    /// Returns true if the operator's finalizer is set.
    pub(super) fn has_finalizer(&self) -> bool {
        self.live.finalizers().iter().any(|it| it == FINALIZER)
    }

    /// Returns true if the resource is marked for deletion and its objects are to stay (`kubectl delete
    /// --cascade=orphan`).
    pub(super) fn is_orphaning(&self) -> bool {
        self.is_deleted() && self.live.finalizers().iter().any(|it| it == "orphan")
    }

    /// Adds the finalizer, which keeps the resource until its groups are deleted in order.
    pub(super) async fn add_finalizer(&mut self) -> Result<(), Failure> {
        let mut finalizers = self.live.finalizers().to_vec();
        finalizers.push(FINALIZER.to_owned());
        self.set_finalizers(finalizers).await
    }

    /// Removes the finalizer.
    pub(super) async fn remove_finalizer(&mut self) -> Result<(), Failure> {
        let mut finalizers = self.live.finalizers().to_vec();
        finalizers.retain(|it| it != FINALIZER);
        self.set_finalizers(finalizers).await
    }

    async fn set_finalizers(&mut self, finalizers: Vec<String>) -> Result<(), Failure> {
        let patch = json!({"metadata": {
            "uid": self.live.uid(),
            "resourceVersion": self.live.resource_version(),
            "finalizers": finalizers,
        }});
        let parameters = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let name = self.live.name_any();
        self.live = self
            .api
            .patch(&name, &parameters, &Patch::Merge(patch))
            .await?;
        self.metrics.object_written("patch", "ShardKvCluster");
        Ok(())
    }

    /// Writes a status if it differs from the current one; returns true if it did.
    pub(super) async fn write_status(
        &mut self,
        status: &ShardKvClusterStatus,
    ) -> Result<bool, Failure> {
        if self.live.status.as_ref() == Some(status) {
            return Ok(false);
        }
        let name = self.live.name_any();
        let patch = json!({
            "apiVersion": ShardKvCluster::api_version(&()),
            "kind": ShardKvCluster::kind(&()),
            "metadata": {
                "name": name,
                "uid": self.live.uid(),
                "resourceVersion": self.live.resource_version(),
            },
            "status": status,
        });
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        self.live = self
            .api
            .patch_status(&name, &parameters, &Patch::Apply(patch))
            .await?;
        self.metrics.object_written("status", "ShardKvCluster");
        Ok(true)
    }
}
