//! The assumed leader of a group.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use types::{Gid, check_addresses};

use crate::bug::{Bug, Bugs};

/// The most addresses of a group that are learnt beside those of the configuration.
pub const MAX_LEARNT: usize = 32;

/// The most groups whose leaders a [`LeaderTable`] remembers; a missing guess costs another request.
const MAX_GUESSES: usize = 16_384;

/// An assumed leader of a group: a guess.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// The group.
    pub gid: Gid,
    /// The address at which the leader is reached: `host:port`.
    pub address: Arc<str>,
    /// Its term, or 0 if another node named it.
    pub term: u64,
    /// The number of this guess. A failure is reported with its guess, so that news of an old guess never drops a new one.
    pub epoch: u64,
}

/// The current guess for one group, and the addresses that its members named.
///
/// # Invariants
///
/// - Each guess has a higher epoch than the one before.
/// - A guess is dropped only by a failure that is reported with it or with a later guess.
/// - At most [`MAX_LEARNT`] addresses are learnt, all of them valid.
#[derive(Debug, Default)]
pub struct GroupLeader {
    guess: Option<Leader>,
    epoch: u64,
    /// The highest term in which a leader was found.
    term: u64,
    learnt: BTreeSet<Arc<str>>,
    bugs: Bugs,
}

impl GroupLeader {
    /// Creates the state of a group of which nothing is known.
    pub fn new(bugs: Bugs) -> Self {
        Self {
            bugs,
            ..Self::default()
        }
    }

    /// Returns the guess.
    pub fn guess(&self) -> Option<&Leader> {
        self.guess.as_ref()
    }

    /// Returns the number of the latest guess.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Returns the highest term in which a leader was found.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Returns the addresses that were learnt beside those of the configuration.
    pub fn learnt(&self) -> &BTreeSet<Arc<str>> {
        &self.learnt
    }

    /// Learns addresses of members, as far as they are valid and within the bound.
    pub fn learn(&mut self, addresses: impl IntoIterator<Item = Arc<str>>) {
        for address in addresses {
            if self.learnt.len() < MAX_LEARNT && is_address(&address) {
                self.learnt.insert(address);
            }
        }
    }

    /// Forgets the learnt addresses, because a leader is about to name all members.
    pub fn forget_learnt(&mut self) {
        self.learnt.clear();
    }

    /// Makes `address` the guess: the node there claims to lead in `term`, or served as a leader does.
    pub fn found(&mut self, gid: Gid, address: Arc<str>, term: u64) -> Leader {
        self.term = self.term.max(term);
        self.epoch += 1;
        let leader = Leader {
            gid,
            address,
            term,
            epoch: self.epoch,
        };
        self.guess = Some(leader.clone());
        leader
    }

    /// Drops the guess `failed`, which does not lead or can't be reached. `hint` is the leader's address as that node named
    /// it, which becomes the next guess unless it is the address that just failed. Returns true if the hint is followed.
    pub fn failed(&mut self, failed: &Leader, hint: Option<&Arc<str>>) -> bool {
        if self
            .guess
            .as_ref()
            .is_some_and(|guess| guess.epoch > failed.epoch)
        {
            return false;
        }
        let hinted = self.guess.as_ref().is_some_and(|guess| guess.term == 0);
        if hinted && self.bugs.has(Bug::FollowsStaleHint) {
            return false;
        }
        self.guess = None;
        let Some(address) = hint else { return false };
        if !is_address(address) || *address == failed.address {
            return false;
        }
        self.learn([Arc::clone(address)]);
        self.found(failed.gid, Arc::clone(address), 0);
        true
    }
}

/// The last known leader of each group, for drivers that ask a group's nodes in turn. [`Gid::NONE`] stands for the controllers.
#[derive(Debug, Default)]
pub struct LeaderTable {
    groups: BTreeMap<Gid, GroupLeader>,
    bugs: Bugs,
}

impl LeaderTable {
    /// Creates an empty table.
    pub fn new(bugs: Bugs) -> Self {
        Self {
            groups: BTreeMap::new(),
            bugs,
        }
    }

    /// Returns the node to ask next of a group whose nodes are at `addresses`: the guess first, then the others in turn. `turn`
    /// is the number of nodes that failed before.
    pub fn next<A: AsRef<str>>(&self, gid: Gid, addresses: &[A], turn: usize) -> Option<Leader> {
        let group = self.groups.get(&gid);
        if let Some(guess) = group.and_then(GroupLeader::guess) {
            return Some(guess.clone());
        }
        let at = turn.checked_rem(addresses.len())?;
        Some(Leader {
            gid,
            address: addresses.get(at)?.as_ref().into(),
            term: 0,
            epoch: group.map_or(0, GroupLeader::epoch),
        })
    }

    /// Makes `address` the guess, because it served as a leader or a trusted source names it. Ignored unless it is a valid
    /// address.
    pub fn found(&mut self, gid: Gid, address: &str) {
        let known = self.groups.get(&gid);
        let guess = known.and_then(GroupLeader::guess);
        if guess.is_some_and(|guess| &*guess.address == address) || !is_address(address) {
            return;
        }
        if let Some(group) = self.group(gid) {
            group.found(gid, address.into(), 0);
        }
    }

