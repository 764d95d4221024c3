//! A replica group of a configuration.

use crate::addresses::{check_addresses, decode_addresses, encode_addresses};
use crate::{DecodeError, Incarnation, Reader, Writer};

/// A replica group of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The `host:port` of each node.
    pub addresses: Vec<String>,
    /// Tells this group from earlier groups with the same gid.
    pub incarnation: Incarnation,
    /// True if the group has to give all its shards away. It stays in the configurations until it is drained.
    pub leaving: bool,
}

/// A group of these nodes that isn't leaving, and whose incarnation doesn't matter.
impl From<Vec<String>> for Group {
    fn from(addresses: Vec<String>) -> Self {
        Self {
            addresses,
            incarnation: Incarnation(0),
            leaving: false,
        }
    }
}

impl Group {
    /// Encodes the group as a part of a record.
    pub fn encode(&self, out: &mut Writer) {
        encode_addresses(out, &self.addresses);
        out.number(self.incarnation.0).byte(self.leaving.into());
    }

    /// Decodes the output of [`Group::encode`], and refuses addresses that no group can have.
    pub fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let addresses = decode_addresses(input)?;
        check_addresses(&addresses).map_err(|_| DecodeError::OutOfRange("addresses"))?;
        Ok(Self {
            addresses,
            incarnation: Incarnation(input.number("incarnation")?),
            leaving: input.flag("leaving")?,
        })
    }
}
