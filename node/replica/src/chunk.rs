//! The format of snapshots on the wire: every store writes and reads the same chunks, so that a
//! snapshot of one restores into any other.
//!
//! A chunk is
//!
//! | field | encoding |
//! |---|---|
//! | version | 1 byte, now 1 |
//! | checksum | CRC-32 of everything after it, 4 bytes, little-endian |
//! | number | varint: the chunk's place in the snapshot, from zero |
//! | records | until the chunk's end |
//!
//! and a record is either a pair (table tag 1 to 4, key, value: length-prefixed) or, as the very last
//! record of the last chunk, the trailer: tag 0, the [`Applied`] record, the number of pairs, and the CRC-32
//! of all pairs' encodings in order. The trailer distinguishes a whole snapshot from a part of one. The chunk
//! numbers, and the rule that keys ascend, reveal a repeated or swapped chunk.
//!
//! Nothing here does I/O. Decoding never panics: any other input is [`StoreError::Damaged`].

use bytes::Bytes;
use raft::{EntryId, Index, Membership, SnapshotMeta, StoreError, Term};
use types::{DecodeError, LogTime, Reader, Writer};

use crate::{Applied, Digest, SNAPSHOT_CHUNK_BYTES, Table};

const CHUNK_VERSION: u8 = 1;
/// The version byte of a record of feature level 0. The first versions know no other.
const APPLIED_VERSION: u8 = 1;
/// The version byte of a record that names its feature level.
const APPLIED_VERSION_WITH_LEVEL: u8 = 2;
/// The version byte of a record that names its feature level and its digest.
const APPLIED_VERSION_WITH_DIGEST: u8 = 3;
const TRAILER: u8 = 0;
/// The bytes of the version and the checksum.
const HEADER_BYTES: usize = 5;

/// A pair of a snapshot.
pub type Pair = (Table, Bytes, Bytes);

impl Applied {
    /// Encodes the record: version, feature level if it isn't 0, digest if there is one, term, index, time, membership.
    pub fn encode(&self) -> Bytes {
        let mut out = Writer::with_capacity(64);
        match (self.feature_level, self.digest) {
            (0, None) => out.byte(APPLIED_VERSION),
            (level, None) => out.byte(APPLIED_VERSION_WITH_LEVEL).number(level.into()),
            (level, Some(digest)) => out
                .byte(APPLIED_VERSION_WITH_DIGEST)
                .number(level.into())
                .number(digest.since.0)
                .raw(&digest.value.to_le_bytes()),
        };
        out.number(self.last.term.0)
            .number(self.last.index.0)
            .number(self.time.0);
        self.membership.encode(&mut out);
        out.finish()
    }

    /// Decodes the output of [`Applied::encode`]. A record of a later version is [`StoreError::OtherVersion`]: nothing is damaged.
    pub fn decode(input: Bytes) -> Result<Self, StoreError> {
        let known = APPLIED_VERSION_WITH_DIGEST;
        match input.first() {
            Some(version) if *version > known => Err(StoreError::OtherVersion(format!(
                "its position has version {version}, and this version knows {known}"
            ))),
            _ => Self::decode_known(input)
                .map_err(|error| damaged(format!("a state's position can't be read: {error}"))),
        }
    }

    fn decode_known(input: Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(input);
        let version = input.byte("applied version")?;
        let feature_level = match version {
            APPLIED_VERSION => 0,
            APPLIED_VERSION_WITH_LEVEL | APPLIED_VERSION_WITH_DIGEST => {
                input.number_u32("feature level")?
            }
            _ => {
                return Err(DecodeError::Unknown {
                    what: "applied version",
                    value: version.into(),
                });
            }
        };
        let digest = (version == APPLIED_VERSION_WITH_DIGEST).then(|| decode_digest(&mut input));
        let digest = digest.transpose()?;
        let term = Term(input.number("applied term")?);
        let index = Index(input.number("applied index")?);
        let time = LogTime(input.number("applied time")?);
        let membership = Membership::decode(&mut input)?;
        input.finish()?;
        Ok(Self {
            last: EntryId::new(term, index),
            membership,
            time,
            feature_level,
            digest,
        })
    }

