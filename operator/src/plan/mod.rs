//! The plan: the phase of each group and the next actions for it. Pure.
//!
//! # Decisions
//!
//! [`decide`] depends only on the observed state. It keeps no memory and compares no two specs: its input is the
//! current state, and its output is the actions that are allowed in that state. The operator observes again after the
//! actions. So the operator may be killed between any two actions; its successor observes the same state and continues.
//! [`Action`] is everything that a round may write: finalizers, objects, stages, volumes and requests to the
//! controllers. Their order is part of the plan, and [`Action::needs`] says which of them a failed one blocks.
//!
//! The controllers' configuration is the source of truth for membership. A group that it doesn't contain never joined, or
//! left, or was forgotten. The controllers say explicitly which groups are drained or forgotten; the [`Stage`], an annotation of the
//! group's `StatefulSet`, tells the others apart:
//!
//! A stage that somebody removed is read from the group's phase in the status, and written again.
//!
//! | in the configuration | removed | stage | the group is |
//! |---|---|---|---|
//! | yes | | any | a member |
//! | as leaving | | any | leaving, or joins again if it is wanted again |
//! | no | forgotten | any | forgotten: retired, marked as leaving and deleted, but its volumes stay |
//! | no | | new | new: joins when it has a leader |
//! | no | drained | leaving | drained: retired, then deleted, with its volumes if the resource says so |
//! | no | no | leaving | unknown, most likely it never joined: deleted, but its volumes stay |
//! | no | | member | *lost*: the controllers don't know it, though nobody asked it to leave |
//!
//! # Safety rules
//!
//! - The operator deletes a group's volumes only after the group was marked as leaving, and the controllers call it drained
//!   and retired: so a `Join` that arrives late is refused. The volumes of a forgotten group stay, because nothing says that its
//!   data are elsewhere. A group's absence from the configuration proves nothing. Controllers that lost their disks know no groups: then
//!   a lost group stops all changes until a person intervenes.
//! - The last group never leaves: a group is asked to leave only when all groups that are to stay are members with a
//!   leader, and at least one is to stay.
//! - A gid is never reused. The next gid is above the greatest one visible anywhere (`StatefulSet`s, volumes,
//!   configuration, status), and the status records a gid before the object that shows it is deleted.

mod action;
mod deletion;
mod groups;
mod rollout;
mod state;
#[cfg(test)]
mod tests;
mod upkeep;

use crate::validate::Intent;
pub use action::{Action, Needs, Plan};
pub use rollout::Rollout;
pub use state::{Object, Pods, Progress, Removed, Set, Stage, State};

/// Returns the phases and the actions for the observed state.
pub fn decide(seen: &State) -> Plan {
    match seen.intent {
        Intent::Delete => deletion::plan(seen),
        Intent::Pause => upkeep::idle(seen, groups::phases(seen)),
        Intent::Run(wanted) => upkeep::complete(seen, groups::plan(seen, wanted)),
    }
}
