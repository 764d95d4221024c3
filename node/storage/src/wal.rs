//! Reads `RocksDB`'s write-ahead logs before `RocksDB` does, to tell a torn write from damage.
//!
//! `RocksDB` offers two ways to recover, and neither is enough. It can refuse to open at any wrong checksum, and so also
//! after a power cut that tore the last write and left a hole in it. Or it can stop silently at the first wrong checksum,
//! whatever follows. This reader knows two facts that `RocksDB` doesn't: each write of the log was synced before the next
//! one began, and each carries its number. Hence:
//!
//! - A write that *begins* after a broken place in its file proves that the broken write was durable. That is damage.
//! - A number that does not follow the number before it, also from file to file, proves that writes between are lost.
//!   That is damage too. Files whose writes are all in table files don't count: `RocksDB` is deleting them.
//! - A file that begins with a whole record of a later file was about to be reused when the power failed, and doesn't count.
//! - If only a part of that record is on the disk, the file looks damaged. It doesn't count either, because it is below the least file
//!   that the manifest still needs.
//! - A broken place that nothing follows is the last write, and may be cut. `FLOOR` then tells if it was acknowledged.
//!
//! After this check `RocksDB` may stop at the first broken place, and may recycle its log files. Overwriting a file
//! makes a sync about twice as fast as growing one. It leaves old records behind the new ones; the old records carry
//! another file's number.
//!
//! # The format
//!
//! Blocks of 32 KiB hold fragments: checksum (masked CRC-32C of all that follows), length (2 bytes), type (1), low
//! half of the file's number (4), payload; little-endian. Fewer bytes than a header at the end of a block are
//! zero. A write is one FULL fragment, or FIRST, MIDDLE..., LAST. Everything else counts as broken.

use std::path::Path;
use std::{fs, io};

use raft::StoreError;

use crate::crc32c;
use crate::error::translate_io;

const BLOCK: usize = 32 << 10;
const HEADER: usize = 11;
const FULL: u8 = 5;
const FIRST: u8 = 6;
const MIDDLE: u8 = 7;
const LAST: u8 = 8;
/// A write ends with `put("mn", number)`: kind, key's length, key, value's length, value.
const NUMBER_PREFIX: [u8; 5] = [1, 2, b'm', b'n', 8];
const TAIL: usize = NUMBER_PREFIX.len() + 8;

/// A proof that a durable write is lost or broken. A torn last write gives no such proof: it may be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum WalDamage {
    #[error(
        "the write at byte {broken} is broken, and another one begins at byte {next}: the broken write was synced \
         before that, so it is damaged and not torn"
    )]
    BrokenBeforeNext { broken: usize, next: usize },
    #[error("write {found} follows write {before}: the writes between are lost or out of order")]
    Gap { before: u64, found: u64 },
    #[error(
        "the file starts with write {found}, but the file before it ends with write {before}: the writes between \
         are lost"
    )]
    GapBetweenFiles { before: u64, found: u64 },
}

/// Checks the write-ahead logs in `dir` from file `least` on. The writes up to number `flushed` are in table files.
/// [`StoreError::Damaged`] says where a durable write is broken or lost.
pub(crate) fn check(dir: &Path, flushed: u64, least: u64) -> Result<(), StoreError> {
    let mut files = Vec::new();
    let entries = || fs::read_dir(dir)?.collect::<Result<Vec<_>, _>>();
    // A directory that was there, or a file that was listed, is lost.
    let failed = |error: io::Error| match (
        error.kind(),
        translate_io("can't read the write-ahead log", &error),
    ) {
        (io::ErrorKind::NotFound, error) => StoreError::Damaged(error.to_string()),
        (_, error) => error,
    };
    for entry in entries().map_err(failed)? {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".log"));
        let number = number.and_then(|number| number.parse::<u64>().ok());
        if let Some(number) = number.filter(|number| *number >= least) {
            files.push((number, entry.path()));
        }
    }
    files.sort();
    let mut chain = Chain {
        flushed,
        last: None,
    };
    for (number, path) in files {
        let data = fs::read(&path).map_err(failed)?;
        Scan::new(&data, number)
            .run()
            .and_then(|span| chain.add(span))
            .map_err(|damage| StoreError::Damaged(format!("{}: {damage}", path.display())))?;
    }
    Ok(())
}

