//! Connections for streams that stay open, such as watches.
//!
//! A server allows a connection only so many streams, and a call over one that is full waits without an error. So the streams of each
//! connection are counted, a further connection is made when all to a node are full, and their number is bounded. A connection is made
//! when the first stream needs it: a stream may be opened again, so it doesn't matter whether an attempt was sent.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::errors;
use api::v1::ErrorDetail;
use tonic::transport::Channel;

use super::channels::{ChannelError, Channels, Connector, Windows};
use crate::options::Network;

/// The most streams of a connection. A server may take twice as many, so that those which it hasn't seen end yet don't matter.
const MAX_STREAMS: usize = 512;
/// The window of a stream. It bounds what waits here for a client that doesn't fetch.
const STREAM_WINDOW_BYTES: u32 = 16 << 10;

/// The time after which a refused client should try again, in milliseconds.
const RETRY_AFTER_MS: u32 = 1_000;

/// A kind of streams. Each has connections of its own, because renewals mustn't wait behind watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamKind {
    Watch,
    Renewals,
}

/// The connections that a call may go over.
#[derive(Clone, Copy)]
pub(super) enum Connections<'a> {
    /// One connection to each node.
    Kept(&'a Channels),
    /// As many connections as the streams need.
    Counted(&'a StreamChannels),
}

impl Connections<'_> {
    /// Returns a connection, and the slot of a stream on it if they are counted.
    pub(super) async fn get(
        self,
        address: &str,
    ) -> Result<(Channel, Option<StreamSlot>), ChannelError> {
        match self {
            Self::Kept(channels) => Ok((channels.get(address).await?, None)),
            Self::Counted(channels) => {
                let (channel, slot) = channels.get(address)?;
                Ok((channel, Some(slot)))
            }
        }
    }

    /// Uses the connections to `address` no more, because one failed.
    pub(super) fn discard(self, address: &str) {
        match self {
            Self::Kept(channels) => channels.discard(address),
            Self::Counted(channels) => channels.table().discard(address),
        }
    }
}

/// Returns the error of a stream for which there is no connection.
pub(super) fn full(max_connections: usize) -> ErrorDetail {
    let what = "connections for streams to other nodes";
    errors::overloaded(what, max_connections as u64, RETRY_AFTER_MS)
}

/// Connections for streams of one kind.
pub(super) struct StreamChannels {
    connector: Connector,
    table: Arc<Mutex<Table>>,
}

/// A stream's place on its connection, given back on drop.
pub(crate) struct StreamSlot {
    id: u64,
    table: Arc<Mutex<Table>>,
}

/// The connections, and the numbers of their streams.
///
/// Invariants: there are at most `max_connections`, with at most `max_streams` each; one that is retired has streams.
struct Table {
    max_streams: usize,
    max_connections: usize,
    last_id: u64,
    open: Vec<Connection>,
}

struct Connection {
    id: u64,
    address: String,
    channel: Channel,
    streams: usize,
    /// True if it gets no more streams.
    retired: bool,
}

impl StreamChannels {
    /// Creates an empty set of at most `max_connections`, to servers that allow so many streams on each.
    pub(super) fn new(network: Network, server_streams: u32, max_connections: usize) -> Self {
        let half = usize::try_from(server_streams / 2).unwrap_or(MAX_STREAMS);
        let max_streams = half.clamp(1, MAX_STREAMS);
        let streams = u32::try_from(max_streams).unwrap_or(1);
        // A stream that nobody fetches doesn't hold up the others.
        let windows = Windows {
            stream_bytes: STREAM_WINDOW_BYTES,
            connection_bytes: streams.saturating_mul(STREAM_WINDOW_BYTES).max(64 << 10),
        };
        let table = Table {
            max_streams,
            max_connections: max_connections.max(1),
            last_id: 0,
            open: Vec::new(),
        };
        Self {
            connector: Connector { network, windows },
            table: Arc::new(Mutex::new(table)),
        }
    }

