//! The proof that a group exists before it joins.
//!
//! A group that joins becomes the target of shards, and the addresses in the configuration are all that other groups and clients
//! know of it. So before a controller proposes a Join, it asks the addresses: a quorum of them must be nodes of that group that
//! follow these controllers, and none of them may be something else. The group has no shards then, or only shards that these
//! controllers gave it.
//!
//! A group needs no proof if the latest configuration lists all its addresses already: then the Join changes nothing, or calls a
//! leaving group back.
//!
//! The addresses come from a caller, so everything is bounded: the groups of a Join, the proofs and the calls at the same time, and
//! the time. A node that has just started may not have heard from its controllers yet, so undecided addresses are asked again until
//! the time is over.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use api::errors;
use api::v1::admin_client::AdminClient;
use api::v1::{self, ErrorDetail, GroupAddresses, GroupKind, StatusResponse};
use futures::{StreamExt as _, stream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout_at};
use types::{ClusterId, Gid, NodeId, ShardConfig, check_addresses};

use crate::forward::{Forwarder, once};

/// The time for a proof. Within it, addresses are asked again unless the answer is final. Clients ask another node after two seconds
/// by default, so the refusal must reach them before.
const TIME_OF_PROOF: Duration = Duration::from_millis(1_500);
/// Addresses are asked again only if a call has this much time. The first call has all the time of the proof: an answer over a slow
/// link is as good as any.
const LEAST_TIME_OF_CALL: Duration = Duration::from_millis(500);
/// The pause before addresses are asked again.
const PAUSE: Duration = Duration::from_millis(100);
/// The maximum number of calls at the same time for one proof.
const MAX_CALLS: usize = 64;
/// The maximum number of proofs at the same time.
const MAX_PROOFS: usize = 4;
/// The maximum number of groups that one Join adds, unless it does without a proof.
const MAX_GROUPS: usize = 64;

/// Proves the groups of Joins.
pub(crate) struct Proofs {
    forwarder: Arc<Forwarder>,
    places: Semaphore,
}

/// The finding at one address.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Finding {
    /// A node of the group that is to join.
    Member { node: NodeId, group: String },
    /// Nothing that decides; a later call may find something else.
    Undecided(String),
    /// Something other than a node of the group.
    Other(String),
}

/// The reason why a Join isn't proposed. Nothing was done.
#[derive(Debug, thiserror::Error)]
enum ProofError {
    /// Too many groups for one proof.
    #[error("{0} groups are too many to be proven at once: join at most {limit} with one call", limit = MAX_GROUPS)]
    TooManyGroups(usize),
    /// Too many proofs run at the same time. A later try may succeed.
    #[error("too many joins are being proven")]
    Busy,
    /// The addresses don't prove that the group exists. A later try succeeds if its nodes answer then.
    #[error(
        "{gid} doesn't join: {needed} of its {} addresses must be nodes of {gid} that follow these controllers, and none may be another \
         node. Found: {}. Correct the addresses, or start the nodes with --role shards --gid {} and these --controllers",
        .findings.len(), Listed(.findings), .gid.0
    )]
    Unproven {
        gid: Gid,
        needed: usize,
        findings: Vec<(String, Finding)>,
    },
}

impl From<ProofError> for ErrorDetail {
    fn from(error: ProofError) -> Self {
        match error {
            ProofError::TooManyGroups(_) => errors::bad_request("groups", error),
            ProofError::Busy => errors::overloaded("proofs of joins", MAX_PROOFS as u64, 200),
            ProofError::Unproven { .. } => errors::conflict(error),
        }
    }
}

/// `a:1: a controller; b:1: no answer`.
struct Listed<'a>(&'a [(String, Finding)]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (address, finding)) in self.0.iter().enumerate() {
            let gap = if at == 0 { "" } else { "; " };
            write!(f, "{gap}{address}: ")?;
            match finding {
                Finding::Member { node, .. } => write!(f, "node {node} of the group")?,
                Finding::Undecided(what) | Finding::Other(what) => f.write_str(what)?,
            }
        }
        Ok(())
    }
}

