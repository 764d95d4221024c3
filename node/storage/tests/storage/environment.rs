//! Errors of the environment are never called damage: the limit of open files, rights, read-only volumes, wrong types of files.
//!
//! Limits and rights belong to a process, so each case opens the directory in a process of its own: this test program again.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use raft::LogStore as _;
use replica::StateStore as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use shardkv_storage::{Cause, OpenError};

use crate::support::{applied, batch, copy_tree, open, put};

const DIRECTORY: &str = "STORAGE_TEST_DIRECTORY";
const FILES: &str = "STORAGE_TEST_FILES";
/// The user that no file belongs to.
const NOBODY: u32 = 65_534;

/// Makes a closed directory with tables and write-ahead logs.
fn written(dir: &Path) {
    let mut opened = open(dir).unwrap();
    opened.log.write(&batch(1..=100, 1_000)).unwrap();
    opened.state.commit(put(1, "x"), applied(50)).unwrap();
    opened.state.flush().unwrap();
    drop(opened);
    let mut opened = open(dir).unwrap();
    opened.log.write(&batch(101..=200, 1_000)).unwrap();
}

/// Returns the result of an attempt to open in one word.
fn outcome(dir: &Path) -> String {
    match open(dir) {
        Ok(_) => "opened".to_owned(),
        Err(OpenError::Io { message, .. }) => format!("{:?}", Cause::of(&message)),
        Err(error) => format!("{error}"),
    }
}

/// The part of the tests that runs in a process of its own.
#[test]
#[ignore = "the other tests start it"]
fn child() {
    let Some(dir) = std::env::var_os(DIRECTORY).map(PathBuf::from) else {
        return;
    };
    if let Ok(files) = std::env::var(FILES) {
        let current = Some(files.parse().unwrap());
        let maximum = getrlimit(Resource::Nofile).maximum;
        setrlimit(Resource::Nofile, Rlimit { current, maximum }).unwrap();
    }
    println!("outcome: {}.", outcome(&dir));
}

/// Opens the directory in a process of its own. Returns the outcome in one word, or the error's text.
fn elsewhere(dir: &Path, prepare: impl FnOnce(&mut Command)) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "environment::child", "--ignored", "--nocapture"])
        .env(DIRECTORY, dir);
    prepare(&mut command);
    let output = command.output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let found = printed.split_once("outcome: ").map(|(_, rest)| rest);
    let (outcome, _) = found
        .and_then(|rest| rest.split_once(".\n"))
        .unwrap_or_else(|| {
            let said = String::from_utf8_lossy(&output.stderr);
            panic!("the child said nothing: {printed} {said}")
        });
    outcome.to_owned()
}

#[test]
fn too_few_open_files_are_never_damage() {
    let root = tempfile::tempdir().unwrap();
    let (good, copy) = (root.path().join("good"), root.path().join("copy"));
    written(&good);
    let mut counts = (0, 0);
    // Each number stops the start at another file.
    for files in 4..60 {
        let _ = fs::remove_dir_all(&copy);
        copy_tree(&good, &copy);
        let found = elsewhere(&copy, |command| {
            command.env(FILES, files.to_string());
        });
        match found.as_str() {
            "OpenFiles" => counts.0 += 1,
            "opened" => counts.1 += 1,
            other => panic!("with {files} files: {other}"),
        }
        assert_eq!(outcome(&copy), "opened", "with {files} files before");
    }
    assert!(counts.0 > 5 && counts.1 > 5, "{counts:?}");
}

/// Returns all files below `dir`, and all directories below it.
fn tree(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tree(&path, found);
        }
        found.push(path);
    }
}

/// Gives everything below `dir` to all users.
fn open_up(dir: &Path) {
    let mut paths = Vec::new();
    tree(dir, &mut paths);
    for path in &paths {
        let mode = if path.is_dir() { 0o777 } else { 0o666 };
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }
    fs::set_permissions(dir, Permissions::from_mode(0o777)).unwrap();
}

#[test]
fn a_missing_right_is_never_damage() {
    let root = tempfile::tempdir().unwrap();
    fs::set_permissions(root.path(), Permissions::from_mode(0o755)).unwrap();
    let (good, copy) = (root.path().join("good"), root.path().join("copy"));
    written(&good);
    let as_nobody = |dir: &Path| {
        elsewhere(dir, |command| {
            command.uid(NOBODY).gid(NOBODY);
        })
    };
    let fresh = || {
        let _ = fs::remove_dir_all(&copy);
        copy_tree(&good, &copy);
        open_up(&copy);
    };
    fresh();
    if rustix::process::geteuid().is_root() {
        assert_eq!(as_nobody(&copy), "opened", "with all rights");
    } else {
        assert!(std::env::var_os("CI").is_none(), "CI must run as root");
        println!("SKIPPED: changing the user needs root");
        return;
    }
    let mut paths = Vec::new();
    tree(&good, &mut paths);
    let mut refused = 0;
    for path in paths {
        let name = path.strip_prefix(&good).unwrap();
        fresh();
        fs::set_permissions(copy.join(name), Permissions::from_mode(0o0)).unwrap();
        match as_nobody(&copy).as_str() {
            "Access" => refused += 1,
            // Not every file is needed.
            "opened" => {}
            other => panic!("{}: {other}", name.display()),
        }
        open_up(&copy);
        assert_eq!(outcome(&copy), "opened", "{} before", name.display());
    }
    assert!(refused > 8, "only {refused} files are needed");
}

#[test]
fn a_file_of_the_wrong_type_is_never_damage() {
    let root = tempfile::tempdir().unwrap();
    let (good, copy) = (root.path().join("good"), root.path().join("copy"));
    written(&good);
    for name in [
        "LOCK",
        "IDENTITY",
        "FLOOR",
        "log",
        "log/CURRENT",
        "state",
        "state/CURRENT",
        "state/1",
    ] {
        let _ = fs::remove_dir_all(&copy);
        copy_tree(&good, &copy);
        let (path, aside) = (copy.join(name), root.path().join("aside"));
        fs::rename(&path, &aside).unwrap();
        if aside.is_dir() {
            fs::write(&path, "a file").unwrap();
        } else {
            fs::create_dir(&path).unwrap();
        }
        assert_eq!(outcome(&copy), "Other", "{name}");
        if path.is_dir() {
            fs::remove_dir(&path).unwrap();
        } else {
            fs::remove_file(&path).unwrap();
        }
        fs::rename(&aside, &path).unwrap();
        assert_eq!(outcome(&copy), "opened", "{name} before");
    }
}
