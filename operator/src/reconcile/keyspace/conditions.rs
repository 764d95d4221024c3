//! The condition of a keyspace: its reasons and messages. Pure.

use shardkv_client::Keyspace;

use crate::crd::condition::{self, READY};
use crate::validate::keyspace::InvalidKeyspace;

/// The condition Ready, without its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Status: true, false, or `None` for unknown.
    pub(super) holds: Option<bool>,
    /// Reason, as one word in camel case.
    pub(super) reason: &'static str,
    /// A sentence that says what to do, if anything.
    pub(super) message: String,
}

impl Verdict {
    fn new(holds: Option<bool>, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            holds,
            reason,
            message: message.into(),
        }
    }

    pub(super) fn condition(&self) -> condition::Verdict {
        condition::Verdict {
            of: READY,
            holds: self.holds,
            reason: self.reason,
            message: self.message.clone(),
        }
    }

    /// Returns true if the API server or the store refuses a change.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(
            self.reason,
            "ServiceRefused" | "ServiceNameTaken" | "StoreRefused"
        )
    }

    /// The verdict about a keyspace with the wanted options.
    pub(super) fn of(keyspace: &Keyspace) -> Self {
        if keyspace.no_space {
            let text = "Puts are refused, because the quota is exhausted: raise spec.quota, or delete keys and compact.";
            return Self::new(Some(false), "QuotaExhausted", text);
        }
        Self::served()
    }

    pub(super) fn served() -> Self {
        Self::new(
            Some(true),
            "Served",
            "Clients can read and write by the service.",
        )
    }

    pub(super) fn deleting() -> Self {
        let text = "The keyspace is being deleted. The resource goes when the store has done it, or after five minutes.";
        Self::new(Some(false), "Deleting", text)
    }

    pub(super) fn invalid(why: &InvalidKeyspace) -> Self {
        Self::new(Some(false), "InvalidSpec", format!("{why}."))
    }

    pub(super) fn cluster_absent(cluster: &str) -> Self {
        let text = format!(
            "There is no ShardKvCluster {cluster}: create it, or create this resource anew with another clusterRef."
        );
        Self::new(Some(false), "ClusterNotFound", text)
    }

    pub(super) fn cluster_ends(cluster: &str) -> Self {
        let text = format!("ShardKvCluster {cluster} is being deleted.");
        Self::new(Some(false), "ClusterDeleted", text)
    }

    pub(super) fn not_admitted(cluster: &str) -> Self {
        let text = format!(
            "ShardKvCluster {cluster} doesn't admit keyspaces of this namespace: add the namespace to its spec.keyspaceNamespaces."
        );
        Self::new(Some(false), "NotAdmitted", text)
    }

    pub(super) fn cluster_unreadable(cluster: &str, why: &str) -> Self {
        let text = format!(
            "The operator can't read ShardKvCluster {cluster} ({why}): let it watch the namespace of the cluster."
        );
        Self::new(None, "ClusterUnreadable", text)
    }

    pub(super) fn service_taken(by: &str) -> Self {
        let text = format!(
            "{by} has the name of the keyspace's service, and isn't changed: delete it, or give the keyspace another name."
        );
        Self::new(Some(false), "ServiceNameTaken", text)
    }

    pub(super) fn service_waits(why: &str) -> Self {
        Self::new(Some(false), "ServiceNotReady", format!("{why}."))
    }

    /// The API server refuses an object.
    pub(super) fn object_refused(why: &str) -> Self {
        let text = format!("The API server refuses the service: {why}");
        Self::new(Some(false), "ServiceRefused", text)
    }

    pub(super) fn unavailable(why: &str) -> Self {
        Self::new(
            None,
            "StoreUnreachable",
            format!("The store can't be asked: {why}"),
        )
    }

    pub(super) fn refused(why: &str) -> Self {
        Self::new(
            Some(false),
            "StoreRefused",
            format!("The store refuses: {why}"),
        )
    }

    pub(super) fn lost(name: &str) -> Self {
        let text = format!(
            "Keyspace {name} is no longer in the store: it was deleted there, or its group was forgotten. \
            To begin with an empty one, delete this resource and create it again."
        );
        Self::new(Some(false), "KeyspaceLost", text)
    }
}
