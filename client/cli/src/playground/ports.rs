//! Chooses ports on loopback.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::net::TcpListener;

use crate::exit::Failure;

/// Ports are drawn below the range that the kernel gives to outgoing connections (from 32768 on): a client's
/// connection must not take the port of a node that is down for a moment.
const PORTS: std::ops::Range<u16> = 12_000..32_000;

/// The two ports of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) service: u16,
    pub(super) metrics: u16,
}

/// Returns the ports of `nodes` nodes from `base` on: first the ports of the services, then the ports of the metrics.
pub(super) fn from_base(base: u16, nodes: u16) -> Result<Vec<Pair>, Failure> {
    let last = nodes
        .checked_mul(2)
        .and_then(|count| base.checked_add(count));
    if last.is_none() {
        return Err(Failure::usage(
            format!(
                "there are not {} ports from {base} on",
                u32::from(nodes) * 2
            ),
            "take a lower --base-port",
        ));
    }
    Ok((0..nodes)
        .map(|number| Pair {
            service: base + number,
            metrics: base + nodes + number,
        })
        .collect())
}

/// Finds free, distinct ports for `nodes` nodes. None of them is a port of the addresses `taken`.
pub(super) fn free(nodes: u16, taken: &[&str]) -> Result<Vec<Pair>, Failure> {
    let wanted = usize::from(nodes) * 2;
    let span = u64::from(PORTS.end - PORTS.start);
    let start = RandomState::new().build_hasher().finish() % span;
    // Each port stays bound until all are found, so that no port is found twice.
    let mut held = Vec::new();
    let mut ports = Vec::new();
    for step in 0..span {
        if ports.len() == wanted {
            break;
        }
        let port = PORTS.start + u16::try_from((start + step) % span).unwrap_or(0);
        let suffix = format!(":{port}");
        if taken.iter().any(|address| address.ends_with(&suffix)) {
            continue;
        }
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            held.push(listener);
            ports.push(port);
        }
    }
    if ports.len() < wanted {
        return Err(Failure::failed(
            "there are not enough free ports on 127.0.0.1",
            "stop other programs, or choose ports with --base-port",
        ));
    }
    let (service, metrics) = ports.split_at(nodes.into());
    let pairs = service.iter().zip(metrics);
    Ok(pairs
        .map(|(&service, &metrics)| Pair { service, metrics })
        .collect())
}

/// Fails if a process listens on one of these addresses.
pub(super) fn check_free<'a>(
    addresses: impl IntoIterator<Item = &'a String>,
) -> Result<(), Failure> {
    for address in addresses {
        if let Err(error) = TcpListener::bind(address) {
            return Err(Failure::failed(
                format!("can't listen on {address}: {error}"),
                "stop the program that uses it (`ss -ltnp` shows which), or take another --base-port and --dir",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn free_ports_are_distinct_and_not_taken() {
        let first = free(4, &[]).unwrap();
        let ports = |pairs: &[Pair]| {
            let pairs = pairs.iter();
            pairs
                .flat_map(|p| [p.service, p.metrics])
                .collect::<BTreeSet<u16>>()
        };
        assert_eq!(ports(&first).len(), 8);
        let taken: Vec<String> = PORTS.map(|port| format!("127.0.0.1:{port}")).collect();
        let taken: Vec<&str> = taken.iter().map(String::as_str).collect();
        assert!(free(1, &taken).is_err());
        assert!(from_base(65_000, 1_000).is_err());
    }

    #[test]
    fn a_port_in_use_is_refused() {
        let used = TcpListener::bind("127.0.0.1:0").unwrap();
        let metrics = used.local_addr().unwrap().to_string();
        let failure = check_free([&"127.0.0.1:0".to_owned(), &metrics]).unwrap_err();
        assert!(failure.to_string().contains(&metrics), "{failure}");
    }
}
