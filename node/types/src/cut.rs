//! The report by which a shard's target becomes its owner.

use crate::{
    ConfigNum, DecodeError, Gid, Incarnation, JournalId, Reader, ShardConfig, ShardId, Writer,
};

/// The most shards of one report.
pub const MAX_CUTS: usize = 1_024;

/// The exact state of a shard in which its target may become its owner.
///
/// The target reports it to the controllers once its copy of the shard has caught up. It proves nothing by itself: the controllers
/// compare it with the latest configuration when they apply the report, and if any field differs, the shard's owner doesn't change.
/// So a report may come late, twice, or again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The owner.
    pub owner: Gid,
    /// The owner's incarnation.
    pub owner_incarnation: Incarnation,
    /// The configuration that made it the owner.
    pub owner_since: ConfigNum,
    /// The target.
    pub target: Gid,
    /// The target's incarnation.
    pub target_incarnation: Incarnation,
    /// The configuration that made it the target.
    pub target_since: ConfigNum,
    /// The owner's journal whose copy the target has. The configurations don't name journals, so the controllers have nothing to
    /// compare it with: owner and target compare it when they take the configuration up.
    pub journal: JournalId,
}

impl ShardConfig {
    /// Returns the cut that gives a shard, as it is in this configuration, to its target; `None` if nobody owns the shard. A cut of a shard
    /// whose owner is its target changes nothing.
    pub fn cut_of(&self, shard: ShardId, journal: JournalId) -> Option<Cut> {
        let row = self.row(shard);
        let incarnation = |gid| self.groups().get(&gid).map(|group| group.incarnation);
        Some(Cut {
            owner: row.owner,
            owner_incarnation: incarnation(row.owner)?,
            owner_since: row.owner_since,
            target: row.target,
            target_incarnation: incarnation(row.target)?,
            target_since: row.target_since,
            journal,
        })
    }
}

impl Cut {
    /// Appends the cut to a record.
    pub fn encode(&self, out: &mut Writer) {
        out.number(self.owner.0)
            .number(self.owner_incarnation.0)
            .number(self.owner_since.0)
            .number(self.target.0)
            .number(self.target_incarnation.0)
            .number(self.target_since.0)
            .number(self.journal.0);
    }

    /// Reads the output of [`Cut::encode`].
    pub fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            owner: Gid(input.number("owner")?),
            owner_incarnation: Incarnation(input.number("owner incarnation")?),
            owner_since: ConfigNum(input.number("owner since")?),
            target: Gid(input.number("target")?),
            target_incarnation: Incarnation(input.number("target incarnation")?),
            target_since: ConfigNum(input.number("target since")?),
            journal: JournalId(input.number("journal")?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_comes_back_as_it_went() {
        let cut = Cut {
            owner: Gid(1),
            owner_incarnation: Incarnation(2),
            owner_since: ConfigNum(3),
            target: Gid(4),
            target_incarnation: Incarnation(5),
            target_since: ConfigNum(6),
            journal: JournalId(u64::MAX),
        };
        let mut out = Writer::default();
        cut.encode(&mut out);
        let record = out.finish();
        let mut input = Reader::new(record.clone());
        assert_eq!(Cut::decode(&mut input), Ok(cut));
        assert_eq!(input.finish(), Ok(()));
        for length in 0..record.len() {
            assert!(Cut::decode(&mut Reader::new(record.slice(..length))).is_err());
        }
    }
}
