//! The suite of `replica::conformance` on `RocksDB`. Closing flushes neither store, so for them it equals a crash
//! of the process. `crash.rs` kills real processes.

use std::path::PathBuf;

use replica::conformance;
use shardkv_storage::{RocksLog, RocksState};
use tempfile::TempDir;

use crate::support::open;

/// Keeps the directories of all stores that a suite made. Their names are numbers.
struct Disks {
    root: TempDir,
    made: usize,
}

impl Disks {
    fn new() -> Self {
        Self {
            root: tempfile::tempdir().unwrap(),
            made: 0,
        }
    }

    fn next(&mut self) -> PathBuf {
        self.made += 1;
        self.root.path().join(self.made.to_string())
    }
}

struct Logs(Disks);

/// The log with its directory.
struct Log {
    log: RocksLog,
    dir: PathBuf,
}

impl raft::LogReader for Log {
    fn entries(
        &self,
        range: std::ops::RangeInclusive<raft::Index>,
        max_bytes: usize,
    ) -> Result<Vec<raft::Entry>, raft::StoreError> {
        self.log.entries(range, max_bytes)
    }
}

impl raft::LogStore for Log {
    fn load(&mut self) -> Result<raft::LogState, raft::StoreError> {
        self.log.load()
    }

    fn write(&mut self, batch: &raft::LogBatch) -> Result<(), raft::StoreError> {
        self.log.write(batch)
    }

    fn compact(&mut self, base: &raft::SnapshotMeta) -> Result<(), raft::StoreError> {
        self.log.compact(base)
    }

    fn begin_install(&mut self, last: raft::EntryId) -> Result<(), raft::StoreError> {
        self.log.begin_install(last)
    }
}

impl conformance::log::Harness for Logs {
    type Log = Log;

    fn create(&mut self) -> Log {
        let dir = self.0.next();
        let log = open(&dir).unwrap().log;
        Log { log, dir }
    }

    fn crash(&mut self, log: Log) -> Log {
        let Log { log, dir } = log;
        drop(log);
        let log = open(&dir).unwrap().log;
        Log { log, dir }
    }
}

struct States(Disks);

struct State {
    state: RocksState,
    dir: PathBuf,
}

impl replica::PairReader for State {
    fn get(
        &self,
        table: replica::Table,
        key: &[u8],
    ) -> Result<Option<bytes::Bytes>, raft::StoreError> {
        self.state.get(table, key)
    }

    fn cursor(
        &self,
        table: replica::Table,
        bounds: replica::Bounds<'_>,
        order: replica::Order,
    ) -> Result<Box<dyn replica::Cursor + '_>, raft::StoreError> {
        self.state.cursor(table, bounds, order)
    }
}

impl replica::StateReader for State {
    fn view(
        &self,
        table: replica::Table,
        start: bytes::Bytes,
        end: bytes::Bytes,
    ) -> Result<replica::View, raft::StoreError> {
        self.state.view(table, start, end)
    }

    fn estimate_bytes(
        &self,
        table: replica::Table,
        start: &[u8],
        end: &[u8],
    ) -> Result<u64, raft::StoreError> {
        self.state.estimate_bytes(table, start, end)
    }
}

impl replica::StateStore for State {
    fn applied(&self) -> replica::Applied {
        self.state.applied()
    }

    fn durable(&self) -> raft::EntryId {
        self.state.durable()
    }

    fn commit(
        &mut self,
        batch: replica::WriteBatch,
        applied: replica::Applied,
    ) -> Result<(), raft::StoreError> {
        self.state.commit(batch, applied)
    }

    fn start_flush(&mut self) -> Result<(), raft::StoreError> {
        self.state.start_flush()
    }

    fn flush(&mut self) -> Result<(), raft::StoreError> {
        self.state.flush()
    }

    fn snapshot(&mut self) -> Result<Box<dyn replica::SnapshotSource>, raft::StoreError> {
        self.state.snapshot()
    }

    fn begin_restore(&mut self, meta: &raft::SnapshotMeta) -> Result<(), raft::StoreError> {
        // More restores are begun here than the disk would take.
        self.state.wait_removed();
        self.state.begin_restore(meta)
    }

    fn restore_chunk(&mut self, chunk: &[u8]) -> Result<(), raft::StoreError> {
        self.state.restore_chunk(chunk)
    }

    fn abandon_restore(&mut self) {
        self.state.abandon_restore();
    }

    fn finish_restore(&mut self) -> Result<(), raft::StoreError> {
        self.state.finish_restore()
    }
}

impl conformance::state::Harness for States {
    type State = State;

    fn create(&mut self) -> State {
        let dir = self.0.next();
        let mut opened = open(&dir).unwrap();
        // Opening refuses a state without its log, unless a snapshot is being installed.
        let mark = raft::EntryId::default();
        raft::LogStore::begin_install(&mut opened.log, mark).unwrap();
        State {
            state: opened.state,
            dir,
        }
    }

    fn crash(&mut self, state: State) -> State {
        let State { state, dir } = state;
        drop(state);
        let state = open(&dir).unwrap().state;
        State { state, dir }
    }

    fn settle(&mut self, state: &mut State) {
        state.state.wait_flushed().unwrap();
    }

    fn reclaim(&mut self, state: &mut State) {
        state.state.wait_reclaimed();
    }
}

#[test]
fn the_log_conforms() {
    conformance::log::all(&mut Logs(Disks::new()));
}

#[test]
fn the_state_conforms() {
    conformance::state::all(&mut States(Disks::new()));
}