/// The numbers of the first and the last write of a file; `None` if it has no numbered write.
type Span = Option<(u64, u64)>;

/// The numbers of the files read so far. Each file must continue the numbers of the file before it.
struct Chain {
    flushed: u64,
    last: Option<u64>,
}

impl Chain {
    fn add(&mut self, span: Span) -> Result<(), WalDamage> {
        let Some((first, last)) = span else {
            return Ok(());
        };
        if last <= self.flushed {
            return Ok(());
        }
        if let Some(before) = self.last
            && first != before + 1
        {
            return Err(WalDamage::GapBetweenFiles {
                before,
                found: first,
            });
        }
        self.last = Some(last);
        Ok(())
    }
}

/// Reads the writes of one file.
struct Scan<'a> {
    data: &'a [u8],
    /// The low half of the file's number, as each fragment carries it.
    file: [u8; 4],
    /// The position of the next fragment.
    at: usize,
}

struct Fragment<'a> {
    kind: u8,
    payload: &'a [u8],
}

impl<'a> Scan<'a> {
    fn new(data: &'a [u8], number: u64) -> Self {
        let [a, b, c, d, ..] = number.to_le_bytes();
        Self {
            data,
            file: [a, b, c, d],
            at: 0,
        }
    }

    /// Reads all writes of the file, and drops a torn last one.
    fn run(mut self) -> Result<Span, WalDamage> {
        if self.is_reused() {
            return Ok(None);
        }
        let mut span = None;
        // The end of the payload so far, because the number may lie across two fragments; `None` between writes.
        let mut open: Option<Vec<u8>> = None;
        // The position at which the current write begins.
        let mut begin = 0;
        loop {
            self.skip_trailer();
            if open.is_none() {
                begin = self.at;
            }
            let Some(fragment) = self.fragment(self.at) else {
                break;
            };
            let mut tail = match (fragment.kind, open.take()) {
                (FULL | FIRST, None) => Vec::new(),
                (MIDDLE | LAST, Some(tail)) => tail,
                // This fragment does not fit here: the one that belongs before it or after it is missing.
                _ => break,
            };
            self.at += HEADER + fragment.payload.len();
            tail.extend_from_slice(fragment.payload);
            let surplus = tail.len().saturating_sub(TAIL);
            tail.drain(..surplus);
            if matches!(fragment.kind, FULL | LAST) {
                extend_span(&mut span, &tail)?;
            } else {
                open = Some(tail);
            }
        }
        match self.next_beginning(self.at) {
            Some(next) => Err(WalDamage::BrokenBeforeNext {
                broken: begin,
                next,
            }),
            None => Ok(span),
        }
    }

    /// Returns true if the file begins with a whole fragment of a later file. `RocksDB` was about to reuse the file: it renames it,
    /// writes to it, and syncs the directory last, so a power cut can leave the old name. It reuses only files whose writes are all
    /// in table files, and no write to the new one was acknowledged.
    fn is_reused(&self) -> bool {
        let Some(file) = self.data.get(7..HEADER).and_then(|at| at.try_into().ok()) else {
            return false;
        };
        let later = Self {
            data: self.data,
            file,
            at: 0,
        };
        // The first record of a file begins with its first fragment.
        let begins = |fragment: Fragment<'_>| matches!(fragment.kind, FULL | FIRST);
        u32::from_le_bytes(file) > u32::from_le_bytes(self.file)
            && later.fragment(0).is_some_and(begins)
    }

    /// Skips the rest of a block if it is too short for a header.
    fn skip_trailer(&mut self) {
        let left = BLOCK - self.at % BLOCK;
        if left < HEADER {
            self.at += left;
        }
    }

