//! The queue of everything that goes to the replica's thread.
//!
//! Handlers add to the queue. The thread takes everything at once by swapping the queues, so that a hundred requests cost
//! one lock and at most one wake-up. Clients' requests are bounded by the [`crate::budget::Budget`], of which they hold a
//! permit. Peers' messages are bounded here: their stream waits.

use std::mem;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use raft::Envelope;
use tokio::sync::Notify;
use types::NodeId;

use crate::convert::peer;
use crate::machine::MachineRequest;
use crate::replies::Reply;

/// The maximum bytes of queued peers' messages. A stream that finds more waits before it adds its own.
const MAX_WAITING_BYTES: usize = 64 << 20;

/// A client's request with the target of its answer.
pub(crate) struct Submission {
    pub(crate) request: MachineRequest,
    pub(crate) reply: Reply,
}

/// The input since the last round.
#[derive(Default)]
pub(crate) struct Batch {
    pub(crate) envelopes: Vec<Envelope>,
    pub(crate) requests: Vec<Submission>,
    /// Peers whose connections broke.
    pub(crate) disconnected: Vec<NodeId>,
    /// Peers to whom snapshot chunks were lost, because a connection broke or could not be opened.
    pub(crate) snapshots_disconnected: Vec<NodeId>,
    /// True if a disk is nearly full; `None` if it was not checked.
    pub(crate) disk_low: Option<bool>,
    /// True if the replica must stop.
    pub(crate) stop: bool,
    envelope_bytes: usize,
}

#[derive(Default)]
struct State {
    batch: Batch,
    sleeping: bool,
    closed: bool,
}

/// The queue in front of the replica's thread.
#[derive(Default)]
pub(crate) struct Inbox {
    state: Mutex<State>,
    wake: Condvar,
    room: Notify,
}

impl Batch {
    /// Returns the number of inputs.
    pub(crate) fn len(&self) -> usize {
        self.envelopes.len()
            + self.requests.len()
            + self.disconnected.len()
            + self.snapshots_disconnected.len()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0 && self.disk_low.is_none() && !self.stop
    }

    /// Clears the batch and keeps its memory.
    fn clear(&mut self) {
        self.envelopes.clear();
        self.requests.clear();
        self.disconnected.clear();
        self.snapshots_disconnected.clear();
        self.disk_low = None;
        self.stop = false;
        self.envelope_bytes = 0;
    }
}

impl Inbox {
    /// Adds requests in one step. After [`Inbox::close`] they are dropped, and their callers' channels close.
    pub(crate) fn submit(&self, requests: impl IntoIterator<Item = Submission>) {
        self.add(|batch| batch.requests.extend(requests));
    }

    /// Adds messages of a peer in one step, once there is room.
    pub(crate) async fn receive(&self, envelopes: Vec<Envelope>) {
        let bytes: usize = envelopes.iter().map(peer::size).sum();
        loop {
            // Registered before the check, so that room made in between isn't missed.
            let room = self.room.notified();
            {
                let state = self.lock();
                if state.closed || state.batch.envelope_bytes < MAX_WAITING_BYTES {
                    break;
                }
            }
            room.await;
        }
        self.add(|batch| {
            batch.envelope_bytes += bytes;
            batch.envelopes.extend(envelopes);
        });
    }

    /// Tells the replica that the connection to a peer broke.
    pub(crate) fn disconnected(&self, node: NodeId) {
        self.add(|batch| batch.disconnected.push(node));
    }

    /// Tells the replica that snapshot chunks to a peer were lost.
    pub(crate) fn snapshots_disconnected(&self, node: NodeId) {
        self.add(|batch| batch.snapshots_disconnected.push(node));
    }

    /// Tells the replica whether a disk is nearly full.
    pub(crate) fn disk_low(&self, low: bool) {
        self.add(|batch| batch.disk_low = Some(low));
    }

    /// Tells the replica to stop.
    pub(crate) fn stop(&self) {
        self.add(|batch| batch.stop = true);
    }

