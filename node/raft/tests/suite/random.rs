//! Thousands of random faults against the core alone: no state machine, no clock, and a list as the disk.
//!
//! A seed draws the members, the settings and the events: ticks, messages that arrive late, twice, out of order or
//! never, slow disks, crashes, partitions, membership changes, transfers, compactions, reads. After each event the
//! [oracle](crate::oracle) checks the nodes; at the end all faults stop, and the members must agree.
//!
//! A failure prints its seed. `RAFT_SEED=7 cargo test -p shardkv-raft --test suite random -- --nocapture` replays it
//! and prints its last events; `RAFT_SEEDS=100000` runs more of them.

use raft::{Envelope, Index, MembershipChange, Options, ReadTicket, Role};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};
use std::error::Error;
use types::NodeId;

use crate::cluster::{Cluster, node, voters};
use crate::store::MemoryStore;

const SEEDS: u64 = if cfg!(debug_assertions) { 200 } else { 3_000 };
const EVENTS: u32 = 2_000;
const NODES: u64 = 6;

/// A pending read, and the number of entries that were committed anywhere when it was requested.
struct Asked {
    at: NodeId,
    ticket: ReadTicket,
    committed: usize,
}

struct World {
    dice: ChaCha8Rng,
    cluster: Cluster,
    reads: Vec<Asked>,
    follower_reads: Vec<Asked>,
    /// Messages that arrive very late.
    attic: Vec<Envelope>,
    /// True if all nodes tick together: with leases all clocks must run about equally fast.
    lockstep: bool,
    proposals: u64,
    /// A bit for each kind of fault that this seed has. Some kinds hide others, so no seed needs to have all.
    faults: u32,
}

impl World {
    fn new(seed: u64, change: impl Fn(&mut Options)) -> Self {
        let mut dice = ChaCha8Rng::seed_from_u64(seed);
        let mut draw = |bound: u32| dice.next_u32() % bound;
        let lockstep = draw(3) == 0;

        let mut options = Options {
            election_ticks: 10,
            heartbeat_ticks: 2,
            max_append_bytes: 100 + draw(200) as usize,
            max_inflight_appends: 1 + draw(4) as usize,
            max_inflight_bytes: 400,
            max_uncommitted_bytes: 600,
            max_cached_bytes: draw(400) as usize,
            max_apply_bytes: 1 + draw(300) as usize,
            check_quorum: lockstep || draw(4) > 0,
            lease_reads: lockstep,
            ..Options::default()
        };
        change(&mut options);
        let faults = draw(1024) | draw(1024);
        let members = voters([1, 2, 3, 3, 3, 3, 4, 5][draw(8) as usize]);
        let mut cluster = Cluster::of_members(&members, &options, seed);
        cluster.quiet = true;
        for id in (1..=NODES).map(node) {
            if !cluster.nodes.contains_key(&id) {
                cluster.add_node(id, MemoryStore::default(), options.clone());
            }
        }
        Self {
            dice,
            cluster,
            reads: Vec::new(),
            follower_reads: Vec::new(),
            attic: Vec::new(),
            lockstep,
            proposals: 0,
            faults,
        }
    }

    fn draw(&mut self, bound: usize) -> usize {
        self.dice.next_u32() as usize % bound.max(1)
    }

    fn any(&mut self) -> NodeId {
        node(1 + self.draw(usize::try_from(NODES).unwrap()) as u64)
    }

    fn event(&mut self) {
        let id = self.any();
        let runs = self.cluster.runs(id);
        match self.draw(1000) {
            0..=249 if self.lockstep => self.tick_together(),
            0..=249 => {
                for _ in 0..=self.draw(5) {
                    self.cluster.tick(id);
                }
            }
            250..=759 => self.arrive(),
            760..=829 => self.propose(),
            830..=859 => self.read(),
            860..=869 => self.compact(id),
            870..=879 if runs => {
                let node = self.cluster.node_mut(id);
                node.flushed = node.state.len();
            }
            880..=909 if runs => {
                self.cluster.finish_write(id);
                self.cluster.turn(id);
            }
            910..=929 if !runs => {
                self.cluster.start(id);
                self.cluster.turn(id);
            }
            930..=949 => self.cluster.heal(),
            950..=999 => {
                let fault = self.draw(10);
                if self.faults & (1 << fault) != 0 {
                    self.fault(fault, id);
                }
            }
            _ => {}
        }
        self.answer_reads();
        self.answer_follower_reads();
    }

