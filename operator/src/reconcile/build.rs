//! The fourth step: turns the plan's actions into writes. Pure.
//!
//! An action that updates or creates objects is rendered by [`crate::build`] and compared with the observed objects:
//! what already matches isn't written. Every write names the object that was observed, so that it never touches a
//! replacement.

use kube::ResourceExt;
use kube::api::DynamicObject;

use super::applied::{Turn, Written};
use super::observed::{FINALIZER, Observed};
use super::wanted::{Comparison, Key, Wanted};
use crate::build::{self, config_name, names};
use crate::crd::ShardKvClusterStatus;
use crate::parts::{Component, Kind};
use crate::plan::{Action, Object, Plan, Rollout, Stage};
use crate::validate::{Desired, Intent};

/// The writes of a round, by action. Empty if nothing is to be written.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Prepared {
    pub(super) steps: Vec<Step>,
}

/// An action with its writes. They are performed in order; the first that fails ends the step.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Step {
    pub(super) action: Action,
    pub(super) turn: Turn,
    pub(super) writes: Vec<Write>,
}

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Write {
    /// Replace the resource's finalizers.
    Finalizers(Vec<String>),
    /// Write the resource's status.
    Status(Box<ShardKvClusterStatus>),
    /// Create an object that wasn't observed.
    Create(Wanted),
    /// Apply an object over the observed one.
    Apply(Wanted, Box<DynamicObject>),
    /// Nothing: the comparison already gave the result.
    Known(Written),
    /// Change the stage of the observed `StatefulSet`.
    SetStage(Box<DynamicObject>, Stage),
    /// Ask the controllers to add groups.
    Join(Vec<u64>),
    /// Ask the controllers to remove groups.
    Leave(Vec<u64>),
    /// Ask the controllers to refuse each later `Join` of a group, up to this incarnation.
    Retire(u64, u64),
    /// Observe once more that a part can be deleted.
    Confirm(Component),
    /// Observe once more that a part can be deleted, and delete its `StatefulSet` if it is still this one.
    DeleteSet(Component, Object),
    /// Delete the observed object.
    Delete(Kind, Box<DynamicObject>),
    /// Delete a volume, if it is still the observed one.
    DeleteVolume {
        /// Name of the volume.
        name: String,
        /// Its uid.
        uid: String,
    },
}

/// Returns the writes of a plan. An action without a write has no step.
pub(super) fn build(
    desired: &Desired,
    observed: &Observed,
    plan: &Plan,
) -> Result<Prepared, serde_json::Error> {
    let builder = Builder { desired, observed };
    let mut steps = Vec::new();
    for action in &plan.actions {
        let mut writes = builder.writes(action)?;
        let turn = turn(&plan.rollout, action, &mut writes);
        writes.retain(|write| *write != Write::Known(Written::Unchanged));
        if !writes.is_empty() {
            let action = action.clone();
            steps.push(Step {
                action,
                turn,
                writes,
            });
        }
    }
    builder.leave_options(&mut steps);
    Ok(Prepared { steps })
}

/// Returns the turn of an action in a rollout. The change of a `StatefulSet` that can't have it in this round is replaced.
fn turn(rollout: &Rollout, action: &Action, writes: &mut [Write]) -> Turn {
    let (Action::Update(part, Kind::Set), [write @ Write::Apply(..)]) = (action, writes) else {
        return Turn::Free;
    };
    if rollout.held.contains(part) {
        *write = Write::Known(Written::Held);
    }
    if rollout.next.contains(part) {
        Turn::Queued
    } else {
        Turn::Free
    }
}

struct Builder<'a> {
    desired: &'a Desired,
    observed: &'a Observed,
}

