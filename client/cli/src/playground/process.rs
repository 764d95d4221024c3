//! The process of one node.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::layout::{Kind, Layout, NodeLayout};
use crate::exit::Failure;

/// The program and the extra options of all nodes.
#[derive(Clone, Debug)]
pub(super) struct Program {
    pub(super) binary: PathBuf,
    pub(super) extra: Vec<String>,
}

impl Program {
    /// Finds the node's program: as requested, or beside this program, or in PATH.
    pub(super) fn find(asked: Option<&Path>) -> Result<PathBuf, Failure> {
        const NAME: &str = "shardkv-node";
        if let Some(path) = asked {
            return path.canonicalize().map_err(|error| {
                Failure::file("find", path, &error)
                    .with_next("give the node's program with --node-binary")
            });
        }
        let own = std::env::current_exe().ok();
        let beside = own.as_deref().and_then(Path::parent).map(Path::to_path_buf);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = beside.into_iter().chain(std::env::split_paths(&path));
        let found = folders
            .map(|folder| folder.join(NAME))
            .find(|path| path.is_file());
        found.ok_or_else(|| {
            Failure::failed(
                format!("there is no {NAME} beside this program or in PATH"),
                "build it (`cargo build --release -p shardkv-server`), or give it with --node-binary",
            )
        })
    }

    /// Starts a node of `layout`. Its output goes to the end of its log.
    pub(super) fn start(&self, layout: &Layout, node: &NodeLayout) -> io::Result<Child> {
        let log = File::options().create(true).append(true).open(&node.log)?;
        let mut command = Command::new(&self.binary);
        command
            .arg("--data-dir")
            .arg(&node.data_dir)
            .args(["--cluster-name", "playground"])
            .args(["--listen", &node.address])
            .args(["--advertise", &node.address])
            .args(["--peers", &layout.addresses_of(&node.group).join(",")])
            .args(["--metrics-listen", &node.metrics])
            .args(place_in_cluster(layout, node))
            .args(&self.extra)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C in a terminal signals a whole process group. A group of its own lets the playground stop the node instead.
            .process_group(0);
        // A node also reads options from the environment. Variables of the user's shell must not change it.
        let ours = std::env::vars_os().map(|(name, _)| name);
        for name in ours.filter(|name| name.as_encoded_bytes().starts_with(b"SHARDKV_")) {
            command.env_remove(name);
        }
        command.spawn()
    }
}

/// Returns the options that define a node's place in its cluster.
fn place_in_cluster(layout: &Layout, node: &NodeLayout) -> Vec<String> {
    let mut args = Vec::new();
    let mut option = |name: &str, value: String| args.extend([name.to_owned(), value]);
    if let Some(shards) = layout.shards {
        option("--shards", shards.to_string());
    }
    let kind = layout.group(&node.group).map(|group| group.kind);
    if let Some(kind @ (Kind::Controller | Kind::Shards)) = kind {
        option("--role", kind.role().to_owned());
        option("--gid", node.gid.to_string());
        if kind == Kind::Shards {
            option("--controllers", layout.controllers().join(","));
        }
    }
    args
}

/// Sends a signal to a child that has not been waited for.
pub(super) fn signal(child: &Child, signal: Signal) -> io::Result<()> {
    let gone = || io::Error::new(io::ErrorKind::NotFound, "the process has ended");
    let id = child.id().ok_or_else(gone)?;
    signal_pid(id, signal)
}

fn signal_pid(id: u32, signal: Signal) -> io::Result<()> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "no process id");
    let pid = i32::try_from(id)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(invalid)?;
    Ok(kill_process(pid, signal)?)
}

/// Asks a child to stop, and kills it if it does not stop in time. Returns its exit status, and true if it was killed.
pub(super) async fn stop(child: &mut Child, patience: Duration) -> io::Result<(ExitStatus, bool)> {
    if child.id().is_some() {
        signal(child, Signal::TERM)?;
        // A frozen process handles no other signal.
        signal(child, Signal::CONT)?;
    }
    if let Ok(ended) = timeout(patience, child.wait()).await {
        return Ok((ended?, false));
    }
    child.start_kill()?;
    Ok((child.wait().await?, true))
}

/// Returns true if process `id` runs this node. The kernel reuses process ids, but only this node has the data folder on its
/// command line.
pub(super) fn is_node(id: u32, node: &NodeLayout) -> bool {
    let Ok(line) = fs::read(format!("/proc/{id}/cmdline")) else {
        return false;
    };
    let wanted: &OsStr = node.data_dir.as_os_str();
    line.split(|&byte| byte == 0)
        .any(|word| word == wanted.as_encoded_bytes())
}

