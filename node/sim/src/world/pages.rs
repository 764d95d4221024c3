//! Pages of scans, which a process reads on other threads than the replica's, some time after the replica has confirmed that it
//! leads.

use replica::{Answer, Request, RequestId};
use shardkv::{Query, Response, read_page_with_bug};

use super::World;
use crate::bug::Bug;
use crate::event::Event;
use crate::machine::{Outcome, Question, Reply};
use crate::network::HostId;
use crate::queue::Micros;
use crate::violation::{Checked, Violation};

/// The time until the next attempt of a read in a process that is paused.
const PAUSED: Micros = 1_000;

impl World {
    /// Returns what the replica is asked for a request. A page needs a confirmation first.
    pub(super) fn confirm_first(
        &mut self,
        number: HostId,
        id: RequestId,
        request: Request<Question>,
    ) -> Request<Question> {
        let page = match &request {
            Request::Read(Question::Kv(Query::Page(page))) => page,
            Request::Read(Question::Keyspace(read)) => {
                return self.confirm_keyspace_read(number, id, read.clone());
            }
            Request::Read(Question::Renew(lease)) => {
                return self.confirm_renewal(number, id, *lease);
            }
            _ => return request,
        };
        self.hosts[number].pages.insert(id, page.clone());
        if self.scenario.bug == Some(Bug::Shardkv(shardkv::Bug::PageUnchecked)) {
            // The machine checks the shards now, and nobody does later.
            return request;
        }
        Request::Read(Question::Kv(Query::Confirm))
    }

    /// Schedules the read of a page that was confirmed. Returns the outcome if it is the answer already.
    pub(super) fn read_if_confirmed(
        &mut self,
        number: HostId,
        after: Micros,
        id: RequestId,
        outcome: Outcome,
    ) -> Option<Outcome> {
        let outcome = self.renew_if_confirmed(number, id, outcome);
        let host = &mut self.hosts[number];
        if !host.pages.contains_key(&id) && !host.keyspace_reads.contains_key(&id) {
            return Some(outcome);
        }
        let confirmed = matches!(
            outcome,
            Ok(Answer::Machine(Reply::Kv(
                Response::Confirmed | Response::Page { .. }
            )))
        );
        if !confirmed {
            host.pages.remove(&id);
            host.keyspace_reads.remove(&id);
            return Some(outcome);
        }
        let incarnation = host.incarnation;
        // Most reads begin at once; some wait for a free thread.
        let waits = if self.rng.chance(200_000) {
            self.scenario.pages_wait
        } else {
            500
        };
        let at = self.now + after + self.rng.between(0, waits);
        self.push_read(number, incarnation, id, at);
        None
    }

    fn push_read(&mut self, host: HostId, incarnation: u64, id: RequestId, at: Micros) {
        let event = Event::ReadPage {
            host,
            incarnation,
            id,
        };
        self.queue.push(at, event);
    }

    /// Reads a page from the state as of now, and answers the request.
    pub(super) fn read_page(&mut self, number: HostId, incarnation: u64, id: RequestId) -> Checked {
        let host = &mut self.hosts[number];
        if host.incarnation != incarnation {
            return Ok(());
        }
        if host.paused {
            self.push_read(number, incarnation, id, self.now + PAUSED);
            return Ok(());
        }
        let Some(page) = host.pages.remove(&id) else {
            return self.read_keyspace(number, id);
        };
        // No step happens between this read and its answer.
        host.owned = None;
        let (_, state) = host.disk.open();
        let bug = self.scenario.bug.and_then(Bug::shardkv);
        let read = read_page_with_bug(&state, &page, bug).map_err(|error| {
            Violation::new("pages can be read", format!("host {number}: {error}"))
        })?;
        self.count("pages read");
        let response = read.unwrap_or_else(Response::Refused);
        let outcome = Ok(Answer::Machine(Reply::Kv(response)));
        self.send_answer(number, 0, id, outcome)
    }
}
