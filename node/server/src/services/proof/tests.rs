use super::*;

const OURS: ClusterId = ClusterId(7);

fn status(kind: GroupKind, gid: u64, controllers: u64) -> StatusResponse {
    let mut status = StatusResponse {
        gid,
        controllers,
        node_id: 5,
        cluster_id: "c1".to_owned(),
        ..StatusResponse::default()
    };
    status.set_kind(kind);
    status
}

fn member(node: u64, group: &str) -> Finding {
    Finding::Member {
        node: NodeId(node),
        group: group.to_owned(),
    }
}

fn text(finding: Finding) -> String {
    Listed(&[("a:1".to_owned(), finding)]).to_string()
}

#[test]
fn a_node_of_the_group_that_follows_these_controllers_is_a_member() {
    let good = status(GroupKind::Shards, 2, 7);
    assert_eq!(examine(&good, Gid(2), OURS), member(5, "c1"));
}

#[test]
fn each_other_answer_is_named() {
    let mut controller = status(GroupKind::Controller, 0, 0);
    let told = |status: &StatusResponse| match examine(status, Gid(2), OURS) {
        Finding::Other(what) => what,
        other => panic!("{other:?}"),
    };
    assert_eq!(told(&controller), "a controller of another cluster");
    controller.cluster_id = OURS.to_string();
    assert_eq!(told(&controller), "a controller of this cluster");
    for (status, expected) in [
        (
            status(GroupKind::Standalone, 0, 0),
            "a node of a store without controllers",
        ),
        (
            status(GroupKind::Unspecified, 2, 7),
            "a node of an unknown kind",
        ),
        (
            status(GroupKind::Shards, 3, 7),
            "a node of g3 of this cluster",
        ),
        (status(GroupKind::Shards, 3, 0), "a node of g3"),
        (
            status(GroupKind::Shards, 2, 8),
            "a node of g2 of another cluster, c0000000000000008",
        ),
    ] {
        assert_eq!(told(&status), expected);
    }
}

#[test]
fn a_node_that_starts_is_asked_again() {
    let waits = status(GroupKind::Shards, 2, 0);
    let mut unformed = status(GroupKind::Shards, 2, 7);
    unformed.cluster_id.clear();
    for status in [waits, unformed] {
        let finding = examine(&status, Gid(2), OURS);
        assert!(matches!(finding, Finding::Undecided(_)), "{finding:?}");
    }
}

#[test]
fn a_quorum_of_different_nodes_of_one_group_is_a_proof() {
    let down = || Finding::Undecided("down".to_owned());
    let wrong = || Finding::Other("a controller".to_owned());
    let one = |node| member(node, "c1");
    // The findings, and the result: true for a proof, or whether the refusal is final.
    let cases: [(Vec<Finding>, Result<(), bool>); 9] = [
        (vec![one(1)], Ok(())),
        (vec![one(1), one(2), down()], Ok(())),
        (vec![one(1), down(), down()], Err(false)),
        (vec![one(1), down()], Err(false)),
        (vec![one(1), one(2), wrong()], Err(true)),
        (vec![one(1), one(1), one(2)], Err(true)),
        (vec![one(1), one(2), member(3, "c2")], Err(true)),
        (vec![down()], Err(false)),
        (vec![wrong()], Err(true)),
    ];
    for (findings, expected) in cases {
        let named = findings.iter().cloned().zip(1..);
        let named = named.map(|(it, at)| (format!("a:{at}"), it)).collect();
        let result = judge(Gid(2), named).map_err(|(_, is_final)| is_final);
        assert_eq!(result, expected, "{findings:?}");
    }
}

#[test]
fn a_refusal_names_each_address_and_the_remedy() {
    let findings = vec![
        ("a:1".to_owned(), member(5, "c1")),
        ("b:1".to_owned(), Finding::Undecided("no answer".to_owned())),
        ("c:1".to_owned(), member(5, "c1")),
    ];
    let (error, _) = judge(Gid(2), findings).unwrap_err();
    let detail = ErrorDetail::from(error);
    for part in [
        "g2 doesn't join: 2 of its 3 addresses",
        "b:1: no answer; c:1: node",
        "--gid 2",
    ] {
        assert!(detail.message.contains(part), "{}", detail.message);
    }
    assert!(matches!(
        detail.kind,
        Some(v1::error_detail::Kind::Conflict(_))
    ));
    assert!(text(member(5, "c1")).ends_with("of the group"));
}

