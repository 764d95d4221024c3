//! The fourth step: writes the objects that differ, and performs the actions that the plan allows now, in its order.
//!
//! An object that already matches isn't written. The operator never changes an object that isn't the cluster's own.
//! Just before a deletion the operator reads the object again: it must be the same object, still marked as leaving, and
//! the controllers must still report that the group holds nothing.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt;
use kube::api::DynamicObject;

use super::Memory;
use super::dereference::{Snapshot, bounded, gid, object, stage};
use super::events::Events;
use super::objects::{Failure, Kind, Objects, Wanted, is_owned_by};
use super::resource::Handle;
use crate::build::{self, Component, Nodes, STAGE_ANNOTATION, names};
use crate::crd::Retention;
use crate::plan::{Action, Intent, Object, Plan, Stage};
use crate::store::{Store, StoreError};
use crate::validate::Cluster;

/// Result of the step.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Applied {
    /// True if anything was changed.
    pub(super) acted: bool,
    /// True if pods are replaced because of a change.
    pub(super) rolled: bool,
    /// True if the observed state had changed, so that the next round should follow soon.
    pub(super) unsettled: bool,
    /// Objects that must disappear first, as readable text.
    pub(super) waits: Vec<String>,
    /// Refused changes and failed requests.
    pub(super) problems: Vec<Problem>,
}

/// A problem that needs attention from a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    /// Reason of the condition.
    pub(super) reason: &'static str,
    /// Description of the problem and its remedy.
    pub(super) message: String,
}

/// Inputs and results of the writes of one round.
pub(super) struct Apply<'a, 'h, S> {
    pub(super) objects: &'a Objects<'a>,
    pub(super) store: &'a S,
    pub(super) cluster: &'a Cluster,
    pub(super) events: &'a Events,
    pub(super) memory: &'a Memory,
    pub(super) intent: Intent,
    pub(super) resource: &'a mut Handle<'h>,
    pub(super) snapshot: &'a mut Snapshot,
    pub(super) done: Applied,
}

impl<S: Store> Apply<'_, '_, S> {
    /// Performs the writes that are allowed now.
    pub(super) async fn run(mut self, plan: &Plan) -> Result<Applied, kube::Error> {
        match self.intent {
            Intent::Pause => {}
            Intent::Delete => self.delete(plan).await?,
            Intent::Run(_) => {
                self.common().await?;
                self.actions(&plan.actions).await?;
                if plan.lost.is_empty() {
                    self.refresh().await?;
                    self.sweep(&self.strays(plan)).await?;
                }
            }
        }
        Ok(self.done)
    }

    /// Removes leftovers of incomplete deletions before the resource is released.
    async fn delete(&mut self, plan: &Plan) -> Result<(), kube::Error> {
        let (last, first): (Vec<_>, Vec<_>) = plan
            .actions
            .iter()
            .cloned()
            .partition(|action| *action == Action::RemoveFinalizer);
        self.actions(&first).await?;
        self.sweep(&self.strays(plan)).await?;
        let Applied {
            unsettled,
            waits,
            problems,
            ..
        } = &self.done;
        if !unsettled && waits.is_empty() && problems.is_empty() {
            self.actions(&last).await?;
        }
        Ok(())
    }

    async fn actions(&mut self, actions: &[Action]) -> Result<(), kube::Error> {
        for action in actions {
            let result = self.act(action).await;
            let creates = matches!(
                action,
                Action::CreateControllers | Action::CreateGroup { .. }
            );
            // A failed creation doesn't block other actions; every other action depends on its predecessors.
            if !self.settle(result)? && !creates {
                break;
            }
        }
        Ok(())
    }

    /// Records the result of a step and returns true on success. Returns an error only if the rest of the round is
    /// pointless.
    pub(super) fn settle(&mut self, result: Result<(), Failure>) -> Result<bool, kube::Error> {
        let Err(failure) = result else {
            return Ok(true);
        };
        match failure {
            Failure::Race => self.done.unsettled = true,
            Failure::Wait(message) => self.done.waits.push(message),
            Failure::Refused(message) => self.problem("ApplyRefused", message),
            Failure::Taken(message) => self.problem("NameTaken", message),
            Failure::Store(StoreError::Refused(message)) => {
                self.problem("Refused", format!("the controllers refuse: {message}"));
            }
            Failure::Store(error) => self.problem("StoreUnreachable", error.to_string()),
            Failure::Kube(error) => return Err(error),
        }
        Ok(false)
    }

    fn problem(&mut self, reason: &'static str, message: String) {
        self.done.problems.push(Problem { reason, message });
    }

    /// Applies the objects that all pods share.
    async fn common(&mut self) -> Result<(), kube::Error> {
        let common = build::common(self.cluster);
        let account = common.account.as_ref();
        let account = account.map(|account| Wanted::new(Kind::Account, account));
        let others = [
            Wanted::new(Kind::Config, &common.config),
            Wanted::new(Kind::Network, &common.network),
            Wanted::new(Kind::Service, &common.client),
        ];
        for wanted in account.into_iter().chain(others) {
            let result = self.ensure(wanted).await.map(|_| ());
            self.settle(result)?;
        }
        Ok(())
    }

