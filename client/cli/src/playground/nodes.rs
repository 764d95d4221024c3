//! The processes of the nodes, and the layout that lists them. Each change of a process is saved to the layout at once.

use std::collections::BTreeMap;
use std::fs;
use std::future::pending;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::Signal;
use tokio::net::TcpStream;
use tokio::process::Child;
use tokio::time::{Instant, sleep};

use super::control::Order;
use super::layout::{Layout, NodeLayout};
use super::process::{self, Program};
use crate::exit::Failure;

/// Interval between status calls to a restarted node.
const POLL: Duration = Duration::from_millis(20);

/// The nodes of a playground, as children of this process.
pub(super) struct Nodes {
    pub(super) dir: PathBuf,
    pub(super) layout: Layout,
    pub(super) program: Program,
    /// Time limit for a node to answer after its start.
    pub(super) start_timeout: Duration,
    /// Time limit for a node to stop; after it the node is killed.
    pub(super) stop_timeout: Duration,
    children: BTreeMap<String, Child>,
}

impl Nodes {
    /// Makes the nodes of a layout. None runs yet.
    pub(super) fn new(
        dir: PathBuf,
        layout: Layout,
        program: Program,
        start_timeout: Duration,
        stop_timeout: Duration,
    ) -> Self {
        Self {
            dir,
            layout,
            program,
            start_timeout,
            stop_timeout,
            children: BTreeMap::new(),
        }
    }

    /// Number of running processes.
    pub(super) fn running(&self) -> usize {
        self.children.len()
    }

    pub(super) fn save(&self) -> Result<(), Failure> {
        self.layout.save(&self.dir)
    }

    fn node(&self, name: &str) -> Result<&NodeLayout, Failure> {
        let found = self.layout.nodes.iter().find(|node| node.name == name);
        found.ok_or_else(|| {
            Failure::failed(
                format!("{name} is gone"),
                format!(
                    "look at `shardkv playground status --dir {}`",
                    self.dir.display()
                ),
            )
        })
    }

    fn note_pid(&mut self, name: &str, pid: Option<u32>) -> Option<u32> {
        let mut nodes = self.layout.nodes.iter_mut();
        let node = nodes.find(|node| node.name == name)?;
        std::mem::replace(&mut node.pid, pid)
    }

    /// Starts all nodes that don't run.
    pub(super) fn start_all(&mut self) -> Result<(), Failure> {
        let nodes = self.layout.nodes.iter().map(|node| node.name.clone());
        let resting: Vec<String> = nodes
            .filter(|name| !self.children.contains_key(name))
            .collect();
        resting.iter().try_for_each(|name| self.start(name))
    }

    fn start(&mut self, name: &str) -> Result<(), Failure> {
        let started = self.program.start(&self.layout, self.node(name)?);
        let started =
            started.map_err(|error| Failure::file("start", &self.program.binary, &error))?;
        self.note_pid(name, started.id());
        self.children.insert(name.to_owned(), started);
        self.save()
    }

    /// Trims the logs that have become too large.
    pub(super) fn trim_logs(&self) {
        for node in &self.layout.nodes {
            if let Err(error) = process::trim_log(&node.log) {
                eprintln!("can't trim {}: {error}", node.log.display());
            }
        }
    }

    /// Waits until a process ends unexpectedly; for ever if none does. Cancel-safe.
    pub(super) async fn any_end(&mut self) -> (String, io::Result<ExitStatus>) {
        any_end(&mut self.children).await
    }

    /// Records that a process ended by itself, and reports it.
    pub(super) fn ended(
        &mut self,
        name: &str,
        status: io::Result<ExitStatus>,
    ) -> Result<Failure, Failure> {
        let pid = self.forget(name)?;
        let node = self.node(name)?;
        let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        let pid = pid.unwrap_or(0);
        Ok(Failure::failed(
            format!(
                "{name} (pid {pid}) ended by itself: {how}\n{}",
                process::log_tail(&node.log)
            ),
            format!(
                "read all of its log: {}; start it again: shardkv playground restart {name} --dir {}",
                node.log.display(),
                self.dir.display()
            ),
        ))
    }

