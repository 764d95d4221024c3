//! The fifth step: performs the prepared writes in order, and writes the status. Holds the clients, and decides nothing
//! beyond the plan's conditions.
//!
//! Just before a deletion the operator reads the object again: it must be the same object, still marked as leaving, and
//! the controllers must still report that the group holds nothing and is retired. Just before a creation it reads the name again: an
//! object of the cluster that has lost its labels isn't in the observation.

use std::time::Instant;

use kube::ResourceExt;
use kube::api::DynamicObject;

use super::applied::{Applied, Written};
use super::build::{Prepared, Step, Write};
use super::context::{Context, ReconcileError};
use super::events::Events;
use super::notes;
use super::objects::{Failure, Objects};
use super::observe::bounded;
use super::observed::{Observed, object, stage};
use super::wanted::{Comparison, Wanted, is_owned_by};
use crate::build::{STAGE_ANNOTATION, names};
use crate::crd::{ShardKvCluster, ShardKvClusterStatus};
use crate::parts::{Component, Kind};
use crate::plan::{Object, Progress, Stage};
use crate::store::Store;
use crate::validate::{Desired, Intent};

/// Performs the writes of one round.
pub(super) struct Writer<'a, S> {
    context: &'a Context<S>,
    objects: Objects<'a>,
    events: Events<'a>,
    desired: &'a Desired,
    observed: &'a Observed,
    /// The resource as last read or written; its version is the precondition of the next write.
    resource: ShardKvCluster,
}

impl<'a, S: Store> Writer<'a, S> {
    pub(super) fn new(
        context: &'a Context<S>,
        desired: &'a Desired,
        observed: &'a Observed,
    ) -> Self {
        let namespace = &desired.cluster.namespace;
        Self {
            context,
            objects: Objects::new(&context.client, &context.metrics, namespace),
            events: Events::new(&context.client, &context.reporter, &observed.resource),
            desired,
            observed,
            resource: observed.resource.clone(),
        }
    }

    /// Performs the writes that the results so far allow. Returns an error only if the rest of the round is pointless.
    pub(super) async fn apply(&mut self, prepared: Prepared) -> Result<Applied, kube::Error> {
        let mut applied = Applied::default();
        for step in prepared.steps {
            if !applied.allows(&step.action) {
                continue;
            }
            let Step {
                action,
                turn,
                writes,
            } = step;
            let results = if applied.holds(turn) {
                vec![Written::Held]
            } else {
                self.perform(writes).await?
            };
            for note in notes::of(&action, self.desired, self.observed, &results) {
                self.events.publish(note).await;
            }
            applied.add(action, turn, results);
        }
        Ok(applied)
    }

    /// Performs the writes of an action up to the first that stops it.
    async fn perform(&mut self, writes: Vec<Write>) -> Result<Vec<Written>, kube::Error> {
        let mut results = Vec::new();
        for write in writes {
            let result = settle(self.write(write).await)?;
            let stops = result.stops();
            results.push(result);
            if stops {
                break;
            }
        }
        Ok(results)
    }

    async fn write(&mut self, write: Write) -> Result<Written, Failure> {
        let store = &self.context.store;
        let cluster = &self.desired.cluster;
        match write {
            Write::Finalizers(finalizers) => {
                let changed = self.objects.set_finalizers(&self.resource, &finalizers);
                self.resource = changed.await?;
            }
            Write::Status(status) => return self.set_status(&status).await,
            Write::Create(wanted) => return self.create(wanted).await,
            Write::Apply(wanted, live) => return self.replace(wanted, &live).await,
            Write::Known(result) => return Ok(result),
            Write::SetStage(live, stage) => {
                let objects = &self.objects;
                objects
                    .annotate(Kind::Set, &live, STAGE_ANNOTATION, stage.name())
                    .await?;
            }
            Write::Join(gids) => {
                let change = bounded(store.join(cluster, &gids)).await?;
                return Ok(Written::Configured(change));
            }
            Write::Leave(gids) => {
                let change = bounded(store.leave(cluster, &gids)).await?;
                return Ok(Written::Configured(change));
            }
            Write::Retire(gid, incarnation) => {
                bounded(store.retire(cluster, gid, incarnation)).await?;
            }
            Write::Confirm(part) => {
                let permitted = |view: &Progress, gid| view.permits_deletion(gid);
                self.confirm_deletable(part, None, permitted).await?;
                return Ok(Written::Unchanged);
            }
            Write::DeleteSet(part, planned) => {
                // The volumes of a group that was forgotten, or that the controllers don't know, stay.
                let unneeded = |view: &Progress, gid| {
                    view.proves_drained(gid) || (!view.members.is_empty() && !view.knows(gid))
                };
                let live = self
                    .confirm_deletable(part, Some(&planned), unneeded)
                    .await?;
                self.objects.delete(Kind::Set, &live, true).await?;
            }
            Write::Delete(kind, live) => self.objects.delete(kind, &live, false).await?,
            Write::DeleteVolume { name, uid } => {
                return match self.objects.delete_volume(&name, &uid).await {
                    Err(Failure::Race) => Ok(Written::Vanished),
                    result => result.map(|()| Written::Changed),
                };
            }
        }
        Ok(Written::Changed)
    }

