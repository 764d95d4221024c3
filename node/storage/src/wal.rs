//! Reads `RocksDB`'s write-ahead logs before `RocksDB` does, to tell a torn write from damage.
//!
//! `RocksDB` can either refuse to open at any wrong checksum, and so also after a power cut that tore the last
//! write and left a hole in it; or stop silently at the first one, whatever followed. Neither will do. This
//! reader knows what `RocksDB` can't: that each of our writes was synced before the next one began, and that each
//! carries its number. Hence
//!
//! - a write that *begins* after a broken place in its file proves that what broke was durable: damage;
//! - a number that does not follow the one before it, also from file to file, proves that writes between are lost
//!   (files of before the log was last opened are no part of this: they are in tables, and being deleted);
//! - a broken place that nothing follows is the last write, which `FLOOR` then tells acknowledged or not.
//!
//! Then `RocksDB` may stop at the first broken place, and its log files may be recycled: overwriting a file
//! makes a sync about twice as fast as growing one, and leaves old records behind the new ones, which carry
//! another file's number.
//!
//! # The format
//!
//! Blocks of 32 KiB hold fragments: checksum (masked CRC-32C of all that follows), length (2 bytes), type (1), low
//! half of the file's number (4), payload; little-endian. Fewer bytes than a header at the end of a block are
//! zero. A write is one FULL fragment, or FIRST, MIDDLE..., LAST. What is not of this format counts as broken.

use std::fs;
use std::path::Path;

use raft::StoreError;

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

/// Checks all write-ahead logs in `dir`, knowing that the writes up to number `settled` are in tables.
/// [`StoreError::Damaged`] says where an acknowledged write is broken.
pub(crate) fn check(dir: &Path, settled: u64) -> Result<(), StoreError> {
    let mut files = Vec::new();
    let entries = || fs::read_dir(dir)?.collect::<Result<Vec<_>, _>>();
    let failed = |error| translate_io("can't read the write-ahead log", &error);
    for entry in entries().map_err(failed)? {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".log"));
        if let Some(number) = number.and_then(|number| number.parse::<u64>().ok()) {
            files.push((number, entry.path()));
        }
    }
    files.sort();
    let mut chain = Chain {
        settled,
        last: None,
    };
    for (number, path) in files {
        let data = fs::read(&path).map_err(failed)?;
        Scan::new(&data, number)
            .run()
            .and_then(|span| chain.add(span))
            .map_err(|what| StoreError::Damaged(format!("{}: {what}", path.display())))?;
    }
    Ok(())
}

/// The numbers of the first and the last write of a file.
type Span = Option<(u64, u64)>;

/// The sequence that the files must form.
struct Chain {
    settled: u64,
    last: Option<u64>,
}

impl Chain {
    fn add(&mut self, span: Span) -> Result<(), String> {
        let Some((first, last)) = span else {
            return Ok(());
        };
        if last <= self.settled {
            return Ok(());
        }
        if let Some(before) = self.last
            && first != before + 1
        {
            return Err(format!(
                "it starts with write {first}, after write {before}"
            ));
        }
        self.last = Some(last);
        Ok(())
    }
}

struct Scan<'a> {
    data: &'a [u8],
    file: [u8; 4],
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

    /// Walks over all writes of the file.
    fn run(mut self) -> Result<Span, String> {
        let mut span = None;
        // The end of the payload so far, for the number may lie across two fragments; `None` between writes.
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
                // A fragment that does not fit here: what should be before it, or after it, is gone.
                _ => break,
            };
            self.at += HEADER + fragment.payload.len();
            tail.extend_from_slice(fragment.payload);
            let surplus = tail.len().saturating_sub(TAIL);
            tail.drain(..surplus);
            if matches!(fragment.kind, FULL | LAST) {
                follow(&mut span, &tail)?;
            } else {
                open = Some(tail);
            }
        }
        match self.next_beginning(self.at) {
            Some(next) => Err(format!(
                "the write at byte {begin} is broken, and another one begins at byte {next}"
            )),
            None => Ok(span),
        }
    }

    /// Moves over the rest of a block that is too short for a header.
    fn skip_trailer(&mut self) {
        let left = BLOCK - self.at % BLOCK;
        if left < HEADER {
            self.at += left;
        }
    }

    /// The fragment at `at`, if there is a good one of this file.
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
        let found = crc32c(crc32c(0, covered), payload);
        (mask(found) == u32::from_le_bytes(*sum)).then_some(Fragment {
            kind: *kind,
            payload,
        })
    }

    /// Returns the beginning of the next write at or after `from`. It may be at any byte, because the lengths there can't be
    /// trusted.
    fn next_beginning(&self, from: usize) -> Option<usize> {
        // Comparing the header's plain fields first makes this a fast search.
        (from..self.data.len().saturating_sub(HEADER - 1)).find(|at| {
            matches!(self.data.get(at + 6), Some(&(FULL | FIRST)))
                && self.data.get(at + 7..at + HEADER) == Some(&self.file)
                && self.fragment(*at).is_some()
        })
    }
}

