//! The way to the replica: submits requests to its thread and waits for their answers.

use std::sync::Arc;
use std::time::Duration;

use api::errors;
use api::v1::ErrorDetail;
use shardkv::{Query, Response as Outcome};
use tokio::sync::oneshot;
use tokio::time::timeout;
use types::NodeId;

use crate::admission::Admission;
use crate::budget::Permit;
use crate::convert::kv;
use crate::inbox::{Inbox, Submission};
use crate::keyspaces::budgets::ProposalShare;
use crate::lifecycle::{Lifecycle, View};
use crate::machine::{self, MachineRequest, MachineResult};
use crate::peers::Peers;
use crate::replies::Reply;

/// The answer to a submitted request. It is closed without a value when the replica has ended.
pub(crate) type PendingAnswer = oneshot::Receiver<MachineResult>;

/// Submits requests to the replica of this node.
pub(crate) struct ReplicaHandle {
    lifecycle: Arc<Lifecycle>,
    peers: Arc<Peers>,
    admission: Arc<Admission>,
    inbox: Arc<Inbox>,
    request_timeout: Duration,
}

impl ReplicaHandle {
    pub(crate) fn new(
        lifecycle: Arc<Lifecycle>,
        peers: Arc<Peers>,
        admission: Arc<Admission>,
        inbox: Arc<Inbox>,
        request_timeout: Duration,
    ) -> Self {
        Self {
            lifecycle,
            peers,
            admission,
            inbox,
            request_timeout,
        }
    }

    /// Refuses clients' work before the replica runs and while the node drains.
    pub(crate) fn check_running(&self) -> Result<(), ErrorDetail> {
        self.lifecycle.check_running()
    }

    /// Returns the node's phase and the replica's latest status.
    pub(crate) fn view(&self) -> View {
        self.lifecycle.view()
    }

    /// Returns the address of a node for a leader hint, empty for a node that isn't known.
    pub(crate) fn address_or_empty(&self, node: NodeId) -> String {
        self.peers.address_or_empty(node)
    }

    /// Appends a request to the replica's queue.
    pub(crate) fn submit(&self, request: MachineRequest) -> Result<PendingAnswer, ErrorDetail> {
        self.check_running()?;
        let permit = self.permit(&request)?;
        Ok(self.enqueue(request, Reply::call(permit)))
    }

    /// As [`ReplicaHandle::submit`], for steps of hand-offs and the leader's own writes. They skip the limits of the budget,
    /// because an overloaded group must still be able to give shards away, and to revoke leases that have expired.
    pub(crate) fn submit_step(
        &self,
        request: MachineRequest,
    ) -> Result<PendingAnswer, ErrorDetail> {
        self.check_running()?;
        let permit = self.admission.budget.grant(machine::size(&request));
        Ok(self.enqueue(request, Reply::call(permit)))
    }

    /// Takes a request's share of the budget, for [`ReplicaHandle::submit_all`].
    pub(crate) fn permit(&self, request: &MachineRequest) -> Result<Permit, ErrorDetail> {
        self.admission.budget.take(machine::size(request))
    }

    /// Appends many requests to the replica's queue in one step.
    pub(crate) fn submit_all(&self, submissions: Vec<Submission>) {
        self.inbox.submit(submissions);
    }

    fn enqueue(
        &self,
        request: MachineRequest,
        (reply, answer): (Reply, PendingAnswer),
    ) -> PendingAnswer {
        self.inbox.submit([Submission { request, reply }]);
        answer
    }

    /// Submits a request and waits for its answer, at most for the request timeout.
    pub(crate) async fn ask(&self, request: MachineRequest) -> Result<MachineResult, ErrorDetail> {
        let changes = !matches!(
            request,
            replica::Request::Read(_)
                | replica::Request::ReadHere(_)
                | replica::Request::ReadLocal(_)
                | replica::Request::Birth { .. }
        );
        let answer = self.submit(request)?;
        self.answered(answer, changes).await
    }

    /// As [`ReplicaHandle::ask`], for a write to a keyspace. Its share is held until it is answered, also when the caller is gone before.
    pub(crate) async fn propose(
        &self,
        write: MachineRequest,
        share: ProposalShare,
    ) -> Result<MachineResult, ErrorDetail> {
        self.check_running()?;
        let permit = self.permit(&write)?;
        let answer = self.enqueue(write, Reply::proposal(permit, share));
        self.answered(answer, true).await
    }

    /// Returns when the state here has all that was committed before this call, while this node leads. A read that a reader thread
    /// begins then is linearizable.
    pub(crate) async fn confirm(&self) -> Result<(), ErrorDetail> {
        self.confirmed(kv::read(Query::Confirm)).await
    }

    /// As [`ReplicaHandle::confirm`], also while this node follows a leader, which it asks for the read index. If it gets none in
    /// time, it returns the refusal that leads the caller to the leader.
    pub(crate) async fn confirm_here(&self) -> Result<(), ErrorDetail> {
        self.confirmed(kv::read_here(Query::Confirm)).await
    }

    async fn confirmed(&self, request: MachineRequest) -> Result<(), ErrorDetail> {
        let result = self.ask(request).await?;
        match kv::outcome(result, |node| self.address_or_empty(node))? {
            Outcome::Confirmed => Ok(()),
            _ => Err(kv::mismatch()),
        }
    }

    /// Waits for an answer, at most for the request timeout. `changes` says whether the request may have changed state.
    pub(crate) async fn answered(
        &self,
        answer: PendingAnswer,
        changes: bool,
    ) -> Result<MachineResult, ErrorDetail> {
        match timeout(self.request_timeout, answer).await {
            Ok(Ok(result)) => Ok(result),
            // The answer did not come in time, or the replica has ended.
            _ if changes => Err(errors::outcome_unknown("")),
            _ => Err(errors::unavailable("the read got no answer in time", 100)),
        }
    }
}
