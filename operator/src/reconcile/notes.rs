//! Texts of events: what an action did, for users. Pure.

use super::applied::Written;
use super::observed::Observed;
use crate::build::names;
use crate::crd::condition::DEGRADED;
use crate::crd::{Retention, ShardKvClusterStatus};
use crate::parts::Component;
use crate::plan::{Action, Stage};
use crate::store::Change;
use crate::validate::{Cluster, Desired, Intent};

/// An event to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Note {
    /// True if the event needs attention.
    pub(super) warns: bool,
    /// Word in camel case: the activity.
    pub(super) action: &'static str,
    /// Word in camel case: the step that is done.
    pub(super) reason: String,
    /// A sentence.
    pub(super) text: String,
}

impl Note {
    pub(super) fn step(action: &'static str, reason: &str, text: impl Into<String>) -> Self {
        Self {
            warns: false,
            action,
            reason: reason.to_owned(),
            text: text.into(),
        }
    }

    pub(super) fn warning(action: &'static str, reason: &str, text: impl Into<String>) -> Self {
        Self {
            warns: true,
            ..Self::step(action, reason, text)
        }
    }
}

/// Returns the events of an action with these results of its writes: none unless all writes succeeded.
pub(super) fn of(
    action: &Action,
    desired: &Desired,
    observed: &Observed,
    results: &[Written],
) -> Vec<Note> {
    if results.iter().any(Written::failed) {
        return Vec::new();
    }
    // The `StatefulSet` is written last. One that only changed was there already, without its labels.
    let created = results.last() == Some(&Written::Created);
    let note = match action {
        Action::CreateControllers if created => controllers_created(desired),
        Action::CreateGroup { gid, stage } if created => group_created(*gid, *stage),
        Action::Join(gids) => joined(gids, configured(results)),
        Action::Leave(gids) => left(gids, configured(results)),
        Action::Retire { gid, .. } => {
            let text = format!("The controllers refuse each later join of group {gid}.");
            Note::step("Retire", "Retired", text)
        }
        Action::DeleteVolumes(gid) => volumes_deleted(observed, Component::Group(*gid)),
        Action::DeleteControllerVolumes => volumes_deleted(observed, Component::Controller),
        Action::DeleteGroup(gid, _) => return group_removed(desired, observed, *gid),
        Action::DeleteControllers(_) => Note::step(
            "Delete",
            "ControllersRemoved",
            "The controllers are deleted.",
        ),
        Action::RemoveFinalizer => {
            cluster_deleted(&desired.cluster, observed.volumes_of(|_| true).len())
        }
        _ => return Vec::new(),
    };
    vec![note]
}

/// Returns the event of a status: the cluster becomes degraded, the reason changes, or the cluster recovers.
pub(super) fn of_status(before: &ShardKvClusterStatus, now: &ShardKvClusterStatus) -> Option<Note> {
    let degraded = |status: &ShardKvClusterStatus| {
        let mut conditions = status.conditions.iter();
        conditions
            .find(|it| it.type_ == DEGRADED && it.status == "True")
            .cloned()
    };
    match (degraded(before), degraded(now)) {
        (was, Some(is)) if was.as_ref().map(|was| &was.reason) != Some(&is.reason) => {
            Some(Note::warning("Look", &is.reason, is.message))
        }
        (Some(was), None) => {
            let text = format!("{} is over.", was.reason);
            Some(Note::step("Look", "Recovered", text))
        }
        _ => None,
    }
}

fn controllers_created(desired: &Desired) -> Note {
    let text = match desired.cluster.controllers {
        1 => "1 controller is created.".to_owned(),
        count => format!("{count} controllers are created."),
    };
    Note::step("Create", "ControllersCreated", text)
}

fn group_created(gid: u64, stage: Stage) -> Note {
    if stage == Stage::New {
        let text = format!("Group {gid} is created. It joins when it has a leader.");
        return Note::step("Create", "GroupCreated", text);
    }
    let text = format!(
        "The StatefulSet of group {gid} was gone, though the group is still part of the cluster: it is created again."
    );
    Note::warning("Create", "GroupRestored", text)
}

