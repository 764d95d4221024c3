//! Checks of a replica against the model: its state and its answers.

use shardctrler::{CtrlError, Query, Response};
use types::{ConfigDelta, ConfigNum, Gid, ShardConfig, ShardId, ShardSet};

use crate::LIMITS;
use crate::common::Replica;
use crate::model::Model;

impl Model {
    /// Checks that the kept state is correct, that it is all that is needed, and that it isn't more.
    pub(crate) fn check_state(&self, replica: &Replica) {
        let found = replica.machine.progress().iter();
        let found: Vec<_> = found
            .map(|(gid, it)| (*gid, (it.settled.0, it.due.0)))
            .collect();
        let waited: Vec<_> = self.waited.iter().map(|(gid, it)| (*gid, *it)).collect();
        assert_eq!(found, waited);
        assert_eq!(*replica.machine.drained(), self.drained);
        let (latest, oldest) = (self.num(), replica.machine.oldest().0);
        let recent = self.recent();
        assert!(oldest <= recent, "{oldest} is kept, {recent} is wanted");
        assert!(recent < oldest + LIMITS.step);
        assert!(self.bytes_from(oldest) <= LIMITS.max_bytes);
        for num in 0..=latest + 1 {
            let query = Query::Config {
                num: Some(ConfigNum(num)),
            };
            let response = replica.query(&query);
            match response {
                Response::Config(answer) => {
                    assert!((oldest..=latest).contains(&num));
                    assert_eq!(answer.config, self.configs[num as usize]);
                }
                Response::Refused(CtrlError::Compacted { .. }) => assert!(num < oldest),
                Response::Refused(CtrlError::Future { .. }) => assert!(num > latest),
                other => panic!("{other:?}"),
            }
        }
        for num in 0..=latest {
            let groups = self.waited.keys().map(|gid| Some(*gid));
            for gid in groups.chain([Some(Gid(99)), None]) {
                self.check_after(replica, num, gid);
            }
        }
    }

    /// The deltas between all configurations.
    pub(crate) fn deltas(&self) -> impl DoubleEndedIterator<Item = ConfigDelta> + '_ {
        self.configs.windows(2).map(|pair| {
            let (owners, targets) = (pair[1].owners(), pair[1].targets());
            let rows = (0..).map(ShardId).zip(pair[0].rows().zip(pair[1].rows()));
            let reset = |(was, is): (types::Assignment, types::Assignment)| {
                let is_new = is.owner_since == pair[1].num() && is.previous == Gid::NONE;
                is_new && was.owner != Gid::NONE
            };
            let resets = rows.filter(|(_, rows)| reset(*rows));
            let resets: ShardSet = resets.map(|(shard, _)| shard).collect();
            let delta = ConfigDelta::new(&pair[0], pair[1].groups(), targets, owners);
            delta.with_resets(&pair[0], owners, &resets)
        })
    }

    /// The size of all deltas after a configuration.
    pub(crate) fn bytes_from(&self, num: u64) -> usize {
        let after = self.deltas().skip(num as usize);
        after.map(|delta| delta.encode().len()).sum()
    }

    /// The oldest configuration that people may want: the last few of their changes, not too many cuts, and not too many bytes.
    pub(crate) fn recent(&self) -> u64 {
        let (mut changes, mut cuts, mut bytes) = (0, 0, 0);
        for delta in self.deltas().rev() {
            if delta.is_cut() {
                cuts += 1;
            } else {
                changes += 1;
            }
            bytes += delta.encode().len();
            if changes > LIMITS.keep || cuts > LIMITS.keep_cuts || bytes > LIMITS.max_bytes {
                return delta.num.0;
            }
        }
        0
    }

    /// A caller that has a configuration gets to the latest, a group in one step if it is far behind.
    pub(crate) fn check_after(&self, replica: &Replica, num: u64, gid: Option<Gid>) {
        let waited = gid.and_then(|gid| self.waited.get(&gid));
        let settled = waited.map_or(self.num(), |(settled, _)| *settled);
        let oldest = replica.machine.oldest();
        let mut mine = ShardConfig::clone(&self.configs[num as usize]);
        for round in 0.. {
            let at = mine.num().0;
            if at == self.num() {
                return;
            }
            let configs = replica.after(at, 2, gid.map(|gid| gid.0));
            assert_eq!(configs.latest.0, self.num());
            assert_eq!(configs.settled.0, settled);
            let is_whole = configs.full.is_some();
            let begins = gid.is_some() && at == 0;
            assert_eq!(is_whole, begins || at < oldest.0, "{gid:?} at {at}");
            if let Some(full) = configs.full {
                assert_eq!(round, 0);
                assert_eq!(full, self.configs[full.num().0 as usize]);
                mine = (*full).clone();
                let expected = if gid.is_some() {
                    ConfigNum(self.num())
                } else {
                    oldest
                };
                assert_eq!(full.num(), expected);
            } else {
                assert!(!configs.deltas.is_empty());
            }
            for delta in &configs.deltas {
                mine.apply(delta).unwrap();
                assert_eq!(mine, *self.configs[delta.num.0 as usize]);
            }
        }
    }
}
