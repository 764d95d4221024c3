//! The file `IDENTITY`: the identity of a node, as text with a checksum, so that a flipped bit is detected.
//!
//! ```text
//! shardkv data directory, format 1
//! node 9f86d081884c7d65
//! initialised yes
//! cluster 60303ae22b998861
//! gid 1
//! name prod
//! checksum 1a2b3c4d
//! ```
//!
//! The lines from `cluster` to `name` exist once the directory is bound. The checksum is the CRC-32 of everything
//! before its line.

use std::fmt::Write;
use std::sync::Arc;
use std::{fs, io};

use raft::StoreError;
use types::{ClusterId, Gid, NodeId};

use crate::directory::{Directory, replace_file};
use crate::error::{BindError, IdentityDamage, OpenError, translate_io};

const FORMAT: u32 = 1;
const HEADER: &str = "shardkv data directory, format ";
const NAME: &str = "IDENTITY";
/// The maximum length of a cluster's name.
const MAX_NAME_BYTES: usize = 256;

/// The identity of a node, as its data directory holds it.
#[derive(Debug)]
pub struct Identity {
    directory: Arc<Directory>,
    record: Record,
}

/// The cluster and the group that a node belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The incarnation of the cluster.
    pub cluster: ClusterId,
    /// The replica group.
    pub gid: Gid,
    /// The cluster's name.
    pub name: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    node: NodeId,
    initialised: bool,
    binding: Option<Binding>,
}

impl Identity {
    /// Returns the node's id: random, made with the directory, never changed.
    pub fn node(&self) -> NodeId {
        self.record.node
    }

    /// Returns the cluster and the group of the node; `None` before it was bound.
    pub fn binding(&self) -> Option<&Binding> {
        self.record.binding.as_ref()
    }

    /// Binds the node to a cluster and a group, durably and for ever. Binding it again to the same cluster, group and name
    /// succeeds; anything else is refused and changes nothing.
    pub fn bind(&mut self, cluster: ClusterId, gid: Gid, name: &str) -> Result<(), BindError> {
        if name.is_empty() || name.len() > MAX_NAME_BYTES || name.contains(char::is_control) {
            return Err(BindError::BadName {
                limit: MAX_NAME_BYTES,
            });
        }
        let wanted = Binding {
            cluster,
            gid,
            name: name.to_owned(),
        };
        match &self.record.binding {
            Some(bound) if *bound == wanted => Ok(()),
            Some(bound) => Err(BindError::Mismatch {
                bound_cluster: bound.cluster,
                bound_name: bound.name.clone(),
                bound_gid: bound.gid,
                cluster,
                name: wanted.name,
                gid,
            }),
            None => {
                let mut record = self.record.clone();
                record.binding = Some(wanted);
                self.write(record)?;
                Ok(())
            }
        }
    }

