//! Performs the actions of a plan, and publishes an event for each.

use kube::ResourceExt;

use super::apply::Apply;
use super::dereference::{bounded, selector};
use super::objects::Failure;
use crate::build::{self, Component, names};
use crate::plan::{Action, Intent, Object, Stage};
use crate::store::Store;

impl<S: Store> Apply<'_, '_, S> {
    pub(super) async fn act(&mut self, action: &Action) -> Result<(), Failure> {
        match action {
            Action::RecordGid(gid) => self.record(*gid).await,
            Action::CreateControllers => self.create_controllers().await,
            Action::CreateGroup { gid, stage } => self.create_group(*gid, *stage).await,
            Action::SetStage { gid, stage } => self.set_stage(*gid, *stage).await,
            Action::Join(gids) => self.join(gids).await,
            Action::Leave(gids) => self.leave(gids).await,
            Action::DeleteVolumes(gid) => self.delete_volumes(Component::Group(*gid)).await,
            Action::DeleteGroup(gid, object) => self.delete_group(*gid, object).await,
            Action::DeleteControllerVolumes => self.delete_volumes(Component::Controller).await,
            Action::DeleteControllers(object) => {
                self.remove(Component::Controller, object).await?;
                let note = "The controllers are deleted.".to_owned();
                self.events.step("Delete", "ControllersRemoved", note).await;
                Ok(())
            }
            Action::RemoveFinalizer => self.remove_finalizer().await,
        }
    }

    /// Records in the status that this gid was assigned, before the object that shows it is deleted.
    async fn record(&mut self, gid: u64) -> Result<(), Failure> {
        let mut status = self.resource.status();
        let gid = i64::try_from(gid).unwrap_or(i64::MAX);
        status.last_gid = status.last_gid.max(Some(gid));
        self.done.acted |= self.resource.write_status(&status).await?;
        Ok(())
    }

    async fn create_controllers(&mut self) -> Result<(), Failure> {
        if self.create(&build::controllers(self.cluster)).await? {
            let made = match self.cluster.controllers {
                1 => "1 controller is created.".to_owned(),
                count => format!("{count} controllers are created."),
            };
            self.events.step("Create", "ControllersCreated", made).await;
        }
        Ok(())
    }

    async fn create_group(&mut self, gid: u64, stage: Stage) -> Result<(), Failure> {
        if !self.create(&build::group(self.cluster, gid, stage)).await? {
            return Ok(());
        }
        if stage == Stage::New {
            let note = format!("Group {gid} is created. It joins when it has a leader.");
            self.events.step("Create", "GroupCreated", note).await;
        } else {
            let note = format!(
                "The StatefulSet of group {gid} was gone, though the group is still part of the cluster: it is created again."
            );
            self.events.warn("Create", "GroupRestored", note).await;
        }
        Ok(())
    }

    async fn join(&mut self, gids: &[u64]) -> Result<(), Failure> {
        let change = bounded(self.store.join(self.cluster, gids)).await?;
        self.done.acted = true;
        let note = format!(
            "{} joined in configuration {}; moving: {}.",
            groups(gids),
            change.num,
            counted(change.moved, "shard")
        );
        self.events.step("Join", "Joining", note).await;
        Ok(())
    }

    async fn leave(&mut self, gids: &[u64]) -> Result<(), Failure> {
        let change = bounded(self.store.leave(self.cluster, gids)).await?;
        self.done.acted = true;
        let note = format!(
            "{} left in configuration {}; moving to other groups: {}.",
            groups(gids),
            change.num,
            counted(change.moved, "shard")
        );
        self.events.step("Leave", "Leaving", note).await;
        Ok(())
    }

    async fn delete_volumes(&mut self, part: Component) -> Result<(), Failure> {
        // A deletion is final. Unless the cluster is being deleted, check once more that no data is lost.
        if self.intent != Intent::Delete {
            self.confirm_deletable(part, None).await?;
        }
        let volumes = self.volumes(|of| of == part);
        for (name, uid) in &volumes {
            match self.objects.delete_volume(name, uid).await {
                Ok(()) => self.done.acted = true,
                // The volume is deleted already, or was replaced; the next round finds out.
                Err(Failure::Race) => self.done.unsettled = true,
                Err(failure) => return Err(failure),
            }
        }
        let note = format!(
            "Deleted {} of {}.",
            counted(volumes.len(), "volume"),
            called(part)
        );
        self.events.step("Delete", "VolumesDeleted", note).await;
        Ok(())
    }

    async fn delete_group(&mut self, gid: u64, planned: &Object) -> Result<(), Failure> {
        let part = Component::Group(gid);
        let kept = self.volumes(|of| of == part);
        self.remove(part, planned).await?;
        if self.intent == Intent::Delete {
            let note = format!("Group {gid} is deleted.");
            self.events.step("Delete", "GroupRemoved", note).await;
            return Ok(());
        }
        let note = format!("Group {gid} has handed over all that it had.");
        self.events.step("Leave", "Drained", note).await;
        let note = format!("Group {gid} is deleted; its number is never used again.");
        self.events.step("Delete", "GroupRemoved", note).await;
        if self.retains_groups() && !kept.is_empty() {
            let labels = selector(&names::part_selector(self.cluster, part));
            let note = format!(
                "Group {gid} leaves {} behind that nothing needs: `kubectl delete pvc -l {labels}`",
                counted(kept.len(), "volume")
            );
            self.events.step("Retain", "VolumesRetained", note).await;
        }
        Ok(())
    }

    async fn remove_finalizer(&mut self) -> Result<(), Failure> {
        self.resource.remove_finalizer().await?;
        self.done.acted = true;
        let name = self.resource.live.name_any();
        let note = match self.volumes(|_| true).len() {
            0 => format!("Cluster {name} is deleted."),
            count => {
                let labels = selector(&names::selector(self.cluster));
                format!(
                    "Cluster {name} is deleted. It leaves {} with all data, for a cluster of the same name, or until `kubectl delete pvc -l {labels}`",
                    counted(count, "volume")
                )
            }
        };
        self.events.step("Delete", "ClusterDeleted", note).await;
        Ok(())
    }
}

/// Formats a count with its noun: `1 shard`, `2 shards`.
fn counted(count: impl TryInto<u64>, what: &str) -> String {
    match count.try_into().unwrap_or(u64::MAX) {
        1 => format!("1 {what}"),
        count => format!("{count} {what}s"),
    }
}

fn called(part: Component) -> String {
    match part {
        Component::Controller => "the controllers".to_owned(),
        Component::Group(gid) => format!("group {gid}"),
    }
}

/// Formats groups as the beginning of a sentence.
fn groups(gids: &[u64]) -> String {
    let list: Vec<String> = gids.iter().map(u64::to_string).collect();
    match list.as_slice() {
        [gid] => format!("Group {gid}"),
        _ => format!("Groups {}", list.join(", ")),
    }
}
