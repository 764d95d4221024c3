//! The playground itself: the parent of the nodes.
//!
//! One loop owns everything. It waits for whatever comes first: a node that ends, an order, a leader (at the start), or
//! the word to stop. Orders are carried out one after the other.

use std::fs;
use std::future::{Future, pending};
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::ExitStatus;
use std::time::Duration;

use client::Client;
use indicatif::ProgressBar;
use rustix::process::Signal;
use serde_json::json;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpStream, UnixListener};
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, sleep_until};

use super::StartArgs;
use super::control::{self, Order, Reply};
use super::layout::{Layout, Lock, check_free};
use super::process::{self, Program};
use super::watch;
use crate::exit::{Exit, Failure};
use crate::output::{Format, Table, json_line};

/// How often a restarted node is asked whether it answers.
const POLL: Duration = Duration::from_millis(20);

/// Runs a playground until it is stopped.
pub(super) async fn run(args: &StartArgs, format: Format) -> Result<Exit, Failure> {
    let binary = Program::find(args.node_binary.as_deref())?;
    let place = Place::open(args.dir.as_deref())?;
    let result = run_in(&place.dir, args, binary, format).await;
    place.close(result.is_ok());
    result
}

/// The folder of a playground.
struct Place {
    dir: PathBuf,
    /// A folder that nobody asked to keep.
    temporary: Option<tempfile::TempDir>,
}

impl Place {
    fn open(asked: Option<&Path>) -> Result<Self, Failure> {
        if let Some(dir) = asked {
            fs::create_dir_all(dir).map_err(|error| Failure::file("create", dir, &error))?;
            let dir = dir
                .canonicalize()
                .map_err(|error| Failure::file("open", dir, &error))?;
            return Ok(Self {
                dir,
                temporary: None,
            });
        }
        let made = tempfile::Builder::new()
            .prefix("shardkv-playground-")
            .tempdir();
        let temporary = made
            .map_err(|error| Failure::file("create a folder in", &std::env::temp_dir(), &error))?;
        Ok(Self {
            dir: temporary.path().to_path_buf(),
            temporary: Some(temporary),
        })
    }

    /// Removes what nobody wants. After a failure the logs are wanted.
    fn close(self, well: bool) {
        match self.temporary {
            None => eprintln!("the data stays in {}", self.dir.display()),
            Some(temporary) if well => drop(temporary),
            Some(temporary) => eprintln!("logs and data stay in {}", temporary.keep().display()),
        }
    }
}

async fn run_in(
    dir: &Path,
    args: &StartArgs,
    binary: PathBuf,
    format: Format,
) -> Result<Exit, Failure> {
    let lock = Lock::take(dir)?;
    let mut layout = Layout::open(dir, args)?;
    if let Some((node, pid)) = watch::left_over(&layout).first() {
        return Err(Failure::failed(
            format!(
                "{} (pid {pid}) of an earlier playground still runs",
                node.name
            ),
            format!("stop it: `shardkv playground down --dir {}`", dir.display()),
        ));
    }
    check_free(&layout.nodes)?;
    layout.pid = Some(std::process::id());
    layout.ready = false;
    layout.nodes.iter_mut().for_each(|node| node.pid = None);
    let program = Program {
        binary,
        peers: layout.endpoints.clone(),
        extra: args.node_args.clone(),
    };
    let mut cluster = Cluster {
        dir: dir.to_path_buf(),
        client: watch::client(&layout)?,
        children: layout.nodes.iter().map(|_| None).collect(),
        layout,
        program,
        start_timeout: args.start_timeout,
        stop_timeout: args.stop_timeout,
        format,
        _lock: lock,
    };
    // Signals are caught from before the first node runs, so that none is left behind.
    let stop = stop_requested(args.stop_on_stdin_eof)?;
    let ran = cluster.start_all();
    let ran = match ran {
        Ok(()) => cluster.serve(stop).await,
        Err(failure) => Err(failure),
    };
    let stopped = cluster.stop_all().await;
    ran.and(stopped).map(|()| Exit::Ok)
}

type StopRequest = Pin<Box<dyn Future<Output = &'static str>>>;

/// Ends when a person or a program wants the playground to stop; says what happened.
fn stop_requested(stdin_too: bool) -> Result<StopRequest, Failure> {
    let catch = |kind| {
        signal(kind)
            .map_err(|error| Failure::failed(format!("can't catch signals: {error}"), "try again"))
    };
    let mut interrupt = catch(SignalKind::interrupt())?;
    let mut terminate = catch(SignalKind::terminate())?;
    let mut hangup = catch(SignalKind::hangup())?;
    let stdin_ended = async move {
        if !stdin_too {
            return pending().await;
        }
        let mut stdin = tokio::io::stdin();
        let mut buffer = [0; 1_024];
        while matches!(stdin.read(&mut buffer).await, Ok(read) if read > 0) {}
    };
    Ok(Box::pin(async move {
        tokio::select! {
            _ = interrupt.recv() => "interrupted",
            _ = terminate.recv() => "asked to stop",
            _ = hangup.recv() => "the terminal is gone",
            () = stdin_ended => "standard input ended",
        }
    }))
}

