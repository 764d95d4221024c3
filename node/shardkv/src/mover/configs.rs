//! Configurations, from the controllers into the group's log.
//!
//! The mover keeps the latest configuration that it knows, and proposes to go there from the accepted one, whatever is between. One
//! proposal is pending at a time. An entry that doesn't follow the accepted configuration changes nothing.

use types::{ClusterId, ConfigDelta, ConfigError, ConfigNum, Gid, ShardConfig, ShardId, ShardSet};

use super::backoff::Backoff;
use super::outbox::{Purpose, Turn};
use super::{Action, Outcome, PROPOSE_PATIENCE_MS};
use crate::bug::Bug;
use crate::{Configure, ConfigurePart, News, Ownership, Step};

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
    latest: Option<Latest>,
    /// The parts of a step that is too large for one entry. They go on although later configurations are known: otherwise changes that
    /// never pause would let none end.
    parts: Vec<ConfigurePart>,
    /// The part that was proposed last.
    part: u32,
    proposed: bool,
    /// The configuration that the group accepted by a proposal of this mover. Its rows are those of `latest`'s history. Any other accepted
    /// configuration may be of another one, if the controllers' state was restored: then all rows are compared.
    in_line: Option<ConfigNum>,
    propose: Backoff,
    /// The reason why the group seems to have lost its data.
    doubt: Option<String>,
}

/// The latest configuration that is known here.
#[derive(Debug)]
struct Latest {
    controller: ClusterId,
    config: ShardConfig,
    /// The changes that led there.
    news: News,
}

/// The reason why a fetch brought nothing. Each fetch is repeated after a pause.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("{0}")]
    Failed(String),
    #[error("not an answer to FetchConfigs")]
    OtherKind,
    #[error(
        "this group follows the controllers {ours}, but those that answer are {theirs}: it serves on, and asks again"
    )]
    Strangers { ours: ClusterId, theirs: ClusterId },
    #[error("what the controllers sent doesn't fit: {0}")]
    Config(#[from] ConfigError),
    #[error(
        "the controllers' latest configuration is {latest}, but this group has accepted {accepted}: was their state \
         restored from a backup?"
    )]
    Behind {
        latest: ConfigNum,
        accepted: ConfigNum,
    },
}

impl Configs {
    pub(super) fn poll(&mut self, gid: Gid, turn: &mut Turn<'_>) {
        if self.doubt.is_some() {
            return self.prove_leadership(turn);
        }
        self.propose(gid, turn);
        self.fetch_more(turn);
    }