fn configured(results: &[Written]) -> Change {
    let mut changes = results.iter().filter_map(|result| match result {
        Written::Configured(change) => Some(*change),
        _ => None,
    });
    changes.next_back().unwrap_or_default()
}

fn joined(gids: &[u64], change: Change) -> Note {
    let text = format!(
        "{} joined in configuration {}; moving: {}.",
        groups(gids),
        change.num,
        counted(change.moved, "shard")
    );
    Note::step("Join", "Joining", text)
}

fn left(gids: &[u64], change: Change) -> Note {
    let text = format!(
        "{} told to leave in configuration {}; moving to other groups: {}.",
        groups(gids),
        change.num,
        counted(change.moved, "shard")
    );
    Note::step("Leave", "Leaving", text)
}

fn volumes_deleted(observed: &Observed, part: Component) -> Note {
    let of = match part {
        Component::Controller => "the controllers".to_owned(),
        Component::Group(gid) => format!("group {gid}"),
    };
    let volumes = observed.volumes_of(|of| of == part).len();
    let text = format!("Deleted {} of {of}.", counted(volumes, "volume"));
    Note::step("Delete", "VolumesDeleted", text)
}

fn group_removed(desired: &Desired, observed: &Observed, gid: u64) -> Vec<Note> {
    if desired.intent == Intent::Delete {
        let text = format!("Group {gid} is deleted.");
        return vec![Note::step("Delete", "GroupRemoved", text)];
    }
    let view = observed.view().map(|view| &view.plan);
    let drained = view.is_some_and(|view| view.proves_drained(gid));
    let forgotten = view.is_some_and(|view| view.proves_forgotten(gid));
    let mut notes = Vec::new();
    if drained {
        let text = format!("Group {gid} has handed over all that it had.");
        notes.push(Note::step("Leave", "Drained", text));
    }
    let text = format!("Group {gid} is deleted; its number is never used again.");
    notes.push(Note::step("Delete", "GroupRemoved", text));
    let part = Component::Group(gid);
    let kept = observed.volumes_of(|of| of == part).len();
    if kept == 0 {
        return notes;
    }
    let labels = names::formatted(&names::part_selector(&desired.cluster, part));
    let delete = format!("`kubectl delete pvc -l {labels}`");
    let kept = counted(kept, "volume");
    let retains = desired.cluster.spec.storage.on_group_removal == Retention::Retain;
    if drained && retains {
        let text = format!("Group {gid} leaves {kept} behind that nothing needs: {delete}");
        notes.push(Note::step("Retain", "VolumesRetained", text));
    } else if !drained {
        let why = if forgotten {
            "was forgotten, and handed nothing over"
        } else {
            "is unknown to the controllers"
        };
        let text = format!(
            "Group {gid} {why}: {kept} may hold data that are nowhere else, and stay. Once nobody needs them: {delete}"
        );
        notes.push(Note::warning("Retain", "VolumesRetained", text));
    }
    notes
}

/// Returns the event of the end of a cluster that leaves this many volumes behind.
pub(super) fn cluster_deleted(cluster: &Cluster, volumes: usize) -> Note {
    let name = &cluster.name;
    let text = match volumes {
        0 => format!("Cluster {name} is deleted."),
        count => {
            let labels = names::formatted(&names::selector(cluster));
            format!(
                "Cluster {name} is deleted. It leaves {} with all data, for a cluster of the same name, or until `kubectl delete pvc -l {labels}`",
                counted(count, "volume")
            )
        }
    };
    Note::step("Delete", "ClusterDeleted", text)
}

/// Formats a count with its noun: `1 shard`, `2 shards`.
fn counted(count: impl TryInto<u64>, what: &str) -> String {
    match count.try_into().unwrap_or(u64::MAX) {
        1 => format!("1 {what}"),
        count => format!("{count} {what}s"),
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
