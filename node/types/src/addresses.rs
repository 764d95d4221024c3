//! The addresses of a group's nodes.

use std::collections::BTreeSet;

use crate::{DecodeError, Reader, Writer};

/// The most addresses of a group.
pub const MAX_GROUP_ADDRESSES: usize = 16;
/// The most bytes of an address.
pub const MAX_ADDRESS_BYTES: usize = 512;

/// The reason why a group can't have these addresses. Another attempt with the same addresses fails, too.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAddresses {
    /// There are none, or too many.
    #[error(
        "a group has 1 to {MAX_GROUP_ADDRESSES} addresses, not {count}: list one for each node"
    )]
    Count {
        /// The number of addresses.
        count: usize,
    },
    /// An address has no host or no port, holds spaces, or is longer than [`MAX_ADDRESS_BYTES`].
    #[error("`{0}` is not an address: write it as host:port")]
    Malformed(String),
    /// Two addresses are equal.
    #[error("{0} is listed twice: list each address once")]
    Repeated(String),
}

/// Checks that a group has 1 to [`MAX_GROUP_ADDRESSES`] distinct addresses, each `host:port`.
pub fn check_addresses(addresses: &[String]) -> Result<(), BadAddresses> {
    let count = addresses.len();
    if !(1..=MAX_GROUP_ADDRESSES).contains(&count) {
        return Err(BadAddresses::Count { count });
    }
    let mut distinct = BTreeSet::new();
    for address in addresses {
        if !is_address(address) {
            return Err(BadAddresses::Malformed(address.clone()));
        }
        if !distinct.insert(address) {
            return Err(BadAddresses::Repeated(address.clone()));
        }
    }
    Ok(())
}

/// Returns true if `text` is a host and a port, as `host:port`.
fn is_address(text: &str) -> bool {
    let odd = |c: char| c.is_whitespace() || c.is_control();
    let parts = text.rsplit_once(':');
    let valid = |(host, port): (&str, &str)| !host.is_empty() && port.parse::<u16>().is_ok();
    text.len() <= MAX_ADDRESS_BYTES && !text.contains(odd) && parts.is_some_and(valid)
}

/// Writes a group's addresses.
pub fn encode_addresses(out: &mut Writer, addresses: &[String]) {
    out.number(addresses.len() as u64);
    for address in addresses {
        out.bytes(address.as_bytes());
    }
}

/// Reads a group's addresses; [`check_addresses`] tells if they are valid.
pub fn decode_addresses(input: &mut Reader) -> Result<Vec<String>, DecodeError> {
    let count = input.count("addresses")?;
    let mut addresses = Vec::with_capacity(count.min(MAX_GROUP_ADDRESSES));
    for _ in 0..count {
        let address = input.bytes("address")?;
        let address =
            std::str::from_utf8(&address).map_err(|_| DecodeError::OutOfRange("address"))?;
        addresses.push(address.to_owned());
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_host_and_port_and_distinct() {
        let check = |list: &[&str]| {
            let list: Vec<String> = list.iter().map(|it| (*it).to_owned()).collect();
            check_addresses(&list)
        };
        assert_eq!(check(&["a:1", "[::1]:2", "a.b.svc:3"]), Ok(()));
        assert_eq!(check(&[]), Err(BadAddresses::Count { count: 0 }));
        let many: Vec<String> = (0..17).map(|port| format!("a:{port}")).collect();
        assert_eq!(
            check_addresses(&many),
            Err(BadAddresses::Count { count: 17 })
        );
        let twice = BadAddresses::Repeated("a:1".to_owned());
        assert_eq!(check(&["a:1", "a:1"]), Err(twice));
        let long = format!("{}:1", "a".repeat(MAX_ADDRESS_BYTES));
        for bad in ["a", ":1", "a b:1", "a:70000", "", &long] {
            let malformed = BadAddresses::Malformed(bad.to_owned());
            assert_eq!(check(&[bad]), Err(malformed), "{bad:?}");
        }
    }
}
