//! Tests with a disk that becomes full and then has space again. They need root to mount it; without root they print that
//! they are skipped, and pass.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use raft::{Index, LogStore, StoreError};
use replica::{PairReader, StateStore, Table};
use shardkv_storage::{Opened, StorageOptions};
use tempfile::TempDir;

use crate::support::{applied, batch, entry, put, read};

/// A small mounted file system. Dropping it unmounts it.
struct Mount {
    _root: TempDir,
    path: PathBuf,
}

impl Mount {
    fn tmpfs(megabytes: u64) -> Option<Self> {
        Self::at(&["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"])
    }

    fn ext4(megabytes: u64) -> Option<Self> {
        let images = tempfile::tempdir().unwrap();
        let image = images.path().join("image");
        let file = File::create(&image).unwrap();
        file.set_len(megabytes << 20).unwrap();
        let made = Command::new("mkfs.ext4").arg("-q").arg(&image).status();
        if !made.is_ok_and(|status| status.success()) {
            eprintln!("skipped: there is no mkfs.ext4");
            return None;
        }
        // The loop device keeps the image's blocks after the file is deleted.
        Self::at(&["-o", "loop", image.to_str().unwrap()])
    }

    fn at(arguments: &[&str]) -> Option<Self> {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("mnt");
        fs::create_dir(&path).unwrap();
        let done = Command::new("mount").args(arguments).arg(&path).output();
        match done {
            Ok(output) if output.status.success() => Some(Self { _root: root, path }),
            Ok(output) => {
                let reason = String::from_utf8_lossy(&output.stderr).into_owned();
                eprintln!(
                    "skipped: can't mount a small disk (not root?): {}",
                    reason.trim()
                );
                None
            }
            Err(error) => {
                eprintln!("skipped: can't run mount: {error}");
                None
            }
        }
    }

    fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    /// Fills the disk until only about `left` bytes are free.
    fn fill(&self, opened: &Opened, left: u64) {
        let mut ballast = File::options()
            .create(true)
            .append(true)
            .open(self.path.join("ballast"))
            .unwrap();
        let chunk = vec![0x55; 1 << 20];
        loop {
            let free = opened.disk.space().unwrap().free_bytes;
            let size = free.saturating_sub(left).min(1 << 20);
            if size == 0 {
                break;
            }
            let size = usize::try_from(size).unwrap();
            if ballast.write_all(&chunk[..size]).is_err() || ballast.sync_all().is_err() {
                break;
            }
        }
    }

