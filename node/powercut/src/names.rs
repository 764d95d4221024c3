//! The directories: as processes see them, as they were synced, and the changes between both.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};

use crate::draw::Draw;

/// The number of a file or directory.
pub(crate) type Ino = u64;

/// The entries of all directories.
type Directories = BTreeMap<Ino, BTreeMap<OsString, Ino>>;

/// One name in one directory that from now on means `ino`, or nothing.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) dir: Ino,
    pub(crate) name: OsString,
    pub(crate) ino: Option<Ino>,
}

/// The names of all files and directories.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    now: Directories,
    durable: Directories,
    /// The changes that are not durable, in order, each with its number in the order of all changes of the disk. The entries
    /// of one change survive together: a rename is atomic.
    pending: Vec<(u64, Vec<Entry>)>,
}

impl Names {
    pub(crate) fn get(&self, dir: Ino, name: &OsStr) -> Option<Ino> {
        self.now.get(&dir)?.get(name).copied()
    }

    pub(crate) fn list(&self, dir: Ino) -> Vec<(OsString, Ino)> {
        let entries = self.now.get(&dir).into_iter().flatten();
        entries.map(|(name, ino)| (name.clone(), *ino)).collect()
    }

    pub(crate) fn is_empty(&self, dir: Ino) -> bool {
        self.now.get(&dir).is_none_or(BTreeMap::is_empty)
    }

    pub(crate) fn change(&mut self, number: u64, entries: Vec<Entry>) {
        apply(&mut self.now, &entries);
        self.pending.push((number, entries));
    }

    /// Makes the entries of a directory durable. A rename from or to another directory makes that one durable too.
    pub(crate) fn sync(&mut self, dir: Ino) {
        let mut dirs = BTreeSet::from([dir]);
        loop {
            let before = dirs.len();
            for (_, entries) in &self.pending {
                if entries.iter().any(|entry| dirs.contains(&entry.dir)) {
                    dirs.extend(entries.iter().map(|entry| entry.dir));
                }
            }
            if dirs.len() == before {
                break;
            }
        }
        self.keep(|_, entries| entries.iter().any(|entry| dirs.contains(&entry.dir)));
    }

    /// Appends the numbers of the changes that are not durable.
    pub(crate) fn list_pending(&self, numbers: &mut Vec<u64>) {
        numbers.extend(self.pending.iter().map(|(number, _)| number));
    }

    /// Forgets all changes that are not durable.
    pub(crate) fn forget(&mut self) {
        self.pending.clear();
        self.now.clone_from(&self.durable);
    }

    /// Keeps the changes up to number `last`.
    pub(crate) fn keep_until(&mut self, last: u64) {
        self.keep(|number, _| number <= last);
        self.forget();
    }

    /// Keeps some of the changes.
    pub(crate) fn scatter(&mut self, draw: &mut Draw) {
        self.keep(|_, _| draw.up_to(1) == 1);
        self.forget();
    }

    fn keep(&mut self, mut kept: impl FnMut(u64, &[Entry]) -> bool) {
        let durable = &mut self.durable;
        self.pending.retain(|(number, entries)| {
            let keep = kept(*number, entries);
            if keep {
                apply(durable, entries);
            }
            !keep
        });
    }

    /// Returns all that can be reached from `root`, and drops the other directories.
    pub(crate) fn sweep(&mut self, root: Ino) -> BTreeSet<Ino> {
        let mut reached = BTreeSet::from([root]);
        let mut left = vec![root];
        while let Some(dir) = left.pop() {
            for ino in self.now.get(&dir).into_iter().flat_map(BTreeMap::values) {
                if reached.insert(*ino) {
                    left.push(*ino);
                }
            }
        }
        self.now.retain(|dir, _| reached.contains(dir));
        self.durable.retain(|dir, _| reached.contains(dir));
        reached
    }
}

fn apply(directories: &mut Directories, entries: &[Entry]) {
    for entry in entries {
        let directory = directories.entry(entry.dir).or_default();
        match entry.ino {
            Some(ino) => directory.insert(entry.name.clone(), ino),
            None => directory.remove(&entry.name),
        };
    }
}