    /// Brings the objects of all existing `StatefulSet`s up to date.
    async fn refresh(&mut self) -> Result<(), kube::Error> {
        let sets: Vec<_> = self
            .snapshot
            .sets
            .iter()
            .map(|(part, set)| (*part, set.clone()))
            .collect();
        for (part, set) in sets {
            if set.object.terminating {
                let name = names::part(self.cluster, part);
                self.done
                    .waits
                    .push(format!("StatefulSet {name} is being deleted"));
                continue;
            }
            let stage = set.stage;
            let nodes = match part {
                Component::Controller => build::controllers(self.cluster),
                Component::Group(gid) => build::group(self.cluster, gid, stage),
            };
            for kind in [Kind::Service, Kind::Budget, Kind::Set] {
                let result = self.one_of(&nodes, kind).await;
                self.done.rolled |= kind == Kind::Set && matches!(result, Ok(true));
                self.settle(result.map(|_| ()))?;
            }
        }
        Ok(())
    }

    /// Creates the objects of a part, the `StatefulSet` last: the objects that pods need exist when the pods start, and
    /// only a part with a `StatefulSet` counts as existing. Returns true if the `StatefulSet` was created or changed.
    pub(super) async fn create(&mut self, nodes: &Nodes) -> Result<bool, Failure> {
        self.one_of(nodes, Kind::Service).await?;
        self.one_of(nodes, Kind::Budget).await?;
        self.one_of(nodes, Kind::Set).await
    }

    async fn one_of(&mut self, nodes: &Nodes, kind: Kind) -> Result<bool, Failure> {
        match kind {
            Kind::Service => self.ensure(Wanted::new(kind, &nodes.service)).await,
            Kind::Set => self.ensure(Wanted::new(kind, &nodes.set)).await,
            _ => {
                if let Some(budget) = &nodes.budget {
                    self.ensure(Wanted::new(kind, budget)).await
                } else {
                    // The budget isn't wanted any more.
                    self.drop(kind, &nodes.set.name_any()).await
                }
            }
        }
    }

    /// Applies an object; returns true if that changed anything.
    async fn ensure(&mut self, wanted: Result<Wanted, serde_json::Error>) -> Result<bool, Failure> {
        let mut wanted = wanted?;
        let key = (wanted.kind, wanted.name.clone());
        let live = match self.snapshot.children.get(&key) {
            Some(live) => Some(live.clone()),
            // The object has another owner, has lost its labels, or doesn't exist.
            None => self.objects.get(wanted.kind, &wanted.name).await?,
        };
        if let Some(live) = &live {
            self.claim(wanted.kind, live)?;
            wanted.keep_stage(live);
            if wanted.is_in(live)? || self.is_fruitless(&wanted, live) {
                return Ok(false);
            }
        }
        let hash = wanted.hash().to_owned();
        let object = self.objects.apply(wanted, live.as_ref()).await?;
        let version = object.resource_version();
        let changed = live.is_none_or(|live| live.resource_version() != version);
        let fruitless = (!changed).then(|| (hash, version.unwrap_or_default()));
        self.memory
            .of(self.objects.namespace, &self.cluster.name, |it| {
                it.set_fruitless(key.clone(), fruitless);
            });
        self.done.acted |= changed;
        self.snapshot.children.insert(key, object);
        Ok(changed)
    }

    /// Checks that the operator may write an object.
    fn claim(&self, kind: Kind, live: &DynamicObject) -> Result<(), Failure> {
        let called = format!("{} {}", kind.name(), live.name_any());
        let owner = &self.cluster.owner;
        if is_owned_by(live, &owner.uid) {
            return match live.metadata.deletion_timestamp {
                Some(_) => Err(Failure::Wait(format!("{called} is being deleted"))),
                None => Ok(()),
            };
        }
        let owners = live.owner_references();
        let same_name = |it: &OwnerReference| it.kind == owner.kind && it.name == owner.name;
        if owners.iter().any(same_name) {
            return Err(Failure::Wait(format!(
                "{called} is left of a cluster of the same name, and will be removed by Kubernetes"
            )));
        }
        let of = owners.first().map_or(String::new(), |owner| {
            format!(" (of {} {})", owner.kind, owner.name)
        });
        Err(Failure::Taken(format!("{called}{of}")))
    }

    /// Returns true if the same content was already applied to this version of the object without effect: something
    /// else, such as an admission webhook, always alters it.
    fn is_fruitless(&self, wanted: &Wanted, live: &DynamicObject) -> bool {
        let tried = (
            wanted.hash().to_owned(),
            live.resource_version().unwrap_or_default(),
        );
        let key = (wanted.kind, wanted.name.clone());
        self.memory
            .of(self.objects.namespace, &self.cluster.name, |it| {
                it.is_fruitless(&key, &tried)
            })
    }

