//! A thin layer over `storage`: opens the data directory, and tells the replica when the disk is nearly full.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use raft::{Index, LogState, LogStore as _, StoreError};
use replica::FirstMembership;
use shardkv::Genesis;
use storage::{
    DAMAGE_ADVICE, DIVERGED_ADVICE, Disk, OpenError, Opened, StorageOptions, SyncObserver,
};
use tokio::time::{MissedTickBehavior, interval};

use crate::bootstrap::check_chosen;
use crate::bootstrap::genesis::{self, FileError};
use crate::exit::{ExitCode, Fatal};
use crate::inbox::Inbox;
use crate::metrics::Metrics;
use crate::options::Options;
use crate::progress::Progress;

/// The pause between two checks of the free space.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The number of checks in a row with enough space after which the disk no longer counts as full.
const CLEAR_AFTER: u32 = 3;

/// The content of a data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// The directory holds nothing that binds this node.
    Empty,
    /// The node adopted a first membership and did not finish, or joins a group and has not finished.
    Unfinished,
    /// The directory holds a member's log.
    Log,
}

/// An opened data directory.
pub(crate) struct Stores {
    pub(crate) opened: Opened,
    pub(crate) genesis: Option<FirstMembership>,
    pub(crate) content: Content,
}

/// Opens the data directory. Refuses a directory that is damaged or belongs to another cluster or group.
pub(crate) fn open(
    options: &Options,
    metrics: &Arc<Metrics>,
    progress: &Arc<Progress>,
) -> Result<Stores, Fatal> {
    let (observer, progress) = (Arc::clone(metrics), Arc::clone(progress));
    let storage = StorageOptions {
        log_write_buffer_bytes: options.disk.log_write_buffer_bytes,
        state_write_buffer_bytes: options.disk.state_write_buffer_bytes,
        block_cache_bytes: options.disk.block_cache_bytes,
        max_open_files: options.disk.max_open_files,
        low_space_bytes: options.disk.reserve_bytes,
        on_sync: Some(SyncObserver::new(move |took| {
            observer.fsync_seconds.observe(took.as_secs_f64());
            progress.mark_step();
        })),
        ..StorageOptions::default()
    };
    let mut opened = storage::open(&options.data_dir, &storage).map_err(refused)?;
    let genesis = genesis::read(&options.data_dir).map_err(genesis_refused)?;
    let held = opened.log.load().map_err(store_error)?;
    let content = content(
        &held,
        genesis.is_some() || opened.identity.binding().is_some(),
    );
    check_belonging(options, &opened, content)?;
    Ok(Stores {
        opened,
        genesis,
        content,
    })
}

fn content(held: &LogState, bound: bool) -> Content {
    if held.last_index > Index(0) {
        Content::Log
    } else if bound || *held != LogState::default() {
        Content::Unfinished
    } else {
        Content::Empty
    }
}

fn check_belonging(options: &Options, opened: &Opened, content: Content) -> Result<(), Fatal> {
    let Some(bound) = opened.identity.binding() else {
        if content == Content::Log {
            return Err(damaged("the data directory has a log but no cluster"));
        }
        return Ok(());
    };
    if bound.name != options.cluster_name || bound.gid != options.gid {
        let message = format!(
            "the data directory belongs to cluster {} group {}, but the options name cluster {} group {}: correct \
             --cluster-name and --gid, or give this node another directory and keep this one",
            bound.name, bound.gid.0, options.cluster_name, options.gid.0
        );
        return Err(Fatal::message(ExitCode::WrongIdentity, message));
    }
    match Genesis::load(&opened.state).map_err(store_error)? {
        Some(stored) => check_chosen(&options.genesis, &stored),
        None => Ok(()),
    }
}

fn refused(error: OpenError) -> Fatal {
    let code = match error {
        OpenError::Io { context, message } => {
            return Fatal::of_system(format!("{context}: {message}"), ExitCode::DiskFailed);
        }
        OpenError::Locked { .. } => ExitCode::InUse,
        OpenError::Foreign { .. } | OpenError::ForeignState { .. } => ExitCode::WrongIdentity,
        OpenError::Version { .. } | OpenError::OtherVersion { .. } => ExitCode::OtherVersion,
        OpenError::Diverged { .. } => ExitCode::Diverged,
        OpenError::Full { .. } => ExitCode::DiskFull,
        OpenError::NoIdentity { .. }
        | OpenError::IdentityDamaged { .. }
        | OpenError::LogDamaged { .. }
        | OpenError::StateDamaged { .. } => ExitCode::Damaged,
    };
    Fatal::new(code, error)
}