    /// Returns the last entry and the membership that a snapshot at this position covers.
    pub fn meta(&self) -> SnapshotMeta {
        SnapshotMeta {
            last: self.last,
            membership: self.membership.clone(),
        }
    }
}

fn decode_digest(input: &mut Reader) -> Result<Digest, DecodeError> {
    let since = Index(input.number("digest's begin")?);
    let mut value = [0; 8];
    for byte in &mut value {
        *byte = input.byte("digest")?;
    }
    Ok(Digest {
        since,
        value: u64::from_le_bytes(value),
    })
}

impl Table {
    /// Returns the byte of the table in a chunk, which is part of the format.
    pub const fn tag(self) -> u8 {
        match self {
            Self::Meta => 1,
            Self::Data => 2,
            Self::Sessions => 3,
            Self::Journal => 4,
        }
    }

    /// Returns the table of a tag.
    pub fn from_tag(tag: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.tag() == tag)
    }
}

/// Writes the chunks of one snapshot.
#[derive(Debug)]
pub struct ChunkEncoder {
    applied: Applied,
    number: u64,
    pairs: u64,
    running: crc32fast::Hasher,
    body: Writer,
    chunk_bytes: usize,
}

impl ChunkEncoder {
    /// Creates the encoder of a snapshot at `applied`.
    pub fn new(applied: Applied) -> Self {
        Self {
            applied,
            number: 0,
            pairs: 0,
            running: crc32fast::Hasher::new(),
            body: start_body(0),
            chunk_bytes: SNAPSHOT_CHUNK_BYTES,
        }
    }

    /// Sets the approximate size of a chunk, for tests of many small chunks.
    #[must_use]
    pub fn with_chunk_bytes(mut self, chunk_bytes: usize) -> Self {
        self.chunk_bytes = chunk_bytes;
        self
    }

    /// Adds a pair. Pairs come in ascending order of table and key. Returns a chunk when one is full.
    pub fn pair(&mut self, table: Table, key: &[u8], value: &[u8]) -> Option<Bytes> {
        let mut record = Writer::with_capacity(key.len() + value.len() + 16);
        record.byte(table.tag()).bytes(key).bytes(value);
        let record = record.finish();
        self.running.update(&record);
        self.pairs += 1;
        self.body.raw(&record);
        (self.body.len() >= self.chunk_bytes).then(|| {
            self.number += 1;
            seal(std::mem::replace(&mut self.body, start_body(self.number)))
        })
    }

    /// Returns the last chunk, with the trailer.
    pub fn finish(mut self) -> Bytes {
        self.body
            .byte(TRAILER)
            .bytes(&self.applied.encode())
            .number(self.pairs)
            .number(self.running.finalize().into());
        seal(self.body)
    }
}

fn start_body(number: u64) -> Writer {
    let mut body = Writer::with_capacity(4_096);
    body.number(number);
    body
}

fn seal(body: Writer) -> Bytes {
    let body = body.finish();
    let mut out = Writer::with_capacity(body.len() + HEADER_BYTES);
    out.byte(CHUNK_VERSION)
        .raw(&crc32fast::hash(&body).to_le_bytes())
        .raw(&body);
    out.finish()
}

/// Reads the chunks of one snapshot in order and verifies that they are whole.
#[derive(Debug)]
pub struct ChunkDecoder {
    meta: SnapshotMeta,
    next: u64,
    pairs: u64,
    running: crc32fast::Hasher,
    last_key: Option<(Table, Bytes)>,
    trailer: Option<Applied>,
}

impl ChunkDecoder {
    /// Creates the decoder of the snapshot that `meta` describes.
    pub fn new(meta: SnapshotMeta) -> Self {
        Self {
            meta,
            next: 0,
            pairs: 0,
            running: crc32fast::Hasher::new(),
            last_key: None,
            trailer: None,
        }
    }