    /// Creates an object that wasn't observed, unless its name belongs to another owner. The cluster's own object that
    /// has lost its labels is brought up to date.
    async fn create(&self, wanted: Wanted) -> Result<Written, Failure> {
        let Some(live) = self.objects.get(wanted.kind, &wanted.name).await? else {
            self.objects.apply(wanted, None).await?;
            return Ok(Written::Created);
        };
        let owner = &self.desired.cluster.owner;
        match wanted.compare(owner, &live, &self.observed.fruitless)? {
            Comparison::Differs => self.replace(wanted, &live).await,
            Comparison::Settled(result) => Ok(result),
        }
    }

    /// Applies an object over the live one, and remembers if that changed nothing.
    async fn replace(&self, wanted: Wanted, live: &DynamicObject) -> Result<Written, Failure> {
        let (key, hash) = (wanted.key(), wanted.hash().to_owned());
        let object = self.objects.apply(wanted, Some(live)).await?;
        let version = object.resource_version();
        let changed = live.resource_version() != version;
        let fruitless = (!changed).then(|| (hash, version.unwrap_or_default()));
        let cluster = &self.desired.cluster;
        let memory = &self.context.memory;
        memory.set_fruitless(&cluster.namespace, &cluster.name, key, fruitless);
        Ok(if changed {
            Written::Changed
        } else {
            Written::Unchanged
        })
    }

    /// Re-reads a part's `StatefulSet`. Returns it if it is still the planned one and, unless the cluster is being
    /// deleted, if the controllers' present view still allows it.
    async fn confirm_deletable(
        &self,
        part: Component,
        planned: Option<&Object>,
        allows: impl Fn(&Progress, u64) -> bool,
    ) -> Result<DynamicObject, Failure> {
        let cluster = &self.desired.cluster;
        let name = names::part(cluster, part);
        let live = self.objects.get(Kind::Set, &name).await?;
        let live = live.ok_or(Failure::Race)?;
        let now = object(&live);
        let same = planned.is_none_or(|planned| planned.uid == now.uid);
        if !same || !is_owned_by(&live, &cluster.owner.uid) || now.terminating {
            return Err(Failure::Race);
        }
        if self.desired.intent == Intent::Delete {
            return Ok(live);
        }
        let view = bounded(self.context.store.view(cluster)).await?.plan;
        let allowed = part.gid().is_some_and(|gid| allows(&view, gid));
        if allowed && stage(&live) == Some(Stage::Leaving) {
            Ok(live)
        } else {
            Err(Failure::Race)
        }
    }

    async fn set_status(&mut self, status: &ShardKvClusterStatus) -> Result<Written, Failure> {
        if self.resource.status.as_ref() == Some(status) {
            return Ok(Written::Unchanged);
        }
        self.resource = self.objects.set_status(&self.resource, status).await?;
        Ok(Written::Changed)
    }

    /// Returns true if the status that was observed is left to the newer operator that wrote it.
    fn leaves_status(&self) -> bool {
        let cluster = &self.desired.cluster;
        let status = self.observed.resource.status.as_ref();
        let memory = &self.context.memory;
        memory.leaves_status(&cluster.namespace, &cluster.name, status, Instant::now())
    }

    /// Writes the status if it differs and isn't left to a newer operator, and publishes what it changed.
    pub(super) async fn report(
        &mut self,
        status: &ShardKvClusterStatus,
    ) -> Result<Written, ReconcileError> {
        let before = self.resource.status.clone().unwrap_or_default();
        let result = if self.leaves_status() {
            Written::Unchanged
        } else {
            settle(self.set_status(status).await)?
        };
        if let Written::Refused(why) = result {
            return Err(ReconcileError::Refused(why));
        }
        if result == Written::Changed
            && let Some(note) = notes::of_status(&before, status)
        {
            self.events.publish(note).await;
        }
        if !result.failed() {
            let cluster = &self.desired.cluster;
            let metrics = &self.context.metrics;
            metrics.cluster_seen(&cluster.namespace, &cluster.name, status);
        }
        Ok(result)
    }
}

/// Converts a failure into a result. Returns an error only if the rest of the round is pointless.
fn settle(result: Result<Written, Failure>) -> Result<Written, kube::Error> {
    Ok(match result {
        Ok(result) => result,
        Err(Failure::Race) => Written::Raced,
        Err(Failure::Refused(message)) => Written::Refused(message),
        Err(Failure::Store(error)) => Written::Store(error),
        Err(Failure::Kube(error)) => return Err(error),
    })
}
