//! Configurations on the wire.

use types::{
    ConfigDelta, ConfigError, ConfigNum, Gid, ShardConfig, ShardId, ShardMove, ShardRun, ShardSet,
};

use crate::v1;

fn group(gid: Gid, addresses: &[String]) -> v1::GroupAddresses {
    v1::GroupAddresses {
        gid: gid.0,
        addresses: addresses.to_vec(),
    }
}

/// Converts a configuration to a message.
pub fn config_to_wire(config: &ShardConfig) -> v1::ShardConfig {
    let groups = config.groups().iter();
    v1::ShardConfig {
        num: config.num().0,
        groups: groups
            .map(|(gid, addresses)| group(*gid, addresses))
            .collect(),
        owners: config
            .owner_runs()
            .map(|(count, gid)| v1::OwnerRun { count, gid: gid.0 })
            .collect(),
    }
}

/// Converts a message to a configuration. Refuses a message that is none.
pub fn config_from_wire(wire: v1::ShardConfig) -> Result<ShardConfig, ConfigError> {
    let groups = wire.groups.into_iter();
    ShardConfig::new(
        ConfigNum(wire.num),
        groups.map(|it| (Gid(it.gid), it.addresses)).collect(),
        wire.owners.into_iter().map(|run| (run.count, Gid(run.gid))),
    )
}

/// Converts a delta to a message.
pub fn delta_to_wire(delta: &ConfigDelta) -> v1::ConfigDelta {
    let groups = delta.groups.iter();
    v1::ConfigDelta {
        num: delta.num.0,
        groups: groups
            .map(|(gid, addresses)| group(*gid, addresses.as_deref().unwrap_or_default()))
            .collect(),
        moves: delta
            .moves
            .iter()
            .map(|it| v1::ShardMove {
                first: it.run.first.0,
                count: it.run.count,
                from: it.from.0,
                to: it.to.0,
            })
            .collect(),
    }
}

/// Converts a message to a delta. Refuses a message that is none.
pub fn delta_from_wire(wire: v1::ConfigDelta) -> Result<ConfigDelta, ConfigError> {
    let groups = wire.groups.into_iter().map(|it| {
        let addresses = (!it.addresses.is_empty()).then_some(it.addresses);
        (Gid(it.gid), addresses)
    });
    let moves = wire.moves.into_iter().map(|it| ShardMove {
        run: ShardRun {
            first: ShardId(it.first),
            count: it.count,
        },
        from: Gid(it.from),
        to: Gid(it.to),
    });
    let delta = ConfigDelta {
        num: ConfigNum(wire.num),
        groups: groups.collect(),
        moves: moves.collect(),
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
        assert!(config_from_wire(v1::ShardConfig::default()).is_err());
        assert!(delta_from_wire(v1::ConfigDelta::default()).is_err());
        let shards = ShardSet::all(3);
        assert_eq!(shards_from_wire(&shards_to_wire(&shards)), Ok(shards));
        assert!(shards_from_wire(&[v1::ShardRun { first: 1, count: 0 }]).is_err());
    }
}