    fn add(&self, change: impl FnOnce(&mut Batch)) {
        let mut state = self.lock();
        if state.closed {
            return;
        }
        change(&mut state.batch);
        // A wake-up is a system call, so it is made only if the thread sleeps, and only once.
        if mem::take(&mut state.sleeping) {
            drop(state);
            self.wake.notify_one();
        }
    }

    /// Swaps the input with the cleared `batch`. If there is none, waits for input or until `deadline`; without a deadline
    /// it doesn't wait.
    pub(crate) fn take(&self, batch: &mut Batch, deadline: Option<Instant>) {
        batch.clear();
        let mut state = self.lock();
        if let Some(deadline) = deadline {
            while state.batch.is_empty() {
                let now = Instant::now();
                if now >= deadline {
                    break;
                }
                state.sleeping = true;
                state = match self.wake.wait_timeout(state, deadline - now) {
                    Ok((state, _)) => state,
                    Err(poisoned) => poisoned.into_inner().0,
                };
                state.sleeping = false;
            }
        }
        mem::swap(&mut state.batch, batch);
        drop(state);
        if batch.envelope_bytes > 0 {
            self.room.notify_waiters();
        }
    }

    /// Drops all queued and all later input, because the replica has ended.
    pub(crate) fn close(&self) {
        let dropped = {
            let mut state = self.lock();
            state.closed = true;
            mem::take(&mut state.batch)
        };
        self.room.notify_waiters();
        drop(dropped);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The queue is consistent between any two statements, so a panic of another thread does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use raft::{Message, Term};

    use super::*;

    fn envelope() -> Envelope {
        Envelope {
            from: NodeId(1),
            to: NodeId(2),
            term: Term(1),
            message: Message::TimeoutNow,
        }
    }

    #[test]
    fn everything_is_taken_at_once() {
        let inbox = Inbox::default();
        let mut batch = Batch::default();
        inbox.take(&mut batch, None);
        assert_eq!(batch.len(), 0);
        inbox.disconnected(NodeId(1));
        inbox.disk_low(true);
        inbox.stop();
        inbox.take(&mut batch, Some(Instant::now() + Duration::from_mins(1)));
        assert_eq!(batch.disconnected, [NodeId(1)]);
        assert_eq!((batch.disk_low, batch.stop), (Some(true), true));
        inbox.take(&mut batch, None);
        assert!(batch.is_empty());
    }

    #[test]
    fn a_sleeper_is_woken_by_the_first_arrival() {
        let inbox = Arc::new(Inbox::default());
        let sleeper = {
            let inbox = Arc::clone(&inbox);
            std::thread::spawn(move || {
                let mut batch = Batch::default();
                inbox.take(&mut batch, Some(Instant::now() + Duration::from_mins(10)));
                batch.disconnected
            })
        };
        // The sleeper must see this long before its deadline, even if it does not sleep yet.
        inbox.disconnected(NodeId(7));
        assert_eq!(sleeper.join().unwrap(), [NodeId(7)]);
    }

    #[tokio::test]
    async fn peers_wait_for_room_and_a_closed_inbox_keeps_nobody() {
        let inbox = Arc::new(Inbox::default());
        inbox.receive(vec![envelope()]).await;
        inbox.lock().batch.envelope_bytes = MAX_WAITING_BYTES;
        let waiting = {
            let inbox = Arc::clone(&inbox);
            tokio::spawn(async move { inbox.receive(vec![envelope()]).await })
        };
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "there is no room");
        let mut batch = Batch::default();
        inbox.take(&mut batch, None);
        assert_eq!(batch.envelopes.len(), 1);
        waiting.await.unwrap();
        inbox.lock().batch.envelope_bytes = MAX_WAITING_BYTES;
        inbox.close();
        inbox.receive(vec![envelope()]).await;
        inbox.take(&mut batch, None);
        assert!(batch.is_empty(), "what comes after the end is dropped");
    }
}
