//! A linearizability checker: the search of Wing and Gong with Lowe's cache of visited states, one key at a time.
//!
//! Linearizability composes: a history is linearizable if the history of each key is. So the search runs key
//! by key, over the model of one optional value.
//!
//! An operation may be next if no other pending operation *returned* before this operation was invoked. The search
//! takes one such operation, compares the model's result with the recorded outcome, and continues; at a dead end it
//! backtracks. Two rules keep it short. First, a pair of (set of operations done, model state) that failed once is not
//! tried again. Second, an operation that may be next, fits, and changes nothing is taken without an alternative:
//! taking it only loosens the constraints on the others.
//!
//! An operation of unknown outcome stays open to the end: it may take effect at any moment after its
//! invocation, or never. Such operations come last among the alternatives.
//!
//! Hints decide which alternative is tried first. The simulator knows the order of the writes in the log, and with that
//! the first try is nearly always right, however many outcomes are unknown. Hints only order the search: the verdict
//! doesn't depend on them.
//!
//! The search has a budget of steps. When it runs out, the verdict is [`Verdict::Unknown`], which the simulator counts
//! as a failure: a check that gives up silently is no check.

mod model;

use std::collections::BTreeSet;

use crate::rng::mix;

pub use model::{Action, Operation, Value};

/// The result of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// An order exists, found in this many steps.
    Linearizable(u64),
    /// No order exists.
    Violated,
    /// The budget ran out first.
    Unknown,
}

/// Checks one key's history, which starts with no value, within `budget` steps.
pub fn check(history: &[Operation], budget: u64) -> Verdict {
    let mut search = prepare(history, budget);
    search.run()
}

/// Describes the furthest dead end of the search: the number of returned operations that were left, the state there,
/// and the candidates. It helps to see why no order exists.
pub fn explain(history: &[Operation], budget: u64) -> String {
    let mut search = prepare(history, budget);
    let _ = search.run();
    let (left, state, next) = &search.furthest;
    let next: Vec<String> = next
        .iter()
        .map(|number| {
            let Operation {
                invoked,
                returned,
                action,
                hint,
            } = search.operations[*number];
            format!("{invoked}..{returned:?} {action:?} (hint {hint:?})")
        })
        .collect();
    format!("{left} left at {state:?}; next: {}", next.join("; "))
}

fn prepare(history: &[Operation], budget: u64) -> Search<'_> {
    let mut operations: Vec<&Operation> = history
        .iter()
        // A read without an answer constrains nothing.
        .filter(|operation| {
            operation.returned.is_some() || !matches!(operation.action, Action::Get { .. })
        })
        .collect();
    operations.sort_by_key(|operation| operation.invoked);
    Search::new(operations, budget)
}

struct Search<'a> {
    /// In the order of their invocations.
    operations: Vec<&'a Operation>,
    budget: u64,
    steps: u64,
    done: Vec<bool>,
    /// The first operation that is not done.
    first: usize,
    /// The number of returned operations that are not done.
    due: usize,
    /// Identifies the set of operations done: the exclusive or of one number for each.
    set: u64,
    state: Option<Value>,
    /// The hint of the last operation done. Operations with a lower hint were probably misplaced and come later.
    reached: u64,
    tried: BTreeSet<(u64, Option<Value>)>,
    /// The fewest operations that were left at a dead end, the state there, and the candidates.
    furthest: (usize, Option<Value>, Vec<usize>),
    /// The operations taken, the state before each, and the remaining alternatives.
    path: Vec<Taken>,
}

struct Taken {
    /// The operations done at this step: one by choice, or several that change nothing.
    done: Vec<usize>,
    before: Option<Value>,
    reached: u64,
    first: usize,
    /// The alternatives not tried yet, the best last.
    left: Vec<usize>,
}

impl<'a> Search<'a> {
    fn new(operations: Vec<&'a Operation>, budget: u64) -> Self {
        let returned = |operation: &&&Operation| operation.returned.is_some();
        let due = operations.iter().filter(returned).count();
        Self {
            done: vec![false; operations.len()],
            operations,
            budget,
            steps: 0,
            first: 0,
            due,
            set: 0,
            state: None,
            reached: 0,
            tried: BTreeSet::new(),
            furthest: (usize::MAX, None, Vec::new()),
            path: Vec::new(),
        }
    }

