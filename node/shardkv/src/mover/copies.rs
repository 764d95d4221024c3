//! Copies: shards whose target is this group are copied while their owners serve them, and completed after the cut.
//!
//! A copy goes through these steps, each of which the mover repeats until it sees its effect:
//!
//! 1. A journal begins at the source, the copy begins in the own log, and the base arrives part by part. While one part goes
//!    through the log the next one is fetched.
//! 2. The open generation is sealed at the source, and its pages arrive. That is a round. A generation that the own log has is
//!    dropped at the source, and the journal is renewed every minute.
//! 3. The copy has caught up once a round was small, or once the rounds don't get smaller any more (`rounds`). Then it needs a round a
//!    second, and as long as the rounds succeed the controllers are told again and again that they may cut. One report names all
//!    such copies.
//! 4. After the cut the rest comes from a replica of the source that has applied the fence. If the source's journal has ended, the
//!    copy is useless, and the own log restarts the transfer as a pull of the whole shard.
//!
//! A copy holds one of its source's slots until it has caught up. Copies that have caught up or were cut do without, up to
//! [`MAX_WITHOUT_SLOT`] for each source, because little is left of them.
//!
//! A copy that has begun doesn't queue again after a failure: it waits for its own pause without a slot, its journal is renewed, and
//! then it takes the next free slot. A copy that failed twice in a row leaves every second turn to the queue.

mod answers;
mod rounds;
mod sizes;
mod task;

use std::collections::BTreeMap;

use types::{ConfigNum, Cut, Gid, MAX_CUTS, ShardId};

use super::configs::refusal;
use super::outbox::{HandOff, Purpose, Turn};
use super::room::{Progress, Room};
use super::scheduler::Scheduler;
use super::{ASK_PATIENCE_MS, Action, MEMORY_BYTES, MoverOptions, Outcome, PROPOSE_PATIENCE_MS};
use crate::{CopyCursor, CopyId, CopyRequest, CopyStep, JournalStep, Ownership, ShardState, Step};
use sizes::Sizes;
use task::{Ask, Place, Proposal, Stage, Task, stage};

/// The interval of the rounds of a copy that has caught up, in milliseconds.
const ROUND_INTERVAL_MS: u64 = 1_000;
/// The time after a round for which a copy counts as close behind its source, in milliseconds.
const CLOSE_FOR_MS: u64 = 3 * ROUND_INTERVAL_MS;
/// The pause between two reports, in milliseconds.
const REPORT_INTERVAL_MS: u64 = 200;
/// The interval of renewals of a journal, in milliseconds. A journal lives for ten minutes without.
const RENEW_INTERVAL_MS: u64 = 60_000;
/// The most copies of a source that are driven without a slot.
const MAX_WITHOUT_SLOT: usize = 64;
/// The longest pause between two reports after failures, in milliseconds.
const MAX_REPORT_PAUSE_MS: u64 = 2_000;
/// The most parts of a copy that are in memory.
const PARTS_PER_COPY: u64 = 2;

#[derive(Debug)]
pub(super) struct Copies {
    scheduler: Scheduler,
    tasks: BTreeMap<ShardId, Task>,
    sizes: Sizes,
    /// True while a report is pending.
    reporting: bool,
    /// The reports that failed in a row.
    failed_reports: u32,
    /// The earliest time of the next report.
    report_at: u64,
    /// The copies, since the start of the process, that were hurried.
    pub(super) hurried: u64,
}

impl Copies {
    pub(super) fn new(options: &MoverOptions) -> Self {
        Self {
            scheduler: Scheduler::new(options.max_concurrent_pulls as usize),
            tasks: BTreeMap::new(),
            sizes: Sizes::default(),
            reporting: false,
            failed_reports: 0,
            report_at: 0,
            hurried: 0,
        }
    }

    /// Forgets all copies when leadership is lost.
    pub(super) fn forget(&mut self, options: &MoverOptions) {
        self.scheduler = Scheduler::new(options.max_concurrent_pulls as usize);
        self.tasks.clear();
        self.reporting = false;
        self.failed_reports = 0;
        self.report_at = 0;
        self.sizes.full.succeed();
    }

    pub(super) fn set_room(&mut self, room: Option<Room>) {
        self.sizes.room = room;
    }

    pub(super) fn measured(&mut self, shard: ShardId, bytes: u64) {
        self.sizes.set(shard, bytes);
    }

    /// Returns the progress of a copy of which `bytes` have arrived.
    pub(super) fn progress(&self, shard: ShardId, now: u64) -> Progress {
        let task = self.tasks.get(&shard);
        Progress {
            whole_bytes: self.sizes.get(shard).unwrap_or_default(),
            bytes_per_second: task.map_or(0, |task| task.bytes_per_second(now)),
        }
    }

