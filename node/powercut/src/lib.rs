//! A file system for tests that makes a power cut of a killed process.
//!
//! `kill -9` alone proves little about syncs: the kernel keeps what the process wrote, synced or not. A [`Disk`] is a file
//! system in the memory of the test (FUSE), which processes use like any other. It knows what they have synced. At a cut it
//! forgets the rest, and serves what survived:
//!
//! ```text
//! kill -9 of the processes      their requests that wait for the disk fail, and change nothing
//!     disk.power_off()          from here on every request fails
//! wait for their end
//!     disk.power_on(...)        forgets what was not synced, and mounts what survived
//! ```
//!
//! # What survives
//!
//! - A sync of a file makes its data and its length durable, but not its name. Only a sync of the directory does that; without
//!   it, a new file is gone, a renamed one has its old name, and a removed one is back. A rename is atomic.
//! - What was not synced may survive or not: see [`Survivors`]. A sector of 512 bytes survives whole or not at all.
//! - A sync takes a millisecond, so that most cuts meet one. A sync that the cut met has made nothing durable.
//!
//! File systems promise at least this (`ext4` promises more: the names in order, and those of synced files).
//!
//! # What it does not do
//!
//! Owners, modes, times, links and locks between mounts are not kept. The space of removed files is freed at the next cut, and
//! no disk is ever full. Kernel and processes decide what is written when, so a seed repeats what a cut draws and not the run.
//!
//! # How it is built
//!
//! `fuse` translates the kernel's requests into calls of `disk`, which knows no kernel. `names` has the directories, `file` the
//! content of a file.

mod disk;
mod draw;
mod file;
mod fuse;
mod names;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use fuser::{BackgroundSession, Config, MountOption};

use crate::fuse::{Mounted, Shared, lock};

/// Unsynced changes that survive a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survivors {
    /// Nothing.
    Synced,
    /// All changes up to one drawn from the seed, as with a journal. The last write is torn between two sectors.
    InOrder,
    /// Each change of a name, and each write to a sector after those before it, by chance.
    Scattered,
}

/// A mounted disk. It is unmounted when dropped, and its content is gone then.
#[derive(Debug)]
pub struct Disk {
    content: Shared,
    at: PathBuf,
    session: Option<BackgroundSession>,
}

impl Disk {
    /// Mounts an empty disk at a directory. Needs root and `/dev/fuse`.
    pub fn mount(at: &Path) -> io::Result<Self> {
        let mut disk = Self {
            content: Arc::new(Mutex::new(disk::Disk::new())),
            at: at.to_owned(),
            session: None,
        };
        disk.serve()?;
        Ok(disk)
    }

    fn serve(&mut self) -> io::Result<()> {
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("powercut".to_owned())];
        let mounted = Mounted::new(Arc::clone(&self.content));
        self.session = Some(fuser::spawn_mount(mounted, &self.at, &config)?);
        Ok(())
    }

    /// Cuts the power: from here on every request fails with `EIO` and changes nothing.
    pub fn power_off(&self) {
        lock(&self.content).power_off();
    }

    /// Forgets what was not synced, but for `survivors` drawn from `seed`, and mounts the disk again, because the kernel has a
    /// cache of it. Fails if a process has a file of it open.
    pub fn power_on(&mut self, survivors: Survivors, seed: u64) -> io::Result<()> {
        self.power_off();
        if let Some(session) = self.session.take() {
            match session.umount_and_join() {
                // The thread read a request after the kernel had closed the connection, which an unmount does.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                outcome => outcome?,
            }
        }
        lock(&self.content).power_on(survivors, seed);
        self.serve()
    }

    /// Chooses if syncs make anything durable. A disk that isn't honest claims it and does nothing; a test shows with it that
    /// it can find a loss.
    pub fn set_honest(&self, honest: bool) {
        lock(&self.content).set_honest(honest);
    }
}
