//! Tests that open and refuse data directories.

use std::fs;
use std::path::Path;

use raft::LogStore;
use replica::StateStore;
use shardkv_storage::{BindError, OpenError, StorageOptions, SyncObserver, set_diverged};
use types::{ClusterId, Gid};

use crate::support::{applied, batch, copy_tree, open, put};

#[test]
fn a_directory_keeps_its_identity_and_no_two_share_one() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = open(one.path()).unwrap().identity.node();
    assert_ne!(first.0, 0);
    assert_eq!(open(one.path()).unwrap().identity.node(), first);
    assert_ne!(open(two.path()).unwrap().identity.node(), first);
}

#[test]
fn two_processes_cannot_share_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open(dir.path()).unwrap();
    assert!(matches!(open(dir.path()), Err(OpenError::Locked { .. })));
    // Each part of an opened directory holds the lock.
    let mut state = opened.state;
    // Commit more than the snapshot's thread reads ahead.
    for index in 1..=8 {
        state
            .commit(put(index, vec![7; 300_000]), applied(index))
            .unwrap();
    }
    drop((opened.log, opened.identity, opened.disk));
    let snapshot = state.snapshot().unwrap();
    drop(state);
    assert!(matches!(open(dir.path()), Err(OpenError::Locked { .. })));
    drop(snapshot);
    assert!(open(dir.path()).is_ok());
}

/// Somebody copies the state of another node, or of another group: the log must not be applied to it.
#[test]
fn the_state_of_another_node_is_refused() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for dir in [&one, &two] {
        let mut opened = open(dir.path()).unwrap();
        opened.log.write(&batch(1..=3, 10)).unwrap();
        opened.state.commit(put(1, "v"), applied(3)).unwrap();
        opened.state.flush().unwrap();
        opened.state.wait_flushed().unwrap();
    }
    let own = two.path().join("own");
    fs::rename(two.path().join("state"), &own).unwrap();
    copy_tree(&one.path().join("state"), &two.path().join("state"));
    let refused = open(two.path()).err().unwrap();
    assert!(
        matches!(refused, OpenError::ForeignState { .. }),
        "{refused}"
    );
    fs::remove_dir_all(two.path().join("state")).unwrap();
    fs::rename(own, two.path().join("state")).unwrap();
    assert!(open(two.path()).is_ok(), "its own is as good as before");
}

/// A newer version made a table. The state isn't damaged, and opens again where the table is known, or gone.
#[test]
fn a_state_with_tables_of_a_newer_version_is_refused_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = open(dir.path()).unwrap();
    opened.log.write(&batch(1..=3, 10)).unwrap();
    opened.state.commit(put(1, "v"), applied(3)).unwrap();
    opened.state.flush().unwrap();
    drop(opened);
    let path = dir.path().join("state/1");
    let engine = rocksdb::Options::default();
    let state = || {
        let names = rocksdb::DB::list_cf(&engine, &path).unwrap();
        rocksdb::DB::open_cf(&engine, &path, names).unwrap()
    };
    state().create_cf("versions", &engine).unwrap();
    for _ in 0..2 {
        let refused = open(dir.path()).err().unwrap();
        let is_newer =
            matches!(&refused, OpenError::OtherVersion { what, .. } if what.contains("versions"));
        assert!(is_newer, "{refused}");
    }
    state().drop_cf("versions").unwrap();
    let opened = open(dir.path()).unwrap();
    assert_eq!(opened.state.applied(), applied(3));
}

/// A newer version wrote the position. The state isn't damaged.
#[test]
fn a_position_of_a_newer_version_is_refused_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = open(dir.path()).unwrap();
    opened.log.write(&batch(1..=3, 10)).unwrap();
    opened.state.commit(put(1, "v"), applied(3)).unwrap();
    opened.state.flush().unwrap();
    drop(opened);
    let path = dir.path().join("state/1");
    let set_version = |version: u8| {
        let engine = rocksdb::Options::default();
        let names = rocksdb::DB::list_cf(&engine, &path).unwrap();
        let state = rocksdb::DB::open_cf(&engine, &path, names).unwrap();
        let mut position = state.get("applied").unwrap().unwrap();
        let before = std::mem::replace(&mut position[0], version);
        state.put("applied", position).unwrap();
        before
    };
    let known = set_version(4);
    let refused = open(dir.path()).err().unwrap();
    let is_newer =
        matches!(&refused, OpenError::OtherVersion { what, .. } if what.contains("version 4"));
    assert!(is_newer, "{refused}");
    set_version(known);
    let opened = open(dir.path()).unwrap();
    assert_eq!(opened.state.applied(), applied(3));
}

