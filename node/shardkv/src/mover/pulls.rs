//! Pulls: the chunks of shards are fetched from their sources and proposed to the group's log.
//!
//! While one chunk is being replicated the next one is fetched, so at most two chunks of each shard with a slot are in
//! memory. All slots of all sources share [`MEMORY_BYTES`] equally, together with the copies: with many sources the chunks are smaller. So the memory
//! is bounded, and a source without answers withholds nothing from the others.

use std::collections::BTreeMap;

use types::{ConfigNum, Gid, ShardId};

use super::backoff::Backoff;
use super::configs::refusal;
use super::outbox::{HandOff, Purpose, Turn};
use super::room::{Progress, Room};
use super::scheduler::Scheduler;
use super::{
    ASK_PATIENCE_MS, Action, ActionId, MEMORY_BYTES, MoverOptions, Outcome, PROPOSE_PATIENCE_MS,
};
use crate::bug::Bug;
use crate::{Chunk, Cursor, Next, Ownership, ShardState, Step};

/// The most chunks of a slot that are in memory.
const CHUNKS_PER_SLOT: u64 = 2;

#[derive(Debug)]
pub(super) struct Pulls {
    scheduler: Scheduler,
    pending: BTreeMap<HandOff, Pull>,
    /// The time at which the rate limit allows the next chunk; for display.
    paced_until: u64,
    /// Failures of proposals to the group's own log.
    log: Backoff,
    /// Shards that don't fit on the group's disks.
    full: Backoff,
    room: Option<Room>,
}

/// A shard that has a slot.
#[derive(Debug)]
struct Pull {
    source: Gid,
    /// The cursor of the last request to the source.
    asked: Cursor,
    /// A chunk that waits for the one before it.
    ready: Option<Chunk>,
    install: Option<Install>,
    /// The source's estimate of the bytes of the whole shard.
    whole_bytes: Option<u64>,
    /// The time at which the shard got its slot, and the bytes that had arrived by then.
    since: (u64, u64),
}

/// A chunk whose proposal is pending.
#[derive(Debug)]
struct Install {
    id: ActionId,
    after: Cursor,
    next: Option<Cursor>,
}

/// Returns the cursor up to which the shard has arrived, if it is being pulled by this hand-off.
fn arrived(ownership: &Ownership, (num, shard): HandOff) -> Option<&Cursor> {
    match &ownership.shards.get(&shard)?.state {
        ShardState::Pulling { config, after, .. } if *config == num => Some(after),
        _ => None,
    }
}

fn arrived_bytes(ownership: &Ownership, (num, shard): HandOff) -> u64 {
    match ownership.shards.get(&shard).map(|shard| &shard.state) {
        Some(ShardState::Pulling { config, bytes, .. }) if *config == num => *bytes,
        _ => 0,
    }
}

impl Pulls {
    pub(super) fn new(options: &MoverOptions) -> Self {
        Self {
            scheduler: Scheduler::new(slots(options)),
            pending: BTreeMap::new(),
            paced_until: 0,
            log: Backoff::default(),
            full: Backoff::default(),
            room: None,
        }
    }

    pub(super) fn set_room(&mut self, room: Option<Room>) {
        self.room = room;
    }

    pub(super) fn measured(&mut self, task: HandOff, bytes: u64) {
        if let Some(pull) = self.pending.get_mut(&task) {
            pull.whole_bytes = Some(bytes);
        }
    }

    /// Returns the progress of a shard with a slot, of which `bytes` have arrived.
    pub(super) fn progress(&self, task: HandOff, bytes: u64, now: u64) -> Option<Progress> {
        let pull = self.pending.get(&task)?;
        let (since, before) = pull.since;
        let arrived = bytes.saturating_sub(before).saturating_mul(1_000);
        Some(Progress {
            whole_bytes: pull.whole_bytes.unwrap_or_default(),
            bytes_per_second: arrived / now.saturating_sub(since).max(1),
        })
    }

    /// Forgets all pulls when leadership is lost.
    pub(super) fn forget(&mut self, options: &MoverOptions) {
        self.scheduler = Scheduler::new(slots(options));
        self.pending.clear();
        self.log.succeed();
        self.full.succeed();
    }

