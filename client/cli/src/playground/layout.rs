//! What stands in a playground's folder, and the file that says so.
//!
//! ```text
//! DIR/playground.json    this module's [`Layout`]
//! DIR/playground.lock    locked while a playground runs here
//! DIR/control.sock       see [`super::control`]
//! DIR/node-1/            the first node's data
//! DIR/node-1.log         what it wrote
//! ```

use std::fs::{self, File, TryLockError};
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::{self, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::StartArgs;
use crate::exit::Failure;

/// The version of the file's format.
const VERSION: u32 = 1;

const FILE: &str = "playground.json";

/// Ports are drawn below the range that the kernel gives to outgoing connections (from 32768 on): a client's
/// connection must not take the port of a node that is down for a moment.
const PORTS: std::ops::Range<u16> = 12_000..32_000;

/// A playground, as scripts may read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Layout {
    version: u32,
    /// The process that runs the nodes; null when none does.
    pub(super) pid: Option<u32>,
    /// Whether the nodes have had a leader since the playground started.
    pub(super) ready: bool,
    /// For `--endpoints`.
    pub(super) endpoints: String,
    pub(super) nodes: Vec<NodeLayout>,
}

/// One node. Its paths are absolute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NodeLayout {
    pub(super) name: String,
    /// Where clients and peers connect.
    pub(super) address: String,
    /// Where its metrics are.
    pub(super) metrics: String,
    pub(super) data_dir: PathBuf,
    pub(super) log: PathBuf,
    /// Its process; null when there is none.
    pub(super) pid: Option<u32>,
}

impl Layout {
    /// The layout that `dir` has, or a new one as the arguments say.
    pub(super) fn open(dir: &Path, args: &StartArgs) -> Result<Self, Failure> {
        let Some(mut layout) = Self::load(dir)? else {
            return Self::create(dir, args);
        };
        let recorded = layout.nodes.len();
        if args
            .replicas
            .is_some_and(|asked| usize::from(asked) != recorded)
        {
            return Err(Failure::usage(
                format!("{} has a cluster of {recorded} nodes", dir.display()),
                "leave --replicas out, or take another --dir",
            ));
        }
        let first = layout
            .nodes
            .first()
            .and_then(|node| node.address.rsplit_once(':'));
        let first = first.and_then(|(_, port)| port.parse().ok());
        if args.base_port.is_some() && args.base_port != first {
            return Err(Failure::usage(
                format!(
                    "the cluster in {} has addresses already: {}",
                    dir.display(),
                    layout.endpoints
                ),
                "leave --base-port out, or take another --dir",
            ));
        }
        // The folder may have been moved.
        for node in &mut layout.nodes {
            node.data_dir = dir.join(&node.name);
            node.log = dir.join(format!("{}.log", node.name));
        }
        Ok(layout)
    }

    fn create(dir: &Path, args: &StartArgs) -> Result<Self, Failure> {
        let count = args.replicas.unwrap_or(3);
        let ports = match args.base_port {
            Some(base) => (base..base + count)
                .chain(base + count..base + 2 * count)
                .collect(),
            None => free_ports(count * 2)?,
        };
        let (service, metrics) = ports.split_at(count.into());
        let nodes: Vec<NodeLayout> = service
            .iter()
            .zip(metrics)
            .enumerate()
            .map(|(number, (port, metrics))| {
                let name = format!("node-{}", number + 1);
                NodeLayout {
                    address: format!("127.0.0.1:{port}"),
                    metrics: format!("127.0.0.1:{metrics}"),
                    data_dir: dir.join(&name),
                    log: dir.join(format!("{name}.log")),
                    name,
                    pid: None,
                }
            })
            .collect();
        let addresses: Vec<&str> = nodes.iter().map(|node| node.address.as_str()).collect();
        Ok(Self {
            version: VERSION,
            pid: None,
            ready: false,
            endpoints: addresses.join(","),
            nodes,
        })
    }

    /// What the file in `dir` says, or `None` if there is no file.
    pub(super) fn load(dir: &Path) -> Result<Option<Self>, Failure> {
        let path = dir.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Failure::file("read", &path, &error)),
        };
        let bad = |why: String| {
            Failure::failed(
                format!("{} can't be used: {why}", path.display()),
                "take another --dir, or remove the folder if you don't need its data",
            )
        };
        let layout: Self = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        if layout.version != VERSION {
            return Err(bad(format!(
                "its version is {}, not {VERSION}",
                layout.version
            )));
        }
        if layout.nodes.is_empty() {
            return Err(bad("it has no nodes".to_owned()));
        }
        Ok(Some(layout))
    }

    /// Like [`Self::load`], where there must be one.
    pub(super) fn existing(dir: &Path) -> Result<Self, Failure> {
        Self::load(dir)?.ok_or_else(|| {
            Failure::usage(
                format!("there is no playground in {}", dir.display()),
                format!("start one: `shardkv playground --dir {}`", dir.display()),
            )
        })
    }

    /// Writes the file, so that a reader sees the old one or the new one and nothing between.
    pub(super) fn save(&self, dir: &Path) -> Result<(), Failure> {
        let path = dir.join(FILE);
        let write = || {
            let mut file = tempfile::NamedTempFile::new_in(dir)?;
            serde_json::to_writer_pretty(&mut file, self)?;
            file.write_all(b"\n")?;
            file.persist(&path).map_err(|error| error.error)
        };
        write()
            .map(drop)
            .map_err(|error| Failure::file("write", &path, &error))
    }
}