    pub(super) fn poll(&mut self, turn: &mut Turn<'_>) {
        let (scheduler, ownership) = (&mut self.scheduler, turn.ownership);
        self.tasks.retain(|shard, task| {
            // A copy that was dropped begins anew, with a slot.
            let goes_on = stage(ownership, *shard).is_some_and(|it| {
                it.key(*shard) == task.key && (task.useless.is_none() || task.useless == it.copy())
            });
            if !goes_on && task.has_slot() {
                scheduler.finish(task.key);
            }
            goes_on
        });
        if scheduler.needs_refresh(turn) {
            self.refresh(turn);
        }
        self.resume(turn);
        if turn.reached(self.sizes.full.until()) {
            self.start(turn);
        }
        let shards: Vec<ShardId> = self.tasks.keys().copied().collect();
        for shard in shards {
            self.advance(turn, shard);
        }
        self.report(turn);
    }

    fn start(&mut self, turn: &mut Turn<'_>) {
        let ownership = turn.ownership;
        let still = |(since, shard): HandOff| {
            stage(ownership, shard).is_some_and(|it| it.key(shard) == (since, shard))
        };
        for (key, source) in self.scheduler.start(turn, still) {
            let (_, shard) = key;
            self.tasks
                .insert(shard, Task::new(key, source, Place::Slot, turn.now));
        }
    }

    /// Gives free slots to copies that have begun and whose pause is over.
    fn resume(&mut self, turn: &mut Turn<'_>) {
        for task in self.tasks.values_mut().filter(|task| task.is_parked()) {
            if !turn.reached(task.backoff.until()) {
                continue;
            }
            let fails_again = task.backoff.failures() > 1;
            if self
                .scheduler
                .resume(turn, task.key, task.source, fails_again)
            {
                task.place = Place::Slot;
            }
        }
    }

    /// Tells the controllers which copies are close behind their sources.
    fn report(&mut self, turn: &mut Turn<'_>) {
        if self.reporting {
            return;
        }
        let cuts = self.tasks.iter().filter_map(|(shard, task)| {
            let stage = stage(turn.ownership, *shard)?;
            let cut = stage.cut(turn.ownership)?;
            let is_good = task.useless.is_none() && task.is_close_behind(turn.now);
            is_good.then_some((*shard, cut))
        });
        let cuts: BTreeMap<ShardId, Cut> = cuts.take(MAX_CUTS).collect();
        if cuts.is_empty() || !turn.reached(self.report_at) {
            return;
        }
        self.reporting = true;
        let action = Action::ReportCut { cuts };
        turn.ask(Purpose::ReportCut, ASK_PATIENCE_MS, action);
    }

    /// Handles the outcome of [`Purpose::ReportCut`]. An accepted report may have changed nothing, so it is repeated all the same.
    pub(super) fn reported(&mut self, turn: &Turn<'_>, outcome: &Outcome) {
        self.reporting = false;
        let failed = &mut self.failed_reports;
        *failed = match outcome {
            Outcome::Done => 0,
            _ => failed.saturating_add(1),
        };
        let pause = REPORT_INTERVAL_MS << failed.saturating_sub(1).min(8);
        self.report_at = turn.now.saturating_add(pause.min(MAX_REPORT_PAUSE_MS));
    }

    /// Finds the shards to copy. Those that were cut are driven at once, however many: nobody serves them, and no more are cut than
    /// were driven before.
    fn refresh(&mut self, turn: &Turn<'_>) {
        let ownership = turn.ownership;
        let cut = ownership.shards.unfinished_shards();
        let cut = cut.map(|(shard, _)| shard);
        for shard in ownership.planned.keys().chain(cut) {
            if let Some(stage) = stage(ownership, *shard)
                && stage.copy().is_some()
                && !self.tasks.contains_key(shard)
            {
                let mut task = Task::new(stage.key(*shard), stage.source(), Place::Free, turn.now);
                if matches!(stage, Stage::Copying { .. }) {
                    task.place = Place::Parked;
                }
                self.tasks.insert(*shard, task);
            }
        }
        let tasks = &self.tasks;
        let without_slot = |shard: &ShardId| tasks.get(shard).is_some_and(|it| !it.has_slot());
        let planned = ownership.planned.keys();
        let planned = planned.filter(|shard| !without_slot(shard));
        let waiting = planned.filter_map(|shard| {
            let stage = stage(ownership, *shard)?;
            Some((stage.key(*shard), stage.source()))
        });
        self.scheduler.refresh(waiting);
        self.sizes.retain(ownership);
    }

    fn may_do_without_slot(&self, source: Gid) -> bool {
        let tasks = self.tasks.values();
        let without =
            tasks.filter(|task| task.source == source && !task.has_slot() && !task.is_parked());
        without.count() < MAX_WITHOUT_SLOT
    }

