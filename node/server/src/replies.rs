//! How answers get from the replica's thread back to the handlers that wait for them: as one list a round,
//! handed over with one wake-up, and given out on the network's own thread.

use std::mem;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Notify, oneshot};

use crate::budget::Permit;
use crate::machine::MachineResult;
use crate::services::answers::{AnswerQueue, Origin};

/// Where one answer goes. It holds the request's part of the budget until the answer is given out.
pub(crate) struct Reply {
    target: Target,
    permit: Permit,
}

enum Target {
    Call(oneshot::Sender<MachineResult>),
    Item(Origin),
}

impl Reply {
    /// To a handler that waits.
    pub(crate) fn call(permit: Permit) -> (Self, oneshot::Receiver<MachineResult>) {
        let (sender, receiver) = oneshot::channel();
        let target = Target::Call(sender);
        (Self { target, permit }, receiver)
    }

    /// To an item of a batch stream.
    pub(crate) fn item(permit: Permit, origin: Origin) -> Self {
        let target = Target::Item(origin);
        Self { target, permit }
    }
}

/// Replies that wait in the replica, by the number that the replica gives back.
#[derive(Default)]
pub(crate) struct PendingReplies {
    slots: Vec<Option<Reply>>,
    free: Vec<usize>,
}

impl PendingReplies {
    /// Keeps a reply; gives its number, which is used again after [`PendingReplies::remove`].
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

    /// The reply of a number, once.
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
    some: Notify,
}

impl Deliveries {
    /// Hands a round's answers over; `answers` is empty afterwards.
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
        self.some.notify_one();
    }

    /// Gives answers out for as long as it is polled.
    pub(crate) async fn give_out(&self) {
        let mut answers = Vec::new();
        loop {
            self.some.notified().await;
            self.give_out_into(&mut answers);
        }
    }

    /// Gives out what is there.
    pub(crate) fn give_out_now(&self) {
        self.give_out_into(&mut Vec::new());
    }

    fn give_out_into(&self, answers: &mut Vec<(Reply, MachineResult)>) {
        {
            let mut waiting = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
            mem::swap(&mut *waiting, answers);
        }
        let mut touched: Vec<Arc<AnswerQueue>> = Vec::new();
        for (reply, result) in answers.drain(..) {
            match reply.target {
                // A handler that gave up does not mind.
                Target::Call(sender) => drop(sender.send(result)),
                Target::Item(Origin {
                    stream,
                    id,
                    arrived,
                    again,
                }) => {
                    if stream.push(id, arrived, again, result) {
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