    /// Reads the identity, or makes a new one in an empty directory.
    pub(crate) fn open(directory: Arc<Directory>) -> Result<Self, OpenError> {
        let path = directory.path().join(NAME);
        let record = match fs::read(&path) {
            Ok(content) => decode(&content).map_err(|error| match error {
                Unreadable::Version(found) => OpenError::Version {
                    dir: directory.path().to_owned(),
                    found,
                    known: FORMAT,
                },
                Unreadable::Damaged(damage) => OpenError::IdentityDamaged {
                    dir: directory.path().to_owned(),
                    damage,
                },
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                directory.check_empty()?;
                return Self::create(directory);
            }
            Err(error) => {
                return Err(directory.failed("read IDENTITY", translate_io("read", &error)));
            }
        };
        Ok(Self { directory, record })
    }

    fn create(directory: Arc<Directory>) -> Result<Self, OpenError> {
        let node = loop {
            let random = getrandom::u64().map_err(|error| OpenError::Io {
                context: "can't draw a random node id".to_owned(),
                message: error.to_string(),
            })?;
            // Zero is not a node id.
            if random != 0 {
                break NodeId(random);
            }
        };
        let record = Record {
            node,
            initialised: false,
            binding: None,
        };
        let mut identity = Self {
            directory,
            record: record.clone(),
        };
        identity
            .write(record)
            .map_err(|error| identity.directory.failed("write IDENTITY", error))?;
        Ok(identity)
    }

    /// Returns true if the stores were created. Before that, the node has acknowledged nothing.
    pub(crate) fn initialised(&self) -> bool {
        self.record.initialised
    }

    pub(crate) fn set_initialised(&mut self) -> Result<(), OpenError> {
        let mut record = self.record.clone();
        record.initialised = true;
        self.write(record)
            .map_err(|error| self.directory.failed("write IDENTITY", error))
    }

    fn write(&mut self, record: Record) -> Result<(), StoreError> {
        replace_file(self.directory.path(), NAME, encode(&record).as_bytes())?;
        self.record = record;
        Ok(())
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Unreadable {
    Version(String),
    Damaged(IdentityDamage),
}

impl From<IdentityDamage> for Unreadable {
    fn from(damage: IdentityDamage) -> Self {
        Self::Damaged(damage)
    }
}

fn encode(record: &Record) -> String {
    let initialised = if record.initialised { "yes" } else { "no" };
    let mut text = format!(
        "{HEADER}{FORMAT}\nnode {:016x}\ninitialised {initialised}\n",
        record.node.0
    );
    if let Some(Binding { cluster, gid, name }) = &record.binding {
        // Writing to a string never fails.
        let _ = write!(
            text,
            "cluster {:016x}\ngid {}\nname {name}\n",
            cluster.0, gid.0
        );
    }
    let checksum = crc32fast::hash(text.as_bytes());
    let _ = writeln!(text, "checksum {checksum:08x}");
    text
}

fn decode(content: &[u8]) -> Result<Record, Unreadable> {
    let text = str::from_utf8(content).map_err(|_| IdentityDamage::NotText)?;
    // Check the version first, because another version may have another checksum.
    let (first, _) = text.split_once('\n').ok_or(IdentityDamage::Cut)?;
    let version = first.strip_prefix(HEADER).ok_or(IdentityDamage::Header)?;
    if version != FORMAT.to_string() {
        return Err(Unreadable::Version(version.to_owned()));
    }
    let (body, checksum) = text
        .strip_suffix('\n')
        .and_then(|text| text.rsplit_once('\n'))
        .and_then(|(body, last)| Some((body, last.strip_prefix("checksum ")?)))
        .ok_or(IdentityDamage::NoChecksum)?;
    let covered = content.get(..=body.len()).unwrap_or_default();
    if format!("{:08x}", crc32fast::hash(covered)) != checksum {
        return Err(IdentityDamage::Checksum.into());
    }
    let mut lines = body.lines().skip(1);
    let mut field = |name: &str| {
        lines
            .next()
            .and_then(|line| line.strip_prefix(name)?.strip_prefix(' '))
    };
    let node = field("node")
        .and_then(|id| u64::from_str_radix(id, 16).ok())
        .filter(|id| *id != 0)
        .ok_or(IdentityDamage::NoNode)?;
    let initialised = match field("initialised") {
        Some("yes") => true,
        Some("no") => false,
        _ => return Err(IdentityDamage::NoInitialised.into()),
    };
    let binding = match field("cluster") {
        None => None,
        Some(cluster) => {
            let cluster = u64::from_str_radix(cluster, 16).ok();
            let gid = field("gid").and_then(|gid| gid.parse().ok());
            match (cluster, gid, field("name")) {
                (Some(cluster), Some(gid), Some(name)) => Some(Binding {
                    cluster: ClusterId(cluster),
                    gid: Gid(gid),
                    name: name.to_owned(),
                }),
                _ => return Err(IdentityDamage::Binding.into()),
            }
        }
    };
    Ok(Record {
        node: NodeId(node),
        initialised,
        binding,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound() -> Record {
        Record {
            node: NodeId(0x9f86_d081_884c_7d65),
            initialised: true,
            binding: Some(Binding {
                cluster: ClusterId(7),
                gid: Gid(3),
                name: "prod name gid 4".to_owned(),
            }),
        }
    }

    #[test]
    fn records_round_trip() {
        let mut fresh = bound();
        fresh.binding = None;
        fresh.initialised = false;
        for record in [bound(), fresh] {
            assert_eq!(decode(encode(&record).as_bytes()), Ok(record));
        }
    }

    #[test]
    fn every_changed_byte_and_every_cut_is_refused() {
        let text = encode(&bound());
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            assert!(decode(&bytes).is_err(), "byte {at}");
            assert!(decode(&text.as_bytes()[..at]).is_err(), "cut {at}");
        }
    }

    #[test]
    fn another_version_is_named() {
        let text = encode(&bound()).replace("format 1", "format 12");
        assert_eq!(
            decode(text.as_bytes()),
            Err(Unreadable::Version("12".to_owned()))
        );
    }
}