    fn fetch_more(&mut self, turn: &mut Turn<'_>) {
        let at = self.fetch_at.max(self.fetch.until());
        if self.fetching || !turn.reached(at) {
            return;
        }
        let latest = self.latest.as_ref();
        let after = latest.map_or(ConfigNum(0), |latest| latest.config.num());
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
                settled,
                held,
                full,
                deltas,
            } => {
                if let Some(ours) = turn.ownership.controller.filter(|it| *it != controller) {
                    let theirs = controller;
                    let error = FetchError::Strangers { ours, theirs };
                    return self.fetch.fail(turn.now, &error.to_string(), turn.options);
                }
                if let Some(why) = mismatch(shards, theirs) {
                    *turn.fatal = Some(why);
                    return;
                }
                let before = self.latest.take();
                let before = before.map(|latest| (latest.config, latest.news));
                let begin = || (ShardConfig::empty(shards), News::default());
                let before = before.unwrap_or_else(begin);
                let known = before.0.num();
                let ((config, news), result) = newer(before, full, &deltas, turn.ownership);
                if config.num() > known {
                    // More may be available at once.
                    self.fetch_at = turn.now;
                }
                // Only the first answer is sure to be recent.
                if known == ConfigNum(0) && turn.ownership.controller.is_none() {
                    let blind = turn.bugs.has(Bug::UnsettledLossUnseen);
                    let held = if blind { settled } else { held };
                    self.doubt = lost_data(gid, &config, settled, held);
                }
                self.latest = Some(Latest {
                    controller,
                    config,
                    news,
                });
                result
            }
            Outcome::Failed(why) => Err(FetchError::Failed(why)),
            Outcome::Pulled(_)
            | Outcome::Part(_)
            | Outcome::Begun(_)
            | Outcome::Refused(_)
            | Outcome::Busy(_)
            | Outcome::Done => Err(FetchError::OtherKind),
        };
        match result {
            Ok(()) => self.fetch.succeed(),
            Err(error) => self.fetch.fail(turn.now, &error.to_string(), turn.options),
        }
    }

    fn propose(&mut self, gid: Gid, turn: &mut Turn<'_>) {
        let ownership = turn.ownership;
        let Some(Latest {
            controller,
            config,
            news,
        }) = &mut self.latest
        else {
            return;
        };
        news.forget(ownership.config);
        let is_news = ownership.controller.is_none() || config.num() > ownership.config;
        let frozen = turn.bugs.has(Bug::DeadGroupFreezesAll);
        if self.proposed || !is_news || (frozen && ownership.settled() < ownership.config) {
            return;
        }
        if !turn.reached(self.propose.until()) {
            return;
        }
        self.proposed = true;
        let unfinished = self.parts.first().map(|part| part.whole);
        if let Some(whole) = unfinished.filter(|it| ownership.awaits(*it)) {
            return self.propose_part(ownership.arrived_parts(whole), turn);
        }
        let step = if self.in_line == Some(ownership.config) {
            Configure::by_news(news, config, gid, *controller, ownership)
        } else {
            Configure::to(config, gid, *controller, ownership)
        };
        let max_bytes = turn.options.chunk_bytes.max(1) as usize;
        if let Some(parts) = ConfigurePart::cut(&step, max_bytes) {
            self.parts = parts;
            return self.propose_part(0, turn);
        }
        self.parts.clear();
        let purpose = Purpose::Configure(step.num);
        let action = Action::Propose(Step::Configure(step));
        turn.ask(purpose, PROPOSE_PATIENCE_MS, action);
    }

    /// Proposes a part of a step that is too large for one entry.
    fn propose_part(&mut self, index: u32, turn: &mut Turn<'_>) {
        self.part = index;
        if let Some(part) = self.parts.get(index as usize) {
            let purpose = Purpose::Configure(part.whole.num);
            let action = Action::Propose(Step::ConfigurePart(part.clone()));
            turn.ask(purpose, PROPOSE_PATIENCE_MS, action);
        }
    }

    /// Handles the outcome of [`Purpose::Configure`].
    pub(super) fn configured(&mut self, turn: &Turn<'_>, num: ConfigNum, outcome: &Outcome) {
        self.proposed = false;
        let is_taken = turn.ownership.controller.is_some() && turn.ownership.config >= num;
        let last = self.parts.last().map(|part| part.whole);
        let goes_on = last.is_some_and(|whole| turn.ownership.arrived_parts(whole) > self.part);
        if is_taken {
            self.in_line = Some(num).filter(|num| turn.ownership.config == *num);
        }
        if is_taken || goes_on {
            self.propose.succeed();
        } else {
            // A step that is refused is made anew, for the latest configuration.
            self.parts.clear();
            let why = refusal(outcome);
            self.propose.fail(turn.now, &why, turn.options);
        }
    }

    /// Proposes a step that changes nothing. Either state was lost, or the node was suspended, doesn't lead any more, and has an old
    /// view. An entry that it gets into the log proves the former.
    fn prove_leadership(&mut self, turn: &mut Turn<'_>) {
        if self.proposed || !turn.reached(self.propose.until()) {
            return;
        }
        self.proposed = true;
        // No hand-off has configuration 0.
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
    pub(super) fn proved(&mut self, turn: &mut Turn<'_>, outcome: &Outcome) {
        self.proposed = false;
        if *outcome != Outcome::Done {
            let why = refusal(outcome);
            return self.propose.fail(turn.now, &why, turn.options);
        }
        let why = self.doubt.take();
        if turn.ownership.controller.is_none() {
            *turn.fatal = why;
        }
        self.propose.succeed();
    }

    /// Returns the reason, for display, that the controllers' configurations don't reach the log.
    pub(super) fn why(&self, now: u64) -> Option<String> {
        let fetch = self.fetch.why(now).map(|why| format!("controllers: {why}"));
        let propose = || self.propose.why(now).map(|why| format!("own log: {why}"));
        fetch.or_else(propose)
    }
}

/// Returns the newest configuration to which an answer leads, also if something in the answer is wrong.
fn newer(
    before: (ShardConfig, News),
    full: Option<ShardConfig>,
    deltas: &[ConfigDelta],
    ownership: &Ownership,
) -> ((ShardConfig, News), Result<(), FetchError>) {
    let (mut config, mut news) = match full {
        Some(full) if full.num() > before.0.num() => {
            let news = News::since(full.num());
            (full, news)
        }
        _ => before,
    };
    for delta in deltas {
        if delta.num <= config.num() {
            continue;
        }
        if let Err(error) = config.apply(delta) {
            return ((config, news), Err(error.into()));
        }
        news.add(delta);
    }
    let (latest, accepted) = (config.num(), ownership.config);
    let behind = latest < accepted && deltas.is_empty();
    let result = if behind {
        Err(FetchError::Behind { latest, accepted })
    } else {
        Ok(())
    };
    ((config, news), result)
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
        | Outcome::Busy(_)
        | Outcome::Refused(_) => "not an answer to Propose".to_owned(),
    }
}

/// Returns the reason that the group can't follow these controllers, if there is one.
fn mismatch(shards: u32, theirs: u32) -> Option<String> {
    (shards != theirs).then(|| {
        format!(
            "this group was created for {shards} shards, but the controllers have {theirs}: \
             the number of shards never changes, so the group must be created anew"
        )
    })
}

/// Returns the reason that a group without any state can't take up `config`: it had shards when it had settled `settled`, or when it
/// served something by `held`, as the controllers know. One shard that is late must not hide that others were served.
fn lost_data(
    gid: Gid,
    config: &ShardConfig,
    settled: ConfigNum,
    held: ConfigNum,
) -> Option<String> {
    let known = settled.max(held);
    let rows = (0..).map(ShardId).zip(config.rows());
    let lost = rows.filter(|(_, row)| {
        let (owned, given) = (row.owner == gid, row.previous == gid);
        (owned && row.owner_since <= known) || (given && row.owner_since > settled)
    });
    let shards: ShardSet = lost.map(|(shard, _)| shard).collect();
    (!shards.is_empty()).then(|| {
        format!(
            "{gid} had the shards {shards} when it had settled configuration {settled} and served some by {held}, but this group has nothing: its \
             data was lost, or another group had its gid; let {gid} leave, and join with a gid that was never used"
        )
    })
}