    /// Returns the fragment at `at` if it is whole and belongs to this file.
    fn fragment(&self, at: usize) -> Option<Fragment<'a>> {
        let header = self.data.get(at..at + HEADER)?;
        let (sum, covered) = header.split_first_chunk::<4>()?;
        let (length, covered) = covered.split_first_chunk::<2>()?;
        let (kind, file) = covered.split_first()?;
        if !(FULL..=LAST).contains(kind) || file != self.file {
            return None;
        }
        let length = usize::from(u16::from_le_bytes(*length));
        if at % BLOCK + HEADER + length > BLOCK {
            return None;
        }
        let payload = self.data.get(at + HEADER..at + HEADER + length)?;
        let found = crc32c::extend(crc32c::extend(0, covered), payload);
        (mask(found) == u32::from_le_bytes(*sum)).then_some(Fragment {
            kind: *kind,
            payload,
        })
    }

    /// Returns the position at or after `from` where the next write begins. It may be any byte, because the lengths behind a
    /// broken place can't be trusted.
    fn next_beginning(&self, from: usize) -> Option<usize> {
        // The search is fast because it compares the type and the file's number before it computes a checksum.
        (from..self.data.len().saturating_sub(HEADER - 1)).find(|at| {
            matches!(self.data.get(at + 6), Some(&(FULL | FIRST)))
                && self.data.get(at + 7..at + HEADER) == Some(&self.file)
                && self.fragment(*at).is_some()
        })
    }
}

/// Adds the write that ends with `tail` to the span, and checks that its number follows the one before.
fn extend_span(span: &mut Span, tail: &[u8]) -> Result<(), WalDamage> {
    let number = tail
        .strip_prefix(&NUMBER_PREFIX)
        .and_then(|number| number.try_into().ok());
    // The first write of a log, which makes it, has no number.
    let Some(number) = number.map(u64::from_le_bytes) else {
        return Ok(());
    };
    *span = match *span {
        None => Some((number, number)),
        Some((first, last)) if number == last + 1 => Some((first, number)),
        Some((_, before)) => {
            return Err(WalDamage::Gap {
                before,
                found: number,
            });
        }
    };
    Ok(())
}