impl Builder<'_> {
    fn writes(&self, action: &Action) -> Result<Vec<Write>, serde_json::Error> {
        Ok(match action {
            Action::AddFinalizer => vec![self.finalizers(true)],
            Action::RemoveFinalizer | Action::DropFinalizer => vec![self.finalizers(false)],
            Action::RecordGid(gid) => vec![self.recorded(*gid)],
            Action::UpdateShared(kind) => self.shared(*kind)?.into_iter().collect(),
            Action::CreateControllers => self.part(Component::Controller, None)?,
            Action::CreateGroup { gid, stage } => {
                self.part(Component::Group(*gid), Some(*stage))?
            }
            Action::Update(part, kind) => self.of_part(*part, *kind, None)?.into_iter().collect(),
            Action::SetStage { gid, stage } => vec![self.stage(*gid, *stage)],
            Action::Join(gids) => vec![Write::Join(gids.clone())],
            Action::Leave(gids) => vec![Write::Leave(gids.clone())],
            Action::Retire { gid, incarnation } => vec![Write::Retire(*gid, *incarnation)],
            Action::DeleteVolumes(gid) => self.volumes(Component::Group(*gid)),
            Action::DeleteControllerVolumes => self.volumes(Component::Controller),
            Action::DeleteGroup(gid, object) => self.removal(Component::Group(*gid), object),
            Action::DeleteControllers(object) => self.removal(Component::Controller, object),
            Action::DeleteStray(part, kind) => self.deletion(*part, *kind).into_iter().collect(),
            Action::DeleteOptions(name) => {
                let key = (Kind::Config, name.clone());
                self.deletion_of(&key).into_iter().collect()
            }
        })
    }

    /// Sets or removes the operator's finalizer; those of others stay.
    fn finalizers(&self, wanted: bool) -> Write {
        let mut finalizers = self.observed.resource.finalizers().to_vec();
        finalizers.retain(|it| it != FINALIZER);
        finalizers.extend(wanted.then(|| FINALIZER.to_owned()));
        Write::Finalizers(finalizers)
    }

    fn recorded(&self, gid: u64) -> Write {
        let mut status = self.observed.status();
        let gid = i64::try_from(gid).unwrap_or(i64::MAX);
        status.last_gid = status.last_gid.max(Some(gid));
        Write::Status(Box::new(status))
    }

    fn shared(&self, kind: Kind) -> Result<Option<Write>, serde_json::Error> {
        let shared = build::common(&self.desired.cluster);
        let wanted = match kind {
            Kind::Config => return self.options(Wanted::new(kind, &shared.config)?).map(Some),
            Kind::Network => Wanted::new(kind, &shared.network)?,
            Kind::Service => Wanted::new(kind, &shared.client)?,
            _ => match &shared.account {
                Some(account) => Wanted::new(kind, account)?,
                // The user has brought an account.
                None => return Ok(None),
            },
        };
        self.compare(wanted).map(Some)
    }

    /// Returns the write of the options. Under their name, which has a hash of their content, those of a newer operator are as good.
    fn options(&self, wanted: Wanted) -> Result<Write, serde_json::Error> {
        let live = self.observed.children.get(&wanted.key());
        let same = live.is_some_and(|live| wanted.has_data_of(live));
        Ok(match self.compare(wanted)? {
            Write::Known(Written::Outranked(_)) if same => Write::Known(Written::Unchanged),
            write => write,
        })
    }

    /// Leaves the creation of options out that nothing is to mount, because a newer operator left nothing to this one, and would delete
    /// them again.
    fn leave_options(&self, steps: &mut [Step]) {
        let Some(newer) = self.observed.outranked() else {
            return;
        };
        let mounts = |step: &Step| {
            let changes = matches!(step.writes.as_slice(), [Write::Apply(..)]);
            step.action.creates() || matches!(step.action, Action::Update(_, Kind::Set)) && changes
        };
        let present = config_name(&self.desired.cluster);
        if self.observed.mounted.contains(&present) || steps.iter().any(mounts) {
            return;
        }
        let options = Action::UpdateShared(Kind::Config);
        for step in steps.iter_mut().filter(|step| step.action == options) {
            for write in &mut step.writes {
                if matches!(write, Write::Create(_)) {
                    *write = Write::Known(Written::Outranked(newer.clone()));
                }
            }
        }
    }

    /// Renders all objects of a part in the order of [`Kind::OF_PART`].
    fn part(&self, part: Component, stage: Option<Stage>) -> Result<Vec<Write>, serde_json::Error> {
        let kinds = Kind::OF_PART.into_iter();
        let writes = kinds.map(|kind| self.of_part(part, kind, stage).transpose());
        writes.flatten().collect()
    }

    /// Renders an object of a part. `stage` is that of a new group; an existing one keeps its stage.
    fn of_part(
        &self,
        part: Component,
        kind: Kind,
        stage: Option<Stage>,
    ) -> Result<Option<Write>, serde_json::Error> {
        let observed = self.observed.sets.get(&part).map(|set| set.stage);
        let stage = stage.or(observed).unwrap_or(Stage::Member);
        let nodes = match part {
            Component::Controller => build::controllers(&self.desired.cluster),
            Component::Group(gid) => build::group(&self.desired.cluster, gid, stage),
        };
        let wanted = match kind {
            Kind::Set => Wanted::new(kind, &nodes.set)?,
            Kind::Service => Wanted::new(kind, &nodes.service)?,
            _ => match &nodes.budget {
                Some(budget) => Wanted::new(kind, budget)?,
                // The budget isn't wanted any more.
                None => return Ok(self.deletion(part, kind)),
            },
        };
        self.compare(wanted).map(Some)
    }

    fn compare(&self, wanted: Wanted) -> Result<Write, serde_json::Error> {
        let Some(live) = self.observed.children.get(&wanted.key()) else {
            return Ok(Write::Create(wanted));
        };
        let owner = &self.desired.cluster.owner;
        Ok(
            match wanted.compare(owner, live, &self.observed.fruitless)? {
                Comparison::Differs => Write::Apply(wanted, Box::new(live.clone())),
                Comparison::Settled(result) => Write::Known(result),
            },
        )
    }

    fn child(&self, part: Component, kind: Kind) -> Option<&DynamicObject> {
        let key: Key = (kind, names::part(&self.desired.cluster, part));
        self.observed.children.get(&key)
    }

    fn stage(&self, gid: u64, stage: Stage) -> Write {
        match self.child(Component::Group(gid), Kind::Set) {
            Some(live) => Write::SetStage(Box::new(live.clone()), stage),
            None => Write::Known(Written::Raced),
        }
    }

    /// Deletes a part's volumes. A deletion is final: unless the cluster is being deleted, the part is confirmed first.
    fn volumes(&self, part: Component) -> Vec<Write> {
        let confirm = self.desired.intent != Intent::Delete;
        let volumes = self.observed.volumes_of(|of| of == part).into_iter();
        let deletions = volumes.map(|volume| Write::DeleteVolume {
            name: volume.name.clone(),
            uid: volume.uid.clone(),
        });
        let confirm = confirm.then_some(Write::Confirm(part));
        confirm.into_iter().chain(deletions).collect()
    }

    /// Deletes a part's `StatefulSet`, and then its service and budget.
    fn removal(&self, part: Component, object: &Object) -> Vec<Write> {
        let satellites = [Kind::Service, Kind::Budget].into_iter();
        let satellites = satellites.filter_map(|kind| self.deletion(part, kind));
        let set = Write::DeleteSet(part, object.clone());
        std::iter::once(set).chain(satellites).collect()
    }

    /// Deletes a part's object, if it was observed and isn't being deleted already.
    fn deletion(&self, part: Component, kind: Kind) -> Option<Write> {
        let name = names::part(&self.desired.cluster, part);
        self.deletion_of(&(kind, name))
    }

    fn deletion_of(&self, key: &Key) -> Option<Write> {
        let live = self.observed.children.get(key);
        let live = live.filter(|live| live.metadata.deletion_timestamp.is_none())?;
        Some(Write::Delete(key.0, Box::new(live.clone())))
    }
}
