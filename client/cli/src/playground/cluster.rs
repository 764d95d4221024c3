//! The playground itself: the parent of the nodes.
//!
//! One loop owns all state. It waits for the next event: the end of a node, an order, a line typed at the prompt, the first
//! leaders, a report about groups that join and leave, or a request to stop. It executes orders one after the other; only
//! `scale`, which lasts as long as the shards move, runs beside them ([`super::scale`]).

use std::future::pending;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use indicatif::ProgressBar;
use shardkv_client::{Client, Gid};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, sleep_until};

use super::announce::announce;
use super::control::{self, Order, Reply, Request, reply};
use super::keyspace::create_fallback;
use super::layout::{Layout, Lock, NodeLayout, Stage};
use super::nodes::Nodes;
use super::place::{Place, StopRequest, stop_requested};
use super::ports;
use super::process::Program;
use super::prompt::{self, Prompt};
use super::scale::{News, Plan, Scaler};
use super::start::StartArgs;
use super::watch::{self, Least};
use crate::exit::{Exit, Failure};
use crate::move_progress::{MoveProgress, MoveProgressBar};
use crate::output::Format;

/// The interval between checks of the logs' sizes.
const TRIM_EVERY: Duration = Duration::from_secs(5);

/// Runs a playground until it is stopped.
pub(super) async fn run(args: &StartArgs, format: Format) -> Result<Exit, Failure> {
    let program = Program {
        binary: Program::find(args.node_binary.as_deref())?,
        extra: args.node_args.clone(),
    };
    let place = Place::open(args.dir.as_deref())?;
    let result = run_in(&place.dir, args, program, format).await;
    place.close(result.is_ok());
    result
}

async fn run_in(
    dir: &Path,
    args: &StartArgs,
    program: Program,
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
    ports::check_free(layout.addresses())?;
    layout.pid = Some(std::process::id());
    layout.ready = false;
    layout.nodes.iter_mut().for_each(|node| node.pid = None);
    let mut cluster = Cluster {
        client: watch::client(&layout)?,
        nodes: Nodes::new(
            dir.to_path_buf(),
            layout,
            program,
            args.start_timeout,
            args.stop_timeout,
        ),
        leaders: Vec::new(),
        scaler: None,
        trim_at: Instant::now() + TRIM_EVERY,
        plan_number: 0,
        waiters: Vec::new(),
        prompt: Prompt::open(args.stop_on_stdin_eof),
        spinner: ProgressBar::hidden(),
        format,
        _lock: lock,
    };
    // Catch signals before the first node starts, so that a signal never leaves a node running.
    let stop = stop_requested()?;
    let ran = match cluster.nodes.start_all() {
        Ok(()) => cluster.serve(stop).await,
        Err(failure) => Err(failure),
    };
    let stopped = cluster.nodes.stop_all().await;
    ran.and(stopped).map(|()| Exit::Ok)
}

struct Cluster {
    nodes: Nodes,
    client: Client,
    /// The leaders at the moment when all groups first had one; empty before.
    leaders: Vec<NodeLayout>,
    /// Joins and removes groups, once there are leaders, if there are controllers.
    scaler: Option<Scaler>,
    /// The moment at which the sizes of the logs are checked next.
    trim_at: Instant,
    plan_number: u64,
    waiters: Vec<Waiter>,
    prompt: Option<Prompt>,
    spinner: ProgressBar,
    format: Format,
    _lock: Lock,
}

/// A caller or a person at the prompt that waits until the groups are as requested.
enum Waiter {
    Caller(UnixStream),
    Person(MoveProgressBar),
}

