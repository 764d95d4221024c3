//! The conformance suite of log stores.

use bytes::Bytes;
use raft::{
    Entry, EntryId, HardState, Index, LogBatch, LogReader, LogState, LogStore, Membership, Payload,
    SnapshotMeta, StoreError, Term,
};
use types::NodeId;

use super::Random;
use crate::memory::MemoryLog;

/// Makes, crashes and reopens logs.
pub trait Harness {
    /// The log under test.
    type Log: LogStore;

    /// Creates an empty log on a disk of its own.
    fn create(&mut self) -> Self::Log;

    /// Crashes the log, so that changes that were not durable are lost, and opens it again.
    fn crash(&mut self, log: Self::Log) -> Self::Log;
}

/// Runs the whole suite.
pub fn all<H: Harness>(harness: &mut H) {
    an_empty_log_is_empty(harness);
    entries_survive_a_crash(harness);
    overwriting_truncates(harness);
    hard_state_survives_and_travels_with_entries(harness);
    a_refused_batch_changes_nothing(harness);
    reads_are_bounded(harness);
    a_missing_entry_is_damage(harness);
    compaction_drops_a_prefix(harness);
    a_compaction_that_makes_no_sense_is_refused(harness);
    a_reset_replaces_the_log(harness);
    an_install_mark_survives(harness);
    every_payload_survives(harness);
    random_walks_agree_with_the_model(harness, 0..8);
}

fn entry(term: u64, index: u64) -> Entry {
    let text = format!("command {index} of term {term}");
    Entry::new(Term(term), Index(index), Payload::Command(text.into()))
}

fn entries(term: u64, range: std::ops::RangeInclusive<u64>) -> Vec<Entry> {
    range.map(|index| entry(term, index)).collect()
}

fn append(term: u64, range: std::ops::RangeInclusive<u64>) -> LogBatch {
    LogBatch {
        entries: entries(term, range),
        ..LogBatch::default()
    }
}

fn meta(term: u64, index: u64) -> SnapshotMeta {
    SnapshotMeta {
        last: EntryId::new(Term(term), Index(index)),
        membership: Membership::of_voters([(NodeId(1), "one:1"), (NodeId(index + 2), "two:2")]),
    }
}

fn read(log: &impl LogStore, range: std::ops::RangeInclusive<u64>) -> Vec<Entry> {
    log.entries(Index(*range.start())..=Index(*range.end()), usize::MAX)
        .expect("stored entries can be read")
}

fn reopened<H: Harness>(harness: &mut H, log: H::Log) -> (H::Log, LogState) {
    let mut log = harness.crash(log);
    let state = log.load().expect("a log loads after a crash");
    (log, state)
}

/// A new log has no entries, no base and no vote, also after a crash.
pub fn an_empty_log_is_empty<H: Harness>(harness: &mut H) {
    let mut log = harness.create();
    assert_eq!(log.load(), Ok(LogState::default()));
    let (_, state) = reopened(harness, log);
    assert_eq!(state, LogState::default());
}

/// Each batch whose `write` returned survives a crash.
pub fn entries_survive_a_crash<H: Harness>(harness: &mut H) {
    let mut log = harness.create();
    log.load().unwrap();
    for (first, last) in [(1, 1), (2, 5), (6, 40)] {
        log.write(&append(1, first..=last)).unwrap();
        let state;
        (log, state) = reopened(harness, log);
        assert_eq!(state.last_index, Index(last));
        assert_eq!(read(&log, 1..=last), entries(1, 1..=last));
    }
}

/// An append drops all entries at and after its first index, even if it has fewer entries.
pub fn overwriting_truncates<H: Harness>(harness: &mut H) {
    let mut log = harness.create();
    log.load().unwrap();
    log.write(&append(1, 1..=300)).unwrap();
    log.write(&append(2, 100..=101)).unwrap();
    let check = |log: &H::Log| {
        assert_eq!(read(log, 1..=99), entries(1, 1..=99));
        assert_eq!(read(log, 100..=101), entries(2, 100..=101));
        assert!(matches!(
            log.entries(Index(102)..=Index(102), usize::MAX),
            Err(StoreError::Damaged(_))
        ));
    };
    check(&log);
    let (mut log, state) = reopened(harness, log);
    assert_eq!(state.last_index, Index(101));
    check(&log);
    // Dropped entries don't return when the log grows over their indexes again.
    log.write(&append(3, 102..=103)).unwrap();
    let (log, state) = reopened(harness, log);
    assert_eq!(state.last_index, Index(103));
    assert_eq!(read(&log, 102..=103), entries(3, 102..=103));
}