    fn empty(&self) {
        fs::remove_file(self.path.join("ballast")).unwrap();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

fn mounts() -> Vec<Mount> {
    [Mount::tmpfs(64), Mount::ext4(64)]
        .into_iter()
        .flatten()
        .collect()
}

fn open(dir: &Path, low_space_bytes: Option<u64>) -> Opened {
    let options = StorageOptions {
        low_space_bytes,
        ..StorageOptions::default()
    };
    shardkv_storage::open(dir, &options).unwrap()
}

#[test]
fn a_nearly_full_disk_refuses_before_it_is_full() {
    for mount in mounts() {
        let mut opened = open(&mount.data(), None);
        opened.log.write(&batch(1..=20, 1_000)).unwrap();
        opened.state.commit(put(1, "one"), applied(1)).unwrap();
        assert!(!opened.disk.space().unwrap().low);
        // Below the first reserve the disk counts as low, and the stores still write.
        mount.fill(&opened, 4 << 20);
        assert!(opened.disk.space().unwrap().low);
        opened.log.write(&batch(21..=21, 1_000)).unwrap();
        opened.state.commit(put(2, "two"), applied(2)).unwrap();
        // Below the second reserve the stores refuse and write nothing, reads continue, and commits can be flushed.
        mount.fill(&opened, 500 << 10);
        for _ in 0..3 {
            let refused = opened.log.write(&batch(22..=22, 1_000));
            assert!(matches!(refused, Err(StoreError::Full(_))), "{refused:?}");
            let refused = opened.state.commit(put(3, "three"), applied(3));
            assert!(matches!(refused, Err(StoreError::Full(_))), "{refused:?}");
        }
        assert_eq!(read(&opened.log, 21..=21), [entry(21, 1_000)]);
        assert_eq!(opened.state.applied(), applied(2));
        assert_eq!(opened.state.get(Table::Data, b"00000003"), Ok(None));
        opened.state.flush().unwrap();
        mount.empty();
        opened.log.write(&batch(22..=22, 1_000)).unwrap();
        opened.state.commit(put(3, "three"), applied(3)).unwrap();
        opened.state.flush().unwrap();
        drop(opened);
        let mut opened = open(&mount.data(), None);
        assert_eq!(opened.log.load().unwrap().last_index, Index(22));
        assert_eq!(opened.state.applied(), applied(3));
    }
}

/// Without a reserve the disk itself refuses, in the middle of a write.
#[test]
fn a_log_on_a_really_full_disk_recovers_when_space_returns() {
    for mount in mounts() {
        let mut opened = open(&mount.data(), Some(0));
        let mut last = 0;
        for round in 0..3 {
            mount.fill(&opened, 200 << 10);
            let error = loop {
                match opened.log.write(&batch(last + 1..=last + 7, 3_000)) {
                    Ok(()) => last += 7,
                    Err(error) => break error,
                }
            };
            assert!(matches!(error, StoreError::Full(_)), "{error}");
            let again = opened.log.write(&batch(last + 1..=last + 7, 3_000));
            assert!(matches!(again, Err(StoreError::Full(_))), "{again:?}");
            mount.empty();
            opened
                .log
                .write(&batch(last + 1..=last + 7, 3_000))
                .unwrap();
            last += 7;
            let expected: Vec<_> = (1..=last).map(|index| entry(index, 3_000)).collect();
            assert_eq!(read(&opened.log, 1..=last), expected, "round {round}");
        }
        drop(opened);
        let mut opened = open(&mount.data(), Some(0));
        assert_eq!(opened.log.load().unwrap().last_index, Index(last));
    }
}

#[test]
fn a_state_on_a_really_full_disk_recovers_when_space_returns() {
    for mount in mounts() {
        let mut opened = open(&mount.data(), Some(0));
        opened.log.write(&batch(1..=2_000, 10)).unwrap();
        let noise = |index: u64| -> Vec<u8> {
            (0..5_000u64)
                .map(|n| (n.wrapping_mul(index + 7).wrapping_mul(2_654_435_761) >> 13) as u8)
                .collect()
        };
        opened.state.commit(put(1, noise(1)), applied(1)).unwrap();
        opened.state.flush().unwrap();
        mount.fill(&opened, 0);
        let mut index = 1;
        // Either a commit or a flush must fail, with `Full`.
        let error = loop {
            index += 1;
            if let Err(error) = opened
                .state
                .commit(put(index, noise(index)), applied(index))
            {
                index -= 1;
                break error;
            }
            if index % 20 == 0
                && let Err(error) = opened.state.flush()
            {
                break error;
            }
            assert!(index < 2_000, "the disk never filled");
        };
        assert!(matches!(error, StoreError::Full(_)), "{error}");
        let held = opened.state.applied().last.index.0;
        assert_eq!(held, index);
        let key = format!("{held:08}");
        let value = opened.state.get(Table::Data, key.as_bytes()).unwrap();
        assert_eq!(value, Some(noise(held).into()), "reads must continue");
        assert!(opened.state.durable().index.0 <= held);
        mount.empty();
        // RocksDB checks every few seconds for free space.
        let deadline = Instant::now() + Duration::from_mins(1);
        while let Err(error) = opened.state.flush() {
            assert!(matches!(error, StoreError::Full(_)), "{error}");
            assert!(Instant::now() < deadline, "still refused: {error}");
        }
        opened
            .state
            .commit(put(held + 1, "after"), applied(held + 1))
            .unwrap();
        opened.state.flush().unwrap();
        drop(opened);
        let opened = open(&mount.data(), Some(0));
        assert_eq!(opened.state.applied(), applied(held + 1));
        for index in 1..=held {
            let key = format!("{index:08}");
            let value = opened.state.get(Table::Data, key.as_bytes()).unwrap();
            assert_eq!(value, Some(noise(index).into()));
        }
    }
}