/// An event that a playground handles.
enum Event {
    Stop(&'static str),
    /// A node ended.
    Ended(String, io::Result<ExitStatus>),
    /// All groups have these leaders.
    Led(Vec<NodeLayout>),
    Late,
    News(News),
    Order(UnixStream),
    Typed(String),
    Trim,
}

/// The action after an event.
enum After {
    Next,
    Down,
}

impl Cluster {
    /// Runs until a stop is requested or a failure.
    async fn serve(&mut self, mut stop: StopRequest) -> Result<(), Failure> {
        let listener = control::listen(&self.nodes.dir)?;
        self.spinner = self.start_spinner();
        let deadline = Instant::now() + self.nodes.start_timeout;
        loop {
            let event = self.event(&mut stop, &listener, deadline).await;
            // A signal also interrupts an order that takes long.
            let after = tokio::select! {
                biased;
                after = self.handle(event) => after?,
                why = &mut stop => {
                    self.say_stopping(why);
                    After::Down
                }
            };
            if let After::Down = after {
                return Ok(());
            }
        }
    }

    async fn event(
        &mut self,
        stop: &mut StopRequest,
        listener: &UnixListener,
        deadline: Instant,
    ) -> Event {
        let ready = self.nodes.layout.ready;
        let unled = self.leaders.is_empty();
        let layout = self.nodes.layout.clone();
        let led = async {
            if !unled {
                return pending().await;
            }
            let led = watch::until_led(&self.client, &layout, Least::All).await;
            led.into_iter().map(|(_, node)| node).collect()
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
        let news = async {
            let news = match &mut self.scaler {
                Some(scaler) => scaler.news().await,
                None => None,
            };
            match news {
                Some(news) => news,
                None => pending().await,
            }
        };
        let typed = async {
            match &mut self.prompt {
                Some(prompt) => prompt.next().await,
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            why = stop => Event::Stop(why),
            (name, status) = self.nodes.any_end() => Event::Ended(name, status),
            stream = accepted => Event::Order(stream),
            line = typed => line.map_or(Event::Stop("standard input ended"), Event::Typed),
            news = news => Event::News(news),
            leaders = led => Event::Led(leaders),
            () = late => Event::Late,
            () = sleep_until(self.trim_at) => Event::Trim,
        }
    }

    async fn handle(&mut self, event: Event) -> Result<After, Failure> {
        match event {
            Event::Stop(why) => {
                self.say_stopping(why);
                return Ok(After::Down);
            }
            Event::Ended(name, status) => self.ended(&name, status)?,
            Event::Led(leaders) => self.led(leaders).await?,
            Event::Late => return Err(self.late()),
            Event::News(news) => self.news(news).await?,
            Event::Order(mut stream) => {
                // Ignore a caller that sends an invalid request or disconnects.
                if let Ok(request) = control::receive(&mut stream).await {
                    return self.order(request, stream).await;
                }
            }
            Event::Typed(line) => return self.typed(&line).await,
            Event::Trim => {
                self.nodes.trim_logs();
                self.trim_at = Instant::now() + TRIM_EVERY;
            }
        }
        Ok(After::Next)
    }

    /// Handles the unexpected end of a node.
    fn ended(&mut self, name: &str, status: io::Result<ExitStatus>) -> Result<(), Failure> {
        let ready = self.nodes.layout.ready;
        let ended = match self.nodes.ended(name, status) {
            Ok(ended) if ready => ended,
            // A full disk, on which the layout can't be saved, must not end the other nodes too.
            Err(unsaved) if ready => unsaved,
            Ok(failure) | Err(failure) => return Err(failure),
        };
        let (message, next) = ended.into_words();
        eprintln!("{message}\n next: {next}");
        Ok(())
    }

    /// Handles the first leaders: lets the groups join, or announces that the playground is ready.
    async fn led(&mut self, leaders: Vec<NodeLayout>) -> Result<(), Failure> {
        self.leaders = leaders;
        if self.nodes.layout.is_sharded() {
            self.spinner.set_message("the groups get their shards");
            let client = self.client.with_timeout(Duration::from_secs(10));
            self.plan_number += 1;
            let plan = Plan::of(&self.nodes.layout, self.plan_number);
            self.scaler = Some(Scaler::new(client, plan));
            return Ok(());
        }
        self.get_ready().await
    }

    async fn get_ready(&mut self) -> Result<(), Failure> {
        if self.nodes.layout.ready {
            return Ok(());
        }
        self.spinner.set_message("the first keyspace is created");
        create_fallback(&self.client, &self.nodes.program.extra).await;
        self.spinner.finish_and_clear();
        self.nodes.layout.ready = true;
        self.nodes.save()?;
        let person = self.prompt.is_some();
        announce(
            &self.nodes.dir,
            &self.nodes.layout,
            &self.leaders,
            self.format,
            person,
        )?;
        self.show_prompt();
        Ok(())
    }

    fn late(&self) -> Failure {
        let what = if self.leaders.is_empty() {
            "the nodes had no leader"
        } else {
            "the groups did not get their shards"
        };
        Failure::new(
            Exit::Unavailable,
            format!("{what} within {} s", self.nodes.start_timeout.as_secs_f64()),
            "read the nodes' log files; a slow machine needs a longer --start-timeout",
        )
    }

    async fn news(&mut self, news: News) -> Result<(), Failure> {
        match news {
            News::Progress(moving) => self.progress(&moving).await,
            News::Joined(gids) => {
                for group in &mut self.nodes.layout.groups {
                    let joined = gids.iter().any(|gid| gid.0 == group.gid);
                    if joined && group.stage == Stage::Joining {
                        group.stage = Stage::Member;
                    }
                }
                self.nodes.save()?;
                self.replan();
                // Groups that were leaving when the playground was stopped may need long, so don't wait for them.
                let layout = &self.nodes.layout;
                if layout.groups.iter().any(|it| it.stage == Stage::Leaving) {
                    self.get_ready().await?;
                }
            }
            News::Drained(gid) => self.left(gid, true).await?,
            News::Gone(gid) => self.left(gid, false).await?,
            News::Settled(number) if number == self.plan_number => {
                self.get_ready().await?;
                self.scaled().await;
            }
            News::Settled(_) => {}
        }
        Ok(())
    }

    /// Lets a group go that has left the cluster. Only the data of a drained group are removed.
    async fn left(&mut self, gid: Gid, drained: bool) -> Result<(), Failure> {
        let mut groups = self.nodes.layout.groups.iter();
        let leaving = groups.find(|it| it.gid == gid.0 && it.stage == Stage::Leaving);
        if let Some(name) = leaving.map(|group| group.name.clone()) {
            self.nodes.remove_group(&name, drained).await?;
            if !drained {
                eprintln!(
                    "{name} is no part of the cluster and wasn't drained: its nodes are stopped, and their data stay in {}",
                    self.nodes.dir.display()
                );
            }
        }
        self.replan();
        Ok(())
    }

    fn replan(&mut self) {
        self.plan_number += 1;
        if let Some(scaler) = &self.scaler {
            scaler.plan(Plan::of(&self.nodes.layout, self.plan_number));
        }
    }

    async fn progress(&mut self, moving: &MoveProgress) {
        if !self.nodes.layout.ready {
            self.spinner.set_message(moving.line());
        }
        let news = Reply::Progress(moving.clone());
        let mut staying = Vec::new();
        for mut waiter in self.waiters.drain(..) {
            let there = match &mut waiter {
                Waiter::Person(bar) => {
                    bar.show(moving);
                    true
                }
                // A caller that disconnected no longer waits; the change continues.
                Waiter::Caller(stream) => control::answer(stream, &news).await.is_ok(),
            };
            if there {
                staying.push(waiter);
            }
        }
        self.waiters = staying;
    }

    /// Answers all waiters: the groups are as requested.
    async fn scaled(&mut self) {
        let groups = self.nodes.layout.groups.iter();
        let members = groups.filter(|group| group.gid != 0);
        let done = Reply::Scaled {
            groups: members.map(|group| group.name.clone()).collect(),
        };
        for waiter in self.waiters.drain(..) {
            match waiter {
                Waiter::Caller(mut stream) => {
                    let _ = control::answer(&mut stream, &done).await;
                }
                Waiter::Person(bar) => {
                    bar.finish();
                    let _ = watch::write_reply(&done, Format::Table, &mut io::stderr());
                    if let Some(prompt) = &self.prompt {
                        prompt.show();
                    }
                }
            }
        }
    }

    async fn order(&mut self, request: Request, mut stream: UnixStream) -> Result<After, Failure> {
        let result = match request.order {
            Order::Scale { groups } => match self.scale(groups) {
                Ok(()) => {
                    self.waiters.push(Waiter::Caller(stream));
                    return Ok(After::Next);
                }
                Err(failure) => Err(failure),
            },
            Order::Down => {
                let stopped = self.nodes.stop_all().await;
                let done = stopped.map(|()| Reply::Done {
                    node: "all".to_owned(),
                    pid: None,
                });
                let _ = control::answer(&mut stream, &reply(done)).await;
                return Ok(After::Down);
            }
            _ => self.obey(&request).await,
        };
        let _ = control::answer(&mut stream, &reply(result)).await;
        Ok(After::Next)
    }

    /// Executes a line typed at the prompt.
    async fn typed(&mut self, line: &str) -> Result<After, Failure> {
        let mut out = io::stderr();
        let result = match prompt::parse(line, &mut out) {
            Ok(None) => Ok(Exit::Ok),
            Err(failure) => Err(failure),
            Ok(Some(typed)) => match typed.request() {
                None => {
                    let layout = &self.nodes.layout;
                    watch::show(&self.client, layout, Format::Table, &mut out).await
                }
                Some(request) => match request.order {
                    Order::Down => return Ok(After::Down),
                    Order::Scale { groups } => match self.scale(groups) {
                        Ok(()) => {
                            self.waiters.push(Waiter::Person(MoveProgressBar::new()));
                            return Ok(After::Next);
                        }
                        Err(failure) => Err(failure),
                    },
                    _ => match self.obey(&request).await {
                        Ok(reply) => watch::write_reply(&reply, Format::Table, &mut out),
                        Err(failure) => Err(failure),
                    },
                },
            },
        };
        if let Err(failure) = result {
            eprintln!("{failure}");
        }
        self.show_prompt();
        Ok(After::Next)
    }

    async fn obey(&mut self, request: &Request) -> Result<Reply, Failure> {
        let (dir, layout) = (&self.nodes.dir, &self.nodes.layout);
        let node = watch::find(&self.client, layout, dir, &request.node).await?;
        let pid = self.nodes.obey(request.order, &node).await?;
        Ok(Reply::Done { node, pid })
    }

    /// Starts to change the number of groups that share the shards.
    fn scale(&mut self, groups: u16) -> Result<(), Failure> {
        let layout = &mut self.nodes.layout;
        if !layout.is_sharded() {
            return Err(Failure::usage(
                "this playground is one standalone group, which has all shards",
                "start one that can grow: `shardkv playground --groups 2`, with another --dir",
            ));
        }
        if !layout.ready {
            return Err(Failure::failed(
                "the playground is starting",
                "wait for it: `shardkv playground wait`",
            ));
        }
        let (now, wanted) = (layout.wanted_groups(), usize::from(groups));
        if wanted > now {
            let more = u64::try_from(wanted - now).unwrap_or(0);
            layout.grow(&self.nodes.dir, more)?;
            self.nodes.save()?;
            self.nodes.start_all()?;
        } else {
            layout.shrink(now - wanted);
            self.nodes.save()?;
        }
        self.replan();
        Ok(())
    }

    fn say_stopping(&self, why: &str) {
        self.spinner.finish_and_clear();
        eprintln!("{why}: stopping {} nodes", self.nodes.running());
    }

    fn show_prompt(&self) {
        let _ = io::stderr().flush();
        if let Some(prompt) = &self.prompt {
            prompt.show();
        }
    }

    fn start_spinner(&self) -> ProgressBar {
        if !io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let count = self.nodes.layout.nodes.len();
        let spinner =
            ProgressBar::new_spinner().with_message(format!("{count} nodes elect their leaders"));
        spinner.enable_steady_tick(Duration::from_millis(100));
        spinner
    }
}
