//! Shares: the part of a node's budget that one keyspace may hold, so that its neighbours always find room.
//!
//! What a keyspace holds is at most `p / (100 - p)` of what is free, where `p` is an option. So alone it gets `p` percent of a budget. Beside others it
//! gets less, and however many hold as much as they may, there is room for one more. The rule needs no list of active keyspaces and no
//! periods (Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches", 1998).
//!
//! A keyspace without room is refused at once ([`FairBudget::try_take`]), or waits behind its own calls, never behind those of a
//! neighbour ([`FairBudget::take`]).

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::errors;
use api::v1::ErrorDetail;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// The time after which a refused client should try again, in milliseconds.
const RETRY_AFTER_MS: u32 = 100;

/// The bounds of a budget.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// The name of what is counted, for errors.
    pub(crate) what: &'static str,
    pub(crate) total: usize,
    /// The most that one keyspace may hold, whatever is free.
    pub(crate) max_each: usize,
    /// The percentage that one keyspace may hold while no other holds anything.
    pub(crate) percent: u32,
    /// The most calls of one keyspace that wait.
    pub(crate) max_waiting: usize,
    /// The longest time that a call waits.
    pub(crate) patience: Duration,
}

/// A budget of a node that keyspaces share. Keyspaces that hold nothing take no memory in it.
#[derive(Debug)]
pub(crate) struct FairBudget {
    bounds: Bounds,
    state: Mutex<State>,
}

/// A share of a call or a watch, given back on drop.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<FairBudget>,
    keyspace: Arc<str>,
    amount: AtomicUsize,
}

/// Invariants: `used` is the sum of what the keyspaces hold; each keyspace in `all` holds something or has calls that wait, and those that have are
/// in `waiting`, once each; whenever the lock is free, no call at the front of a keyspace's queue fits, unless its caller goes at this moment.
#[derive(Debug, Default)]
struct State {
    used: usize,
    all: HashMap<Arc<str>, Holder>,
    /// The keyspaces whose calls wait, in the order of their turns.
    waiting: VecDeque<Arc<str>>,
}

#[derive(Debug, Default)]
struct Holder {
    held: usize,
    waiting: VecDeque<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    amount: usize,
    granted: oneshot::Sender<Share>,
}

/// A call that waits. When it goes, those behind it may fit.
#[derive(Debug)]
struct Waiting<'a> {
    budget: &'a Arc<FairBudget>,
    keyspace: Arc<str>,
    granted: oneshot::Receiver<Share>,
    /// True once it has its share.
    is_over: bool,
}

impl Bounds {
    /// Returns the most that one keyspace may hold at all.
    pub(crate) fn most(&self) -> usize {
        let share = self.total as u128 * u128::from(self.percent) / 100;
        let share = usize::try_from(share).unwrap_or(usize::MAX);
        share.min(self.max_each).max(1)
    }

    /// Returns the most that a keyspace may take beside another that holds the most.
    pub(crate) fn most_beside_another(&self) -> usize {
        let free = self.total.saturating_sub(self.most());
        let share = free as u128 * u128::from(self.percent) / 100;
        usize::try_from(share).unwrap_or(usize::MAX)
    }

    /// Returns true if a keyspace that would hold `held` of all that is `used` leaves enough free. One that is alone may hold the most.
    fn allow(&self, held: usize, used: usize) -> bool {
        let Some(free) = self.total.checked_sub(used) else {
            return false;
        };
        let percent = u128::from(self.percent.min(100));
        let leaves_room = held as u128 * (100 - percent) <= free as u128 * percent;
        held <= self.most() && (leaves_room || held == used)
    }
}