/// Term and vote survive alone, and together with entries.
pub fn hard_state_survives_and_travels_with_entries<H: Harness>(harness: &mut H) {
    let mut log = harness.create();
    log.load().unwrap();
    let voted = |term, node: Option<u64>| HardState {
        term: Term(term),
        vote: node.map(NodeId),
    };
    for (term, vote, last) in [
        (1, Some(9), 0),
        (u64::MAX, None, 3),
        (2, Some(u64::MAX), 3),
        (3, Some(0), 5),
    ] {
        let next = log.load().unwrap().last_index.0 + 1;
        let hard_state = voted(term, vote);
        log.write(&LogBatch {
            hard_state: Some(hard_state),
            entries: entries(1, next..=last),
            ..LogBatch::default()
        })
        .unwrap();
        let state;
        (log, state) = reopened(harness, log);
        assert_eq!(
            (state.hard_state, state.last_index),
            (hard_state, Index(last))
        );
    }
    log.write(&append(3, 6..=6)).unwrap();
    let (_, state) = reopened(harness, log);
    assert_eq!(
        state.hard_state,
        voted(3, Some(0)),
        "a batch without one keeps it"
    );
}

/// Entries that leave a gap, overlap the compacted part or are not contiguous are refused whole.
pub fn a_refused_batch_changes_nothing<H: Harness>(harness: &mut H) {
    let mut wrong_order = append(2, 9..=11);
    wrong_order.entries.swap(1, 2);
    let mut hole = append(2, 11..=13);
    hole.entries.remove(1);
    for mut bad in [append(2, 12..=12), append(2, 3..=4), wrong_order, hole] {
        let mut log = harness.create();
        log.load().unwrap();
        log.write(&append(1, 1..=10)).unwrap();
        log.compact(&meta(1, 4)).unwrap();
        log.write(&append(1, 11..=11)).unwrap();
        log.write(&append(1, 10..=10)).unwrap();
        bad.hard_state = Some(HardState {
            term: Term(9),
            vote: None,
        });
        assert!(log.write(&bad).is_err());
        let (log, state) = reopened(harness, log);
        assert_eq!(state.hard_state, HardState::default());
        assert_eq!(
            (state.base.last.index, state.last_index),
            (Index(4), Index(10))
        );
        assert_eq!(read(&log, 5..=10), entries(1, 5..=10));
    }
}

/// `entries` gives a contiguous prefix of the range within the bytes, and at least one entry.
pub fn reads_are_bounded<H: Harness>(harness: &mut H) {
    let mut log = harness.create();
    log.load().unwrap();
    let big = |index| {
        let data = Bytes::from(vec![7; 1000]);
        Entry::new(Term(1), Index(index), Payload::Command(data))
    };
    log.write(&LogBatch {
        entries: (1..=100).map(big).collect(),
        ..LogBatch::default()
    })
    .unwrap();
    for (max, expected) in [(0, 1), (1, 1), (1032, 1), (2064, 2), (10_500, 10)] {
        let found = log.entries(Index(3)..=Index(90), max).unwrap();
        assert_eq!(found.len(), expected, "within {max} bytes");
        assert_eq!(found[0].id.index, Index(3));
    }
    assert_eq!(read(&log, 3..=90).len(), 88);
    // An empty range on purpose.
    #[allow(clippy::reversed_empty_ranges)]
    let nothing = read(&log, 5..=4);
    assert_eq!(nothing, []);
}

/// A range that the log does not hold whole is an error and not a short answer.
pub fn a_missing_entry_is_damage<H: Harness>(harness: &mut H) {
    let mut log = harness.create();
    log.load().unwrap();
    log.write(&append(1, 1..=10)).unwrap();
    log.compact(&meta(1, 3)).unwrap();
    for (start, end) in [(3, 5), (0, 1), (10, 11), (11, 11), (50, 60)] {
        assert!(
            matches!(
                log.entries(Index(start)..=Index(end), usize::MAX),
                Err(StoreError::Damaged(_))
            ),
            "{start}..={end}"
        );
    }
    assert_eq!(read(&log, 4..=10), entries(1, 4..=10));
}

