//! The log without a disk.

use super::*;
use bytes::Bytes;

struct NoDisk;
impl LogReader for NoDisk {
    fn entries(&self, range: RangeInclusive<Index>, _: usize) -> Result<Vec<Entry>, StoreError> {
        Err(StoreError::Damaged(format!("nothing at {}", range.start())))
    }
}

fn log_of(terms: &[u64]) -> RaftLog {
    let mut log = RaftLog::recover(
        &LogState::default(),
        Index(0),
        (usize::MAX, u64::MAX),
        &NoDisk,
    )
    .unwrap();
    for (position, term) in terms.iter().enumerate() {
        let payload = Payload::Command(Bytes::from(vec![0; 10]));
        log.push(Entry::new(Term(*term), Index(position as u64 + 1), payload));
    }
    log
}

#[test]
fn terms_are_found_in_runs() {
    let log = log_of(&[1, 1, 3, 3, 7]);
    let terms: Vec<_> = (0..=6)
        .map(|index| log.term_at(Index(index)).map(|term| term.0))
        .collect();
    assert_eq!(
        terms,
        [Some(0), Some(1), Some(1), Some(3), Some(3), Some(7), None]
    );
}

#[test]
fn backtracking_skips_whole_terms() {
    let log = log_of(&[1, 1, 4, 4, 4, 6]);
    let at = |term, index| log.highest_possible_match(EntryId::new(Term(term), Index(index)));
    assert_eq!(at(5, 9), EntryId::new(Term(4), Index(5)));
    assert_eq!(at(3, 5), EntryId::new(Term(1), Index(2)));
    assert_eq!(at(6, 4), EntryId::new(Term(4), Index(4)));
    assert_eq!(at(0, 4), EntryId::default());
}

#[test]
fn truncation_restores_terms_memberships_and_the_persisted_index() {
    let mut log = log_of(&[1, 1, 2]);
    let joined = Membership::of_voters([(NodeId(1), "a")]);
    log.push(Entry::new(
        Term(2),
        Index(4),
        Payload::Membership(joined.clone()),
    ));
    log.persisted_to(EntryId::new(Term(2), Index(4)));
    assert_eq!(log.membership(), &joined);
    log.truncate(Index(3), false);
    assert_eq!(log.last_id(), EntryId::new(Term(1), Index(2)));
    assert_eq!(log.persisted_index(), Index(2));
    assert!(log.membership().is_empty());
    log.push(Entry::new(Term(5), Index(3), Payload::Noop));
    assert_eq!(log.unpersisted().len(), 1);
    log.persisted_to(EntryId::new(Term(2), Index(4)));
    assert_eq!(
        log.persisted_index(),
        Index(2),
        "a write that was overtaken persists nothing"
    );
}

#[test]
fn compaction_keeps_the_base_term_and_the_rest() {
    let mut log = log_of(&[1, 1, 2, 2, 3]);
    log.persisted_to(log.last_id());
    log.commit_to(Index(5));
    log.take_committed(usize::MAX, &NoDisk).unwrap();
    let meta = log.compact(Index(3)).unwrap();
    assert_eq!(meta.last, EntryId::new(Term(2), Index(3)));
    assert_eq!(log.term_at(Index(2)), None);
    assert_eq!(log.term_at(Index(3)), Some(Term(2)));
    assert_eq!(log.term_at(Index(4)), Some(Term(2)));
    assert_eq!(log.term_at(Index(5)), Some(Term(3)));
    assert_eq!(log.compact(Index(5)).unwrap().last.term, Term(3));
    assert_eq!(log.last_id(), EntryId::new(Term(3), Index(5)));
    log.push(Entry::new(Term(3), Index(6), Payload::Noop));
    assert_eq!(log.term_at(Index(6)), Some(Term(3)));
}

#[test]
fn what_is_not_on_disk_is_not_compacted() {
    let mut log = log_of(&[1, 1, 1]);
    log.persisted_to(EntryId::new(Term(1), Index(1)));
    // A snapshot that matches the log skips entries that are still being written.
    log.skip_to(Index(3));
    assert_eq!(log.compact(Index(3)), None);
    assert_eq!(log.compact(Index(1)).unwrap().last.index, Index(1));
    let unwritten: Vec<_> = log
        .unpersisted()
        .iter()
        .map(|entry| entry.id.index)
        .collect();
    assert_eq!(unwritten, [Index(2), Index(3)]);
}

#[test]
fn a_state_outside_of_the_log_is_refused() {
    let state = LogState::default();
    let recovered = RaftLog::recover(&state, Index(1), (usize::MAX, u64::MAX), &NoDisk);
    assert!(matches!(recovered, Err(StoreError::Damaged(_))));
    let mut compacted = LogState {
        last_index: Index(5),
        ..LogState::default()
    };
    compacted.base.last = EntryId::new(Term(1), Index(5));
    let recovered = RaftLog::recover(&compacted, Index(4), (usize::MAX, u64::MAX), &NoDisk);
    assert!(matches!(recovered, Err(StoreError::Damaged(_))));
    assert!(RaftLog::recover(&compacted, Index(5), (usize::MAX, u64::MAX), &NoDisk).is_ok());
}

#[test]
fn a_reset_survives_a_write_that_was_on_its_way() {
    let mut log = log_of(&[1, 1, 1]);
    let on_its_way = log.last_id();
    let meta = SnapshotMeta {
        last: EntryId::new(Term(2), Index(2)),
        ..SnapshotMeta::default()
    };
    log.reset(&meta);
    log.push(Entry::new(Term(2), Index(3), Payload::Noop));
    log.persisted_to(on_its_way);
    assert_eq!(
        log.persisted_index(),
        Index(2),
        "another entry stands at 3 now"
    );
    assert_eq!(log.unpersisted().len(), 1);
}

#[test]
fn the_cache_evicts_only_what_is_written_and_handed_over() {
    let mut log = log_of(&[1, 1, 1, 1]);
    log.max_cached_bytes = 0;
    log.persisted_to(EntryId::new(Term(1), Index(3)));
    log.commit_to(Index(2));
    assert_eq!(log.take_committed(usize::MAX, &NoDisk).unwrap().len(), 2);
    assert_eq!(log.cache.front().unwrap().id.index, Index(3));
    assert!(
        log.read(Index(1)..=Index(4), usize::MAX, &NoDisk).is_err(),
        "from the disk"
    );
    assert_eq!(
        log.read(Index(3)..=Index(4), usize::MAX, &NoDisk)
            .unwrap()
            .len(),
        2
    );
}
