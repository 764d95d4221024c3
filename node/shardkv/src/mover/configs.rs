//! Configurations, from the controllers into the group's log.
//!
//! Each is proposed as soon as it arrives, because each shard walks the configurations on its own. Several are proposed at
//! once, in order. An entry that doesn't follow the accepted configuration changes nothing. So if one proposal is lost,
//! those behind it have no effect either, and all are proposed again from there.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use types::{ClusterId, ConfigDelta, ConfigNum, Gid, ShardConfig, ShardId};

use super::backoff::Backoff;
use super::outbox::{Purpose, Turn};
use super::{Action, Outcome, PROPOSE_PATIENCE_MS};
use crate::bug::Bug;
use crate::{Ownership, Step};

/// The most deltas that are held; more are fetched when half of them are accepted.
const MAX_HELD: usize = 64;
/// The most configurations that are proposed and not yet accepted.
const MAX_PROPOSED: usize = 8;
/// After an answer without news, the next question comes no earlier than this many milliseconds after the last.
const QUIET_MS: u64 = 100;
/// The deadline of `FetchConfigs`, in milliseconds from its start. A driver may wait for news for any shorter time.
const FETCH_PATIENCE_MS: u64 = 60_000;

#[derive(Debug, Default)]
pub(super) struct Configs {
    fetching: bool,
    /// The earliest time of the next fetch.
    fetch_at: u64,
    fetch: Backoff,
    begin: Option<Begin>,
    /// The deltas that follow the group's configuration, or `begin`'s, without gaps.
    deltas: VecDeque<ConfigDelta>,
    proposed: BTreeSet<ConfigNum>,
    /// True if one of the proposed deltas was lost: after all outcomes have arrived, they are proposed again.
    lost: bool,
    propose: Backoff,
    doubt: Option<Doubt>,
}

/// The reason why a fetch brought nothing. Each fetch is repeated after a pause.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("{0}")]
    Failed(String),
    #[error("not an answer to FetchConfigs")]
    OtherKind,
    #[error("the controllers sent configuration {num} where {next} was to follow")]
    Gap { num: ConfigNum, next: ConfigNum },
}

/// The configuration that the group begins with.
#[derive(Debug)]
struct Begin {
    controller: ClusterId,
    num: ConfigNum,
    groups: BTreeMap<Gid, Vec<String>>,
    proposed: bool,
}

/// A configuration that contradicts this node's view of its group. Either state was lost, or the node was suspended,
/// doesn't lead any more, and has an old view. An entry that it gets into the log proves the former.
#[derive(Debug)]
struct Doubt {
    full: ShardConfig,
    proposed: bool,
}

impl Configs {
    pub(super) fn poll(&mut self, gid: Gid, turn: &mut Turn<'_>) {
        self.drop_accepted(turn.ownership);
        if self.doubt.is_some() {
            self.prove_leadership(turn);
            return;
        }
        if self.begin.is_some() {
            self.propose_begin(gid, turn);
        } else {
            self.propose_deltas(turn);
        }
        self.fetch_more(turn);
    }

    fn drop_accepted(&mut self, ownership: &Ownership) {
        let has_begun =
            |begin: &Begin| ownership.controller.is_some() && ownership.config >= begin.num;
        if self.begin.as_ref().is_some_and(has_begun) {
            self.begin = None;
        }
        while self
            .deltas
            .front()
            .is_some_and(|delta| ownership.controller.is_some() && delta.num <= ownership.config)
        {
            self.deltas.pop_front();
        }
    }

    /// Returns the last configuration that the group has, or will have when all held deltas are accepted.
    fn last(&self, ownership: &Ownership) -> ConfigNum {
        let begin = self.begin.as_ref().map(|begin| begin.num);
        let delta = self.deltas.back().map(|delta| delta.num);
        delta.or(begin).unwrap_or(ownership.config)
    }

    fn fetch_more(&mut self, turn: &mut Turn<'_>) {
        if self.fetching || self.deltas.len() > MAX_HELD / 2 {
            return;
        }
        let at = self.fetch_at.max(self.fetch.until());
        if !turn.reached(at) {
            return;
        }
        let after = self.last(turn.ownership);
        self.fetching = true;
        self.fetch_at = turn.now.saturating_add(QUIET_MS);
        turn.ask(
            Purpose::Fetch,
            FETCH_PATIENCE_MS,
            Action::FetchConfigs { after },
        );
    }

