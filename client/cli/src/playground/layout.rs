//! The contents of a playground's folder, and the file that describes them.
//!
//! ```text
//! DIR/playground.json    this module's [`Layout`]
//! DIR/playground.lock    locked while a playground runs here
//! DIR/control.sock       see [`super::control`]
//! DIR/node-1/            the first node's data; with several groups ctrl-1/, g1-1/, ...
//! DIR/node-1.log         its output
//! ```

use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::ports;
use super::start::StartArgs;
use crate::exit::Failure;

/// The version of the file's format.
const VERSION: u32 = 2;

const FILE: &str = "playground.json";

/// Default number of nodes in a group, and of controllers.
const DEFAULT_REPLICAS: u16 = 3;

/// A playground, as scripts may read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Layout {
    version: u32,
    /// The process that runs the nodes; null when none does.
    pub(super) pid: Option<u32>,
    /// True once every group has had a leader and its shards since the playground started.
    pub(super) ready: bool,
    /// For `--endpoints`: all nodes.
    pub(super) endpoints: String,
    /// The cluster's number of shards, if it was chosen; otherwise the nodes' default.
    pub(super) shards: Option<u32>,
    /// Number of nodes in a new group.
    pub(super) replicas: u16,
    /// The next new group's id: ids are never used again.
    pub(super) next_gid: u64,
    /// The controllers first, then by gid. One standalone group when there are no controllers.
    pub(super) groups: Vec<GroupLayout>,
    /// In the order of their groups.
    pub(super) nodes: Vec<NodeLayout>,
}

/// One group of nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct GroupLayout {
    /// `ctrl`, or `g` and the gid.
    pub(super) name: String,
    /// 0 for the controllers.
    pub(super) gid: u64,
    pub(super) kind: Kind,
    pub(super) stage: Stage,
}

/// The purpose of a group: the value of a node's `--role`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    Standalone,
    Controller,
    Shards,
}

/// The stage of a group's life. The controllers and a standalone group are members from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Stage {
    /// Started, and not part of the cluster yet.
    Joining,
    Member,
    /// Its shards go elsewhere; then its nodes are stopped and removed.
    Leaving,
}

/// One node. Its paths are absolute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NodeLayout {
    pub(super) name: String,
    /// The name of its group.
    pub(super) group: String,
    /// The group's id; 0 for controllers.
    pub(super) gid: u64,
    /// The address for clients and peers.
    pub(super) address: String,
    /// The address of the metrics.
    pub(super) metrics: String,
    pub(super) data_dir: PathBuf,
    pub(super) log: PathBuf,
    /// Its process; null when there is none.
    pub(super) pid: Option<u32>,
}

/// The fields that the file has in every version.
#[derive(Deserialize)]
struct AnyLayout {
    version: u32,
}

impl Kind {
    /// Returns the value of a node's `--role`.
    pub(super) fn role(self) -> &'static str {
        match self {
            Self::Standalone => "standalone",
            Self::Controller => "controller",
            Self::Shards => "shards",
        }
    }
}

impl GroupLayout {
    fn new(kind: Kind, gid: u64, stage: Stage) -> Self {
        let name = match kind {
            Kind::Controller => "ctrl".to_owned(),
            Kind::Standalone | Kind::Shards => format!("g{gid}"),
        };
        Self {
            name,
            gid,
            kind,
            stage,
        }
    }

    /// Returns the name of a node of the group. The numbers start at 1.
    fn node_name(&self, number: u16) -> String {
        match self.kind {
            Kind::Standalone => format!("node-{number}"),
            Kind::Controller | Kind::Shards => format!("{}-{number}", self.name),
        }
    }
}

impl Layout {
    /// Reads the layout of `dir`, or makes a new one by the arguments.
    pub(super) fn open(dir: &Path, args: &StartArgs) -> Result<Self, Failure> {
        let Some(mut layout) = Self::load(dir)? else {
            return Self::create(dir, args);
        };
        layout.agrees(dir, args)?;
        // The folder may have been moved since, so compute the paths anew.
        for node in &mut layout.nodes {
            node.data_dir = dir.join(&node.name);
            node.log = dir.join(format!("{}.log", node.name));
        }
        Ok(layout)
    }

