//! Paces the reports by which targets become owners, and merges those that come meanwhile.
//!
//! Each configuration goes to every group and every client, so the controllers' leader makes at most ten a second of these. The pace is
//! the leader's own: log time may stand still, after a clock was ahead, and must not keep shards from moving.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::errors;
use api::v1::{ErrorDetail, ShardCut};
use shardctrler::MAX_CUTS;
use tokio::time::{Instant, sleep_until};

/// The shortest time between two proposals.
const INTERVAL: Duration = Duration::from_millis(100);
/// The maximum number of shards that wait for a proposal.
const MAX_WAITING: usize = 16 * MAX_CUTS;

/// The reported shards that wait for the next proposal.
#[derive(Debug, Default)]
pub(crate) struct Cuts {
    waiting: Mutex<BTreeMap<u32, ShardCut>>,
    /// The time of the last proposal. Callers take their turns by this lock.
    last: tokio::sync::Mutex<Option<Instant>>,
}

impl Cuts {
    /// Adds a report, and waits for the next proposal's time. Returns the shards that the caller is to propose; none if another
    /// caller proposes them. A report of a caller that goes away meanwhile is proposed by the next one. That does no harm, because
    /// a report that doesn't hold any more changes nothing.
    pub(crate) async fn next(&self, cuts: Vec<ShardCut>) -> Result<Vec<ShardCut>, ErrorDetail> {
        {
            let mut waiting = self.lock();
            if waiting.len() + cuts.len() > MAX_WAITING {
                return Err(errors::overloaded(
                    "reports of copies",
                    MAX_WAITING as u64,
                    100,
                ));
            }
            waiting.extend(cuts.into_iter().map(|cut| (cut.shard, cut)));
        }
        let mut last = self.last.lock().await;
        if self.lock().is_empty() {
            return Ok(Vec::new());
        }
        if let Some(last) = *last {
            sleep_until(last + INTERVAL).await;
        }
        *last = Some(Instant::now());
        let mut waiting = self.lock();
        let later = waiting.keys().nth(MAX_CUTS).copied();
        let later = later.map_or_else(BTreeMap::new, |shard| waiting.split_off(&shard));
        Ok(std::mem::replace(&mut *waiting, later)
            .into_values()
            .collect())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, ShardCut>> {
        // No change under this lock is ever half done.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(shards: std::ops::Range<u32>) -> Vec<ShardCut> {
        let cut = |shard| ShardCut {
            shard,
            ..ShardCut::default()
        };
        shards.map(cut).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn reports_that_come_meanwhile_are_proposed_together() {
        let cuts = Cuts::default();
        let begun = Instant::now();
        assert_eq!(cuts.next(report(0..2)).await.unwrap().len(), 2);
        assert_eq!(begun.elapsed(), Duration::ZERO, "the first doesn't wait");
        let (second, third, fourth) = tokio::join!(
            cuts.next(report(1..3)),
            cuts.next(report(2..5)),
            cuts.next(report(3..4)),
        );
        assert_eq!(second.unwrap().len(), 4, "shards 1 to 4, each once");
        assert!(third.unwrap().is_empty() && fourth.unwrap().is_empty());
        let waited = begun.elapsed();
        assert!((INTERVAL..2 * INTERVAL).contains(&waited), "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_proposal_and_the_waiting_reports_are_bounded() {
        let cuts = Cuts::default();
        let most = u32::try_from(MAX_CUTS).unwrap();
        let (first, second) = tokio::join!(
            cuts.next(report(0..most)),
            cuts.next(report(most..2 * most)),
        );
        assert_eq!(first.unwrap().len(), MAX_CUTS);
        assert_eq!(second.unwrap().len(), MAX_CUTS);
        let too_many = report(0..16 * most + 1);
        assert!(cuts.next(too_many).await.is_err());
    }
}
