//! Metrics of each keyspace. The busiest have series of their own, and the others share one, so that the number of series is bounded.
//!
//! Once a period, a keyspace that had more than twice as many calls as the quietest one with series takes their place. What was counted for that one is
//! added to the shared series, which therefore never fall.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::figures::set;

/// The most keyspaces with series of their own.
const MAX_NAMED: usize = 32;
/// The most other keyspaces whose calls are counted to choose among them.
const MAX_OTHERS: usize = 1_024;
/// The label of all others. No keyspace can have this name.
const REST: &str = "_rest";
/// The time after which the busiest are chosen anew.
const PERIOD: Duration = Duration::from_mins(1);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    keyspace: String,
}

/// A call that was answered or refused.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Used {
    /// True if the keyspace was over its share.
    pub(crate) refused: bool,
    pub(crate) answer_bytes: usize,
}

/// The part of a keyspace that the leader finds stored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stored {
    pub(crate) bytes: u64,
    pub(crate) revision: i64,
}

/// Metrics of each keyspace.
#[derive(Debug, Default)]
pub(crate) struct UsageMetrics {
    requests: Family<Of, Counter>,
    refused: Family<Of, Counter>,
    answer_bytes: Family<Of, Counter>,
    watches: Family<Of, Gauge>,
    stored_bytes: Family<Of, Gauge>,
    revision: Family<Of, Gauge>,
    table: Mutex<Table>,
}

/// Calls of this period.
#[derive(Debug)]
struct Table {
    /// Keyspaces with series.
    named: HashMap<String, u64>,
    others: HashMap<String, u64>,
    began: Instant,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            named: HashMap::new(),
            others: HashMap::new(),
            began: Instant::now(),
        }
    }
}

impl UsageMetrics {
    pub(super) fn register(&self, r: &mut Registry) {
        let counters = [
            (
                "keyspace_calls",
                "Calls of clients for a keyspace",
                &self.requests,
            ),
            (
                "keyspace_refused_calls",
                "Calls of clients that were refused because their keyspace was over its share",
                &self.refused,
            ),
        ];
        for (name, help, counter) in counters {
            r.register(name, help, counter.clone());
        }
        r.register_with_unit(
            "keyspace_answers",
            "Answers to clients of a keyspace",
            Unit::Bytes,
            self.answer_bytes.clone(),
        );
        r.register(
            "keyspace_open_watches",
            "Watches of a keyspace that this node serves",
            self.watches.clone(),
        );
        r.register_with_unit(
            "keyspace_stored",
            "Data of a keyspace that counts against its quota, on the leader",
            Unit::Bytes,
            self.stored_bytes.clone(),
        );
        r.register(
            "keyspace_revision",
            "The newest revision of a keyspace, on the leader",
            self.revision.clone(),
        );
    }

    /// Counts a call for a keyspace that exists.
    pub(crate) fn count(&self, keyspace: &str, used: Used) {
        let mut table = self.lock();
        if table.began.elapsed() >= PERIOD {
            table.began = Instant::now();
            self.choose(&mut table);
        }
        let label = table.note(keyspace);
        self.add(&label, used);
    }

    /// Counts a call for a keyspace that perhaps doesn't exist. A wrong name gets no series.
    pub(crate) fn count_unsure(&self, keyspace: &str, used: Used) {
        let is_named = self.lock().named.contains_key(keyspace);
        self.add(&of(if is_named { keyspace } else { REST }), used);
    }

    fn add(&self, label: &Of, used: Used) {
        self.requests.get_or_create(label).inc();
        if used.refused {
            self.refused.get_or_create(label).inc();
        }
        let bytes = used.answer_bytes as u64;
        self.answer_bytes.get_or_create(label).inc_by(bytes);
    }

    /// Gives series to those that were busier than the quietest which have them.
    fn choose(&self, table: &mut Table) {
        let mut others: Vec<_> = table.others.drain().collect();
        others.sort_unstable_by_key(|(_, calls)| std::cmp::Reverse(*calls));
        let mut named: Vec<_> = table
            .named
            .iter()
            .map(|(name, calls)| (name.clone(), *calls))
            .collect();
        named.sort_unstable_by_key(|(_, calls)| *calls);
        for ((busy, more), (quiet, fewer)) in others.into_iter().zip(named) {
            if more <= fewer.saturating_mul(2) {
                break;
            }
            table.named.remove(&quiet);
            table.named.insert(busy, 0);
            self.join_rest(&of(&quiet));
        }
        table.named.values_mut().for_each(|calls| *calls = 0);
    }

    /// Adds the series of a keyspace to those of the rest.
    fn join_rest(&self, label: &Of) {
        let rest = of(REST);
        for counters in [&self.requests, &self.refused, &self.answer_bytes] {
            let counted = counters.get_or_create(label).get();
            counters.remove(label);
            counters.get_or_create(&rest).inc_by(counted);
        }
        for gauges in [&self.watches, &self.stored_bytes, &self.revision] {
            gauges.remove(label);
        }
    }

