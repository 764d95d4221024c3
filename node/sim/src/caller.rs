//! The senders of requests. The id of a request names its sender in the high bits, so that the answer finds its way back.

use replica::RequestId;

use crate::network::HostId;

/// The lowest sender number of each kind, in ascending order. Clients count from 0.
const ADMINISTRATOR: u64 = 1 << 20;
const MOVERS: u64 = 1 << 21;
const CONFIG_CLIENTS: u64 = 1 << 22;
const KEYSPACE_CLIENTS: u64 = 1 << 23;
const LEASES: u64 = (1 << 23) + (1 << 22);

/// The bits of a request's id that count the requests of its sender.
const SEQUENCE_BITS: u32 = 40;

/// The sender of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A client, by its number.
    Client(u64),
    /// The administrator, who changes memberships and transfers leaderships.
    Administrator,
    /// The mover of the replica on a host.
    Mover(HostId),
    /// A client of the controllers, by its number.
    ConfigClient(u64),
    /// A client of keyspaces, by its number.
    Keyspace(u64),
    /// The timers of leases in the process on a host.
    Leases(HostId),
}

impl Caller {
    /// Returns the id of the caller's request with this sequence.
    pub fn request(self, sequence: u64) -> RequestId {
        let sender = match self {
            Self::Client(number) => number,
            Self::Administrator => ADMINISTRATOR,
            Self::Mover(host) => MOVERS + host as u64,
            Self::ConfigClient(number) => CONFIG_CLIENTS + number,
            Self::Keyspace(number) => KEYSPACE_CLIENTS + number,
            Self::Leases(host) => LEASES + host as u64,
        };
        RequestId((sender << SEQUENCE_BITS) | sequence)
    }

    /// Returns the sender of a request.
    pub fn of(id: RequestId) -> Self {
        let sender = id.0 >> SEQUENCE_BITS;
        if sender >= LEASES {
            Self::Leases(usize::try_from(sender - LEASES).unwrap_or(usize::MAX))
        } else if sender >= KEYSPACE_CLIENTS {
            Self::Keyspace(sender - KEYSPACE_CLIENTS)
        } else if sender >= CONFIG_CLIENTS {
            Self::ConfigClient(sender - CONFIG_CLIENTS)
        } else if sender >= MOVERS {
            Self::Mover(usize::try_from(sender - MOVERS).unwrap_or(usize::MAX))
        } else if sender >= ADMINISTRATOR {
            Self::Administrator
        } else {
            Self::Client(sender)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_its_caller() {
        for caller in [
            Caller::Client(0),
            Caller::Client(7),
            Caller::Administrator,
            Caller::Mover(3),
            Caller::ConfigClient(1),
            Caller::Keyspace(2),
            Caller::Leases(4),
        ] {
            assert_eq!(Caller::of(caller.request(9)), caller);
        }
    }
}
