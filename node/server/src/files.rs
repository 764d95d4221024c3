//! The process' limit of open files, and how the parts of a node share it.
//!
//! Without a limit of their own, idle connections of clients could take the last file descriptor, and the stores would fail to
//! open a table. So the limit is raised as far as the node needs it, and what is left after the stores and the node's own
//! sockets bounds the connections of clients. The bounds of the other connections follow from that one.

use node_options::Options;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::exit::{ExitCode, Fatal};

/// The files of the node itself: the stores' logs and locks, connections to peers, and those of the metrics.
const OWN: u64 = 256;
/// The fewest files that each of the two databases needs.
const LEAST_STORE: u64 = 32;
/// The fewest connections that a node is of use with.
const LEAST_CONNECTIONS: u64 = 32;

/// Returns the most connections to nodes of other groups that are kept. A node talks mostly to the leaders of other groups, so
/// with the default options this is enough for 900 groups, and for streams of pages from some of them.
pub(crate) fn kept_connections(max_connections: usize) -> usize {
    (max_connections / 4).clamp(16, 1_024)
}

/// Returns the number of connections from nodes and operators that are served beyond `max_connections`.
pub(crate) fn reserved_connections(max_connections: usize) -> usize {
    (max_connections / 16).clamp(32, 256)
}

/// Returns the most connections to other nodes for watches and streams of renewals that are passed on, together. Each carries hundreds
/// of streams, so half of them are enough for all streams of a node, and for the leaders of a hundred groups.
pub(crate) fn stream_connections(max_connections: usize) -> usize {
    (max_connections / 16).clamp(16, 256)
}

/// Returns the number of further connections that go with `connections` of clients.
fn beside(connections: u64) -> u64 {
    let connections = usize::try_from(connections).unwrap_or(usize::MAX);
    let sum = kept_connections(connections)
        + reserved_connections(connections)
        + stream_connections(connections);
    sum as u64
}

/// The numbers of files that the parts may keep open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shares {
    /// For each of the two databases.
    store: u64,
    /// For connections of clients.
    connections: u64,
}

impl Shares {
    fn total(self) -> u64 {
        OWN.saturating_add(2 * self.store)
            .saturating_add(self.connections)
            .saturating_add(beside(self.connections))
    }

    /// Reduces the wanted numbers to a limit of open files. Returns `None` if a node can't work with it.
    fn within(self, limit: u64) -> Option<Self> {
        let left = limit.checked_sub(OWN)?;
        let store = self.store.min(left / 4);
        let left = left - 2 * store;
        let mut connections = self.connections.min(left);
        // Half of the excess at a time, because fewer connections also need fewer others.
        while let excess @ 1.. = (connections + beside(connections)).saturating_sub(left) {
            connections = connections.checked_sub(excess.div_ceil(2))?;
        }
        (store >= LEAST_STORE.min(self.store)
            && connections >= LEAST_CONNECTIONS.min(self.connections))
        .then_some(Self { store, connections })
    }
}

/// Raises the limit of open files as far as the options need it and the system allows it, and reduces the options to it.
pub(crate) fn share(options: &mut Options) -> Result<(), Fatal> {
    let wanted = Shares {
        store: u64::try_from(options.disk.max_open_files).unwrap_or(0),
        connections: options.limits.max_connections as u64,
    };
    let limit = raise(wanted.total());
    let Some(shares) = wanted.within(limit) else {
        let message = format!(
            "the limit of open files is {limit}, and a node needs at least {}: raise it (ulimit -n, LimitNOFILE=), and \
             start again",
            OWN + 6 * LEAST_STORE
        );
        return Err(Fatal::message(ExitCode::TooFewFiles, message));
    };
    if shares != wanted {
        tracing::warn!(
            limit,
            max_open_files = shares.store,
            max_connections = shares.connections,
            "the limit of open files is too low for the options, which are reduced to it"
        );
    }
    // Neither number grows, so both still fit.
    options.disk.max_open_files = i32::try_from(shares.store).unwrap_or(i32::MAX);
    options.limits.max_connections = usize::try_from(shares.connections).unwrap_or(usize::MAX);
    Ok(())
}

/// Raises the limit up to `wanted`. Returns the limit in force.
fn raise(wanted: u64) -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let current = current.unwrap_or(u64::MAX);
    let raised = maximum.unwrap_or(u64::MAX).min(wanted);
    if current >= raised {
        return current;
    }
    let limit = Rlimit {
        current: Some(raised),
        maximum,
    };
    match setrlimit(Resource::Nofile, limit) {
        Ok(()) => raised,
        Err(error) => {
            tracing::warn!("the limit of open files can't be raised: {error}");
            current
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_share_what_there_is_and_keep_what_they_need() {
        let wanted = Shares {
            store: 512,
            connections: 4_096,
        };
        let shares = |store, connections| Some(Shares { store, connections });
        let table = [
            (u64::MAX, shares(512, 4_096)),
            (6_912, shares(512, 4_096)),
            (6_911, shares(512, 4_095)),
            (1_024, shares(192, 269)),
            (446, shares(47, 32)),
            (440, None),
            (256, None),
            (20, None),
        ];
        for (limit, expected) in table {
            let found = wanted.within(limit);
            assert_eq!(found, expected, "{limit}");
            assert!(found.is_none_or(|found| found.total() <= limit), "{limit}");
        }
        let others = (kept_connections(4_096), reserved_connections(4_096));
        assert_eq!(others, (1_024, 256));
        let few = Shares {
            store: 16,
            connections: 1,
        };
        assert_eq!(few.within(few.total() + 40), shares(16, 1), "as wanted");
    }
}
