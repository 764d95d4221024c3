//! The kernel's requests, translated into calls of [`Disk`].

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use crate::disk::{Disk, Node};
use crate::names::Ino;

/// Nothing but the kernel changes the files while they are mounted, so it may keep what it knows.
const KNOWN: Duration = Duration::from_hours(1);
/// The duration of a sync, about that of a fast disk. Most power cuts meet one.
const SYNC: Duration = Duration::from_millis(1);
const BLOCK: u32 = 4_096;
/// `FALLOC_FL_KEEP_SIZE` of `fallocate(2)`.
const KEEP_SIZE: i32 = 1;

/// A disk that a mount and its owner share.
pub(crate) type Shared = Arc<Mutex<Disk>>;

/// Locks the disk. A panic elsewhere has failed the test already.
pub(crate) fn lock(disk: &Shared) -> MutexGuard<'_, Disk> {
    disk.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The entries of open directories, by the number of their handle.
type Listings = BTreeMap<u64, Vec<(OsString, INodeNo, FileType)>>;

/// A mounted disk.
pub(crate) struct Mounted {
    disk: Shared,
    /// A listing doesn't change while it is read, though its directory may.
    listings: Mutex<Listings>,
    last_handle: AtomicU64,
}

impl Mounted {
    pub(crate) fn new(disk: Shared) -> Self {
        Self {
            disk,
            listings: Mutex::default(),
            last_handle: AtomicU64::new(0),
        }
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        lock(&self.disk)
    }

    fn attributes(&self, ino: Ino) -> Result<FileAttr, Errno> {
        Ok(attributes(ino, self.disk().node(ino)?))
    }

    fn made(&self, dir: INodeNo, name: &OsStr, node: Node) -> Result<FileAttr, Errno> {
        let ino = self.disk().make(dir.0, name, node)?;
        self.attributes(ino)
    }

    fn listing(&self, dir: INodeNo) -> Result<u64, Errno> {
        let mut listing = vec![
            (OsString::from("."), dir, FileType::Directory),
            // The kernel knows better what is above a root, and nobody here asks.
            (OsString::from(".."), dir, FileType::Directory),
        ];
        let disk = self.disk();
        for (name, ino) in disk.list(dir.0)? {
            listing.push((name, INodeNo(ino), kind(disk.node(ino)?)));
        }
        drop(disk);
        let handle = self.last_handle.fetch_add(1, Ordering::Relaxed) + 1;
        self.listings().insert(handle, listing);
        Ok(handle)
    }

    fn listings(&self) -> MutexGuard<'_, Listings> {
        self.listings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn kind(node: &Node) -> FileType {
    match node {
        Node::File(_) => FileType::RegularFile,
        Node::Directory => FileType::Directory,
    }
}

fn attributes(ino: Ino, node: &Node) -> FileAttr {
    let (size, perm) = match node {
        Node::File(file) => (size(file.len()), 0o644),
        Node::Directory => (0, 0o755),
    };
    let time = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(ino),
        size,
        blocks: size.div_ceil(BLOCK.into()) * u64::from(BLOCK / 512),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: kind(node),
        perm,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK,
        flags: 0,
    }
}

fn size(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

fn length(size: u64) -> Result<usize, Errno> {
    usize::try_from(size).map_err(|_| Errno::EFBIG)
}

fn done(reply: ReplyEmpty, outcome: Result<(), Errno>) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

fn entered(reply: ReplyEntry, outcome: Result<FileAttr, Errno>) {
    match outcome {
        Ok(attributes) => reply.entry(&KNOWN, &attributes, Generation(0)),
        Err(error) => reply.error(error),
    }
}

fn told(reply: ReplyAttr, outcome: Result<FileAttr, Errno>) {
    match outcome {
        Ok(attributes) => reply.attr(&KNOWN, &attributes),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for Mounted {
    fn lookup(&self, _: &Request, dir: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.disk().lookup(dir.0, name);
        entered(reply, found.and_then(|ino| self.attributes(ino)));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        told(reply, self.attributes(ino.0));
    }

    /// Changes the length. Owners, modes and times are not kept.
    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let resize = || -> Result<(), Errno> {
            match size {
                Some(size) => self.disk().resize(ino.0, length(size)?),
                None => Ok(()),
            }
        };
        told(reply, resize().and_then(|()| self.attributes(ino.0)));
    }

    fn mkdir(&self, _: &Request, dir: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        entered(reply, self.made(dir, name, Node::Directory));
    }

    fn unlink(&self, _: &Request, dir: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(reply, self.disk().remove(dir.0, name, false));
    }

    fn rmdir(&self, _: &Request, dir: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(reply, self.disk().remove(dir.0, name, true));
    }

    fn rename(
        &self,
        _: &Request,
        from: INodeNo,
        name: &OsStr,
        to: INodeNo,
        new: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !flags.is_empty() {
            return reply.error(Errno::EINVAL);
        }
        done(reply, self.disk().rename((from.0, name), (to.0, new)));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn create(
        &self,
        _: &Request,
        dir: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let file = Node::File(crate::file::File::default());
        match self.made(dir, name, file) {
            Ok(attributes) => reply.created(
                &KNOWN,
                &attributes,
                Generation(0),
                FileHandle(0),
                FopenFlags::FOPEN_KEEP_CACHE,
            ),
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let disk = self.disk();
        let read = || -> Result<&[u8], Errno> {
            let (offset, size) = (length(offset)?, length(size.into())?);
            Ok(disk.file(ino.0)?.read(offset, size))
        };
        match read() {
            Ok(bytes) => reply.data(bytes),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let write = || -> Result<u32, Errno> {
            self.disk().write(ino.0, length(offset)?, data)?;
            u32::try_from(data.len()).map_err(|_| Errno::EINVAL)
        };
        match write() {
            Ok(written) => reply.written(written),
            Err(error) => reply.error(error),
        }
    }

    /// A process has closed the file. That makes nothing durable.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        thread::sleep(SYNC);
        done(reply, self.disk().sync(ino.0));
    }

    fn opendir(&self, _: &Request, dir: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.listing(dir) {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            Err(error) => reply.error(error),
        }
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listings = self.listings();
        let Some(listing) = listings.get(&handle.0) else {
            return reply.error(Errno::EBADF);
        };
        for (next, (name, ino, kind)) in (1..).zip(listing) {
            if next > offset && reply.add(*ino, next, *kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.listings().remove(&handle.0);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, dir: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        thread::sleep(SYNC);
        done(reply, self.disk().sync_dir(dir.0));
    }

    /// Tells of a terabyte of free space: this disk is never full.
    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let blocks = 1 << 28;
        reply.statfs(blocks, blocks, blocks, blocks, blocks, BLOCK, 255, BLOCK);
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let grow = || -> Result<(), Errno> {
            let end = length(offset.saturating_add(len))?;
            let mut disk = self.disk();
            let grows = disk.file(ino.0)?.len() < end;
            if grows {
                disk.resize(ino.0, end)
            } else {
                Ok(())
            }
        };
        match mode {
            0 => done(reply, grow()),
            // Space is never short.
            KEEP_SIZE => reply.ok(),
            _ => reply.error(Errno::EOPNOTSUPP),
        }
    }
}
