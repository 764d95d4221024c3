//! A group of replicas in one process on a perfect network: as a driver sees them. The simulator injects faults.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use raft::{
    Entry, EntryId, Envelope, Index, LogBatch, LogReader, LogState, LogStore, MemberKind,
    Membership, MembershipChange, Role, SnapshotMeta, StoreError,
};
use replica::memory::{MemoryLog, MemoryState};
use replica::{
    Answer, Applying, Options, Outlet, Refusal, Replica, Request, RequestId, StateMachine,
    StateReader, Table, Transaction, WriteBatch, initialise,
};
use types::{LogTime, NodeId};

/// Appends each operation to one value; a query reads it.
#[derive(Default)]
struct Journal {
    /// The upkeep that is still due, if a test wants some. Each replica has its own share.
    upkeep: Vec<Bytes>,
}

impl StateMachine for Journal {
    type Query = ();
    type Response = Bytes;

    fn reload(&mut self, _: &dyn StateReader) -> Result<(), StoreError> {
        Ok(())
    }

    fn upkeep(&mut self, _: LogTime) -> Option<Bytes> {
        self.upkeep.last().cloned()
    }

    fn apply(
        &mut self,
        _: Applying,
        operation: Bytes,
        state: &mut Transaction<'_>,
    ) -> Result<Bytes, StoreError> {
        self.upkeep.retain(|due| *due != operation);
        let mut value = state
            .get(Table::Data, b"journal")?
            .unwrap_or_default()
            .to_vec();
        value.extend_from_slice(&operation);
        let value = Bytes::from(value);
        state.put(Table::Data, Bytes::from_static(b"journal"), value.clone());
        Ok(value)
    }

    fn finish_batch(&mut self, _: &mut Transaction<'_>) -> Result<(), StoreError> {
        Ok(())
    }

    fn query(&self, (): &(), state: &dyn StateReader) -> Result<Bytes, StoreError> {
        Ok(state.get(Table::Data, b"journal")?.unwrap_or_default())
    }
}

/// A log that survives its replica, and can be full.
#[derive(Clone, Default)]
struct SharedLog {
    log: Arc<Mutex<MemoryLog>>,
    full: Arc<Mutex<bool>>,
}

impl LogReader for SharedLog {
    fn entries(
        &self,
        range: RangeInclusive<Index>,
        max_bytes: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        self.log.lock().unwrap().entries(range, max_bytes)
    }
}

impl LogStore for SharedLog {
    fn load(&mut self) -> Result<LogState, StoreError> {
        self.log.lock().unwrap().load()
    }
    fn write(&mut self, batch: &LogBatch) -> Result<(), StoreError> {
        if *self.full.lock().unwrap() {
            return Err(StoreError::Full("as told".to_owned()));
        }
        self.log.lock().unwrap().write(batch)
    }
    fn compact(&mut self, base: &SnapshotMeta) -> Result<(), StoreError> {
        self.log.lock().unwrap().compact(base)
    }
    fn begin_install(&mut self, last: EntryId) -> Result<(), StoreError> {
        self.log.lock().unwrap().begin_install(last)
    }
}

#[derive(Default)]
struct Outputs {
    messages: VecDeque<Envelope>,
    answers: BTreeMap<RequestId, Result<Answer<Bytes>, Refusal>>,
}

impl Outlet<Bytes> for Outputs {
    fn send(&mut self, envelope: Envelope) {
        self.messages.push_back(envelope);
    }
    fn answer(&mut self, request: RequestId, result: Result<Answer<Bytes>, Refusal>) {
        assert!(
            self.answers.insert(request, result).is_none(),
            "a request is answered once"
        );
    }
}

struct Cluster {
    replicas: BTreeMap<NodeId, Replica<Journal>>,
    logs: BTreeMap<NodeId, SharedLog>,
    outputs: Outputs,
    requests: u64,
    time: u64,
}

fn options(node: u64) -> Options {
    let mut options = Options {
        address: format!("host-{}", node % 10),
        compact_after_bytes: 2_000,
        ..Options::default()
    };
    options.raft.max_cached_bytes = 500;
    options.snapshot_window = 1;
    options
}