    pub(super) fn poll(&mut self, turn: &mut Turn<'_>) {
        let (scheduler, ownership) = (&mut self.scheduler, turn.ownership);
        self.pending.retain(|task, _| {
            let goes_on = arrived(ownership, *task).is_some();
            if !goes_on {
                scheduler.finish(*task);
            }
            goes_on
        });
        if scheduler.needs_refresh(turn) {
            let shards = ownership.shards.unfinished_shards();
            scheduler.refresh(shards.filter_map(|(shard, it)| match it.state {
                ShardState::Pulling { config, source, .. } => Some(((config, *shard), source)),
                _ => None,
            }));
        }
        if !turn.reached(self.log.until()) {
            return;
        }
        if turn.reached(self.full.until()) {
            self.start(turn);
        }
        let tasks: Vec<HandOff> = self.pending.keys().copied().collect();
        for task in tasks {
            self.advance(turn, task);
        }
    }

    fn start(&mut self, turn: &mut Turn<'_>) {
        let ownership = turn.ownership;
        let still = |task| arrived(ownership, task).is_some();
        for (task, source) in self.scheduler.start(turn, still) {
            let pull = Pull {
                source,
                asked: Cursor::default(),
                ready: None,
                install: None,
                whole_bytes: None,
                since: (turn.now, arrived_bytes(ownership, task)),
            };
            self.pending.insert(task, pull);
        }
    }

    /// Returns the reason that a shard of which nothing has arrived doesn't fit on the group's disks, together with what is
    /// still to arrive of the shards that have begun.
    fn lacks_room(&self, turn: &Turn<'_>, task: HandOff) -> Option<String> {
        let room = self.room.as_ref()?;
        let whole = |pull: &Pull| pull.whole_bytes.unwrap_or_default();
        let begun =
            self.pending.iter().map(
                |(other, pull)| match arrived_bytes(turn.ownership, *other) {
                    0 if pull.install.is_none() => 0,
                    arrived => whole(pull).saturating_sub(arrived),
                },
            );
        let own = self.pending.get(&task).map_or(0, whole);
        room.lacks(begun.fold(own, u64::saturating_add))
    }

    /// Returns the number of slots that share the memory.
    pub(super) fn takers(&self) -> u64 {
        self.scheduler.slots() as u64 * self.scheduler.sources() as u64
    }

    /// Returns the size of the chunks to request, so that all slots and all copies fit into [`MEMORY_BYTES`].
    fn request_bytes(&self, turn: &Turn<'_>) -> u32 {
        let share = MEMORY_BYTES / (CHUNKS_PER_SLOT * (self.takers() + turn.copies).max(1));
        let share = u32::try_from(share).unwrap_or(u32::MAX);
        chunk_bytes(turn.options).min(share.max(1))
    }

    /// Performs the next action for a shard that has a slot.
    fn advance(&mut self, turn: &mut Turn<'_>, task: HandOff) {
        let Some(after) = arrived(turn.ownership, task) else {
            return;
        };
        let is_first = |pull: &Pull| {
            let ready = pull.ready.as_ref();
            ready.is_some_and(|chunk| chunk.after == Cursor::default()) && pull.install.is_none()
        };
        if *after == Cursor::default() && self.pending.get(&task).is_some_and(is_first) {
            if let Some(why) = self.lacks_room(turn, task) {
                self.full.fail(turn.now, &why, turn.options);
                turn.reached(self.full.until());
                self.scheduler.requeue(task);
                self.pending.remove(&task);
                return;
            }
            self.full.succeed();
        }
        let max_bytes = self.request_bytes(turn);
        let Some(pull) = self.pending.get_mut(&task) else {
            return;
        };
        if pull.install.is_none()
            && let Some(chunk) = pull.ready.take()
            && chunk.after == *after
        {
            pull.install = Some(install(turn, task, pull.source, chunk));
        }
        if pull.ready.is_some() || self.scheduler.is_asking(task) {
            return;
        }
        let from = match &pull.install {
            None => after.clone(),
            Some(Install {
                next: Some(next), ..
            }) => next.clone(),
            Some(Install { next: None, .. }) => return,
        };
        let (config, shard) = task;
        let source = pull.source;
        let Some(addresses) = turn.ownership.addresses(source) else {
            let why = "its address is not known";
            self.scheduler.fail(task, turn.now, why, turn.options);
            self.pending.remove(&task);
            return;
        };
        // A source on trial pays when its chunk arrives: it may be gone, and must not use up what the others could receive.
        let paid = if self.scheduler.is_proven(source) {
            max_bytes
        } else {
            0
        };
        if let Err(at) = turn.pace.take(turn.now, paid) {
            self.paced_until = at;
            turn.reached(at);
            return;
        }
        pull.asked = from.clone();
        let action = Action::Pull {
            shard,
            config,
            source,
            addresses,
            after: from,
            max_bytes,
        };
        let id = turn.ask(Purpose::Pull { paid }, ASK_PATIENCE_MS, action);
        self.scheduler.asked(task, id, turn.now);
    }

