//! The causes of refused operations of the operating system.
//!
//! Such an error says something about the process, its rights or the machine. It proves nothing about the content of the
//! disk, so it is never damage. `RocksDB` passes an error of the operating system on as text only, so the text tells the cause.

/// The reason that the operating system refused an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The process, or the machine, has as many open files as it may.
    OpenFiles,
    /// The process may not use a file, or the file system is mounted read-only.
    Access,
    /// There is no memory, or no more threads may be started.
    Memory,
    /// No space is left, or the quota of the user is used up.
    Space,
    /// The device can't be read or written.
    Device,
    /// Any other reason.
    Other,
}

/// The texts for each cause: of the operating system, of glibc and of musl, and of this program for a full disk.
const TEXTS: [(&str, Cause); 15] = [
    ("Too many open files", Cause::OpenFiles),
    ("No file descriptors available", Cause::OpenFiles),
    ("Permission denied", Cause::Access),
    ("Operation not permitted", Cause::Access),
    ("Read-only file system", Cause::Access),
    ("Cannot allocate memory", Cause::Memory),
    ("Out of memory", Cause::Memory),
    ("Resource temporarily unavailable", Cause::Memory),
    ("the disk is full", Cause::Space),
    ("No space left on device", Cause::Space),
    ("Disk quota exceeded", Cause::Space),
    ("Input/output error", Cause::Device),
    ("I/O error", Cause::Device),
    ("Remote I/O error", Cause::Device),
    ("Stale file handle", Cause::Device),
];

impl Cause {
    /// Tells the cause from an error's text, of this crate, of `RocksDB` or of [`std::io::Error`].
    pub fn of(text: &str) -> Self {
        TEXTS
            .into_iter()
            .find(|(of_system, _)| text.contains(of_system))
            .map_or(Self::Other, |(_, cause)| cause)
    }

    /// Returns what to do, as one sentence. It never advises to give up a disk.
    pub fn cure(self) -> &'static str {
        match self {
            Self::OpenFiles => {
                "The data are not damaged: raise the process' limit of open files (ulimit -n, LimitNOFILE=), or lower \
                 --max-open-files and --max-connections, and start again"
            }
            Self::Access => {
                "The data are not damaged: mount the volume writable, give the files to the user of this process (on \
                 Kubernetes: fsGroup), and start again"
            }
            Self::Memory => {
                "The data are not damaged: raise the process' limits of memory and threads, or lower \
                 --block-cache-bytes and the write buffers, and start again"
            }
            Self::Space => {
                "Nothing proves that the data are damaged: keep the volume, make space, and start again"
            }
            Self::Device => {
                "Nothing proves that the data are damaged: keep the volume, look for errors of the device in the \
                 kernel's log, and start again when the device works"
            }
            Self::Other => {
                "Nothing proves that the data are damaged: keep the volume, remove the cause, and start again"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn the_systems_errors_name_their_cause() {
        let table = [
            (24, Cause::OpenFiles),
            (23, Cause::OpenFiles),
            (13, Cause::Access),
            (1, Cause::Access),
            (30, Cause::Access),
            (12, Cause::Memory),
            (11, Cause::Memory),
            (28, Cause::Space),
            (122, Cause::Space),
            (5, Cause::Device),
            (116, Cause::Device),
            (2, Cause::Other),
            (20, Cause::Other),
        ];
        for (number, cause) in table {
            let text = io::Error::from_raw_os_error(number).to_string();
            assert_eq!(Cause::of(&text), cause, "{text}");
            let cure = cause.cure();
            assert!(cure.contains("damaged: "), "{cure}");
        }
    }
}
