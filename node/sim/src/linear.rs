//! Is a history linearizable? The search of Wing and Gong with Lowe's memory, one key at a time.
//!
//! Linearizability composes: a history is linearizable if the part of each key is. So the search runs key
//! by key, over a model that is one optional value. A value is known by its digest and its length, and the
//! digest is one that appending continues (FNV-1a), so the model's state is two words.
//!
//! The search: an operation may be next if no other operation that is still due *returned* before this one
//! was invoked. Take one, see whether the model gives the recorded outcome, go on; if stuck, go back. Two
//! things keep it short. A pair of (operations done, model state) that failed once is not tried again. And
//! an operation that may be next, fits, and changes nothing, is taken without an alternative: taking it
//! only loosens what constrains the others.
//!
//! An operation of unknown outcome stays open to the end: it may take effect at any moment after its
//! invocation, or never. Those come last among the alternatives.
//!
//! Which alternative is tried first is a matter of hints. The simulator knows in which order the log carried
//! the writes, and with that the first try is nearly always right, however many outcomes are unknown. The
//! hints only order the search: what it accepts does not depend on them.
//!
//! The search has a budget of steps. Running out is [`Verdict::Unknown`], which the simulator counts as a
//! failure: a check that gives up silently is no check.

use std::collections::BTreeSet;

use crate::rng::mix;

/// A key's value in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Value {
    fnv: u64,
    length: u64,
}

impl Value {
    /// The value of no bytes.
    pub const EMPTY: Self = Self {
        fnv: 0xcbf2_9ce4_8422_2325,
        length: 0,
    };

    /// The value of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self::EMPTY.append(bytes)
    }

    /// This value with bytes added at its end.
    #[must_use]
    pub fn append(self, bytes: &[u8]) -> Self {
        let fnv = bytes.iter().fold(self.fnv, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Self {
            fnv,
            length: self.length + bytes.len() as u64,
        }
    }
}

/// What was done to a key, and what came back. `None` in an outcome: it is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read the value.
    Get {
        /// What was read.
        value: Option<Value>,
    },
    /// Set the value.
    Put {
        /// To this.
        value: Value,
    },
    /// Added to the value.
    Append {
        /// What was added.
        suffix: Vec<u8>,
        /// The length afterwards.
        length: Option<u64>,
    },
    /// Removed the key.
    Delete {
        /// Whether it was there.
        existed: Option<bool>,
    },
    /// Replaced the value if it was as expected.
    CompareAndSwap {
        /// What it must be.
        expected: Option<Value>,
        /// What it becomes.
        new: Option<Value>,
        /// Whether it was.
        swapped: Option<bool>,
    },
}

impl Action {
    /// The state after this action on `state`, or `None` if the recorded outcome doesn't fit.
    #[allow(
        clippy::option_option,
        reason = "no next state, and a next state without a value, are two answers"
    )]
    fn step(&self, state: Option<Value>) -> Option<Option<Value>> {
        match self {
            Self::Get { value } => (*value == state).then_some(state),
            Self::Put { value } => Some(Some(*value)),
            Self::Append { suffix, length } => {
                let next = state.unwrap_or(Value::EMPTY).append(suffix);
                length
                    .is_none_or(|length| length == next.length)
                    .then_some(Some(next))
            }
            Self::Delete { existed } => existed
                .is_none_or(|existed| existed == state.is_some())
                .then_some(None),
            Self::CompareAndSwap {
                expected,
                new,
                swapped,
            } => {
                let fits = *expected == state;
                swapped
                    .is_none_or(|swapped| swapped == fits)
                    .then_some(if fits { *new } else { state })
            }
        }
    }
}

/// An operation of one key's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The moment of its invocation. All moments of a history differ.
    pub invoked: u64,
    /// The moment of its return; `None` if the outcome never became known.
    pub returned: Option<u64>,
    /// What it was.
    pub action: Action,
    /// Where it probably took effect: the search tries lower ones first. Wrong hints cost time, not truth.
    pub hint: Option<u64>,
}

/// What the search found.
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

/// Where the search came furthest: the returned operations that were left, the state there, and what
/// could have been next. For people who wonder why there is no order.
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
        // A read that nobody saw the answer of says nothing.
        .filter(|operation| {
            operation.returned.is_some() || !matches!(operation.action, Action::Get { .. })
        })
        .collect();
    operations.sort_by_key(|operation| operation.invoked);
    Search::new(operations, budget)
}