impl Proofs {
    pub(crate) fn new(forwarder: Arc<Forwarder>) -> Self {
        Self {
            forwarder,
            places: Semaphore::new(MAX_PROOFS),
        }
    }

    /// Returns an error unless each of the groups that needs a proof is proven. `latest` is the latest configuration of the
    /// controllers `cluster`.
    pub(crate) async fn prove(
        &self,
        groups: &[GroupAddresses],
        cluster: ClusterId,
        latest: &ShardConfig,
    ) -> Result<(), ErrorDetail> {
        let groups = groups.iter();
        let unproven: Vec<&GroupAddresses> = groups.filter(|it| needs_proof(it, latest)).collect();
        if unproven.is_empty() {
            return Ok(());
        }
        if unproven.len() > MAX_GROUPS {
            return Err(ProofError::TooManyGroups(unproven.len()).into());
        }
        let Ok(_place) = self.places.try_acquire() else {
            return Err(ProofError::Busy.into());
        };
        Ok(self.ask(&unproven, cluster).await?)
    }

    /// Asks all addresses until all groups are proven, one of them can't be, or the time is over.
    async fn ask(&self, groups: &[&GroupAddresses], cluster: ClusterId) -> Result<(), ProofError> {
        let end = Instant::now() + TIME_OF_PROOF;
        loop {
            let begun = Instant::now();
            let calls = groups.iter().flat_map(|group| {
                let gid = Gid(group.gid);
                let addresses = group.addresses.iter();
                addresses.map(move |address| async move {
                    let found = self.call(address, gid, cluster, end).await;
                    (gid, (address.clone(), found))
                })
            });
            let calls: Vec<_> = calls.collect();
            let answers = stream::iter(calls).buffered(MAX_CALLS);
            let mut findings: BTreeMap<Gid, Vec<(String, Finding)>> = BTreeMap::new();
            for (gid, finding) in answers.collect::<Vec<_>>().await {
                findings.entry(gid).or_default().push(finding);
            }
            let mut failed = None;
            for (gid, findings) in findings {
                match judge(gid, findings) {
                    Ok(()) => {}
                    Err((error, true)) => return Err(error),
                    Err((error, false)) => failed = failed.or(Some(error)),
                }
            }
            let Some(error) = failed else {
                return Ok(());
            };
            if Instant::now().max(begun + PAUSE) + LEAST_TIME_OF_CALL > end {
                return Err(error);
            }
            sleep_until(begun + PAUSE).await;
        }
    }

    /// Asks one address. The answer comes before `end`.
    async fn call(&self, address: &str, gid: Gid, cluster: ClusterId, end: Instant) -> Finding {
        let channels = &self.forwarder.channels;
        let call = async {
            let channel = match channels.get(address).await {
                Ok(channel) => channel,
                Err(error) => return Finding::Undecided(format!("no connection ({error})")),
            };
            let mut admin = AdminClient::new(channel);
            match admin.status(once(v1::StatusRequest {})).await {
                Ok(status) => examine(status.get_ref(), gid, cluster),
                Err(status) => {
                    channels.discard(address);
                    Finding::Undecided(format!("no ShardKV node answers ({})", status.message()))
                }
            }
        };
        let silent = |_| Finding::Undecided("no answer in time".to_owned());
        timeout_at(end, call).await.unwrap_or_else(silent)
    }
}

/// Returns true if the latest configuration doesn't list these addresses of the group. A group that the controllers refuse
/// anyway needs no proof: their error says more.
fn needs_proof(group: &GroupAddresses, latest: &ShardConfig) -> bool {
    let listed = latest.addresses(Gid(group.gid));
    let is_listed = group.addresses.iter().all(|it| listed.contains(it));
    group.gid != 0 && check_addresses(&group.addresses).is_ok() && !is_listed
}

