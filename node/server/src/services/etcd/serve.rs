//! Answers a call here, or at the node that can.
//!
//! A call that another node must answer is passed on once, as calls for the flat map are ([`forward`]). A call
//! waits while its shard is moved, or while its group has no leader, until the request's time is over. Where a client's own deadline is shorter, the gRPC library drops the call.

use std::sync::Arc;
use std::time::Duration;

use api::errors;
use api::v1::ErrorDetail;
use prometheus_client::metrics::histogram::Histogram;
use prost::Message;
use shardkv::GroupKind;
use tokio::time::{Instant, timeout_at};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::credentials::Credentials;
use super::edge::Authority;
use super::leader;
use super::naming::{KEYSPACE_METADATA_KEY, Naming, Said};
use super::passwords::Passwords;
use super::status::{self, Failure};
use super::store::{Freshness, Keyspaces};
use crate::admission::Admission;
use crate::forward::{
    self, Forwarder, Repeat, is_elsewhere, is_forbidden, is_on_its_way, once_for,
};
use crate::keyspaces::budgets::Held;
use crate::keyspaces::lessor::Lessor;
use crate::lifecycle::Lifecycle;
use crate::metrics::Metrics;
use crate::metrics::usage::Used;
use crate::page_budget::PageShare;
use crate::reserve::calls::Origin;
use crate::services::destination;
use crate::services::unfetched::Unfetched;

/// The pause between attempts while a shard is on its way here.
pub(super) const ON_ITS_WAY_PAUSE: Duration = Duration::from_millis(20);
/// Answers up to this size need no share of the budget while the network takes them: it holds as much of any answer.
pub(super) const SMALL_ANSWER_BYTES: usize = 16 << 10;

/// The parts that all services for clients of etcd share.
pub(crate) struct EtcdServices {
    pub(crate) keyspaces: Arc<Keyspaces>,
    pub(crate) lessor: Arc<Lessor>,
    pub(crate) naming: Naming,
    pub(crate) lifecycle: Arc<Lifecycle>,
    pub(crate) forwarder: Arc<Forwarder>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) passwords: Passwords,
}

/// The metadata of a call.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// The keyspace.
    pub(crate) keyspace: String,
    /// The authority that the client dialled.
    pub(crate) authority: Option<String>,
    /// The token that says who calls, if the keyspace asks for one.
    pub(crate) credentials: Credentials,
    /// True if the call must not be forwarded.
    pub(crate) forbidden: bool,
    /// True if the client asks that its stream ends when there is no leader.
    pub(crate) requires_leader: bool,
    /// The time of the call's arrival.
    pub(crate) arrived: std::time::Instant,
    /// The shares that it holds while it is answered.
    pub(crate) held: Held,
}

impl Call {
    /// Returns the keyspace of a write, with what its call holds and who calls.
    pub(super) fn target(&self) -> (&str, &Held, &Credentials) {
        (&self.keyspace, &self.held, &self.credentials)
    }

    /// Returns the state that a read of this call wants. A call that another node has passed on came for the leader.
    pub(super) fn freshness(&self, serializable: bool) -> Freshness {
        match (serializable, self.forbidden) {
            (true, _) => Freshness::Serializable,
            (false, true) => Freshness::Linearizable,
            (false, false) => Freshness::ReadIndex,
        }
    }
}

/// An answer that was made here, with its share of the budget of answers.
pub(crate) struct Answered<T> {
    pub(crate) answer: T,
    pub(crate) share: Option<PageShare>,
}

impl<T> From<T> for Answered<T> {
    fn from(answer: T) -> Self {
        Self {
            answer,
            share: None,
        }
    }
}

/// A method with one request and one answer.
pub(crate) trait Method {
    type Request: Message + Clone + Send + Sync + 'static;
    type Answer: Message + Send + 'static;

    /// Returns the right to repeat a call whose outcome is unknown.
    fn repeat(request: &Self::Request) -> Repeat;

    /// Returns the most bytes that the answer to a write may have, which are taken from a budget before it is proposed: once a write is
    /// carried out, its answer must not be refused. Reads, and writes whose answer is small, take nothing here.
    fn most_answer_bytes(_request: &Self::Request) -> usize {
        0
    }

    /// Returns the histogram of the method's latency.
    fn latency(metrics: &Metrics) -> &Histogram;

