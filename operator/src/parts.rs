//! The parts of a cluster, and the kinds of Kubernetes objects that it consists of.

/// A part of a cluster: pods that share one `StatefulSet`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    /// The controllers.
    Controller,
    /// A group, by its gid.
    Group(u64),
}

impl Component {
    /// Returns the gid of a group, or `None` for the controllers.
    pub fn gid(self) -> Option<u64> {
        match self {
            Self::Controller => None,
            Self::Group(gid) => Some(gid),
        }
    }
}

/// A kind of object that clusters consist of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The options file.
    Config,
    /// The account of the pods.
    Account,
    /// The network policy of the pods.
    Network,
    /// A service: of a part, or for clients.
    Service,
    /// The disruption budget of a part.
    Budget,
    /// The `StatefulSet` of a part.
    Set,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 6] = [
        Self::Config,
        Self::Account,
        Self::Network,
        Self::Service,
        Self::Budget,
        Self::Set,
    ];

    /// The kinds of objects that all pods of a cluster share, in the order in which they are applied.
    pub const SHARED: [Self; 4] = [Self::Account, Self::Config, Self::Network, Self::Service];

    /// The kinds of objects of a part, in the order in which they are applied: the `StatefulSet` last, so that the
    /// objects that pods need exist when the pods start, and only a part with a `StatefulSet` counts as existing.
    pub const OF_PART: [Self; 3] = [Self::Service, Self::Budget, Self::Set];

    /// Returns Kubernetes' name of the kind.
    pub fn name(self) -> &'static str {
        match self {
            Self::Config => "ConfigMap",
            Self::Account => "ServiceAccount",
            Self::Network => "NetworkPolicy",
            Self::Service => "Service",
            Self::Budget => "PodDisruptionBudget",
            Self::Set => "StatefulSet",
        }
    }
}