/// Examines a node's status: it must be a node of the group `gid` that follows the controllers `cluster`.
fn examine(status: &StatusResponse, gid: Gid, cluster: ClusterId) -> Finding {
    let other = |what: &str| Finding::Other(what.to_owned());
    let of = |their: u64| match their {
        their if their == cluster.0 => "this cluster".to_owned(),
        their => format!("another cluster, {}", ClusterId(their)),
    };
    match status.kind() {
        GroupKind::Shards => {}
        GroupKind::Controller if status.cluster_id == cluster.to_string() => {
            return other("a controller of this cluster");
        }
        GroupKind::Controller => return other("a controller of another cluster"),
        GroupKind::Standalone => return other("a node of a store without controllers"),
        GroupKind::Unspecified => return other("a node of an unknown kind"),
    }
    let theirs = Gid(status.gid);
    match status.controllers {
        0 if theirs != gid => Finding::Other(format!("a node of {theirs}")),
        0 => Finding::Undecided(format!(
            "a node of {theirs} that hasn't heard from its controllers yet"
        )),
        controllers if theirs != gid || controllers != cluster.0 => {
            Finding::Other(format!("a node of {theirs} of {}", of(controllers)))
        }
        _ if status.cluster_id.is_empty() => {
            Finding::Undecided(format!("a node of {theirs}, which isn't formed yet"))
        }
        _ => Finding::Member {
            node: NodeId(status.node_id),
            group: status.cluster_id.clone(),
        },
    }
}

/// Decides from the findings at all addresses of a group. The error says if it is final.
fn judge(gid: Gid, mut findings: Vec<(String, Finding)>) -> Result<(), (ProofError, bool)> {
    refuse_strangers(gid, &mut findings);
    let needed = findings.len() / 2 + 1;
    let count = |is: fn(&Finding) -> bool| findings.iter().filter(|(_, it)| is(it)).count();
    let members = count(|it| matches!(it, Finding::Member { .. }));
    let others = count(|it| matches!(it, Finding::Other(_)));
    if others == 0 && members >= needed {
        return Ok(());
    }
    let error = ProofError::Unproven {
        gid,
        needed,
        findings,
    };
    Err((error, others > 0))
}