    /// Answers a call at this node's group.
    fn here(
        services: &EtcdServices,
        call: &Call,
        request: Self::Request,
    ) -> impl Future<Output = Result<Answered<Self::Answer>, Failure>> + Send;

    /// Asks another node.
    fn there(
        channel: Channel,
        request: Request<Self::Request>,
    ) -> impl Future<Output = Result<Response<Self::Answer>, Status>> + Send;
}

impl EtcdServices {
    /// Reads the metadata of a call. Refuses a call for another cluster or group.
    pub(crate) fn call<T>(&self, request: &Request<T>) -> Result<Call, Status> {
        let metadata = request.metadata();
        if let Err(error) = destination::check(&self.keyspaces.routing, metadata) {
            return Err(self.metrics.reject(&error));
        }
        let extensions = request.extensions();
        let authority = extensions.get::<Authority>();
        let origin = extensions.get::<Origin>();
        let said = Said {
            bound: origin.and_then(|origin| origin.keyspace.as_deref()),
            metadata: metadata
                .get(KEYSPACE_METADATA_KEY)
                .map(MetadataValue::as_encoded_bytes),
            authority: authority.map(|authority| authority.0.as_str()),
        };
        let keyspace = self.naming.keyspace_of(said);
        Ok(Call {
            keyspace: keyspace.map_err(|error| {
                status::finally(tonic::Code::InvalidArgument, error.to_string())
            })?,
            authority: authority.map(|authority| authority.0.clone()),
            credentials: Credentials::of(metadata),
            forbidden: is_forbidden(metadata),
            requires_leader: leader::is_required(metadata),
            arrived: std::time::Instant::now(),
            held: Held::default(),
        })
    }

    /// Answers a call here, or at the node that can.
    pub(crate) async fn serve<M: Method>(
        &self,
        request: Request<M::Request>,
    ) -> Result<Response<M::Answer>, Status> {
        let call = self.call(&request)?;
        let answer = self.within_budget::<M>(&call, request.into_inner()).await;
        let latency = call.arrived.elapsed().as_secs_f64();
        M::latency(&self.metrics).observe(latency);
        self.count(&call, &answer);
        let Answered { answer, share } = answer.map_err(|failure| self.status(&call, failure))?;
        let mut response = Response::new(answer);
        if let Some(share) = share {
            let bytes = response.get_ref().encoded_len();
            response
                .extensions_mut()
                .insert(Unfetched::answer(share, bytes));
        }
        Ok(response)
    }

    /// Counts a client's call. The node that it was passed on to doesn't count it again.
    fn count<A: Message>(&self, call: &Call, answer: &Result<Answered<A>, Failure>) {
        if call.forbidden {
            return;
        }
        let usage = &self.metrics.usage;
        let used = Used {
            refused: answer.as_ref().is_err_and(Failure::is_overload),
            answer_bytes: answer
                .as_ref()
                .map_or(0, |answered| answered.answer.encoded_len()),
        };
        match answer {
            // A call is refused before anybody knows whether its keyspace exists.
            Err(_) => usage.count_unsure(&call.keyspace, used),
            Ok(_) => usage.count(&call.keyspace, used),
        }
    }

    /// Returns the status of a call that failed.
    pub(crate) fn status(&self, call: &Call, failure: Failure) -> Status {
        match failure {
            Failure::Refused(refusal) => status::refused(refusal, &call.keyspace),
            Failure::Status(status) => *status,
            // The node that forwards the call follows it.
            Failure::Node(error) if call.forbidden => self.metrics.reject(&error),
            Failure::Node(error) => {
                self.metrics.rejected(&error);
                status::failed(&error)
            }
        }
    }

    /// Answers a call whose answer may be large once there is room for it.
    pub(super) async fn within_budget<M: Method>(
        &self,
        call: &Call,
        request: M::Request,
    ) -> Result<Answered<M::Answer>, Failure> {
        let most = M::most_answer_bytes(&request);
        if most == 0 {
            return self.answer::<M>(call, request).await;
        }
        let answers = &self.admission.keyspaces.write_answers;
        let share = Arc::new(answers.take(&call.keyspace, most).await?);
        let mut call = call.clone();
        call.held.answer = Some(Arc::clone(&share));
        let answered = self.answer::<M>(&call, request).await?;
        share.shrink(answered.answer.encoded_len());
        Ok(Answered {
            share: Some(PageShare::Keyspace(share)),
            ..answered
        })
    }