    /// Publishes the watches of all keyspaces.
    pub(crate) fn publish_watches(&self, all: &[(Arc<str>, usize)]) {
        let table = self.lock();
        for name in table.named.keys() {
            self.watches.get_or_create(&of(name)).set(0);
        }
        let mut rest = 0;
        for (name, watches) in all {
            if table.named.contains_key(&**name) {
                set(&self.watches.get_or_create(&of(name)), *watches as u64);
            } else {
                rest += *watches as u64;
            }
        }
        set(&self.watches.get_or_create(&of(REST)), rest);
    }

    /// Publishes what this node finds as the leader; nothing if it doesn't lead.
    pub(crate) fn publish_stored(&self, all: &[(String, Stored)]) {
        let table = self.lock();
        self.stored_bytes.clear();
        self.revision.clear();
        let mut rest = 0_u64;
        for (name, stored) in all {
            if table.named.contains_key(name) {
                let label = of(name);
                set(&self.stored_bytes.get_or_create(&label), stored.bytes);
                self.revision.get_or_create(&label).set(stored.revision);
            } else {
                rest = rest.saturating_add(stored.bytes);
            }
        }
        set(&self.stored_bytes.get_or_create(&of(REST)), rest);
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Each change is complete when the lock is released, also by a panic.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Notes a call, and returns the label under which it counts.
    fn note(&mut self, keyspace: &str) -> Of {
        if let Some(calls) = self.named.get_mut(keyspace) {
            *calls += 1;
            return of(keyspace);
        }
        if self.named.len() < MAX_NAMED {
            self.named.insert(keyspace.to_owned(), 1);
            return of(keyspace);
        }
        if let Some(calls) = self.others.get_mut(keyspace) {
            *calls += 1;
        } else if self.others.len() < MAX_OTHERS {
            self.others.insert(keyspace.to_owned(), 1);
        }
        of(REST)
    }
}

fn of(keyspace: &str) -> Of {
    Of {
        keyspace: keyspace.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL: Used = Used {
        refused: false,
        answer_bytes: 10,
    };

    fn calls(metrics: &UsageMetrics, name: &str) -> u64 {
        metrics.requests.get_or_create(&of(name)).get()
    }

    /// Lets a period pass.
    fn next_period(metrics: &UsageMetrics) {
        metrics.choose(&mut metrics.lock());
    }

    #[test]
    fn the_busiest_have_series_and_the_sum_is_that_of_all_calls() {
        let metrics = UsageMetrics::default();
        for n in 0..2 * MAX_NAMED {
            metrics.count(&format!("t{n}"), CALL);
        }
        assert_eq!(calls(&metrics, "t0"), 1);
        assert_eq!(calls(&metrics, REST), MAX_NAMED as u64);
        for _ in 0..10 {
            metrics.count("busy", CALL);
        }
        next_period(&metrics);
        for _ in 0..5 {
            metrics.count("busy", CALL);
        }
        assert_eq!(calls(&metrics, "busy"), 5);
        assert_eq!(calls(&metrics, REST), MAX_NAMED as u64 + 10 + 1);
        assert_eq!(metrics.lock().named.len(), MAX_NAMED);
        // One that is little busier doesn't take the place of another.
        next_period(&metrics);
        metrics.count("busy", CALL);
        metrics.count("t1", CALL);
        let named = metrics.lock().named.contains_key("busy");
        next_period(&metrics);
        assert!(named && metrics.lock().named.contains_key("busy"));
    }

    #[test]
    fn wrong_names_and_many_names_take_no_memory() {
        let metrics = UsageMetrics::default();
        let refused = Used {
            refused: true,
            ..CALL
        };
        metrics.count_unsure("nobody", refused);
        assert!(metrics.lock().named.is_empty());
        for n in 0..2 * MAX_OTHERS {
            metrics.count(&format!("t{n}"), CALL);
        }
        assert_eq!(metrics.lock().others.len(), MAX_OTHERS);
        assert_eq!(metrics.refused.get_or_create(&of(REST)).get(), 1);
        metrics.count_unsure("t0", refused);
        assert_eq!(metrics.refused.get_or_create(&of("t0")).get(), 1);
    }

    #[test]
    fn gauges_of_keyspaces_without_series_are_summed() {
        let metrics = UsageMetrics::default();
        for n in 0..MAX_NAMED {
            metrics.count(&format!("t{n}"), CALL);
        }
        metrics.publish_watches(&[("t0".into(), 3), ("x".into(), 4), ("y".into(), 5)]);
        assert_eq!(metrics.watches.get_or_create(&of("t0")).get(), 3);
        assert_eq!(metrics.watches.get_or_create(&of(REST)).get(), 9);
        let stored = |bytes| Stored { bytes, revision: 7 };
        metrics.publish_stored(&[("t0".into(), stored(3)), ("x".into(), stored(4))]);
        assert_eq!(metrics.stored_bytes.get_or_create(&of("t0")).get(), 3);
        assert_eq!(metrics.revision.get_or_create(&of("t0")).get(), 7);
        assert_eq!(metrics.stored_bytes.get_or_create(&of(REST)).get(), 4);
        metrics.publish_stored(&[]);
        assert_eq!(metrics.stored_bytes.get_or_create(&of("t0")).get(), 0);
    }
}
