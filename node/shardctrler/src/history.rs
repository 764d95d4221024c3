//! The configurations that are kept: the oldest one whole, and what leads on from it.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use raft::StoreError;
use types::{ConfigDelta, ConfigError, ConfigNum, ShardConfig};

/// Limits of the history. Every replica of a group must have the same, or they diverge. The product uses the
/// default; other values are for tests and simulations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryLimits {
    /// The number of people's changes that are kept, the latest ones.
    pub keep: u64,
    /// The number of cuts that are kept, the latest ones. Cuts are many while shards move, and people look for their own changes: so
    /// each has a limit of its own. Configurations before the first that exceeds a limit are dropped.
    pub keep_cuts: u64,
    /// Configurations beyond these two limits are dropped in batches of this many, so that the oldest isn't rewritten each time.
    pub step: u64,
    /// The most bytes of all deltas, as stored. This limit is exact: a delta that would exceed it drops older ones at once.
    pub max_bytes: usize,
}

impl Default for HistoryLimits {
    fn default() -> Self {
        Self {
            keep: 64,
            keep_cuts: 1_024,
            step: 16,
            max_bytes: 32 << 20,
        }
    }
}

/// The delta that leads to a configuration, and its stored size.
#[derive(Clone, Debug)]
struct Kept {
    delta: Arc<ConfigDelta>,
    bytes: usize,
}

/// The configurations that are kept.
///
/// Invariants: `deltas` lead from `oldest` to `latest` without a gap; `bytes` is the sum of theirs.
#[derive(Clone, Debug)]
pub(crate) struct History {
    oldest: Arc<ShardConfig>,
    deltas: VecDeque<Kept>,
    latest: Arc<ShardConfig>,
    bytes: usize,
}

impl History {
    /// Rebuilds the history from its records; the deltas must be in order.
    pub(crate) fn new(
        oldest: ShardConfig,
        deltas: impl IntoIterator<Item = (ConfigDelta, usize)>,
    ) -> Result<Self, ConfigError> {
        let deltas: VecDeque<Kept> = deltas
            .into_iter()
            .map(|(delta, bytes)| Kept {
                delta: Arc::new(delta),
                bytes,
            })
            .collect();
        let latest = walk(&oldest, deltas.iter().map(|kept| kept.delta.as_ref()))?;
        Ok(Self {
            oldest: Arc::new(oldest),
            bytes: deltas.iter().map(|kept| kept.bytes).sum(),
            deltas,
            latest: Arc::new(latest),
        })
    }

    /// Configuration 0 and nothing after it.
    pub(crate) fn empty(shards: u32) -> Self {
        let empty = Arc::new(ShardConfig::empty(shards));
        Self {
            oldest: Arc::clone(&empty),
            deltas: VecDeque::new(),
            latest: empty,
            bytes: 0,
        }
    }

    /// The latest configuration.
    pub(crate) fn latest(&self) -> &Arc<ShardConfig> {
        &self.latest
    }

    /// The oldest configuration that is kept.
    pub(crate) fn oldest(&self) -> &Arc<ShardConfig> {
        &self.oldest
    }

    /// A configuration; `None` if it isn't kept, or isn't there yet. Costs its size and that of the deltas up to it.
    pub(crate) fn at(&self, num: ConfigNum) -> Result<Option<Arc<ShardConfig>>, ConfigError> {
        if num == self.latest.num() {
            return Ok(Some(Arc::clone(&self.latest)));
        }
        if num == self.oldest.num() {
            return Ok(Some(Arc::clone(&self.oldest)));
        }
        let Some(steps) = self.steps_to(num) else {
            return Ok(None);
        };
        let deltas = self.deltas.iter().take(steps);
        let config = walk(&self.oldest, deltas.map(|kept| kept.delta.as_ref()))?;
        Ok(Some(Arc::new(config)))
    }

    /// Returns the deltas after `num`, which must be kept, in order, each with its size.
    pub(crate) fn after(
        &self,
        num: ConfigNum,
    ) -> impl Iterator<Item = (&Arc<ConfigDelta>, usize)> + '_ {
        let steps = self.steps_to(num).unwrap_or(self.deltas.len());
        let following = self.deltas.iter().skip(steps);
        following.map(|kept| (&kept.delta, kept.bytes))
    }

    /// Goes on to the next configuration; returns the record of what leads to it. After an error nothing has changed.
    pub(crate) fn push(&mut self, delta: ConfigDelta) -> Result<Bytes, ConfigError> {
        let latest = Arc::make_mut(&mut self.latest);
        latest.apply(&delta)?;
        let record = delta.encode();
        self.bytes += record.len();
        self.deltas.push_back(Kept {
            delta: Arc::new(delta),
            bytes: record.len(),
        });
        Ok(record)
    }

    /// Returns the oldest configuration to keep now. It follows from the limits alone: no group needs what is dropped.
    pub(crate) fn oldest_to_keep(&self, limits: HistoryLimits) -> ConfigNum {
        let oldest = self.oldest.num();
        let within = self.oldest_within(limits);
        let batch = within.0 - oldest.0 >= limits.step.max(1);
        if batch || self.bytes > limits.max_bytes {
            within
        } else {
            oldest
        }
    }

    /// Returns the oldest configuration from which no limit is exceeded.
    fn oldest_within(&self, limits: HistoryLimits) -> ConfigNum {
        let HistoryLimits {
            mut keep,
            mut keep_cuts,
            max_bytes: mut bytes,
            ..
        } = limits;
        let mut oldest = self.latest.num();
        for kept in self.deltas.iter().rev() {
            let left = if kept.delta.is_cut() {
                &mut keep_cuts
            } else {
                &mut keep
            };
            if *left == 0 || kept.bytes > bytes {
                break;
            }
            *left -= 1;
            bytes -= kept.bytes;
            oldest = ConfigNum(kept.delta.num.0.saturating_sub(1));
        }
        oldest
    }

    /// Forgets what was before `num`, which is kept. Returns the numbers of the deltas that are gone.
    pub(crate) fn cut(&mut self, num: ConfigNum) -> Result<Vec<ConfigNum>, ConfigError> {
        let (Some(steps), Some(oldest)) = (self.steps_to(num), self.at(num)?) else {
            return Ok(Vec::new());
        };
        self.oldest = oldest;
        let gone: Vec<Kept> = self.deltas.drain(..steps).collect();
        self.bytes -= gone.iter().map(|kept| kept.bytes).sum::<usize>();
        Ok(gone.iter().map(|kept| kept.delta.num).collect())
    }

    /// Returns the number of deltas from the oldest configuration to this one, if it is kept.
    fn steps_to(&self, num: ConfigNum) -> Option<usize> {
        let steps = num.0.checked_sub(self.oldest.num().0)?;
        let steps = usize::try_from(steps).ok()?;
        (steps <= self.deltas.len()).then_some(steps)
    }
}

/// Returns the configuration to which deltas lead.
fn walk<'a>(
    from: &ShardConfig,
    deltas: impl IntoIterator<Item = &'a ConfigDelta>,
) -> Result<ShardConfig, ConfigError> {
    let mut config = from.clone();
    for delta in deltas {
        config.apply(delta)?;
    }
    Ok(config)
}

/// Configurations that follow the rules always fit: what doesn't was damaged in memory or is a bug, and going on would
/// spread it.
// By value, as `map_err` wants it.
#[allow(clippy::needless_pass_by_value)]
pub(crate) fn impossible(error: ConfigError) -> StoreError {
    StoreError::Damaged(format!("the configurations in memory: {error}"))
}