    /// Deletes an object that the resource owns, if it exists; returns true if it did.
    pub(super) async fn drop(&mut self, kind: Kind, name: &str) -> Result<bool, Failure> {
        let key = (kind, name.to_owned());
        let Some(live) = self.snapshot.children.get(&key) else {
            return Ok(false);
        };
        if live.metadata.deletion_timestamp.is_some() {
            return Ok(false);
        }
        self.objects.delete(kind, live, false).await?;
        self.done.acted = true;
        self.snapshot.children.remove(&key);
        Ok(true)
    }

    /// Returns the services and budgets without a `StatefulSet`, left by an interrupted deletion or creation.
    fn strays(&self, plan: &Plan) -> Vec<(Kind, String)> {
        let deleting = self.intent == Intent::Delete;
        let view = self
            .snapshot
            .view
            .as_ref()
            .and_then(|view| view.as_ref().ok());
        let mut needed: BTreeSet<u64> = BTreeSet::new();
        if let Some(view) = view {
            needed.extend(view.plan.members.iter().chain(view.plan.settled.keys()));
        }
        needed.extend(plan.actions.iter().filter_map(|action| match action {
            Action::CreateGroup { gid, .. } => Some(*gid),
            _ => None,
        }));
        let goes = |part: Component| match gid(part) {
            _ if self.snapshot.sets.contains_key(&part) => false,
            // Only the controllers know if a group is needed.
            Some(gid) => deleting || (view.is_some() && !needed.contains(&gid)),
            None => deleting,
        };
        let names = self.snapshot.children.keys();
        names
            .filter(|(kind, name)| {
                matches!(kind, Kind::Service | Kind::Budget)
                    && names::part_of(self.cluster, name).is_some_and(goes)
            })
            .cloned()
            .collect()
    }

    async fn sweep(&mut self, strays: &[(Kind, String)]) -> Result<(), kube::Error> {
        for (kind, name) in strays {
            let result = self.drop(*kind, name).await.map(|_| ());
            self.settle(result)?;
        }
        Ok(())
    }

    /// Changes the stage annotation of a group's `StatefulSet`.
    pub(super) async fn set_stage(&mut self, group: u64, to: Stage) -> Result<(), Failure> {
        let part = Component::Group(group);
        let key = (Kind::Set, names::part(self.cluster, part));
        let live = self.snapshot.children.get(&key).ok_or(Failure::Race)?;
        let changed = self
            .objects
            .annotate(Kind::Set, live, STAGE_ANNOTATION, to.name())
            .await?;
        self.done.acted = true;
        if let Some(set) = self.snapshot.sets.get_mut(&part) {
            set.stage = to;
            set.object = object(&changed);
        }
        self.snapshot.children.insert(key, changed);
        Ok(())
    }

    /// Re-reads a part's `StatefulSet`. Returns it if it is still the planned one and, unless the cluster is being
    /// deleted, if the controllers still report that the group holds nothing.
    pub(super) async fn confirm_deletable(
        &self,
        part: Component,
        planned: Option<&Object>,
    ) -> Result<DynamicObject, Failure> {
        let name = names::part(self.cluster, part);
        let live = self.objects.get(Kind::Set, &name).await?;
        let live = live.ok_or(Failure::Race)?;
        let now = object(&live);
        let same = planned.is_none_or(|planned| planned.uid == now.uid);
        let ours = is_owned_by(&live, &self.cluster.owner.uid);
        if !same || !ours || now.terminating {
            return Err(Failure::Race);
        }
        if self.intent == Intent::Delete {
            return Ok(live);
        }
        let view = bounded(self.store.view(self.cluster)).await?.plan;
        // Controllers that know no group have lost their data; see `plan`.
        let empty = gid(part).is_some_and(|gid| {
            !view.members.is_empty()
                && !view.members.contains(&gid)
                && !view.settled.contains_key(&gid)
        });
        if empty && stage(&live) == Stage::Leaving {
            Ok(live)
        } else {
            Err(Failure::Race)
        }
    }

    /// Deletes a part's `StatefulSet`, and then its service and budget.
    pub(super) async fn remove(
        &mut self,
        part: Component,
        planned: &Object,
    ) -> Result<(), Failure> {
        let live = self.confirm_deletable(part, Some(planned)).await?;
        self.objects.delete(Kind::Set, &live, true).await?;
        self.done.acted = true;
        let name = names::part(self.cluster, part);
        self.snapshot.children.remove(&(Kind::Set, name.clone()));
        self.snapshot.sets.remove(&part);
        self.drop(Kind::Service, &name).await?;
        self.drop(Kind::Budget, &name).await?;
        Ok(())
    }

    /// Returns name and uid of the volumes of some parts, without volumes that are being deleted.
    pub(super) fn volumes(&self, of: impl Fn(Component) -> bool) -> Vec<(String, String)> {
        let volumes = self.snapshot.volumes.iter();
        volumes
            .filter(|volume| of(volume.part) && !volume.terminating)
            .map(|volume| (volume.name.clone(), volume.uid.clone()))
            .collect()
    }

    /// Returns true if volumes of removed groups are retained.
    pub(super) fn retains_groups(&self) -> bool {
        self.cluster.spec.storage.on_group_removal == Retention::Retain
    }
}
