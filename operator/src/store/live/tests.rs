mod health;

use shardkv_client::{
    Assignment, ClusterId, ConfigNum, Group, GroupProgress, ShardConfig, ShardStatus,
};

use super::*;
use crate::build::tests::named;

/// Returns a configuration from its number, runs of shards (count, owner), and progress of groups (gid, settled, true if it is
/// leaving).
fn config_view(num: u64, owners: &[(u32, u64)], progress: &[(u64, u64, bool)]) -> ConfigView {
    let groups = owners.iter().filter(|(_, gid)| *gid != 0);
    let groups = groups.map(|(_, gid)| (Gid(*gid), vec![format!("g{gid}:1")]));
    let owners = owners.iter().map(|(count, gid)| (*count, Gid(*gid)));
    let config = ShardConfig::new(ConfigNum(num), groups.collect(), owners).unwrap();
    let mut groups = config.groups().clone();
    for (gid, _, _) in progress.iter().filter(|(_, _, leaving)| *leaving) {
        let leaving = Group {
            leaving: true,
            ..vec![format!("g{gid}:1")].into()
        };
        groups.insert(Gid(*gid), leaving);
    }
    let config = ShardConfig::from_rows(ConfigNum(num), groups, config.row_runs()).unwrap();
    let progress = progress.iter().map(|&(gid, settled, _)| GroupProgress {
        gid: Gid(gid),
        settled: ConfigNum(settled),
        due: ConfigNum(0),
    });
    ConfigView {
        config,
        latest: ConfigNum(num),
        oldest: ConfigNum(0),
        cluster_id: ClusterId(1),
        progress: progress.collect(),
        drained: BTreeMap::new(),
    }
}

fn group(gid: u64, shards: &[(u32, ShardState)]) -> (Gid, Result<GroupShards, Error>) {
    let status = |&(shard, state): &(u32, ShardState)| ShardStatus {
        shard: ShardId(shard),
        state,
        config_num: ConfigNum(0),
        other_gid: None,
        keys: 0,
        bytes: 0,
        handoff_age: None,
        waits_for: None,
        pulled_bytes: 0,
        whole_bytes: 0,
        bytes_per_second: 0,
    };
    let shards = GroupShards {
        gid: Gid(gid),
        config_num: ConfigNum(0),
        settled: ConfigNum(0),
        shards: shards.iter().map(status).collect(),
    };
    (Gid(gid), Ok(shards))
}

fn node(id: u64, role: Role, term: u64, leader: u64) -> NodeStatus {
    NodeStatus {
        version: String::new(),
        cluster_id: String::new(),
        gid: Gid(1),
        node_id: NodeId(id),
        address: String::new(),
        role,
        term,
        leader_id: (leader != 0).then_some(NodeId(leader)),
        leader_address: None,
        commit_index: 0,
        last_applied: 0,
        first_index: 0,
        last_index: 0,
        members: Vec::new(),
        shards: 8,
        log_bytes: 0,
        state_bytes: 0,
        disk_free_bytes: 0,
        disk_total_bytes: 0,
        disk_reserve_bytes: 0,
        incoming_bytes: 0,
        disk_full: false,
        trouble: None,
        kind: GroupKind::Shards,
        config_num: ConfigNum(0),
        settled: ConfigNum(0),
    }
}

#[test]
fn a_leaving_group_is_no_member_and_is_waited_for() {
    let answer = config_view(
        7,
        &[(5, 1), (2, 2), (1, 1)],
        &[(1, 7, false), (2, 6, false), (3, 5, true)],
    );
    let view = view(&answer);
    assert_eq!(view.plan.num, 7);
    assert_eq!(view.plan.members, [1, 2].into());
    assert_eq!(view.plan.settled, [(1, 7), (2, 6), (3, 5)].into());
    assert_eq!(view.shards, [(1, 6), (2, 2)].into());
}

#[test]
fn a_store_that_no_group_has_joined_has_neither_members_nor_shards() {
    assert_eq!(view(&config_view(0, &[(8, 0)], &[])), View::default());
}

#[test]
fn a_member_without_shards_is_a_member() {
    let groups = [Gid(1), Gid(2)].map(|gid| (gid, vec![format!("g{}:1", gid.0)]));
    let mut answer = config_view(1, &[(8, 1)], &[(1, 1, false), (2, 1, false)]);
    answer.config = ShardConfig::new(ConfigNum(1), groups.into(), [(8, Gid(1))]).unwrap();
    assert_eq!(view(&answer).shards, [(1, 8), (2, 0)].into());
}

