//! Damage to acknowledged writes is found, and a torn write that was not acknowledged is not mistaken for damage.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use raft::{HardState, Index, LogBatch, LogStore, Term};
use replica::StateStore;
use shardkv_storage::{OpenError, StorageOptions};
use types::NodeId;

use crate::support::{applied, batch, copy_tree, entry, files, open, put, read};

const ENTRIES: u64 = 150;
const SIZE: usize = 1_000;

/// Makes a directory with acknowledged entries in several batches and a vote in the last write, and closes it.
fn written(dir: &Path) {
    let mut log = open(dir).unwrap().log;
    for first in (1..=ENTRIES).step_by(3) {
        log.write(&batch(first..=first + 2, SIZE)).unwrap();
    }
    let hard_state = Some(HardState {
        term: Term(3),
        vote: Some(NodeId(8)),
    });
    log.write(&LogBatch {
        hard_state,
        ..LogBatch::default()
    })
    .unwrap();
}

/// Opens the directory. Returns true if that was refused; otherwise asserts that nothing is lost.
fn refused_or_whole(dir: &Path, what: &str) -> bool {
    match open(dir) {
        Err(OpenError::LogDamaged { .. }) => true,
        Err(error) => panic!("{what}: {error}"),
        Ok(mut opened) => {
            let held = opened.log.load().unwrap();
            assert_eq!(
                (held.last_index, held.hard_state.vote),
                (Index(ENTRIES), Some(NodeId(8))),
                "{what}: acknowledged writes are lost, and opening did not refuse"
            );
            let expected: Vec<_> = (1..=ENTRIES).map(|index| entry(index, SIZE)).collect();
            assert_eq!(read(&opened.log, 1..=ENTRIES), expected, "{what}");
            false
        }
    }
}

fn flip(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x20], at).unwrap();
}

fn damage_everywhere(root: &Path, suffix: &str, step: usize) -> (usize, usize) {
    let good = root.join("good");
    let (mut refused, mut tried) = (0, 0);
    for (name, size) in files(&good.join("log"), |name| name.ends_with(suffix)) {
        for at in (0..size).step_by(step).chain(size.saturating_sub(30)..size) {
            let copy = root.join("copy");
            let _ = fs::remove_dir_all(&copy);
            copy_tree(&good, &copy);
            flip(&copy.join("log").join(&name), at);
            tried += 1;
            refused += usize::from(refused_or_whole(&copy, &format!("{name} byte {at}")));
        }
    }
    (refused, tried)
}

#[test]
fn a_flipped_byte_in_the_write_ahead_log_is_found() {
    let root = tempfile::tempdir().unwrap();
    written(&root.path().join("good"));
    let (refused, tried) = damage_everywhere(root.path(), ".log", 4_001);
    assert!(tried >= 60, "{tried} places tried");
    assert_eq!(refused, tried, "every byte of the file was acknowledged");
}

#[test]
fn a_flipped_byte_in_a_table_is_found_or_harmless() {
    let root = tempfile::tempdir().unwrap();
    let good = root.path().join("good");
    written(&good);
    // Opening writes the content of the write-ahead log to a table file.
    drop(open(&good).unwrap());
    let (refused, tried) = damage_everywhere(root.path(), ".sst", 3_001);
    assert!(tried >= 60, "{tried} places tried");
    assert!(refused > tried / 2, "{refused} of {tried} were refused");
}

#[test]
fn a_flipped_byte_in_a_manifest_is_found_or_harmless() {
    let root = tempfile::tempdir().unwrap();
    let good = root.path().join("good");
    written(&good);
    drop(open(&good).unwrap());
    let copy = root.path().join("copy");
    let mut refused = 0;
    for (name, size) in files(&good.join("log"), |name| name.starts_with("MANIFEST")) {
        for at in (0..size).step_by(37) {
            let _ = fs::remove_dir_all(&copy);
            copy_tree(&good, &copy);
            flip(&copy.join("log").join(&name), at);
            refused += usize::from(refused_or_whole(&copy, &format!("{name} byte {at}")));
        }
    }
    assert!(refused > 0);
}

#[test]
fn an_acknowledged_tail_that_is_cut_is_found() {
    let root = tempfile::tempdir().unwrap();
    let (good, copy) = (root.path().join("good"), root.path().join("copy"));
    written(&good);
    let (name, size) = files(&good.join("log"), |name| name.ends_with(".log")).remove(0);
    for cut in [1, 5, 20, 40, 60, 100, 1_000, 5_000, size / 2, size] {
        let _ = fs::remove_dir_all(&copy);
        copy_tree(&good, &copy);
        let path = copy.join("log").join(&name);
        let file = File::options().write(true).open(path).unwrap();
        file.set_len(size - cut).unwrap();
        assert!(refused_or_whole(&copy, &format!("cut by {cut}")), "{cut}");
    }
    fs::remove_file(good.join("log").join(&name)).unwrap();
    assert!(refused_or_whole(&good, "without its write-ahead log"));
}

