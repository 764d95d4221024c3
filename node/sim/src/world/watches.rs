//! Watches, and the timers of leases, in the processes. After each poll a process takes in what was applied, serves its watches, and
//! proposes the ends of leases.

use changes::{Expiry, PageLimits, Renewal, Response as Told, Step, read_page};
use keyspace::{Action, Limits, Operation, Place, Refusal, Span, Write};
use raft::StoreError;
use replica::{Answer, Request, RequestId, StateReader};
use shardkv::{Response, encode_keyspace_operation, read_keyspaces};

use super::World;
use crate::bug::{Bug, ProcessBug};
use crate::caller::Caller;
use crate::event::Event;
use crate::machine::{LeaseOf, Outcome, Question, Reply};
use crate::network::HostId;
use crate::queue::MILLI;
use crate::tracker::{Tracker, revisions};
use crate::violation::{Checked, Violation};
use crate::watcher::Watcher;

/// The most events that a stream takes at once, and the bounds of a page: few, so that watches stop anywhere.
const AT_ONCE: usize = 4;
const PAGE: PageLimits = PageLimits {
    events: 5,
    visited: 20,
    bytes: 4_096,
};
/// The most expiries that one process decides at once.
const MAX_EXPIRING: usize = 4;
/// The names of expiries begin above those of clients' operations.
const NAMES: u32 = 1 << 30;

impl World {
    fn now_ms(&self) -> u64 {
        self.now / MILLI
    }

    fn process_bug(&self) -> Option<ProcessBug> {
        match self.scenario.bug {
            Some(Bug::Process(bug)) => Some(bug),
            _ => None,
        }
    }

    /// Creates what a process follows that starts.
    pub(super) fn new_tracker(&self) -> Option<Tracker> {
        let shards = self.scenario.genesis.shards;
        let tracker = || Tracker::new(shards, self.process_bug());
        self.scenario.keyspaces.as_ref().map(|_| tracker())
    }

    /// Takes in what a process has applied in a poll.
    pub(super) fn track(&mut self, number: HostId) -> Checked {
        let now_ms = self.now_ms();
        let host = &mut self.hosts[number];
        let (Some(process), Some(tracker)) = (&mut host.process, &mut host.tracker) else {
            return Ok(());
        };
        if host.disk.is_dead() {
            return Ok(());
        }
        let term = process.leading_term();
        let machine = process.machine_mut().machine_mut();
        let Some((changes, ownership)) = machine.take_keyspace_changes() else {
            return Ok(());
        };
        let noted = tracker.note(&changes, &ownership, term, now_ms, process.state());
        noted.map_err(|error| unreadable(number, &error))?;
        for expiry in tracker.timers.take_expired(now_ms, MAX_EXPIRING) {
            // Most are proposed at once; some when the leader may be another one.
            let most = if self.watch_rng.chance(200_000) {
                2_000
            } else {
                20
            };
            let at = now_ms + self.watch_rng.between(0, most);
            tracker.decided.push((at, expiry));
        }
        for expiry in tracker.due(now_ms) {
            self.propose_expiry(number, expiry);
        }
        for watcher in 0..self.watchers.len() {
            self.serve_watcher(number, watcher)?;
        }
        Ok(())
    }

    fn propose_expiry(&mut self, number: HostId, expiry: Expiry) {
        self.expiries += 1;
        let Expiry {
            place,
            id,
            grant,
            term,
            config,
        } = expiry;
        let operation = Operation {
            cluster_id: None,
            shard: place.shard,
            limits: Limits {
                max_visited: NAMES + self.expiries,
                ..Limits::default()
            },
            action: Action::In(
                place.id,
                Write::Expire {
                    id,
                    grant,
                    term,
                    config,
                },
            ),
        };
        self.keyspace_checker.sent(&operation);
        let request = Caller::Leases(number).request(u64::from(self.expiries));
        if let Some(tracker) = &mut self.hosts[number].tracker {
            tracker.proposed.insert(request, expiry);
        }
        // Some of those that come late are taken by the replica that leads then.
        let later = self.leader_of(place.shard);
        let later = later.filter(|leader| *leader != number && self.watch_rng.coin());
        let ask = Event::Ask {
            host: later.unwrap_or(number),
            id: request,
            request: Request::Write {
                operation: encode_keyspace_operation(&operation),
                frees_space: true,
            },
        };
        self.queue.push(self.now + 1, ask);
    }

