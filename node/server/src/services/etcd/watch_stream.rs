//! One watch stream: a task that serves all watches of the stream, on a replica of the group that owns the keyspace.
//!
//! Which watch gets what is decided by [`Watches`]. The task carries it out: it reads pages and pairs on reader threads, sends at the
//! pace at which the client fetches, and takes requests in between.

use std::sync::Arc;
use std::time::Duration;

use api::etcd::etcdserverpb as pb;
use api::v1::ErrorDetail;
use changes::{
    End, PageLimits, Refused, Response, Spans, Step, Watches, access_text, read_page, read_previous,
};
use futures::{FutureExt as _, Stream, StreamExt as _};
use keyspace::{Event, KeyValue, Refusal, Span};
use pb::watch_request::RequestUnion;
use prost::Message as _;
use raft::StoreError;
use replica::PairReader;
use shardkv::{KvError, read_keyspaces};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};
use tonic::Status;

use super::outgoing::{Outgoing, SMALL_BYTES};
use super::status;
use super::store::Identity;
use super::streams::{Over, moved};
use super::watch::WatchServices;
use super::watch_access::{Allowed, WatchAccess};
use super::watch_messages as messages;
use crate::keyspaces::hub::Subscription;
use crate::keyspaces::shares::Share;
use crate::page_budget::PageShare;
use crate::random;

/// The events of the feed that are taken at once.
const MAX_EVENTS: usize = 128;
/// The bounds of a page of the past.
const PAGE: PageLimits = PageLimits {
    events: 1_000,
    visited: 20_000,
    bytes: 1 << 20,
};
/// The bytes of pairs before the events of one message, unless a revision has more.
const PREVIOUS_BYTES: usize = 1 << 20;
/// The most bytes of pairs before the events of one message.
const MAX_PREVIOUS_BYTES: usize = 32 << 20;
/// The memory of an event of a message beside its key and value, or of a pair before it.
const EVENT_BYTES: usize = 128;
/// The pause before a read that was refused is tried again.
const PAUSE: Duration = Duration::from_millis(100);
/// The least interval of notices of progress, as in etcd.
const PROGRESS_INTERVAL: Duration = Duration::from_mins(10);

/// A watch stream.
pub(super) struct WatchStream<R> {
    pub(super) services: Arc<WatchServices>,
    pub(super) name: String,
    pub(super) identity: Identity,
    pub(super) access: WatchAccess,
    pub(super) subscription: Subscription,
    pub(super) watches: Watches,
    pub(super) requests: R,
    /// False once the client has said that there are no more requests.
    pub(super) open: bool,
    pub(super) outgoing: Outgoing<pb::WatchResponse>,
    /// The places of the watches among those of the node.
    pub(super) slots: Option<Share>,
    /// The share of a page that is on its way.
    pub(super) share: Option<PageShare>,
}