/// Returns true if process `id` itself accepts connections at `address`, so that whoever answers there is this process.
pub(super) fn listens(id: u32, address: &str) -> bool {
    let port = address
        .rsplit_once(':')
        .and_then(|(_, port)| port.parse().ok());
    let Some(port) = port else { return false };
    let sockets = listening_sockets(id, port);
    let Ok(files) = fs::read_dir(format!("/proc/{id}/fd")) else {
        return false;
    };
    let targets = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    targets
        .filter_map(|target| target.into_os_string().into_string().ok())
        .any(|target| sockets.contains(&target))
}

/// Returns the sockets that listen at a port in the network of process `id`, by the names that `/proc/ID/fd` gives them.
fn listening_sockets(id: u32, port: u16) -> BTreeSet<String> {
    const LISTEN: &str = "0A";
    let socket = |line: &str| {
        // The fields: number, local address, remote address, state, queues, timers, retransmits, user, timeout, inode.
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (_, local) = fields.next()?.rsplit_once(':')?;
        let here = u16::from_str_radix(local, 16) == Ok(port);
        let listening = fields.nth(1)? == LISTEN;
        let inode = fields.nth(5)?;
        (here && listening).then(|| format!("socket:[{inode}]"))
    };
    let mut found = BTreeSet::new();
    for table in ["tcp", "tcp6"] {
        let table = fs::read_to_string(format!("/proc/{id}/net/{table}")).unwrap_or_default();
        found.extend(table.lines().filter_map(socket));
    }
    found
}

/// Describes the state of a process in one word.
pub(super) fn state(id: u32, node: &NodeLayout) -> &'static str {
    if !is_node(id, node) {
        return "gone";
    }
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    // The name in parentheses may contain parentheses; the state follows the last one.
    match stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next())
    {
        Some('T') => "frozen",
        Some('Z') | None => "gone",
        Some(_) => "running",
    }
}

/// Stops a node that is not a child of this process, and waits until it is gone.
pub(super) async fn stop_orphan(id: u32, node: &NodeLayout, patience: Duration) -> io::Result<()> {
    let gone = async {
        while state(id, node) != "gone" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let ended = |sent: io::Result<()>| match sent {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {
            Ok(())
        }
        other => other,
    };
    ended(signal_pid(id, Signal::TERM))?;
    ended(signal_pid(id, Signal::CONT))?;
    if timeout(patience, gone).await.is_err() && is_node(id, node) {
        ended(signal_pid(id, Signal::KILL))?;
    }
    Ok(())
}

/// The size from which a log is trimmed, in bytes.
const MAX_LOG_BYTES: u64 = 64 << 20;

/// The part of a trimmed log that is kept, in bytes.
const KEPT_LOG_BYTES: u64 = 1 << 20;

/// Empties a log that has become too large, so that it doesn't fill the disk, and keeps its end beside it. The process goes on
/// writing at the new end, because it appends. Returns true if the log was too large.
pub(super) fn trim_log(path: &Path) -> io::Result<bool> {
    trim(path, MAX_LOG_BYTES, KEPT_LOG_BYTES)
}

fn trim(path: &Path, most: u64, kept: u64) -> io::Result<bool> {
    let mut log = match File::options().read(true).write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        log => log?,
    };
    let length = log.metadata()?.len();
    if length <= most {
        return Ok(false);
    }
    log.seek(SeekFrom::Start(length.saturating_sub(kept)))?;
    let mut end = Vec::new();
    (&mut log).take(kept).read_to_end(&mut end)?;
    // Empty the log first: the disk may be full.
    log.set_len(0)?;
    fs::write(old_log(path), end)?;
    Ok(true)
}