#[test]
fn a_lost_file_is_found() {
    let root = tempfile::tempdir().unwrap();
    let (good, copy) = (root.path().join("good"), root.path().join("copy"));
    written(&good);
    drop(open(&good).unwrap());
    for name in ["FLOOR", "log/CURRENT", "log"] {
        let _ = fs::remove_dir_all(&copy);
        copy_tree(&good, &copy);
        let path = copy.join(name);
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap();
        } else {
            fs::remove_file(path).unwrap();
        }
        assert!(refused_or_whole(&copy, name));
    }
    // An older log under the same identity, like a restored backup.
    let (older, newer) = (root.path().join("older"), root.path().join("newer"));
    copy_tree(&good, &older);
    copy_tree(&good, &newer);
    open(&newer)
        .unwrap()
        .log
        .write(&batch(ENTRIES + 1..=ENTRIES + 1, SIZE))
        .unwrap();
    fs::remove_dir_all(newer.join("log")).unwrap();
    copy_tree(&older.join("log"), &newer.join("log"));
    assert!(refused_or_whole(&newer, "an older log"));
}

/// A power cut in the middle of a write leaves an incomplete record that `FLOOR` does not count.
#[test]
fn a_torn_write_that_was_not_acknowledged_is_dropped() {
    let root = tempfile::tempdir().unwrap();
    let (good, copy) = (root.path().join("good"), root.path().join("copy"));
    written(&good);
    let floor = fs::read(good.join("FLOOR")).unwrap();
    let (name, before) = files(&good.join("log"), |name| name.ends_with(".log")).remove(0);
    // The same writes and one more give the same file, followed by the record that is torn below.
    let longer = root.path().join("longer");
    copy_tree(&good, &longer);
    let path = longer.join("log").join(&name);
    {
        // Opening `longer` would replay its log to another file. So a fresh twin makes the longer file.
        let twin = root.path().join("twin");
        written_and(&twin, ENTRIES + 1..=ENTRIES + 40);
        let (twin_name, _) = files(&twin.join("log"), |name| name.ends_with(".log")).remove(0);
        assert_eq!(twin_name, name, "the twin names its files alike");
        fs::copy(twin.join("log").join(&name), &path).unwrap();
    }
    let after = fs::metadata(&path).unwrap().len();
    assert!(after > before + 40_000);
    for cut in [
        after - 1,
        after - 8_000,
        before + 40,
        before + 5,
        before + 1,
    ] {
        let _ = fs::remove_dir_all(&copy);
        copy_tree(&longer, &copy);
        fs::write(copy.join("FLOOR"), &floor).unwrap();
        let file = File::options()
            .write(true)
            .open(copy.join("log").join(&name))
            .unwrap();
        file.set_len(cut).unwrap();
        let refused = refused_or_whole(&copy, &format!("torn at {cut} of {before}..{after}"));
        assert!(!refused, "torn at {cut} of {before}..{after}");
    }
    // The file has its full length, but one page of the torn write never reached the disk.
    for hole in (before + 10..after).step_by(7_000) {
        let _ = fs::remove_dir_all(&copy);
        copy_tree(&longer, &copy);
        fs::write(copy.join("FLOOR"), &floor).unwrap();
        let file = File::options()
            .write(true)
            .open(copy.join("log").join(&name))
            .unwrap();
        let size = usize::try_from((after - hole).min(4_096)).unwrap();
        file.write_all_at(&vec![0; size], hole).unwrap();
        let refused = refused_or_whole(&copy, &format!("hole at {hole} of {before}..{after}"));
        assert!(!refused, "hole at {hole} of {before}..{after}");
    }
}

/// Makes a directory as `written` does, with one more batch.
fn written_and(dir: &Path, more: std::ops::RangeInclusive<u64>) {
    let mut log = open(dir).unwrap().log;
    for first in (1..=ENTRIES).step_by(3) {
        log.write(&batch(first..=first + 2, SIZE)).unwrap();
    }
    let hard_state = Some(HardState {
        term: Term(3),
        vote: Some(NodeId(8)),
    });
    log.write(&LogBatch {
        hard_state,
        ..LogBatch::default()
    })
    .unwrap();
    log.write(&batch(more, SIZE)).unwrap();
}

