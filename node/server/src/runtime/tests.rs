use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Mutex;

use bytes::Bytes;
use raft::{
    Entry, EntryId, Index, LogBatch, LogReader, LogState, LogStore, Membership, SnapshotMeta,
};
use replica::memory::{MemoryLog, MemoryState};
use shardkv::{Chunk, Configure, Cursor, Genesis, GroupKind, Next, Ownership, Step};
use types::{ClusterId, ConfigDelta, ConfigNum, Gid, ShardConfig, ShardId};

use super::*;
use crate::identity::Identity;
use crate::machine::{MachineRequest, Query};
use crate::options::{self, Invocation, Options};
use crate::parts::Parts;

/// The replica's thread of a group of one node, which the test drives itself. No tick passes by itself.
struct Driven {
    parts: Parts,
    runtime: Runtime,
    _data: tempfile::TempDir,
}

fn options(data: &tempfile::TempDir) -> Options {
    let path = data.path().to_str().unwrap();
    let args = ["shardkv-node", "--data-dir", path].map(Into::into);
    match options::parse(args, "") {
        Ok(Invocation::Run(options)) => *options,
        other => panic!("{other:?}"),
    }
}

/// Returns the parts of a node and its replica, whose group has no other member. `log` wraps its log.
fn replica_of(
    data: &tempfile::TempDir,
    options: Options,
    kind: GroupKind,
    log: impl FnOnce(MemoryLog) -> Box<dyn LogStore + Send>,
) -> (Parts, Replica<Machine>) {
    let stored = storage::open(data.path(), &storage::StorageOptions::default());
    let belongs = (options.gid, options.cluster_name.as_str());
    let directory = data.path().to_owned();
    let identity = Identity::new(stored.unwrap().identity, None, true, belongs, directory);
    let node = identity.node();
    let mut replica_options = options.replica.clone();
    replica_options.address = "a:1".to_owned();
    let (fail, _) = oneshot::channel();
    let progress = Arc::new(Progress::new(options.stall_timeout));
    let observed = (Arc::new(Metrics::new()), progress);
    let parts = Parts::new(options, "a:1".to_owned(), identity, observed, fail);
    let (mut stored, mut state) = (MemoryLog::new(), MemoryState::new());
    let first = Membership::of_voters([(node, "a:1".to_owned())]);
    let genesis = Genesis {
        kind,
        shards: 1,
        ..Genesis::default()
    };
    let genesis = genesis.to_batch();
    replica::initialise(&mut stored, &mut state, &first, genesis).unwrap();
    let replica = Replica::recover(
        replica_options,
        node,
        log(stored),
        Box::new(state),
        Machine::new(kind),
        1,
    );
    (parts, replica.unwrap())
}

impl Driven {
    /// Starts a node that leads its group.
    fn leader() -> Self {
        Self::leader_of(GroupKind::Standalone)
    }

    fn leader_of(kind: GroupKind) -> Self {
        let data = tempfile::tempdir().unwrap();
        let options = options(&data);
        let (parts, replica) = replica_of(&data, options, kind, |log| Box::new(log));
        let hour = Duration::from_hours(1);
        let clock = Clock::new(hour, 1, Instant::now());
        let mut runtime = Runtime::new(replica, clock, parts.runtime_handles());
        while runtime.replica.status().role != raft::Role::Leader {
            runtime.replica.tick(LogTime(1));
            runtime.poll().unwrap();
        }
        runtime.publish();
        Self {
            parts,
            runtime,
            _data: data,
        }
    }

    /// Submits a request, and runs one round up to the moment before its answers are handed over. Returns the answers.
    fn round(&mut self, request: MachineRequest) -> Vec<MachineResult> {
        let permit = self.parts.admission.budget.take(1).unwrap();
        let (reply, _receiver) = Reply::call(permit);
        self.parts.inbox.submit([Submission { request, reply }]);
        self.runtime
            .handles
            .inbox
            .take(&mut self.runtime.batch, Some(Instant::now()));
        assert!(!self.runtime.take_in());
        self.runtime.poll().unwrap();
        if self.runtime.publish_machine() {
            self.runtime.unpark();
            self.runtime.poll().unwrap();
        }
        let answers = self.runtime.outlet.answers.drain(..);
        answers.map(|(_, result)| result).collect()
    }