/// Checks that the write that ends with `tail` follows the one before in its file.
fn follow(span: &mut Span, tail: &[u8]) -> Result<(), String> {
    let number = tail
        .strip_prefix(&NUMBER_PREFIX)
        .and_then(|number| number.try_into().ok());
    // The very first write of a log, which makes it, has no number.
    let Some(number) = number.map(u64::from_le_bytes) else {
        return Ok(());
    };
    *span = match *span {
        None => Some((number, number)),
        Some((first, last)) if number == last + 1 => Some((first, number)),
        Some((_, last)) => return Err(format!("write {number} follows write {last}")),
    };
    Ok(())
}

fn mask(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C of eight bytes at a time, by tables.
fn crc32c(start: u32, data: &[u8]) -> u32 {
    let mut crc = !start;
    let look = |table: usize, byte: u32| {
        let row = TABLES.get(table).map_or(&[0; 256], |row| row);
        row.get((byte & 0xff) as usize).copied().unwrap_or(0)
    };
    let (words, rest) = data.as_chunks::<8>();
    for [a, b, c, d, e, f, g, h] in words {
        let low = crc ^ u32::from_le_bytes([*a, *b, *c, *d]);
        let high = u32::from_le_bytes([*e, *f, *g, *h]);
        crc = look(7, low)
            ^ look(6, low >> 8)
            ^ look(5, low >> 16)
            ^ look(4, low >> 24)
            ^ look(3, high)
            ^ look(2, high >> 8)
            ^ look(1, high >> 16)
            ^ look(0, high >> 24);
    }
    for byte in rest {
        crc = (crc >> 8) ^ look(0, crc ^ u32::from(*byte));
    }
    !crc
}

static TABLES: [[u32; 256]; 8] = tables();

#[allow(clippy::indexing_slicing, clippy::cast_possible_truncation)]
const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0u32; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            let carry = crc & 1 == 1;
            crc >>= 1;
            if carry {
                crc ^= 0x82f6_3b78;
            }
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut table = 1;
    while table < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[table - 1][byte];
            tables[table][byte] = (before >> 8) ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        table += 1;
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_crc32c() {
        // RFC 3720, B.4.
        assert_eq!(crc32c(0, &[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(0, &[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(0, b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(crc32c(0, b"1234"), b"56789"), 0xe306_9283);
    }

    /// A file of `writes`, each of `size` bytes before its number; also where each begins.
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
                let (part, after) = rest.split_at(rest.len().min(left - HEADER));
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
                let sum = mask(crc32c(crc32c(0, &covered), part));
                data.extend(sum.to_le_bytes());
                data.extend(u16::try_from(part.len()).unwrap().to_le_bytes());
                data.extend(covered);
                data.extend(part);
                (rest, first) = (after, false);
            }
        }
        (data, begins)
    }

    /// The last write of `files`, of which those up to `settled` are in tables.
    fn run_from(settled: u64, files: &[(u64, &[u8])]) -> Result<Option<u64>, String> {
        let mut chain = Chain {
            settled,
            last: None,
        };
        for (number, data) in files {
            chain.add(Scan::new(data, *number).run()?)?;
        }
        Ok(chain.last)
    }

    fn run(files: &[(u64, &[u8])]) -> Result<Option<u64>, String> {
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
    fn a_torn_last_write_is_no_damage_wherever_it_tears() {
        let (data, begins) = file(3, 1..8, 50_000);
        for cut in (begins[6]..data.len()).step_by(997) {
            assert_eq!(run(&[(3, &data[..cut])]), Ok(Some(6)), "cut {cut}");
            // A hole: later pages reached the disk and this one did not.
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
            // Only what fills a block's end may change unseen.
            let outcome = run(&[(3, &bad)]);
            assert!(
                outcome.is_err() || outcome == run(&[(3, &data)]),
                "byte {at}"
            );
        }
    }

    #[test]
    fn old_records_of_a_recycled_file_are_its_end() {
        let (mut data, _) = file(3, 1..40, 3_000);
        let (new, _) = file(9, 100..110, 2_500);
        data[..new.len()].copy_from_slice(&new);
        assert_eq!(run(&[(9, &data)]), Ok(Some(109)));
    }

    #[test]
    fn numbers_go_on_from_file_to_file() {
        let (one, begins) = file(3, 1..10, 1_000);
        let (two, _) = file(4, 10..20, 1_000);
        assert_eq!(run(&[(3, &one), (4, &two)]), Ok(Some(19)));
        // The end of the first is lost, which alone would look torn.
        let cut = &one[..begins[8]];
        assert!(run(&[(3, cut), (4, &two)]).is_err());
        // Unless all of it is in tables, whatever is left of it.
        assert_eq!(run_from(9, &[(3, cut), (4, &two)]), Ok(Some(19)));
    }
}
