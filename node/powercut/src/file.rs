//! The content of a file: as processes see it, as it was synced, and the changes between both.

use std::collections::{BTreeMap, VecDeque};

use crate::draw::Draw;

/// The unit that a disk writes whole.
const SECTOR: usize = 512;
/// The maximum number of unsynced changes of a file. The oldest one beyond becomes durable, as a kernel writes old pages back
/// by itself. It bounds the memory for files that are never synced.
const MAX_PENDING: usize = 4_096;

/// A change that is not durable yet.
#[derive(Clone, Debug)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Resize(usize),
}

/// The content of a file.
///
/// Invariant: `durable` with all of `pending` applied in order is `now`.
#[derive(Clone, Debug, Default)]
pub(crate) struct File {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// The changes since the last sync, each with its number in the order of all changes of the disk.
    pending: VecDeque<(u64, Change)>,
}

impl File {
    pub(crate) fn len(&self) -> usize {
        self.now.len()
    }

    /// Returns at most `size` bytes from `offset`.
    pub(crate) fn read(&self, offset: usize, size: usize) -> &[u8] {
        let end = offset.saturating_add(size).min(self.now.len());
        self.now.get(offset..end).unwrap_or_default()
    }

    pub(crate) fn write(&mut self, number: u64, offset: usize, bytes: &[u8]) {
        let bytes = bytes.to_vec();
        self.change(number, Change::Write { offset, bytes });
    }

    pub(crate) fn resize(&mut self, number: u64, len: usize) {
        if len != self.now.len() {
            self.change(number, Change::Resize(len));
        }
    }

    fn change(&mut self, number: u64, change: Change) {
        apply(&mut self.now, &change);
        self.pending.push_back((number, change));
        if self.pending.len() > MAX_PENDING
            && let Some((_, oldest)) = self.pending.pop_front()
        {
            apply(&mut self.durable, &oldest);
        }
    }

    /// Makes everything durable.
    pub(crate) fn sync(&mut self) {
        for (_, change) in self.pending.drain(..) {
            apply(&mut self.durable, &change);
        }
    }

    /// Appends the numbers of the changes that are not durable.
    pub(crate) fn list_pending(&self, numbers: &mut Vec<u64>) {
        numbers.extend(self.pending.iter().map(|(number, _)| number));
    }

    /// Forgets all changes that are not durable.
    pub(crate) fn forget(&mut self) {
        self.pending.clear();
        self.now.clone_from(&self.durable);
    }

    /// Keeps the changes before number `last`, and a torn part of a write with this number.
    pub(crate) fn keep_until(&mut self, last: u64, draw: &mut Draw) {
        for (number, change) in &self.pending {
            match change {
                _ if *number < last => apply(&mut self.durable, change),
                Change::Write { offset, bytes } if *number == last => {
                    let kept = torn(*offset, bytes, draw).to_vec();
                    let offset = *offset;
                    apply(
                        &mut self.durable,
                        &Change::Write {
                            offset,
                            bytes: kept,
                        },
                    );
                }
                _ => break,
            }
        }
        self.forget();
    }

    /// Keeps for each sector some of the first writes to it, independently of other sectors, and the length that the file
    /// had after some change. A change of the length that did not survive takes later writes with it.
    pub(crate) fn scatter(&mut self, draw: &mut Draw) {
        let reached = draw.up_to(self.pending.len());
        let mut len = self.durable.len();
        for (_, change) in self.pending.iter().take(reached) {
            len = match change {
                Change::Write { offset, bytes } => len.max(offset + bytes.len()),
                Change::Resize(len) => *len,
            };
        }
        let lost_resize =
            |(_, (_, change)): &(usize, &(u64, Change))| matches!(change, Change::Resize(_));
        let end = (self.pending.iter().enumerate().skip(reached))
            .find(lost_resize)
            .map_or(self.pending.len(), |(at, _)| at);

        let mut keep: BTreeMap<usize, usize> = BTreeMap::new();
        for (_, change) in self.pending.iter().take(end) {
            for (at, _) in pieces(change) {
                *keep.entry(at / SECTOR).or_default() += 1;
            }
        }
        for writes in keep.values_mut() {
            *writes = draw.up_to(*writes);
        }
        for (_, change) in self.pending.iter().take(end) {
            if let Change::Resize(_) = change {
                apply(&mut self.durable, change);
            }
            for (offset, piece) in pieces(change) {
                if let Some(left @ 1..) = keep.get_mut(&(offset / SECTOR)) {
                    *left -= 1;
                    let bytes = piece.to_vec();
                    apply(&mut self.durable, &Change::Write { offset, bytes });
                }
            }
        }
        self.durable.resize(len, 0);
        self.forget();
    }
}