    fn tick_together(&mut self) {
        if self.draw(3) == 0 {
            self.cluster.tick_all(1);
        }
    }

    fn fault(&mut self, fault: usize, id: NodeId) {
        let runs = self.cluster.runs(id);
        match fault {
            0 => {
                let at = self.draw(self.cluster.wire.len());
                self.cluster.wire.remove(at);
            }
            1 => self.find_in_attic(),
            2 if runs => self.cluster.crash(id),
            3 => self.cluster.isolate(id),
            4 => {
                let other = self.any();
                self.cluster.cut.insert((id, other));
            }
            5 => self.cut_off_leader(),
            6 => self.change(id),
            7 => self.hand_over(id),
            8 => self.cluster.node_mut(id).slow ^= true,
            9 => {
                let other = self.any();
                if runs && other != id {
                    self.cluster.raft_mut(id).handle_disconnect(other);
                    self.cluster.turn(id);
                }
            }
            _ => {}
        }
    }

    /// Delivers a message: mostly in order, sometimes ahead of earlier ones, sometimes one that arrives again later.
    fn arrive(&mut self) {
        let ahead = self.cluster.wire.len().min(8);
        let at = if self.draw(4) == 0 {
            self.draw(ahead)
        } else {
            0
        };
        let Some(envelope) = self.cluster.wire.remove(at) else {
            return;
        };
        match self.draw(60) {
            0 => self.cluster.wire.push_back(envelope.clone()),
            1 => self.attic.push(envelope.clone()),
            2 => {
                self.attic.push(envelope);
                return;
            }
            _ => {}
        }
        self.hand_in(envelope);
    }

    /// Delivers a very late message.
    fn find_in_attic(&mut self) {
        let at = self.draw(self.attic.len());
        if at < self.attic.len() {
            let envelope = self.attic.swap_remove(at);
            self.hand_in(envelope);
        }
    }

    fn hand_in(&mut self, envelope: Envelope) {
        let to = envelope.to;
        if self.cluster.cut.contains(&(envelope.from, to)) {
            return;
        }
        if let Err(error) = self.cluster.deliver(envelope) {
            let wrong = format!("{to} refused an honest message: {error}");
            self.cluster.oracle.violations.push(wrong);
        }
    }

    /// Isolates the leader, alone or with one other node, so that it appends entries that will be overwritten.
    fn cut_off_leader(&mut self) {
        let Some(leader) = self.cluster.leader() else {
            return;
        };
        self.cluster.isolate(leader);
        if self.draw(2) == 0 {
            let friend = self.any();
            self.cluster.cut.remove(&(leader, friend));
            self.cluster.cut.remove(&(friend, leader));
        }
    }

    fn leaders(&self) -> Vec<NodeId> {
        let rafts = self
            .cluster
            .nodes
            .values()
            .filter_map(|node| node.raft.as_ref());
        rafts
            .filter(|raft| raft.role() == Role::Leader)
            .map(raft::Raft::node)
            .collect()
    }

    fn propose(&mut self) {
        for leader in self.leaders() {
            self.proposals += 1;
            let padding = "x".repeat(self.draw(60));
            let text = format!("{}{padding}", self.proposals);
            let _ = self.cluster.propose(leader, &text);
        }
    }

    fn read(&mut self) {
        for at in self.leaders() {
            let committed = self.cluster.oracle.committed.len();
            if let Ok(ticket) = self.cluster.raft_mut(at).read_index() {
                self.reads.push(Asked {
                    at,
                    ticket,
                    committed,
                });
            }
            self.cluster.turn(at);
        }
        self.read_on_followers();
    }