impl Cluster {
    fn new(nodes: u64) -> Self {
        let membership =
            Membership::of_voters((1..=nodes).map(|node| (NodeId(node), format!("host-{node}"))));
        let mut cluster = Self {
            replicas: BTreeMap::new(),
            logs: BTreeMap::new(),
            outputs: Outputs::default(),
            requests: 0,
            time: 1,
        };
        for node in 1..=nodes {
            let mut log = SharedLog::default();
            let mut state = MemoryState::new();
            initialise(&mut log, &mut state, &membership, WriteBatch::default()).unwrap();
            cluster.start(node, log, state);
        }
        cluster
    }

    fn start(&mut self, node: u64, log: SharedLog, state: MemoryState) {
        self.start_with(node, log, state, Vec::new(), 0);
    }

    fn start_with(
        &mut self,
        node: u64,
        log: SharedLog,
        state: MemoryState,
        upkeep: Vec<Bytes>,
        level: u32,
    ) {
        self.logs.insert(NodeId(node), log.clone());
        let mut options = options(node);
        options.raft.feature_level = level;
        let replica = Replica::recover(
            options,
            NodeId(node),
            Box::new(log),
            Box::new(state),
            Journal { upkeep },
            7,
        )
        .unwrap();
        self.replicas.insert(NodeId(node), replica);
    }