/// A folder that no other playground uses meanwhile.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Locks `dir`.
    pub(super) fn take(dir: &Path) -> Result<Self, Failure> {
        let path = dir.join("playground.lock");
        let file = File::create(&path).map_err(|error| Failure::file("create", &path, &error))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::Error(error)) => Err(Failure::file("lock", &path, &error)),
            Err(TryLockError::WouldBlock) => Err(Failure::failed(
                format!("a playground runs in {} already", dir.display()),
                format!(
                    "look at it: `shardkv playground status --dir {0}`; stop it: `shardkv playground down --dir {0}`",
                    dir.display()
                ),
            )),
        }
    }
}

/// Ports that nobody listens on now, all different.
fn free_ports(count: u16) -> Result<Vec<u16>, Failure> {
    let span = u64::from(PORTS.end - PORTS.start);
    let start = RandomState::new().build_hasher().finish() % span;
    // All stay bound until all are found, so that none is found twice.
    let mut held = Vec::new();
    let mut ports = Vec::new();
    for step in 0..span {
        let port = PORTS.start + u16::try_from((start + step) % span).unwrap_or(0);
        if ports.len() == usize::from(count) {
            return Ok(ports);
        }
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            held.push(listener);
            ports.push(port);
        }
    }
    Err(Failure::failed(
        "there are not enough free ports on 127.0.0.1",
        "stop other programs, or choose ports with --base-port",
    ))
}

/// Refuses addresses that somebody listens on.
pub(super) fn check_free(nodes: &[NodeLayout]) -> Result<(), Failure> {
    for address in nodes.iter().flat_map(|node| [&node.address, &node.metrics]) {
        if let Err(error) = TcpListener::bind(address) {
            return Err(Failure::failed(
                format!("can't listen on {address}: {error}"),
                "stop the program that uses it (`ss -ltnp` shows which), or take another --base-port and --dir",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        start: StartArgs,
    }

    fn args(words: &[&str]) -> StartArgs {
        Line::parse_from([&["playground"], words].concat()).start
    }

    #[test]
    fn a_layout_comes_back_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        assert_eq!(Layout::load(dir).unwrap(), None);
        let made = Layout::open(dir, &args(&["--replicas", "5"])).unwrap();
        made.save(dir).unwrap();
        assert_eq!(Layout::open(dir, &args(&[])).unwrap(), made);
        assert_eq!(made.nodes.len(), 5);
        let addresses: BTreeSet<&String> = made
            .nodes
            .iter()
            .flat_map(|n| [&n.address, &n.metrics])
            .collect();
        assert_eq!(addresses.len(), 10);
        check_free(&made.nodes).unwrap();
        for other in [["--replicas", "3"], ["--base-port", "1"]] {
            assert!(Layout::open(dir, &args(&other)).is_err(), "{other:?}");
        }
    }

    #[test]
    fn ports_follow_the_base() {
        let layout = Layout::open(Path::new("/nowhere"), &args(&["--base-port", "7400"])).unwrap();
        assert_eq!(
            layout.endpoints,
            "127.0.0.1:7400,127.0.0.1:7401,127.0.0.1:7402"
        );
        assert_eq!(layout.nodes[2].metrics, "127.0.0.1:7405");
        assert_eq!(layout.nodes[2].name, "node-3");
    }

    #[test]
    fn damaged_and_newer_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        let newer = r#"{"version":2,"pid":null,"ready":false,"endpoints":"","nodes":[]}"#;
        for text in ["", "{", newer, &newer.replace('2', "1")] {
            fs::write(dir.join(FILE), text).unwrap();
            assert!(Layout::load(dir).is_err(), "{text}");
        }
    }

    #[test]
    fn one_playground_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let held = Lock::take(folder.path()).unwrap();
        assert!(Lock::take(folder.path()).is_err());
        drop(held);
        assert!(Lock::take(folder.path()).is_ok());
    }

    #[test]
    fn a_port_in_use_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::open(folder.path(), &args(&[])).unwrap();
        let _used = TcpListener::bind(&layout.nodes[1].metrics).unwrap();
        let failure = check_free(&layout.nodes).unwrap_err();
        assert!(
            failure.to_string().contains(&layout.nodes[1].metrics),
            "{failure}"
        );
    }
}
