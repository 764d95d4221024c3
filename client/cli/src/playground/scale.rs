//! Joins and removes groups while the playground continues with everything else.
//!
//! The playground keeps a [`Plan`]: which groups are to join and which to leave. A task works on it against the
//! controllers, one careful step after the other, and tells the playground its [`News`]; the playground answers each
//! step with a new plan. So the plan may change at any time (a `scale 3` in the middle of a `scale 5`) without any step
//! being cut in two, and a playground that was stopped half-way goes on when it is started again, because what its
//! groups are doing stands in its file.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{LocalBoxFuture, join_all};
use shardkv_client::{Client, ConfigView, Gid, Role};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use super::layout::{Kind, Layout, Stage};
use crate::cluster_view::views;
use crate::exit::Failure;
use crate::move_progress::{MoveProgress, MoveTracker};

/// Interval between polls of the progress.
const POLL: Duration = Duration::from_millis(100);
/// Time limit for the status call that finds a leader.
const STATUS_TIMEOUT: Duration = Duration::from_secs(1);

/// The groups to join and the groups to remove.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// The number of this plan.
    pub(super) number: u64,
    /// The groups to join, with their nodes' addresses.
    pub(super) joining: BTreeMap<Gid, Vec<String>>,
    /// The groups to leave.
    pub(super) leaving: BTreeSet<Gid>,
}

impl Plan {
    /// Makes the plan from the stages of the layout's groups.
    pub(super) fn of(layout: &Layout, number: u64) -> Self {
        let of = |stage| {
            let groups = layout.groups.iter();
            groups.filter(move |it| it.kind == Kind::Shards && it.stage == stage)
        };
        Self {
            number,
            joining: of(Stage::Joining)
                .map(|group| (Gid(group.gid), layout.addresses_of(&group.name)))
                .collect(),
            leaving: of(Stage::Leaving).map(|group| Gid(group.gid)).collect(),
        }
    }
}

/// A report of the task.
#[derive(Debug)]
pub(super) enum News {
    /// These groups are part of the cluster. A new plan is awaited.
    Joined(Vec<Gid>),
    /// Nothing needs this group any more. A new plan is awaited.
    Drained(Gid),
    /// This group is no part of the cluster, but wasn't drained: it was forgotten, or never joined. A new plan is awaited.
    Gone(Gid),
    /// The progress, or the obstacle.
    Progress(MoveProgress),
    /// The plan of this number is complete, and every shard is at its target.
    Settled(u64),
}

/// A handle of the task. The task runs only while [`Self::news`] is polled.
pub(super) struct Scaler {
    plans: watch::Sender<Plan>,
    news: mpsc::Receiver<News>,
    task: LocalBoxFuture<'static, ()>,
}

impl Scaler {
    /// Makes the task with its first plan.
    pub(super) fn new(client: Client, plan: Plan) -> Self {
        let (plans, planned) = watch::channel(plan);
        let (sender, news) = mpsc::channel(16);
        let worker = Worker {
            client,
            news: sender,
            tracker: None,
        };
        Self {
            plans,
            news,
            task: worker.run(planned).boxed_local(),
        }
    }

    /// Gives the task another plan.
    pub(super) fn plan(&self, plan: Plan) {
        self.plans.send_replace(plan);
    }

    /// Returns the next report. Cancel-safe.
    pub(super) async fn news(&mut self) -> Option<News> {
        tokio::select! {
            biased;
            news = self.news.recv() => news,
            // The task never ends before this handle.
            () = &mut self.task => None,
        }
    }
}

struct Worker {
    client: Client,
    news: mpsc::Sender<News>,
    tracker: Option<MoveTracker>,
}

/// The worker's action after a step.
enum Next {
    /// Checks again after a pause.
    Again,
    /// Waits for another plan.
    Rest,
}

