//! Random operations in step with a model.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use super::{Harness, applied, chunks, content, numbered};
use crate::conformance::Random;
use crate::memory::MemoryState;
use crate::{StateStore, Table, WriteBatch};

/// Random commits, clears, flushes, restores and crashes, in step with [`MemoryState`].
pub fn random_walks_agree_with_the_model<H: Harness>(harness: &mut H, seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let mut random = Random(seed);
        let mut state = harness.create();
        // The model's state after each commit since the last restore, by index.
        let mut history: BTreeMap<u64, MemoryState> = BTreeMap::new();
        let mut model = MemoryState::new();
        history.insert(0, model.clone());
        let mut index = 0;
        for step in 0..80 {
            match random.below(12) {
                0 => state.start_flush().unwrap(),
                1 => state.flush().unwrap(),
                2 => {
                    let promised = state.durable().index.0;
                    state = harness.crash(state);
                    index = state.applied().last.index.0;
                    assert!(promised <= index, "seed {seed} step {step}");
                    model = history[&index].clone();
                    history.retain(|at, _| *at <= index);
                }
                3 => {
                    let (meta, stream) = chunks(&mut model);
                    state.begin_restore(&meta).unwrap();
                    for chunk in &stream {
                        state.restore_chunk(chunk).unwrap();
                    }
                    state.finish_restore().unwrap();
                    history.clear();
                    history.insert(index, model.clone());
                }
                _ => {
                    index += 1;
                    let batch = random_batch(&mut random);
                    state.commit(batch.clone(), applied(index)).unwrap();
                    model.commit(batch, applied(index)).unwrap();
                    history.insert(index, model.clone());
                }
            }
            assert_eq!(state.applied(), model.applied(), "seed {seed} step {step}");
            assert_eq!(content(&state), *model.pairs(), "seed {seed} step {step}");
            assert_eq!(lengths(&state), lengths(&model), "seed {seed} step {step}");
        }
    }
}

/// Returns the keys of a state and the lengths of their values, from a list.
fn lengths(state: &impl StateStore) -> Vec<(Table, Bytes, usize)> {
    let mut all = Vec::new();
    for table in Table::ALL {
        let whole = (Bound::Unbounded, Bound::Unbounded);
        let found = state.list(table, whole, usize::MAX, usize::MAX).unwrap();
        let found = found.into_iter();
        all.extend(found.map(|(key, value)| (table, key, value.length())));
    }
    all
}

pub(super) fn random_batch(random: &mut Random) -> WriteBatch {
    let mut batch = WriteBatch::default();
    for _ in 0..random.below(12) {
        let table = Table::ALL[usize::try_from(random.below(4)).unwrap()];
        let key = numbered(random.below(60));
        match random.below(8) {
            0 => batch.clear(table, key, numbered(random.below(60))),
            1 | 2 => batch.remove(table, key),
            3 => {
                // Stores may keep long values in another place than short ones.
                let length = usize::try_from(3_000 + random.below(3_000)).unwrap();
                let byte = u8::try_from(random.below(256)).unwrap();
                batch.put(table, key, vec![byte; length].into());
            }
            _ => batch.put(table, key, numbered(random.below(1_000_000))),
        }
    }
    batch
}