/// A compaction drops entries up to its base, keeps the rest, is idempotent, and if a crash loses it, the
/// log is whole as before.
pub fn compaction_drops_a_prefix<H: Harness>(harness: &mut H) {
    let mut log = harness.create();
    log.load().unwrap();
    log.write(&append(1, 1..=20)).unwrap();
    log.compact(&meta(1, 8)).unwrap();
    log.compact(&meta(1, 5)).unwrap();
    assert_eq!(read(&log, 9..=20), entries(1, 9..=20));
    let (mut log, state) = reopened(harness, log);
    let first = if state.base == SnapshotMeta::default() {
        1
    } else {
        assert_eq!(state.base, meta(1, 8));
        9
    };
    assert_eq!(read(&log, first..=20), entries(1, first..=20));
    log.compact(&meta(1, 12)).unwrap();
    log.write(&append(2, 21..=22)).unwrap();
    let (mut log, state) = reopened(harness, log);
    assert_eq!(state.base, meta(1, 12), "a synced write carries it");
    assert_eq!(read(&log, 13..=20), entries(1, 13..=20));
    // All of the log.
    log.compact(&meta(2, 22)).unwrap();
    log.write(&append(2, 23..=23)).unwrap();
    let (log, state) = reopened(harness, log);
    assert_eq!(
        (state.base, state.last_index),
        (meta(2, 22), Index(23)),
        "the log goes on behind an empty one"
    );
    assert_eq!(read(&log, 23..=23), entries(2, 23..=23));
}

/// A compaction to an entry that the log does not hold is refused and changes nothing.
pub fn a_compaction_that_makes_no_sense_is_refused<H: Harness>(harness: &mut H) {
    for bad in [meta(1, 11), meta(2, 5)] {
        let mut log = harness.create();
        log.load().unwrap();
        log.write(&append(1, 1..=10)).unwrap();
        assert!(log.compact(&bad).is_err());
        let (log, state) = reopened(harness, log);
        assert_eq!(
            (state.base.last.index, state.last_index),
            (Index(0), Index(10))
        );
        assert_eq!(read(&log, 1..=10), entries(1, 1..=10));
    }
}

/// A reset drops all entries, starts after its snapshot, and takes entries and hard state along; one
/// before and one behind the log's end.
pub fn a_reset_replaces_the_log<H: Harness>(harness: &mut H) {
    for at in [5, 500] {
        let mut log = harness.create();
        log.load().unwrap();
        log.write(&append(1, 1..=20)).unwrap();
        let hard_state = HardState {
            term: Term(4),
            vote: Some(NodeId(3)),
        };
        log.write(&LogBatch {
            hard_state: Some(hard_state),
            reset: Some(meta(4, at)),
            entries: entries(4, at + 1..=at + 2),
        })
        .unwrap();
        let (mut log, state) = reopened(harness, log);
        let expected = LogState {
            hard_state,
            base: meta(4, at),
            last_index: Index(at + 2),
            installing: None,
        };
        assert_eq!(state, expected);
        assert_eq!(read(&log, at + 1..=at + 2), entries(4, at + 1..=at + 2));
        // The old entries stay gone, wherever the log grows to.
        log.write(&append(4, at + 3..=at + 30)).unwrap();
        let (log, state) = reopened(harness, log);
        assert_eq!(state.last_index, Index(at + 30));
        assert_eq!(read(&log, at + 1..=at + 30), entries(4, at + 1..=at + 30));
    }
}

/// The mark of an install survives until the reset, and not longer.
pub fn an_install_mark_survives<H: Harness>(harness: &mut H) {
    let mut log = harness.create();
    log.load().unwrap();
    log.write(&append(1, 1..=5)).unwrap();
    let last = meta(7, 100).last;
    log.begin_install(last).unwrap();
    let (mut log, state) = reopened(harness, log);
    assert_eq!(
        (state.installing, state.last_index),
        (Some(last), Index(5)),
        "the mark is durable and changes nothing else"
    );
    log.write(&append(1, 6..=6)).unwrap();
    let (mut log, state) = reopened(harness, log);
    assert_eq!(
        state.installing,
        Some(last),
        "an ordinary write keeps the mark"
    );
    log.write(&LogBatch {
        reset: Some(meta(7, 100)),
        ..LogBatch::default()
    })
    .unwrap();
    let (_, state) = reopened(harness, log);
    assert_eq!(
        (state.installing, state.base, state.last_index),
        (None, meta(7, 100), Index(100))
    );
}

