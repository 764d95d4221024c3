//! Shares: the part of a node's budget that one keyspace may hold, so that its neighbours always find room.
//!
//! What a keyspace holds is at most `p / (100 - p)` of what is free, where `p` is an option. So alone it gets `p` percent of a budget. Beside others it
//! gets less, and however many hold as much as they may, there is room for one more. The rule needs no list of active keyspaces and no
//! periods (Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches", 1998).
//!
//! A keyspace without room is refused at once ([`FairBudget::try_take`]), or waits behind its own calls, never behind those of a
//! neighbour ([`FairBudget::take`]).

use std::collections::{HashMap, VecDeque};
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

/// What a call or a watch holds, given back on drop.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<FairBudget>,
    keyspace: Arc<str>,
    amount: usize,
}

/// Invariants: `used` is the sum of what the keyspaces hold; each keyspace in `all` holds something or has calls that wait, and those that have are
/// in `waiting`, once each.
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

impl Bounds {
    /// Returns the most that one keyspace may hold at all.
    pub(crate) fn most(&self) -> usize {
        let share = self.total as u128 * u128::from(self.percent) / 100;
        let share = usize::try_from(share).unwrap_or(usize::MAX);
        share.min(self.max_each).max(1)
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
        let waits = state
            .all
            .get(keyspace)
            .is_some_and(|it| !it.waiting.is_empty());
        if waits || !self.fits(&state, keyspace, amount) {
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
        let granted = match self.take_or_wait(keyspace, amount)? {
            Ok(share) => return Ok(share),
            Err(granted) => granted,
        };
        match timeout(self.bounds.patience, granted).await {
            Ok(Ok(share)) => Ok(share),
            _ => Err(self.full()),
        }
    }

    /// Takes a share, or waits in the keyspace's queue.
    fn take_or_wait(
        self: &Arc<Self>,
        keyspace: &str,
        amount: usize,
    ) -> Result<Result<Share, oneshot::Receiver<Share>>, ErrorDetail> {
        let amount = amount.clamp(1, self.bounds.most());
        let mut state = self.lock();
        let name = state.name(keyspace);
        let fits = self.fits(&state, keyspace, amount);
        let holder = state.all.entry(Arc::clone(&name)).or_default();
        if holder.waiting.is_empty() && fits {
            return Ok(Ok(self.grant(&mut state, name, amount)));
        }
        let is_queued = !holder.waiting.is_empty();
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
            state.waiting.push_back(name);
        }
        Ok(Err(receiver))
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
            amount,
        }
    }

    /// Takes back a part of a share, and grants what calls wait for. Each keyspace whose calls wait has its turn.
    fn give_back(self: &Arc<Self>, keyspace: &Arc<str>, amount: usize) {
        // Those whose caller is gone are dropped without the lock, because a drop gives them back.
        let mut unwanted = Vec::new();
        let mut state = self.lock();
        state.used = state.used.saturating_sub(amount);
        if let Some(holder) = state.all.get_mut(keyspace) {
            holder.held = holder.held.saturating_sub(amount);
        }
        state.forget(keyspace);
        for _ in 0..state.waiting.len() {
            let Some(name) = state.waiting.pop_front() else {
                break;
            };
            self.grant_next(&mut state, &name, &mut unwanted);
            state.enqueue(name);
        }
        drop(state);
    }

    /// Grants as many of a keyspace's waiting calls as there is room for.
    fn grant_next(self: &Arc<Self>, state: &mut State, name: &Arc<str>, unwanted: &mut Vec<Share>) {
        loop {
            let Some(holder) = state.all.get_mut(name) else {
                return;
            };
            let Some(first) = holder.waiting.pop_front() else {
                return;
            };
            if first.granted.is_closed() {
                continue;
            }
            if !self.fits(state, name, first.amount) {
                if let Some(holder) = state.all.get_mut(name) {
                    holder.waiting.push_front(first);
                }
                return;
            }
            let share = self.grant(state, Arc::clone(name), first.amount);
            unwanted.extend(first.granted.send(share).err());
        }
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

impl State {
    /// Returns the name, of which there is one copy while the keyspace holds something.
    fn name(&self, keyspace: &str) -> Arc<str> {
        match self.all.get_key_value(keyspace) {
            Some((name, _)) => Arc::clone(name),
            None => Arc::from(keyspace),
        }
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
    pub(crate) fn shrink(&mut self, amount: usize) {
        let surplus = self.amount.saturating_sub(amount);
        if surplus > 0 {
            self.amount -= surplus;
            self.budget.give_back(&self.keyspace, surplus);
        }
    }

    /// Adds another share of the same keyspace.
    pub(crate) fn merge(&mut self, mut other: Self) {
        debug_assert!(Arc::ptr_eq(&self.budget, &other.budget) && self.keyspace == other.keyspace);
        self.amount += std::mem::take(&mut other.amount);
    }

    /// Returns what it holds.
    #[cfg(test)]
    pub(crate) fn amount(&self) -> usize {
        self.amount
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.amount > 0 {
            self.budget.give_back(&self.keyspace, self.amount);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn budget(total: usize, percent: u32) -> Arc<FairBudget> {
        FairBudget::new(Bounds {
            what: "units",
            total,
            max_each: usize::MAX,
            percent,
            max_waiting: 2,
            patience: Duration::from_secs(10),
        })
    }

    /// Takes one unit after the other until a keyspace is refused.
    fn fill(budget: &Arc<FairBudget>, keyspace: &str) -> Vec<Share> {
        std::iter::from_fn(|| budget.try_take(keyspace, 1).ok()).collect()
    }

    #[test]
    fn a_keyspace_alone_gets_its_percentage_and_a_newcomer_finds_room() {
        let budget = budget(900, 66);
        let first = fill(&budget, "a");
        assert_eq!(first.len(), 594);
        let mut all = Vec::new();
        for n in 0..5 {
            let share = fill(&budget, &format!("tenant-{n}"));
            assert!(!share.is_empty(), "keyspace {n} finds no room");
            all.push(share);
        }
        assert!(budget.used() < 900);
        assert!(
            budget.try_take("a", 1).is_err(),
            "it holds more than its part"
        );
        drop(first);
        assert!(budget.try_take("a", 1).is_ok());
        drop(all);
        assert_eq!(budget.used(), 0);
        assert!(budget.lock().all.is_empty(), "nothing held, nothing kept");
    }

    #[test]
    fn keyspaces_that_all_want_everything_end_with_equal_parts() {
        let budget = budget(1_000, 50);
        let mut held: Vec<Vec<Share>> = (0..4).map(|_| Vec::new()).collect();
        for _ in 0..1_000 {
            for (n, shares) in held.iter_mut().enumerate() {
                shares.extend(budget.try_take(&format!("t{n}"), 1));
            }
        }
        let lengths: Vec<_> = held.iter().map(Vec::len).collect();
        assert_eq!(lengths, [200, 200, 200, 200], "and as much is free");
    }

    #[test]
    fn a_bound_for_each_keyspace_holds_whatever_is_free() {
        let few = FairBudget::new(Bounds {
            max_each: 3,
            ..budget(1_000, 66).bounds
        });
        assert_eq!(fill(&few, "a").len(), 3);
        let whole = FairBudget::new(budget(10, 100).bounds);
        assert_eq!(fill(&whole, "a").len(), 10, "100 percent is the whole");
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_waits_behind_those_of_its_keyspace_only() {
        let budget = budget(100, 50);
        let first = budget.take("a", 50).await.unwrap();
        let mut second = Box::pin(budget.take("a", 30));
        assert!((&mut second).now_or_never().is_none(), "it waits");
        assert!(budget.try_take("a", 1).is_err(), "it would pass the second");
        assert!(budget.take("b", 25).now_or_never().is_some(), "a neighbour");
        let third = budget.take("a", 30);
        drop(first);
        assert!(second.await.is_ok());
        assert!(third.await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn calls_that_wait_are_bounded_and_end() {
        let budget = budget(100, 50);
        let held = budget.try_take("a", 50).unwrap();
        let mut waiting: Vec<_> = (0..2).map(|_| Box::pin(budget.take("a", 10))).collect();
        for call in &mut waiting {
            assert!(call.now_or_never().is_none());
        }
        let refused = budget.take("a", 10).now_or_never();
        assert!(refused.unwrap().is_err(), "two wait already");
        drop(waiting);
        let late = budget.take("a", 10).await;
        assert!(late.is_err(), "its time is over");
        drop(held);
        assert_eq!(budget.used(), 0);
        assert!(budget.lock().all.is_empty());
        assert!(budget.lock().waiting.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_share_that_nobody_waits_for_any_more_is_given_back() {
        let budget = budget(100, 50);
        let held = budget.try_take("a", 50).unwrap();
        let mut call = Box::pin(budget.take("a", 10));
        assert!((&mut call).now_or_never().is_none());
        drop(held);
        assert_eq!(budget.used(), 10, "it is granted");
        drop(call);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn shares_shrink_and_merge() {
        let budget = budget(100, 50);
        let mut share = budget.try_take("a", 40).unwrap();
        share.shrink(5);
        share.shrink(7);
        assert_eq!((share.amount(), budget.used()), (5, 5));
        share.merge(budget.try_take("a", 2).unwrap());
        assert_eq!((share.amount(), budget.used()), (7, 7));
        drop(share);
        assert_eq!(budget.used(), 0);
    }
}