    /// Returns the number of copies that share the memory.
    pub(super) fn takers(&self) -> u64 {
        let slots = self.scheduler.slots() as u64 * self.scheduler.sources() as u64;
        let driven = self.tasks.values().filter(|task| !task.is_parked()).count();
        slots.max(driven as u64)
    }

    /// Returns the size of the parts to request, so that all copies and pulls fit into [`MEMORY_BYTES`].
    fn request_bytes(&self, turn: &Turn<'_>) -> u32 {
        let share = MEMORY_BYTES / (PARTS_PER_COPY * (self.takers() + turn.pulls).max(1));
        let share = u32::try_from(share).unwrap_or(u32::MAX);
        turn.options.chunk_bytes.max(1).min(share.max(1))
    }

    /// Performs the next actions for a shard.
    fn advance(&mut self, turn: &mut Turn<'_>, shard: ShardId) {
        let Some(stage) = stage(turn.ownership, shard) else {
            return;
        };
        let Some(task) = self.tasks.get_mut(&shard) else {
            return;
        };
        if matches!(stage, Stage::Absent(_)) && task.proposal.is_none() {
            if let Some(why) = self.sizes.lacks_room(turn.ownership, shard) {
                self.sizes.full.fail(turn.now, &why, turn.options);
                turn.reached(self.sizes.full.until());
                self.scheduler.requeue(task.key);
                self.tasks.remove(&shard);
                return;
            }
            self.sizes.full.succeed();
        }
        if matches!(stage, Stage::Completing { .. }) {
            task.is_now_cut(turn);
        }
        if task.proposal.is_none()
            && turn.reached(task.log.until())
            && let Some(step) = task.next_step(shard, &stage)
        {
            propose(turn, task, shard, step);
        }
        if task.ask.is_some() || !turn.reached(task.backoff.until()) {
            return;
        }
        match stage {
            Stage::Absent(planned) if task.journal.is_none() => {
                let target = planned.target;
                let step = JournalStep::Begin { shard, target };
                self.ask_journal(turn, shard, Ask::Begin, step);
            }
            Stage::Absent(_) => {}
            Stage::Copying { copy, cursor, .. } => self.follow(turn, shard, copy, cursor),
            Stage::Completing {
                config,
                copy,
                cursor,
                ..
            } => {
                let held = task.useless != Some(copy);
                if let Some(after) = task.next_cursor(cursor).filter(|_| held) {
                    let fence = Some(config);
                    self.ask_part(turn, (shard, copy), fence, after);
                }
            }
        }
    }

    /// Asks the source for what a copy needs next: upkeep of its journal, a seal, or a part.
    fn follow(&mut self, turn: &mut Turn<'_>, shard: ShardId, copy: CopyId, cursor: &CopyCursor) {
        let Some(task) = self.tasks.get_mut(&shard) else {
            return;
        };
        if task.useless == Some(copy) {
            return;
        }
        let journal = copy.journal;
        if let Some((ask, step)) = task.next_upkeep(turn, shard, journal, cursor) {
            return self.ask_journal(turn, shard, ask, step);
        }
        if task.is_parked() {
            return;
        }
        let Some(after) = task.next_cursor(cursor) else {
            return;
        };
        let generation = match &after {
            CopyCursor::Page { generation, .. } => *generation,
            CopyCursor::Base(_) => 0,
        };
        if generation <= task.sealed {
            return self.ask_part(turn, (shard, copy), None, after);
        }
        if task.has_caught_up && !turn.reached(task.round_at) {
            return;
        }
        task.round_at = turn.now.saturating_add(ROUND_INTERVAL_MS);
        let step = JournalStep::Seal {
            shard,
            journal,
            generation,
        };
        self.ask_journal(turn, shard, Ask::Seal(generation), step);
    }

    fn ask_journal(&mut self, turn: &mut Turn<'_>, shard: ShardId, ask: Ask, step: JournalStep) {
        let Some((source, addresses)) = self.addresses(turn, shard) else {
            return;
        };
        let action = Action::Journal {
            source,
            addresses,
            step,
        };
        self.start_ask(turn, shard, ask, 0, action);
    }