    /// Takes in the outcome of an expiry.
    pub(super) fn expiry_answered(&mut self, number: HostId, id: RequestId, outcome: &Outcome) {
        let now_ms = self.now_ms();
        let Some(tracker) = &mut self.hosts[number].tracker else {
            return;
        };
        let Some(expiry) = tracker.proposed.remove(&id) else {
            return;
        };
        let gone = match outcome {
            Ok(Answer::Machine(Reply::Kv(Response::Keyspace(outcome)))) => matches!(
                outcome.answer,
                Ok(_) | Err(Refusal::LeaseNotFound | Refusal::KeyspaceNotFound)
            ),
            _ => false,
        };
        if gone {
            tracker.timers.settled(&expiry);
        } else {
            tracker.timers.failed(&expiry, now_ms);
        }
        if gone {
            self.count("leases expired");
        }
    }

    /// Asks the replica for a confirmation before a lease is renewed.
    pub(super) fn confirm_renewal(
        &mut self,
        number: HostId,
        id: RequestId,
        lease: LeaseOf,
    ) -> Request<Question> {
        let came_ms = self.now_ms();
        if let Some(tracker) = &mut self.hosts[number].tracker {
            tracker.renewals.insert(id, (lease, came_ms));
        }
        Request::Read(Question::Kv(shardkv::Query::Confirm))
    }

    /// Renews a lease whose request was confirmed. Returns the answer to the client.
    pub(super) fn renew_if_confirmed(
        &mut self,
        number: HostId,
        id: RequestId,
        outcome: Outcome,
    ) -> Outcome {
        let now_ms = self.now_ms();
        let tracker = self.hosts[number].tracker.as_mut();
        let asked = tracker.and_then(|it| Some((it.renewals.remove(&id)?, it)));
        let Some(((lease, came_ms), tracker)) = asked else {
            return outcome;
        };
        if !matches!(outcome, Ok(Answer::Machine(Reply::Kv(Response::Confirmed)))) {
            return outcome;
        }
        let renewal = tracker.renew(lease, came_ms, now_ms);
        if let Renewal::Renewed { ttl } = renewal {
            self.count("leases renewed");
            let came = came_ms * MILLI;
            self.keyspace_checker.renewed(lease, ttl, came, self.now);
        }
        Ok(Answer::Machine(Reply::Renewal(renewal)))
    }

    /// Serves a watch in a process, or lets it go on there.
    fn serve_watcher(&mut self, number: HostId, index: usize) -> Checked {
        let watcher = &self.watchers[index];
        if let Some((host, incarnation)) = watcher.served
            && self.hosts[host].incarnation != incarnation
        {
            self.watchers[index].served = None;
        }
        let here = (number, self.hosts[number].incarnation);
        let served = self.watchers[index].served;
        if served.is_none_or(|served| served == here) {
            let often = if served.is_some() { 600_000 } else { 100_000 };
            if self.watch_rng.chance(often) || !self.faults_happen() {
                match served {
                    Some(_) => self.drive_watcher(number, index)?,
                    None => self.attach_watcher(here, index)?,
                }
            }
        }
        // Clients go elsewhere now and then.
        if self.faults_happen() && self.watch_rng.chance(2_000) {
            self.watchers[index].served = None;
        }
        Ok(())
    }

    fn draw_watch(&mut self, index: usize) {
        let places: Vec<Place> = self.keyspace_checker.all().collect();
        let Some(place) = self.watch_rng.pick(&places).copied() else {
            return;
        };
        let (newest, compacted) = self.keyspace_checker.revisions(place);
        let back = i64::try_from(self.watch_rng.below(10)).unwrap_or(0);
        let start = (newest + 1 - back).max(compacted).max(1);
        let span = match self.watch_rng.below(3) {
            0 => Span::Key(b"k0".as_slice().into()),
            _ => Span::From(b"\0".as_slice().into()),
        };
        self.watchers[index].begin(place, span, start);
    }

    fn attach_watcher(&mut self, here: (HostId, u64), index: usize) -> Checked {
        let place = self.watchers[index].place;
        let exists = place.is_some_and(|place| self.keyspace_checker.exists(place));
        if !exists {
            self.draw_watch(index);
        }
        let Some(place) = self.watchers[index].place else {
            return Ok(());
        };
        let number = here.0;
        let resumes_now = self.process_bug() == Some(ProcessBug::WatchResumesNow);
        let host = &mut self.hosts[number];
        let (Some(process), Some(tracker)) = (&host.process, &mut host.tracker) else {
            return Ok(());
        };
        let config = process
            .machine()
            .machine()
            .ownership()
            .and_then(|ownership| ownership.served_since(place.shard));
        // A replica that waits for its first snapshot has no state.
        let Some(config) = config else {
            return Ok(());
        };
        let found = revisions(process.state(), place);
        let found = found.map_err(|error| unreadable(number, &error))?;
        let Some((newest, compacted)) = found else {
            return Ok(());
        };
        let newest = tracker.begin(place, config, (newest, compacted));
        let watcher = &mut self.watchers[index];
        let start = if resumes_now {
            newest + 1
        } else {
            watcher.next
        };
        watcher.attach(here, start, (newest, compacted));
        self.count("watches begun");
        self.drive_watcher(number, index)
    }

