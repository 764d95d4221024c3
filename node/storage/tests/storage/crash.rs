//! Tests that kill real processes.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use raft::{Index, LogStore};
use replica::{PairReader, StateStore, Table};

use crate::support::{applied, batch, entry, open, put, read};

const DIR: &str = "SHARDKV_STORAGE_TEST_DIR";

/// The process that the next test kills. It writes for ever, and prints what was acknowledged. Without the variable in the
/// environment it does nothing.
#[test]
fn child_process_that_writes() {
    let Some(dir) = std::env::var_os(DIR) else {
        return;
    };
    let mut opened = open(Path::new(&dir)).unwrap();
    let mut index = opened.state.applied().last.index.0;
    let mut last = opened.log.load().unwrap().last_index.0;
    let mut out = std::io::stdout().lock();
    loop {
        opened.log.write(&batch(last + 1..=last + 3, 500)).unwrap();
        last += 3;
        while index < last {
            index += 1;
            let value = format!("{index:0>2000}");
            opened
                .state
                .commit(put(index, value), applied(index))
                .unwrap();
        }
        if index.is_multiple_of(10) {
            opened.state.start_flush().unwrap();
        }
        let durable = opened.state.durable().index;
        writeln!(out, "acknowledged {last} {durable}").unwrap();
        out.flush().unwrap();
    }
}

fn spawn(dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["crash::child_process_that_writes", "--exact", "--nocapture"])
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn a_killed_process_forgets_nothing_that_it_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = (0, 0);
    for round in 1..=6 {
        let mut child = spawn(dir.path());
        let enough = acknowledged.0 + 150 + 77 * round;
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut killed = false;
        for line in lines {
            let line = line.unwrap();
            let mut words = line.split_whitespace();
            if words.next() != Some("acknowledged") {
                continue;
            }
            let mut number = || words.next().unwrap().parse::<u64>().unwrap();
            acknowledged = (number(), number());
            if acknowledged.0 >= enough && !killed {
                child.kill().unwrap();
                killed = true;
            }
        }
        child.wait().unwrap();
        assert!(killed, "the child ended before it was killed");
        let mut opened = open(dir.path()).unwrap();
        let held = opened.log.load().unwrap();
        let (last, durable) = acknowledged;
        assert!(held.last_index >= Index(last), "{held:?} after {last}");
        let last = held.last_index.0;
        let expected: Vec<_> = (1..=last).map(|index| entry(index, 500)).collect();
        assert_eq!(read(&opened.log, 1..=last), expected);
        let applied = opened.state.applied().last.index.0;
        assert!(
            applied >= durable,
            "the state is at {applied}, but {durable} was durable"
        );
        for index in 1..=applied {
            let key = format!("{index:08}");
            let value = opened.state.get(Table::Data, key.as_bytes()).unwrap();
            assert_eq!(value, Some(format!("{index:0>2000}").into()));
        }
        let after = format!("{:08}", applied + 1);
        assert_eq!(opened.state.get(Table::Data, after.as_bytes()), Ok(None));
    }
    assert!(acknowledged.1 > 0, "the state was never flushed");
}

/// Write-ahead logs are overwritten several times, so old records lie behind the new ones.
#[test]
fn recycled_files_lose_no_entry_and_restore_no_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let options = shardkv_storage::StorageOptions {
        log_write_buffer_bytes: 256 << 10,
        ..shardkv_storage::StorageOptions::default()
    };
    let open = || shardkv_storage::open(dir.path(), &options).unwrap();
    let mut opened = open();
    let (mut base, mut last) = (0, 0);
    for round in 0..600 {
        opened
            .log
            .write(&batch(last + 1..=last + 5, 2_000))
            .unwrap();
        last += 5;
        if round % 25 == 24 {
            base = last - 40;
            let meta = raft::SnapshotMeta {
                last: entry(base, 0).id,
                ..raft::SnapshotMeta::default()
            };
            opened.log.compact(&meta).unwrap();
        }
        if round % 97 == 0 {
            drop(opened);
            opened = open();
        }
    }
    let used = opened.disk.sizes().log_bytes;
    assert!(used < 4 << 20, "{used} bytes for a log that was compacted");
    drop(opened);
    let mut opened = open();
    assert_eq!(opened.log.load().unwrap().last_index, Index(last));
    let expected: Vec<_> = (base + 1..=last).map(|index| entry(index, 2_000)).collect();
    assert_eq!(read(&opened.log, base + 1..=last), expected);
}
