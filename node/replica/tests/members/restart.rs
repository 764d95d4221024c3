//! Restarts after a crash in the middle of an install.

use raft::{EntryId, HardState, Index, LogBatch, LogStore, Membership, Term};
use replica::memory::MemoryState;
use replica::{Applied, Options, Replica, StateStore, WriteBatch};
use types::NodeId;

use crate::cluster::{Map, SharedLog};

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