    /// Polls and delivers until no replica sends a message.
    fn settle(&mut self) {
        loop {
            for replica in self.replicas.values_mut() {
                let mut due = true;
                while std::mem::take(&mut due) || replica.needs_poll() {
                    match replica.poll(&mut self.outputs) {
                        Ok(()) | Err(StoreError::Full(_)) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            }
            let Some(envelope) = self.outputs.messages.pop_front() else {
                return;
            };
            let everyone: Vec<NodeId> = self.replicas.keys().copied().collect();
            let to = if envelope.to == NodeId(0) {
                everyone
            } else {
                vec![envelope.to]
            };
            for node in to.into_iter().filter(|node| *node != envelope.from) {
                if let Some(replica) = self.replicas.get_mut(&node) {
                    replica.receive(envelope.clone()).unwrap();
                    // A replica that ignores messages must still be polled.
                    let _ = replica.poll(&mut self.outputs);
                }
            }
        }
    }

    fn tick(&mut self) {
        self.time += 10;
        for replica in self.replicas.values_mut() {
            replica.tick(LogTime(self.time));
            let _ = replica.poll(&mut self.outputs);
        }
        self.settle();
    }

    fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        for _ in 0..2_000 {
            if condition(self) {
                return;
            }
            self.tick();
        }
        panic!("not within 2000 ticks: {what}");
    }

    fn leader(&self) -> Option<NodeId> {
        let leads = |(node, replica): (&NodeId, &Replica<Journal>)| {
            (replica.status().role == Role::Leader).then_some(*node)
        };
        self.replicas.iter().find_map(leads)
    }

    fn submit(&mut self, node: NodeId, request: Request<()>) -> RequestId {
        self.requests += 1;
        let id = RequestId(self.requests);
        self.replicas.get_mut(&node).unwrap().submit(id, request);
        id
    }

    fn call(&mut self, request: Request<()>) -> Result<Answer<Bytes>, Refusal> {
        self.until("a leader", |cluster| cluster.leader().is_some());
        let id = self.submit(self.leader().unwrap(), request);
        self.settle();
        self.until("an answer", |cluster| {
            cluster.outputs.answers.contains_key(&id)
        });
        self.outputs.answers.remove(&id).unwrap()
    }

    fn applied_everywhere(&self) -> bool {
        let applied: Vec<Index> = self
            .replicas
            .values()
            .map(|replica| replica.status().last_applied)
            .collect();
        applied.windows(2).all(|pair| pair[0] == pair[1])
    }
}

fn write(text: &str) -> Request<()> {
    Request::Write {
        operation: Bytes::copy_from_slice(text.as_bytes()),
        frees_space: false,
    }
}

/// Wall clocks jump by years, there and back. Log time goes on as time is measured.
#[test]
fn log_time_does_not_jump() {
    let mut cluster = Cluster::new(3);
    cluster.call(write("a")).unwrap();
    let log_time = |cluster: &Cluster| {
        let leader = cluster.leader().unwrap();
        cluster.replicas[&leader].status().log_time
    };
    let year = 365 * 24 * 3_600_000;
    for jump in [year, 0, 3 * year, 1] {
        let before = log_time(&cluster);
        let real = cluster.time;
        cluster.time = jump.max(real % year);
        for _ in 0..100 {
            cluster.tick();
        }
        cluster.call(write("b")).unwrap();
        let passed = log_time(&cluster).since(before);
        assert!(
            (900..4_000).contains(&passed),
            "{passed} ms of log time in a second"
        );
        let Ok(Answer::Birth(birth)) = cluster.call(Request::Birth {
            at_least: LogTime(0),
        }) else {
            panic!("the leader answers");
        };
        assert!(birth.0 >= cluster.time, "births follow the wall clock");
    }
}

/// All members lose power before the state was ever flushed, and start with clocks that are a year ahead. The leader gets a write before
/// it has applied its log again.
#[test]
fn a_state_without_time_does_not_begin_a_new_time() {
    const YEAR: u64 = 365 * 24 * 3_600_000;
    let mut cluster = Cluster::new(3);
    cluster.call(write("a")).unwrap();
    let before = cluster.time;
    let membership =
        Membership::of_voters((1..=3).map(|node| (NodeId(node), format!("host-{node}"))));
    for (node, log) in cluster.logs.clone() {
        let mut state = MemoryState::new();
        let mut unused = SharedLog::default();
        initialise(&mut unused, &mut state, &membership, WriteBatch::default()).unwrap();
        cluster.start(node.0, log, state);
    }
    cluster.time += YEAR;
    let mut submitted = None;
    for _ in 0..2_000 {
        if submitted.is_some() {
            break;
        }
        cluster.time += 10;
        for replica in cluster.replicas.values_mut() {
            replica.tick(LogTime(cluster.time));
            let _ = replica.poll(&mut cluster.outputs);
        }
        while let Some(envelope) = cluster.outputs.messages.pop_front() {
            let Some(replica) = cluster.replicas.get_mut(&envelope.to) else {
                continue;
            };
            replica.receive(envelope).unwrap();
            let status = replica.status();
            if submitted.is_none() && status.role == Role::Leader {
                assert!(
                    status.last_applied < status.last_index,
                    "nothing is applied"
                );
                replica.submit(RequestId(99), write("b"));
                submitted = Some(status.node);
            }
            let _ = replica.poll(&mut cluster.outputs);
        }
    }
    cluster.until("an answer", |cluster| {
        cluster.outputs.answers.contains_key(&RequestId(99))
    });
    let answer = cluster.outputs.answers.remove(&RequestId(99)).unwrap();
    assert_eq!(answer, Ok(Answer::Machine(Bytes::from_static(b"ab"))));
    let after = cluster.replicas[&submitted.unwrap()].status().log_time;
    assert!(after < LogTime(before + 60_000), "{after:?} after {before}");
}

#[test]
fn births_stay_within_what_tables_accept() {
    let mut cluster = Cluster::new(1);
    cluster.call(write("a")).unwrap();
    let before = cluster.time;
    cluster.time = u64::MAX - 1_000_000;
    cluster.tick();
    let Ok(Answer::Birth(birth)) = cluster.call(Request::Birth {
        at_least: LogTime(0),
    }) else {
        panic!("the leader answers");
    };
    let ahead = birth.since(LogTime(before));
    assert!(ahead < replica::MAX_BIRTH_AHEAD_MS, "{ahead} ms ahead");
}

#[test]
fn births_follow_what_callers_ask_for_within_what_tables_accept() {
    const YEAR: u64 = 365 * 24 * 3_600_000;
    let mut cluster = Cluster::new(1);
    cluster.call(write("a")).unwrap();
    let now = cluster.time;
    let mut ahead = |years: u64| {
        let at_least = LogTime(now + years * YEAR);
        let Ok(Answer::Birth(birth)) = cluster.call(Request::Birth { at_least }) else {
            panic!("the leader answers");
        };
        birth.since(LogTime(now)) / YEAR
    };
    assert_eq!(ahead(0), 0);
    assert_eq!(ahead(1), 1);
    assert_eq!(ahead(49), 49);
    for too_far in [51, 100, 1_000_000] {
        assert_eq!(ahead(too_far), 0, "{too_far} years are ignored");
    }
}

#[test]
fn writes_are_applied_in_order_everywhere_and_read_back() {
    let mut cluster = Cluster::new(3);
    assert_eq!(
        cluster.call(write("a")),
        Ok(Answer::Machine(Bytes::from_static(b"a")))
    );
    assert_eq!(
        cluster.call(write("b")),
        Ok(Answer::Machine(Bytes::from_static(b"ab")))
    );
    assert_eq!(
        cluster.call(Request::Read(())),
        Ok(Answer::Machine(Bytes::from_static(b"ab")))
    );
    cluster.until("all applied", Cluster::applied_everywhere);
}

#[test]
fn a_single_member_serves_alone() {
    let mut cluster = Cluster::new(1);
    assert_eq!(
        cluster.call(write("x")),
        Ok(Answer::Machine(Bytes::from_static(b"x")))
    );
    assert_eq!(
        cluster.call(Request::Read(())),
        Ok(Answer::Machine(Bytes::from_static(b"x")))
    );
}

#[test]
fn what_gathers_between_polls_is_one_entry() {
    let mut cluster = Cluster::new(3);
    cluster.call(write("0")).unwrap();
    let leader = cluster.leader().unwrap();
    let before = cluster.replicas[&leader].status().last_index;
    for _ in 0..100 {
        cluster.submit(leader, write("x"));
    }
    cluster.settle();
    assert_eq!(cluster.replicas[&leader].status().last_index, before.next());
}

#[test]
fn a_follower_names_the_leader_and_does_nothing() {
    let mut cluster = Cluster::new(3);
    cluster.call(write("a")).unwrap();
    let leader = cluster.leader().unwrap();
    let follower = cluster
        .replicas
        .keys()
        .copied()
        .find(|node| *node != leader)
        .unwrap();
    let id = cluster.submit(follower, write("lost"));
    cluster.settle();
    assert_eq!(
        cluster.outputs.answers[&id],
        Err(Refusal::NotLeader {
            leader: Some(leader)
        })
    );
    assert_eq!(
        cluster.call(Request::Read(())),
        Ok(Answer::Machine(Bytes::from_static(b"a")))
    );
}

#[test]
fn an_oversize_operation_is_refused_by_name() {
    let mut cluster = Cluster::new(3);
    cluster.call(write("a")).unwrap();
    let result = cluster.call(Request::Write {
        operation: Bytes::from(vec![0; 9 << 20]),
        frees_space: false,
    });
    assert!(
        matches!(result, Err(Refusal::TooLarge { .. })),
        "{result:?}"
    );
}

#[test]
fn a_nearly_full_disk_refuses_what_does_not_free_space() {
    let mut cluster = Cluster::new(3);
    cluster.call(write("a")).unwrap();
    let leader = cluster.leader().unwrap();
    cluster
        .replicas
        .get_mut(&leader)
        .unwrap()
        .set_disk_low(true);
    assert_eq!(cluster.call(write("b")), Err(Refusal::DiskFull));
    assert!(
        cluster
            .call(Request::Write {
                operation: Bytes::from_static(b"c"),
                frees_space: true
            })
            .is_ok()
    );
    assert!(cluster.call(Request::Read(())).is_ok());
}

#[test]
fn a_full_log_keeps_nothing_and_goes_on_when_space_returns() {
    let mut cluster = Cluster::new(1);
    cluster.call(write("a")).unwrap();
    *cluster.logs[&NodeId(1)].full.lock().unwrap() = true;
    let stuck = cluster.submit(NodeId(1), write("b"));
    cluster.tick();
    let refused = cluster.submit(NodeId(1), write("c"));
    cluster.tick();
    assert_eq!(cluster.outputs.answers[&refused], Err(Refusal::DiskFull));
    assert!(!cluster.outputs.answers.contains_key(&stuck));
    *cluster.logs[&NodeId(1)].full.lock().unwrap() = false;
    cluster.until("the write that waited", |cluster| {
        cluster.outputs.answers.contains_key(&stuck)
    });
    assert_eq!(
        cluster.outputs.answers[&stuck],
        Ok(Answer::Machine(Bytes::from_static(b"ab")))
    );
}

#[test]
fn the_log_stays_within_a_few_thresholds() {
    let mut cluster = Cluster::new(3);
    for _ in 0..400 {
        cluster.call(write("0123456789")).unwrap();
    }
    for (node, log) in &cluster.logs {
        let bytes: usize = log
            .log
            .lock()
            .unwrap()
            .stored()
            .values()
            .map(Entry::size)
            .sum();
        assert!(bytes <= 2 * 2_000, "{node} keeps {bytes} bytes of log");
    }
}

#[test]
fn a_wiped_disk_comes_back_as_a_new_member_by_itself() {
    let mut cluster = Cluster::new(3);
    for _ in 0..200 {
        cluster.call(write("0123456789")).unwrap();
    }
    let leader = cluster.leader().unwrap();
    let lost = cluster
        .replicas
        .keys()
        .copied()
        .find(|node| *node != leader)
        .unwrap();
    cluster.replicas.remove(&lost);
    let reborn = NodeId(lost.0 + 10);
    cluster.start(reborn.0, SharedLog::default(), MemoryState::new());
    let settled = |cluster: &Cluster| {
        let Some(leader) = cluster.leader() else {
            return false;
        };
        let membership = cluster.replicas[&leader].status().membership;
        membership.is_voter(reborn)
            && membership.get(lost).is_none()
            && cluster.applied_everywhere()
    };
    cluster.until("the new member votes and the old one is gone", settled);
    assert!(
        cluster.replicas[&reborn].status().snapshots.1 >= 1,
        "it came by a snapshot"
    );
    let kinds: Vec<MemberKind> = cluster.replicas[&reborn]
        .status()
        .membership
        .members()
        .map(|(_, member)| member.kind)
        .collect();
    assert_eq!(kinds, [MemberKind::Voter; 3]);
}

#[test]
fn an_unknown_address_is_not_let_in_by_itself() {
    let mut cluster = Cluster::new(3);
    cluster.call(write("a")).unwrap();
    cluster.start(9, SharedLog::default(), MemoryState::new());
    for _ in 0..300 {
        cluster.tick();
    }
    // It has no state to answer from, and a query changes nothing.
    let asked = cluster.submit(NodeId(9), Request::ReadLocal(()));
    cluster.settle();
    assert!(matches!(
        cluster.outputs.answers[&asked],
        Err(Refusal::NotLeader { .. })
    ));
    assert!(
        cluster.replicas[&cluster.leader().unwrap()]
            .status()
            .membership
            .get(NodeId(9))
            .is_none()
    );
    let added = cluster.call(Request::ChangeMembership(MembershipChange::AddLearner {
        node: NodeId(9),
        address: "host-9".to_owned(),
    }));
    assert!(added.is_ok(), "{added:?}");
    cluster.until("the learner has all", Cluster::applied_everywhere);
    assert!(
        cluster
            .call(Request::ChangeMembership(MembershipChange::Promote {
                node: NodeId(9)
            }))
            .is_ok()
    );
}

#[test]
fn leadership_is_handed_over_and_answered() {
    let mut cluster = Cluster::new(3);
    cluster.call(write("a")).unwrap();
    let old = cluster.leader().unwrap();
    let Ok(Answer::LeadershipTransferred(new)) = cluster.call(Request::TransferLeadership(None))
    else {
        panic!("not handed over")
    };
    assert_ne!(old, new);
    assert_eq!(cluster.leader(), Some(new));
    assert_eq!(
        cluster.call(Request::Read(())),
        Ok(Answer::Machine(Bytes::from_static(b"a")))
    );
}

#[test]
fn a_dead_leader_is_replaced_at_once_when_its_connections_break() {
    let mut cluster = Cluster::new(3);
    cluster.call(write("a")).unwrap();
    let dead = cluster.leader().unwrap();
    cluster.replicas.remove(&dead);
    for replica in cluster.replicas.values_mut() {
        replica.handle_disconnect(dead);
    }
    let before = cluster.time;
    cluster.until("a new leader", |cluster| cluster.leader().is_some());
    // Far below the shortest election timeout of 40 ticks.
    assert!(
        cluster.time - before <= 120,
        "took {} ms",
        cluster.time - before
    );
}

#[test]
fn a_log_that_lost_what_the_state_holds_does_not_start() {
    let mut cluster = Cluster::new(1);
    cluster.call(write("a")).unwrap();
    let membership = cluster.replicas[&NodeId(1)].status().membership;
    let mut state = MemoryState::new();
    let applied = replica::Applied {
        last: EntryId::new(raft::Term(5), Index(100)),
        membership,
        ..replica::Applied::default()
    };
    replica::StateStore::commit(&mut state, WriteBatch::default(), applied).unwrap();
    let log = cluster.logs[&NodeId(1)].clone();
    let result = Replica::recover(
        options(1),
        NodeId(1),
        Box::new(log),
        Box::new(state),
        Journal::default(),
        7,
    );
    assert!(matches!(
        result,
        Err(replica::RecoverError::Store(StoreError::Damaged(_)))
    ));
}

/// Starts three replicas anew, of versions with these feature levels. The machine of each has upkeep.
fn with_upkeep(due: &[Bytes], levels: [u32; 3]) -> Cluster {
    let mut cluster = Cluster::new(3);
    for (level, (node, log)) in levels.into_iter().zip(cluster.logs.clone()) {
        let mut state = MemoryState::new();
        let mut unused = SharedLog::default();
        let membership =
            Membership::of_voters((1..=3).map(|node| (NodeId(node), format!("host-{node}"))));
        initialise(&mut unused, &mut state, &membership, WriteBatch::default()).unwrap();
        cluster.start_with(node.0, log, state, due.to_vec(), level);
    }
    cluster
}

#[test]
fn an_older_member_keeps_upkeep_out_of_the_log() {
    let mut cluster = with_upkeep(&[Bytes::from("a")], [1, 1, 0]);
    for _ in 0..1_000 {
        cluster.tick();
    }
    for replica in cluster.replicas.values() {
        let written = replica.state().get(Table::Data, b"journal").unwrap();
        assert_eq!(written, None);
    }
}

/// What is due by time alone gets into the log: once, from the leader only, and slowly.
#[test]
fn a_leader_proposes_the_upkeep_of_its_machine() {
    let due: Vec<Bytes> = ["a", "b", "c"].map(Bytes::from).into();
    let mut cluster = with_upkeep(&due, [1; 3]);
    let mut times = Vec::new();
    let journal = |cluster: &Cluster| {
        let replicas = cluster.replicas.values();
        let states = replicas.map(|replica| replica.state().get(Table::Data, b"journal"));
        let mut states: Vec<_> = states.map(|it| it.unwrap().unwrap_or_default()).collect();
        states.sort_by_key(Bytes::len);
        states[0].clone()
    };
    for written in 1..=due.len() {
        cluster.until("the next upkeep", |it| journal(it).len() >= written);
        times.push(cluster.time);
    }
    assert_eq!(journal(&cluster), "cba");
    assert!(times[2] - times[0] >= 2_000, "{times:?}");
    let last = |cluster: &Cluster| cluster.replicas[&NodeId(1)].status().last_index;
    let before = last(&cluster);
    for _ in 0..500 {
        cluster.tick();
    }
    assert_eq!(last(&cluster), before, "an idle machine writes nothing");
}
