//! The hash of a keyspace at a revision, equal on all replicas.

use raft::StoreError;
use replica::{Order, PairReader};

use crate::failure::Failure;
use crate::keys::{Table, VersionKey, split_version, without_place};
use crate::range::check_revision;
use crate::rows::damaged;
use crate::store::Rows;
use crate::view::{borrowed, whole};
use crate::{Place, Refusal, read};

/// The hash of a keyspace at a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashAnswer {
    /// The hash.
    pub hash: u32,
    /// The revision that was hashed.
    pub hash_revision: i64,
    /// The compacted revision, on which the hash depends.
    pub compacted: i64,
    /// The newest revision.
    pub revision: i64,
}

/// Hashes all versions that can be read at some revision from the compacted one to `revision`; 0 and below mean the newest.
///
/// It walks the versions and leaves out those that compaction is to remove, so the hash doesn't depend on how far clearing has
/// come. It reads the whole keyspace: the caller runs it where it delays nobody.
pub fn hash(
    reader: &dyn PairReader,
    place: Place,
    revision: i64,
) -> Result<Result<HashAnswer, Refusal>, StoreError> {
    Failure::split(hash_versions(reader, place, revision))
}

fn hash_versions(
    reader: &dyn PairReader,
    place: Place,
    revision: i64,
) -> Result<HashAnswer, Failure> {
    let record = read::record(reader, place)??;
    check_revision(revision, record.compacted, record.revision)?;
    let until = if revision > 0 {
        revision
    } else {
        record.revision
    };
    let compacted = record.compacted;
    let mut hasher = crc32fast::Hasher::new();
    let mut held: Option<(VersionKey, bytes::Bytes)> = None;
    let bounds = whole(place, Table::Versions);
    let mut cursor = Rows::new(reader, borrowed(&bounds), Order::Ascending)?;
    while let Some((stored, row)) = cursor.next()? {
        let key = split_version(&stored).ok_or_else(|| damaged("a version", &"bad key"))?;
        if let Some((version, row)) = held.take() {
            let replaced = version.key == key.key && key.revision <= compacted;
            if !replaced {
                add(&mut hasher, &version, &row);
            }
        }
        // Nothing is read back from a deletion up to the compacted revision.
        let over = key.revision > until || (key.deleted && key.revision <= compacted);
        held = (!over).then_some((key, row));
    }
    if let Some((version, row)) = held {
        add(&mut hasher, &version, &row);
    }
    Ok(HashAnswer {
        hash: hasher.finalize(),
        hash_revision: until,
        compacted,
        revision: record.revision,
    })
}

/// Adds a version. The place is left out: a keyspace has the same hash wherever it is.
fn add(hasher: &mut crc32fast::Hasher, version: &VersionKey, row: &[u8]) {
    let key = without_place(&version.key).unwrap_or_default();
    hasher.update(&(key.len() as u64).to_be_bytes());
    hasher.update(&key);
    hasher.update(&version.revision.to_be_bytes());
    hasher.update(&[version.deleted.into()]);
    hasher.update(&(row.len() as u64).to_be_bytes());
    hasher.update(row);
}