impl<R> WatchStream<R>
where
    R: Stream<Item = Result<pb::WatchRequest, Status>> + Send + Unpin,
{
    /// Serves the stream until it is over.
    pub(super) async fn serve(&mut self) -> Over {
        match self.run().await {
            Err(over) => over,
            Ok(never) => match never {},
        }
    }

    /// Gives back all but the way to the client.
    pub(super) fn into_outgoing(self) -> Outgoing<pb::WatchResponse> {
        self.outgoing
    }

    async fn run(&mut self) -> Result<std::convert::Infallible, Over> {
        let every = progress_interval();
        let mut notices = interval_at(Instant::now() + every, every);
        notices.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.check_again().await?;
            if self.watches.is_idle() {
                self.share = None;
                // Requests come before events.
                if self.open
                    && let Some(request) = self.requests.next().now_or_never()
                {
                    self.take(request).await?;
                    continue;
                }
            }
            let followed = Arc::clone(&self.subscription.followed);
            match self.watches.step(&*followed, MAX_EVENTS) {
                Step::Answer => {
                    // Events after a change of permissions come from the feed after the change.
                    self.check_again().await?;
                    self.answer().await?;
                }
                Step::Learn => self.learn().await?,
                Step::Page { from, spans } => self.page(from, spans).await?,
                Step::End(why) => return Err(self.ended(why)),
                Step::Wait => tokio::select! {
                    biased;
                    over = self.outgoing.lost() => return Err(over),
                    request = self.requests.next(), if self.open => self.take(request).await?,
                    () = self.subscription.changed() => {}
                    _ = notices.tick() => self.watches.notify_progress(),
                },
            }
        }
    }

    async fn take(
        &mut self,
        request: Option<Result<pb::WatchRequest, Status>>,
    ) -> Result<(), Over> {
        let request = match request {
            Some(Ok(request)) => request,
            Some(Err(_)) => return Err(Over::Gone),
            // As in etcd, the watches go on.
            None => {
                self.open = false;
                return Ok(());
            }
        };
        let newest = self.newest().await?;
        match request.request_union {
            Some(RequestUnion::CreateRequest(wire)) => self.create(wire, newest).await?,
            Some(RequestUnion::CancelRequest(wire)) => {
                self.watches.cancel(wire.watch_id, newest.0);
                self.fit_slots();
            }
            Some(RequestUnion::ProgressRequest(_)) => self.watches.ask_progress(),
            // As in etcd, what isn't known is ignored.
            None => {}
        }
        Ok(())
    }

    async fn create(
        &mut self,
        wire: pb::WatchCreateRequest,
        (newest, compacted): (i64, i64),
    ) -> Result<(), Over> {
        let create = messages::create(wire);
        if create.start >= 0
            && let Err(refusal) = self.check(&create.span).await?
        {
            self.watches.refuse(newest, Refused::Access(refusal));
            return Ok(());
        }
        let watches = &self.services.shares().watches;
        let Ok(slot) = watches.try_take(&self.name, 1) else {
            self.watches.refuse(newest, Refused::TooMany);
            return Ok(());
        };
        match &mut self.slots {
            Some(slots) => slots.merge(slot),
            none => *none = Some(slot),
        }
        self.watches.create(create, newest, compacted);
        self.fit_slots();
        Ok(())
    }

    /// Checks that the caller may watch a span.
    async fn check(&mut self, span: &Span) -> Result<Result<(), Refusal>, Over> {
        loop {
            if self.access.is_open(&self.subscription.followed) {
                return Ok(Ok(()));
            }
            let check = self.access.check_one(self.identity, span.clone());
            match self.read(check).await? {
                Some(Ok(allowed)) => return Ok(allowed),
                Some(Err(refusal)) => return Err(self.refused(refusal)),
                None => self.pause().await?,
            }
        }
    }

    /// Checks all watches again if the permissions may have changed, and ends those that are not allowed any more. etcd lets them go on.
    async fn check_again(&mut self) -> Result<(), Over> {
        loop {
            let permissions = self.subscription.followed.permissions();
            if self.access.is_checked(permissions) {
                return Ok(());
            }
            let ranges = self.watches.ranges();
            let ranges: Vec<_> = ranges.map(|(id, span)| (id, span.clone())).collect();
            let check = self.access.check_all(self.identity, ranges);
            match self.read(check).await? {
                Some(Ok(Allowed { enabled, lost })) => {
                    self.access.checked(permissions, enabled);
                    for (id, refusal) in lost {
                        self.cancel_for(id, access_text(refusal)).await?;
                    }
                }
                Some(Err(refusal)) => return Err(self.refused(refusal)),
                None => self.pause().await?,
            }
        }
    }

    /// Gives back the places of watches that are gone.
    fn fit_slots(&mut self) {
        let watches = self.watches.len();
        if let Some(slots) = &mut self.slots {
            slots.shrink(watches);
        }
    }

    /// Returns the newest and the compacted revision.
    async fn newest(&mut self) -> Result<(i64, i64), Over> {
        loop {
            if let Some((newest, compacted)) = self.subscription.followed.revisions() {
                return Ok((newest.max(self.watches.position()), compacted));
            }
            self.learn().await?;
        }
    }

    /// Reads the keyspace's record, and tells the feed.
    async fn learn(&mut self) -> Result<(), Over> {
        let place = self.identity.place;
        let generation = self.subscription.followed.generation();
        let read = move |reader: &dyn PairReader| keyspace::record(reader, place);
        match self.read(read).await? {
            Some(Ok(record)) => {
                let followed = &self.subscription.followed;
                followed.learn(generation, record.revision, record.compacted);
                Ok(())
            }
            Some(Err(refusal)) => Err(self.refused(refusal)),
            None => self.pause().await,
        }
    }

    /// Reads a page of the past for the watches that are behind.
    async fn page(&mut self, from: i64, spans: Spans) -> Result<(), Over> {
        let budget = &self.services.shares().watch_pages;
        let share = tokio::select! {
            biased;
            over = self.outgoing.lost() => return Err(over),
            share = budget.take(&self.name, PAGE.bytes) => share,
        };
        let Ok(share) = share else {
            // Others hold the budget. While this stream waits, its watches cost nothing.
            return Ok(());
        };
        self.services.etcd.metrics.watches.pages.inc();
        let place = self.identity.place;
        let read = move |reader: &dyn PairReader| read_page(reader, place, from, &spans, PAGE);
        match self.read(read).await? {
            Some(Ok(page)) => {
                self.share = Some(share.into());
                self.watches.take_page(page);
            }
            Some(Err(Refusal::Compacted { compacted })) => {
                self.watches.compact(compacted);
                self.fit_slots();
            }
            Some(Err(refusal)) => return Err(self.refused(refusal)),
            None => self.pause().await?,
        }
        Ok(())
    }

    /// Sends the next answer, when there is room for it.
    async fn answer(&mut self) -> Result<(), Over> {
        if !self.outgoing.has_room().await? {
            // What waits is read again once the client fetches.
            self.watches.let_go();
            self.share = None;
            self.outgoing.wait_for_room().await?;
        }
        let Some(answer) = self.watches.next_answer() else {
            return Ok(());
        };
        let message = match answer {
            Response::Created { id, revision } => messages::created(self.header(revision), id),
            Response::Refused { revision, why } => messages::refused(self.header(revision), why),
            Response::Canceled { id, revision } => messages::canceled(self.header(revision), id),
            Response::Compacted { id, compacted } => pb::WatchResponse {
                compact_revision: compacted,
                ..messages::canceled(self.header(0), id)
            },
            Response::Progress { id, revision } => {
                messages::events(self.header(revision), id, Vec::new(), Vec::new())
            }
            Response::Events {
                id,
                revision,
                events,
                prev_kv,
                fragment,
            } => return self.events(id, revision, events, (prev_kv, fragment)).await,
        };
        self.outgoing.send(message, None).await
    }

    /// Sends events. All but the first message may have to wait, for a limited time.
    async fn events(
        &mut self,
        id: i64,
        revision: i64,
        mut events: Vec<Event>,
        (prev_kv, fragment): (bool, bool),
    ) -> Result<(), Over> {
        while !events.is_empty() {
            self.outgoing.room().await?;
            let (mut previous, mut rest) = (Vec::new(), Vec::new());
            let mut share;
            if prev_kv && events.iter().any(has_previous) {
                let read = self.previous(events).await?;
                events = read.0;
                let Some(pairs) = read.1 else {
                    return self.cancel_too_large(id, revision).await;
                };
                rest = events.split_off(pairs.len());
                (previous, share) = (pairs, read.2);
            } else {
                share = self.outgoing.share(bytes_of(&events)).await?;
            }
            // What is left out has higher revisions.
            let last = events
                .last()
                .map_or(revision, |event| event.kv.mod_revision);
            let through = if rest.is_empty() { revision } else { last };
            let sent = events.len() as u64;
            let message = messages::events(self.header(through), id, events, previous);
            if let Some(share) = &mut share {
                share.shrink(message.encoded_len());
            }
            self.parts(message, fragment, share).await?;
            self.services.etcd.metrics.watches.events.inc_by(sent);
            events = rest;
        }
        Ok(())
    }

    /// Sends a message, in parts if its watch allows that. The last part keeps the share of all.
    async fn parts(
        &mut self,
        message: pb::WatchResponse,
        fragment: bool,
        mut share: Option<PageShare>,
    ) -> Result<(), Over> {
        let parts = if fragment {
            messages::fragments(message)
        } else {
            vec![message]
        };
        for part in parts {
            let share = if part.fragment { None } else { share.take() };
            self.outgoing.send(part, share).await?;
        }
        Ok(())
    }

    /// Reads the pairs before events, and returns the events and the share of the message, too.
    async fn previous(
        &mut self,
        events: Vec<Event>,
    ) -> Result<(Vec<Event>, Option<Vec<Option<KeyValue>>>, Option<PageShare>), Over> {
        let place = self.identity.place;
        let own = bytes_of(&events);
        let events = Arc::new(events);
        let mut most = PREVIOUS_BYTES;
        let mut share = self.outgoing.share_now(own + most);
        if share.is_none() && own < SMALL_BYTES {
            // Others hold the budget. A small answer needs no share, so slow clients don't hold it up.
            most = SMALL_BYTES - own;
        }
        loop {
            if share.is_none() && own + most > SMALL_BYTES {
                share = self.outgoing.share(own + most).await?;
            }
            let asked = Arc::clone(&events);
            let read = move |reader: &dyn PairReader| read_previous(reader, place, &asked, most);
            match self.read(read).await? {
                Some(None) if most < MAX_PREVIOUS_BYTES => {
                    // Given back first: two shares of one answer could wait for each other.
                    share = None;
                    most = if most < PREVIOUS_BYTES {
                        PREVIOUS_BYTES
                    } else {
                        MAX_PREVIOUS_BYTES
                    };
                }
                Some(pairs) => return Ok((Arc::unwrap_or_clone(events), pairs, share)),
                None => self.pause().await?,
            }
        }
    }

    /// Cancels a watch that asks for more in one message than this node sends.
    async fn cancel_too_large(&mut self, id: i64, revision: i64) -> Result<(), Over> {
        let why = Refusal::RequestTooLarge.to_string();
        self.cancel(id, revision, why).await
    }

    /// Cancels a watch whose user may not read its range any more.
    async fn cancel_for(&mut self, id: i64, why: String) -> Result<(), Over> {
        let revision = self.watches.position();
        self.cancel(id, revision, why).await
    }

    async fn cancel(&mut self, id: i64, revision: i64, why: String) -> Result<(), Over> {
        self.watches.remove(id);
        self.fit_slots();
        let message = pb::WatchResponse {
            cancel_reason: why,
            ..messages::canceled(self.header(revision), id)
        };
        self.outgoing.send(message, None).await
    }

    /// Reads the keyspace on a reader thread; `None` if too many reads wait.
    async fn read<T: Send + 'static>(
        &mut self,
        read: impl FnOnce(&dyn PairReader) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<Option<T>, Over> {
        let shard = self.identity.place.shard;
        let reading = self
            .services
            .readers
            .read(move |state| read_keyspaces(state, shard, read));
        let done = tokio::select! {
            biased;
            over = self.outgoing.lost() => return Err(over),
            done = reading => done,
        };
        served(done)
    }

    async fn pause(&mut self) -> Result<(), Over> {
        tokio::select! {
            biased;
            over = self.outgoing.lost() => Err(over),
            () = sleep(PAUSE) => Ok(()),
        }
    }

    fn header(&self, revision: i64) -> pb::ResponseHeader {
        let keyspaces = &self.services.etcd.keyspaces;
        keyspaces.header(self.identity.cluster_id, revision)
    }

    fn ended(&self, why: End) -> Over {
        match why {
            End::Moved => Over::Failed(moved()),
            End::Deleted => self.refused(Refusal::KeyspaceNotFound),
        }
    }

    fn refused(&self, refusal: Refusal) -> Over {
        Over::Failed(status::refused(refusal, &self.name))
    }
}

/// Returns the approximate memory of events in a message, without the pairs before them.
fn bytes_of(events: &[Event]) -> usize {
    let bytes = |event: &Event| 2 * EVENT_BYTES + event.kv.key.len() + event.kv.value.len();
    events.iter().map(bytes).sum()
}

/// Returns true if a key may have existed before the event.
fn has_previous(event: &Event) -> bool {
    event.deleted || event.kv.create_revision != event.kv.mod_revision
}

/// Returns what was read; `None` if too many reads wait.
fn served<T>(done: Result<Result<T, KvError>, ErrorDetail>) -> Result<Option<T>, Over> {
    match done {
        Ok(Ok(value)) => Ok(Some(value)),
        Ok(Err(_)) => Err(Over::Failed(moved())),
        Err(_) => Ok(None),
    }
}

/// Returns the interval of notices of progress. It differs between streams, so that those that were opened together are told apart.
fn progress_interval() -> Duration {
    let tenth = PROGRESS_INTERVAL.as_secs() / 10;
    let jitter = random::number().map_or(0, |number| number % tenth);
    PROGRESS_INTERVAL + Duration::from_secs(jitter)
}
