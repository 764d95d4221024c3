//! What the operator tells in conditions and events.

/// A condition: its type, what it means, and its reasons with the status that each stands for and what it means.
type Told = (
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str, &'static str)],
);

/// All conditions with all reasons.
pub(super) const REASONS: &[Told] = &[
    (
        "Available",
        "Whether every key can be read and written.",
        &[
            (
                "True",
                "AllServing",
                "The controllers answer, and every group that owns shards has a leader.",
            ),
            (
                "False",
                "Creating",
                "No group has taken over its shards yet. The message says what is waited for.",
            ),
            (
                "False",
                "NoLeader",
                "Groups that own shards, or that have some to hand over, have no leader that a majority follows: their keys wait.",
            ),
            (
                "False",
                "Stalled",
                "Shards are on their way, and none has arrived for longer than is usual: their keys wait.",
            ),
            (
                "False",
                "GroupsLost",
                "The controllers know no group, though there were members; see Degraded.",
            ),
            ("False", "Deleting", "The cluster is being deleted."),
            (
                "Unknown",
                "StoreUnreachable",
                "The controllers don't answer the operator, so it can't be told. Clients that know the configuration go on.",
            ),
            (
                "Unknown",
                "InvalidSpec",
                "The resource makes no sense, so the operator does nothing; the message says what to change.",
            ),
        ],
    ),
    (
        "Progressing",
        "Whether something is being changed.",
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
                "All that was asked for is there, but pods that were made within the last minute aren't ready.",
            ),
            (
                "True",
                "ScalingIn",
                "Groups hand their shards over, or are being removed.",
            ),
            (
                "True",
                "RollingOut",
                "Pods are replaced one at a time in each group, because their template has changed.",
            ),
            (
                "True",
                "Rebalancing",
                "Shards are on their way, or the groups that had them tidy up.",
            ),
            ("True", "Deleting", "The cluster is being deleted."),
        ],
    ),
    (
        "Degraded",
        "Whether something needs a look. The message tells all that was found; the reason is the first, which is most likely the cause.",
        &[
            ("False", "AsExpected", "Nothing is wrong."),
            (
                "True",
                "GroupsLost",
                "The controllers don't know groups that were members, or whose volumes were kept: most likely they have lost their volumes. Nothing is changed until a person has looked.",
            ),
            (
                "True",
                "NameTaken",
                "An object that isn't the cluster's has the name of one that it needs.",
            ),
            (
                "True",
                "ApplyRefused",
                "The API server refuses an object, most likely for a quota, a policy or a right that is missing.",
            ),
            ("True", "Refused", "The controllers refuse a change."),
            (
                "True",
                "PodsNotReady",
                "Pods can't start, can't be placed, or are away for no reason that is known.",
            ),
            (
                "True",
                "StoreUnreachable",
                "The controllers don't answer the operator.",
            ),
            (
                "True",
                "Stalled",
                "No shard has moved for longer than is usual.",
            ),
            (
                "True",
                "NodesInTrouble",
                "Nodes say that something is wrong with them: a disk that is nearly full, say.",
            ),
            (
                "True",
                "InvalidSpec",
                "The resource makes no sense; the message says what to change.",
            ),
        ],
    ),
    (
        "Paused",
        "Whether nothing is changed because the user asked so.",
        &[
            ("True", "Paused", "`spec.paused` is true."),
            ("False", "Running", "`spec.paused` is false."),
        ],
    ),
];

/// All events: their type, reason, and when they are told.
pub(super) const EVENTS: &[(&str, &str, &str)] = &[
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
        "The controllers were asked to take groups in.",
    ),
    (
        "Normal",
        "Leaving",
        "The controllers were asked to let groups go.",
    ),
    (
        "Normal",
        "Drained",
        "A group has handed over all that it had.",
    ),
    ("Normal", "GroupRemoved", "A group's objects are deleted."),
    (
        "Normal",
        "VolumesRetained",
        "The volumes of a removed group stay; the note tells how to delete them.",
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
    ("Normal", "ClusterDeleted", "All is gone that was to go."),
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