#[test]
fn a_binding_is_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let mut identity = open(dir.path()).unwrap().identity;
    assert_eq!(identity.binding(), None);
    for name in ["", "two\nlines", &"x".repeat(257)] {
        assert!(matches!(
            identity.bind(ClusterId(7), Gid(1), name),
            Err(BindError::BadName { .. })
        ));
    }
    identity.bind(ClusterId(7), Gid(1), "prod").unwrap();
    drop(identity);
    let mut identity = open(dir.path()).unwrap().identity;
    identity.bind(ClusterId(7), Gid(1), "prod").unwrap();
    for (cluster, gid, name) in [(8, 1, "prod"), (7, 2, "prod"), (7, 1, "test")] {
        assert!(matches!(
            identity.bind(ClusterId(cluster), Gid(gid), name),
            Err(BindError::Mismatch { .. })
        ));
    }
    let binding = identity.binding().unwrap();
    assert_eq!(
        (binding.cluster, binding.gid, binding.name.as_str()),
        (ClusterId(7), Gid(1), "prod")
    );
}

#[test]
fn data_without_an_identity_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()).unwrap());
    fs::remove_file(dir.path().join("IDENTITY")).unwrap();
    let Err(error) = open(dir.path()) else {
        panic!("a directory without an identity was opened");
    };
    assert!(matches!(error, OpenError::NoIdentity { .. }), "{error}");
    let other = tempfile::tempdir().unwrap();
    fs::write(other.path().join("thesis.txt"), "mine").unwrap();
    assert!(matches!(
        open(other.path()),
        Err(OpenError::Foreign { found, .. }) if found == "thesis.txt"
    ));
    assert!(other.path().join("thesis.txt").exists());
}

#[test]
fn a_damaged_or_foreign_identity_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()).unwrap());
    let path = dir.path().join("IDENTITY");
    let good = fs::read_to_string(&path).unwrap();
    fs::write(&path, good.replace("format 1", "format 2")).unwrap();
    assert!(matches!(
        open(dir.path()),
        Err(OpenError::Version { found, .. }) if found == "2"
    ));
    fs::write(&path, good.replace("node ", "node 1")).unwrap();
    assert!(matches!(
        open(dir.path()),
        Err(OpenError::IdentityDamaged { .. })
    ));
    fs::write(&path, good).unwrap();
    assert!(open(dir.path()).is_ok());
}

#[test]
fn an_interrupted_first_start_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(dir.path()).unwrap().identity.node();
    // Simulate half-made stores: the identity says that the node is not initialised.
    let path = dir.path().join("IDENTITY");
    let text = fs::read_to_string(&path).unwrap();
    let body = text[..text.find("checksum").unwrap()].replace("initialised yes", "initialised no");
    let checksum = crc32fast::hash(body.as_bytes());
    fs::write(&path, format!("{body}checksum {checksum:08x}\n")).unwrap();
    fs::remove_dir_all(dir.path().join("state")).unwrap();
    fs::remove_file(dir.path().join("log").join("CURRENT")).unwrap();
    assert_eq!(open(dir.path()).unwrap().identity.node(), node);
    assert_eq!(open(dir.path()).unwrap().identity.node(), node);
}

