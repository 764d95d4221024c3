//! One real process.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::wait::until;

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_shardkv-node");

/// A running `shardkv-node`, killed when dropped.
pub(crate) struct Node {
    child: Child,
    log: PathBuf,
}

impl Node {
    /// Starts the program with `arguments`. Its output is appended to the file `log`.
    pub(crate) fn start(arguments: &[String], log: &Path) -> Self {
        Self::spawn(command(arguments), log)
    }

    /// Does the same with the files `hosts` and `resolv.conf` of the directory `etc` for resolving names.
    pub(crate) fn start_among(etc: &Path, arguments: &[String], log: &Path) -> Self {
        let private = "mount --bind \"$0/hosts\" /etc/hosts && \
                       mount --bind \"$0/resolv.conf\" /etc/resolv.conf && exec \"$@\"";
        let mut wrapped = vec![
            "--mount".to_owned(),
            "sh".to_owned(),
            "-c".to_owned(),
            private.to_owned(),
            etc.display().to_string(),
            PROGRAM.to_owned(),
        ];
        wrapped.extend_from_slice(arguments);
        Self::spawn(plain_command("unshare", &wrapped), log)
    }

    /// Does the same with a limit of open files, which the process can't raise.
    pub(crate) fn start_with_files(limit: u32, arguments: &[String], log: &Path) -> Self {
        let shell = "ulimit -n \"$0\" && exec \"$@\"".to_owned();
        let mut wrapped = vec![
            "-c".to_owned(),
            shell,
            limit.to_string(),
            PROGRAM.to_owned(),
        ];
        wrapped.extend_from_slice(arguments);
        Self::spawn(plain_command("sh", &wrapped), log)
    }

    /// Does the same with another standard error.
    pub(crate) fn start_with_stderr(arguments: &[String], log: &Path, stderr: Stdio) -> Self {
        Self::spawn_with_stderr(command(arguments), log, stderr)
    }

    fn spawn(command: Command, log: &Path) -> Self {
        let out = File::options().create(true).append(true).open(log).unwrap();
        Self::spawn_with_stderr(command, log, out.into())
    }

    fn spawn_with_stderr(mut command: Command, log: &Path, stderr: Stdio) -> Self {
        let out = File::options().create(true).append(true).open(log).unwrap();
        let child = command.stdout(out).stderr(stderr).spawn().unwrap();
        Self {
            child,
            log: log.to_owned(),
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap();
    }

    /// Kills the process with SIGKILL, and waits for its end.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends SIGKILL, and doesn't wait.
    pub(crate) fn send_kill(&self) {
        self.signal(Signal::KILL);
    }

    /// Sends SIGSTOP: the process is paused, and its connections stay open.
    pub(crate) fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Sends SIGCONT.
    pub(crate) fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Sends SIGTERM, which asks for an orderly stop.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Returns true if the process still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for the process to end by itself.
    pub(crate) async fn exited(&mut self) -> ExitStatus {
        until("the node ends", async || {
            self.child.try_wait().unwrap().ok_or("it still runs")
        })
        .await
    }

    /// Returns the output of the process.
    pub(crate) fn printed(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Returns the resident memory in bytes.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
        let kibibytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kibibytes << 10
    }
}

impl Node {
    /// Returns the bytes that the process has read from files so far, from caches or not.
    pub(crate) fn read_bytes(&self) -> u64 {
        let io = fs::read_to_string(format!("/proc/{}/io", self.child.id())).unwrap();
        let line = io.lines().find_map(|l| l.strip_prefix("rchar: "));
        line.unwrap().parse().unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The process may have ended already. A frozen process dies of SIGKILL too.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let printed = self.printed();
            let tail: Vec<&str> = printed.lines().rev().take(25).collect();
            eprintln!("--- the end of {}:", self.log.display());
            for line in tail.into_iter().rev() {
                eprintln!("    {line}");
            }
        }
    }
}

/// Returns the program with `arguments`, without this process's environment variables for it.
fn command(arguments: &[String]) -> Command {
    plain_command(PROGRAM, arguments)
}

fn plain_command(program: &str, arguments: &[String]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    for (name, _) in std::env::vars() {
        if name.starts_with("SHARDKV_") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs the program to its end, which must come within ten seconds. Returns its exit code and its output.
pub(crate) async fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
    let child = tokio::process::Command::from(command(&arguments))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let output = tokio::time::timeout(Duration::from_secs(10), child.wait_with_output())
        .await
        .unwrap_or_else(|_| panic!("shardkv-node {arguments:?} should have ended at once"))
        .unwrap();
    let mut printed = String::from_utf8_lossy(&output.stdout).into_owned();
    printed.push_str(&String::from_utf8_lossy(&output.stderr));
    (output.status.code(), printed)
}
