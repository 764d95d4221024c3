//! The golden of the reports.

use std::io::Write as _;

use shardkv_client::{
    ConfigChange, ConfigDelta, ConfigNum, ConfigView, DrainedGroup, Gid, Group, GroupProgress,
    Incarnation, ShardConfig,
};

use super::change::changed_line;
use super::delta::write_delta;
use super::view::write_map;
use crate::output::Format;

fn map() -> ConfigView {
    let address = |gid: u64| vec![format!("127.0.0.1:74{gid}1"), format!("127.0.0.1:74{gid}2")];
    let groups = [1, 2].map(|gid| (Gid(gid), address(gid)));
    let mut runs = vec![(1_000, Gid(1)), (1_000, Gid(2)), (3, Gid::NONE)];
    runs.extend((0..60).map(|n| (1, Gid(1 + n % 2))));
    let progress = |gid, settled| GroupProgress {
        gid: Gid(gid),
        settled: ConfigNum(settled),
        due: ConfigNum(7),
    };
    // Group 3 leaves, and has given all its shards away.
    let config = ShardConfig::new(ConfigNum(7), groups.into(), runs).unwrap();
    let mut groups = config.groups().clone();
    let leaving = Group {
        leaving: true,
        ..vec!["127.0.0.1:7431".to_owned()].into()
    };
    groups.insert(Gid(3), leaving);
    let config = ShardConfig::from_rows(ConfigNum(7), groups, config.row_runs()).unwrap();
    ConfigView {
        cluster_id: shardkv_client::ClusterId(1),
        config,
        latest: ConfigNum(9),
        oldest: ConfigNum(3),
        progress: vec![progress(1, 7), progress(2, 6), progress(3, 6)],
        drained: [
            (Gid(4), gone(2, false, false)),
            (Gid(5), gone(3, true, false)),
            (Gid(6), gone(4, false, true)),
            (Gid(7), gone(5, true, true)),
        ]
        .into(),
    }
}

fn gone(incarnation: u64, forgotten: bool, retired: bool) -> DrainedGroup {
    DrainedGroup {
        incarnation: Incarnation(incarnation),
        gone_in: ConfigNum(6),
        forgotten,
        retired,
    }
}

#[test]
fn configurations_match_the_golden() {
    let mut out = Vec::new();
    for format in [Format::Table, Format::Json] {
        write_map(&map(), format, &mut out).unwrap();
        out.push(b'\n');
    }
    let before = ShardConfig::new(
        ConfigNum(1),
        [(Gid(1), vec!["h:1".into()]), (Gid(2), vec!["h:2".into()])].into(),
        [(2, Gid(1)), (2, Gid(2)), (2, Gid::NONE)],
    );
    let groups = [(Gid(1), vec!["h:1".into()]), (Gid(3), vec!["h:3".into()])].into();
    let owners = [1, 3, 3, 1, 1, 3].map(Gid);
    let delta = ConfigDelta::between(&before.unwrap(), &groups, &owners);
    for format in [Format::Table, Format::Json] {
        write_delta(&delta, format, &mut out).unwrap();
    }
    for (moved_shards, changed) in [(0, false), (1_200, true)] {
        let changed = ConfigChange {
            num: ConfigNum(8),
            changed,
            moved_shards,
        };
        for settled in [false, true] {
            writeln!(out, "{}", changed_line(&changed, settled)).unwrap();
        }
    }
    crate::golden::check("config.txt", std::str::from_utf8(&out).unwrap());
}