#[test]
fn only_addresses_that_are_not_listed_need_a_proof() {
    let groups = [(Gid(1), vec!["a:1".to_owned(), "b:1".to_owned()])].into();
    let latest = ShardConfig::new(types::ConfigNum(1), groups, [(4, Gid(1))]).unwrap();
    let group = |gid, addresses: &[&str]| GroupAddresses {
        gid,
        addresses: addresses.iter().map(|&it| it.to_owned()).collect(),
        ..GroupAddresses::default()
    };
    for (group, expected) in [
        (group(1, &["a:1", "b:1"]), false),
        (group(1, &["a:1"]), false),
        (group(1, &["a:1", "c:1"]), true),
        (group(2, &["c:1"]), true),
        // The controllers say what is wrong with these.
        (group(0, &["c:1"]), false),
        (group(2, &[]), false),
        (group(2, &["nonsense"]), false),
    ] {
        assert_eq!(needs_proof(&group, &latest), expected, "{group:?}");
    }
}
/// Addresses that never answer, one of each of many groups, hold up no other address.
#[tokio::test(start_paused = true)]
async fn silent_addresses_keep_no_group_from_its_proof() {
    let addresses = |gid| (0..5).map(move |at| format!("{gid}:{at}")).collect();
    let groups = (1..=64).map(|gid| (Gid(gid), addresses(gid))).collect();
    let begun = Instant::now();
    let asked = find(
        groups,
        begun + TIME_OF_PROOF,
        async |address: String, _| match address.split_once(':').unwrap().1 {
            "0" | "1" => std::future::pending().await,
            at => member(at.parse().unwrap(), "c1"),
        },
    );
    asked.await.unwrap();
    let time = begun.elapsed();
    assert!(time < TIME_OF_PROOF, "{time:?}");
}

/// Asks three addresses, of which the third answers `third` after `delay`, and returns the time that it took.
async fn ask_three(delay: Duration, third: Finding) -> (Result<(), ProofError>, Duration) {
    let addresses = ["a:1", "b:2", "c:3"].map(str::to_owned).to_vec();
    let begun = Instant::now();
    let third = &third;
    let groups = [(Gid(2), addresses)].into();
    let found = find(
        groups,
        begun + TIME_OF_PROOF,
        async |address: String, _| match &*address {
            "a:1" => member(1, "c1"),
            "b:2" => member(2, "c1"),
            _ => {
                tokio::time::sleep(delay).await;
                third.clone()
            }
        },
    );
    (found.await, begun.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_quorum_suffices_unless_an_answer_contradicts_it_soon() {
    let wrong = Finding::Other("a controller".to_owned());
    let (result, time) = ask_three(TIME_OF_PROOF, wrong.clone()).await;
    assert_eq!((result.is_ok(), time), (true, GRACE), "nothing came");
    let (result, time) = ask_three(GRACE / 2, member(3, "c1")).await;
    assert_eq!((result.is_ok(), time), (true, GRACE / 2), "all agree");
    let (result, time) = ask_three(GRACE / 2, wrong).await;
    assert_eq!((result.is_err(), time), (true, GRACE / 2), "a stranger");
}

#[tokio::test(start_paused = true)]
async fn an_address_is_asked_again_while_another_is_silent() {
    let asked = std::sync::atomic::AtomicU64::new(0);
    let groups = [(Gid(2), ["a:1", "b:2", "c:3"].map(str::to_owned).to_vec())].into();
    let end = Instant::now() + TIME_OF_PROOF;
    let found = find(groups, end, async |address: String, _| match &*address {
        "a:1" => member(1, "c1"),
        "b:2" => match asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 => Finding::Undecided("starting".to_owned()),
            _ => member(2, "c1"),
        },
        _ => std::future::pending().await,
    });
    found.await.unwrap();
    assert!(Instant::now() < end);
}

#[tokio::test(start_paused = true)]
async fn a_group_without_a_quorum_fails_when_the_time_is_over() {
    let groups = [(Gid(2), ["a:1", "b:2"].map(str::to_owned).to_vec())].into();
    let end = Instant::now() + TIME_OF_PROOF;
    let found = find(groups, end, async |address: String, _| match &*address {
        "a:1" => member(1, "c1"),
        _ => std::future::pending().await,
    });
    let error = found.await.unwrap_err().to_string();
    assert!(error.contains("b:2: no answer in time"), "{error}");
    assert_eq!(Instant::now(), end);
}