struct Cluster {
    dir: PathBuf,
    layout: Layout,
    /// The nodes' processes, in the layout's order.
    children: Vec<Option<Child>>,
    program: Program,
    client: Client,
    start_timeout: Duration,
    stop_timeout: Duration,
    format: Format,
    _lock: Lock,
}

/// What happens to a playground.
enum Event {
    Stop(&'static str),
    /// The node at this place ended.
    Ended(usize, io::Result<ExitStatus>),
    /// All nodes follow the one at this place.
    Led(usize),
    Late,
    Order(tokio::net::UnixStream),
}

impl Cluster {
    fn start_all(&mut self) -> Result<(), Failure> {
        (0..self.children.len()).try_for_each(|at| self.start(at))
    }

    fn start(&mut self, at: usize) -> Result<(), Failure> {
        let (Some(node), Some(child)) = (self.layout.nodes.get_mut(at), self.children.get_mut(at))
        else {
            return Ok(());
        };
        let started = self.program.start(node);
        let started =
            started.map_err(|error| Failure::file("start", &self.program.binary, &error))?;
        node.pid = started.id();
        *child = Some(started);
        self.layout.save(&self.dir)
    }

    /// Runs until the end, good or bad.
    async fn serve(&mut self, mut stop: StopRequest) -> Result<(), Failure> {
        let listener = control::listen(&self.dir)?;
        let spinner = self.spinner();
        let deadline = Instant::now() + self.start_timeout;
        loop {
            match self.event(&mut stop, &listener, deadline).await {
                Event::Stop(why) => {
                    spinner.finish_and_clear();
                    self.say_stopping(why);
                    return Ok(());
                }
                Event::Ended(at, status) => self.ended(at, status)?,
                Event::Led(at) => {
                    spinner.finish_and_clear();
                    self.layout.ready = true;
                    self.layout.save(&self.dir)?;
                    self.announce(at)?;
                }
                Event::Late => {
                    return Err(Failure::new(
                        Exit::Unavailable,
                        format!(
                            "the nodes had no leader within {} s",
                            self.start_timeout.as_secs_f64()
                        ),
                        "read the nodes' log files; a slow machine needs a longer --start-timeout",
                    ));
                }
                Event::Order(mut stream) => {
                    // A caller that asks nonsense or leaves is its own problem.
                    let Ok(request) = control::receive(&mut stream).await else {
                        continue;
                    };
                    if request.order == Order::Down {
                        let stopped = self.stop_all().await;
                        let reply = stopped.map(|()| Reply::Done {
                            node: "all".to_owned(),
                            pid: None,
                        });
                        let _ = control::answer(&mut stream, reply).await;
                        return Ok(());
                    }
                    // Even an order that takes its time can be cut short.
                    let result = tokio::select! {
                        result = self.obey(request.order, &request.node) => result,
                        why = &mut stop => {
                            self.say_stopping(why);
                            return Ok(());
                        }
                    };
                    let _ = control::answer(&mut stream, result).await;
                }
            }
        }
    }

    async fn event(
        &mut self,
        stop: &mut StopRequest,
        listener: &UnixListener,
        deadline: Instant,
    ) -> Event {
        let (layout, client, ready) = (&self.layout, &self.client, self.layout.ready);
        let led = async {
            if ready {
                return pending().await;
            }
            watch::until_led(client, layout, layout.nodes.len()).await
        };
        let late = async {
            if ready {
                return pending().await;
            }
            sleep_until(deadline).await;
        };
        let accepted = async {
            match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(_) => pending().await,
            }
        };
        tokio::select! {
            biased;
            why = stop => Event::Stop(why),
            (at, status) = any_end(&mut self.children) => Event::Ended(at, status),
            stream = accepted => Event::Order(stream),
            at = led => Event::Led(at),
            () = late => Event::Late,
        }
    }