    fn step(&mut self, step: &Step) -> Vec<MachineResult> {
        self.round(replica::Request::Write {
            operation: step.encode(),
            frees_space: true,
        })
    }

    fn read(&mut self) -> Vec<MachineResult> {
        let query = shardkv::Query::Get {
            key: Bytes::from_static(b"key"),
        };
        self.round(replica::Request::Read(Query::Shards(query)))
    }

    fn ownership(&self) -> Arc<Ownership> {
        match self.runtime.replica.machine().published() {
            Published::Ownership(ownership) => ownership,
            Published::Config(_) => panic!("a group of shards"),
        }
    }

    /// Makes the group the owner of its only shard, which another group has fenced.
    fn cut(&mut self) {
        let groups = [OWN, OTHER].map(|gid| (gid, vec![format!("{gid}:1")]));
        let groups = groups.into();
        let first = ShardConfig::new(ConfigNum(1), BTreeMap::clone(&groups), [(1, OTHER)]).unwrap();
        let mut second = first.clone();
        let delta = ConfigDelta::between(&first, &groups, &[OWN]);
        second.apply(&delta).unwrap();
        for config in [first, second] {
            let step = Configure::to(&config, OWN, ClusterId(7), &self.ownership());
            self.step(&Step::Configure(step));
        }
    }

    fn install(&mut self) -> Vec<MachineResult> {
        self.step(&Step::Install(Chunk {
            shard: ShardId(0),
            config: ConfigNum(2),
            after: Cursor::default(),
            pairs: Vec::new(),
            sessions: Vec::new(),
            rows: Vec::new(),
            next: Next::Done {
                clock: shardkv::SessionClock {
                    horizon: LogTime(1),
                    time: LogTime(1),
                },
                ttl_ms: 600_000,
            },
        }))
    }

    fn published_disk_low(&self) -> bool {
        self.parts.lifecycle.view().status.unwrap().disk_low
    }
}

#[tokio::test]
async fn a_refusal_goes_out_after_the_status_that_explains_it() {
    let mut driven = Driven::leader();
    assert!(!driven.published_disk_low());
    driven.parts.inbox.disk_low(true);
    let write = replica::Request::Write {
        operation: Bytes::from_static(b"any"),
        frees_space: false,
    };
    let answers = driven.round(write);
    assert_eq!(answers, [Err(Refusal::DiskFull)]);
    assert!(driven.published_disk_low());
}

const OWN: Gid = Gid(1);
const OTHER: Gid = Gid(2);

fn is_not_ready(answers: &[MachineResult]) -> bool {
    use shardkv::{KvError, Response as Kv};
    let refused = |it: &MachineResult| {
        matches!(
            it,
            Ok(Answer::Machine(Response::Shards(Kv::Refused(
                KvError::ShardNotReady { .. }
            ))))
        )
    };
    answers.iter().any(refused)
}

#[tokio::test]
async fn a_request_for_a_shard_on_its_way_waits_until_the_shard_is_served() {
    let mut driven = Driven::leader_of(GroupKind::Shards);
    driven.cut();
    assert!(driven.read().is_empty());
    assert_eq!(driven.parts.metrics.handoff.parked_requests.get(), 1);
    let answers = driven.install();
    assert_eq!(answers.len(), 2, "of the step and of the read: {answers:?}");
    assert!(answers.iter().all(Result::is_ok) && !is_not_ready(&answers));
    assert_eq!(driven.read().len(), 1, "nothing waits any more");
}