    /// Handles the outcome of [`Purpose::Fetch`].
    pub(super) fn fetched(&mut self, gid: Gid, shards: u32, turn: &mut Turn<'_>, outcome: Outcome) {
        self.fetching = false;
        let result = match outcome {
            Outcome::Configs {
                controller,
                shards: theirs,
                full,
                deltas,
            } => {
                if let Some(why) = mismatch(turn.ownership, controller, shards, theirs) {
                    *turn.fatal = Some(why);
                    return;
                }
                self.take_in(gid, turn, controller, full, deltas)
            }
            Outcome::Failed(why) => Err(FetchError::Failed(why)),
            Outcome::Pulled(_)
            | Outcome::Part(_)
            | Outcome::Begun(_)
            | Outcome::Refused(_)
            | Outcome::Done => Err(FetchError::OtherKind),
        };
        match result {
            Ok(()) => self.fetch.succeed(),
            Err(error) => self.fetch.fail(turn.now, &error.to_string(), turn.options),
        }
    }

    fn take_in(
        &mut self,
        gid: Gid,
        turn: &mut Turn<'_>,
        controller: ClusterId,
        full: Option<ShardConfig>,
        deltas: Vec<ConfigDelta>,
    ) -> Result<(), FetchError> {
        self.drop_accepted(turn.ownership);
        let follows = turn.ownership.controller.is_some();
        let begin = match full {
            Some(full) if !follows || full.num() > turn.ownership.config => {
                if contradiction(gid, turn.ownership, &full).is_some() {
                    let proposed = false;
                    self.doubt = Some(Doubt { full, proposed });
                    return Ok(());
                }
                Some((full.num(), addresses(&full)))
            }
            _ if !follows && self.begin.is_none() => Some((ConfigNum(0), BTreeMap::new())),
            _ => None,
        };
        if let Some((num, groups)) = begin {
            self.deltas.clear();
            self.begin = Some(Begin {
                controller,
                num,
                groups,
                proposed: false,
            });
        }
        for delta in deltas {
            let next = self.last(turn.ownership).next();
            if self.deltas.len() >= MAX_HELD {
                break;
            }
            if delta.num > next {
                return Err(FetchError::Gap {
                    num: delta.num,
                    next,
                });
            }
            if delta.num == next {
                self.deltas.push_back(delta);
                // More may be available at once.
                self.fetch_at = turn.now;
            }
        }
        Ok(())
    }

    fn propose_begin(&mut self, gid: Gid, turn: &mut Turn<'_>) {
        let Some(begin) = &mut self.begin else {
            return;
        };
        if begin.proposed || !turn.reached(self.propose.until()) {
            return;
        }
        begin.proposed = true;
        let step = Step::Begin {
            gid,
            controller: begin.controller,
            num: begin.num,
            groups: begin.groups.clone(),
        };
        turn.ask(Purpose::Begin, PROPOSE_PATIENCE_MS, Action::Propose(step));
    }

    fn propose_deltas(&mut self, turn: &mut Turn<'_>) {
        self.lost &= !self.proposed.is_empty();
        let Some(controller) = turn.ownership.controller else {
            return;
        };
        let (config, bugs) = (turn.ownership.config, turn.bugs);
        if bugs.has(Bug::DeadGroupFreezesAll) && turn.ownership.settled() < config {
            return;
        }
        if self.lost || self.deltas.is_empty() || !turn.reached(self.propose.until()) {
            return;
        }
        let one_by_one = bugs.has(Bug::DeadGroupFreezesAll);
        let most = if one_by_one { 1 } else { MAX_PROPOSED };
        let last = self.proposed.last().copied().unwrap_or(config).max(config);
        let next = self.deltas.iter().filter(|delta| delta.num > last);
        for delta in next.take(most.saturating_sub(self.proposed.len())) {
            self.proposed.insert(delta.num);
            let purpose = Purpose::Configure(delta.num);
            let delta = delta.clone();
            let step = Step::Configure { controller, delta };
            turn.ask(purpose, PROPOSE_PATIENCE_MS, Action::Propose(step));
        }
    }

    /// Handles the outcome of [`Purpose::Begin`].
    pub(super) fn begun(&mut self, turn: &Turn<'_>, outcome: &Outcome) {
        self.drop_accepted(turn.ownership);
        match &mut self.begin {
            None => self.propose.succeed(),
            Some(begin) => {
                begin.proposed = false;
                let why = refusal(outcome);
                self.propose.fail(turn.now, &why, turn.options);
            }
        }
    }

