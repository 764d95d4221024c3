//! The administrator, who changes memberships and transfers leaderships.
//!
//! Administrators must follow the rule of lost disks (see `faults`): they change a membership only while it is stable,
//! and one change at a time. An impatient administrator doesn't wait.

use raft::{Membership, MembershipChange, Payload};
use replica::{Answer, Request, RequestId};

use super::World;
use crate::group::GroupId;
use crate::machine::Outcome;
use crate::violation::{Checked, Violation};

impl World {
    pub(super) fn admin_is_waiting(&self, group: GroupId) -> bool {
        let changing = self.groups[group].changing;
        changing.is_some_and(|(id, host, incarnation)| {
            let host = &self.hosts[host];
            // The request is still in flight, or waits in the process that it was sent to.
            host.incarnation == incarnation || host.open_requests.contains_key(&id)
        })
    }

    /// Requests a membership change. Most are sensible, some are not.
    pub(super) fn change_membership(&mut self) {
        let group = self.draw_group();
        let known = if self.scenario.impatient_admin {
            let leader = self.leader(group).and_then(|leader| self.status(leader));
            leader.map(|status| status.membership)
        } else {
            self.stable_membership(group)
                .filter(|_| !self.admin_is_waiting(group))
        };
        let Some(membership) = known else {
            return;
        };
        let changes = if self.scenario.impatient_admin {
            self.rng.between(1, 3)
        } else {
            1
        };
        for _ in 0..changes {
            if let Some(change) = self.draw_change(group, &membership) {
                self.request_change(group, change);
            }
        }
    }

    fn draw_change(&mut self, group: GroupId, membership: &Membership) -> Option<MembershipChange> {
        let hosts = self.groups[group].hosts.clone();
        let host = hosts.start + self.rng.index(hosts.len());
        let (node, address) = (self.hosts[host].node, self.hosts[host].address.clone());
        let voters = membership.voters().count();
        match membership.get(node) {
            None => Some(MembershipChange::AddLearner { node, address }),
            Some(_) if self.rng.chance(50_000) => {
                Some(MembershipChange::AddLearner { node, address })
            }
            Some(_) if !membership.is_voter(node) && self.rng.chance(800_000) => {
                Some(MembershipChange::Promote { node })
            }
            Some(_) if membership.is_voter(node) && voters < 2 => None,
            Some(_) => Some(MembershipChange::Remove { node }),
        }
    }

    /// Sends a change to the leader.
    pub(super) fn request_change(&mut self, group: GroupId, change: MembershipChange) {
        let waits = self.admin_is_waiting(group) && !self.scenario.impatient_admin;
        let Some(leader) = self.leader(group).filter(|_| !waits) else {
            return;
        };
        self.count("membership changes asked");
        self.trace(leader, || format!("the administrator asks: {change:?}"));
        let id = self.admin_request(leader, Request::ChangeMembership(change.clone()));
        self.groups[group].asked.insert(id, (leader, change));
        self.groups[group].changing = Some((id, leader, self.hosts[leader].incarnation));
    }

    pub(super) fn transfer(&mut self) {
        let group = self.draw_group();
        let Some(leader) = self.leader(group) else {
            return;
        };
        self.count("transfers asked");
        let hosts = self.groups[group].hosts.clone();
        let target = hosts.start + self.rng.index(hosts.len());
        let target = self.rng.coin().then(|| self.hosts[target].node);
        let host = if self.rng.chance(900_000) {
            leader
        } else {
            hosts.start + self.rng.index(hosts.len())
        };
        self.trace(host, || format!("is asked to hand over to {target:?}"));
        self.admin_request(host, Request::TransferLeadership(target));
    }

    pub(super) fn admin_answered(&mut self, id: RequestId, outcome: Outcome) -> Checked {
        self.check_changed(id, &outcome)?;
        if let Ok(Answer::LeadershipTransferred(node)) = &outcome
            && !self.groups.iter().any(|it| it.invariants.has_led(*node))
        {
            return Err(Violation::new(
                "an answered transfer has a new leader",
                format!("{node} never led"),
            ));
        }
        for group in &mut self.groups {
            if group.changing.is_some_and(|(changing, ..)| changing == id) {
                group.changing = None;
            }
        }
        match &outcome {
            Ok(Answer::MembershipChanged(_)) => self.count("membership changes done"),
            Ok(Answer::LeadershipTransferred(_)) => self.count("transfers done"),
            _ => {}
        }
        self.admin_answers.insert(id, outcome);
        Ok(())
    }

    /// Checks the answer to a membership change: the entry that it names is the change. At the end the entry must have been committed.
    fn check_changed(&mut self, id: RequestId, outcome: &Outcome) -> Checked {
        for group in &mut self.groups {
            let Some((host, change)) = group.asked.remove(&id) else {
                continue;
            };
            let index = match outcome {
                Ok(Answer::MembershipChanged(index)) => *index,
                Ok(other) => {
                    return Err(Violation::new(
                        "answers fit their requests",
                        format!("{change:?} was answered {other:?}"),
                    ));
                }
                Err(_) => return Ok(()),
            };
            let found = self.hosts[host].disk.entries(index..=index).pop();
            // The entry may be compacted by now.
            let Some(entry) = found else {
                return Ok(());
            };
            let done = match &entry.payload {
                Payload::Membership(membership) => shows(membership, &change),
                _ => false,
            };
            if !done {
                return Err(Violation::new(
                    "an answered membership change is in the log",
                    format!("{change:?} was answered with {index}, which is {entry:?}"),
                ));
            }
            group.changed.push(entry.id);
        }
        Ok(())
    }
}

/// Returns true if a membership has a change.
fn shows(membership: &Membership, change: &MembershipChange) -> bool {
    match change {
        MembershipChange::AddLearner { node, .. } => membership.get(*node).is_some(),
        MembershipChange::Promote { node } => membership.is_voter(*node),
        MembershipChange::Remove { node } => membership.get(*node).is_none(),
        _ => true,
    }
}
