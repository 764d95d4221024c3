//! The durable count of acknowledged log writes, which detects the loss of the last of them.
//!
//! The file has two slots, each in a sector of its own: the number (8 bytes, little-endian) and its CRC-32.
//! The number `n` goes to slot `n % 2`, so a torn write leaves the one before. It is written after the
//! log's sync and before the caller is told, and never synced: the page cache survives a killed process, and
//! after a power cut the number may be too low, which only makes the check weaker, but never too high.
//!
//! A third slot holds the number of the last write that is in table files for sure: opening the log puts all
//! it finds there. Write-ahead logs up to that number may linger, whole or in part; they are of no use.

use std::fs::File;
use std::os::unix::fs::FileExt;

use raft::StoreError;

use crate::directory::{Directory, sync_dir};
use crate::error::{OpenError, translate_io};

const NAME: &str = "FLOOR";
/// The offsets of the slots. A disk writes a sector of 512 bytes whole; 4096 leaves room for larger sectors.
const SLOTS: [u64; 2] = [0, 4_096];
const SETTLED: u64 = 8_192;
const SLOT_BYTES: usize = 12;

/// The open file.
#[derive(Debug)]
pub(crate) struct Floor {
    file: File,
    written: u64,
    settled: u64,
}

/// Makes the file of a new directory, at zero.
pub(crate) fn create(directory: &Directory) -> Result<(), OpenError> {
    let make = || {
        let file = File::create(directory.path().join(NAME))?;
        for slot in [SLOTS[0], SLOTS[1], SETTLED] {
            file.write_all_at(&encode(0), slot)?;
        }
        file.sync_all()
    };
    make()
        .map_err(|error| translate_io("can't write FLOOR", &error))
        .and_then(|()| sync_dir(directory.path()))
        .map_err(|error| directory.failed("write FLOOR", error))
}

fn encode(number: u64) -> [u8; SLOT_BYTES] {
    let mut slot = [0; SLOT_BYTES];
    let (value, checksum) = slot.split_at_mut(8);
    value.copy_from_slice(&number.to_le_bytes());
    checksum.copy_from_slice(&crc32fast::hash(&number.to_le_bytes()).to_le_bytes());
    slot
}

fn decode(slot: [u8; SLOT_BYTES]) -> Option<u64> {
    let (value, _) = slot.split_first_chunk::<8>()?;
    let number = u64::from_le_bytes(*value);
    (encode(number) == slot).then_some(number)
}

impl Floor {
    /// Opens the file. A missing one, or one with no readable slot, is damage: it was there before any
    /// promise was made.
    pub(crate) fn open(directory: &Directory) -> Result<Self, OpenError> {
        let file = File::options()
            .read(true)
            .write(true)
            .open(directory.path().join(NAME))
            .map_err(|error| directory.log_damaged(format!("its file FLOOR: {error}")))?;
        let read = |at: u64| {
            let mut slot = [0; SLOT_BYTES];
            file.read_exact_at(&mut slot, at).ok()?;
            decode(slot)
        };
        let written =
            SLOTS.into_iter().filter_map(read).max().ok_or_else(|| {
                directory.log_damaged("its file FLOOR has no readable slot".into())
            })?;
        let settled = read(SETTLED)
            .ok_or_else(|| directory.log_damaged("its file FLOOR is damaged".into()))?;
        Ok(Self {
            file,
            written,
            settled,
        })
    }

    /// Returns a lower bound of the number of acknowledged log writes.
    pub(crate) fn get(&self) -> u64 {
        self.written
    }

    /// Up to which write the log is in table files for sure.
    pub(crate) fn settled(&self) -> u64 {
        self.settled
    }

    /// Notes, durably, that the log is in table files up to write `number`.
    pub(crate) fn settle(&mut self, number: u64) -> Result<(), StoreError> {
        if number == self.settled {
            return Ok(());
        }
        self.file
            .write_all_at(&encode(number), SETTLED)
            .and_then(|()| self.file.sync_data())
            .map_err(|error| translate_io("can't write FLOOR", &error))?;
        self.settled = number;
        Ok(())
    }

    /// Notes that log write `number` is durable.
    pub(crate) fn raise(&mut self, number: u64) -> Result<(), StoreError> {
        let slot = SLOTS.get(usize::from(number % 2 == 1)).copied();
        self.file
            .write_all_at(&encode(number), slot.unwrap_or_default())
            .map_err(|error| translate_io("can't write FLOOR", &error))?;
        self.written = number;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_slot_leaves_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::lock(dir.path()).unwrap();
        create(&directory).unwrap();
        let mut floor = Floor::open(&directory).unwrap();
        assert_eq!(floor.get(), 0);
        for number in 1..=7 {
            floor.raise(number).unwrap();
            assert_eq!(Floor::open(&directory).unwrap().get(), number);
        }
        floor.file.write_all_at(&[0xaa; 5], SLOTS[1]).unwrap();
        assert_eq!(Floor::open(&directory).unwrap().get(), 6);
        floor.file.write_all_at(&[0xaa; 5], SLOTS[0]).unwrap();
        assert!(matches!(
            Floor::open(&directory),
            Err(OpenError::LogDamaged { .. })
        ));
    }
}