#[test]
fn a_log_that_ends_before_the_state_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = open(dir.path()).unwrap();
    opened.log.write(&batch(1..=5, 10)).unwrap();
    opened.state.commit(put(1, "x"), applied(6)).unwrap();
    opened.state.flush().unwrap();
    drop(opened);
    assert!(matches!(
        open(dir.path()),
        Err(OpenError::LogDamaged { .. })
    ));
}

#[test]
fn a_damaged_state_is_refused_or_latched() {
    let root = tempfile::tempdir().unwrap();
    let (good, copy) = (root.path().join("good"), root.path().join("copy"));
    let mut opened = open(&good).unwrap();
    opened.log.write(&batch(1..=300, 10)).unwrap();
    let mut state = opened.state;
    for index in 1..=300 {
        let noise: Vec<u8> = (0..1_000u64)
            .map(|n| (n.wrapping_mul(index + 7).wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect();
        state.commit(put(index, noise), applied(index)).unwrap();
    }
    state.flush().unwrap();
    drop(opened.log);
    let expected = replica::conformance::state::content(&state);
    drop(state);
    let mut noticed = 0;
    let tables = files(&good.join("state/1"), |name| name.ends_with(".sst"));
    let (name, size) = tables[0].clone();
    for at in (0..size).step_by(20_011) {
        let _ = fs::remove_dir_all(&copy);
        copy_tree(&good, &copy);
        flip(&copy.join("state/1").join(&name), at);
        match open(&copy) {
            Err(OpenError::StateDamaged { .. }) => noticed += 1,
            Err(error) => panic!("byte {at}: {error}"),
            Ok(mut opened) => {
                let whole = (std::ops::Bound::Unbounded, std::ops::Bound::Unbounded);
                let found = replica::StateReader::scan(
                    &opened.state,
                    replica::Table::Data,
                    whole,
                    usize::MAX,
                    usize::MAX,
                );
                if let Ok(found) = found {
                    assert_eq!(found.len(), expected.len(), "byte {at}");
                } else {
                    noticed += 1;
                    let error = opened.state.commit(put(1, "x"), applied(301));
                    assert_eq!(error.err(), found.err(), "the first error stays");
                }
            }
        }
    }
    assert!(noticed > 5, "only {noticed} flips were noticed");
    let _ = fs::remove_dir_all(&copy);
    copy_tree(&good, &copy);
    fs::write(copy.join("state/CURRENT"), "2\n00000000\n").unwrap();
    assert!(matches!(open(&copy), Err(OpenError::StateDamaged { .. })));
}

/// Files of the write-ahead log stay until they are reused. A power cut may leave a part of the new content under an old name.
#[test]
fn damage_of_a_file_whose_writes_are_all_in_tables_is_harmless() {
    let root = tempfile::tempdir().unwrap();
    let (good, copy) = (root.path().join("good"), root.path().join("copy"));
    let options = StorageOptions {
        log_write_buffer_bytes: 64 << 10,
        ..StorageOptions::default()
    };
    let mut log = shardkv_storage::open(&good, &options).unwrap().log;
    let logs = || files(&good.join("log"), |name| name.ends_with(".log"));
    let mut last = 0;
    // A flush has begun a new file, and its table is there.
    while last < ENTRIES || files(&good.join("log"), |name| name.ends_with(".sst")).is_empty() {
        last += 1;
        log.write(&batch(last..=last, SIZE)).unwrap();
    }
    drop(log);
    let mut names: Vec<_> = logs().into_iter().map(|(name, _)| name).collect();
    names.sort();
    let (newest, older) = names.split_last().unwrap();
    let damaged = |name: &str| {
        let _ = fs::remove_dir_all(&copy);
        copy_tree(&good, &copy);
        let path = copy.join("log").join(name);
        let size = fs::metadata(&path).unwrap().len();
        flip(&path, size.min(SIZE as u64) / 2);
        open(&copy).map(|mut opened| {
            let held = opened.log.load().unwrap();
            assert_eq!(held.last_index, Index(last), "nothing is lost");
            let expected: Vec<_> = (1..=last).map(|index| entry(index, SIZE)).collect();
            assert_eq!(read(&opened.log, 1..=last), expected, "{name}");
        })
    };
    assert!(damaged(&older[0]).is_ok(), "{names:?}");
    let refused = damaged(newest);
    assert!(matches!(refused, Err(OpenError::LogDamaged { .. })));
}