    /// Decodes the pairs of the next chunk. After an error the snapshot must start over with a new decoder.
    pub fn chunk(&mut self, chunk: &[u8]) -> Result<Vec<Pair>, StoreError> {
        if self.trailer.is_some() {
            return Err(damaged("a snapshot chunk follows the last one"));
        }
        let mut body = open(chunk)?;
        let number = body.number("chunk number").map_err(decode)?;
        if number != self.next {
            return Err(damaged(format!(
                "snapshot chunk {number} came where {} was due",
                self.next
            )));
        }
        self.next += 1;
        let mut pairs = Vec::new();
        while body.remaining() > 0 {
            let tag = body.byte("record tag").map_err(decode)?;
            if tag == TRAILER {
                self.trailer(body)?;
                break;
            }
            let table = Table::from_tag(tag)
                .ok_or_else(|| damaged(format!("unknown table tag {tag} in a snapshot")))?;
            let key = body.bytes("snapshot key").map_err(decode)?;
            let value = body.bytes("snapshot value").map_err(decode)?;
            self.verify(table, &key, &value)?;
            pairs.push((table, key, value));
        }
        Ok(pairs)
    }

    fn verify(&mut self, table: Table, key: &Bytes, value: &[u8]) -> Result<(), StoreError> {
        let place = (table, key.clone());
        if self.last_key.as_ref().is_some_and(|last| *last >= place) {
            return Err(damaged("the keys of a snapshot do not ascend"));
        }
        self.last_key = Some(place);
        let mut record = Writer::with_capacity(key.len() + value.len() + 16);
        record.byte(table.tag()).bytes(key).bytes(value);
        self.running.update(&record.finish());
        self.pairs += 1;
        Ok(())
    }

    fn trailer(&mut self, mut body: Reader) -> Result<(), StoreError> {
        let applied = body.bytes("trailer").map_err(decode)?;
        let applied = Applied::decode(applied)?;
        let pairs = body.number("pair count").map_err(decode)?;
        let checksum = body.number("snapshot checksum").map_err(decode)?;
        body.finish().map_err(decode)?;
        if pairs != self.pairs {
            return Err(damaged(format!(
                "a snapshot of {pairs} pairs came with {}",
                self.pairs
            )));
        }
        if checksum != u64::from(self.running.clone().finalize()) {
            return Err(damaged("a snapshot's checksum does not match its pairs"));
        }
        if applied.meta() != self.meta {
            return Err(damaged(format!(
                "a snapshot that ends at {} was announced to end at {}, or its membership differs",
                applied.last, self.meta.last
            )));
        }
        self.trailer = Some(applied);
        Ok(())
    }

    /// Returns the position of the state if the snapshot is whole.
    pub fn finish(self) -> Result<Applied, StoreError> {
        self.trailer
            .ok_or_else(|| damaged(format!("a snapshot ends after {} chunks", self.next)))
    }
}

/// Checks the version and the checksum of a chunk. Returns a reader of the rest.
fn open(chunk: &[u8]) -> Result<Reader, StoreError> {
    let mut input = Reader::new(Bytes::copy_from_slice(chunk));
    let version = input.byte("chunk version").map_err(decode)?;
    if version != CHUNK_VERSION {
        return Err(damaged(format!(
            "a snapshot chunk has version {version}, this program knows {CHUNK_VERSION}"
        )));
    }
    let (Some(checksum), Some(body)) = (chunk.get(1..HEADER_BYTES), chunk.get(HEADER_BYTES..))
    else {
        return Err(damaged("a snapshot chunk is shorter than its header"));
    };
    if checksum != crc32fast::hash(body).to_le_bytes() {
        return Err(damaged("a snapshot chunk's checksum does not match"));
    }
    Ok(Reader::new(input.rest().slice(HEADER_BYTES - 1..)))
}

fn damaged(what: impl Into<String>) -> StoreError {
    StoreError::Damaged(what.into())
}

#[allow(clippy::needless_pass_by_value)]
fn decode(error: DecodeError) -> StoreError {
    StoreError::Damaged(format!("a snapshot chunk: {error}"))
}

#[cfg(test)]
mod tests {
    use types::NodeId;

    use super::*;

    fn applied() -> Applied {
        Applied {
            last: EntryId::new(Term(3), Index(7)),
            membership: Membership::of_voters([(NodeId(1), "a:1")]),
            time: LogTime(5),
            feature_level: 0,
            digest: None,
        }
    }

