//! The decision whether a caller may call a method.

use types::Gid;

use crate::{Access, Caller, Certificate, Need};

/// The rights of clients with certificates.
pub trait Grants {
    /// Returns true if the client has the right for some key of some keyspace. The service checks the keys of the request.
    fn allows(&self, client: &Certificate, need: Need) -> bool;
}

/// No grants: clients may call what is public.
#[derive(Clone, Copy, Debug)]
pub struct NoGrants;

impl Grants for NoGrants {
    fn allows(&self, _: &Certificate, _: Need) -> bool {
        false
    }
}

/// The reason why a call is refused. Nothing was done or looked up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The connection has no TLS.
    #[error(
        "this node takes calls over TLS only: pass --ca, or give your client the cluster's authority"
    )]
    Plain,
    /// The caller has no certificate.
    #[error(
        "this call needs a certificate: pass --cert and --key, or give your client a certificate that the cluster's authority for \
         clients has signed"
    )]
    NoIdentity,
    /// The caller is known, and hasn't the right.
    #[error("{caller} may not {}: {}", .need.verb(), advice(.caller, *.need))]
    Forbidden {
        /// The caller.
        caller: Caller,
        /// The right that is missing.
        need: Need,
    },
    /// The caller is a node of a group, and the call is another group's.
    #[error("{caller} may not act for {}: check that this node's certificate has the node's own group", group(*.gid))]
    OtherGroup {
        /// The caller.
        caller: Caller,
        /// The group whose call it is.
        gid: Gid,
    },
}

impl Refusal {
    /// Returns true if the caller has shown no identity, and false if its identity isn't enough.
    pub const fn is_unauthenticated(&self) -> bool {
        matches!(self, Self::Plain | Self::NoIdentity)
    }
}

fn advice(caller: &Caller, need: Need) -> &'static str {
    match (caller, need) {
        (_, Need::Member) => "only nodes call this method, with the certificate of their group",
        (Caller::Client(_), _) => "ask the cluster's administrator for a grant",
        _ => "call it with a client's certificate that has a grant",
    }
}

fn group(gid: Gid) -> String {
    match gid {
        Gid::NONE => "the controllers".to_owned(),
        gid => gid.to_string(),
    }
}

/// Decides whether a caller of a node with TLS may call a method. `takes_plain` tells whether the node takes connections without TLS;
/// they may do everything then.
///
/// A member may call for data and for administration of the cluster, because nodes forward such calls. The node that forwards a call has
/// decided about the caller.
///
/// # Errors
///
/// The refusal to send to the caller.
pub fn decide(
    caller: &Caller,
    need: Need,
    takes_plain: bool,
    grants: &impl Grants,
) -> Result<(), Refusal> {
    let allowed = match caller {
        Caller::Plain if takes_plain => true,
        Caller::Plain => return Err(Refusal::Plain),
        Caller::Anonymous if need == Need::Public => true,
        Caller::Anonymous => return Err(Refusal::NoIdentity),
        Caller::Member(_) => need != Need::NodeAdmin,
        Caller::Operator => matches!(
            need,
            Need::Public | Need::Route | Need::Admin | Need::NodeAdmin
        ),
        Caller::Client(client) => match need {
            Need::Public => true,
            Need::Member => false,
            Need::Data(Access::ReadWrite) => {
                grants.allows(client, Need::Data(Access::Read))
                    && grants.allows(client, Need::Data(Access::Write))
            }
            // The service checks each part.
            Need::Data(Access::Parts) => {
                grants.allows(client, Need::Data(Access::Read))
                    || grants.allows(client, Need::Data(Access::Write))
            }
            _ => grants.allows(client, need),
        },
    };
    if allowed {
        return Ok(());
    }
    let caller = caller.clone();
    Err(Refusal::Forbidden { caller, need })
}

/// Decides whether a caller, which [`decide()`] has let through, may speak Raft with a group, or ask for its first membership.
///
/// # Errors
///
/// The caller is a node of another group.
pub fn check_group(caller: &Caller, gid: Gid) -> Result<(), Refusal> {
    match caller {
        // The node takes connections without TLS.
        Caller::Plain => Ok(()),
        Caller::Member(own) if *own == gid => Ok(()),
        _ => Err(other_group(caller, gid)),
    }
}

/// Decides whether a caller, which [`decide()`] has let through, may report on behalf of a group. A controller forwards the reports that
/// it gets to the controllers' leader.
///
/// # Errors
///
/// The caller is a node of another group.
pub fn check_report(caller: &Caller, gid: Gid) -> Result<(), Refusal> {
    match caller {
        Caller::Member(Gid::NONE) => Ok(()),
        _ => check_group(caller, gid),
    }
}

fn other_group(caller: &Caller, gid: Gid) -> Refusal {
    let caller = caller.clone();
    Refusal::OtherGroup { caller, gid }
}

#[cfg(test)]
mod tests;
