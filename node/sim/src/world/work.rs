//! Checks that a poll, an entry and an operation do no more work than they may: while a replica applies, it handles no ticks.

use replica::Options;
use types::NodeId;

use crate::recorder::AppliedOperation;
use crate::violation::{Checked, Violation};

/// Checks the operations that a replica applied in one poll, in order.
pub(super) fn check_work(
    options: &Options,
    node: NodeId,
    operations: &[AppliedOperation],
) -> Checked {
    let limit = options.max_apply_work;
    let broken = |invariant, detail: String| Err(Violation::new(invariant, detail));
    let entries = operations.chunk_by(|a, b| a.entry == b.entry);
    let mut before = 0;
    for entry in entries {
        if before >= limit {
            let what = format!("{node} had done {before} of {limit} when it began another entry");
            return broken("a poll ends when its work is done", what);
        }
        // Other operations are bounded by their bytes.
        let bounded = |operation: &&AppliedOperation| operation.most_work > 0;
        for operation in entry.iter().filter(bounded) {
            let (work, most) = (operation.work, operation.most_work);
            if work > most {
                let what = format!("{node} did {work} of {most}: {operation:?}");
                return broken("an operation does no more work than was expected", what);
            }
        }
        let most: u64 = entry.iter().map(|operation| operation.most_work).sum();
        if entry.len() > 1 && most > limit {
            let what = format!("{} has operations of {most} of {limit}", entry[0].entry);
            return broken("an entry has operations of bounded work", what);
        }
        before += entry.iter().map(|operation| operation.work).sum::<u64>();
    }
    Ok(())
}