fn apply(content: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Resize(len) => content.resize(*len, 0),
        // Nothing was written, so nothing grows.
        Change::Write { bytes, .. } if bytes.is_empty() => {}
        Change::Write { offset, bytes } => {
            let end = offset + bytes.len();
            if content.len() < end {
                content.resize(end, 0);
            }
            if let Some(place) = content.get_mut(*offset..end) {
                place.copy_from_slice(bytes);
            }
        }
    }
}

/// Splits a write at the sectors' boundaries. A change of the length has no pieces.
fn pieces(change: &Change) -> Vec<(usize, &[u8])> {
    let Change::Write { offset, bytes } = change else {
        return Vec::new();
    };
    let (mut offset, mut rest) = (*offset, bytes.as_slice());
    let mut pieces = Vec::new();
    while !rest.is_empty() {
        let (piece, others) = rest.split_at(rest.len().min(SECTOR - offset % SECTOR));
        pieces.push((offset, piece));
        offset += piece.len();
        rest = others;
    }
    pieces
}

/// Returns the first bytes of a write, up to a boundary of a sector.
fn torn<'a>(offset: usize, bytes: &'a [u8], draw: &mut Draw) -> &'a [u8] {
    let sectors = (offset % SECTOR + bytes.len()) / SECTOR;
    let end = (draw.up_to(sectors) * SECTOR).saturating_sub(offset % SECTOR);
    bytes.get(..end).unwrap_or(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn synced(content: &[u8]) -> File {
        let mut file = File::default();
        file.write(0, 0, content);
        file.sync();
        file
    }

    #[test]
    fn what_was_synced_survives_and_the_rest_is_forgotten() {
        let mut file = synced(b"durable");
        file.write(1, 7, b" and not");
        file.write(2, 0, b"D");
        assert_eq!(file.read(0, 100), b"Durable and not");
        file.forget();
        assert_eq!(file.read(0, 100), b"durable");
        file.resize(3, 2);
        file.forget();
        assert_eq!(file.len(), 7, "so is a change of the length");
        file.resize(4, 2);
        file.sync();
        file.forget();
        assert_eq!(file.read(0, 100), b"du");
    }

    #[test]
    fn in_order_a_prefix_survives_and_the_last_write_is_torn_between_sectors() {
        let mut lengths = BTreeMap::new();
        for seed in 0..200 {
            let mut file = synced(&[0; 100]);
            file.write(1, 0, &[1; 10]);
            file.write(2, 100, &[2; 1_500]);
            file.write(3, 0, &[3; 10]);
            file.keep_until(2, &mut Draw::new(seed));
            assert_eq!(
                file.read(0, 10),
                [1; 10],
                "the first survives, the third doesn't"
            );
            *lengths.entry(file.len()).or_insert(0) += 1;
        }
        let lengths: Vec<usize> = lengths.into_keys().collect();
        assert_eq!(lengths, [100, 512, 1_024, 1_536]);
    }

    #[test]
    fn scattered_writes_survive_by_the_sector() {
        let (mut torn, mut older) = (false, false);
        for seed in 0..200 {
            let mut file = synced(&[0; 1_024]);
            file.write(1, 0, &[1; 1_024]);
            file.write(2, 0, &[2; 1_024]);
            file.scatter(&mut Draw::new(seed));
            let (first, second) = (file.read(0, 512), file.read(512, 512));
            for sector in [first, second] {
                assert!(
                    sector.iter().all(|byte| *byte == sector[0]),
                    "a sector is whole"
                );
            }
            torn |= first[0] < second[0];
            older |= first[0] == 1 || second[0] == 1;
        }
        assert!(torn && older);
    }

    #[test]
    fn scattered_data_of_a_file_that_grew_are_whole_or_zero() {
        let mut lengths = BTreeMap::new();
        for seed in 0..200 {
            let mut file = synced(b"old content");
            file.resize(1, 0);
            file.write(2, 0, &[7; 600]);
            file.scatter(&mut Draw::new(seed));
            *lengths.entry(file.len()).or_insert(0) += 1;
            match file.len() {
                11 => assert_eq!(file.read(0, 11), b"old content", "the truncation was lost"),
                0 => {}
                _ => {
                    for sector in [file.read(0, 512), file.read(512, 88)] {
                        assert!(sector == vec![0; sector.len()] || sector == vec![7; sector.len()]);
                    }
                }
            }
        }
        assert_eq!(lengths.into_keys().collect::<Vec<_>>(), [0, 11, 600]);
    }

    #[test]
    fn a_file_that_is_never_synced_has_bounded_memory() {
        let mut file = File::default();
        for number in 0..10_000 {
            file.write(number, 0, &number.to_le_bytes());
        }
        assert_eq!(file.pending.len(), MAX_PENDING);
        file.forget();
        assert_eq!(file.read(0, 8), 5_903_u64.to_le_bytes());
    }
}
