//! The meaning of each failure: one table for the client library, the nodes' forwarding and the simulator.
//!
//! Two questions are kept apart. *May this attempt have taken effect?* ([`Verdict::doubt`]) *What is the next step?*
//! ([`Verdict::action`]) A refusal that a node gives before it proposes leaves no doubt. A broken connection does, and so
//! does a node that stops. Doubt stays with a write until an answer under the same name removes it.

use std::sync::Arc;
use std::time::Duration;

use types::ConfigNum;

/// The reason why an attempt got no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The node does not lead its group.
    NotLeader {
        /// The leader's address, if the node knows one.
        hint: Option<Arc<str>>,
    },
    /// The node lost its leadership while the request was in its log.
    OutcomeUnknown {
        /// The next leader's address, if the node knows one.
        hint: Option<Arc<str>>,
    },
    /// The node starts or stops. A node that stops can't tell whether a proposal of its log will be committed.
    Unavailable,
    /// The address belongs to another cluster.
    WrongCluster,
    /// The group does not own the key's shard.
    WrongGroup {
        /// The configuration by which the group refused.
        config_num: ConfigNum,
    },
    /// The shard is being moved to the group.
    ShardNotReady {
        /// The pause that the node asks for; zero leaves it to the client.
        retry_after: Duration,
    },
    /// The node is at one of its bounds.
    Overloaded {
        /// The pause that the node asks for; zero leaves it to the client.
        retry_after: Duration,
    },
    /// The cluster forgot the write's session.
    SessionExpired,
    /// The birth of the write's session is too far ahead of the group's clocks.
    SessionFromFuture,
    /// The connection broke, or an attempt ended without an answer that can be understood.
    ConnectionLost,
    /// The request certainly never left this process.
    NotSent,
    /// A message exceeds the limit of the server or of the client.
    MessageTooLarge {
        /// The transport's text.
        message: String,
    },
    /// The node refused before it did anything, and would refuse again.
    Rejected(Rejection),
    /// An error of a later version, which may mean anything.
    Unrecognised {
        /// The node's text.
        message: String,
    },
}

/// A refusal that no retry cures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// A key, a value or a request exceeds a limit.
    TooLarge {
        /// The thing that is too large: `key`, `value` or `request`.
        what: String,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
        /// The node's text.
        message: String,
    },
    /// A field of the request is wrong.
    BadRequest {
        /// The field.
        field: String,
        /// The node's text.
        message: String,
    },
    /// Something that the request names doesn't exist.
    NotFound {
        /// The thing that is missing.
        what: String,
        /// The node's text.
        message: String,
    },
    /// The request contradicts the cluster's state.
    Conflict {
        /// The state that it contradicts.
        what: String,
        /// The node's text.
        message: String,
    },
    /// The object that the request is to create exists.
    AlreadyExists {
        /// The thing that exists.
        what: String,
        /// The node's text.
        message: String,
    },
    /// The cluster's disks are nearly full.
    DiskFull {
        /// The node's text.
        message: String,
    },
    /// The caller has shown no identity, and the call needs one.
    Unauthenticated {
        /// The node's text.
        message: String,
    },
    /// The caller may not make the call.
    PermissionDenied {
        /// The node's text.
        message: String,
    },
    /// The server speaks another protocol or another version of this one.
    Protocol {
        /// The transport's or the node's text.
        message: String,
    },
}

/// The meaning of a failed attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// True if the attempt may have taken effect.
    pub doubt: bool,
    /// The next step.
    pub action: Action,
}

/// The step that follows a failed attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask another node of the group: the one that the hint names, else the leader that a search finds.
    Reroute(Option<Arc<str>>),
    /// Ask the group that owns the shard in this configuration. If the configuration is already known, wait: then the owner
    /// hasn't learnt it yet.
    WrongGroup(ConfigNum),
    /// Ask again after about this pause: the shard is being moved.
    AwaitShard(Duration),
    /// Ask the same node again after about this pause; zero leaves it to the client.
    Wait(Duration),
    /// Open another session. A write in doubt fails, because another name could apply it twice.
    RenewSession,
    /// Report the failure to the caller.
    Fail(Rejection),
}

impl Refusal {
    /// Returns the address of the leader that the refusing node named.
    pub fn hint(&self) -> Option<&Arc<str>> {
        match self {
            Self::NotLeader { hint } | Self::OutcomeUnknown { hint } => hint.as_ref(),
            _ => None,
        }
    }