    /// Records that a node has no process. Returns the process that it had.
    fn forget(&mut self, name: &str) -> Result<Option<u32>, Failure> {
        self.children.remove(name);
        let pid = self.note_pid(name, None);
        self.save()?;
        Ok(pid)
    }

    /// Does to a node what is ordered, and returns its process. `Scale` and `Down` are no orders to a node.
    pub(super) async fn obey(&mut self, order: Order, name: &str) -> Result<Option<u32>, Failure> {
        match order {
            Order::Kill => self.kill(name).await,
            Order::Stop => self.signal(name, Signal::STOP),
            Order::Cont => self.signal(name, Signal::CONT),
            Order::Term => {
                self.child(name)?;
                self.stop(name).await
            }
            Order::Restart { wipe } => self.restart(name, wipe).await,
            Order::Scale { .. } | Order::Down => Ok(None),
        }
    }

    fn child(&mut self, name: &str) -> Result<&mut Child, Failure> {
        let dir = self.dir.display();
        self.children.get_mut(name).ok_or_else(|| {
            Failure::failed(
                format!("{name} does not run"),
                format!("start it: `shardkv playground restart {name} --dir {dir}`"),
            )
        })
    }

    fn signal(&mut self, name: &str, signal: Signal) -> Result<Option<u32>, Failure> {
        let child = self.child(name)?;
        process::signal(child, signal).map_err(|error| cant_signal(&error))?;
        Ok(child.id())
    }

    async fn kill(&mut self, name: &str) -> Result<Option<u32>, Failure> {
        let child = self.child(name)?;
        child.start_kill().map_err(|error| cant_signal(&error))?;
        child.wait().await.map_err(|error| cant_signal(&error))?;
        self.forget(name)
    }

    /// Stops a node gracefully, if it runs.
    async fn stop(&mut self, name: &str) -> Result<Option<u32>, Failure> {
        let patience = self.stop_timeout;
        let Some(child) = self.children.get_mut(name) else {
            return Ok(None);
        };
        let stopped = process::stop(child, patience).await;
        let pid = self.forget(name)?;
        tell_how(name, stopped, patience)?;
        Ok(pid)
    }

    /// Starts a node, after stopping it if it runs, and waits until it answers.
    async fn restart(&mut self, name: &str, wipe: bool) -> Result<Option<u32>, Failure> {
        let node = self.node(name)?.clone();
        self.stop(name).await?;
        if wipe {
            wipe_data(&node.data_dir)
                .map_err(|error| Failure::file("remove", &node.data_dir, &error))?;
        }
        self.start(name)?;
        self.until_it_answers(&node).await?;
        Ok(self.child(name)?.id())
    }

    /// Waits until the process of a node that was started answers. Another process at its address doesn't count.
    async fn until_it_answers(&mut self, node: &NodeLayout) -> Result<(), Failure> {
        let name = &node.name;
        let deadline = Instant::now() + self.start_timeout;
        let mut stranger = false;
        loop {
            if TcpStream::connect(&node.address).await.is_ok() {
                let started = self.child(name)?.id();
                if started.is_some_and(|pid| process::listens(pid, &node.address)) {
                    return Ok(());
                }
                stranger = true;
            }
            let ended = self.child(name)?.try_wait();
            if let Some(status) = ended.map_err(|error| cant_signal(&error))? {
                self.forget(name)?;
                return Err(Failure::failed(
                    format!(
                        "{name} ended at once: {status}\n{}",
                        process::log_tail(&node.log)
                    ),
                    format!("read all of its log: {}", node.log.display()),
                ));
            }
            if Instant::now() >= deadline {
                let what = if stranger {
                    "runs, but another process answers at"
                } else {
                    "runs, but does not answer at"
                };
                return Err(Failure::failed(
                    format!("{name} {what} {}", node.address),
                    format!("read its log: {}", node.log.display()),
                ));
            }
            sleep(POLL).await;
        }
    }

    /// Stops all nodes at the same time.
    pub(super) async fn stop_all(&mut self) -> Result<(), Failure> {
        let all = self.layout.nodes.iter().map(|node| node.name.clone());
        let stopped = self.stop_some(&all.collect::<Vec<_>>()).await;
        (self.layout.pid, self.layout.ready) = (None, false);
        self.save()?;
        stopped
    }