    /// As [`EtcdServices::serve`], without the answer's metadata.
    pub(super) async fn answer<M: Method>(
        &self,
        call: &Call,
        request: M::Request,
    ) -> Result<Answered<M::Answer>, Failure> {
        let shares = &self.admission.keyspaces;
        let share = shares.call(&call.keyspace, request.encoded_len())?;
        let mut call = call.clone();
        call.held.call = Some(Arc::new(share));
        let call = &call;
        let routing = &self.keyspaces.routing;
        if routing.kind() == GroupKind::Controller {
            if call.forbidden {
                return Err(routing.wrong_group().into());
            }
            return self.elsewhere::<M>(call, request).await;
        }
        let deadline = self.forwarder.deadline(call.arrived);
        if call.forbidden {
            return self.here::<M>(call, request, deadline).await;
        }
        let mut waiting = None;
        loop {
            // The clone shares the bytes.
            let error = match self.here::<M>(call, request.clone(), deadline).await {
                Err(Failure::Node(error)) => error,
                answer => return answer,
            };
            if is_elsewhere(&error) {
                drop(waiting);
                return self.elsewhere::<M>(call, request).await;
            }
            // The shard is on its way here, so the call waits for it, unless too many do.
            if waiting.is_none() && is_on_its_way(&error) {
                waiting = self.forwarder.wait_here(request.encoded_len());
            }
            if waiting.is_none() || !is_on_its_way(&error) || Instant::now() >= deadline {
                return Err(error.into());
            }
            let pause = tokio::time::sleep(ON_ITS_WAY_PAUSE);
            if self.lifecycle.unless_draining(pause).await.is_none() {
                return Err(error.into());
            }
        }
    }

    /// Answers a call here until its time is over, wherever it waits.
    async fn here<M: Method>(
        &self,
        call: &Call,
        request: M::Request,
        deadline: Instant,
    ) -> Result<Answered<M::Answer>, Failure> {
        match timeout_at(deadline, M::here(self, call, request)).await {
            Ok(answer) => answer,
            // It may have been proposed.
            Err(_) => Err(errors::outcome_unknown("").into()),
        }
    }

    async fn elsewhere<M: Method>(
        &self,
        call: &Call,
        request: M::Request,
    ) -> Result<Answered<M::Answer>, Failure> {
        let bytes = request.encoded_len();
        let repeat = M::repeat(&request);
        let answer = self.forward(call, repeat, bytes, |channel, outgoing| {
            M::there(channel, outgoing.map(|()| request.clone()))
        });
        let answer = answer.await?.into_inner();
        let size = answer.encoded_len();
        // A write was carried out, so its answer isn't refused: it has its share already.
        let share = if repeat != Repeat::Never && size > SMALL_ANSWER_BYTES {
            let relayed = &self.admission.keyspaces.relayed_ranges;
            Some(relayed.take(&call.keyspace, size).await?.into())
        } else {
            None
        };
        Ok(Answered { answer, share })
    }

    /// Passes a call to the leader of the group that owns its keyspace. `ask` gets a request with the metadata of the call.
    pub(crate) async fn forward<T, F>(
        &self,
        call: &Call,
        repeat: Repeat,
        bytes: usize,
        ask: impl Fn(Channel, Request<()>) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let shard = self.keyspaces.shard(&call.keyspace)?;
        let name = name_of(call)?;
        let relays = &self.admission.keyspaces.relays;
        let _relay = relays.take(&call.keyspace, 1).await?;
        let ask = |channel, gid| {
            let mut outgoing = once_for(&self.forwarder, gid, ());
            let metadata = outgoing.metadata_mut();
            metadata.insert(KEYSPACE_METADATA_KEY, name.clone());
            call.credentials.pass_on(metadata);
            ask(channel, outgoing)
        };
        let answer =
            forward::keyspace(&self.forwarder, shard, (repeat, bytes), call.arrived, ask).await?;
        answer.map_err(|status| Failure::Status(Box::new(status)))
    }
}

/// Returns the metadata that names the keyspace of a call.
pub(super) fn name_of(call: &Call) -> Result<MetadataValue<Ascii>, ErrorDetail> {
    MetadataValue::try_from(&call.keyspace).map_err(|_| {
        let why = "it has characters that metadata can't hold";
        errors::bad_request(KEYSPACE_METADATA_KEY, why)
    })
}