/// Returns the file with the end of a trimmed log.
pub(super) fn old_log(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

/// Returns the last lines of a log, for an error message.
pub(super) fn log_tail(path: &Path) -> String {
    const BYTES: u64 = 2_048;
    const LINES: usize = 8;
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines
        .get(lines.len().saturating_sub(LINES)..)
        .unwrap_or_default()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        start: crate::playground::start::StartArgs,
    }

    fn layout(dir: &Path, words: &[&str]) -> Layout {
        let line = <Line as clap::Parser>::parse_from([&["playground"], words].concat());
        Layout::open(dir, &line.start).unwrap()
    }

    fn node(dir: &Path) -> NodeLayout {
        layout(dir, &["--replicas", "1"]).nodes.remove(0)
    }

    #[test]
    fn nodes_are_told_their_place() {
        let sharded = layout(
            Path::new("/nowhere"),
            &[
                "--groups",
                "2",
                "--controllers",
                "1",
                "--base-port",
                "7400",
                "--shards",
                "8",
            ],
        );
        let told = |node: usize| place_in_cluster(&sharded, &sharded.nodes[node]).join(" ");
        assert_eq!(told(0), "--shards 8 --role controller --gid 0");
        assert_eq!(
            told(4),
            "--shards 8 --role shards --gid 2 --controllers 127.0.0.1:7400"
        );
        let alone = layout(Path::new("/nowhere"), &[]);
        assert!(place_in_cluster(&alone, &alone.nodes[0]).is_empty());
    }

    /// Makes a program that ignores its arguments and runs `script`.
    fn program(dir: &Path, script: &str) -> Program {
        use std::os::unix::fs::PermissionsExt as _;
        let binary = dir.join("program");
        fs::write(&binary, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
        Program {
            binary,
            extra: vec!["--extra".into()],
        }
    }

    #[tokio::test]
    async fn a_process_that_obeys_is_not_killed() {
        let folder = tempfile::tempdir().unwrap();
        let node = node(folder.path());
        let obeys = program(
            folder.path(),
            "trap 'echo \"$@\"; exit 7' TERM; echo up; while :; do sleep 0.01; done",
        );
        let mut child = obeys.start(&layout(folder.path(), &[]), &node).unwrap();
        while !log_tail(&node.log).contains("up") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(state(child.id().unwrap(), &node), "running");
        signal(&child, Signal::STOP).unwrap();
        while state(child.id().unwrap(), &node) != "frozen" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let (status, killed) = stop(&mut child, Duration::from_mins(1)).await.unwrap();
        assert_eq!(
            (status.code(), killed),
            (Some(7), false),
            "even a frozen one stops in order"
        );
        let log = log_tail(&node.log);
        assert!(
            log.contains("--data-dir") && log.ends_with("--extra"),
            "{log}"
        );
        assert!(signal(&child, Signal::TERM).is_err(), "never a stranger");
    }

    #[tokio::test]
    async fn a_process_that_does_not_obey_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let node = node(folder.path());
        let stubborn = program(
            folder.path(),
            "trap '' TERM; echo up; while :; do sleep 0.01; done",
        );
        let mut child = stubborn.start(&layout(folder.path(), &[]), &node).unwrap();
        while !log_tail(&node.log).contains("up") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let (status, killed) = stop(&mut child, Duration::from_millis(50)).await.unwrap();
        assert!(killed && status.code().is_none());
    }

    #[test]
    fn a_log_that_is_too_large_is_emptied_and_its_end_is_kept() {
        use std::io::Write as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.log");
        assert!(!trim(&path, 10, 4).unwrap(), "no log yet");
        let mut writer = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .unwrap();
        writer.write_all(b"0123456789").unwrap();
        assert!(!trim(&path, 10, 4).unwrap());
        writer.write_all(b"a").unwrap();
        assert!(trim(&path, 10, 4).unwrap());
        writer.write_all(b"next").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"next");
        assert_eq!(fs::read(old_log(&path)).unwrap(), b"789a");
    }

    #[test]
    fn strangers_are_not_nodes() {
        let node = node(Path::new("/nowhere"));
        assert!(!is_node(std::process::id(), &node));
        assert_eq!(state(std::process::id(), &node), "gone");
    }

    #[test]
    fn only_the_process_that_listens_at_an_address_is_the_one_that_answers() {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = std::net::TcpListener::bind(host) else {
                continue; // No IPv6 here.
            };
            let address = listener.local_addr().unwrap().to_string();
            let own = std::process::id();
            assert!(listens(own, &address), "{address}");
            let mut stranger = std::process::Command::new("sleep")
                .arg("1000")
                .spawn()
                .unwrap();
            assert!(!listens(stranger.id(), &address));
            stranger.kill().unwrap();
            stranger.wait().unwrap();
            drop(listener);
            assert!(!listens(own, &address), "closed");
        }
    }

    #[test]
    fn a_missing_program_is_explained() {
        let failure = Program::find(Some(Path::new("/nowhere/node"))).unwrap_err();
        assert!(failure.to_string().contains("--node-binary"), "{failure}");
    }
}
