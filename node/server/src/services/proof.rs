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
//! the time. A node that has just started may not have heard from its controllers yet, so each undecided address is asked again until
//! the time is over, or a quorum of each group has answered.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use api::errors;
use api::v1::admin_client::AdminClient;
use api::v1::{self, ErrorDetail, GroupAddresses, GroupKind, StatusResponse};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
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
/// The time for answers that contradict, once a quorum of each group has answered.
const GRACE: Duration = Duration::from_millis(100);
/// The maximum number of calls of one proof that begin at the same time.
const MAX_CALLS: usize = 64;
/// The time after which a call that got no answer makes place for another.
const TURN: Duration = Duration::from_millis(250);
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
        let mut addresses: BTreeMap<Gid, Vec<String>> = BTreeMap::new();
        for group in groups {
            let all = addresses.entry(Gid(group.gid)).or_default();
            all.extend_from_slice(&group.addresses);
        }
        let ask = |address, gid| self.call(address, gid, cluster);
        find(addresses, end, ask).await
    }

    /// Asks one address.
    async fn call(&self, address: String, gid: Gid, cluster: ClusterId) -> Finding {
        let channels = &self.forwarder.channels;
        let channel = match channels.get(&address).await {
            Ok(channel) => channel,
            Err(error) => return Finding::Undecided(format!("no connection ({error})")),
        };
        let mut admin = AdminClient::new(channel);
        match admin.status(once(v1::StatusRequest {})).await {
            Ok(status) => examine(status.get_ref(), gid, cluster),
            Err(status) => {
                channels.discard(&address);
                Finding::Undecided(format!("no ShardKV node answers ({})", status.message()))
            }
        }
    }
}

/// Asks the addresses of each group with `ask`, and judges as the answers come. Once each group is proven, it waits a little for
/// answers that contradict.
async fn find<F>(
    groups: BTreeMap<Gid, Vec<String>>,
    end: Instant,
    ask: impl Fn(String, Gid) -> F,
) -> Result<(), ProofError>
where
    F: Future<Output = Finding>,
{
    let (slots, ask) = (&Semaphore::new(MAX_CALLS), &ask);
    let mut calls = FuturesUnordered::new();
    let mut groups: BTreeMap<Gid, Vec<(String, Finding)>> = groups
        .into_iter()
        .map(|(gid, addresses)| {
            for (at, address) in addresses.iter().cloned().enumerate() {
                calls.push(async move {
                    let found = decide(slots, end, || ask(address.clone(), gid)).await;
                    (gid, at, found)
                });
            }
            let silent = addresses.into_iter().map(|address| (address, silent()));
            (gid, silent.collect())
        })
        .collect();
    let mut proven = BTreeSet::new();
    let mut until = end;
    while let Ok(Some((gid, at, found))) = timeout_at(until, calls.next()).await {
        let findings = groups.entry(gid).or_default();
        if let Some((_, finding)) = findings.get_mut(at) {
            *finding = found;
        }
        match judge(gid, findings.clone()) {
            Ok(()) if proven.insert(gid) && proven.len() == groups.len() => {
                until = end.min(Instant::now() + GRACE);
            }
            Err((error, true)) => return Err(error),
            Ok(()) | Err((_, false)) => {}
        }
    }
    let mut groups = groups.into_iter();
    groups.try_for_each(|(gid, findings)| judge(gid, findings).map_err(|(error, _)| error))
}

/// Asks one address until it decides, or there is no time for another call.
async fn decide<F>(slots: &Semaphore, end: Instant, ask: impl Fn() -> F) -> Finding
where
    F: Future<Output = Finding>,
{
    loop {
        let begun = Instant::now();
        let found = timeout_at(end, in_turn(slots, ask())).await;
        let found = found.unwrap_or_else(|_| silent());
        let again = Instant::now().max(begun + PAUSE);
        if !matches!(found, Finding::Undecided(_)) || again + LEAST_TIME_OF_CALL > end {
            return found;
        }
        sleep_until(again).await;
    }
}

/// Makes a call that holds a slot at first. If no answer comes soon, another call gets the slot, so that silent addresses don't
/// hold up the others.
async fn in_turn(slots: &Semaphore, call: impl Future<Output = Finding>) -> Finding {
    let mut call = std::pin::pin!(call);
    {
        let _slot = slots.acquire().await;
        if let Ok(found) = timeout(TURN, &mut call).await {
            return found;
        }
    }
    call.await
}

fn silent() -> Finding {
    Finding::Undecided("no answer in time".to_owned())
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
mod tests;
