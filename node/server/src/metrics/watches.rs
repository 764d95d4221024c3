//! Metrics of watches and leases of keyspaces.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// Metrics of watches and leases of keyspaces.
#[derive(Debug, Default)]
pub(crate) struct WatchMetrics {
    pub(crate) streams: Gauge,
    pub(crate) watches: Gauge,
    pub(crate) feeds: Gauge,
    pub(crate) feed_bytes: Gauge,
    pub(crate) unfetched_bytes: Gauge,
    pub(crate) events: Counter,
    pub(crate) pages: Counter,
    pub(crate) leases: Gauge,
    pub(crate) expired_leases: Counter,
    pub(crate) clearing: Gauge,
}

impl WatchMetrics {
    pub(super) fn register(&self, r: &mut Registry) {
        let gauges = [
            (
                "keyspace_watch_streams",
                "Open watch streams, those that are passed on included",
                &self.streams,
            ),
            (
                "keyspace_watches",
                "Watches that this node serves",
                &self.watches,
            ),
            (
                "keyspace_feeds",
                "Keyspaces that are watched here",
                &self.feeds,
            ),
            (
                "keyspace_leases",
                "Leases whose timers run here, on the leader",
                &self.leases,
            ),
            (
                "keyspace_clearing",
                "Keyspaces of which something is to be cleared, on the leader",
                &self.clearing,
            ),
        ];
        for (name, help, gauge) in gauges {
            r.register(name, help, gauge.clone());
        }
        r.register_with_unit(
            "keyspace_feed",
            "Latest changes that are kept for watches",
            Unit::Bytes,
            self.feed_bytes.clone(),
        );
        r.register_with_unit(
            "keyspace_watch_unfetched",
            "Pages of the past and large answers of watches that clients have not fetched",
            Unit::Bytes,
            self.unfetched_bytes.clone(),
        );
        let counters = [
            (
                "keyspace_watch_events",
                "Events that were sent to watches",
                &self.events,
            ),
            (
                "keyspace_watch_pages",
                "Reads of the past for watches that were behind",
                &self.pages,
            ),
            (
                "keyspace_expired_leases",
                "Leases that this leader has let expire",
                &self.expired_leases,
            ),
        ];
        for (name, help, counter) in counters {
            r.register(name, help, counter.clone());
        }
    }
}