impl Worker {
    async fn run(mut self, mut plans: watch::Receiver<Plan>) {
        loop {
            let plan = plans.borrow_and_update().clone();
            let next = match self.step(&plan).await {
                Ok(next) => next,
                Err(failure) => {
                    let (message, _) = failure.into_words();
                    self.waits_for(message).await;
                    Next::Again
                }
            };
            let pause = async {
                match next {
                    Next::Again => sleep(POLL).await,
                    Next::Rest => std::future::pending().await,
                }
            };
            tokio::select! {
                () = pause => {}
                changed = plans.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
        }
    }

    async fn tell(&self, news: News) {
        // If the playground is gone, this task ends when it waits for the next plan.
        let _ = self.news.send(news).await;
    }

    /// Makes one step towards the plan.
    async fn step(&mut self, plan: &Plan) -> Result<Next, Failure> {
        let headless = self.headless(plan).await;
        if !headless.is_empty() {
            self.waits_for(format!("{} to elect leaders", headless.join(", ")))
                .await;
            return Ok(Next::Again);
        }
        let controller = self.client.controller();
        let view = controller.query(None).await?;
        let before = || MoveTracker::new(view.config.clone());
        let tracker = self.tracker.get_or_insert_with(before);
        if !plan.joining.is_empty() {
            controller.join(plan.joining.clone()).await?;
            let joined = plan.joining.keys().copied().collect();
            self.tell(News::Joined(joined)).await;
            return Ok(Next::Rest);
        }
        let members: BTreeSet<Gid> = view.config.members().collect();
        let leaving = plan.leaving.iter().copied();
        let to_leave: Vec<Gid> = leaving.filter(|gid| members.contains(gid)).collect();
        if !to_leave.is_empty() {
            controller.leave(&to_leave).await?;
            return Ok(Next::Again);
        }
        let (moving, done) = tracker.look(&view, &views(&self.client, &view).await);
        self.tell(News::Progress(moving)).await;
        if let Some(news) = left(plan, &view) {
            self.tell(news).await;
            return Ok(Next::Rest);
        }
        if done && plan.leaving.is_empty() {
            self.tracker = None;
            self.tell(News::Settled(plan.number)).await;
            return Ok(Next::Rest);
        }
        Ok(Next::Again)
    }

    async fn waits_for(&self, what: String) {
        let moving = MoveProgress {
            waits_for: what,
            ..MoveProgress::default()
        };
        self.tell(News::Progress(moving)).await;
    }

    /// Returns the groups that must join and have no leader yet.
    async fn headless(&self, plan: &Plan) -> Vec<String> {
        let mut headless = Vec::new();
        for (gid, addresses) in &plan.joining {
            let nodes = addresses.iter().cloned();
            let asked = nodes.map(|address| leads(self.client.clone(), address));
            if !join_all(asked.collect::<Vec<_>>()).await.contains(&true) {
                headless.push(gid.to_string());
            }
        }
        headless
    }
}

/// Returns the report of the first group that was to leave and has left.
fn left(plan: &Plan, view: &ConfigView) -> Option<News> {
    let known = view.config.groups();
    let gone = |gid: &&Gid| !known.contains_key(gid);
    let gid = *plan.leaving.iter().find(gone)?;
    Some(if view.is_drained(gid) {
        News::Drained(gid)
    } else {
        News::Gone(gid)
    })
}

async fn leads(client: Client, address: String) -> bool {
    let Ok(admin) = client.admin(&address) else {
        return false;
    };
    let status = timeout(STATUS_TIMEOUT, admin.status()).await;
    matches!(status, Ok(Ok(status)) if status.role == Role::Leader)
}

#[cfg(test)]
mod tests {
    use shardkv_client::{ClusterId, ConfigNum, DrainedGroup, Incarnation, ShardConfig};

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        start: crate::playground::start::StartArgs,
    }

    fn view(drained: &[(u64, bool)]) -> ConfigView {
        let group = |gid: u64| (Gid(gid), vec![format!("127.0.0.1:{gid}")]);
        let groups = [1, 2].map(group).into();
        let config = ShardConfig::new(ConfigNum(4), groups, [(8, Gid(1))]).unwrap();
        let drained = drained.iter().map(|(gid, forgotten)| {
            let group = DrainedGroup {
                incarnation: Incarnation(1),
                gone_in: ConfigNum(4),
                forgotten: *forgotten,
                retired: false,
            };
            (Gid(*gid), group)
        });
        ConfigView {
            cluster_id: ClusterId(1),
            latest: config.num(),
            config,
            oldest: ConfigNum(0),
            progress: Vec::new(),
            drained: drained.collect(),
        }
    }

    #[test]
    fn a_group_that_was_forgotten_while_it_left_is_not_waited_for() {
        let plan = Plan {
            leaving: [2, 3].map(Gid).into(),
            ..Plan::default()
        };
        let of = |drained: &[(u64, bool)]| left(&plan, &view(drained));
        assert!(matches!(of(&[(3, false)]), Some(News::Drained(Gid(3)))));
        assert!(matches!(of(&[(3, true)]), Some(News::Gone(Gid(3)))));
        assert!(matches!(of(&[]), Some(News::Gone(Gid(3)))), "never joined");
        let plan = Plan {
            leaving: [Gid(2)].into(),
            ..Plan::default()
        };
        assert!(left(&plan, &view(&[])).is_none(), "it is still leaving");
    }

    #[test]
    fn the_plan_is_what_stages_ask_for() {
        let line = <Line as clap::Parser>::parse_from(["playground", "--groups", "3"]);
        let nowhere = std::path::Path::new("/nowhere");
        let mut layout = Layout::open(nowhere, &line.start).unwrap();
        let first = Plan::of(&layout, 1);
        assert_eq!(first.joining.len(), 3);
        assert_eq!(first.joining[&Gid(2)], layout.addresses_of("g2"));
        assert!(first.leaving.is_empty());
        for group in &mut layout.groups {
            group.stage = match group.gid {
                3 => Stage::Leaving,
                _ => Stage::Member,
            };
        }
        let second = Plan::of(&layout, 2);
        assert!(second.joining.is_empty());
        assert_eq!(second.leaving, BTreeSet::from([Gid(3)]));
    }
}
