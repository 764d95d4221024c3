//! Claims of "In Search of an Understandable Consensus Algorithm" (Raft), each in our words and checked for groups
//! of three and five. Modelled on etcd's `raft_paper_test.go`.

use raft::{EntryId, Envelope, Index, Message, Options, Term};

use crate::cluster::{Cluster, log_of, node};

mod elections;
mod replication;
mod snapshots_and_reads;

/// Runs `check` with a fresh group of three and one of five.
pub(crate) fn each_size(check: impl Fn(Cluster)) {
    each_size_with(&Options::default(), check);
}

pub(crate) fn each_size_with(options: &Options, check: impl Fn(Cluster)) {
    for count in [3, 5] {
        let mut cluster = Cluster::new(count, options);
        cluster.quiet = true;
        check(cluster);
    }
}

/// Runs `check` with the same groups, with n1 as leader and its no-op committed everywhere.
pub(crate) fn each_led(check: impl Fn(Cluster)) {
    each_size(|mut cluster| {
        cluster.elect(node(1));
        assert_eq!(cluster.leader(), Some(node(1)));
        cluster.tick_all(10);
        cluster.settle();
        check(cluster);
    });
}

pub(crate) fn from(sender: u64, term: u64, message: Message) -> Envelope {
    Envelope {
        from: node(sender),
        to: node(1),
        term: Term(term),
        message,
    }
}

pub(crate) fn id(term: u64, index: u64) -> EntryId {
    EntryId::new(Term(term), Index(index))
}

fn heartbeat() -> Message {
    Message::Heartbeat {
        commit: Index(0),
        read_round: 0,
        lease: false,
        quiet: false,
        comparison: None,
        answers_reads: true,
    }
}

fn append(prev: EntryId, terms_after: &[u64], commit: u64) -> Message {
    // Only the entries after `prev` are sent; the terms before it don't matter here.
    let skip = usize::try_from(prev.index.0).unwrap();
    let mut terms = vec![0; skip];
    terms.extend_from_slice(terms_after);
    Message::Append {
        prev,
        entries: log_of(&terms).split_off(skip),
        commit: Index(commit),
    }
}

fn replies(cluster: &mut Cluster) -> Vec<Message> {
    let wire = std::mem::take(&mut cluster.wire);
    wire.into_iter().map(|envelope| envelope.message).collect()
}

pub(crate) fn honest(cluster: &Cluster) {
    assert_eq!(cluster.oracle.violations, Vec::<String>::new());
}