#[tokio::test]
async fn a_request_waits_half_a_second_at_most_and_few_wait() {
    let mut driven = Driven::leader_of(GroupKind::Shards);
    driven.cut();
    let before = Instant::now();
    for _ in 0..parking::MAX_PARKED {
        assert!(driven.read().is_empty());
    }
    assert!(is_not_ready(&driven.read()), "one too many");
    let machine = driven.runtime.replica.machine();
    let later = Instant::now() + parking::PARK_FOR;
    let mut release = |leads, now| driven.runtime.parking.release(machine, leads, now).len();
    assert_eq!(release(true, before), 0);
    assert_eq!(release(true, later), parking::MAX_PARKED);
    assert!(driven.read().is_empty());
    let machine = driven.runtime.replica.machine();
    let released = driven
        .runtime
        .parking
        .release(machine, false, Instant::now());
    assert_eq!(released.len(), 1, "the node leads no longer");
}

#[test]
fn ticks_follow_the_time_and_a_pause_is_lost() {
    let tick = Duration::from_millis(10);
    let start = Instant::now();
    let at = |ms: u64| start + Duration::from_millis(ms);
    let mut clock = Clock::new(tick, 10, start);
    let passed = |ticks, lost| Passed { ticks, lost };
    assert_eq!(clock.passed(at(9)), passed(0, false));
    assert_eq!(clock.passed(at(10)), passed(1, false));
    assert_eq!(
        clock.passed(at(39)),
        passed(2, false),
        "a late round catches up"
    );
    assert_eq!(clock.passed(at(130)), passed(10, false), "up to the bound");
    assert_eq!(
        clock.passed(at(60_130)),
        passed(10, true),
        "a pause of a minute does not count as a minute of silence"
    );
    assert_eq!(clock.next(), at(60_140));
    assert_eq!(clock.passed(at(60_140)), passed(1, false));
}

/// A log whose writes wait while the test holds the lock, like a disk that doesn't answer.
struct HeldLog {
    inner: MemoryLog,
    disk: Arc<Mutex<()>>,
}

impl LogReader for HeldLog {
    fn entries(
        &self,
        range: RangeInclusive<Index>,
        max_bytes: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        self.inner.entries(range, max_bytes)
    }
}

impl LogStore for HeldLog {
    fn load(&mut self) -> Result<LogState, StoreError> {
        self.inner.load()
    }

    fn write(&mut self, batch: &LogBatch) -> Result<(), StoreError> {
        let _disk = self.disk.lock().unwrap();
        self.inner.write(batch)
    }

    fn compact(&mut self, base: &SnapshotMeta) -> Result<(), StoreError> {
        self.inner.compact(base)
    }

    fn begin_install(&mut self, last: EntryId) -> Result<(), StoreError> {
        self.inner.begin_install(last)
    }
}

/// Waits until the condition holds.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[tokio::test]
async fn a_thread_that_waits_for_the_disk_is_not_ready_and_at_last_not_alive() {
    let disk = Arc::new(Mutex::new(()));
    let held = Arc::clone(&disk);
    let data = tempfile::tempdir().unwrap();
    let mut options = options(&data);
    options.stall_timeout = Duration::from_secs(10);
    let (parts, replica) = replica_of(&data, options, GroupKind::Standalone, move |inner| {
        Box::new(HeldLog { inner, disk })
    });
    let _ended = start(replica, &parts.options.replica, parts.runtime_handles()).unwrap();
    parts.lifecycle.enter(crate::lifecycle::Phase::Running);
    until("the node is ready", || parts.readiness.check().is_ok());

    let stuck = held.lock().unwrap();
    let permit = parts.admission.budget.take(1).unwrap();
    let (reply, _receiver) = Reply::call(permit);
    let request = replica::Request::Write {
        operation: Bytes::from_static(b"any"),
        frees_space: false,
    };
    parts.inbox.submit([Submission { request, reply }]);
    let stalled = |check| matches!(check, Err(crate::readiness::Unready::Stalled(_)));
    until("it is not ready", || stalled(parts.readiness.check()));
    assert_eq!(parts.progress.check_alive(), Ok(()), "not at once");
    until("it is not alive", || parts.progress.check_alive().is_err());
    drop(stuck);
    until("it goes on", || parts.readiness.check().is_ok());
    assert_eq!(parts.progress.check_alive(), Ok(()));
    parts.inbox.stop();
}