    /// Lets a stream do all that it can.
    pub(super) fn drive_watcher(&mut self, number: HostId, index: usize) -> Checked {
        let mut watcher = std::mem::replace(&mut self.watchers[index], Watcher::new());
        let driven = self.drive(number, &mut watcher);
        self.watchers[index] = watcher;
        driven
    }

    fn drive(&mut self, number: HostId, watcher: &mut Watcher) -> Checked {
        let Some(place) = watcher.place else {
            return Ok(());
        };
        loop {
            let host = &mut self.hosts[number];
            let (Some(process), Some(tracker)) = (&host.process, &mut host.tracker) else {
                return Ok(());
            };
            let Some(kept) = tracker.feeds.get_mut(&place) else {
                watcher.served = None;
                return Ok(());
            };
            if self.watch_rng.chance(200_000) {
                watcher.watches.ask_progress();
            }
            match watcher.watches.step(&kept.feed, AT_ONCE) {
                Step::Answer => {
                    let newest = kept.feed.newest();
                    self.tell_newest(watcher, newest)?;
                    if self.watch_rng.chance(50_000) {
                        watcher.watches.let_go();
                    }
                    while let Some(answer) = watcher.watches.next_answer() {
                        watcher.take(&answer, &self.keyspace_checker)?;
                        if watcher.served.is_none() {
                            return Ok(());
                        }
                    }
                }
                Step::Learn => {
                    let generation = kept.feed.generation();
                    let found = revisions(process.state(), place);
                    let found = found.map_err(|error| unreadable(number, &error))?;
                    let Some((newest, compacted)) = found else {
                        watcher.served = None;
                        return Ok(());
                    };
                    kept.feed.learn(generation, newest, compacted);
                }
                Step::Page { from, spans } => {
                    let read = |reader: &dyn replica::PairReader| {
                        read_page(reader, place, from, &spans, PAGE)
                    };
                    let state: &dyn StateReader = process.state();
                    let page = read_keyspaces(state, place.shard, read);
                    match page.map_err(|error| unreadable(number, &error))? {
                        Ok(Ok(page)) => {
                            self.count("pages of watches read");
                            watcher.watches.take_page(page);
                        }
                        Ok(Err(Refusal::Compacted { compacted })) => {
                            self.compacted(watcher, compacted);
                        }
                        // The shard or the keyspace is gone.
                        Ok(Err(_)) | Err(_) => {
                            watcher.served = None;
                            return Ok(());
                        }
                    }
                }
                Step::Wait => return Ok(()),
                Step::End(_) => {
                    watcher.served = None;
                    return Ok(());
                }
            }
        }
    }

    fn compacted(&mut self, watcher: &mut Watcher, compacted: i64) {
        if self.process_bug() == Some(ProcessBug::CompactedWatchGoesOn) {
            if let Some(served) = watcher.served {
                watcher.attach(served, compacted, (compacted, compacted));
            }
            return;
        }
        watcher.watches.compact(compacted);
        self.count("watches compacted");
    }

    /// Tells a watch that it has everything, as [`ProcessBug::ProgressAheadOfEvents`] does.
    fn tell_newest(&self, watcher: &mut Watcher, newest: Option<i64>) -> Checked {
        if self.process_bug() == Some(ProcessBug::ProgressAheadOfEvents)
            && let Some(revision) = newest
        {
            let id = changes::NO_ID;
            let told = Told::Progress { id, revision };
            return watcher.take(&told, &self.keyspace_checker);
        }
        Ok(())
    }

    /// Checks, at the end, that each watch has got everything.
    pub(super) fn check_watches(&mut self) -> Checked {
        for index in 0..self.watchers.len() {
            let Some(place) = self.watchers[index].place else {
                continue;
            };
            if !self.keyspace_checker.exists(place) {
                continue;
            }
            if let Some((host, _)) = self.watchers[index].served {
                self.drive_watcher(host, index)?;
            }
            // One that is canceled, because its next revision is compacted, goes on once more.
            for _ in 0..2 {
                if self.watchers[index].served.is_none()
                    && let Some(host) = self.leader_of(place.shard)
                {
                    let here = (host, self.hosts[host].incarnation);
                    self.attach_watcher(here, index)?;
                }
            }
            self.watchers[index].check_complete(&self.keyspace_checker)?;
            let events = self.watchers[index].events;
            *self.report.counts.entry("events watched").or_default() += events;
        }
        Ok(())
    }
}

fn unreadable(number: HostId, error: &StoreError) -> Violation {
    Violation::new(
        "keyspaces can be tracked",
        format!("host {number}: {error}"),
    )
}
