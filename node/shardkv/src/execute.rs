//! The effect of each write on the data.

use bytes::{Bytes, BytesMut};
use raft::StoreError;

use crate::journal::Rows;
use crate::outcome::Outcome;
use crate::{Write, Written};

/// Carries out a write. The caller has checked the key and that no copy of the write was carried out before.
pub(crate) fn execute(
    write: &Write,
    max_value_bytes: u32,
    rows: &mut Rows<'_, '_>,
) -> Result<Outcome, StoreError> {
    let key = write.key();
    let limit = u64::from(max_value_bytes);
    let written = match write {
        Write::Put { value, .. } => {
            if let Some(refused) = too_large(value.len(), limit) {
                return Ok(refused);
            }
            rows.put(key, value.clone());
            Written::Put
        }
        Write::Append { suffix, .. } => {
            let before = rows.get(key)?;
            let length = before.as_ref().map_or(0, Bytes::len) + suffix.len();
            if let Some(refused) = too_large(length, limit) {
                return Ok(refused);
            }
            rows.put(key, joined(before, suffix, length));
            Written::Append {
                length: length as u64,
            }
        }
        Write::Delete { .. } => {
            let existed = rows.get(key)?.is_some();
            // An absent key needs no tombstone.
            if existed {
                rows.remove(key);
            }
            Written::Delete { existed }
        }
        Write::CompareAndSwap { expected, new, .. } => {
            // Before the comparison, so that the answer doesn't depend on a race.
            if let Some(refused) = too_large(new.as_ref().map_or(0, Bytes::len), limit) {
                return Ok(refused);
            }
            let swapped = rows.get(key)? == *expected;
            match new {
                Some(value) if swapped => rows.put(key, value.clone()),
                None if swapped && expected.is_some() => rows.remove(key),
                _ => {}
            }
            Written::CompareAndSwap { swapped }
        }
    };
    Ok(Outcome::Written(written))
}

fn too_large(size: usize, limit: u64) -> Option<Outcome> {
    let size = size as u64;
    (size > limit).then_some(Outcome::TooLarge { size, limit })
}

fn joined(before: Option<Bytes>, suffix: &Bytes, length: usize) -> Bytes {
    let Some(before) = before else {
        return suffix.clone();
    };
    let mut value = BytesMut::with_capacity(length);
    value.extend_from_slice(&before);
    value.extend_from_slice(suffix);
    value.freeze()
}
