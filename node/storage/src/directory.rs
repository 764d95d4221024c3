//! The data directory: its lock, its paths, and files that are replaced atomically.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raft::StoreError;

use crate::error::{LogDamage, OpenError, StateDamage, translate_io};

/// The file that says that the state differs from the group's.
pub(crate) const DIVERGED: &str = "DIVERGED";

/// A data directory that this process has locked. Each owner of open files in it holds an [`Arc`] of this, so the lock
/// outlives the last open file.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    /// The kernel unlocks it when the process dies.
    lock: File,
}

impl Directory {
    /// Makes the directory if it does not exist, and locks it.
    pub(crate) fn lock(path: &Path) -> Result<Arc<Self>, OpenError> {
        let io = |action: &str, error: &io::Error| OpenError::Io {
            context: format!("can't {action} {}", path.display()),
            message: error.to_string(),
        };
        fs::create_dir_all(path).map_err(|error| io("make the data directory", &error))?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path.join("LOCK"))
            .map_err(|error| io("open the lock of", &error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(OpenError::Locked {
                    dir: path.to_owned(),
                });
            }
            Err(TryLockError::Error(error)) => return Err(io("lock", &error)),
        }
        Ok(Arc::new(Self {
            path: path.to_owned(),
            lock,
        }))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn log_dir(&self) -> PathBuf {
        self.path.join("log")
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.path.join("state")
    }

    /// Returns an open file on the directory's file system.
    pub(crate) fn file(&self) -> &File {
        &self.lock
    }

    /// Removes the stores of an interrupted first start.
    pub(crate) fn clear_stores(&self) -> Result<(), OpenError> {
        for dir in [self.log_dir(), self.state_dir()] {
            remove_tree(&dir).map_err(|error| self.failed("remove an unfinished start", error))?;
        }
        Ok(())
    }

    /// Refuses a directory without `IDENTITY` that holds anything else.
    pub(crate) fn check_empty(&self) -> Result<(), OpenError> {
        let mut foreign = None;
        let entries = fs::read_dir(&self.path)
            .map_err(|error| self.failed("list", translate_io("read_dir", &error)))?;
        for entry in entries {
            let entry =
                entry.map_err(|error| self.failed("list", translate_io("entry", &error)))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let (dir, found) = (self.path.clone(), name);
            match found.as_str() {
                // A new ext4 volume contains `lost+found`.
                "LOCK" | "IDENTITY.new" | "lost+found" => {}
                // `IDENTITY` was written before these.
                "FLOOR" | "GENESIS" | "CONFIGURATION" | "DIVERGED" | "log" | "state" => {
                    return Err(OpenError::NoIdentity { dir, found });
                }
                _ => foreign = Some(OpenError::Foreign { dir, found }),
            }
        }
        foreign.map_or(Ok(()), Err)
    }

    /// Refuses a directory whose state is known to differ from the group's.
    pub(crate) fn check_diverged(&self) -> Result<(), OpenError> {
        match fs::read(self.path.join(DIVERGED)) {
            Ok(found) => Err(OpenError::Diverged {
                dir: self.path.clone(),
                found: String::from_utf8_lossy(&found).into_owned(),
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(self.failed("read DIVERGED", translate_io("read", &error))),
        }
    }

    /// Turns an error of opening the log into an error of opening the directory.
    pub(crate) fn log_failed(&self, error: StoreError) -> OpenError {
        match error {
            StoreError::Damaged(text) => self.log_damaged(LogDamage::Content(text)),
            StoreError::OtherVersion(what) => OpenError::OtherVersion {
                dir: self.log_dir(),
                what,
            },
            error => self.failed("open the log", error),
        }
    }

    /// Turns an error of opening the state into an error of opening the directory.
    pub(crate) fn state_failed(&self, error: StoreError) -> OpenError {
        match error {
            StoreError::Damaged(text) => self.state_damaged(StateDamage::Database(text)),
            StoreError::OtherVersion(what) => OpenError::OtherVersion {
                dir: self.state_dir(),
                what,
            },
            error => self.failed("open the state", error),
        }
    }

    /// Returns the error for a database that another version of this program wrote.
    pub(crate) fn other_version(dir: PathBuf, found: u8, known: u8) -> OpenError {
        OpenError::Version {
            dir,
            found: found.to_string(),
            known: known.into(),
        }
    }

    pub(crate) fn log_damaged(&self, damage: LogDamage) -> OpenError {
        OpenError::LogDamaged {
            dir: self.path.clone(),
            damage,
        }
    }

    pub(crate) fn state_damaged(&self, damage: StateDamage) -> OpenError {
        OpenError::StateDamaged {
            dir: self.path.clone(),
            damage,
        }
    }

    /// Turns the error of an `action` in this directory into an error of opening.
    pub(crate) fn failed(&self, action: &str, error: StoreError) -> OpenError {
        match error {
            StoreError::Full(message) => OpenError::Full {
                dir: self.path.clone(),
                message,
            },
            StoreError::Io(message)
            | StoreError::Damaged(message)
            | StoreError::OtherVersion(message)
            | StoreError::Diverged(message) => OpenError::Io {
                context: format!("can't {action} in {}", self.path.display()),
                message,
            },
        }
    }
}

impl Drop for Directory {
    /// Unlocks the directory. Closing the file isn't enough: a process that this one starts holds copies of its open files
    /// until it runs its own program.
    fn drop(&mut self) {
        let _ = self.lock.unlock();
    }
}

/// Replaces the file `name` in `dir` by `content`, durably and atomically.
pub(crate) fn replace_file(dir: &Path, name: &str, content: &[u8]) -> Result<(), StoreError> {
    let (temporary, target) = (dir.join(format!("{name}.new")), dir.join(name));
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, &target)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|error| translate_io(&format!("can't write {}", target.display()), &error))
}

/// Makes the entries of `dir` durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|error| translate_io(&format!("can't sync {}", dir.display()), &error))
}

/// Removes a directory with all its contents. An absent directory is not an error.
pub(crate) fn remove_tree(dir: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(dir) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(translate_io(
            &format!("can't remove {}", dir.display()),
            &error,
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_directory_is_unlocked_though_a_started_process_holds_copies_of_its_files() {
        let root = tempfile::tempdir().unwrap();
        let directory = Directory::lock(root.path()).unwrap();
        let copy = directory.file().try_clone().unwrap();
        drop(directory);
        assert!(Directory::lock(root.path()).is_ok());
        drop(copy);
    }
}