    async fn stop_some(&mut self, names: &[String]) -> Result<(), Failure> {
        let patience = self.stop_timeout;
        let children = self.children.iter_mut();
        let stops = children
            .filter(|(name, _)| names.contains(name))
            .map(|(name, child)| async move { (name, process::stop(child, patience).await) });
        let mut outcome = Ok(());
        for (name, stopped) in futures::future::join_all(stops).await {
            outcome = outcome.and(tell_how(name, stopped, patience));
        }
        for name in names {
            self.children.remove(name);
            self.note_pid(name, None);
        }
        self.save()?;
        outcome
    }

    /// Stops the nodes of a group, and removes the group, and their data too if `wipe` is true.
    pub(super) async fn remove_group(&mut self, group: &str, wipe: bool) -> Result<(), Failure> {
        let nodes: Vec<NodeLayout> = self.layout.nodes_of(group).cloned().collect();
        let names: Vec<String> = nodes.iter().map(|node| node.name.clone()).collect();
        self.stop_some(&names).await?;
        for node in nodes.iter().filter(|_| wipe) {
            let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
            match fs::remove_dir_all(&node.data_dir) {
                Err(error) if !gone(&error) => {
                    return Err(Failure::file("remove", &node.data_dir, &error));
                }
                _ => {}
            }
            for log in [&node.log, &process::old_log(&node.log)] {
                match fs::remove_file(log) {
                    Err(error) if !gone(&error) => {
                        return Err(Failure::file("remove", log, &error));
                    }
                    _ => {}
                }
            }
        }
        self.layout.remove(group);
        self.save()
    }
}

/// Reports on standard error that a node did not stop gracefully.
fn tell_how(
    name: &str,
    stopped: io::Result<(ExitStatus, bool)>,
    patience: Duration,
) -> Result<(), Failure> {
    match stopped {
        Ok((_, true)) => eprintln!(
            "{name} did not stop within {} s and was killed",
            patience.as_secs_f64()
        ),
        Ok((status, false)) if !status.success() => eprintln!("{name} stopped badly: {status}"),
        Ok(_) => {}
        Err(error) => return Err(cant_signal(&error).context(name)),
    }
    Ok(())
}

/// Removes the content of a data folder, but not the folder, which may be a mount point.
fn wipe_data(folder: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true if entry.file_name() == "lost+found" => {}
            true => fs::remove_dir_all(entry.path())?,
            false => fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}

fn cant_signal(error: &io::Error) -> Failure {
    Failure::failed(
        format!("can't control a node's process: {error}"),
        "look at `shardkv playground status`",
    )
}

async fn any_end(children: &mut BTreeMap<String, Child>) -> (String, io::Result<ExitStatus>) {
    let waits: Vec<_> = children
        .iter_mut()
        .map(|(name, child)| Box::pin(async move { (name.clone(), child.wait().await) }))
        .collect();
    if waits.is_empty() {
        return pending().await;
    }
    futures::future::select_all(waits).await.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wiping_leaves_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("node-1");
        wipe_data(&data).unwrap();
        fs::create_dir_all(data.join("log/deep")).unwrap();
        fs::create_dir_all(data.join("lost+found")).unwrap();
        fs::write(data.join("log/deep/file"), "x").unwrap();
        fs::write(data.join("identity"), "x").unwrap();
        wipe_data(&data).unwrap();
        let left: Vec<_> = fs::read_dir(&data)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, ["lost+found"]);
    }

    #[tokio::test]
    async fn any_end_tells_which() {
        let spawn = |program: &str| {
            let mut command = tokio::process::Command::new(program);
            command.arg("1000").kill_on_drop(true).spawn().unwrap()
        };
        let mut children = BTreeMap::from([
            ("a".to_owned(), spawn("sleep")),
            ("b".to_owned(), spawn("false")),
        ]);
        let (name, status) = any_end(&mut children).await;
        assert_eq!((name.as_str(), status.unwrap().code()), ("b", Some(1)));
    }
}
