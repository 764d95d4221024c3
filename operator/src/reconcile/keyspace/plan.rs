//! Decides the steps of a keyspace's round. Pure.

use shardkv_client::{Keyspace, KeyspaceOptions};

use super::conditions::Verdict;
use crate::crd::condition::AVAILABLE;
use crate::crd::{DeletionPolicy, ShardKvClusterStatus, ShardKvKeyspaceStatus};
use crate::store::StoreError;
use crate::validate::keyspace::InvalidKeyspace;

/// The cluster as a round has observed it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum ClusterSeen {
    /// The cluster runs.
    Found,
    /// There is no such cluster.
    Absent,
    /// The cluster is being deleted.
    Ends,
    /// The cluster doesn't list the namespace of the keyspace.
    NotAdmitted,
    /// The operator may not read it, or the resource is incomplete.
    Unreadable(String),
}

/// The service as a round has observed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ServiceSeen {
    /// It isn't there, or differs from what is wanted.
    Differs,
    /// It is as wanted, or a newer operator applied it.
    Settled,
    /// It is of the resource, or of one of the same name, and about to be deleted.
    Waits(String),
    /// Another object has the name.
    Taken(String),
}

/// The answer of the store.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Asked {
    /// It wasn't asked, because it can't answer; or because there is nothing to ask for.
    No(String),
    /// It was asked.
    Yes(Result<Option<Keyspace>, StoreError>),
}

/// The observed state, as far as decisions depend on it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct State {
    /// Name of the keyspace in the store.
    pub(super) name: String,
    /// Name of the cluster.
    pub(super) cluster_name: String,
    /// The end of the keyspace.
    pub(super) policy: DeletionPolicy,
    /// True if the resource is being deleted.
    pub(super) deleting: bool,
    /// True if the resource has the operator's finalizer.
    pub(super) has_finalizer: bool,
    /// The options that the resource asks for.
    pub(super) options: Result<KeyspaceOptions, InvalidKeyspace>,
    /// Cluster id in the status: the keyspace has existed.
    pub(super) known_id: Option<String>,
    /// The cluster.
    pub(super) cluster: ClusterSeen,
    /// The service.
    pub(super) service: ServiceSeen,
    /// The keyspace.
    pub(super) asked: Asked,
    /// True if the namespace is being deleted, or the deletion has waited long enough: nothing holds it up any more.
    pub(super) hurries: bool,
}

impl State {
    /// Returns the keyspace, if the store has it.
    pub(super) fn found(&self) -> Option<&Keyspace> {
        match &self.asked {
            Asked::Yes(Ok(found)) => found.as_ref(),
            Asked::Yes(Err(_)) | Asked::No(_) => None,
        }
    }

    /// Returns true if the deletion must wait for the store.
    pub(super) fn waits(&self) -> bool {
        self.deleting && self.has_finalizer && !release(self, &mut Vec::new())
    }
}

/// A step.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// Adds the finalizer.
    AddFinalizer,
    /// Creates the keyspace.
    Create(KeyspaceOptions),
    /// Takes over a keyspace that exists, such as one that a deleted resource has left.
    Adopt(Keyspace),
    /// Replaces the options of the keyspace.
    SetOptions(Keyspace, KeyspaceOptions),
    /// Applies the service.
    ApplyService,
    /// Deletes the keyspace. With `hurries`, its failure stops nothing.
    Delete {
        /// The keyspace.
        keyspace: Keyspace,
        /// True if the resource is released even if this fails.
        hurries: bool,
    },
    /// Reports that the keyspace may still be in the store.
    ReportLeft(String),
    /// Removes the finalizer: the resource ends.
    RemoveFinalizer,
}

/// The steps of a round, in order. A step that fails stops the later ones.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    /// The steps.
    pub(super) steps: Vec<Step>,
    /// The condition, if all steps succeed.
    pub(super) verdict: Verdict,
}

/// Decides.
pub(super) fn decide(state: &State) -> Plan {
    if state.deleting {
        return end(state);
    }
    let mut steps = Vec::new();
    match (state.policy, state.has_finalizer) {
        (DeletionPolicy::Delete, false) => steps.push(Step::AddFinalizer),
        (DeletionPolicy::Retain, true) => steps.push(Step::RemoveFinalizer),
        _ => {}
    }
    let verdict = match obstacle(state) {
        Some(verdict) => verdict,
        None => match (&state.options, &state.asked) {
            (Err(why), _) => Verdict::invalid(why),
            (Ok(options), asked) => keep(state, *options, asked, &mut steps),
        },
    };
    Plan { steps, verdict }
}