#[test]
fn a_shard_is_unserved_until_its_new_owner_serves_it() {
    use ShardState::{Fenced, Owed, Pulling, Serving};
    // Each group owns four shards; group 2 joined in configuration 2.
    let owners = [(4, 1), (4, 2)];
    let behind = config_view(2, &owners, &[(1, 1, false), (2, 1, false)]);
    let pulls = group(2, &[(4, Serving), (5, Pulling)]);
    let gives = group(
        1,
        &[
            (0, Serving),
            (1, Serving),
            (2, Serving),
            (3, Serving),
            (4, Owed),
            (5, Fenced),
        ],
    );
    let silent = |gid| {
        (
            Gid(gid),
            Err(Error::Closed {
                maybe_applied: false,
            }),
        )
    };
    for (name, answer, reports, unserved) in [
        (
            "all groups have settled",
            config_view(2, &owners, &[(1, 2, false), (2, 2, false)]),
            vec![],
            0,
        ),
        (
            "the new owner serves one shard, pulls one, and doesn't know two",
            behind.clone(),
            vec![gives.clone(), pulls.clone()],
            3,
        ),
        (
            "the new owner doesn't know the configuration",
            behind.clone(),
            vec![gives.clone(), group(2, &[])],
            4,
        ),
        (
            "the new owner doesn't answer",
            behind.clone(),
            vec![gives, silent(2)],
            4,
        ),
        ("no group answers", behind, vec![], 8),
        (
            "only the new owner is behind",
            config_view(2, &owners, &[(1, 2, false), (2, 1, false)]),
            vec![pulls],
            3,
        ),
        (
            "a group that leaves is behind; its shards move to the others",
            config_view(3, &[(8, 1)], &[(1, 2, false), (2, 2, true)]),
            vec![group(1, &[(0, Serving)])],
            7,
        ),
    ] {
        let mut view = view(&answer);
        let asked = unsettled(&answer);
        let mut reports: BTreeMap<_, _> = reports.into_iter().collect();
        for group in reports.values_mut().flatten() {
            group.shards.retain(|it| asked.contains(it.shard));
        }
        count_moves(&mut view, &answer, &reports);
        assert_eq!((view.unserved, view.copying), (unserved, 0), "{name}");
    }
}

/// While a hundred thousand shards are copied, and cut one by one, only those that were cut last are asked for.
#[test]
fn only_shards_that_nobody_is_known_to_serve_are_asked_for() {
    let owners = [(60_000, 1), (40_000, 2)];
    let all = config_view(2, &owners, &[(1, 2, false), (2, 2, false)]);
    assert!(unsettled(&all).is_empty());
    let mut answer = all;
    let row = |owner: u64, since| Assignment {
        owner: Gid(owner),
        owner_since: ConfigNum(since),
        previous: Gid(0),
        target: Gid(2),
        target_since: ConfigNum(2),
    };
    let rows = [(59_998, row(1, 1)), (2, row(2, 3)), (40_000, row(2, 1))];
    let groups = answer.config.groups().clone();
    answer.config = ShardConfig::from_rows(ConfigNum(3), groups, rows).unwrap();
    let asked = unsettled(&answer);
    assert!(
        asked.shards().eq([ShardId(59_998), ShardId(59_999)]),
        "{asked:?}"
    );
}

#[test]
fn a_shard_that_is_to_be_copied_is_served_by_its_owner() {
    use ShardState::{Copying, Fenced, Pulling, Serving};
    // Group 1 leaves in configuration 3, which makes group 2 the target of its last shards. Configuration 4 cut one of them.
    let groups = [(1, true), (2, false), (3, false)].map(|(gid, leaving)| {
        let group = Group {
            leaving,
            ..vec![format!("g{gid}:1")].into()
        };
        (Gid(gid), group)
    });
    let row = |owner, owner_since, target, target_since| Assignment {
        owner: Gid(owner),
        owner_since: ConfigNum(owner_since),
        previous: Gid(0),
        target: Gid(target),
        target_since: ConfigNum(target_since),
    };
    let rows = [
        (3, row(1, 1, 2, 3)),
        (1, row(2, 4, 2, 3)),
        (4, row(3, 2, 3, 2)),
    ];
    let config = |rows| ShardConfig::from_rows(ConfigNum(4), groups.clone().into(), rows).unwrap();
    let mut answer = config_view(4, &[(8, 3)], &[(1, 3, true), (2, 3, false), (3, 4, false)]);
    answer.config = config(rows.to_vec());
    let counted = |answer: &ConfigView, reports: Vec<_>| {
        let mut view = view(answer);
        count_moves(&mut view, answer, &reports.into_iter().collect());
        view
    };
    let serves = group(1, &[(0, Serving), (1, Serving), (2, Serving), (3, Fenced)]);
    let copies = [(0, Copying), (1, Copying), (2, Copying)];
    let pulls = group(2, &[copies.as_slice(), &[(3, Pulling)]].concat());
    let has = group(2, &[copies.as_slice(), &[(3, Serving)]].concat());

    let told = counted(&answer, vec![serves.clone(), pulls]);
    assert_eq!((told.copying, told.unserved, told.moving()), (3, 1, 4));
    assert_eq!(told.copiers, [1, 2].into());
    assert_eq!(told.shards, [(1, 3), (2, 1), (3, 4)].into());
    assert_eq!(told.plan.awaiting, [].into());
    let told = counted(&answer, vec![serves, has]);
    assert_eq!((told.copying, told.unserved), (3, 0));
    // What a silent group has settled is served.
    let told = counted(&answer, vec![]);
    assert_eq!((told.copying, told.unserved), (3, 1));

    // Group 2 owns nothing before its first cut. A shard that nobody serves yet isn't copied, whatever its target.
    answer.config = config(vec![(4, row(1, 1, 2, 3)), (4, row(3, 2, 2, 4))]);
    answer.progress[2].settled = ConfigNum(1);
    let told = counted(&answer, vec![]);
    assert_eq!((told.copying, told.unserved), (4, 4));
    assert_eq!(told.shards, [(1, 4), (2, 0), (3, 4)].into());
    assert_eq!(told.plan.awaiting, [2].into());
}

