//! The decision of a node with an empty disk, as a pure function of its peers' answers.

use std::collections::BTreeSet;

use types::NodeId;

use super::genesis::FirstMembership;

/// One configured peer's answer in a round of questions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The peer did not answer, or its answer is not valid.
    Silent,
    /// The peer has neither a group nor data.
    Empty(NodeId),
    /// The peer is or was a member of a group. Without a first membership it joined later.
    Member(Option<FirstMembership>),
}

/// The next action of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// The group has been formed, and this node is one of its first members.
    Adopt(FirstMembership),
    /// A group without this node exists, or this node may not form one: wait until the group adds this node.
    Join,
    /// All initial peers are empty, and this node forms the group.
    Form(Vec<(NodeId, String)>),
    /// The node can't decide yet, for this reason.
    Wait(String),
}

/// Decides from the answers of the configured `peers`, each at its position. This node's own answer is among them. `own` is
/// this node's id.
///
/// A node forms a group only if *every* initial peer answered and is empty. Otherwise a node that lost its disk could help
/// to form a second group beside the one that it forgot. Of the empty nodes the one with the smallest address forms the
/// group, so that two nodes never do.
pub(crate) fn decide(own: NodeId, peers: &[String], answers: &[Answer]) -> Decision {
    let mut beginnings = answers.iter().filter_map(|answer| match answer {
        Answer::Member(first) => first.as_ref(),
        _ => None,
    });
    if let Some(first) = beginnings.find(|first| first.contains(own)) {
        return Decision::Adopt(first.clone());
    }
    if answers.iter().any(|a| matches!(a, Answer::Member(_))) {
        return Decision::Join;
    }
    let mut members = Vec::with_capacity(peers.len());
    let mut silent = Vec::new();
    for (peer, answer) in peers.iter().zip(answers) {
        match answer {
            Answer::Empty(node) => members.push((*node, peer.clone())),
            _ => silent.push(peer.as_str()),
        }
    }
    if !silent.is_empty() {
        return Decision::Wait(format!("no answer yet from {}", silent.join(", ")));
    }
    let Some((_, own_address)) = members.iter().find(|(node, _)| *node == own).cloned() else {
        // This node is not an initial peer.
        return Decision::Join;
    };
    let distinct: BTreeSet<NodeId> = members.iter().map(|(node, _)| *node).collect();
    if distinct.len() != members.len() {
        return Decision::Wait("two addresses of --peers lead to the same node".to_owned());
    }
    match members.iter().map(|(_, address)| address).min() {
        Some(smallest) if *smallest == own_address => Decision::Form(members),
        Some(smallest) => Decision::Wait(format!("{smallest} will form the group")),
        None => Decision::Join,
    }
}

#[cfg(test)]
mod tests {
    use shardkv::Genesis;
    use types::ClusterId;

    use super::*;

    const OWN: NodeId = NodeId(1);

    fn first(cluster: u64, nodes: &[u64]) -> FirstMembership {
        FirstMembership {
            cluster: ClusterId(cluster),
            members: nodes
                .iter()
                .map(|n| (NodeId(*n), format!("host{n}:1")))
                .collect(),
            genesis: Genesis::default(),
        }
    }

    fn empty(node: u64) -> Answer {
        Answer::Empty(NodeId(node))
    }

    fn member(nodes: &[u64]) -> Answer {
        Answer::Member(Some(first(9, nodes)))
    }

    fn run(peers: &[&str], answers: &[Answer]) -> Decision {
        let peers: Vec<String> = peers.iter().map(|peer| (*peer).to_owned()).collect();
        decide(OWN, &peers, answers)
    }

    #[test]
    fn the_table_of_cases() {
        use Answer::Silent;
        let joined = || Answer::Member(None);
        let abc = ["a:1", "b:1", "c:1"];
        let form = |members: &[(u64, &str)]| {
            Decision::Form(
                members
                    .iter()
                    .map(|(node, at)| (NodeId(*node), (*at).to_owned()))
                    .collect(),
            )
        };
        let adopt = Decision::Adopt(first(9, &[1, 2, 3]));
        let wait = |text: &str| Decision::Wait(text.to_owned());
        let cases: Vec<(&str, Vec<Answer>, Decision)> = vec![
            (
                "all empty, own address smallest",
                vec![empty(1), empty(2), empty(3)],
                form(&[(1, "a:1"), (2, "b:1"), (3, "c:1")]),
            ),
            (
                "all empty, another is smallest",
                vec![empty(2), empty(1), empty(3)],
                wait("a:1 will form the group"),
            ),
            (
                "one is silent: never begin",
                vec![empty(1), Silent, empty(3)],
                wait("no answer yet from b:1"),
            ),
            (
                "one has a beginning with us",
                vec![empty(1), member(&[1, 2, 3]), Silent],
                adopt.clone(),
            ),
            (
                "one has a beginning without us: our disk was lost",
                vec![empty(1), member(&[7, 2, 3]), empty(3)],
                Decision::Join,
            ),
            (
                "a beginning with us wins over one without",
                vec![empty(1), member(&[7, 2, 3]), member(&[1, 2, 3])],
                adopt.clone(),
            ),
            (
                "a member that joined later and knows no beginning",
                vec![empty(1), joined(), empty(3)],
                Decision::Join,
            ),
            (
                "a member without beginning beside one with us",
                vec![empty(1), joined(), member(&[1, 2, 3])],
                adopt,
            ),
            (
                "a member beats silence",
                vec![empty(1), Silent, joined()],
                Decision::Join,
            ),
            (
                "two addresses of one node",
                vec![empty(1), empty(2), empty(2)],
                wait("two addresses of --peers lead to the same node"),
            ),
            (
                "we are not among the peers",
                vec![empty(4), empty(2), empty(3)],
                Decision::Join,
            ),
            (
                "we are not among the peers and one is silent",
                vec![empty(4), Silent, empty(3)],
                wait("no answer yet from b:1"),
            ),
        ];
        for (name, answers, expected) in cases {
            assert_eq!(run(&abc, &answers), expected, "{name}");
        }
    }

    #[test]
    fn a_single_node_begins_alone() {
        let expected = Decision::Form(vec![(OWN, "a:1".to_owned())]);
        assert_eq!(run(&["a:1"], &[empty(1)]), expected);
    }

    #[test]
    fn at_most_one_of_all_empty_peers_begins() {
        let peers: Vec<String> = ["b:1", "a:1", "c:1"].map(str::to_owned).to_vec();
        let answers = [empty(11), empty(12), empty(13)];
        let forming = [11, 12, 13]
            .into_iter()
            .filter(|own| matches!(decide(NodeId(*own), &peers, &answers), Decision::Form(_)))
            .count();
        assert_eq!(forming, 1);
    }
}