    fn read_on_followers(&mut self) {
        for at in self.cluster.ids() {
            let committed = self.cluster.oracle.committed.len();
            if !self.cluster.runs(at) {
                continue;
            }
            if let Ok(ticket) = self.cluster.raft_mut(at).ask_read_index() {
                self.follower_reads.push(Asked {
                    at,
                    ticket,
                    committed,
                });
            }
            self.cluster.turn(at);
        }
    }

    /// Checks that reads on followers are linearizable. They outlive leaders, and end with their process.
    fn answer_follower_reads(&mut self) {
        for node in self.cluster.nodes.values_mut() {
            for grant in std::mem::take(&mut node.follower_grants) {
                self.follower_reads.retain(|asked| {
                    let granted = asked.at == node.id && asked.ticket <= grant.ticket;
                    if granted && grant.index < Index(asked.committed as u64) {
                        self.cluster.oracle.violations.push(format!(
                            "{} serves a follower's read at {}, but {} was committed before",
                            node.id, grant.index, asked.committed
                        ));
                    }
                    !granted
                });
            }
            if node.raft.is_none() {
                self.follower_reads.retain(|asked| asked.at != node.id);
            }
        }
    }

    /// Checks that reads are linearizable: a read's answer includes all entries committed before its request.
    fn answer_reads(&mut self) {
        for node in self.cluster.nodes.values_mut() {
            let leads = node
                .raft
                .as_ref()
                .is_some_and(|raft| raft.role() == Role::Leader);
            for grant in std::mem::take(&mut node.grants) {
                self.reads.retain(|asked| {
                    let granted = asked.at == node.id && asked.ticket <= grant.ticket;
                    if granted && grant.index < Index(asked.committed as u64) {
                        self.cluster.oracle.violations.push(format!(
                            "{} serves a read at {}, but {} was committed before",
                            node.id, grant.index, asked.committed
                        ));
                    }
                    !granted
                });
            }
            if !leads {
                self.reads.retain(|asked| asked.at != node.id);
            }
        }
    }

    fn change(&mut self, node: NodeId) {
        let replaces = self.any();
        let change = match self.draw(6) {
            0 | 1 => MembershipChange::AddLearner {
                node,
                address: "a".to_owned(),
            },
            2 | 3 => MembershipChange::Promote { node },
            4 => MembershipChange::Remove { node },
            _ => MembershipChange::AddReplacement { node, replaces },
        };
        for leader in self.leaders() {
            let _ = self.cluster.change(leader, &change);
        }
    }

    fn hand_over(&mut self, target: NodeId) {
        let target = (self.draw(2) == 0).then_some(target);
        for leader in self.leaders() {
            let _ = self.cluster.transfer(leader, target);
        }
    }

    fn compact(&mut self, id: NodeId) {
        if self.cluster.runs(id) {
            let applied = self.cluster.node(id).state.len();
            let keep = self.draw(6);
            self.cluster
                .compact(id, Index(applied.saturating_sub(keep) as u64));
        }
    }

    fn verdict(&self) -> Result<(), Box<dyn Error>> {
        match self.cluster.oracle.violations.first() {
            Some(wrong) => Err(wrong.clone().into()),
            None => Ok(()),
        }
    }

    /// Ends all faults and checks that within ten election timeouts one node leads, and that every member applies its
    /// proposal.
    fn recover(&mut self) -> Result<(), Box<dyn Error>> {
        self.cluster.heal();
        for id in self.cluster.ids() {
            self.cluster.node_mut(id).slow = false;
            if !self.cluster.runs(id) {
                self.cluster.start(id);
            }
            self.cluster.finish_write(id);
            self.cluster.turn(id);
        }
        self.cluster.settle();
        for _ in 0..10 * 10 {
            self.cluster.tick_all(1);
            self.cluster.settle();
        }
        let leader = self
            .cluster
            .leader()
            .ok_or("nobody leads after the faults")?;
        let refused = |error| format!("{leader} refuses: {error}");
        let last = self.cluster.propose(leader, "the end").map_err(refused)?;
        for _ in 0..10 {
            self.cluster.tick_all(1);
            self.cluster.settle();
        }
        let members: Vec<NodeId> = self
            .cluster
            .raft(leader)
            .membership()
            .members()
            .map(|(node, _)| node)
            .collect();
        for member in members {
            let applied = self.cluster.node(member).state.last().map(|entry| entry.id);
            if applied != Some(last) {
                return Err(format!("{member} has come to {applied:?}, not to {last}").into());
            }
        }
        Ok(())
    }
}