/// Returns the reason why the keyspace and its service aren't touched.
fn obstacle(state: &State) -> Option<Verdict> {
    let cluster = &state.cluster_name;
    Some(match &state.cluster {
        ClusterSeen::Absent => Verdict::cluster_absent(cluster),
        ClusterSeen::Ends => Verdict::cluster_ends(cluster),
        ClusterSeen::NotAdmitted => Verdict::not_admitted(cluster),
        ClusterSeen::Unreadable(why) => Verdict::cluster_unreadable(cluster, why),
        ClusterSeen::Found => match &state.service {
            ServiceSeen::Taken(by) => Verdict::service_taken(by),
            ServiceSeen::Waits(why) => Verdict::service_waits(why),
            ServiceSeen::Differs | ServiceSeen::Settled => return None,
        },
    })
}

/// Adds the steps that make the keyspace and its service as they are wanted.
fn keep(state: &State, options: KeyspaceOptions, asked: &Asked, steps: &mut Vec<Step>) -> Verdict {
    let verdict = match asked {
        Asked::No(why) | Asked::Yes(Err(StoreError::Unreachable(why))) => Verdict::unavailable(why),
        Asked::Yes(Err(StoreError::Refused(why))) => Verdict::refused(why),
        // A new keyspace would be an empty store under the name of a full one.
        Asked::Yes(Ok(None)) if state.known_id.is_some() => Verdict::lost(&state.name),
        Asked::Yes(Ok(None)) => {
            steps.push(Step::Create(options));
            Verdict::served()
        }
        Asked::Yes(Ok(Some(keyspace))) => {
            if state.known_id != Some(id(keyspace)) {
                steps.push(Step::Adopt(keyspace.clone()));
            }
            if keyspace.options == options {
                Verdict::of(keyspace)
            } else {
                steps.push(Step::SetOptions(keyspace.clone(), options));
                Verdict::served()
            }
        }
    };
    if state.service == ServiceSeen::Differs {
        steps.push(Step::ApplyService);
    }
    verdict
}

/// Returns the steps of a deletion.
fn end(state: &State) -> Plan {
    let mut steps = Vec::new();
    let verdict = Verdict::deleting();
    if state.has_finalizer && release(state, &mut steps) {
        steps.push(Step::RemoveFinalizer);
    }
    Plan { steps, verdict }
}

/// Adds the steps before the resource is released. Returns false if it must wait.
fn release(state: &State, steps: &mut Vec<Step>) -> bool {
    if state.policy == DeletionPolicy::Retain {
        return true;
    }
    let left = match (&state.cluster, &state.asked) {
        (ClusterSeen::Absent, _) => "its cluster is gone",
        (ClusterSeen::Ends, _) => "its cluster is being deleted",
        (ClusterSeen::NotAdmitted, _) => "its cluster doesn't list this namespace",
        (ClusterSeen::Found, Asked::Yes(Ok(None))) => return true,
        (ClusterSeen::Found, Asked::Yes(Ok(Some(keyspace)))) => {
            let (keyspace, hurries) = (keyspace.clone(), state.hurries);
            steps.push(Step::Delete { keyspace, hurries });
            return true;
        }
        _ if state.hurries => "its cluster doesn't answer",
        _ => return false,
    };
    steps.push(Step::ReportLeft(left.to_owned()));
    true
}

/// Returns the cluster id as the status shows it.
pub(super) fn id(keyspace: &Keyspace) -> String {
    format!("{:016x}", keyspace.cluster_id)
}

/// Returns the reason not to ask the store for a keyspace: by the status of its cluster, it can't answer. So the keyspaces of a cluster
/// that is down don't hold up those of others.
pub(super) fn silence(
    cluster: Option<&ShardKvClusterStatus>,
    keyspace: Option<&ShardKvKeyspaceStatus>,
) -> Option<String> {
    let mut conditions = cluster.iter().flat_map(|status| &status.conditions);
    let Some(available) = conditions.find(|it| it.type_ == AVAILABLE) else {
        return Some("the cluster is being created.".to_owned());
    };
    if available.status == "Unknown" || available.reason == "Creating" {
        return Some(available.message.clone());
    }
    let gid = keyspace.and_then(|status| status.group)?;
    let mut groups = cluster.iter().flat_map(|status| &status.groups);
    let leaderless = groups.find(|group| group.gid == gid)?.leader.is_none();
    leaderless.then(|| format!("group {gid}, which owns the keyspace's shard, has no leader."))
}
