//! The keys and values of the log's database.
//!
//! | key | value |
//! |---|---|
//! | `e` + index (8 bytes, big-endian) | an entry: CRC-32 (4 bytes), term (8 bytes), both little-endian; payload |
//! | `mb` | the base: the position and the membership up to which the log is compacted |
//! | `mh` | the hard state |
//! | `mi` | the mark of an unfinished installation of a snapshot |
//! | `mn` | the number of synced writes |
//! | `mv` | the version of this format |
//!
//! An entry's checksum covers its index too, so that an entry at the place of another is detected. The base, the hard
//! state and the mark end with a CRC-32.

use bytes::Bytes;
use raft::{Entry, EntryId, HardState, Index, Membership, Payload, SnapshotMeta, StoreError, Term};
use types::{DecodeError, NodeId, Reader, Writer};

pub(crate) const BASE: &[u8] = b"mb";
pub(crate) const HARD_STATE: &[u8] = b"mh";
pub(crate) const INSTALLING: &[u8] = b"mi";
pub(crate) const NUMBER: &[u8] = b"mn";
pub(crate) const VERSION: &[u8] = b"mv";
pub(crate) const FORMAT: u8 = 1;
/// Checksum and term.
const ENTRY_HEADER_BYTES: usize = 12;

pub(crate) fn damaged(text: &str) -> StoreError {
    StoreError::Damaged(text.to_owned())
}

pub(crate) fn entry_key(index: Index) -> [u8; 9] {
    let mut key = [b'e'; 9];
    let (_, number) = key.split_at_mut(1);
    number.copy_from_slice(&index.0.to_be_bytes());
    key
}

fn checksum(key: &[u8], rest: &[u8]) -> [u8; 4] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(rest);
    hasher.finalize().to_le_bytes()
}

pub(crate) fn encode_entry(entry: &Entry) -> Vec<u8> {
    let payload = entry.payload.encode();
    let mut value = Vec::with_capacity(ENTRY_HEADER_BYTES + payload.len());
    value.extend_from_slice(&[0; 4]);
    value.extend_from_slice(&entry.id.term.0.to_le_bytes());
    value.extend_from_slice(&payload);
    let (sum, rest) = value.split_at_mut(4);
    sum.copy_from_slice(&checksum(&entry_key(entry.id.index), rest));
    value
}

pub(crate) fn decode_entry(key: &[u8], value: Box<[u8]>) -> Result<Entry, StoreError> {
    let index = match key {
        [b'e', number @ ..] => number.try_into().map(u64::from_be_bytes).ok(),
        _ => None,
    };
    let index = Index(index.ok_or_else(|| damaged("the key of a log entry is not an index"))?);
    let bad = |text: &str| damaged(&format!("log entry {index}: {text}"));
    let (sum, rest) = value
        .split_first_chunk::<4>()
        .ok_or_else(|| bad("it is too short"))?;
    if checksum(key, rest) != *sum {
        return Err(bad("its checksum does not match"));
    }
    let (term, _) = rest
        .split_first_chunk::<8>()
        .ok_or_else(|| bad("it is too short"))?;
    let term = Term(u64::from_le_bytes(*term));
    let payload = Payload::decode(Bytes::from(value).slice(ENTRY_HEADER_BYTES..))
        .map_err(|error| StoreError::unreadable(format_args!("log entry {index}"), &error))?;
    Ok(Entry::new(term, index, payload))
}

/// Appends the checksum that [`checked`] verifies.
fn with_checksum(record: Writer) -> Vec<u8> {
    let mut value = record.finish().to_vec();
    value.extend_from_slice(&crc32fast::hash(&value).to_le_bytes());
    value
}

/// Verifies the checksum of the record `name`, and returns a reader of the content before it.
fn checked(value: &Bytes, name: &str) -> Result<Reader, StoreError> {
    let bad = || damaged(&format!("the {name} in the log has a wrong checksum"));
    let (content, sum) = value.split_last_chunk::<4>().ok_or_else(bad)?;
    if crc32fast::hash(content).to_le_bytes() != *sum {
        return Err(bad());
    }
    Ok(Reader::new(value.slice(..content.len())))
}

pub(crate) fn encode_id(id: EntryId) -> Vec<u8> {
    let mut out = Writer::with_capacity(32);
    out.number(id.term.0).number(id.index.0);
    with_checksum(out)
}

fn read_id(input: &mut Reader) -> Result<EntryId, DecodeError> {
    let term = Term(input.number("term")?);
    Ok(EntryId::new(term, Index(input.number("index")?)))
}

pub(crate) fn decode_id(value: &Bytes) -> Result<EntryId, StoreError> {
    let mut input = checked(value, "install mark")?;
    read_id(&mut input)
        .and_then(|id| input.finish().map(|()| id))
        .map_err(|error| damaged(&format!("the install mark in the log: {error}")))
}

pub(crate) fn encode_hard_state(hard_state: HardState) -> Vec<u8> {
    let mut out = Writer::with_capacity(32);
    out.number(hard_state.term.0);
    match hard_state.vote {
        Some(node) => out.byte(1).number(node.0),
        None => out.byte(0),
    };
    with_checksum(out)
}

pub(crate) fn decode_hard_state(value: &Bytes) -> Result<HardState, StoreError> {
    let mut input = checked(value, "hard state")?;
    let read = |input: &mut Reader| {
        let term = Term(input.number("term")?);
        let vote = match input.byte("vote")? {
            0 => None,
            _ => Some(NodeId(input.number("vote")?)),
        };
        Ok(HardState { term, vote })
    };
    read(&mut input)
        .and_then(|hard_state| input.finish().map(|()| hard_state))
        .map_err(|error: DecodeError| damaged(&format!("the hard state: {error}")))
}

pub(crate) fn encode_base(base: &SnapshotMeta) -> Vec<u8> {
    let mut out = Writer::with_capacity(128);
    out.number(base.last.term.0).number(base.last.index.0);
    base.membership.encode(&mut out);
    with_checksum(out)
}

pub(crate) fn decode_base(value: &Bytes) -> Result<SnapshotMeta, StoreError> {
    let mut input = checked(value, "base")?;
    let read = |input: &mut Reader| {
        let last = read_id(input)?;
        let membership = Membership::decode(input)?;
        Ok(SnapshotMeta { last, membership })
    };
    read(&mut input)
        .and_then(|base| input.finish().map(|()| base))
        .map_err(|error: DecodeError| damaged(&format!("the log's base: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_another_version_is_not_damaged() {
        let index = Index(7);
        let stored = |version: u8| {
            let entry = Entry::new(Term(2), index, Payload::Noop);
            let mut value = encode_entry(&entry);
            value[ENTRY_HEADER_BYTES] = version;
            let (sum, rest) = value.split_at_mut(4);
            sum.copy_from_slice(&checksum(&entry_key(index), rest));
            decode_entry(&entry_key(index), value.into())
        };
        assert!(stored(1).is_ok());
        assert!(matches!(stored(0), Err(StoreError::Damaged(_))));
        for version in [2, u8::MAX] {
            assert!(matches!(stored(version), Err(StoreError::OtherVersion(_))));
        }
    }
}