/// Marks nodes that don't count: those that answer at two addresses, and those of a second group with the same gid.
fn refuse_strangers(gid: Gid, findings: &mut [(String, Finding)]) {
    let mut groups: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, finding) in &*findings {
        if let Finding::Member { group, .. } = finding {
            *groups.entry(group).or_default() += 1;
        }
    }
    let largest = groups.into_iter().max_by_key(|(_, nodes)| *nodes);
    let largest = largest.map(|(group, _)| group.to_owned());
    let mut seen = BTreeSet::new();
    for (_, finding) in findings {
        let Finding::Member { node, group } = finding else {
            continue;
        };
        if Some(&*group) != largest.as_ref() {
            *finding = Finding::Other(format!("a node of another group that calls itself {gid}"));
        } else if !seen.insert(*node) {
            *finding = Finding::Other(format!("node {node} again"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: ClusterId = ClusterId(7);

    fn status(kind: GroupKind, gid: u64, controllers: u64) -> StatusResponse {
        let mut status = StatusResponse {
            gid,
            controllers,
            node_id: 5,
            cluster_id: "c1".to_owned(),
            ..StatusResponse::default()
        };
        status.set_kind(kind);
        status
    }

    fn member(node: u64, group: &str) -> Finding {
        Finding::Member {
            node: NodeId(node),
            group: group.to_owned(),
        }
    }

    fn text(finding: Finding) -> String {
        Listed(&[("a:1".to_owned(), finding)]).to_string()
    }

    #[test]
    fn a_node_of_the_group_that_follows_these_controllers_is_a_member() {
        let good = status(GroupKind::Shards, 2, 7);
        assert_eq!(examine(&good, Gid(2), OURS), member(5, "c1"));
    }

    #[test]
    fn each_other_answer_is_named() {
        let mut controller = status(GroupKind::Controller, 0, 0);
        let told = |status: &StatusResponse| match examine(status, Gid(2), OURS) {
            Finding::Other(what) => what,
            other => panic!("{other:?}"),
        };
        assert_eq!(told(&controller), "a controller of another cluster");
        controller.cluster_id = OURS.to_string();
        assert_eq!(told(&controller), "a controller of this cluster");
        for (status, expected) in [
            (
                status(GroupKind::Standalone, 0, 0),
                "a node of a store without controllers",
            ),
            (
                status(GroupKind::Unspecified, 2, 7),
                "a node of an unknown kind",
            ),
            (
                status(GroupKind::Shards, 3, 7),
                "a node of g3 of this cluster",
            ),
            (status(GroupKind::Shards, 3, 0), "a node of g3"),
            (
                status(GroupKind::Shards, 2, 8),
                "a node of g2 of another cluster, c0000000000000008",
            ),
        ] {
            assert_eq!(told(&status), expected);
        }
    }

    #[test]
    fn a_node_that_starts_is_asked_again() {
        let waits = status(GroupKind::Shards, 2, 0);
        let mut unformed = status(GroupKind::Shards, 2, 7);
        unformed.cluster_id.clear();
        for status in [waits, unformed] {
            let finding = examine(&status, Gid(2), OURS);
            assert!(matches!(finding, Finding::Undecided(_)), "{finding:?}");
        }
    }

    #[test]
    fn a_quorum_of_different_nodes_of_one_group_is_a_proof() {
        let down = || Finding::Undecided("down".to_owned());
        let wrong = || Finding::Other("a controller".to_owned());
        let one = |node| member(node, "c1");
        // The findings, and the result: true for a proof, or whether the refusal is final.
        let cases: [(Vec<Finding>, Result<(), bool>); 9] = [
            (vec![one(1)], Ok(())),
            (vec![one(1), one(2), down()], Ok(())),
            (vec![one(1), down(), down()], Err(false)),
            (vec![one(1), down()], Err(false)),
            (vec![one(1), one(2), wrong()], Err(true)),
            (vec![one(1), one(1), one(2)], Err(true)),
            (vec![one(1), one(2), member(3, "c2")], Err(true)),
            (vec![down()], Err(false)),
            (vec![wrong()], Err(true)),
        ];
        for (findings, expected) in cases {
            let named = findings.iter().cloned().zip(1..);
            let named = named.map(|(it, at)| (format!("a:{at}"), it)).collect();
            let result = judge(Gid(2), named).map_err(|(_, is_final)| is_final);
            assert_eq!(result, expected, "{findings:?}");
        }
    }

    #[test]
    fn a_refusal_names_each_address_and_the_remedy() {
        let findings = vec![
            ("a:1".to_owned(), member(5, "c1")),
            ("b:1".to_owned(), Finding::Undecided("no answer".to_owned())),
            ("c:1".to_owned(), member(5, "c1")),
        ];
        let (error, _) = judge(Gid(2), findings).unwrap_err();
        let detail = ErrorDetail::from(error);
        for part in [
            "g2 doesn't join: 2 of its 3 addresses",
            "b:1: no answer; c:1: node",
            "--gid 2",
        ] {
            assert!(detail.message.contains(part), "{}", detail.message);
        }
        assert!(matches!(
            detail.kind,
            Some(v1::error_detail::Kind::Conflict(_))
        ));
        assert!(text(member(5, "c1")).ends_with("of the group"));
    }

    #[test]
    fn only_addresses_that_are_not_listed_need_a_proof() {
        let groups = [(Gid(1), vec!["a:1".to_owned(), "b:1".to_owned()])].into();
        let latest = ShardConfig::new(types::ConfigNum(1), groups, [(4, Gid(1))]).unwrap();
        let group = |gid, addresses: &[&str]| GroupAddresses {
            gid,
            addresses: addresses.iter().map(|&it| it.to_owned()).collect(),
            ..GroupAddresses::default()
        };
        for (group, expected) in [
            (group(1, &["a:1", "b:1"]), false),
            (group(1, &["a:1"]), false),
            (group(1, &["a:1", "c:1"]), true),
            (group(2, &["c:1"]), true),
            // The controllers say what is wrong with these.
            (group(0, &["c:1"]), false),
            (group(2, &[]), false),
            (group(2, &["nonsense"]), false),
        ] {
            assert_eq!(needs_proof(&group, &latest), expected, "{group:?}");
        }
    }
}