    /// Returns the meaning of this refusal.
    pub fn judge(self) -> Verdict {
        let (doubt, action) = match self {
            Self::NotLeader { hint } => (false, Action::Reroute(hint)),
            Self::OutcomeUnknown { hint } => (true, Action::Reroute(hint)),
            Self::Unavailable | Self::ConnectionLost => (true, Action::Reroute(None)),
            Self::WrongCluster | Self::NotSent => (false, Action::Reroute(None)),
            Self::WrongGroup { config_num } => (false, Action::WrongGroup(config_num)),
            Self::ShardNotReady { retry_after } => (false, Action::AwaitShard(retry_after)),
            Self::Overloaded { retry_after } => (false, Action::Wait(retry_after)),
            Self::SessionExpired | Self::SessionFromFuture => (false, Action::RenewSession),
            Self::Rejected(rejection) => (false, Action::Fail(rejection)),
            Self::MessageTooLarge { message } | Self::Unrecognised { message } => {
                (true, Action::Fail(Rejection::Protocol { message }))
            }
        };
        Verdict { doubt, action }
    }
}

/// A refusal and its text, which is reported if the call fails at its deadline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The reason.
    pub refusal: Refusal,
    /// The text of the node or of the transport.
    pub message: String,
}

/// The reason why a call ended without an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A node refused it for good.
    Rejected {
        /// The last refusal.
        rejection: Rejection,
        /// True if an earlier attempt may have taken effect.
        doubt: bool,
    },
    /// The session of a write was refused while an attempt was in doubt, so that no retry can be recognised.
    SessionExpired,
    /// An attempt of a write without a session may have taken effect, so that it can't be repeated.
    Unrepeatable,
    /// The deadline passed, or the attempts were used up.
    TimedOut {
        /// True if an attempt of a write may have taken effect. False for reads.
        doubt: bool,
        /// The text of the last failed attempt.
        last: Option<String>,
    },
}

impl Failure {
    /// Returns true if the write may have taken effect.
    pub fn maybe_applied(&self) -> bool {
        match self {
            Self::Rejected { doubt, .. } | Self::TimedOut { doubt, .. } => *doubt,
            Self::SessionExpired | Self::Unrepeatable => true,
        }
    }
}

/// The right to make a call again although the result of an attempt is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// The call is a read, or an idempotent request.
    Freely,
    /// The call is a write with a session: it is applied once however often it comes, but it may have been applied.
    ByName,
    /// The call is a write without a session: a repetition would apply it again.
    Never,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_its_row() {
        let hint = Some(Arc::from("a:1"));
        let ms = Duration::from_millis;
        let full = Rejection::DiskFull {
            message: "full".to_owned(),
        };
        let protocol = Rejection::Protocol {
            message: "new".to_owned(),
        };
        let table = [
            (
                Refusal::NotLeader { hint: hint.clone() },
                false,
                Action::Reroute(hint.clone()),
            ),
            (
                Refusal::OutcomeUnknown { hint: hint.clone() },
                true,
                Action::Reroute(hint),
            ),
            (Refusal::Unavailable, true, Action::Reroute(None)),
            (Refusal::ConnectionLost, true, Action::Reroute(None)),
            (Refusal::NotSent, false, Action::Reroute(None)),
            (Refusal::WrongCluster, false, Action::Reroute(None)),
            (
                Refusal::WrongGroup {
                    config_num: ConfigNum(3),
                },
                false,
                Action::WrongGroup(ConfigNum(3)),
            ),
            (
                Refusal::ShardNotReady { retry_after: ms(7) },
                false,
                Action::AwaitShard(ms(7)),
            ),
            (
                Refusal::Overloaded { retry_after: ms(9) },
                false,
                Action::Wait(ms(9)),
            ),
            (Refusal::SessionExpired, false, Action::RenewSession),
            (Refusal::SessionFromFuture, false, Action::RenewSession),
            (Refusal::Rejected(full.clone()), false, Action::Fail(full)),
            (
                Refusal::Unrecognised {
                    message: "new".to_owned(),
                },
                true,
                Action::Fail(protocol),
            ),
        ];
        for (refusal, doubt, action) in table {
            let named = match &action {
                Action::Reroute(hint) => hint.as_ref(),
                _ => None,
            };
            assert_eq!(refusal.hint(), named, "{refusal:?}");
            assert_eq!(
                refusal.clone().judge(),
                Verdict { doubt, action },
                "{refusal:?}"
            );
        }
    }
}