/// A newer version, or another node, may need what this node doesn't know.
#[test]
fn a_refused_state_is_left_as_it_is() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for dir in [one.path(), two.path()] {
        drop(open(dir).unwrap());
        fs::create_dir_all(dir.join("state/2/deep")).unwrap();
    }
    let states = |dir: &Path| {
        let entries = fs::read_dir(dir.join("state")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| name != "CURRENT").collect();
        names.sort();
        names
    };
    // The state of the second in the directory of the first.
    fs::remove_dir_all(one.path().join("state/1")).unwrap();
    fs::rename(two.path().join("state/1"), one.path().join("state/1")).unwrap();
    let refused = open(one.path()).err().unwrap();
    assert!(
        matches!(refused, OpenError::ForeignState { .. }),
        "{refused}"
    );
    assert_eq!(states(one.path()), ["1", "2"]);
    // A state with a table of a newer version.
    fs::rename(one.path().join("state/1"), two.path().join("state/1")).unwrap();
    let engine = rocksdb::Options::default();
    let path = two.path().join("state/1");
    let names = rocksdb::DB::list_cf(&engine, &path).unwrap();
    let mut state = rocksdb::DB::open_cf(&engine, &path, names).unwrap();
    state.create_cf("versions", &engine).unwrap();
    drop(state);
    let refused = open(two.path()).err().unwrap();
    assert!(
        matches!(refused, OpenError::OtherVersion { .. }),
        "{refused}"
    );
    assert_eq!(states(two.path()), ["1", "2"]);
}

#[test]
fn leftovers_of_a_restore_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()).unwrap());
    let state = dir.path().join("state");
    fs::create_dir_all(state.join("2").join("deep")).unwrap();
    fs::write(state.join("2").join("000001.sst"), "half").unwrap();
    fs::write(state.join("CURRENT.new"), "2").unwrap();
    drop(open(dir.path()).unwrap());
    let mut names: Vec<_> = fs::read_dir(&state)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["1", "CURRENT"]);
}

#[test]
fn a_directory_with_a_state_that_differs_is_not_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open(dir.path()).unwrap();
    set_diverged(dir.path(), "the digests are 1 and 2").unwrap();
    drop(opened);
    for _ in 0..2 {
        let Err(error @ OpenError::Diverged { .. }) = open(dir.path()) else {
            panic!("it must be refused");
        };
        let text = error.to_string();
        let at = |part: &str| text.find(part).unwrap();
        assert!(at("the digests are 1 and 2") < at("keep a copy"));
        assert!(at("keep a copy") < at("has a leader"));
        assert!(at("has a leader") < at("empty directory"));
    }
    // Whoever removes the file takes the risk.
    fs::remove_file(dir.path().join("DIVERGED")).unwrap();
    drop(open(dir.path()).unwrap());
}

#[test]
fn an_abandoned_restore_frees_its_space() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut source = open(other.path()).unwrap().state;
    source.commit(put(1, vec![7; 1 << 20]), applied(5)).unwrap();
    let mut snapshot = source.snapshot().unwrap();
    let mut state = open(dir.path()).unwrap().state;
    state.begin_restore(snapshot.meta()).unwrap();
    let chunk = snapshot.next_chunk().unwrap().unwrap();
    state.restore_chunk(&chunk).unwrap();
    let staged = dir.path().join("state/2");
    assert!(staged.exists());
    state.abandon_restore();
    // The next one doesn't wait for the removal of the first.
    state.begin_restore(snapshot.meta()).unwrap();
    let next = dir.path().join("state/3");
    assert!(next.exists());
    state.wait_removed();
    assert!(!staged.exists());
    state.abandon_restore();
    state.wait_removed();
    assert!(!next.exists());
}

#[test]
fn sizes_and_syncs_are_measured() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    let dir = tempfile::tempdir().unwrap();
    let syncs = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&syncs);
    let options = StorageOptions {
        on_sync: Some(SyncObserver::new(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
        })),
        ..StorageOptions::default()
    };
    let mut opened = shardkv_storage::open(dir.path(), &options).unwrap();
    let before = opened.disk.sizes();
    opened.log.write(&batch(1..=100, 10_000)).unwrap();
    opened
        .state
        .commit(put(1, vec![7; 1 << 20]), applied(1))
        .unwrap();
    opened.state.flush().unwrap();
    let after = opened.disk.sizes();
    assert_eq!(syncs.load(Ordering::Relaxed), 1, "one sync for each batch");
    assert!(after.log_bytes >= before.log_bytes + 1_000_000);
    assert!(after.state_bytes > before.state_bytes);
    let space = opened.disk.space().unwrap();
    assert!(0 < space.free_bytes && space.free_bytes <= space.total_bytes);
}
