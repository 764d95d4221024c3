//! A group's first membership and genesis, on the wire and in the file `GENESIS` of a data directory.
//!
//! ```text
//! shardkv genesis, format 2
//! cluster 60303ae22b998861
//! kind standalone
//! shards 64
//! session_ttl_ms 600000
//! max_sessions_per_shard 65536
//! max_results_per_session 1024
//! member 9f86d081884c7d65 db-0.db:7400
//! checksum 1a2b3c4d
//! ```
//!
//! The file is written once, before the stores are initialised with it. A start that was interrupted between the two finds
//! the file and continues with exactly the same first membership.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use api::v1;
use replica::{BadFirstMembership, FirstMembership, Genesis, GroupKind};
use types::{ClusterId, NodeId};

const HEADER: &str = "shardkv genesis, format 2";
const NAME: &str = "GENESIS";

/// Converts a first membership to the wire.
pub(crate) fn to_wire(first: &FirstMembership) -> v1::FirstMembership {
    let member = |(node, address): &(NodeId, String)| v1::FirstMember {
        node_id: node.0,
        address: address.clone(),
    };
    v1::FirstMembership {
        cluster_id: first.cluster.0,
        members: first.members.iter().map(member).collect(),
        kind: kind_to_wire(first.genesis.kind).into(),
        shards: first.genesis.shards,
        session_ttl_ms: first.genesis.session_ttl_ms,
        max_sessions_per_shard: first.genesis.max_sessions_per_shard,
        max_results_per_session: first.genesis.max_results_per_session,
    }
}

/// Converts a first membership from the wire.
pub(crate) fn from_wire(wire: v1::FirstMembership) -> Result<FirstMembership, BadFirstMembership> {
    let genesis = Genesis {
        kind: kind_from_wire(wire.kind())?,
        shards: wire.shards,
        session_ttl_ms: wire.session_ttl_ms,
        max_sessions_per_shard: wire.max_sessions_per_shard,
        max_results_per_session: wire.max_results_per_session,
    };
    let member = |member: v1::FirstMember| (NodeId(member.node_id), member.address);
    FirstMembership {
        cluster: ClusterId(wire.cluster_id),
        members: wire.members.into_iter().map(member).collect(),
        genesis,
    }
    .checked()
}

fn print(first: &FirstMembership) -> String {
    let mut text = format!(
        "{HEADER}\ncluster {:016x}\nkind {}\nshards {}\nsession_ttl_ms {}\nmax_sessions_per_shard {}\n\
         max_results_per_session {}\n",
        first.cluster.0,
        first.genesis.kind,
        first.genesis.shards,
        first.genesis.session_ttl_ms,
        first.genesis.max_sessions_per_shard,
        first.genesis.max_results_per_session
    );
    for (node, address) in &first.members {
        // Writing to a string can't fail.
        let _ = writeln!(text, "member {:016x} {address}", node.0);
    }
    let checksum = crc32fast::hash(text.as_bytes());
    let _ = writeln!(text, "checksum {checksum:08x}");
    text
}

fn parse(text: &str) -> Result<FirstMembership, FileError> {
    let bad = |reason: &str| BadFirstMembership(reason.to_owned());
    let (body, checksum) = text
        .rsplit_once("checksum ")
        .ok_or_else(|| bad("it ends without a checksum"))?;
    if format!("{:08x}\n", crc32fast::hash(body.as_bytes())) != checksum {
        return Err(bad("its checksum does not match").into());
    }
    let mut lines = body.lines();
    if lines.next() != Some(HEADER) {
        // The checksum matches, so this is another format and no damage.
        let found = body.lines().next().unwrap_or_default().to_owned();
        return Err(FileError::Version(found));
    }
    let mut field = |name: &str| {
        lines
            .next()
            .and_then(|line| line.strip_prefix(name)?.strip_prefix(' '))
            .ok_or_else(|| bad("a line is missing"))
    };
    let number = |text: &str| {
        text.parse::<u64>()
            .map_err(|_| bad("a field is not a number"))
    };
    let small = |text: &str| {
        text.parse::<u32>()
            .map_err(|_| bad("a field is not a number"))
    };
    let id = |text: &str| {
        u64::from_str_radix(text, 16).map_err(|_| bad("an id is not a hexadecimal number"))
    };
    let cluster = ClusterId(id(field("cluster")?)?);
    let kind = field("kind")?;
    let genesis = Genesis {
        kind: GroupKind::ALL
            .into_iter()
            .find(|it| it.name() == kind)
            .ok_or_else(|| FileError::Version(format!("kind {kind}")))?,
        shards: small(field("shards")?)?,
        session_ttl_ms: number(field("session_ttl_ms")?)?,
        max_sessions_per_shard: small(field("max_sessions_per_shard")?)?,
        max_results_per_session: small(field("max_results_per_session")?)?,
    };
    let members = lines
        .map(|line| {
            let (node, address) = line
                .strip_prefix("member ")
                .and_then(|rest| rest.split_once(' '))
                .ok_or_else(|| bad("a line is not a member"))?;
            Ok((NodeId(id(node)?), address.to_owned()))
        })
        .collect::<Result<_, BadFirstMembership>>()?;
    let first = FirstMembership {
        cluster,
        members,
        genesis,
    };
    Ok(first.checked()?)
}