    #[test]
    fn a_position_names_its_feature_level_if_it_has_one() {
        // Versions that know no levels read it.
        let old = applied();
        assert_eq!(old.encode().first(), Some(&APPLIED_VERSION));
        assert_eq!(Applied::decode(old.encode()).unwrap(), old);
        // They refuse this one.
        let new = Applied {
            feature_level: 300,
            ..applied()
        };
        assert_eq!(new.encode().first(), Some(&APPLIED_VERSION_WITH_LEVEL));
        assert_eq!(Applied::decode(new.encode()).unwrap(), new);
        let since = Index(300);
        let value = 0x0123_4567_89ab_cdef;
        let digest = Some(Digest { since, value });
        let with_digest = Applied { digest, ..new };
        let encoded = with_digest.encode();
        assert_eq!(encoded.first(), Some(&APPLIED_VERSION_WITH_DIGEST));
        for cut in 0..encoded.len() {
            assert!(Applied::decode(encoded.slice(..cut)).is_err(), "cut {cut}");
        }
        assert_eq!(Applied::decode(encoded).unwrap(), with_digest);
    }

    #[test]
    fn a_position_of_a_later_version_is_not_damaged() {
        let mut encoded = applied().encode().to_vec();
        for version in 0..=u8::MAX {
            encoded[0] = version;
            let decoded = Applied::decode(encoded.clone().into());
            match version {
                0 => assert!(matches!(decoded, Err(StoreError::Damaged(_)))),
                // The other two have more fields.
                1..=3 => assert_eq!(decoded.is_ok(), version == 1),
                _ => assert!(matches!(decoded, Err(StoreError::OtherVersion(_)))),
            }
        }
    }

    fn chunks(pairs: usize, size: usize) -> Vec<Bytes> {
        let mut encoder = ChunkEncoder::new(applied());
        let mut chunks = Vec::new();
        for n in 0..pairs {
            let key = format!("{n:08}");
            chunks.extend(encoder.pair(Table::Data, key.as_bytes(), &vec![7; size]));
        }
        chunks.push(encoder.finish());
        chunks
    }

    fn decode_all(chunks: &[Bytes]) -> Result<(usize, Applied), StoreError> {
        let mut decoder = ChunkDecoder::new(applied().meta());
        let mut pairs = 0;
        for chunk in chunks {
            pairs += decoder.chunk(chunk)?.len();
        }
        Ok((pairs, decoder.finish()?))
    }

    #[test]
    fn a_snapshot_round_trips() {
        for (pairs, size, expected) in [(0, 0, 1), (10, 10, 1), (3000, 256, 4), (3, 300_000, 4)] {
            let chunks = chunks(pairs, size);
            assert_eq!(chunks.len(), expected);
            assert_eq!(decode_all(&chunks), Ok((pairs, applied())));
        }
    }

    #[test]
    fn parts_repeats_and_swaps_are_damage() {
        let whole = chunks(3000, 256);
        for cut in 0..whole.len() {
            assert!(decode_all(&whole[..cut]).is_err());
        }
        for at in 0..whole.len() {
            let mut repeated = whole.clone();
            repeated.insert(at, whole[at].clone());
            assert!(decode_all(&repeated).is_err());
            let mut missing = whole.clone();
            missing.remove(at);
            assert!(decode_all(&missing).is_err());
        }
        let mut swapped = whole;
        swapped.swap(0, 1);
        assert!(decode_all(&swapped).is_err());
    }

    #[test]
    fn every_flipped_byte_is_damage() {
        let whole = chunks(3, 5);
        for at in 0..whole[0].len() {
            let mut bytes = whole[0].to_vec();
            bytes[at] ^= 1;
            assert!(decode_all(&[bytes.into()]).is_err(), "byte {at}");
        }
        for cut in 0..whole[0].len() {
            assert!(decode_all(&[whole[0].slice(..cut)]).is_err(), "cut {cut}");
        }
    }

    #[test]
    fn another_snapshot_than_announced_is_damage() {
        let mut other = applied().meta();
        other.last.index = Index(8);
        let mut decoder = ChunkDecoder::new(other);
        assert!(decoder.chunk(&chunks(1, 1)[0]).is_err());
    }
}