    fn run(&mut self) -> Verdict {
        loop {
            self.take_unchanging();
            if self.due == 0 {
                return Verdict::Linearizable(self.steps);
            }
            let mut left = self.alternatives();
            if left.is_empty() && self.due < self.furthest.0 {
                self.furthest = (self.due, self.state, self.candidates().collect());
            }
            loop {
                self.steps += 1;
                if self.steps > self.budget {
                    return Verdict::Unknown;
                }
                if let Some(next) = left.pop() {
                    if self.take(next, &mut left) {
                        break;
                    }
                } else {
                    let Some(taken) = self.path.pop() else {
                        return Verdict::Violated;
                    };
                    left = self.undo(taken);
                }
            }
        }
    }

    /// Returns the operations that may be next, in the order of their invocations.
    fn candidates(&self) -> impl Iterator<Item = usize> {
        let mut horizon = u64::MAX;
        let mut found = Vec::new();
        for (number, operation) in self.operations.iter().enumerate().skip(self.first) {
            if operation.invoked > horizon {
                break;
            }
            if self.done[number] {
                continue;
            }
            horizon = horizon.min(operation.returned.unwrap_or(u64::MAX));
            found.push(number);
        }
        let operations = &self.operations;
        found
            .into_iter()
            .filter(move |number| operations[*number].invoked < horizon)
            .collect::<Vec<_>>()
            .into_iter()
    }

    /// Takes all operations that may be next, fit, and change nothing.
    fn take_unchanging(&mut self) {
        let (before, first) = (self.state, self.first);
        let mut taken = Vec::new();
        loop {
            let state = self.state;
            let unchanging: Vec<usize> = self
                .candidates()
                .filter(|number| {
                    let operation = self.operations[*number];
                    operation.returned.is_some() && operation.action.step(state) == Some(state)
                })
                .collect();
            if unchanging.is_empty() {
                break;
            }
            for number in &unchanging {
                self.mark(*number);
            }
            taken.extend(unchanging);
        }
        if !taken.is_empty() {
            self.path.push(Taken {
                done: taken,
                before,
                reached: self.reached,
                first,
                left: Vec::new(),
            });
        }
    }

    /// Returns the alternatives for the next step, the best last. The best has the lowest hint; then come returned
    /// operations, the earliest first; then those that never returned.
    fn alternatives(&self) -> Vec<usize> {
        let mut found: Vec<usize> = self
            .candidates()
            .filter(|number| {
                let operation = self.operations[*number];
                operation
                    .action
                    .step(self.state)
                    .is_some_and(|next| next != self.state)
            })
            .collect();
        found.sort_by_key(|number| {
            let operation = self.operations[*number];
            let returned = operation.returned.unwrap_or(u64::MAX);
            let hint = operation.hint.filter(|hint| *hint >= self.reached);
            std::cmp::Reverse((hint.unwrap_or(u64::MAX), returned))
        });
        found
    }

    fn take(&mut self, number: usize, left: &mut Vec<usize>) -> bool {
        let before = self.state;
        let Some(next) = self.operations[number].action.step(before) else {
            return false;
        };
        let set = self.set ^ bits(number);
        if !self.tried.insert((set, next)) {
            return false;
        }
        let first = self.first;
        let reached = self.reached;
        self.mark(number);
        self.state = next;
        self.reached = self.operations[number].hint.unwrap_or(reached);
        self.path.push(Taken {
            done: vec![number],
            before,
            reached,
            first,
            left: std::mem::take(left),
        });
        true
    }

    fn mark(&mut self, number: usize) {
        self.done[number] = true;
        self.set ^= bits(number);
        if self.operations[number].returned.is_some() {
            self.due -= 1;
        }
        while self.done.get(self.first) == Some(&true) {
            self.first += 1;
        }
    }

    fn undo(&mut self, taken: Taken) -> Vec<usize> {
        for number in taken.done {
            self.done[number] = false;
            self.set ^= bits(number);
            if self.operations[number].returned.is_some() {
                self.due += 1;
            }
        }
        self.first = taken.first;
        self.state = taken.before;
        self.reached = taken.reached;
        taken.left
    }
}

/// Returns the number of an operation in the exclusive or that identifies a set.
fn bits(number: usize) -> u64 {
    mix(number as u64 + 1)
}

#[cfg(test)]
mod tests;
