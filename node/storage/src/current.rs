//! The file `state/CURRENT`, which names the state directory in use: its number, then a CRC-32, each on a line.

use std::{fs, io};

use raft::StoreError;

use crate::directory::{Directory, replace_file};
use crate::error::{OpenError, StateDamage, translate_io};

const NAME: &str = "CURRENT";

fn encode(number: u64) -> String {
    let line = format!("{number}\n");
    let checksum = crc32fast::hash(line.as_bytes());
    format!("{line}{checksum:08x}\n")
}

/// Names `state/<number>/` as the directory in use, durably and atomically.
pub(crate) fn write(directory: &Directory, number: u64) -> Result<(), StoreError> {
    replace_file(&directory.state_dir(), NAME, encode(number).as_bytes())
}

/// Returns the number of the directory in use.
pub(crate) fn read(directory: &Directory) -> Result<u64, OpenError> {
    let damaged = || directory.state_damaged(StateDamage::Current);
    let path = directory.state_dir().join(NAME);
    let text = fs::read_to_string(path).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => damaged(),
        io::ErrorKind::NotFound => directory.state_damaged(StateDamage::CurrentLost),
        _ => directory.failed("read state/CURRENT", translate_io("read", &error)),
    })?;
    let number = text.lines().next().and_then(|line| line.parse().ok());
    number
        .filter(|number| encode(*number) == text)
        .ok_or_else(damaged)
}

/// Removes everything else in `state/`: unfinished restores, and states that a restore replaced.
pub(crate) fn remove_leftovers(directory: &Directory, current: u64) -> io::Result<()> {
    let kept = [current.to_string(), NAME.to_owned()];
    for entry in fs::read_dir(directory.state_dir())? {
        let entry = entry?;
        if kept.iter().any(|name| entry.file_name() == name.as_str()) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_changed_byte_and_every_cut_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::lock(dir.path()).unwrap();
        let damage = |read: Result<u64, OpenError>| match read {
            Err(OpenError::StateDamaged { damage, .. }) => Some(damage),
            _ => None,
        };
        assert!(matches!(
            damage(read(&directory)),
            Some(StateDamage::CurrentLost)
        ));
        fs::create_dir(directory.state_dir()).unwrap();
        write(&directory, 12).unwrap();
        assert_eq!(read(&directory).unwrap(), 12);
        let damaged = || matches!(damage(read(&directory)), Some(StateDamage::Current));
        let path = directory.state_dir().join(NAME);
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            for flip in [1, 0x80] {
                let mut bad = good.clone();
                bad[at] ^= flip;
                fs::write(&path, bad).unwrap();
                assert!(damaged(), "byte {at}");
            }
            fs::write(&path, &good[..at]).unwrap();
            assert!(damaged(), "cut {at}");
        }
    }
}