fn genesis_refused(error: FileError) -> Fatal {
    match error {
        FileError::Io(_) => Fatal::of_system(error, ExitCode::DiskFailed),
        FileError::Version(_) => Fatal::new(ExitCode::OtherVersion, error),
        FileError::Damaged(_) => damaged(error),
    }
}

/// Returns the error for stored data that are proven to be damaged.
fn damaged(what: impl Display) -> Fatal {
    Fatal::message(ExitCode::Damaged, format!("{what}. {DAMAGE_ADVICE}"))
}

/// Converts a failure of the stores to the error and exit code that end the process.
pub(crate) fn store_error(error: StoreError) -> Fatal {
    match error {
        StoreError::Damaged(_) => damaged(error),
        StoreError::OtherVersion(_) => Fatal::message(
            ExitCode::OtherVersion,
            format!("{error}. Start this node with that version; keep its data directory"),
        ),
        StoreError::Diverged(_) => {
            Fatal::message(ExitCode::Diverged, format!("{error}. {DIVERGED_ADVICE}"))
        }
        StoreError::Full(_) => Fatal::message(
            ExitCode::DiskFull,
            format!("{error}. Make space, and start again"),
        ),
        StoreError::Io(text) => {
            Fatal::of_system(format!("the stores failed: {text}"), ExitCode::DiskFailed)
        }
    }
}

/// Tells the replica when the disk is nearly full and when it has space again, for as long as the future is polled.
pub(crate) async fn watch(inbox: Arc<Inbox>, disk: Disk) {
    let mut look = interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut low = false;
    let mut clear = 0;
    loop {
        look.tick().await;
        match disk.space() {
            Ok(space) if space.low => {
                if !low {
                    let free = space.free_bytes;
                    tracing::warn!(
                        free,
                        "the disk is nearly full: only reads and deletes are served"
                    );
                }
                low = true;
                clear = 0;
            }
            Ok(space) => {
                clear += 1;
                if low && clear >= CLEAR_AFTER {
                    tracing::info!(free = space.free_bytes, "the disk has space again");
                    low = false;
                }
            }
            Err(error) => tracing::warn!("{error}"),
        }
        inbox.disk_low(low);
    }
}

#[cfg(test)]
mod tests {
    use raft::{EntryId, HardState, LogBatch, Term};
    use storage::{IdentityDamage, LogDamage, StateDamage};

    use crate::options::Invocation;

    use super::*;

    #[test]
    fn what_a_directory_holds_decides_how_a_node_starts() {
        let empty = LogState::default();
        assert_eq!(content(&empty, false), Content::Empty);
        assert_eq!(content(&empty, true), Content::Unfinished);
        let voted = LogState {
            hard_state: HardState {
                term: Term(3),
                vote: None,
            },
            ..LogState::default()
        };
        assert_eq!(
            content(&voted, false),
            Content::Unfinished,
            "it may have promised something"
        );
        let installing = LogState {
            installing: Some(EntryId::new(Term(1), Index(1))),
            ..LogState::default()
        };
        assert_eq!(content(&installing, true), Content::Unfinished);
        let log = LogState {
            last_index: Index(1),
            ..LogState::default()
        };
        assert_eq!(content(&log, true), Content::Log);
    }

    /// A round of the replica's thread may have many synced writes, and each takes long on a slow disk.
    #[test]
    fn each_synced_write_is_progress_once_the_thread_runs() {
        let data = tempfile::tempdir().unwrap();
        let path = data.path().to_str().unwrap();
        let args = ["shardkv-node", "--data-dir", path].map(Into::into);
        let Ok(Invocation::Run(options)) = crate::options::parse(args, "") else {
            panic!("the options are valid");
        };
        let progress = Arc::new(Progress::new(Duration::from_mins(1)));
        let mut stores = open(&options, &Arc::new(Metrics::new()), &progress).unwrap();
        let mut write = |term| {
            let hard_state = Some(HardState {
                term: Term(term),
                vote: None,
            });
            let batch = LogBatch {
                hard_state,
                ..LogBatch::default()
            };
            stores.opened.log.write(&batch).unwrap();
        };
        write(1);
        assert_eq!(progress.marked(), 0, "the thread doesn't run yet");
        progress.mark();
        let first = progress.marked();
        let mut terms = 2..100_000;
        while progress.marked() == first {
            write(terms.next().expect("no write is marked"));
        }
    }