/// Masks a checksum as `RocksDB` does before it stores one.
fn mask(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes a file of `writes`, each of `size` bytes before its number. Returns it, and the position of each write.
    fn file(number: u32, writes: std::ops::Range<u64>, size: usize) -> (Vec<u8>, Vec<usize>) {
        let (mut data, mut begins) = (Vec::new(), Vec::new());
        for write in writes {
            let mut payload = vec![7; size];
            payload.extend(NUMBER_PREFIX);
            payload.extend(write.to_le_bytes());
            let mut rest = &payload[..];
            let mut first = true;
            while first || !rest.is_empty() {
                let left = BLOCK - data.len() % BLOCK;
                if left < HEADER {
                    data.resize(data.len() + left, 0);
                    continue;
                }
                let (fragment, after) = rest.split_at(rest.len().min(left - HEADER));
                let kind = match (first, after.is_empty()) {
                    (true, true) => FULL,
                    (true, false) => FIRST,
                    (false, true) => LAST,
                    (false, false) => MIDDLE,
                };
                if first {
                    begins.push(data.len());
                }
                let mut covered = vec![kind];
                covered.extend(number.to_le_bytes());
                let sum = mask(crc32c::extend(crc32c::extend(0, &covered), fragment));
                data.extend(sum.to_le_bytes());
                data.extend(u16::try_from(fragment.len()).unwrap().to_le_bytes());
                data.extend(covered);
                data.extend(fragment);
                (rest, first) = (after, false);
            }
        }
        (data, begins)
    }

    /// Checks `files`, of which the writes up to `flushed` are in tables. Returns the number of the last write.
    fn run_from(flushed: u64, files: &[(u64, &[u8])]) -> Result<Option<u64>, WalDamage> {
        let mut chain = Chain {
            flushed,
            last: None,
        };
        for (number, data) in files {
            chain.add(Scan::new(data, *number).run()?)?;
        }
        Ok(chain.last)
    }

    fn run(files: &[(u64, &[u8])]) -> Result<Option<u64>, WalDamage> {
        run_from(0, files)
    }

    #[test]
    fn whole_files_are_read_to_their_end() {
        for size in [0, 5, 100, 10_000, 32_741, 32_745, 100_000] {
            let (data, _) = file(3, 1..20, size);
            assert_eq!(run(&[(3, &data)]), Ok(Some(19)), "size {size}");
        }
    }

    #[test]
    fn a_last_write_torn_at_any_byte_is_not_damage() {
        let (data, begins) = file(3, 1..8, 50_000);
        for cut in (begins[6]..data.len()).step_by(997) {
            assert_eq!(run(&[(3, &data[..cut])]), Ok(Some(6)), "cut {cut}");
            // A hole: later pages reached the disk, and this page did not.
            let mut holed = data.clone();
            let end = (cut + 4_096).min(data.len());
            holed[cut..end].fill(0);
            assert_eq!(run(&[(3, &holed)]), Ok(Some(6)), "hole {cut}");
        }
    }

    #[test]
    fn damage_before_the_last_write_is_found_at_every_byte() {
        let (data, begins) = file(3, 1..8, 9_000);
        for at in (0..begins[6]).step_by(7) {
            let mut bad = data.clone();
            bad[at] ^= 0x10;
            // Only a change in the padding at the end of a block may go unnoticed.
            let outcome = run(&[(3, &bad)]);
            assert!(
                outcome.is_err() || outcome == run(&[(3, &data)]),
                "byte {at}"
            );
        }
    }

    #[test]
    fn a_recycled_file_ends_where_its_old_records_begin() {
        let (mut data, _) = file(3, 1..40, 3_000);
        let (new, _) = file(9, 100..110, 2_500);
        data[..new.len()].copy_from_slice(&new);
        assert_eq!(run(&[(9, &data)]), Ok(Some(109)));
    }

    #[test]
    fn a_file_that_was_reused_under_its_old_name_does_not_count() {
        let (mut data, _) = file(3, 1..40, 3_000);
        let (new, _) = file(9, 100..101, 2_500);
        let (next, _) = file(4, 80..100, 1_000);
        data[..new.len()].copy_from_slice(&new);
        assert_eq!(run(&[(3, &data), (4, &next)]), Ok(Some(99)));
        // Anything less than a whole fragment of a later file is damage.
        data[100] ^= 1;
        assert!(run(&[(3, &data), (4, &next)]).is_err());
        let (earlier, _) = file(2, 100..101, 2_500);
        data[..earlier.len()].copy_from_slice(&earlier);
        assert!(run(&[(3, &data), (4, &next)]).is_err());
    }

    #[test]
    fn numbers_go_on_from_file_to_file() {
        let (one, begins) = file(3, 1..10, 1_000);
        let (two, _) = file(4, 10..20, 1_000);
        assert_eq!(run(&[(3, &one), (4, &two)]), Ok(Some(19)));
        // The end of the first file is lost. Without the second file it would look torn.
        let cut = &one[..begins[8]];
        let gap = WalDamage::GapBetweenFiles {
            before: 8,
            found: 10,
        };
        assert_eq!(run(&[(3, cut), (4, &two)]), Err(gap));
        // A file does not count if all its writes are in tables.
        assert_eq!(run_from(9, &[(3, cut), (4, &two)]), Ok(Some(19)));
    }

    #[test]
    fn files_that_are_not_needed_do_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let (mut old, begins) = file(3, 1..40, 3_000);
        old[begins[3] + HEADER] ^= 1;
        let (next, _) = file(4, 40..60, 1_000);
        fs::write(dir.path().join("000003.log"), &old).unwrap();
        fs::write(dir.path().join("000004.log"), &next).unwrap();
        let damaged = |least| match check(dir.path(), 0, least) {
            Err(StoreError::Damaged(_)) => true,
            other => other.map(|()| false).unwrap(),
        };
        assert!(damaged(0) && damaged(3));
        assert!(!damaged(4) && !damaged(5));
    }
}