/// Payloads of every kind and of awkward sizes come back as they were.
pub fn every_payload_survives<H: Harness>(harness: &mut H) {
    let mut log = harness.create();
    log.load().unwrap();
    let payloads = [
        Payload::Noop,
        Payload::Command(Bytes::new()),
        Payload::Command(Bytes::from_static(&[0])),
        Payload::Command(vec![0xff; 4096].into()),
        Payload::Command(vec![1; 3 << 20].into()),
        Payload::Membership(meta(1, 1).membership),
    ];
    let written: Vec<Entry> = (1..)
        .zip(payloads)
        .map(|(index, payload)| Entry::new(Term(index), Index(index), payload))
        .collect();
    log.write(&LogBatch {
        entries: written.clone(),
        ..LogBatch::default()
    })
    .unwrap();
    let (log, _) = reopened(harness, log);
    assert_eq!(read(&log, 1..=6), written);
}

/// Random operations and crashes, in step with [`MemoryLog`].
pub fn random_walks_agree_with_the_model<H: Harness>(harness: &mut H, seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let mut random = Random(seed);
        let mut log = harness.create();
        let mut model = MemoryLog::new();
        let mut term = 1;
        log.load().unwrap();
        for step in 0..60 {
            random_step(&mut random, &mut log, &mut model, &mut term);
            if random.below(6) == 0 {
                let state;
                (log, state) = reopened(harness, log);
                let lost = state.base != *model.base();
                model = model.crash(lost);
                assert_eq!(state, model.load().unwrap(), "seed {seed} step {step}");
            }
            let (base, last) = (model.base().last.index, model.last_index());
            let range = base.next()..=last;
            assert_eq!(
                log.entries(range.clone(), usize::MAX),
                model.entries(range, usize::MAX),
                "seed {seed} step {step}"
            );
        }
    }
}

fn random_step(
    random: &mut Random,
    log: &mut impl LogStore,
    model: &mut MemoryLog,
    term: &mut u64,
) {
    let (base, last) = (model.base().last.index.0, model.last_index().0);
    match random.below(10) {
        0 if last > base => {
            let at = base + 1 + random.below(last - base);
            let id = model.stored()[&Index(at)].id;
            let to = meta(id.term.0, at);
            assert_eq!(log.compact(&to), model.compact(&to));
        }
        1 => {
            let to = meta(*term, base + random.below(60));
            log.begin_install(to.last).unwrap();
            model.begin_install(to.last).unwrap();
            if random.below(2) == 0 {
                let batch = LogBatch {
                    reset: Some(to),
                    ..LogBatch::default()
                };
                assert_eq!(log.write(&batch), model.write(&batch));
            }
        }
        2 => {
            *term += 1;
            let batch = LogBatch {
                hard_state: Some(HardState {
                    term: Term(*term),
                    vote: Some(NodeId(random.below(5))),
                }),
                ..LogBatch::default()
            };
            assert_eq!(log.write(&batch), model.write(&batch));
        }
        kind => {
            let back = if kind == 3 { random.below(40) } else { 0 };
            let first = (last + 1).saturating_sub(back).max(base + 1);
            let batch = append(*term, first..=first + random.below(20));
            assert_eq!(log.write(&batch), model.write(&batch));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A crash keeps an unsynced compaction and the next crash loses it, in turn.
    struct Memory(bool);

    impl Harness for Memory {
        type Log = MemoryLog;

        fn create(&mut self) -> MemoryLog {
            MemoryLog::new()
        }

        fn crash(&mut self, log: MemoryLog) -> MemoryLog {
            self.0 = !self.0;
            log.crash(self.0)
        }
    }

    #[test]
    fn the_log_in_memory_conforms() {
        all(&mut Memory(false));
        all(&mut Memory(true));
        random_walks_agree_with_the_model(&mut Memory(false), 100..400);
    }

    #[test]
    fn a_lost_entry_is_found_when_opening() {
        let mut log = MemoryLog::new();
        log.write(&append(1, 1..=5)).unwrap();
        assert!(log.damage(Index(3)));
        assert!(matches!(log.load(), Err(StoreError::Damaged(_))));
    }
}
