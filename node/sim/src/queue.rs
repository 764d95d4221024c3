//! A queue of events in the order of virtual time. Events of one moment come in the order in which they were scheduled.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Virtual time in microseconds since the world began.
pub type Micros = u64;

/// One simulated millisecond.
pub const MILLI: Micros = 1_000;
/// One simulated second.
pub const SECOND: Micros = 1_000_000;

/// The scheduled events and their times.
#[derive(Debug)]
pub struct Queue<E> {
    heap: BinaryHeap<Due<E>>,
    scheduled: u64,
}

#[derive(Debug)]
struct Due<E> {
    at: Micros,
    sequence: u64,
    event: E,
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Self {
            heap: BinaryHeap::new(),
            scheduled: 0,
        }
    }
}

impl<E> Queue<E> {
    /// Schedules `event` at `at`.
    pub fn push(&mut self, at: Micros, event: E) {
        let sequence = self.scheduled;
        self.scheduled += 1;
        self.heap.push(Due {
            at,
            sequence,
            event,
        });
    }

    /// Removes and returns the next event and its time.
    pub fn pop(&mut self) -> Option<(Micros, E)> {
        self.heap.pop().map(|due| (due.at, due.event))
    }
}

impl<E> Ord for Due<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        // Reversed, because the heap returns its greatest element first.
        (other.at, other.sequence).cmp(&(self.at, self.sequence))
    }
}
impl<E> PartialOrd for Due<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<E> PartialEq for Due<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl<E> Eq for Due<E> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_orders_and_ties_keep_their_order() {
        let mut queue = Queue::default();
        for (at, event) in [(5, 'c'), (1, 'a'), (5, 'd'), (2, 'b')] {
            queue.push(at, event);
        }
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, [(1, 'a'), (2, 'b'), (5, 'c'), (5, 'd')]);
    }
}
