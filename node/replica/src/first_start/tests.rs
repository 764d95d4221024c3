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

fn empty(node: u64) -> Introduction {
    Introduction::Empty(NodeId(node))
}

fn member(nodes: &[u64]) -> Introduction {
    Introduction::Member(Some(first(9, nodes)))
}

fn run(peers: &[&str], answers: &[Introduction]) -> Decision {
    let peers: Vec<String> = peers.iter().map(|peer| (*peer).to_owned()).collect();
    decide(OWN, &peers, answers, Bugs::NONE)
}

#[test]
fn the_table_of_cases() {
    use Introduction::Silent;
    let joined = || Introduction::Member(None);
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
    let cases: Vec<(&str, Vec<Introduction>, Decision)> = vec![
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
        .filter(|own| {
            matches!(
                decide(NodeId(*own), &peers, &answers, Bugs::NONE),
                Decision::Form(_)
            )
        })
        .count();
    assert_eq!(forming, 1);
}

fn record() -> NodeRecord {
    NodeRecord::new(OWN)
}

#[test]
fn a_start_goes_on_where_the_one_before_was_interrupted() {
    let start = |record: &NodeRecord| record.first_start();
    assert_eq!(start(&record()), FirstStart::Ask);
    let mut bound = record();
    bound.cluster = Some(ClusterId(9));
    assert_eq!(start(&bound), FirstStart::Join, "it waits for its snapshot");
    let mut touched = record();
    touched.has_log = true;
    assert_eq!(start(&touched), FirstStart::Join);
    let mut adopted = bound;
    adopted.first = Some(first(9, &[1, 2, 3]));
    let goes_on = FirstStart::Continue(first(9, &[1, 2, 3]));
    assert_eq!(start(&adopted), goes_on, "never with another membership");
}

#[test]
fn a_node_says_that_it_is_empty_only_before_it_is_bound_to_anything() {
    let says = |record: &NodeRecord| record.introduce();
    assert_eq!(says(&record()), Introduction::Empty(OWN));
    let mut bound = record();
    bound.cluster = Some(ClusterId(9));
    assert_eq!(says(&bound), Introduction::Member(None));
    let mut adopted = record();
    adopted.first = Some(first(9, &[1, 2]));
    let member = Introduction::Member(Some(first(9, &[1, 2])));
    assert_eq!(says(&adopted), member);
    let mut touched = record();
    touched.has_log = true;
    assert_eq!(says(&touched), Introduction::Member(None));
}

#[test]
fn only_nodes_that_know_different_clusters_are_strangers() {
    let (one, other) = (Some(ClusterId(9)), Some(ClusterId(8)));
    assert!(are_strangers(one, other));
    for (own, theirs) in [(one, one), (one, None), (None, one), (None, None)] {
        assert!(
            !are_strangers(own, theirs),
            "one of them may join the other"
        );
    }
}

#[test]
fn what_cannot_be_a_first_membership_is_refused() {
    let spoil: [fn(&mut FirstMembership); 7] = [
        |first| first.cluster = ClusterId(0),
        |first| first.members.clear(),
        |first| first.members[0].0 = NodeId(0),
        |first| first.members[0].0 = NodeId(2),
        |first| first.members[0].1 = "host2:1".to_owned(),
        |first| first.members[0].1 = "a host2:1".to_owned(),
        |first| first.genesis.shards = 0,
    ];
    assert!(first(9, &[1, 2]).checked().is_ok());
    for (case, spoil) in spoil.iter().enumerate() {
        let mut first = first(9, &[1, 2]);
        spoil(&mut first);
        assert!(first.checked().is_err(), "case {case}");
    }
}
