//! Conditions and events of keyspaces.

use super::{ConditionEntry, EventEntry};

/// All conditions with all reasons.
pub(in crate::reference) const REASONS: &[ConditionEntry] = &[(
    "Ready",
    "True if the keyspace exists as the spec asks for, and clients can read and write by its service.",
    &[
        ("True", "Served", "Clients can read and write."),
        (
            "False",
            "QuotaExhausted",
            "A write was refused because of the quota, and there is no room for it yet. Reads, deletions and compactions go on.",
        ),
        (
            "Unknown",
            "StoreUnreachable",
            "The store can't be asked: it is being created, its controllers don't answer the operator, or the group of the keyspace has no leader.",
        ),
        (
            "False",
            "StoreRefused",
            "The store refuses to create or change the keyspace. The message says why.",
        ),
        (
            "False",
            "KeyspaceLost",
            "The keyspace existed and is no longer in the store. The operator doesn't create an empty one in its place.",
        ),
        (
            "False",
            "ServiceNameTaken",
            "The namespace has a service of this name that isn't the keyspace's. The operator doesn't change it.",
        ),
        (
            "False",
            "ServiceNotReady",
            "The service is being deleted, and is created again then.",
        ),
        (
            "False",
            "ServiceRefused",
            "The API server refuses the service. The message says why.",
        ),
        (
            "False",
            "ClusterNotFound",
            "There is no ShardKvCluster as `spec.clusterRef` names it.",
        ),
        (
            "False",
            "ClusterDeleted",
            "The ShardKvCluster is being deleted.",
        ),
        (
            "Unknown",
            "ClusterUnreadable",
            "The operator may not read the ShardKvCluster, because it doesn't watch its namespace.",
        ),
        (
            "False",
            "NotAdmitted",
            "The ShardKvCluster is in another namespace, and doesn't list this one in `spec.keyspaceNamespaces`.",
        ),
        (
            "False",
            "InvalidSpec",
            "The resource is invalid; the message says what to change.",
        ),
        ("False", "Deleting", "The keyspace is being deleted."),
    ],
)];

/// All events.
pub(in crate::reference) const EVENTS: &[EventEntry] = &[
    ("Normal", "KeyspaceCreated", "The keyspace is created."),
    (
        "Normal",
        "KeyspaceAdopted",
        "The keyspace existed before the resource, with all keys: a deleted resource left it, for example.",
    ),
    (
        "Warning",
        "KeyspaceReplaced",
        "The keyspace of this name is another one than before: it was deleted and created again in the store.",
    ),
    (
        "Normal",
        "OptionsChanged",
        "Quota or compaction of the keyspace are changed.",
    ),
    (
        "Normal",
        "KeyspaceDeleted",
        "The keyspace is deleted with its resource.",
    ),
    (
        "Warning",
        "KeyspaceLeft",
        "The resource is released although the keyspace may still be in the store: the cluster is gone, or didn't answer for five minutes.",
    ),
];
