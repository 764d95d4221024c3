//! Files and directories on a mounted disk, before and after a cut.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use powercut::{Disk, Survivors};
use tempfile::TempDir;

struct Mount {
    disk: Disk,
    at: TempDir,
}

impl Mount {
    /// Mounts a disk. Returns `None` with a message where that isn't possible. CI sets `CI`, so there the tests can't be
    /// skipped.
    fn new() -> Option<Self> {
        let at = tempfile::tempdir().unwrap();
        match Disk::mount(at.path()) {
            Ok(disk) => Some(Self { disk, at }),
            Err(error) => {
                assert!(
                    std::env::var_os("CI").is_none(),
                    "CI must be able to mount: {error}"
                );
                println!("SKIPPED: this needs root and /dev/fuse: {error}");
                None
            }
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.at.path().join(name)
    }

    fn cut(&mut self, survivors: Survivors, seed: u64) {
        self.disk.power_off();
        self.disk.power_on(survivors, seed).unwrap();
    }

    fn names(&self, directory: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(directory)).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

/// Makes a file whose data are durable.
fn synced(path: &Path, content: &[u8]) -> File {
    let mut file = File::create(path).unwrap();
    file.write_all(content).unwrap();
    file.sync_all().unwrap();
    file
}

fn sync_dir(path: &Path) {
    File::open(path).unwrap().sync_all().unwrap();
}

#[test]
fn what_was_synced_is_there_after_each_kind_of_cut() {
    let Some(mut mount) = Mount::new() else {
        return;
    };
    let content: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::create_dir(mount.path("sub")).unwrap();
    drop(synced(&mount.path("sub/file"), &content));
    sync_dir(&mount.path("sub"));
    sync_dir(&mount.path(""));
    for survivors in [Survivors::Synced, Survivors::InOrder, Survivors::Scattered] {
        for seed in 0..10 {
            fs::write(mount.path("unsynced"), b"x").unwrap();
            mount.cut(survivors, seed);
            assert_eq!(fs::read(mount.path("sub/file")).unwrap(), content);
            let listed = mount.names("");
            assert!(listed.contains(&"sub".to_owned()), "{listed:?}");
        }
    }
}

#[test]
fn what_was_not_synced_is_gone() {
    let Some(mut mount) = Mount::new() else {
        return;
    };
    let file = synced(&mount.path("file"), b"durable");
    sync_dir(&mount.path(""));
    file.write_all_at(b"D", 0).unwrap();
    file.write_all_at(b" and more", 7).unwrap();
    drop(file);
    drop(synced(
        &mount.path("nameless"),
        b"its data are durable, its name isn't",
    ));
    assert_eq!(fs::read(mount.path("file")).unwrap(), b"Durable and more");
    mount.cut(Survivors::Synced, 0);
    assert_eq!(mount.names(""), ["file"]);
    assert_eq!(fs::read(mount.path("file")).unwrap(), b"durable");
}

#[test]
fn fdatasync_makes_the_length_durable() {
    let Some(mut mount) = Mount::new() else {
        return;
    };
    let mut file = synced(&mount.path("file"), b"one");
    sync_dir(&mount.path(""));
    file.write_all(b", two").unwrap();
    file.sync_data().unwrap();
    file.write_all(b", three").unwrap();
    drop(file);
    mount.cut(Survivors::Synced, 0);
    assert_eq!(fs::read(mount.path("file")).unwrap(), b"one, two");
}

#[test]
fn renames_and_removals_are_durable_after_a_sync_of_the_directory() {
    let Some(mut mount) = Mount::new() else {
        return;
    };
    for name in ["a", "b", "c"] {
        drop(synced(&mount.path(name), name.as_bytes()));
    }
    sync_dir(&mount.path(""));
    fs::rename(mount.path("a"), mount.path("b")).unwrap();
    fs::remove_file(mount.path("c")).unwrap();
    assert_eq!(mount.names(""), ["b"]);
    mount.cut(Survivors::Synced, 0);
    assert_eq!(mount.names(""), ["a", "b", "c"]);
    assert_eq!(fs::read(mount.path("b")).unwrap(), b"b");

    fs::rename(mount.path("a"), mount.path("b")).unwrap();
    fs::remove_file(mount.path("c")).unwrap();
    sync_dir(&mount.path(""));
    mount.cut(Survivors::Synced, 0);
    assert_eq!(mount.names(""), ["b"]);
    assert_eq!(fs::read(mount.path("b")).unwrap(), b"a");
}

#[test]
fn a_rename_is_atomic_and_what_survives_by_chance_differs_by_seed() {
    for survivors in [Survivors::InOrder, Survivors::Scattered] {
        let mut seen = Vec::new();
        for seed in 0..20 {
            let Some(mut mount) = Mount::new() else {
                return;
            };
            drop(synced(&mount.path("old"), b"old"));
            sync_dir(&mount.path(""));
            drop(synced(&mount.path("new"), b"new"));
            fs::rename(mount.path("new"), mount.path("old")).unwrap();
            mount.cut(survivors, seed);
            seen.push((mount.names(""), fs::read(mount.path("old")).unwrap()));
        }
        seen.sort();
        seen.dedup();
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let mut expected = vec![
            (names(&["new", "old"]), b"old".to_vec()),
            (names(&["old"]), b"new".to_vec()),
            (names(&["old"]), b"old".to_vec()),
        ];
        expected.sort();
        assert_eq!(seen, expected, "{survivors:?}");
    }
}

#[test]
fn while_the_power_is_off_nothing_changes() {
    let Some(mut mount) = Mount::new() else {
        return;
    };
    let file = synced(&mount.path("file"), b"before");
    sync_dir(&mount.path(""));
    mount.disk.power_off();
    file.write_all_at(b"after!", 0).unwrap_err();
    file.sync_all().unwrap_err();
    File::create(mount.path("other")).unwrap_err();
    drop(file);
    mount.disk.power_on(Survivors::Synced, 0).unwrap();
    assert_eq!(mount.names(""), ["file"]);
    assert_eq!(fs::read(mount.path("file")).unwrap(), b"before");
}

#[test]
fn a_disk_that_is_not_honest_forgets_what_was_synced() {
    let Some(mut mount) = Mount::new() else {
        return;
    };
    drop(synced(&mount.path("file"), b"before"));
    sync_dir(&mount.path(""));
    mount.disk.set_honest(false);
    drop(synced(&mount.path("file"), b"after!"));
    mount.cut(Survivors::Synced, 0);
    assert_eq!(fs::read(mount.path("file")).unwrap(), b"before");
}

#[test]
fn trees_are_listed_and_removed() {
    let Some(mount) = Mount::new() else { return };
    fs::create_dir_all(mount.path("a/b")).unwrap();
    for n in 0..500 {
        fs::write(mount.path(&format!("a/b/{n}")), n.to_string()).unwrap();
    }
    assert_eq!(mount.names("a/b").len(), 500);
    fs::remove_dir(mount.path("a")).unwrap_err();
    fs::remove_dir_all(mount.path("a")).unwrap();
    assert_eq!(mount.names(""), [""; 0]);
}
