//! Carries answers from the replica's thread back to the handlers that wait for them: as one list a round, handed over with
//! one wake-up, and delivered on the network's own thread.

use std::mem;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Notify, oneshot};

use crate::budget::Permit;
use crate::keyspaces::budgets::ProposalShare;
use crate::machine::MachineResult;
use crate::services::answers::{AnswerQueue, Origin};

/// The target of one answer. It holds the request's share of the budget until the answer is delivered.
pub(crate) struct Reply {
    target: Target,
    permit: Permit,
    /// The share of a write to a keyspace.
    _share: Option<Box<ProposalShare>>,
}

enum Target {
    Call(oneshot::Sender<MachineResult>),
    Item(Origin),
}

impl Reply {
    /// Creates a reply to a handler that waits.
    pub(crate) fn call(permit: Permit) -> (Self, oneshot::Receiver<MachineResult>) {
        Self::new(permit, None)
    }

    /// Creates a reply to a handler that waits for a write to a keyspace. It holds the write's share, also when the handler is gone.
    pub(crate) fn proposal(
        permit: Permit,
        share: ProposalShare,
    ) -> (Self, oneshot::Receiver<MachineResult>) {
        Self::new(permit, Some(Box::new(share)))
    }

    fn new(
        permit: Permit,
        share: Option<Box<ProposalShare>>,
    ) -> (Self, oneshot::Receiver<MachineResult>) {
        let (sender, receiver) = oneshot::channel();
        let reply = Self {
            target: Target::Call(sender),
            permit,
            _share: share,
        };
        (reply, receiver)
    }

    /// Creates a reply to an item of a batch stream.
    pub(crate) fn item(permit: Permit, origin: Origin) -> Self {
        Self {
            target: Target::Item(origin),
            permit,
            _share: None,
        }
    }
}

/// The replies to the requests in the replica, by request number.
#[derive(Default)]
pub(crate) struct PendingReplies {
    slots: Vec<Option<Reply>>,
    free: Vec<usize>,
}

impl PendingReplies {
    /// Stores a reply. Returns its number, which is reused after [`PendingReplies::remove`].
    pub(crate) fn insert(&mut self, reply: Reply) -> u64 {
        let Some(at) = self.free.pop() else {
            self.slots.push(Some(reply));
            return (self.slots.len() - 1) as u64;
        };
        if let Some(slot) = self.slots.get_mut(at) {
            *slot = Some(reply);
        }
        at as u64
    }

    /// Removes and returns the reply of a number.
    pub(crate) fn remove(&mut self, number: u64) -> Option<Reply> {
        let at = usize::try_from(number).ok()?;
        let reply = self.slots.get_mut(at)?.take()?;
        self.free.push(at);
        Some(reply)
    }
}

/// Answers on their way from the replica's thread to the network's.
#[derive(Default)]
pub(crate) struct Deliveries {
    answers: Mutex<Vec<(Reply, MachineResult)>>,
    ready: Notify,
}

impl Deliveries {
    /// Hands a round's answers over. `answers` is empty afterwards.
    pub(crate) fn hand_over(&self, answers: &mut Vec<(Reply, MachineResult)>) {
        if answers.is_empty() {
            return;
        }
        {
            let mut waiting = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.is_empty() {
                mem::swap(&mut *waiting, answers);
            } else {
                waiting.append(answers);
            }
        }
        self.ready.notify_one();
    }

    /// Delivers answers for as long as the future is polled.
    pub(crate) async fn deliver(&self) {
        let mut answers = Vec::new();
        loop {
            self.ready.notified().await;
            self.deliver_into(&mut answers);
        }
    }

    /// Delivers the answers that are there.
    pub(crate) fn deliver_now(&self) {
        self.deliver_into(&mut Vec::new());
    }

    fn deliver_into(&self, answers: &mut Vec<(Reply, MachineResult)>) {
        {
            let mut waiting = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
            mem::swap(&mut *waiting, answers);
        }
        let mut touched: Vec<Arc<AnswerQueue>> = Vec::new();
        for (reply, result) in answers.drain(..) {
            match reply.target {
                // The handler may have given up.
                Target::Call(sender) => drop(sender.send(result)),
                Target::Item(Origin {
                    stream,
                    id,
                    arrived,
                    forwardable,
                }) => {
                    if stream.push(id, arrived, forwardable, result) {
                        touched.push(stream);
                    }
                }
            }
            drop(reply.permit);
        }
        for stream in touched {
            stream.wake();
        }
    }
}