    #[test]
    fn each_error_of_the_stores_has_its_code_and_only_damage_lets_a_disk_be_given_up() {
        let dir = || "/d".into();
        let io = |message: &str| OpenError::Io {
            context: "can't open the log in /d".to_owned(),
            message: message.to_owned(),
        };
        let log_damaged = OpenError::LogDamaged {
            dir: dir(),
            damage: LogDamage::FloorDamaged,
        };
        let state_damaged = OpenError::StateDamaged {
            dir: dir(),
            damage: StateDamage::Current,
        };
        let identity_damaged = OpenError::IdentityDamaged {
            dir: dir(),
            damage: IdentityDamage::Checksum,
        };
        let foreign = |found: &str| (dir(), found.to_owned());
        let (foreign_dir, thesis) = foreign("thesis.txt");
        let (lost_dir, log) = foreign("log");
        let version = OpenError::Version {
            dir: dir(),
            found: "2".to_owned(),
            known: 1,
        };
        let full = OpenError::Full {
            dir: dir(),
            message: "no space".to_owned(),
        };
        let no_identity = OpenError::NoIdentity {
            dir: lost_dir,
            found: log,
        };
        let foreign = OpenError::Foreign {
            dir: foreign_dir,
            found: thesis,
        };
        let foreign_state = OpenError::ForeignState {
            dir: dir(),
            maker: types::NodeId(1),
            node: types::NodeId(2),
        };
        let files = "IO error: While open a file: /d/log/1.sst: Too many open files";
        let rights = "IO error: While open a file: /d/log/1.sst: Permission denied";
        let memory = "IO error: While mmap: /d/log/1.log: Cannot allocate memory";
        let device = "IO error: While pread: /d/log/1.sst: Input/output error";
        let applying =
            "committed entries can't be applied, because the disk is full: 9 bytes are free";
        let syncing = "IO error: No space left on device: While fdatasync: 000012.log";
        let table = [
            (refused(log_damaged), ExitCode::Damaged),
            (refused(state_damaged), ExitCode::Damaged),
            (refused(identity_damaged), ExitCode::Damaged),
            (refused(no_identity), ExitCode::Damaged),
            (refused(foreign), ExitCode::WrongIdentity),
            (refused(foreign_state), ExitCode::WrongIdentity),
            (refused(version), ExitCode::OtherVersion),
            (refused(full), ExitCode::DiskFull),
            (refused(OpenError::Locked { dir: dir() }), ExitCode::InUse),
            (refused(io(files)), ExitCode::TooFewFiles),
            (refused(io(rights)), ExitCode::NoAccess),
            (refused(io(memory)), ExitCode::TooLittleMemory),
            (refused(io(device)), ExitCode::DiskFailed),
            (
                store_error(StoreError::Io(files.into())),
                ExitCode::TooFewFiles,
            ),
            (
                store_error(StoreError::Io(device.into())),
                ExitCode::DiskFailed,
            ),
            (
                store_error(StoreError::Full("x".into())),
                ExitCode::DiskFull,
            ),
            (
                store_error(StoreError::Io(applying.into())),
                ExitCode::DiskFull,
            ),
            (
                store_error(StoreError::Io(syncing.into())),
                ExitCode::DiskFull,
            ),
            (
                store_error(StoreError::Damaged("x".into())),
                ExitCode::Damaged,
            ),
            (
                genesis_refused(FileError::Io(std::io::Error::from_raw_os_error(13))),
                ExitCode::NoAccess,
            ),
        ];
        for (fatal, code) in table {
            let text = format!("{:#}", fatal.error);
            assert_eq!(fatal.code, code, "{text}");
            let gives_up = text.contains("empty directory");
            assert_eq!(gives_up, code == ExitCode::Damaged, "{text}");
            let keeps_first = text.find("Keep the disk") < text.find("empty directory");
            assert!(!gives_up || keeps_first, "{text}");
        }
    }
    #[test]
    fn a_state_of_a_newer_version_is_no_damage() {
        let fatal = refused(OpenError::OtherVersion {
            dir: "/d".into(),
            what: "it has the unknown tables versions".to_owned(),
        });
        let text = format!("{:#}", fatal.error);
        assert_eq!(fatal.code, ExitCode::OtherVersion, "{text}");
        assert!(text.contains("keep its data directory"), "{text}");
        assert!(!text.contains("empty directory"), "{text}");
    }

    #[test]
    fn a_state_that_differs_has_its_code_and_its_advice() {
        let found = "x".to_owned();
        let dir = "/d".into();
        for fatal in [
            refused(OpenError::Diverged { dir, found }),
            store_error(StoreError::Diverged("x".into())),
        ] {
            assert_eq!(fatal.code, ExitCode::Diverged);
            let text = fatal.error.to_string();
            let at = |part: &str| text.find(part).unwrap();
            assert!(at("keep a copy") < at("has a leader"), "{text}");
            assert!(at("has a leader") < at("empty directory"), "{text}");
        }
    }
}
