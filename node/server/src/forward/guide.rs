//! Who is asked, and in which order: a guess who leads each group.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use types::{Gid, check_addresses};

/// Guesses that are kept; a guess that is missing costs a question more.
const MAX_GUESSES: usize = 16_384;

/// The last known leader of each group; [`Gid::NONE`] stands for the controllers.
#[derive(Debug, Default)]
pub(crate) struct Guide {
    leaders: Mutex<BTreeMap<Gid, String>>,
}

impl Guide {
    /// Whom to ask next of a group whose nodes are at `addresses`: the guess first, then the others in turn. `turn` is
    /// how many were asked and didn't help.
    pub(crate) fn pick(&self, gid: Gid, addresses: &[String], turn: usize) -> Option<String> {
        if let Some(guess) = self.lock().get(&gid) {
            return Some(guess.clone());
        }
        let at = turn.checked_rem(addresses.len())?;
        addresses.get(at).cloned()
    }

    /// `address` leads, as somebody says. Ignored unless it can be an address.
    pub(crate) fn believe(&self, gid: Gid, address: &str) {
        let address = address.to_owned();
        if check_addresses(std::slice::from_ref(&address)).is_err() {
            return;
        }
        let mut leaders = self.lock();
        if leaders.len() < MAX_GUESSES || leaders.contains_key(&gid) {
            leaders.insert(gid, address);
        }
    }

    /// `address` does not lead, or can't be reached.
    pub(crate) fn doubt(&self, gid: Gid, address: &str) {
        let mut leaders = self.lock();
        if leaders.get(&gid).is_some_and(|guess| guess == address) {
            leaders.remove(&gid);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Gid, String>> {
        // Nothing is left half done under this lock.
        self.leaders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guess_comes_first_until_it_is_doubted() {
        let guide = Guide::default();
        let addresses = ["a:1".to_owned(), "b:1".to_owned()];
        let pick = |turn| guide.pick(Gid(1), &addresses, turn);
        assert_eq!(pick(0).as_deref(), Some("a:1"));
        assert_eq!(pick(1).as_deref(), Some("b:1"));
        assert_eq!(pick(2).as_deref(), Some("a:1"));
        guide.believe(Gid(1), "c:1");
        assert_eq!(pick(1).as_deref(), Some("c:1"));
        guide.doubt(Gid(1), "b:1");
        assert_eq!(pick(1).as_deref(), Some("c:1"), "another one is doubted");
        guide.doubt(Gid(1), "c:1");
        assert_eq!(pick(1).as_deref(), Some("b:1"));
        guide.believe(Gid(1), "nonsense");
        assert_eq!(pick(1).as_deref(), Some("b:1"));
        assert_eq!(guide.pick(Gid(2), &[], 0), None);
    }
}
