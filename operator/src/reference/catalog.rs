//! All conditions and events that the operator reports.

pub(super) mod keyspace;

/// A condition: its type, its meaning, and its reasons, each with a status and a meaning.
pub(super) type ConditionEntry = (
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str, &'static str)],
);

/// All conditions with all reasons.
pub(super) const REASONS: &[ConditionEntry] = &[
    (
        "Available",
        "True if every key can be read and written.",
        &[
            (
                "True",
                "AllServing",
                "The controllers answer, and every group that owns shards has a leader.",
            ),
            (
                "False",
                "Creating",
                "No group serves its shards yet. The message says what the operator waits for.",
            ),
            (
                "False",
                "NoLeader",
                "Groups that own shards, or have shards to hand over, have no leader that a majority follows: their keys wait.",
            ),
            (
                "False",
                "Stalled",
                "Shards are on their way to new owners, and none has arrived for longer than usual: their keys wait. Shards that wait to be copied don't count, because their owners serve them.",
            ),
            (
                "False",
                "GroupsLost",
                "The controllers know no group, although there were members; see Degraded.",
            ),
            ("False", "Deleting", "The cluster is being deleted."),
            (
                "Unknown",
                "StoreUnreachable",
                "The controllers don't answer the operator, so availability is unknown. Clients that know the configuration are served.",
            ),
            (
                "Unknown",
                "InvalidSpec",
                "The resource is invalid, so the operator does nothing; the message says what to change.",
            ),
        ],
    ),
    (
        "Progressing",
        "True if a change is in progress.",
        &[
            ("False", "Stable", "All groups serve their shards."),
            ("False", "Paused", "`spec.paused` is true."),
            ("False", "GroupsLost", "Nothing is changed; see Degraded."),
            ("False", "InvalidSpec", "Nothing is changed; see Available."),
            (
                "True",
                "Creating",
                "The cluster, or an object of it that somebody deleted, is being created.",
            ),
            (
                "True",
                "ScalingOut",
                "Groups start, join, or get their first shards.",
            ),
            (
                "True",
                "Starting",
                "All objects exist, but pods that were made within the last minute aren't ready.",
            ),
            (
                "True",
                "ScalingIn",
                "Groups hand their shards over, or are being deleted.",
            ),
            (
                "True",
                "RollingOut",
                "Pods are replaced one at a time, because their template has changed: those of the controllers first, then those of one group after the other. The message says what is waited for.",
            ),
            (
                "True",
                "Rebalancing",
                "Shards are copied while their owners serve them, or are on their way to new owners, or their old groups delete their copies.",
            ),
            ("True", "Deleting", "The cluster is being deleted."),
        ],
    ),
    (
        "Degraded",
        "True if something is wrong. The message lists everything that was found; the reason is the first, which is most likely the cause.",
        &[
            ("False", "AsExpected", "Nothing is wrong."),
            (
                "True",
                "GroupsLost",
                "The controllers don't know groups that were members, or whose volumes were kept: most likely they have lost their volumes. The operator changes nothing until somebody has corrected this.",
            ),
            (
                "True",
                "NameTaken",
                "An object that doesn't belong to the cluster has the name of one that the cluster needs.",
            ),
            (
                "True",
                "NewerOperator",
                "A newer operator has written objects that this one would write differently. This one doesn't change them.",
            ),
            (
                "True",
                "ApplyRefused",
                "The API server refuses an object, most likely because of a quota, a policy or a missing right.",
            ),
            ("True", "Refused", "The controllers refuse a change."),
            (
                "True",
                "PodsNotReady",
                "Pods can't be created (a quota), can't start, can't be scheduled, haven't been ready for 10 minutes, or are missing for an unknown reason.",
            ),
            (
                "True",
                "StoreUnreachable",
                "The controllers don't answer the operator.",
            ),
            (
                "True",
                "Stalled",
                "No shard has moved for longer than usual.",
            ),
            (
                "True",
                "NodesInTrouble",
                "Nodes report a problem, such as a disk that is nearly full.",
            ),
            (
                "True",
                "InvalidSpec",
                "The resource is invalid, or nodes would refuse its options; the message says what to change.",
            ),
        ],
    ),
    (
        "Paused",
        "True if the operator changes nothing because `spec.paused` says so.",
        &[
            ("True", "Paused", "`spec.paused` is true."),
            ("False", "Running", "`spec.paused` is false."),
        ],
    ),
];

/// An event: type, reason, and cause.
pub(super) type EventEntry = (&'static str, &'static str, &'static str);

/// All events.
pub(super) const EVENTS: &[EventEntry] = &[
    (
        "Normal",
        "ControllersCreated",
        "The controllers are created.",
    ),
    (
        "Normal",
        "GroupCreated",
        "A group is created. It joins when it has a leader.",
    ),
    (
        "Warning",
        "GroupRestored",
        "The StatefulSet of a group that is part of the cluster was gone, and is created again.",
    ),
    (
        "Normal",
        "Joining",
        "The operator asked the controllers to let groups join.",
    ),
    (
        "Normal",
        "Leaving",
        "The operator asked the controllers to let groups leave.",
    ),
    (
        "Normal",
        "Drained",
        "A group has handed over all its shards.",
    ),
    (
        "Normal",
        "Retired",
        "The controllers refuse each later join under the number of a drained or forgotten group.",
    ),
    ("Normal", "GroupRemoved", "A group's objects are deleted."),
    (
        "Normal",
        "VolumesRetained",
        "The volumes of a removed group stay; the note says how to delete them.",
    ),
    (
        "Warning",
        "VolumesRetained",
        "The volumes of a removed group stay, whatever `spec.storage` says: the group was not drained, so they may hold the only copy of its data.",
    ),
    (
        "Normal",
        "VolumesDeleted",
        "Volumes are deleted, because `spec.storage` says so.",
    ),
    (
        "Normal",
        "ControllersRemoved",
        "The controllers are deleted with the cluster.",
    ),
    (
        "Normal",
        "ClusterDeleted",
        "Everything that belonged to the cluster, and was to be deleted, is deleted; the note says which volumes stay.",
    ),
    (
        "Warning",
        "the reason of Degraded",
        "The cluster became Degraded for this reason.",
    ),
    (
        "Normal",
        "Recovered",
        "The cluster isn't Degraded any more.",
    ),
];