    fn get(&self, address: &str) -> Result<(Channel, StreamSlot), ChannelError> {
        let endpoint = self.connector.endpoint(address)?;
        let taken = self.table().take(address, || endpoint.connect_lazy());
        let (id, channel) = taken?;
        let table = Arc::clone(&self.table);
        Ok((channel, StreamSlot { id, table }))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    // Each change is complete when the lock is released, also by a panic.
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for StreamSlot {
    fn drop(&mut self) {
        lock(&self.table).give_back(self.id);
    }
}

impl Table {
    /// Takes a place on the connection to `address` with the fewest streams. Makes a connection if each is full.
    fn take(
        &mut self,
        address: &str,
        connect: impl FnOnce() -> Channel,
    ) -> Result<(u64, Channel), ChannelError> {
        let most = self.max_streams;
        let free = self.open.iter_mut().filter(|it| {
            let usable = !it.retired && it.address == address;
            usable && it.streams < most
        });
        if let Some(free) = free.min_by_key(|it| it.streams) {
            free.streams += 1;
            return Ok((free.id, free.channel.clone()));
        }
        if self.open.len() >= self.max_connections {
            let idle = self.open.iter().position(|it| it.streams == 0);
            self.open
                .remove(idle.ok_or(ChannelError::Full(self.max_connections))?);
        }
        self.last_id += 1;
        let channel = connect();
        self.open.push(Connection {
            id: self.last_id,
            address: address.to_owned(),
            channel: channel.clone(),
            streams: 1,
            retired: false,
        });
        Ok((self.last_id, channel))
    }

    /// Gives a place back. Of the connections to a node without streams, one is kept.
    fn give_back(&mut self, id: u64) {
        let Some(at) = self.open.iter().position(|it| it.id == id) else {
            return;
        };
        let Some(connection) = self.open.get_mut(at) else {
            return;
        };
        connection.streams = connection.streams.saturating_sub(1);
        if connection.streams > 0 {
            return;
        }
        let (retired, address) = (connection.retired, connection.address.clone());
        let mut others = self.open.iter();
        let spare = others.any(|it| it.id != id && !it.retired && it.address == address);
        if retired || spare {
            self.open.remove(at);
        }
    }

    /// Gives the connections to `address` no more streams.
    fn discard(&mut self, address: &str) {
        self.open
            .retain(|it| it.address != address || it.streams > 0);
        for connection in &mut self.open {
            connection.retired |= connection.address == address;
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::transport::Endpoint;

    use super::*;

    fn table(max_connections: usize) -> Table {
        Table {
            max_streams: 2,
            max_connections,
            last_id: 0,
            open: Vec::new(),
        }
    }

    fn take(table: &mut Table, address: &str) -> Option<u64> {
        let connect = || Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
        table.take(address, connect).ok().map(|(id, _)| id)
    }

    fn sizes(table: &Table) -> Vec<(u64, usize)> {
        table.open.iter().map(|it| (it.id, it.streams)).collect()
    }

    #[tokio::test]
    async fn a_further_connection_is_made_when_all_are_full_up_to_the_most() {
        let mut table = table(3);
        let taken: Vec<_> = (0..5).map(|_| take(&mut table, "a:1")).collect();
        assert_eq!(taken, [Some(1), Some(1), Some(2), Some(2), Some(3)]);
        assert_eq!(take(&mut table, "b:1"), None, "no connection is idle");
        assert_eq!(take(&mut table, "a:1"), Some(3));
        assert_eq!(take(&mut table, "a:1"), None);
        table.give_back(2);
        assert_eq!(take(&mut table, "a:1"), Some(2), "it has room");
        assert_eq!(sizes(&table), [(1, 2), (2, 2), (3, 2)]);
    }

    #[tokio::test]
    async fn connections_without_streams_make_room_and_all_but_one_are_dropped() {
        let mut table = table(2);
        for _ in 0..3 {
            take(&mut table, "a:1");
        }
        table.give_back(2);
        assert_eq!(sizes(&table), [(1, 2)], "it was not the only one");
        table.give_back(1);
        table.give_back(1);
        assert_eq!(sizes(&table), [(1, 0)]);
        assert_eq!(take(&mut table, "b:1"), Some(3));
        assert_eq!(take(&mut table, "c:1"), Some(4), "that to a:1 was idle");
        assert_eq!(take(&mut table, "d:1"), None);
    }

    #[tokio::test]
    async fn a_failed_connection_gets_no_more_streams_but_counts_until_its_last_ends() {
        let mut table = table(2);
        take(&mut table, "a:1");
        table.discard("a:1");
        assert_eq!(take(&mut table, "a:1"), Some(2));
        assert_eq!(take(&mut table, "b:1"), None);
        table.give_back(1);
        assert_eq!(take(&mut table, "b:1"), Some(3));
        table.give_back(2);
        table.discard("a:1");
        assert_eq!(sizes(&table), [(3, 1)]);
    }

    #[tokio::test]
    async fn a_slot_is_given_back_when_its_stream_ends() {
        let second = std::time::Duration::from_secs(1);
        let network = Network {
            connect_timeout: second,
            keepalive_interval: second,
            keepalive_timeout: second,
            handshake_timeout: second,
            stream_window_bytes: 1,
            connection_window_bytes: 1,
            peer_queue_bytes: 1,
            peer_frame_bytes: 1,
            snapshot_bytes_per_second: 0,
        };
        let channels = StreamChannels::new(network, 1_024, 4);
        assert_eq!(channels.table().max_streams, MAX_STREAMS);
        let slots: Vec<_> = (0..=MAX_STREAMS)
            .map(|_| channels.get("127.0.0.1:1").unwrap().1)
            .collect();
        assert_eq!(channels.table().open.len(), 2);
        drop(slots);
        assert_eq!(sizes(&channels.table()), [(2, 0)]);
        let few = StreamChannels::new(network, 10, 4);
        assert_eq!(few.table().max_streams, 5);
    }
}