/// Converts a kind to the wire.
pub(crate) fn kind_to_wire(kind: GroupKind) -> v1::GroupKind {
    match kind {
        GroupKind::Standalone => v1::GroupKind::Standalone,
        GroupKind::Shards => v1::GroupKind::Shards,
        GroupKind::Controller => v1::GroupKind::Controller,
    }
}

fn kind_from_wire(kind: v1::GroupKind) -> Result<GroupKind, BadFirstMembership> {
    match kind {
        v1::GroupKind::Standalone => Ok(GroupKind::Standalone),
        v1::GroupKind::Shards => Ok(GroupKind::Shards),
        v1::GroupKind::Controller => Ok(GroupKind::Controller),
        v1::GroupKind::Unspecified => Err(BadFirstMembership("the kind is missing".to_owned())),
    }
}

/// The reason why the file can't be read or written. Only a failed write of the operating system can be tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// The operating system refused the access.
    #[error("can't access {NAME} in the data directory: {0}")]
    Io(#[from] io::Error),
    /// Another version of this program wrote the file.
    #[error(
        "{NAME} in the data directory is unknown to this version ({0}), and not damaged: use the version of the \
         program that wrote it"
    )]
    Version(String),
    /// The content is damaged.
    #[error("{NAME} in the data directory is damaged ({0})")]
    Damaged(#[from] BadFirstMembership),
}

/// Reads the file of a data directory, if there is one.
pub(crate) fn read(dir: &Path) -> Result<Option<FirstMembership>, FileError> {
    match fs::read_to_string(dir.join(NAME)) {
        Ok(text) => parse(&text).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(BadFirstMembership("it is not text".to_owned()).into())
        }
        Err(error) => Err(error.into()),
    }
}

/// Writes the file of a data directory, durably and atomically.
pub(crate) fn write(dir: &Path, first: &FirstMembership) -> io::Result<()> {
    let temporary = dir.join("GENESIS.new");
    let mut file = File::create(&temporary)?;
    file.write_all(print(first).as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, dir.join(NAME))?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first() -> FirstMembership {
        FirstMembership {
            cluster: ClusterId(77),
            members: vec![(NodeId(1), "a:1".to_owned()), (NodeId(2), "b:2".to_owned())],
            genesis: Genesis::default(),
        }
    }

    #[test]
    fn a_beginning_survives_wire_and_file() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), None);
        assert_eq!(from_wire(to_wire(&first())).unwrap(), first());
        write(dir.path(), &first()).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Some(first()));
    }

    #[test]
    fn every_flipped_byte_of_the_file_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let text = print(&first());
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 0x01;
            fs::write(dir.path().join(NAME), &bytes).unwrap();
            assert!(
                matches!(read(dir.path()), Err(FileError::Damaged(_))),
                "byte {at}"
            );
        }
        for length in 0..text.len() {
            fs::write(dir.path().join(NAME), &text.as_bytes()[..length]).unwrap();
            assert!(read(dir.path()).is_err(), "cut at {length}");
        }
    }

    #[test]
    fn another_version_is_not_damage() {
        let dir = tempfile::tempdir().unwrap();
        for (old, new) in [("format 2", "format 3"), ("kind standalone", "kind other")] {
            let text = print(&first()).replace(old, new);
            let body = &text[..text.find("checksum").unwrap()];
            let checksum = crc32fast::hash(body.as_bytes());
            fs::write(
                dir.path().join(NAME),
                format!("{body}checksum {checksum:08x}\n"),
            )
            .unwrap();
            let found = read(dir.path());
            assert!(matches!(found, Err(FileError::Version(_))), "{found:?}");
        }
    }
}