#[test]
fn only_lasting_problems_are_troubles() {
    let full = NodeStatus {
        disk_full: true,
        ..node(1, Role::Leader, 1, 1)
    };
    let starting = NodeStatus {
        trouble: Some("5000 entries behind the group".to_owned()),
        ..node(2, Role::Follower, 1, 1)
    };
    let well = node(3, Role::Follower, 1, 1);
    let answer = health(
        3,
        [("a", &full), ("b", &starting), ("c", &well)].into_iter(),
    );
    assert_eq!(
        answer.troubles,
        [("a".to_owned(), DISK_FULL.to_owned())].into()
    );
}

#[test]
fn the_status_of_another_group_s_node_is_ignored() {
    let shards = node(1, Role::Leader, 1, 1);
    let controller = NodeStatus {
        kind: GroupKind::Controller,
        ..shards.clone()
    };
    let alone = NodeStatus {
        kind: GroupKind::Standalone,
        ..shards.clone()
    };
    for (part, status, is_one) in [
        (Component::Group(1), &shards, true),
        (Component::Group(2), &shards, false),
        (Component::Group(1), &controller, false),
        (Component::Group(1), &alone, false),
        (Component::Controller, &controller, true),
        (Component::Controller, &shards, false),
    ] {
        assert_eq!(is_of(part, status), is_one, "{part:?} {:?}", status.kind);
    }
}

#[test]
fn errors_are_refused_or_unreachable() {
    let text = || "x".to_owned();
    let refused = [
        Error::Conflict {
            what: text(),
            message: text(),
        },
        Error::NotFound {
            what: text(),
            message: text(),
        },
        Error::BadRequest {
            field: text(),
            message: text(),
        },
        Error::WrongCluster {
            expected: text(),
            actual: text(),
        },
    ];
    assert!(
        refused
            .iter()
            .all(|it| matches!(refusal(it), StoreError::Refused(_)))
    );
    let unreachable = [
        Error::Timeout {
            maybe_applied: true,
            after: VIEW,
            last: text(),
        },
        Error::OutcomeUnknown { reason: text() },
        Error::Unavailable {
            address: text(),
            message: text(),
            maybe_applied: false,
        },
        Error::Closed {
            maybe_applied: false,
        },
    ];
    assert!(
        unreachable
            .iter()
            .all(|it| matches!(refusal(it), StoreError::Unreachable(_)))
    );
}

#[test]
fn a_pod_is_the_first_label_of_its_address() {
    let cluster = named("demo");
    let pods: Vec<_> = nodes(
        &cluster,
        &[Component::Controller, Component::Group(12)].into(),
    );
    let pods: Vec<_> = pods.iter().map(|(_, address)| pod(address)).collect();
    let expected = [
        "demo-controller-0",
        "demo-controller-1",
        "demo-controller-2",
        "demo-group-12-0",
        "demo-group-12-1",
        "demo-group-12-2",
    ];
    assert_eq!(pods, expected);
}

#[tokio::test]
async fn a_cluster_keeps_one_client_while_it_is_in_use() {
    let store = LiveStore::new(Arc::default());
    let keys = || {
        let mut names: Vec<_> = store.lock().keys().map(|key| key.name.clone()).collect();
        names.sort();
        names
    };
    let begun = Instant::now();
    let use_at = |cluster: &Cluster, halves| {
        store
            .client_at(cluster, begun + UNUSED / 2 * halves)
            .unwrap();
    };
    let (a, b, c) = (named("a"), named("b"), named("c"));
    use_at(&a, 0);
    use_at(&b, 0);
    use_at(&a, 1);
    assert_eq!(keys(), ["a", "b"]);
    use_at(&c, 2);
    assert_eq!(keys(), ["a", "c"], "b is unused");
    let mut again = a.clone();
    again.owner.uid = "another".to_owned();
    use_at(&again, 2);
    assert_eq!(
        keys(),
        ["a", "a", "c"],
        "the recreated resource has its own client"
    );
    store.forget(&a.namespace, &a.name);
    store.forget(&b.namespace, &b.name);
    assert_eq!(keys(), ["c"]);
}