fn run(
    seed: u64,
    events: u32,
    tell: bool,
    change: impl Fn(&mut Options),
) -> Result<(), Box<dyn Error>> {
    let mut world = World::new(seed, change);
    world.cluster.quiet = !tell;
    let result = world.play(events);
    if tell {
        let story = &world.cluster.story;
        for line in story.iter().skip(story.len().saturating_sub(120)) {
            println!("{line}");
        }
    }
    result
}

impl World {
    fn play(&mut self, events: u32) -> Result<(), Box<dyn Error>> {
        for number in 0..events {
            self.event();
            if number % 20 == 0 {
                self.cluster.oracle.match_logs(&self.cluster.nodes);
                self.cluster.oracle.match_memberships(&self.cluster.nodes);
            }
            self.verdict()?;
        }
        self.recover()?;
        self.answer_reads();
        self.answer_follower_reads();
        self.cluster.oracle.match_logs(&self.cluster.nodes);
        self.verdict()
    }
}

#[test]
#[allow(
    clippy::disallowed_methods,
    reason = "seeds are given by the person who looks into them"
)]
fn random_disasters_break_no_invariant() {
    if let Ok(seed) = std::env::var("RAFT_SEED") {
        let seed = seed.parse().expect("RAFT_SEED is a number");
        run(seed, EVENTS, true, |_| {}).unwrap();
        return;
    }
    let seeds = std::env::var("RAFT_SEEDS").map_or(SEEDS, |count| count.parse().unwrap());
    for seed in 0..seeds {
        if let Err(wrong) = run(seed, EVENTS, false, |_| {}) {
            panic!("RAFT_SEED={seed}: {wrong}");
        }
    }
}

/// Checks that the tests find known bugs.
#[cfg(feature = "bugs")]
mod known_bugs {
    use raft::{Bug, Bugs};

    use super::{EVENTS, run};

    fn is_found(bug: Bug, seeds: u64) {
        let caught = |seed: &u64| {
            // A failed assertion also counts as found.
            let ran = std::panic::catch_unwind(|| {
                run(*seed, EVENTS, false, |options| {
                    options.bugs = Bugs::new(Some(bug));
                })
            });
            !matches!(ran, Ok(Ok(())))
        };
        let found = (0..seeds).find(caught);
        println!("{bug:?}: seed {found:?}");
        assert!(found.is_some(), "{bug:?} was not found in {seeds} seeds");
    }

    macro_rules! found {
        ($($name:ident: $bug:ident,)*) => {
            $(#[test]
            fn $name() {
                is_found(Bug::$bug, 4_000);
            })*
        };
    }

    found! {
        vote_not_durable: VoteNotDurable,
        ack_before_fsync: AckBeforeFsync,
        commit_old_term_by_counting: CommitOldTermByCounting,
        read_before_own_term_commit: ReadBeforeOwnTermCommit,
        read_without_quorum: ReadWithoutQuorum,
        stale_append_ack: StaleAppendAck,
        truncated_membership_kept: TruncatedMembershipKept,
        two_changes_at_once: TwoChangesAtOnce,
        snapshot_keeps_conflicting_log: SnapshotKeepsConflictingLog,
        vote_ignores_log: VoteIgnoresLog,
        follower_read_unconfirmed: FollowerReadUnconfirmed,
        follower_read_own_term_missing: FollowerReadOwnTermMissing,
        follower_read_old_answer: FollowerReadOldAnswer,
    }
}
