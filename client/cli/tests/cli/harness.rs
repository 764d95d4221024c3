//! Running `shardkv`, and a cluster to run it against.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

/// The result of a command.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: Vec<u8>,
    pub(crate) err: String,
}

impl Ran {
    /// Its output as text, after success.
    #[track_caller]
    pub(crate) fn ok(&self) -> &str {
        assert_eq!(self.code, Some(0), "{self:?}");
        std::str::from_utf8(&self.out).unwrap()
    }

    /// Its output as JSON, after success.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(self.ok()).unwrap()
    }

    /// That it ended so, with an error that ends with a next step, or silently.
    #[track_caller]
    pub(crate) fn failed(&self, code: i32, words: &str) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(self.err.contains(words), "{words:?} in {self:?}");
        assert!(
            self.err.is_empty() || self.err.contains("\n next: "),
            "{self:?}"
        );
    }
}

/// `shardkv` with arguments, free of the variables of whoever runs the test.
pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shardkv"));
    command.args(args);
    for name in [
        "SHARDKV_CA",
        "SHARDKV_CERT",
        "SHARDKV_ENDPOINTS",
        "SHARDKV_KEY",
        "SHARDKV_PLAYGROUND_DIR",
    ] {
        command.env_remove(name);
    }
    command
}

/// Runs `shardkv` with this standard input.
pub(crate) fn run_with(args: &[&str], input: &[u8]) -> Ran {
    finish(command(args), input)
}

/// Runs `shardkv`.
pub(crate) fn run(args: &[&str]) -> Ran {
    run_with(args, b"")
}

pub(crate) fn finish(mut command: Command, input: &[u8]) -> Ran {
    let piped = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // A command that doesn't read its input closes it, so ignore the error.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    Ran {
        code: output.status.code(),
        out: output.stdout,
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// The node's program, if it was built.
pub(crate) fn node_binary() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("SHARDKV_NODE_BINARY") {
        let path = PathBuf::from(path);
        assert!(
            path.is_file(),
            "SHARDKV_NODE_BINARY names no file: {}",
            path.display()
        );
        return Some(path);
    }
    let beside = Path::new(env!("CARGO_BIN_EXE_shardkv")).with_file_name("shardkv-node");
    if beside.is_file() {
        return Some(beside);
    }
    eprintln!("skipped: there is no shardkv-node; build it, or set SHARDKV_NODE_BINARY");
    None
}

/// A playground that ends with the test process at the latest, because its standard input does.
pub(crate) struct Playground {
    pub(crate) child: Child,
    pub(crate) stdin: Option<ChildStdin>,
    /// The announcement that it printed when it was ready.
    pub(crate) ready: Value,
}

impl Playground {
    /// Starts one and waits until it is ready; `None` without a node's program.
    pub(crate) fn start(args: &[&str]) -> Option<Self> {
        let binary = node_binary()?;
        let mut command = command(&["playground", "--output", "json", "--stop-on-stdin-eof"]);
        command.arg("--node-binary").arg(binary).args(args);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let ready = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        Some(Self {
            child,
            stdin,
            ready,
        })
    }

    pub(crate) fn endpoints(&self) -> &str {
        self.ready["endpoints"].as_str().unwrap()
    }

    /// Ends it and returns its exit code.
    pub(crate) fn end(mut self) -> Option<i32> {
        drop(self.stdin.take());
        self.child.wait().unwrap().code()
    }
}

/// The endpoints of the cluster that all tests share, each with keys of its own.
pub(crate) fn shared() -> Option<&'static str> {
    static SHARED: OnceLock<Option<Playground>> = OnceLock::new();
    let playground = SHARED.get_or_init(|| Playground::start(&["--", "--disk-reserve-bytes", "0"]));
    playground.as_ref().map(Playground::endpoints)
}

/// Runs `shardkv` against the shared cluster.
pub(crate) fn kv_with(endpoints: &str, args: &[&str], input: &[u8]) -> Ran {
    let mut command = command(args);
    command.env("SHARDKV_ENDPOINTS", endpoints);
    finish(command, input)
}

/// Runs `shardkv` against the shared cluster.
pub(crate) fn kv(endpoints: &str, args: &[&str]) -> Ran {
    kv_with(endpoints, args, b"")
}