    /// Drops a guess that failed, as [`GroupLeader::failed`] does. Returns true if the hint is followed.
    pub fn failed(&mut self, failed: &Leader, hint: Option<&Arc<str>>) -> bool {
        self.group(failed.gid)
            .is_some_and(|group| group.failed(failed, hint))
    }

    fn group(&mut self, gid: Gid) -> Option<&mut GroupLeader> {
        if self.groups.len() >= MAX_GUESSES && !self.groups.contains_key(&gid) {
            return None;
        }
        let bugs = self.bugs;
        let group = self.groups.entry(gid);
        Some(group.or_insert_with(|| GroupLeader::new(bugs)))
    }
}

/// Returns true if `address` can be `host:port`.
fn is_address(address: &str) -> bool {
    check_addresses(&[address.to_owned()]).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const G: Gid = Gid(1);

    fn hint(address: &str) -> Arc<str> {
        address.into()
    }

    #[test]
    fn a_hint_is_followed_and_its_address_is_learnt() {
        let mut group = GroupLeader::default();
        let old = group.found(G, "a:1".into(), 3);
        assert!(group.failed(&old, Some(&hint("c:3"))));
        assert_eq!(&*group.guess().unwrap().address, "c:3");
        assert_eq!(group.learnt().len(), 1);
    }

    #[test]
    fn news_of_an_old_guess_does_not_drop_a_new_one() {
        let mut group = GroupLeader::default();
        let old = group.found(G, "a:1".into(), 3);
        let new = group.found(G, "b:2".into(), 4);
        assert!(!group.failed(&old, Some(&hint("c:3"))));
        assert_eq!(group.guess(), Some(&new));
        group.failed(&new, None);
        assert_eq!(group.guess(), None);
    }

    #[test]
    fn hints_that_lead_nowhere_are_not_followed() {
        let mut group = GroupLeader::default();
        for useless in ["a:1", "no address"] {
            let old = group.found(G, "a:1".into(), 3);
            assert!(!group.failed(&old, Some(&hint(useless))), "{useless}");
            assert_eq!(group.guess(), None);
        }
    }

    #[test]
    fn a_hint_is_dropped_when_its_node_refuses() {
        let mut group = GroupLeader::default();
        let first = group.found(G, "a:1".into(), 3);
        group.failed(&first, Some(&hint("c:3")));
        let hinted = group.guess().unwrap().clone();
        group.failed(&hinted, None);
        assert_eq!(group.guess(), None, "a search may begin");
    }

    #[test]
    fn learnt_addresses_are_bounded() {
        let mut group = GroupLeader::default();
        group.learn((0..1_000).map(|n| format!("host-{n}:1").into()));
        assert_eq!(group.learnt().len(), MAX_LEARNT);
    }

    #[test]
    fn guesses_are_bounded() {
        let mut table = LeaderTable::default();
        let most = MAX_GUESSES as u64;
        let guess = |table: &LeaderTable, gid| {
            let next = table.next(Gid(gid), &["other:1"], 0);
            next.map(|it| it.address.to_string())
        };
        for gid in 1..=most + 1 {
            table.found(Gid(gid), "a:1");
        }
        assert_eq!(guess(&table, most).as_deref(), Some("a:1"));
        assert_eq!(guess(&table, most + 1).as_deref(), Some("other:1"));
        // A group that is known gets a new guess also then.
        let old = table.next(Gid(1), &["other:1"], 0).unwrap();
        table.failed(&old, None);
        table.found(Gid(1), "b:1");
        assert_eq!(guess(&table, 1).as_deref(), Some("b:1"));
    }

    #[test]
    fn a_guess_comes_first_until_it_fails() {
        let mut table = LeaderTable::default();
        let addresses = ["a:1", "b:1"];
        let next = |table: &LeaderTable, turn| {
            let next = table.next(G, &addresses, turn);
            next.map(|it| it.address.to_string())
        };
        assert_eq!(next(&table, 0).as_deref(), Some("a:1"));
        assert_eq!(next(&table, 1).as_deref(), Some("b:1"));
        assert_eq!(next(&table, 2).as_deref(), Some("a:1"));
        let old = table.next(G, &addresses, 1).unwrap();
        table.found(G, "c:1");
        assert_eq!(next(&table, 1).as_deref(), Some("c:1"));
        table.failed(&old, None);
        assert_eq!(next(&table, 1).as_deref(), Some("c:1"), "another failed");
        let guess = table.next(G, &addresses, 1).unwrap();
        table.failed(&guess, None);
        assert_eq!(next(&table, 1).as_deref(), Some("b:1"));
        table.found(G, "nonsense");
        assert_eq!(next(&table, 1).as_deref(), Some("b:1"));
        assert_eq!(table.next::<&str>(Gid(2), &[], 0), None);
    }
}