    /// Handles the outcome of [`Purpose::Pull`]. The rate limit has granted `paid` bytes for the request.
    pub(super) fn pulled(
        &mut self,
        turn: &mut Turn<'_>,
        id: ActionId,
        paid: u32,
        outcome: Outcome,
    ) {
        let came = match &outcome {
            Outcome::Pulled(chunk) => chunk.content_bytes(),
            _ => 0,
        };
        turn.pace.came(paid, came);
        let result = match outcome {
            Outcome::Pulled(chunk) => Ok(chunk),
            Outcome::Failed(why) | Outcome::Busy(why) => Err(why),
            other => Err(format!("not an answer to Pull: {other:?}")),
        };
        match result {
            Ok(chunk) => {
                let Some(task) = self.scheduler.answered(id) else {
                    return;
                };
                let Some(pull) = self.pending.get_mut(&task) else {
                    return;
                };
                if is_right(&chunk, task, &pull.asked) {
                    pull.ready = Some(chunk);
                } else {
                    let why = "it sent another chunk than the one requested";
                    self.scheduler.fail(task, turn.now, why, turn.options);
                    self.pending.remove(&task);
                }
            }
            Err(why) => {
                if let Some(task) = self.scheduler.failed(id, turn.now, &why, turn.options) {
                    self.pending.remove(&task);
                }
            }
        }
    }

    /// Handles the outcome of [`Purpose::Install`].
    pub(super) fn installed(
        &mut self,
        turn: &Turn<'_>,
        id: ActionId,
        task: HandOff,
        outcome: &Outcome,
    ) {
        let Some(pull) = self.pending.get_mut(&task) else {
            return;
        };
        let Some(install) = pull.install.take_if(|install| install.id == id) else {
            return;
        };
        if arrived(turn.ownership, task) != Some(&install.after) {
            self.log.succeed();
            return;
        }
        // The next hand-off in the queue may succeed, if the log refused only this chunk.
        self.log.fail(turn.now, &refusal(outcome), turn.options);
        self.scheduler.requeue(task);
        self.pending.remove(&task);
    }

    /// Returns the reason, for display, that a shard that is pulled makes no progress.
    pub(super) fn why(&self, task: HandOff, source: Gid, now: u64) -> Option<String> {
        let pull = self.pending.get(&task);
        if pull.is_some_and(|pull| pull.install.is_some()) {
            return None;
        }
        if !self.scheduler.is_asking(task) {
            if let Some(why) = self.log.why(now) {
                return Some(format!("own log: {why}"));
            }
            if let Some(why) = self.full.why(now).filter(|_| pull.is_none()) {
                return Some(why);
            }
            if pull.is_some() && self.paced_until > now {
                return Some("paced: the limit of bytes a second is reached".to_owned());
            }
        }
        self.scheduler.why(task, source, now)
    }
}

fn slots(options: &MoverOptions) -> usize {
    options.max_concurrent_pulls as usize
}

fn chunk_bytes(options: &MoverOptions) -> u32 {
    options.chunk_bytes.max(1)
}

/// Returns true if a chunk is the requested one and advances the cursor.
fn is_right(chunk: &Chunk, task: HandOff, asked: &Cursor) -> bool {
    let leads_on = match &chunk.next {
        Next::Chunk(next) => next > asked,
        Next::Done { .. } => true,
    };
    (chunk.config, chunk.shard) == task && chunk.after == *asked && leads_on
}

fn install(turn: &mut Turn<'_>, task: HandOff, source: Gid, chunk: Chunk) -> Install {
    let after = chunk.after.clone();
    let next = match &chunk.next {
        Next::Chunk(next) => Some(next.clone()),
        Next::Done { .. } => None,
    };
    if next.is_none() && turn.bugs.has(Bug::DeleteBeforeInstall) {
        delete_too_early(turn, task, source);
    }
    let action = Action::Propose(Step::Install(chunk));
    let id = turn.ask(Purpose::Install(task), PROPOSE_PATIENCE_MS, action);
    Install { id, after, next }
}

/// Puts back [`Bug::DeleteBeforeInstall`]: requests the delete before the install is committed.
fn delete_too_early(turn: &mut Turn<'_>, (config, shard): (ConfigNum, ShardId), source: Gid) {
    let addresses = turn.ownership.addresses(source);
    let action = Action::Delete {
        shard,
        config,
        source,
        addresses: addresses.unwrap_or_default(),
    };
    turn.ask(Purpose::Ignored, ASK_PATIENCE_MS, action);
}