    /// Refuses arguments that contradict what the folder has.
    fn agrees(&self, dir: &Path, args: &StartArgs) -> Result<(), Failure> {
        let refuse = |has: String, next: String| {
            Err(Failure::usage(format!("{} {has}", dir.display()), next))
        };
        let differs = |asked: Option<u16>, has: usize| asked.is_some_and(|n| usize::from(n) != has);
        if differs(args.replicas, self.replicas.into()) {
            return refuse(
                format!("has groups of {} nodes", self.replicas),
                "leave --replicas out, or take another --dir".into(),
            );
        }
        if !self.is_sharded() && args.groups.is_some() {
            return refuse(
                "has a standalone group, without controllers".into(),
                "leave --groups out, or take another --dir".into(),
            );
        }
        let groups = self.wanted_groups();
        if differs(args.groups, groups) {
            return refuse(
                format!("has {groups} groups"),
                "leave --groups out, and change their number with `shardkv playground scale`"
                    .into(),
            );
        }
        let controllers = self.nodes_of_kind(Kind::Controller).count();
        if differs(args.controllers, controllers) {
            return refuse(
                format!("has {controllers} controllers"),
                "leave --controllers out, or take another --dir".into(),
            );
        }
        if args.shards.is_some() && args.shards != self.shards {
            let has = self
                .shards
                .map_or("the nodes' default".into(), |n| n.to_string());
            return refuse(
                format!("has another number of shards: {has}"),
                "leave --shards out, or take another --dir".into(),
            );
        }
        let first = self
            .nodes
            .first()
            .and_then(|node| node.address.rsplit_once(':'));
        let first = first.and_then(|(_, port)| port.parse().ok());
        if args.base_port.is_some() && args.base_port != first {
            return refuse(
                format!("has addresses already: {}", self.endpoints),
                "leave --base-port out, or take another --dir".into(),
            );
        }
        Ok(())
    }

    fn create(dir: &Path, args: &StartArgs) -> Result<Self, Failure> {
        let replicas = args.replicas.unwrap_or(DEFAULT_REPLICAS);
        let groups = match args.groups {
            None => vec![(
                GroupLayout::new(Kind::Standalone, 1, Stage::Member),
                replicas,
            )],
            Some(groups) => {
                let controllers = args.controllers.unwrap_or(DEFAULT_REPLICAS);
                let controllers = (
                    GroupLayout::new(Kind::Controller, 0, Stage::Member),
                    controllers,
                );
                let shards = (1..=u64::from(groups)).map(|gid| {
                    (
                        GroupLayout::new(Kind::Shards, gid, Stage::Joining),
                        replicas,
                    )
                });
                std::iter::once(controllers).chain(shards).collect()
            }
        };
        let count = groups.iter().map(|(_, nodes)| nodes).sum::<u16>();
        let mut ports = match args.base_port {
            Some(base) => ports::from_base(base, count)?,
            None => ports::free(count, &[])?,
        }
        .into_iter();
        let mut layout = Self {
            version: VERSION,
            pid: None,
            ready: false,
            endpoints: String::new(),
            shards: args.shards,
            replicas,
            next_gid: u64::from(args.groups.unwrap_or(1)) + 1,
            groups: Vec::new(),
            nodes: Vec::new(),
        };
        for (group, nodes) in groups {
            layout.add(dir, group, nodes, &mut ports);
        }
        Ok(layout)
    }

    /// Adds a group with its nodes, which take their ports from `ports`.
    fn add(
        &mut self,
        dir: &Path,
        group: GroupLayout,
        nodes: u16,
        ports: &mut impl Iterator<Item = ports::Pair>,
    ) {
        for (number, ports) in (1..=nodes).zip(ports) {
            let name = group.node_name(number);
            self.nodes.push(NodeLayout {
                group: group.name.clone(),
                gid: group.gid,
                address: format!("127.0.0.1:{}", ports.service),
                metrics: format!("127.0.0.1:{}", ports.metrics),
                data_dir: dir.join(&name),
                log: dir.join(format!("{name}.log")),
                name,
                pid: None,
            });
        }
        self.groups.push(group);
        self.list_endpoints();
    }