    /// A node ended without our word.
    fn ended(&mut self, at: usize, status: io::Result<ExitStatus>) -> Result<(), Failure> {
        let pid = self.forget(at)?;
        let Some(node) = self.layout.nodes.get(at) else {
            return Ok(());
        };
        let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        let what = format!(
            "{} (pid {}) ended by itself: {how}",
            node.name,
            pid.unwrap_or(0)
        );
        if self.layout.ready {
            eprintln!(
                "{what}; its log: {}; start it again: shardkv playground restart {} --dir {}",
                node.log.display(),
                node.name,
                self.dir.display()
            );
            return Ok(());
        }
        Err(Failure::failed(
            format!("{what}\n{}", process::log_tail(&node.log)),
            format!("read all of its log: {}", node.log.display()),
        ))
    }

    /// Takes note that the node at this place has no process. Returns the one that it had.
    fn forget(&mut self, at: usize) -> Result<Option<u32>, Failure> {
        if let Some(child) = self.children.get_mut(at) {
            *child = None;
        }
        let pid = self
            .layout
            .nodes
            .get_mut(at)
            .and_then(|node| node.pid.take());
        self.layout.save(&self.dir)?;
        Ok(pid)
    }

    fn say_stopping(&self, why: &str) {
        let running = self.children.iter().flatten().count();
        eprintln!("{why}: stopping {running} nodes");
    }

    async fn obey(&mut self, order: Order, name: &str) -> Result<Reply, Failure> {
        let at = self.find(name).await?;
        let pid = match order {
            Order::Kill => self.kill(at).await?,
            Order::Stop => self.signal(at, Signal::STOP)?,
            Order::Cont => self.signal(at, Signal::CONT)?,
            Order::Term => {
                self.child(at)?;
                self.stop(at).await?
            }
            Order::Restart { wipe } => self.restart(at, wipe).await?,
            Order::Down => None,
        };
        let node = self.layout.nodes.get(at).map(|node| node.name.clone());
        Ok(Reply::Done {
            node: node.unwrap_or_default(),
            pid,
        })
    }

    /// The place of a node that is named by its name, its address, or as the leader.
    async fn find(&self, name: &str) -> Result<usize, Failure> {
        if name == "leader" {
            let statuses = watch::statuses(&self.client, &self.layout).await;
            return watch::leader(&statuses).map(|(at, _)| at).ok_or_else(|| {
                Failure::failed(
                    "no node leads now",
                    format!(
                        "wait for one: `shardkv playground wait --dir {}`",
                        self.dir.display()
                    ),
                )
            });
        }
        let mut nodes = self.layout.nodes.iter();
        nodes
            .position(|node| node.name == name || node.address == name)
            .ok_or_else(|| {
                let names: Vec<&str> = self
                    .layout
                    .nodes
                    .iter()
                    .map(|node| node.name.as_str())
                    .collect();
                Failure::usage(
                    format!("there is no node {name:?}"),
                    format!("name one of {}, or leader", names.join(", ")),
                )
            })
    }

    fn child(&mut self, at: usize) -> Result<&mut Child, Failure> {
        let name = self.layout.nodes.get(at).map_or("", |node| &node.name);
        self.children
            .get_mut(at)
            .and_then(Option::as_mut)
            .ok_or_else(|| {
                Failure::failed(
                    format!("{name} does not run"),
                    format!(
                        "start it: `shardkv playground restart {name} --dir {}`",
                        self.dir.display()
                    ),
                )
            })
    }

    fn signal(&mut self, at: usize, signal: Signal) -> Result<Option<u32>, Failure> {
        let child = self.child(at)?;
        process::signal(child, signal).map_err(|error| cant_signal(&error))?;
        Ok(child.id())
    }

    async fn kill(&mut self, at: usize) -> Result<Option<u32>, Failure> {
        let child = self.child(at)?;
        child.start_kill().map_err(|error| cant_signal(&error))?;
        child.wait().await.map_err(|error| cant_signal(&error))?;
        self.forget(at)
    }

    /// Stops a node in good order, if it runs.
    async fn stop(&mut self, at: usize) -> Result<Option<u32>, Failure> {
        let patience = self.stop_timeout;
        let Some(child) = self.children.get_mut(at).and_then(Option::as_mut) else {
            return Ok(None);
        };
        let (status, killed) = process::stop(child, patience)
            .await
            .map_err(|error| cant_signal(&error))?;
        let pid = self.forget(at)?;
        let name = self.layout.nodes.get(at).map_or("", |node| &node.name);
        if killed {
            eprintln!(
                "{name} did not stop within {} s and was killed",
                patience.as_secs_f64()
            );
        } else if !status.success() {
            eprintln!("{name} stopped badly: {status}");
        }
        Ok(pid)
    }