impl FairBudget {
    pub(crate) fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(Self {
            bounds,
            state: Mutex::default(),
        })
    }

    /// Takes a share, or refuses it at once.
    pub(crate) fn try_take(
        self: &Arc<Self>,
        keyspace: &str,
        amount: usize,
    ) -> Result<Share, ErrorDetail> {
        let amount = amount.clamp(1, self.bounds.most());
        let mut state = self.lock();
        if state.is_awaited(keyspace) || !self.fits(&state, keyspace, amount) {
            return Err(self.full());
        }
        let keyspace = state.name(keyspace);
        Ok(self.grant(&mut state, keyspace, amount))
    }

    /// Takes a share once there is room for it, in the order of the keyspace's calls. More than a keyspace may ever hold counts as that.
    pub(crate) async fn take(
        self: &Arc<Self>,
        keyspace: &str,
        amount: usize,
    ) -> Result<Share, ErrorDetail> {
        let mut waiting = match self.take_or_wait(keyspace, amount)? {
            Ok(share) => return Ok(share),
            Err(waiting) => waiting,
        };
        match timeout(self.bounds.patience, &mut waiting.granted).await {
            Ok(Ok(share)) => {
                waiting.is_over = true;
                Ok(share)
            }
            _ => Err(self.full()),
        }
    }

    /// Takes a share, or waits in the keyspace's queue.
    fn take_or_wait(
        self: &Arc<Self>,
        keyspace: &str,
        amount: usize,
    ) -> Result<Result<Share, Waiting<'_>>, ErrorDetail> {
        let amount = amount.clamp(1, self.bounds.most());
        let mut state = self.lock();
        let name = state.name(keyspace);
        let is_queued = state.is_awaited(keyspace);
        if !is_queued && self.fits(&state, keyspace, amount) {
            return Ok(Ok(self.grant(&mut state, name, amount)));
        }
        let holder = state.all.entry(Arc::clone(&name)).or_default();
        if holder.waiting.len() >= self.bounds.max_waiting {
            // Some may have given up.
            holder.waiting.retain(|it| !it.granted.is_closed());
        }
        if holder.waiting.len() >= self.bounds.max_waiting {
            state.forget(&name);
            return Err(self.full());
        }
        let (granted, receiver) = oneshot::channel();
        holder.waiting.push_back(Waiter { amount, granted });
        if !is_queued {
            state.waiting.push_back(Arc::clone(&name));
        }
        Ok(Err(Waiting {
            budget: self,
            keyspace: name,
            granted: receiver,
            is_over: false,
        }))
    }

    /// Returns what all keyspaces hold.
    pub(crate) fn used(&self) -> usize {
        self.lock().used
    }

    /// Returns what each keyspace holds.
    pub(crate) fn held(&self) -> Vec<(Arc<str>, usize)> {
        let state = self.lock();
        let held = state.all.iter();
        held.map(|(name, it)| (Arc::clone(name), it.held)).collect()
    }

    /// Returns the bounds.
    pub(crate) fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    fn fits(&self, state: &State, keyspace: &str, amount: usize) -> bool {
        let held = state.all.get(keyspace).map_or(0, |it| it.held);
        let (held, used) = (
            held.saturating_add(amount),
            state.used.saturating_add(amount),
        );
        self.bounds.allow(held, used)
    }

    fn grant(self: &Arc<Self>, state: &mut State, keyspace: Arc<str>, amount: usize) -> Share {
        state.used += amount;
        state.all.entry(Arc::clone(&keyspace)).or_default().held += amount;
        Share {
            budget: Arc::clone(self),
            keyspace,
            amount: AtomicUsize::new(amount),
        }
    }

    /// Takes back a part of a share, and grants what calls wait for.
    fn give_back(self: &Arc<Self>, keyspace: &Arc<str>, amount: usize) {
        // Those whose caller is gone are dropped without the lock, because a drop gives them back.
        let mut unwanted = Vec::new();
        let mut state = self.lock();
        state.used = state.used.saturating_sub(amount);
        if let Some(holder) = state.all.get_mut(keyspace) {
            holder.held = holder.held.saturating_sub(amount);
        }
        state.forget(keyspace);
        self.grant_waiting(&mut state, &mut unwanted);
        drop(state);
    }

    /// Takes in that a call of a keyspace waits no more, and grants what those behind it wait for.
    fn give_up(self: &Arc<Self>, keyspace: &Arc<str>) {
        let mut unwanted = Vec::new();
        let mut state = self.lock();
        if !state.is_awaited(keyspace) {
            state.forget(keyspace);
        }
        self.grant_waiting(&mut state, &mut unwanted);
        drop(state);
    }

    /// Grants what calls wait for until nothing more fits. A turn grants one call of a keyspace, whose next turn comes after those of all others. A
    /// keyspace that finds no room keeps its place. A grant makes room for nobody, so those before it need no second look.
    fn grant_waiting(self: &Arc<Self>, state: &mut State, unwanted: &mut Vec<Share>) {
        let mut at = 0;
        while let Some(name) = state.waiting.get(at).cloned() {
            if self.grant_first(state, &name, unwanted) {
                state.waiting.remove(at);
                state.enqueue(name);
            } else {
                at += 1;
            }
        }
    }

    /// Grants the first of a keyspace's calls. Returns false if there is no room for it.
    fn grant_first(
        self: &Arc<Self>,
        state: &mut State,
        name: &Arc<str>,
        unwanted: &mut Vec<Share>,
    ) -> bool {
        let Some(holder) = state.all.get_mut(name) else {
            return true;
        };
        holder.drop_gone();
        let Some(amount) = holder.waiting.front().map(|it| it.amount) else {
            return true;
        };
        if !self.fits(state, name, amount) {
            return false;
        }
        let share = self.grant(state, Arc::clone(name), amount);
        let holder = state.all.get_mut(name);
        match holder.and_then(|it| it.waiting.pop_front()) {
            Some(first) => unwanted.extend(first.granted.send(share).err()),
            None => unwanted.push(share),
        }
        true
    }

    fn full(&self) -> ErrorDetail {
        let Bounds { what, .. } = self.bounds;
        errors::overloaded(what, self.bounds.most() as u64, RETRY_AFTER_MS)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is complete when the lock is released, also by a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Holder {
    /// Drops the calls at the front whose caller is gone.
    fn drop_gone(&mut self) {
        let is_gone = |it: &Waiter| it.granted.is_closed();
        while self.waiting.front().is_some_and(is_gone) {
            self.waiting.pop_front();
        }
    }
}

impl State {
    /// Returns the name, of which there is one copy while the keyspace holds something.
    fn name(&self, keyspace: &str) -> Arc<str> {
        match self.all.get_key_value(keyspace) {
            Some((name, _)) => Arc::clone(name),
            None => Arc::from(keyspace),
        }
    }

    /// Returns true if calls of a keyspace wait. Those at the front whose caller is gone don't count, and are dropped.
    fn is_awaited(&mut self, keyspace: &str) -> bool {
        let holder = self.all.get_mut(keyspace);
        let Some(holder) = holder.filter(|it| !it.waiting.is_empty()) else {
            return false;
        };
        holder.drop_gone();
        if !holder.waiting.is_empty() {
            return true;
        }
        self.waiting.retain(|it| &**it != keyspace);
        false
    }

    /// Gives a keyspace whose calls wait another turn.
    fn enqueue(&mut self, name: Arc<str>) {
        let waits = self.all.get(&name).is_some_and(|it| !it.waiting.is_empty());
        if waits {
            self.waiting.push_back(name);
        } else {
            self.forget(&name);
        }
    }

    /// Forgets a keyspace that holds nothing and waits for nothing.
    fn forget(&mut self, name: &Arc<str>) {
        let gone = self
            .all
            .get(name)
            .is_some_and(|it| it.held == 0 && it.waiting.is_empty());
        if gone {
            self.all.remove(name);
        }
    }
}

impl Share {
    /// Gives back what is more than `amount`.
    pub(crate) fn shrink(&self, amount: usize) {
        let before = self.amount.fetch_min(amount, Ordering::Relaxed);
        let surplus = before.saturating_sub(amount);
        if surplus > 0 {
            self.budget.give_back(&self.keyspace, surplus);
        }
    }

    /// Adds another share of the same keyspace.
    pub(crate) fn merge(&mut self, mut other: Self) {
        debug_assert!(Arc::ptr_eq(&self.budget, &other.budget) && self.keyspace == other.keyspace);
        *self.amount.get_mut() += std::mem::take(other.amount.get_mut());
    }

    /// Returns what it holds.
    #[cfg(test)]
    pub(crate) fn amount(&self) -> usize {
        self.amount.load(Ordering::Relaxed)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            // A share that was sent already is given back when the receiver is dropped.
            self.granted.close();
            self.budget.give_up(&self.keyspace);
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let amount = *self.amount.get_mut();
        if amount > 0 {
            self.budget.give_back(&self.keyspace, amount);
        }
    }
}

#[cfg(test)]
mod tests;