    /// Handles the outcome of [`Purpose::Configure`].
    pub(super) fn configured(&mut self, turn: &Turn<'_>, num: ConfigNum, outcome: &Outcome) {
        self.proposed.remove(&num);
        if turn.ownership.config >= num {
            self.propose.succeed();
        } else if !self.lost {
            self.lost = true;
            let why = refusal(outcome);
            self.propose.fail(turn.now, &why, turn.options);
        }
    }

    fn prove_leadership(&mut self, turn: &mut Turn<'_>) {
        let Some(doubt) = &mut self.doubt else {
            return;
        };
        if doubt.proposed || !turn.reached(self.propose.until()) {
            return;
        }
        doubt.proposed = true;
        // No hand-off has configuration 0, so this changes nothing.
        let step = Step::Deleted {
            shard: ShardId(0),
            config: ConfigNum(0),
        };
        turn.ask(
            Purpose::ProveLeadership,
            PROPOSE_PATIENCE_MS,
            Action::Propose(step),
        );
    }

    /// Handles the outcome of [`Purpose::ProveLeadership`].
    pub(super) fn proved(&mut self, gid: Gid, turn: &mut Turn<'_>, outcome: &Outcome) {
        let Some(doubt) = &mut self.doubt else {
            return;
        };
        if *outcome == Outcome::Done {
            *turn.fatal = contradiction(gid, turn.ownership, &doubt.full);
            self.doubt = None;
            self.propose.succeed();
        } else {
            doubt.proposed = false;
            let why = refusal(outcome);
            self.propose.fail(turn.now, &why, turn.options);
        }
    }

    /// Returns the reason, for display, that the controllers' configurations don't reach the log.
    pub(super) fn why(&self, now: u64) -> Option<String> {
        let fetch = self.fetch.why(now).map(|why| format!("controllers: {why}"));
        let propose = || self.propose.why(now).map(|why| format!("own log: {why}"));
        fetch.or_else(propose)
    }
}

/// Returns the addresses of all groups, leaving ones included.
fn addresses(config: &ShardConfig) -> BTreeMap<Gid, Vec<String>> {
    let groups = config.groups().iter();
    groups
        .map(|(gid, group)| (*gid, group.addresses.clone()))
        .collect()
}

/// Returns the reason that a proposal had no effect.
pub(super) fn refusal(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Failed(why) => why.clone(),
        Outcome::Done => "the step was applied and changed nothing".to_owned(),
        Outcome::Configs { .. }
        | Outcome::Pulled(_)
        | Outcome::Part(_)
        | Outcome::Begun(_)
        | Outcome::Refused(_) => "not an answer to Propose".to_owned(),
    }
}

/// Returns the reason that the group can't follow these controllers, if there is one.
fn mismatch(
    ownership: &Ownership,
    controller: ClusterId,
    shards: u32,
    theirs: u32,
) -> Option<String> {
    let known = ownership.controller.unwrap_or(controller);
    if known != controller {
        return Some(format!(
            "this group belongs to the controllers {known}, but those that answer are {controller}: \
             point it at its own controllers"
        ));
    }
    (shards != theirs).then(|| {
        format!(
            "this group was created for {shards} shards, but the controllers have {theirs}: \
             the number of shards never changes, so the group must be created anew"
        )
    })
}

/// Returns the reason that a group can't continue from `full`, the oldest configuration that the controllers still have.
fn contradiction(gid: Gid, ownership: &Ownership, full: &ShardConfig) -> Option<String> {
    let (oldest, config) = (full.num(), ownership.config);
    if ownership.controller.is_some() && config >= oldest {
        return None;
    }
    if !ownership.shards.is_empty() || !ownership.pending_deletes.is_empty() {
        return Some(format!(
            "{gid} has shards as of configuration {config}, but the controllers' oldest is {oldest}: \
             what happened between is lost; was the controllers' or this group's state restored from a backup?"
        ));
    }
    let shards = full.owned_by(gid);
    (!shards.is_empty()).then(|| {
        format!(
            "{gid} owns shards {shards} in configuration {oldest}, but this group has nothing: its data was \
             lost, or another group had its gid; let {gid} leave, and join with a gid that was never used"
        )
    })
}