    fn ask_part(
        &mut self,
        turn: &mut Turn<'_>,
        (shard, copy): (ShardId, CopyId),
        fence: Option<ConfigNum>,
        after: CopyCursor,
    ) {
        let request = CopyRequest {
            shard,
            copy,
            fence,
            after,
            max_bytes: self.request_bytes(turn),
        };
        let Some((source, addresses)) = self.addresses(turn, shard) else {
            return;
        };
        let has_slot = self.tasks.get(&shard).is_some_and(Task::has_slot);
        let is_base = matches!(request.after, CopyCursor::Base(_));
        if has_slot && is_base && !self.may_go_on(turn, shard, request.max_bytes) {
            return;
        }
        // A source on trial pays when its part arrives. What little is left of a copy that was cut doesn't wait.
        let waits = has_slot && self.scheduler.is_proven(source);
        let paid = if waits { request.max_bytes } else { 0 };
        let granted = turn.pace.take(turn.now, paid);
        if has_slot && let Err(at) = granted {
            turn.reached(at);
            return;
        }
        let ask = Ask::Part {
            after: request.after.clone(),
        };
        let action = Action::Copy {
            source,
            addresses,
            request,
        };
        self.start_ask(turn, shard, ask, paid, action);
    }

    /// Returns true if the next part of a base may be requested: the disks have room for the rest, and the clients leave time for it.
    fn may_go_on(&mut self, turn: &mut Turn<'_>, shard: ShardId, part: u32) -> bool {
        let Some(task) = self.tasks.get_mut(&shard) else {
            return false;
        };
        if !turn.reached(task.full.until()) {
            return false;
        }
        if let Some(why) = self.sizes.lacks_rest(turn.ownership, shard, part) {
            task.full.fail(turn.now, &why, turn.options);
            turn.reached(task.full.until());
            return false;
        }
        task.full.succeed();
        let granted = turn.background.take(turn.now);
        granted.map_err(|at| turn.reached(at)).is_ok()
    }

    fn addresses(&mut self, turn: &Turn<'_>, shard: ShardId) -> Option<(Gid, Vec<String>)> {
        let source = self.tasks.get(&shard)?.source;
        let addresses = turn.ownership.addresses(source);
        if addresses.is_none() {
            self.fail(turn, shard, "its address is not known");
        }
        Some((source, addresses?))
    }

    fn start_ask(
        &mut self,
        turn: &mut Turn<'_>,
        shard: ShardId,
        ask: Ask,
        paid: u32,
        action: Action,
    ) {
        let Some(task) = self.tasks.get_mut(&shard) else {
            return;
        };
        let id = turn.ask(Purpose::Copy { shard, paid }, ASK_PATIENCE_MS, action);
        task.ask = Some((id, ask));
        task.asked_for = stage(turn.ownership, shard).and_then(|stage| stage.copy());
        if task.has_slot() {
            self.scheduler.asked(task.key, id, turn.now);
        }
    }

    /// Pauses a shard that can't continue because of its source. One with a slot loses it, and queues again unless its copy has begun.
    fn fail(&mut self, turn: &Turn<'_>, shard: ShardId, why: &str) {
        let Some(task) = self.tasks.get_mut(&shard) else {
            return;
        };
        let is_cut = matches!(
            turn.ownership.state(shard),
            Some(ShardState::Completing { .. })
        );
        if task.has_slot() && is_cut {
            // Nobody serves the shard, so it doesn't queue again.
            self.scheduler.finish(task.key);
            task.place = Place::Free;
        }
        let key = task.key;
        if task.has_slot() && turn.ownership.state(shard).is_none() {
            self.scheduler.fail(key, turn.now, why, turn.options);
            self.tasks.remove(&shard);
            return;
        }
        task.backoff.fail(turn.now, why, turn.options);
        if task.has_slot() {
            self.scheduler.release(key, turn.now, why, turn.options);
            task.place = Place::Parked;
        }
    }

    /// Returns the reason, for display, that a shard that is to be copied makes no progress.
    pub(super) fn why(&self, ownership: &Ownership, shard: ShardId, now: u64) -> Option<String> {
        let stage = stage(ownership, shard)?;
        let source = stage.source();
        let Some(task) = self.tasks.get(&shard) else {
            let full = self.sizes.full.why(now);
            return full.or_else(|| self.scheduler.why(stage.key(shard), source, now));
        };
        if let Some(why) = task.log.why(now) {
            return Some(format!("own log: {why}"));
        }
        if let Some(why) = task.full.why(now) {
            return Some(why);
        }
        if let Some(why) = task.backoff.why(now) {
            return Some(format!("{source}: {why}"));
        }
        let key = task.key;
        task.has_slot()
            .then(|| self.scheduler.why(key, source, now))
            .flatten()
    }
}

fn propose(turn: &mut Turn<'_>, task: &mut Task, shard: ShardId, step: CopyStep) {
    let take = match &step {
        CopyStep::Take(part) => Some((part.next.clone(), part.content_bytes())),
        _ => None,
    };
    let purpose = Purpose::Copy { shard, paid: 0 };
    let action = Action::Propose(Step::Copy(step));
    task.proposal = Some(Proposal {
        id: turn.ask(purpose, PROPOSE_PATIENCE_MS, action),
        since: turn.now,
        before: turn.ownership.state(shard).cloned(),
        take,
    });
}