    /// Returns every address that a node listens on.
    pub(super) fn addresses(&self) -> impl Iterator<Item = &String> {
        let nodes = self.nodes.iter();
        nodes.flat_map(|node| [&node.address, &node.metrics])
    }

    fn list_endpoints(&mut self) {
        let addresses: Vec<&str> = self
            .nodes
            .iter()
            .map(|node| node.address.as_str())
            .collect();
        self.endpoints = addresses.join(",");
    }

    /// Adds `count` new groups that will join, and returns their names.
    pub(super) fn grow(&mut self, dir: &Path, count: u64) -> Result<Vec<String>, Failure> {
        let taken: Vec<&str> = self
            .nodes
            .iter()
            .flat_map(|node| [node.address.as_str(), node.metrics.as_str()])
            .collect();
        let nodes = u64::from(self.replicas) * count;
        let nodes = u16::try_from(nodes).unwrap_or(u16::MAX);
        let mut ports = ports::free(nodes, &taken)?.into_iter();
        let mut names = Vec::new();
        for _ in 0..count {
            let group = GroupLayout::new(Kind::Shards, self.next_gid, Stage::Joining);
            self.next_gid += 1;
            names.push(group.name.clone());
            self.add(dir, group, self.replicas, &mut ports);
        }
        Ok(names)
    }

    /// Makes the `count` newest groups leave.
    pub(super) fn shrink(&mut self, count: usize) {
        let staying =
            |group: &&mut GroupLayout| group.kind == Kind::Shards && group.stage != Stage::Leaving;
        // Groups are in the order of their gids.
        let newest = self.groups.iter_mut().rev().filter(staying);
        newest
            .take(count)
            .for_each(|group| group.stage = Stage::Leaving);
    }

    /// Removes a group and its nodes, which have ended.
    pub(super) fn remove(&mut self, group: &str) {
        self.groups.retain(|it| it.name != group);
        self.nodes.retain(|node| node.group != group);
        self.list_endpoints();
    }

    /// Returns true if there are controllers, and groups that share the shards.
    pub(super) fn is_sharded(&self) -> bool {
        self.groups
            .iter()
            .any(|group| group.kind == Kind::Controller)
    }

    /// Number of groups that share the shards once all changes are complete.
    pub(super) fn wanted_groups(&self) -> usize {
        let stays =
            |group: &&GroupLayout| group.kind == Kind::Shards && group.stage != Stage::Leaving;
        self.groups.iter().filter(stays).count()
    }

    /// A group by its name.
    pub(super) fn group(&self, name: &str) -> Option<&GroupLayout> {
        self.groups.iter().find(|group| group.name == name)
    }

    /// The nodes of a group.
    pub(super) fn nodes_of(&self, group: &str) -> impl Iterator<Item = &NodeLayout> {
        self.nodes.iter().filter(move |node| node.group == group)
    }

    /// The addresses of a group's nodes.
    pub(super) fn addresses_of(&self, group: &str) -> Vec<String> {
        self.nodes_of(group)
            .map(|node| node.address.clone())
            .collect()
    }

    fn nodes_of_kind(&self, kind: Kind) -> impl Iterator<Item = &NodeLayout> {
        let groups = self.groups.iter().filter(move |group| group.kind == kind);
        groups.flat_map(|group| self.nodes_of(&group.name))
    }

    /// The addresses of the controllers; none in a standalone cluster.
    pub(super) fn controllers(&self) -> Vec<String> {
        let nodes = self.nodes_of_kind(Kind::Controller);
        nodes.map(|node| node.address.clone()).collect()
    }

    /// Reads the file in `dir`, or returns `None` if there is no file.
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
        let any: AnyLayout =
            serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        if any.version != VERSION {
            return Err(bad(format!(
                "its version is {}, not {VERSION}",
                any.version
            )));
        }
        let layout: Self = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        if layout.nodes.is_empty() {
            return Err(bad("it has no nodes".to_owned()));
        }
        Ok(Some(layout))
    }

    /// Reads the file in `dir`, and fails if there is none.
    pub(super) fn existing(dir: &Path) -> Result<Self, Failure> {
        Self::load(dir)?.ok_or_else(|| {
            Failure::usage(
                format!("there is no playground in {}", dir.display()),
                format!("start one: `shardkv playground --dir {}`", dir.display()),
            )
        })
    }

    /// Writes the file atomically: a reader sees the old content or the new one.
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

