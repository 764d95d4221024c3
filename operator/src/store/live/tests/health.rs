//! The health of a part, from what its nodes report.

use shardkv_client::MemberStatus;

use super::*;

#[test]
fn a_leader_needs_a_majority_that_follows_it() {
    use Role::{Candidate, Follower, Leader};
    for (name, all, nodes, leader) in [
        (
            "all agree",
            3,
            vec![
                node(1, Leader, 5, 1),
                node(2, Follower, 5, 1),
                node(3, Follower, 5, 1),
            ],
            Some("a"),
        ),
        (
            "two of three",
            3,
            vec![node(1, Follower, 5, 2), node(2, Leader, 5, 2)],
            Some("b"),
        ),
        (
            "one of three is no quorum",
            3,
            vec![node(1, Leader, 5, 1)],
            None,
        ),
        (
            "one of one is a quorum",
            1,
            vec![node(1, Leader, 1, 1)],
            Some("a"),
        ),
        (
            "the leader itself doesn't answer",
            3,
            vec![node(2, Follower, 5, 1), node(3, Follower, 5, 1)],
            None,
        ),
        (
            "no node leads",
            3,
            vec![
                node(1, Candidate, 6, 0),
                node(2, Follower, 6, 0),
                node(3, Follower, 6, 0),
            ],
            None,
        ),
        (
            "an old leader that hasn't stepped down yet",
            3,
            vec![
                node(1, Leader, 5, 1),
                node(2, Leader, 6, 2),
                node(3, Follower, 6, 2),
            ],
            Some("b"),
        ),
        (
            "followers are in another term",
            3,
            vec![
                node(1, Leader, 5, 1),
                node(2, Follower, 6, 1),
                node(3, Follower, 4, 1),
            ],
            None,
        ),
        (
            "three of five",
            5,
            vec![
                node(1, Leader, 5, 1),
                node(2, Follower, 5, 1),
                node(3, Follower, 5, 1),
            ],
            Some("a"),
        ),
        (
            "two of five",
            5,
            vec![node(1, Leader, 5, 1), node(2, Follower, 5, 1)],
            None,
        ),
        ("no node answers", 3, vec![], None),
    ] {
        let answer = health(all, ["a", "b", "c"].into_iter().zip(&nodes));
        assert_eq!(answer.leader.as_deref(), leader, "{name}");
        assert_eq!(answer.answering as usize, nodes.len(), "{name}");
        assert!(answer.troubles.is_empty(), "{name}");
    }
}

/// A name, whether the part is whole, and what differs from three good nodes.
type Row = (&'static str, bool, fn(&mut Vec<NodeStatus>));

#[test]
fn a_part_is_whole_if_all_its_nodes_vote_and_keep_up() {
    use Role::{Follower, Leader};
    let member = |id: u64, voter: bool| MemberStatus {
        node_id: NodeId(id),
        address: String::new(),
        voter,
        match_index: None,
        progress: None,
    };
    let voters: Vec<_> = (1..=3).map(|id| member(id, true)).collect();
    let good = || {
        let mut nodes = vec![
            node(1, Leader, 5, 1),
            node(2, Follower, 5, 1),
            node(3, Follower, 5, 1),
        ];
        nodes[0].members.clone_from(&voters);
        nodes
    };
    let rows: [Row; 8] = [
        ("all are well", true, |_| {}),
        ("one doesn't answer", false, |it| drop(it.pop())),
        ("one is a learner", false, |it| {
            it[0].members[2].voter = false;
        }),
        ("one is no member", false, |it| drop(it[0].members.pop())),
        ("one is behind", false, |it| {
            it[2].trouble = Some("5000 entries behind the group".to_owned());
        }),
        ("one is in another term", false, |it| it[2].term = 4),
        ("one knows no leader", false, |it| it[2].leader_id = None),
        ("nobody leads", false, |it| it[0].role = Follower),
    ];
    for (name, whole, change) in rows {
        let mut nodes = good();
        change(&mut nodes);
        let answer = health(3, ["a", "b", "c"].into_iter().zip(&nodes));
        assert_eq!(answer.whole, whole, "{name}");
    }
    // A member that was lost and has not been removed yet is no node of the part.
    let mut nodes = good();
    nodes[0].members.push(member(9, true));
    assert!(health(3, ["a", "b", "c"].into_iter().zip(&nodes)).whole);
}
