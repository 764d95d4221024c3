//! Calls between groups that are kept for a while, so that requests and answers can arrive a second time, late.
//!
//! A network repeats a message within moments. A call that hung in a proxy, or an entry of a leader that was cut off, may come
//! seconds later, when the move that it meant is over and the shard moves again.

use std::collections::{BTreeMap, VecDeque};

use replica::{Request, RequestId};
use types::ShardId;

use crate::machine::{Outcome, Question};
use crate::network::HostId;
use crate::rng::SimRng;

/// The most calls that are kept of each subject. The oldest goes first.
const MOST: usize = 4;

/// The kind of a call, and the shard that it concerns, if it concerns one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Subject {
    pub(crate) kind: &'static str,
    pub(crate) shard: Option<ShardId>,
}

/// A call that was sent.
#[derive(Clone, Debug)]
pub(crate) struct LateCall {
    pub(crate) id: RequestId,
    pub(crate) to: HostId,
    pub(crate) request: Request<Question>,
    /// The answer, if there was one.
    pub(crate) answer: Option<Outcome>,
}

/// The calls that were sent lately. Rare kinds are kept as long as frequent ones, because a call is the more dangerous the older it is.
#[derive(Debug, Default)]
pub(crate) struct LateCalls(BTreeMap<Subject, VecDeque<LateCall>>);

impl LateCalls {
    /// Keeps a call.
    pub(crate) fn keep(&mut self, subject: Subject, call: LateCall) {
        let calls = self.0.entry(subject).or_default();
        if calls.len() >= MOST {
            calls.pop_front();
        }
        calls.push_back(call);
    }

    /// Keeps the answer to a call, if the call is kept.
    pub(crate) fn answered(&mut self, id: RequestId, answer: &Outcome) {
        let mut calls = self.0.values_mut().flatten();
        if let Some(call) = calls.find(|call| call.id == id) {
            call.answer = Some(answer.clone());
        }
    }

    /// Draws a call, of `shard` if that is given. All kinds are equally likely.
    pub(crate) fn draw(&self, shard: Option<ShardId>, rng: &mut SimRng) -> Option<LateCall> {
        let subjects = self.0.iter();
        let fits = subjects.filter(|(subject, _)| shard.is_none() || subject.shard == shard);
        let fits: Vec<&VecDeque<LateCall>> = fits.map(|(_, calls)| calls).collect();
        let calls = rng.pick(&fits)?;
        calls.get(rng.index(calls.len())).cloned()
    }
}
