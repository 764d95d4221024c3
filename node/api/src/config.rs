//! Configurations on the wire.

use types::{
    Assignment, ConfigDelta, ConfigError, ConfigNum, Gid, Group, Incarnation, ShardConfig, ShardId,
    ShardMove, ShardRun, ShardSet,
};

use crate::v1;

fn group_to_wire(gid: Gid, group: &Group) -> v1::GroupAddresses {
    v1::GroupAddresses {
        gid: gid.0,
        addresses: group.addresses.clone(),
        incarnation: group.incarnation.0,
        leaving: group.leaving,
    }
}

fn group_from_wire(wire: v1::GroupAddresses) -> (Gid, Group) {
    let group = Group {
        addresses: wire.addresses,
        incarnation: Incarnation(wire.incarnation),
        leaving: wire.leaving,
    };
    (Gid(wire.gid), group)
}

/// Converts a configuration to a message.
pub fn config_to_wire(config: &ShardConfig) -> v1::ShardConfig {
    let groups = config.groups().iter();
    let rows = config.row_runs().into_iter();
    v1::ShardConfig {
        num: config.num().0,
        groups: groups
            .map(|(gid, group)| group_to_wire(*gid, group))
            .collect(),
        owners: rows
            .map(|(count, row)| v1::OwnerRun {
                count,
                gid: row.owner.0,
                owner_since: row.owner_since.0,
                previous: row.previous.0,
                target: row.target.0,
                target_since: row.target_since.0,
            })
            .collect(),
    }
}

/// Converts a message to a configuration. Refuses a message that is none.
pub fn config_from_wire(wire: v1::ShardConfig) -> Result<ShardConfig, ConfigError> {
    let row = |run: v1::OwnerRun| {
        let row = Assignment {
            owner: Gid(run.gid),
            owner_since: ConfigNum(run.owner_since),
            previous: Gid(run.previous),
            target: Gid(run.target),
            target_since: ConfigNum(run.target_since),
        };
        (run.count, row)
    };
    ShardConfig::from_rows(
        ConfigNum(wire.num),
        wire.groups.into_iter().map(group_from_wire).collect(),
        wire.owners.into_iter().map(row),
    )
}

fn moves_to_wire(moves: &[ShardMove]) -> Vec<v1::ShardMove> {
    let to_wire = |it: &ShardMove| v1::ShardMove {
        first: it.run.first.0,
        count: it.run.count,
        from: it.from.0,
        to: it.to.0,
    };
    moves.iter().map(to_wire).collect()
}

fn moves_from_wire(moves: Vec<v1::ShardMove>) -> Vec<ShardMove> {
    let from_wire = |it: v1::ShardMove| ShardMove {
        run: ShardRun {
            first: ShardId(it.first),
            count: it.count,
        },
        from: Gid(it.from),
        to: Gid(it.to),
    };
    moves.into_iter().map(from_wire).collect()
}

/// A delta as a message.
pub fn delta_to_wire(delta: &ConfigDelta) -> v1::ConfigDelta {
    let group = |(gid, group): (&Gid, &Option<Group>)| match group {
        Some(group) => group_to_wire(*gid, group),
        None => v1::GroupAddresses {
            gid: gid.0,
            ..v1::GroupAddresses::default()
        },
    };
    v1::ConfigDelta {
        num: delta.num.0,
        groups: delta.groups.iter().map(group).collect(),
        moves: moves_to_wire(&delta.moves),
        targets: moves_to_wire(&delta.targets),
        resets: moves_to_wire(&delta.resets),
    }
}

/// The delta of a message, if it is one.
pub fn delta_from_wire(wire: v1::ConfigDelta) -> Result<ConfigDelta, ConfigError> {
    let groups = wire.groups.into_iter().map(|it| {
        let (gid, group) = group_from_wire(it);
        (gid, (!group.addresses.is_empty()).then_some(group))
    });
    let delta = ConfigDelta {
        num: ConfigNum(wire.num),
        groups: groups.collect(),
        targets: moves_from_wire(wire.targets),
        moves: moves_from_wire(wire.moves),
        resets: moves_from_wire(wire.resets),
    };
    delta.check()?;
    Ok(delta)
}

/// Converts a set of shards to messages.
pub fn shards_to_wire(shards: &ShardSet) -> Vec<v1::ShardRun> {
    let run = |run: &ShardRun| v1::ShardRun {
        first: run.first.0,
        count: run.count,
    };
    shards.runs().iter().map(run).collect()
}

/// Converts messages to a set of shards. Refuses runs that are empty, out of order, or overlap.
pub fn shards_from_wire(wire: &[v1::ShardRun]) -> Result<ShardSet, ConfigError> {
    let run = |run: &v1::ShardRun| ShardRun {
        first: ShardId(run.first),
        count: run.count,
    };
    ShardSet::from_runs(wire.iter().map(run)).map_err(|_| ConfigError::ShardRuns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_and_deltas_survive_the_journey() {
        let mut config = ShardConfig::empty(4);
        let groups = [
            (Gid(1), vec!["a:1".to_owned()]),
            (Gid(2), vec!["b:1".to_owned()]),
        ];
        let owners = [Gid(1), Gid(1), Gid(2), Gid(2)];
        let delta = ConfigDelta::between(&config, &groups.into(), &owners);
        config.apply(&delta).unwrap();
        assert_eq!(
            config_from_wire(config_to_wire(&config)),
            Ok(config.clone())
        );
        assert_eq!(delta_from_wire(delta_to_wire(&delta)), Ok(delta));
        let left = ConfigDelta::between(
            &config,
            &[(Gid(2), vec!["b:1".to_owned()])].into(),
            &[Gid(2); 4],
        );
        assert_eq!(delta_from_wire(delta_to_wire(&left)), Ok(left));
        // Targets alone, of a group that is leaving.
        let mut groups = config.groups().clone();
        groups.get_mut(&Gid(1)).unwrap().leaving = true;
        let targets = ConfigDelta::new(&config, &groups, &[Gid(2); 4], config.owners());
        assert!(targets.moves.is_empty());
        config.apply(&targets).unwrap();
        assert_eq!(delta_from_wire(delta_to_wire(&targets)), Ok(targets));
        // A forgotten group.
        let mut groups = config.groups().clone();
        groups.remove(&Gid(1));
        let forgotten = ConfigDelta::new(&config, &groups, &[Gid(2); 4], &[Gid(2); 4]);
        let forgotten = forgotten.with_resets(&config, &[Gid(2); 4], &ShardSet::all(2));
        assert!(!forgotten.resets.is_empty());
        assert_eq!(delta_from_wire(delta_to_wire(&forgotten)), Ok(forgotten));
        assert_eq!(config_from_wire(config_to_wire(&config)), Ok(config));
        assert!(config_from_wire(v1::ShardConfig::default()).is_err());
        assert!(delta_from_wire(v1::ConfigDelta::default()).is_err());
        let shards = ShardSet::all(3);
        assert_eq!(shards_from_wire(&shards_to_wire(&shards)), Ok(shards));
        assert!(shards_from_wire(&[v1::ShardRun { first: 1, count: 0 }]).is_err());
    }
}
