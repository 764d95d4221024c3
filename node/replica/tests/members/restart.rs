//! Restarts: after a crash in the middle of an install, and often.

use bytes::Bytes;
use raft::{
    Entry, EntryId, HardState, Index, LogBatch, LogStore, Membership, Payload, StoreError, Term,
};
use replica::memory::MemoryState;
use replica::{Applied, Options, RecoverError, Replica, StateStore, WriteBatch, initialise};
use types::{LogTime, NodeId};

use crate::cluster::{Map, Outputs, SharedLog};

const ENTRY_BYTES: usize = 1_000;

/// Starts a node that has applied a log of `entries` entries before, and returns the log after its first turn.
fn reopened(entries: u64, compact_after_bytes: u64) -> SharedLog {
    let membership = Membership::of_voters([(NodeId(1), "host-1".to_owned())]);
    let mut log = SharedLog::default();
    let mut state = MemoryState::new();
    initialise(&mut log, &mut state, &membership, WriteBatch::default()).unwrap();
    let payload = || Payload::Command(Bytes::from(vec![b'x'; ENTRY_BYTES - 32]));
    let entry = |number| Entry::new(Term(1), Index(1 + number), payload());
    let batch = LogBatch {
        entries: (1..=entries).map(entry).collect(),
        ..LogBatch::default()
    };
    log.write(&batch).unwrap();
    let applied = Applied {
        last: EntryId::new(Term(1), Index(1 + entries)),
        membership,
        ..Applied::default()
    };
    state.commit(WriteBatch::default(), applied).unwrap();
    state.flush().unwrap();
    let options = Options {
        address: "host-1".to_owned(),
        compact_after_bytes,
        ..Options::default()
    };
    let disk = log.clone();
    let (log, state) = (Box::new(log), Box::new(state));
    let mut replica = Replica::recover(options, NodeId(1), log, state, Map::default(), 7).unwrap();
    replica.poll(&mut Outputs::default()).unwrap();
    disk
}

#[test]
fn an_older_version_does_not_start_with_a_newer_state() {
    let mut state = MemoryState::new();
    let applied = Applied {
        last: EntryId::new(Term(1), Index(1)),
        feature_level: 3,
        ..Applied::default()
    };
    state.commit(WriteBatch::default(), applied).unwrap();
    state.flush().unwrap();
    let mut options = Options {
        address: "host-1".to_owned(),
        ..Options::default()
    };
    options.raft.feature_level = 2;
    let (log, state) = (Box::new(SharedLog::default()), Box::new(state));
    let error = Replica::recover(options, NodeId(1), log, state, Map::default(), 7)
        .err()
        .unwrap();
    let newer = StoreError::OtherVersion("feature level 3, and this version supports 2".to_owned());
    assert_eq!(error, RecoverError::Store(newer));
}

#[test]
fn an_older_version_stops_at_a_newer_entry_of_its_log() {
    // A newer version raised the level, and did not come to apply it.
    let mut log = SharedLog::default();
    let mut state = MemoryState::new();
    let membership = Membership::of_voters([(NodeId(1), "host-1".to_owned())]);
    initialise(&mut log, &mut state, &membership, WriteBatch::default()).unwrap();
    let raise = Payload::Command(Bytes::from_static(&[2, 1]));
    let batch = LogBatch {
        entries: vec![Entry::new(Term(1), Index(2), raise)],
        ..LogBatch::default()
    };
    log.write(&batch).unwrap();
    for supported in [1, 0] {
        let mut options = Options {
            address: "host-1".to_owned(),
            ..Options::default()
        };
        options.raft.feature_level = supported;
        let (log, state) = (Box::new(log.clone()), Box::new(state.clone()));
        let mut replica =
            Replica::recover(options, NodeId(1), log, state, Map::default(), 7).unwrap();
        let mut outputs = Outputs::default();
        let mut result = Ok(());
        for tick in 0..200 {
            replica.tick(LogTime(tick));
            result = result.and_then(|()| replica.poll(&mut outputs));
        }
        assert_eq!(replica.status().feature_level, supported);
        let newer = matches!(result, Err(StoreError::OtherVersion(_)));
        assert_eq!(newer, supported == 0, "{result:?}");
    }
}

#[test]
fn a_node_that_restarts_often_cuts_its_log() {
    // Each process applied less than the threshold.
    let mut disk = reopened(5_000, 1_000_000);
    let stored = disk.load().unwrap();
    let kept = stored.last_index.since(stored.base.last.index) * ENTRY_BYTES as u64;
    assert!(
        (500_000..750_000).contains(&kept),
        "about half of the threshold stays, not {kept} bytes"
    );
    let mut disk = reopened(400, 1_000_000);
    assert_eq!(disk.load().unwrap().base.last.index, Index(1));
}

#[test]
fn a_restart_that_finishes_an_install_keeps_the_vote() {
    let last = EntryId::new(Term(5), Index(9));
    let hard_state = HardState {
        term: Term(5),
        vote: Some(NodeId(2)),
    };
    let mut log = SharedLog::default();
    let voted = LogBatch {
        hard_state: Some(hard_state),
        reset: None,
        entries: Vec::new(),
    };
    log.write(&voted).unwrap();
    // The state was replaced, and the crash came before the log was reset.
    log.begin_install(last).unwrap();
    let mut state = MemoryState::new();
    let membership =
        Membership::of_voters((1..=3).map(|node| (NodeId(node), format!("host-{node}"))));
    let applied = Applied {
        last,
        membership,
        ..Applied::default()
    };
    state.commit(WriteBatch::default(), applied).unwrap();
    state.flush().unwrap();

    let options = Options {
        address: "host-1".to_owned(),
        ..Options::default()
    };
    let mut disk = log.clone();
    let (log, state) = (Box::new(log), Box::new(state));
    Replica::recover(options, NodeId(1), log, state, Map::default(), 7).unwrap();
    let stored = disk.load().unwrap();
    assert_eq!(stored.hard_state, hard_state);
    assert_eq!((stored.base.last, stored.installing), (last, None));
}
