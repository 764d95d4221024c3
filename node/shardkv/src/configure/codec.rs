//! The encoding of the step.

use std::collections::BTreeMap;

use types::{
    Assignment, ClusterId, ConfigNum, DecodeError, Gid, Group, MAX_GROUPS, Reader, ShardId,
    ShardRun, Writer,
};

use super::Configure;

/// The most bytes of an encoded number, and of what else a step has.
const NUMBER_BYTES: usize = 10;
const HEAD_BYTES: usize = 6 * NUMBER_BYTES;
const GROUP_BYTES: usize = 3 * NUMBER_BYTES + 2;
const ROW_BYTES: usize = 7 * NUMBER_BYTES;

impl Configure {
    /// Returns an upper bound of the bytes of the encoded step.
    pub(super) fn bytes_at_most(&self) -> usize {
        let groups = self.groups.values().flatten();
        let addresses = groups.flat_map(|group| &group.addresses);
        let addresses: usize = addresses.map(|it| it.len() + NUMBER_BYTES).sum();
        HEAD_BYTES + addresses + self.groups.len() * GROUP_BYTES + self.rows.len() * ROW_BYTES
    }

    /// Encodes the step's fields.
    pub(crate) fn encode(&self, out: &mut Writer) {
        out.number(self.gid.0)
            .number(self.controller.0)
            .number(self.after.0)
            .number(self.num.0)
            .number(self.groups.len() as u64);
        for (gid, group) in &self.groups {
            out.number(gid.0).byte(group.is_some().into());
            if let Some(group) = group {
                group.encode(out);
            }
        }
        out.number(self.rows.len() as u64);
        for (run, row) in &self.rows {
            out.number(run.first.0.into()).number(run.count.into());
            row.encode(out);
        }
    }

    /// Decodes the output of [`Configure::encode`].
    pub(crate) fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let mut step = Self {
            gid: Gid(input.number("gid")?),
            controller: ClusterId(input.number("controller")?),
            after: ConfigNum(input.number("configuration before")?),
            num: ConfigNum(input.number("configuration number")?),
            groups: BTreeMap::new(),
            rows: Vec::new(),
        };
        let groups = input.count("groups")?;
        // As many may go as come.
        if groups > 2 * MAX_GROUPS {
            return Err(DecodeError::OutOfRange("groups"));
        }
        for _ in 0..groups {
            let gid = Gid(input.number("gid")?);
            let is_there = input.flag("group")?;
            let group = is_there.then(|| Group::decode(input)).transpose()?;
            if gid == Gid::NONE || step.groups.insert(gid, group).is_some() {
                return Err(DecodeError::OutOfRange("gid"));
            }
        }
        for _ in 0..input.count("rows")? {
            let run = ShardRun {
                first: ShardId(input.number_u32("first shard")?),
                count: input.number_u32("shard count")?,
            };
            step.rows.push((run, Assignment::decode(input)?));
        }
        Ok(step)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use types::Incarnation;

    use super::*;

    fn encode(step: &Configure) -> Bytes {
        let mut out = Writer::default();
        step.encode(&mut out);
        out.finish()
    }

    fn decode(encoded: Bytes) -> Result<Configure, DecodeError> {
        let mut input = Reader::new(encoded);
        let step = Configure::decode(&mut input)?;
        input.finish()?;
        Ok(step)
    }

    /// The encoding of a step with these groups and without rows.
    fn with_groups(groups: &[(u64, u8)]) -> Bytes {
        let mut out = Writer::default();
        out.number(1).number(2).number(3).number(4);
        out.number(groups.len() as u64);
        for (gid, is_there) in groups {
            out.number(*gid).byte(*is_there);
        }
        out.number(0);
        out.finish()
    }

    fn large() -> Configure {
        let row = |owner: u64| Assignment {
            owner: Gid(owner),
            owner_since: ConfigNum(300),
            previous: Gid(u64::MAX),
            target: Gid(owner + 1),
            target_since: ConfigNum(u64::MAX),
        };
        let run = |first, count| ShardRun {
            first: ShardId(first),
            count,
        };
        let group = Group {
            addresses: vec!["host-1:7000".to_owned(), "host-2:7000".to_owned()],
            incarnation: Incarnation(299),
            leaving: true,
        };
        Configure {
            gid: Gid(u64::MAX),
            controller: ClusterId(u64::MAX),
            after: ConfigNum(0),
            num: ConfigNum(u64::MAX),
            groups: [(Gid(3), Some(group)), (Gid(700), None)].into(),
            rows: vec![(run(0, 1), row(1)), (run(9, 200_000), row(700))],
        }
    }

    #[test]
    fn steps_decode_to_what_was_encoded_and_to_nothing_if_truncated() {
        let smallest = Configure {
            groups: BTreeMap::new(),
            rows: Vec::new(),
            ..large()
        };
        for step in [smallest, large()] {
            let encoded = encode(&step);
            for length in 0..encoded.len() {
                assert!(decode(encoded.slice(..length)).is_err(), "{length}");
            }
            let longer = Bytes::from([encoded.as_ref(), &[0]].concat());
            assert!(decode(longer).is_err(), "a byte too many");
            assert_eq!(decode(encoded), Ok(step));
        }
    }

    #[test]
    fn groups_that_no_configuration_has_are_refused() {
        assert!(decode(with_groups(&[(1, 0), (2, 0)])).is_ok());
        let gid = Err(DecodeError::OutOfRange("gid"));
        assert_eq!(decode(with_groups(&[(0, 0)])), gid);
        assert_eq!(decode(with_groups(&[(1, 0), (1, 0)])), gid, "twice");
        assert!(
            decode(with_groups(&[(1, 2)])).is_err(),
            "neither here nor gone"
        );
        let most = 2 * MAX_GROUPS as u64;
        let groups: Vec<_> = (1..=most).map(|gid| (gid, 0)).collect();
        assert!(decode(with_groups(&groups)).is_ok());
        let groups: Vec<_> = (1..=most + 1).map(|gid| (gid, 0)).collect();
        let many = Err(DecodeError::OutOfRange("groups"));
        assert_eq!(decode(with_groups(&groups)), many);
        let addresses = Group {
            addresses: Vec::new(),
            incarnation: Incarnation(0),
            leaving: false,
        };
        let step = Configure {
            groups: [(Gid(1), Some(addresses))].into(),
            ..large()
        };
        let none = Err(DecodeError::OutOfRange("addresses"));
        assert_eq!(decode(encode(&step)), none);
    }
}
