//! The disk: files, directories, syncs and cuts, without a kernel.

use std::collections::BTreeMap;
use std::ffi::OsStr;

use fuser::Errno;

use crate::Survivors;
use crate::draw::Draw;
use crate::file::File;
use crate::names::{Entry, Ino, Names};

/// The number of the root directory.
pub(crate) const ROOT: Ino = 1;

/// A file or a directory. The entries of directories are in [`Names`].
#[derive(Clone, Debug)]
pub(crate) enum Node {
    File(File),
    Directory,
}

/// A disk with one file system.
///
/// While the power is off, every request fails with `EIO` and changes nothing.
#[derive(Debug)]
pub(crate) struct Disk {
    nodes: BTreeMap<Ino, Node>,
    names: Names,
    /// The number of the last file or directory that was made. Numbers are not reused.
    last_ino: Ino,
    /// The number of the last change of a file or a directory.
    last_change: u64,
    powered: bool,
    /// False if the disk only claims to sync.
    honest: bool,
}

impl Disk {
    pub(crate) fn new() -> Self {
        Self {
            nodes: BTreeMap::from([(ROOT, Node::Directory)]),
            names: Names::default(),
            last_ino: ROOT,
            last_change: 0,
            powered: true,
            honest: true,
        }
    }

    pub(crate) fn set_honest(&mut self, honest: bool) {
        self.honest = honest;
    }

    pub(crate) fn power_off(&mut self) {
        self.powered = false;
    }

    /// Forgets what was not synced, but for what survives by chance, and turns the power on.
    pub(crate) fn power_on(&mut self, survivors: Survivors, seed: u64) {
        let mut draw = Draw::new(seed);
        match survivors {
            Survivors::Synced => {
                self.names.forget();
                self.files().for_each(File::forget);
            }
            Survivors::InOrder => {
                let last = self.draw_pending(&mut draw);
                self.names.keep_until(last);
                self.files()
                    .for_each(|file| file.keep_until(last, &mut draw));
            }
            Survivors::Scattered => {
                self.names.scatter(&mut draw);
                self.files().for_each(|file| file.scatter(&mut draw));
            }
        }
        let reached = self.names.sweep(ROOT);
        self.nodes.retain(|ino, _| reached.contains(ino));
        self.powered = true;
    }

    fn files(&mut self) -> impl Iterator<Item = &mut File> {
        self.nodes.values_mut().filter_map(|node| match node {
            Node::File(file) => Some(file),
            Node::Directory => None,
        })
    }

    /// Returns the number of some change that is not durable, or 0.
    fn draw_pending(&mut self, draw: &mut Draw) -> u64 {
        let mut numbers = vec![0];
        self.names.list_pending(&mut numbers);
        self.files()
            .for_each(|file| file.list_pending(&mut numbers));
        let at = draw.up_to(numbers.len() - 1);
        numbers.get(at).copied().unwrap_or_default()
    }

    fn number(&mut self) -> u64 {
        self.last_change += 1;
        self.last_change
    }

    fn powered(&self) -> Result<(), Errno> {
        if self.powered {
            Ok(())
        } else {
            Err(Errno::EIO)
        }
    }

    pub(crate) fn node(&self, ino: Ino) -> Result<&Node, Errno> {
        self.powered()?;
        self.nodes.get(&ino).ok_or(Errno::ENOENT)
    }

    pub(crate) fn file(&self, ino: Ino) -> Result<&File, Errno> {
        match self.node(ino)? {
            Node::File(file) => Ok(file),
            Node::Directory => Err(Errno::EISDIR),
        }
    }

    fn file_mut(&mut self, ino: Ino) -> Result<&mut File, Errno> {
        self.powered()?;
        match self.nodes.get_mut(&ino).ok_or(Errno::ENOENT)? {
            Node::File(file) => Ok(file),
            Node::Directory => Err(Errno::EISDIR),
        }
    }

    pub(crate) fn lookup(&self, dir: Ino, name: &OsStr) -> Result<Ino, Errno> {
        self.powered()?;
        self.names.get(dir, name).ok_or(Errno::ENOENT)
    }

    pub(crate) fn list(&self, dir: Ino) -> Result<Vec<(std::ffi::OsString, Ino)>, Errno> {
        self.powered()?;
        Ok(self.names.list(dir))
    }

    pub(crate) fn make(&mut self, dir: Ino, name: &OsStr, node: Node) -> Result<Ino, Errno> {
        self.powered()?;
        if self.names.get(dir, name).is_some() {
            return Err(Errno::EEXIST);
        }
        self.last_ino += 1;
        let ino = self.last_ino;
        self.nodes.insert(ino, node);
        self.rename_entries(vec![entry(dir, name, Some(ino))]);
        Ok(ino)
    }

    /// Removes a name. The content stays for processes that have the file open; a cut frees it.
    pub(crate) fn remove(&mut self, dir: Ino, name: &OsStr, directory: bool) -> Result<(), Errno> {
        let ino = self.lookup(dir, name)?;
        match (self.node(ino)?, directory) {
            (Node::Directory, true) if !self.names.is_empty(ino) => return Err(Errno::ENOTEMPTY),
            (Node::Directory, true) | (Node::File(_), false) => {}
            (Node::Directory, false) => return Err(Errno::EISDIR),
            (Node::File(_), true) => return Err(Errno::ENOTDIR),
        }
        self.rename_entries(vec![entry(dir, name, None)]);
        Ok(())
    }

    pub(crate) fn rename(&mut self, from: (Ino, &OsStr), to: (Ino, &OsStr)) -> Result<(), Errno> {
        let ino = self.lookup(from.0, from.1)?;
        if from == to {
            return Ok(());
        }
        if let Some(replaced) = self.names.get(to.0, to.1)
            && matches!(self.node(replaced)?, Node::Directory)
            && !self.names.is_empty(replaced)
        {
            return Err(Errno::ENOTEMPTY);
        }
        self.rename_entries(vec![
            entry(to.0, to.1, Some(ino)),
            entry(from.0, from.1, None),
        ]);
        Ok(())
    }

    fn rename_entries(&mut self, entries: Vec<Entry>) {
        let number = self.number();
        self.names.change(number, entries);
    }

    pub(crate) fn write(&mut self, ino: Ino, offset: usize, bytes: &[u8]) -> Result<(), Errno> {
        let number = self.number();
        self.file_mut(ino)?.write(number, offset, bytes);
        Ok(())
    }

    pub(crate) fn resize(&mut self, ino: Ino, len: usize) -> Result<(), Errno> {
        let number = self.number();
        self.file_mut(ino)?.resize(number, len);
        Ok(())
    }

    /// Makes the data and the length of a file durable, but not its name.
    pub(crate) fn sync(&mut self, ino: Ino) -> Result<(), Errno> {
        let honest = self.honest;
        let file = self.file_mut(ino)?;
        if honest {
            file.sync();
        }
        Ok(())
    }

    /// Makes the entries of a directory durable.
    pub(crate) fn sync_dir(&mut self, dir: Ino) -> Result<(), Errno> {
        self.powered()?;
        if self.honest {
            self.names.sync(dir);
        }
        Ok(())
    }
}

fn entry(dir: Ino, name: &OsStr, ino: Option<Ino>) -> Entry {
    let name = name.to_owned();
    Entry { dir, name, ino }
}