/// A lock on a folder, which keeps other playgrounds out.
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

    fn open(dir: &Path, words: &[&str]) -> Result<Layout, Failure> {
        Layout::open(dir, &args(words))
    }

    fn addresses(layout: &Layout) -> BTreeSet<&String> {
        let nodes = layout.nodes.iter();
        nodes.flat_map(|n| [&n.address, &n.metrics]).collect()
    }

    fn names(layout: &Layout) -> Vec<&str> {
        layout.nodes.iter().map(|node| node.name.as_str()).collect()
    }

    #[test]
    fn a_layout_comes_back_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        assert_eq!(Layout::load(dir).unwrap(), None);
        let made = open(dir, &["--replicas", "5"]).unwrap();
        made.save(dir).unwrap();
        assert_eq!(open(dir, &[]).unwrap(), made);
        assert_eq!(made.nodes.len(), 5);
        assert_eq!(addresses(&made).len(), 10);
        assert!(!made.is_sharded() && made.controllers().is_empty());
        ports::check_free(made.addresses()).unwrap();
        for other in [
            ["--replicas", "3"],
            ["--base-port", "1"],
            ["--groups", "1"],
            ["--shards", "8"],
        ] {
            assert!(open(dir, &other).is_err(), "{other:?}");
        }
    }

    #[test]
    fn several_groups_have_controllers() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        let line = ["--groups", "2", "--replicas", "1", "--shards", "16"];
        let mut made = open(dir, &line).unwrap();
        assert_eq!(names(&made), ["ctrl-1", "ctrl-2", "ctrl-3", "g1-1", "g2-1"]);
        assert_eq!((made.shards, made.wanted_groups()), (Some(16), 2));
        assert_eq!(made.controllers().len(), 3);
        assert_eq!(made.endpoints.split(',').count(), 5);

        // No gid is used twice while the number of groups grows and shrinks.
        assert_eq!(made.grow(dir, 2).unwrap(), ["g3", "g4"]);
        assert_eq!(addresses(&made).len(), 14);
        made.shrink(1);
        assert_eq!(made.wanted_groups(), 3);
        assert_eq!(made.group("g4").unwrap().stage, Stage::Leaving);
        made.remove("g4");
        assert_eq!(made.grow(dir, 1).unwrap(), ["g5"]);
        assert_eq!(names(&made)[3..], ["g1-1", "g2-1", "g3-1", "g5-1"]);
        assert_eq!(made.addresses_of("g5"), [made.nodes[6].address.clone()]);
        made.save(dir).unwrap();
        assert_eq!(open(dir, &["--groups", "4"]).unwrap(), made);
        for other in [["--groups", "2"], ["--controllers", "1"], ["--shards", "8"]] {
            let line = if other[0] == "--controllers" {
                ["--groups", "4", other[0], other[1]].to_vec()
            } else {
                other.to_vec()
            };
            assert!(open(dir, &line).is_err(), "{line:?}");
        }
    }

    #[test]
    fn ports_follow_the_base() {
        let layout = open(Path::new("/nowhere"), &["--base-port", "7400"]).unwrap();
        assert_eq!(
            layout.endpoints,
            "127.0.0.1:7400,127.0.0.1:7401,127.0.0.1:7402"
        );
        assert_eq!(layout.nodes[2].metrics, "127.0.0.1:7405");
        assert_eq!(layout.nodes[2].name, "node-3");
    }

    #[test]
    fn damaged_and_foreign_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        let mut empty = open(dir, &[]).unwrap();
        empty.nodes.clear();
        let empty = serde_json::to_string(&empty).unwrap();
        let older = empty.replace("\"version\":2", "\"version\":1");
        for (text, words) in [
            ("", "EOF"),
            ("{", "EOF"),
            (&older, "its version is 1"),
            (&empty, "no nodes"),
            (r#"{"version":2}"#, "missing field"),
        ] {
            fs::write(dir.join(FILE), text).unwrap();
            let failure = Layout::load(dir).unwrap_err().to_string();
            assert!(failure.contains(words), "{text}: {failure}");
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
}