struct Search<'a> {
    /// By invocation.
    operations: Vec<&'a Operation>,
    budget: u64,
    steps: u64,
    done: Vec<bool>,
    /// All before this are done, or open for ever.
    first: usize,
    /// Returned operations that are still due.
    due: usize,
    /// Identifies the set of operations done: the exclusive or of a number for each.
    set: u64,
    state: Option<Value>,
    /// The hint of what was done last: lower ones had their time, and come late.
    reached: u64,
    tried: BTreeSet<(u64, Option<Value>)>,
    /// The fewest operations that were left at a dead end, the state there, and the candidates.
    furthest: (usize, Option<Value>, Vec<usize>),
    /// What was taken, with the state before it, and the alternatives that are left.
    path: Vec<Taken>,
}

struct Taken {
    /// Operations done at this step (one by choice, or a run of ones that change nothing).
    done: Vec<usize>,
    before: Option<Value>,
    reached: u64,
    first: usize,
    /// Alternatives not tried yet, the best last.
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
            self.take_idle();
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

    /// The operations that may be next, by invocation.
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

    /// Takes all that may be next, fit, and change nothing.
    fn take_idle(&mut self) {
        let (before, first) = (self.state, self.first);
        let mut taken = Vec::new();
        loop {
            let state = self.state;
            let idle: Vec<usize> = self
                .candidates()
                .filter(|number| {
                    let operation = self.operations[*number];
                    operation.returned.is_some() && operation.action.step(state) == Some(state)
                })
                .collect();
            if idle.is_empty() {
                break;
            }
            for number in &idle {
                self.mark(*number);
            }
            taken.extend(idle);
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

    /// What may be next, the best last: by their hints; then what returned, the earliest first; then what
    /// never did.
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
        let set = self.set ^ name(number);
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
        self.set ^= name(number);
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
            self.set ^= name(number);
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

fn name(number: usize) -> u64 {
    mix(number as u64 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(value: &str) -> Action {
        Action::Put {
            value: Value::of(value.as_bytes()),
        }
    }
    fn get(value: Option<&str>) -> Action {
        Action::Get {
            value: value.map(|value| Value::of(value.as_bytes())),
        }
    }
    fn append(suffix: &str, length: Option<u64>) -> Action {
        Action::Append {
            suffix: suffix.as_bytes().to_vec(),
            length,
        }
    }
    fn cas(expected: Option<&str>, new: Option<&str>, swapped: Option<bool>) -> Action {
        Action::CompareAndSwap {
            expected: expected.map(|value| Value::of(value.as_bytes())),
            new: new.map(|value| Value::of(value.as_bytes())),
            swapped,
        }
    }

    /// Operations as (invoked, returned, action); a return of 0 is unknown.
    fn verdict(history: &[(u64, u64, Action)]) -> Verdict {
        let history: Vec<Operation> = history
            .iter()
            .map(|(invoked, returned, action)| Operation {
                invoked: *invoked,
                returned: (*returned > 0).then_some(*returned),
                action: action.clone(),
                hint: None,
            })
            .collect();
        check(&history, 100_000)
    }

    #[track_caller]
    fn good(history: &[(u64, u64, Action)]) {
        assert!(
            matches!(verdict(history), Verdict::Linearizable(_)),
            "{:?}",
            verdict(history)
        );
    }
    #[track_caller]
    fn bad(history: &[(u64, u64, Action)]) {
        assert_eq!(verdict(history), Verdict::Violated);
    }

    #[test]
    fn one_after_the_other() {
        good(&[]);
        good(&[
            (1, 2, get(None)),
            (3, 4, put("a")),
            (5, 6, append("b", Some(2))),
            (7, 8, get(Some("ab"))),
            (
                9,
                10,
                Action::Delete {
                    existed: Some(true),
                },
            ),
            (11, 12, get(None)),
        ]);
    }

    #[test]
    fn a_read_of_an_old_value_after_the_write_returned_is_stale() {
        bad(&[(1, 2, put("a")), (3, 4, put("b")), (5, 6, get(Some("a")))]);
        bad(&[(1, 2, put("a")), (3, 4, get(None))]);
    }

    #[test]
    fn a_concurrent_read_may_see_either() {
        good(&[(1, 2, put("a")), (3, 6, put("b")), (4, 5, get(Some("a")))]);
        good(&[(1, 2, put("a")), (3, 6, put("b")), (4, 5, get(Some("b")))]);
    }

    #[test]
    fn reads_do_not_run_backwards() {
        bad(&[
            (1, 2, put("a")),
            (3, 10, put("b")),
            (4, 5, get(Some("b"))),
            (6, 7, get(Some("a"))),
        ]);
    }

    #[test]
    fn two_clients_do_not_see_two_orders() {
        bad(&[
            (1, 20, put("a")),
            (2, 21, put("b")),
            (3, 4, get(Some("a"))),
            (5, 6, get(Some("b"))),
            (7, 8, get(Some("a"))),
        ]);
    }

    #[test]
    fn an_unknown_write_may_happen_late_or_never() {
        good(&[(1, 0, put("a")), (2, 3, get(None)), (4, 5, get(None))]);
        good(&[(1, 0, put("a")), (2, 3, get(None)), (4, 5, get(Some("a")))]);
        bad(&[(1, 0, put("a")), (2, 3, get(Some("a"))), (4, 5, get(None))]);
        bad(&[(4, 0, put("a")), (2, 3, get(Some("a")))]);
    }

    #[test]
    fn a_double_append_shows() {
        bad(&[(1, 2, append("x", Some(1))), (3, 4, get(Some("xx")))]);
        bad(&[(1, 0, append("x", None)), (3, 4, get(Some("xx")))]);
        bad(&[(1, 2, append("x", Some(2)))]);
    }

    #[test]
    fn a_lost_write_shows() {
        bad(&[
            (1, 2, append("x", Some(1))),
            (3, 4, append("y", Some(2))),
            (5, 6, get(Some("y"))),
        ]);
    }

    #[test]
    fn compare_and_swap_is_one_step() {
        good(&[
            (1, 2, cas(None, Some("a"), Some(true))),
            (3, 8, cas(Some("a"), Some("b"), Some(true))),
            (4, 9, cas(Some("a"), Some("c"), Some(false))),
            (10, 11, get(Some("b"))),
        ]);
        bad(&[
            (1, 2, put("a")),
            (3, 8, cas(Some("a"), Some("b"), Some(true))),
            (4, 9, cas(Some("a"), Some("c"), Some(true))),
        ]);
        bad(&[(1, 2, cas(Some("a"), None, Some(true)))]);
        good(&[
            (1, 2, put("a")),
            (3, 0, cas(Some("a"), None, None)),
            (4, 5, get(None)),
        ]);
        bad(&[(
            1,
            2,
            Action::Delete {
                existed: Some(true),
            },
        )]);
    }

    #[test]
    fn the_budget_is_kept() {
        // Concurrent appends whose sum can't be: every order must be tried.
        let mut history: Vec<Operation> = (0..14)
            .map(|n| Operation {
                invoked: n + 1,
                returned: Some(100 + n),
                action: append(&"x".repeat(usize::try_from(n).unwrap() + 1), None),
                hint: None,
            })
            .collect();
        history.push(Operation {
            invoked: 200,
            returned: Some(201),
            action: get(Some("nothing like it")),
            hint: None,
        });
        assert_eq!(check(&history, 1_000), Verdict::Unknown);
    }

    #[test]
    fn wrong_hints_change_no_verdict() {
        let writes = [put("a"), append("b", None), append("c", None)];
        let mut history: Vec<Operation> = (0..3)
            .zip(writes)
            .map(|(n, action)| Operation {
                invoked: n + 1,
                returned: (n != 1).then_some(20 + n),
                action,
                hint: Some(9 - n),
            })
            .collect();
        let read = |value| Operation {
            invoked: 30,
            returned: Some(31),
            action: get(Some(value)),
            hint: Some(0),
        };
        history.push(read("abc"));
        assert!(matches!(check(&history, 1_000), Verdict::Linearizable(_)));
        history.pop();
        history.push(read("acbc"));
        assert_eq!(check(&history, 1_000), Verdict::Violated);
    }

    #[test]
    fn a_long_busy_history_is_quick() {
        // Eight clients append by turns, each overlapping the next ones.
        let mut text = String::new();
        let mut history = Vec::new();
        for n in 0..400u64 {
            let suffix = format!("<{n}>");
            text.push_str(&suffix);
            let returned = if n % 7 == 0 { None } else { Some(n * 10 + 78) };
            history.push(Operation {
                invoked: n * 10 + 1,
                returned,
                action: append(&suffix, None),
                hint: Some(n),
            });
            if n % 5 == 0 {
                history.push(Operation {
                    invoked: n * 10 + 3,
                    returned: Some(n * 10 + 79),
                    action: get(Some(&text)),
                    hint: None,
                });
            }
        }
        assert!(matches!(
            check(&history, 100_000),
            Verdict::Linearizable(steps) if steps < 5_000
        ));
    }
}