    /// Starts a node, after stopping it if it runs, and waits until it answers.
    async fn restart(&mut self, at: usize, wipe: bool) -> Result<Option<u32>, Failure> {
        self.stop(at).await?;
        let Some(node) = self.layout.nodes.get(at).cloned() else {
            return Ok(None);
        };
        if wipe {
            wipe_data(&node.data_dir)
                .map_err(|error| Failure::file("remove", &node.data_dir, &error))?;
        }
        self.start(at)?;
        let deadline = Instant::now() + self.start_timeout;
        while TcpStream::connect(&node.address).await.is_err() {
            let ended = self
                .child(at)?
                .try_wait()
                .map_err(|error| cant_signal(&error))?;
            if let Some(status) = ended {
                self.forget(at)?;
                return Err(Failure::failed(
                    format!(
                        "{} ended at once: {status}\n{}",
                        node.name,
                        process::log_tail(&node.log)
                    ),
                    format!("read all of its log: {}", node.log.display()),
                ));
            }
            if Instant::now() >= deadline {
                return Err(Failure::failed(
                    format!(
                        "{} runs, but does not answer at {}",
                        node.name, node.address
                    ),
                    format!("read its log: {}", node.log.display()),
                ));
            }
            sleep(POLL).await;
        }
        Ok(self.child(at)?.id())
    }

    /// Stops all nodes at the same time.
    async fn stop_all(&mut self) -> Result<(), Failure> {
        let patience = self.stop_timeout;
        let children = self.children.iter_mut().zip(&self.layout.nodes);
        let stops = children.filter_map(|(child, node)| {
            let child = child.as_mut()?;
            Some(async move { (node.name.clone(), process::stop(child, patience).await) })
        });
        let mut trouble = None;
        for (name, stopped) in futures::future::join_all(stops).await {
            match stopped {
                Ok((_, true)) => eprintln!(
                    "{name} did not stop within {} s and was killed",
                    patience.as_secs_f64()
                ),
                Ok((status, false)) if !status.success() => {
                    eprintln!("{name} stopped badly: {status}");
                }
                Ok(_) => {}
                Err(error) => trouble = Some(cant_signal(&error).context(&name)),
            }
        }
        self.children.iter_mut().for_each(|child| *child = None);
        self.layout
            .nodes
            .iter_mut()
            .for_each(|node| node.pid = None);
        (self.layout.pid, self.layout.ready) = (None, false);
        self.layout.save(&self.dir)?;
        trouble.map_or(Ok(()), Err)
    }

    fn spinner(&self) -> ProgressBar {
        if !io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let count = self.layout.nodes.len();
        let spinner =
            ProgressBar::new_spinner().with_message(format!("{count} nodes elect a leader"));
        spinner.enable_steady_tick(Duration::from_millis(100));
        spinner
    }

    /// Tells that the cluster is ready, with what a person or a script needs next.
    fn announce(&self, leader: usize) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        let leader = self.layout.nodes.get(leader).map_or("", |node| &node.name);
        if self.format == Format::Json {
            let mut ready = json!({"leader": leader, "dir": self.dir});
            if let (Some(ready), Ok(serde_json::Value::Object(layout))) =
                (ready.as_object_mut(), serde_json::to_value(&self.layout))
            {
                ready.extend(layout);
            }
            json_line(&mut out, &ready)?;
            return Ok(out.flush()?);
        }
        let mut table = Table::new(&["NODE", "ADDRESS", "METRICS", "PID", "LOG FILE", ""]);
        for node in &self.layout.nodes {
            table.row(vec![
                node.name.clone(),
                node.address.clone(),
                format!("http://{}/metrics", node.metrics),
                node.pid.map(|pid| pid.to_string()).unwrap_or_default(),
                node.log.display().to_string(),
                if node.name == leader { "leads" } else { "" }.to_owned(),
            ]);
        }
        table.write(&mut out)?;
        writeln!(
            out,
            "\nIn another terminal:\n  export SHARDKV_ENDPOINTS={}\n  shardkv put greeting hello && shardkv get greeting\n  \
             shardkv playground kill leader --dir {}\n\nCtrl-C stops the cluster.",
            self.layout.endpoints,
            self.dir.display()
        )?;
        Ok(out.flush()?)
    }
}

/// Removes all that is in a data folder, but not the folder, which may be a mount point.
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

/// Waits until any child ends; forever if there is none.
async fn any_end(children: &mut [Option<Child>]) -> (usize, io::Result<ExitStatus>) {
    let running = children.iter_mut().enumerate();
    let waits: Vec<_> = running
        .filter_map(|(at, child)| Some((at, child.as_mut()?)))
        .map(|(at, child)| Box::pin(async move { (at, child.wait().await) }))
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
        let mut children = [None, Some(spawn("sleep")), Some(spawn("false"))];
        let (at, status) = any_end(&mut children).await;
        assert_eq!((at, status.unwrap().code()), (2, Some(1)));
    }
}
