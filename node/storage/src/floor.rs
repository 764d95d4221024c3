//! The file `FLOOR`: the number of acknowledged log writes, which detects the loss of the last of them.
//!
//! The file has two slots, each in a sector of its own: the number (8 bytes, little-endian) and its CRC-32.
//! The number `n` goes to slot `n % 2`, so a torn write leaves the number before. The number is written after the
//! log's sync and before the caller gets its answer, and never synced. The page cache survives a killed process. After
//! a power cut the number may be too low, which only weakens the check; it is never too high.
//!
//! A third slot holds the number of the last write that is certainly in table files: opening the log flushes
//! everything that it finds to them. Write-ahead logs up to that number may linger, whole or in part, and are not needed.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use raft::StoreError;

use crate::directory::{Directory, sync_dir};
use crate::error::{LogDamage, OpenError, translate_io};

const NAME: &str = "FLOOR";
/// The offsets of the slots. A disk writes a sector of 512 bytes whole; 4096 leaves room for larger sectors.
const SLOTS: [u64; 2] = [0, 4_096];
const FLUSHED: u64 = 8_192;
const SLOT_BYTES: usize = 12;

/// The open file `FLOOR`.
#[derive(Debug)]
pub(crate) struct Floor {
    file: File,
    acknowledged: u64,
    flushed: u64,
}

/// Makes the file of a new directory, with the number zero.
pub(crate) fn create(directory: &Directory) -> Result<(), OpenError> {
    let make = || {
        let file = File::create(directory.path().join(NAME))?;
        for slot in [SLOTS[0], SLOTS[1], FLUSHED] {
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
    /// Opens the file. A missing file, or one with no whole slot, is damage: the file exists before the node acknowledges
    /// anything. A file that the operating system refuses to read proves nothing.
    pub(crate) fn open(directory: &Directory) -> Result<Self, OpenError> {
        let file = File::options()
            .read(true)
            .write(true)
            .open(directory.path().join(NAME))
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => directory.log_damaged(LogDamage::FloorLost),
                _ => directory.failed("open FLOOR", translate_io("open", &error)),
            })?;
        let read = |at: u64| {
            let mut slot = [0; SLOT_BYTES];
            match file.read_exact_at(&mut slot, at) {
                Ok(()) => Ok(decode(slot)),
                // The file is too short.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
                Err(error) => Err(directory.failed("read FLOOR", translate_io("read", &error))),
            }
        };
        let damaged = || directory.log_damaged(LogDamage::FloorDamaged);
        let acknowledged = read(SLOTS[0])?.max(read(SLOTS[1])?).ok_or_else(damaged)?;
        let flushed = read(FLUSHED)?.ok_or_else(damaged)?;
        Ok(Self {
            file,
            acknowledged,
            flushed,
        })
    }

    /// Returns a lower bound of the number of acknowledged log writes.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Returns the number of the last write that is certainly in table files.
    pub(crate) fn flushed(&self) -> u64 {
        self.flushed
    }

    /// Records, durably, that the log is in table files up to write `number`.
    pub(crate) fn set_flushed(&mut self, number: u64) -> Result<(), StoreError> {
        if number == self.flushed {
            return Ok(());
        }
        self.file
            .write_all_at(&encode(number), FLUSHED)
            .and_then(|()| self.file.sync_data())
            .map_err(|error| translate_io("can't write FLOOR", &error))?;
        self.flushed = number;
        Ok(())
    }

    /// Records that log write `number` is durable.
    pub(crate) fn acknowledge(&mut self, number: u64) -> Result<(), StoreError> {
        let slot = SLOTS.get(usize::from(number % 2 == 1)).copied();
        self.file
            .write_all_at(&encode(number), slot.unwrap_or_default())
            .map_err(|error| translate_io("can't write FLOOR", &error))?;
        self.acknowledged = number;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_slot_leaves_the_number_before() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::lock(dir.path()).unwrap();
        create(&directory).unwrap();
        let mut floor = Floor::open(&directory).unwrap();
        assert_eq!(floor.acknowledged(), 0);
        for number in 1..=7 {
            floor.acknowledge(number).unwrap();
            assert_eq!(Floor::open(&directory).unwrap().acknowledged(), number);
        }
        floor.file.write_all_at(&[0xaa; 5], SLOTS[1]).unwrap();
        assert_eq!(Floor::open(&directory).unwrap().acknowledged(), 6);
        floor.file.write_all_at(&[0xaa; 5], SLOTS[0]).unwrap();
        assert!(matches!(
            Floor::open(&directory),
            Err(OpenError::LogDamaged { .. })
        ));
    }
}
