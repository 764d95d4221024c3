//! Forwarding of requests for the configuration to the controllers' leader.

use api::v1::shardctrler_client::ShardctrlerClient;
use api::v1::{
    ConfigChanged, CutRequest, CutResponse, ErrorDetail, ForgetRequest, ForgetResponse,
    JoinRequest, LeaveRequest, MoveRequest, OpenSessionRequest, OpenSessionResponse, QueryRequest,
    QueryResponse, ReportRequest, ReportResponse, RetireRequest, RetireResponse,
};
use shardctrler::GroupKind;
use tonic::Status;
use tonic::transport::Channel;
use types::Gid;

use super::{Destination, Forwarder, Repeat, Terms, call, once, own_group, repeat_of_write};

/// A request to the controllers, answered with [`ControllerRequest::Answer`].
pub(crate) trait ControllerRequest: Clone + Send {
    type Answer;

    /// Returns the right to repeat it.
    fn repeat(&self) -> Repeat;

    /// Sends it.
    fn send_to(
        self,
        client: ShardctrlerClient<Channel>,
    ) -> impl Future<Output = Result<Self::Answer, Status>> + Send;
}

/// Forwards a client's request to the controllers' leader.
pub(crate) async fn controllers<R: ControllerRequest>(
    forwarder: &Forwarder,
    request: R,
) -> Result<R::Answer, ErrorDetail> {
    let terms = Terms::new(forwarder, request.repeat());
    call(
        forwarder,
        || Ok(controller_group(forwarder)),
        terms,
        |channel, _| request.clone().send_to(client(channel)),
    )
    .await
}

fn client(channel: Channel) -> ShardctrlerClient<Channel> {
    ShardctrlerClient::new(channel).max_decoding_message_size(usize::MAX)
}

fn controller_group(forwarder: &Forwarder) -> Destination {
    if forwarder.routing.kind() == GroupKind::Controller {
        return own_group(forwarder);
    }
    Destination {
        gid: Gid::NONE,
        addresses: forwarder.controllers.clone(),
    }
}

macro_rules! controller_request {
    ($request:ty => $answer:ty, $method:ident, $repeat:expr) => {
        impl ControllerRequest for $request {
            type Answer = $answer;

            fn repeat(&self) -> Repeat {
                let repeat: fn(&Self) -> Repeat = $repeat;
                repeat(self)
            }

            async fn send_to(
                self,
                mut client: ShardctrlerClient<Channel>,
            ) -> Result<Self::Answer, Status> {
                Ok(client.$method(once(self)).await?.into_inner())
            }
        }
    };
}

controller_request!(QueryRequest => QueryResponse, query, |_| Repeat::Freely);
controller_request!(JoinRequest => ConfigChanged, join, |it| repeat_of_write(it.session.as_ref()));
controller_request!(LeaveRequest => ConfigChanged, leave, |it| repeat_of_write(it.session.as_ref()));
controller_request!(MoveRequest => ConfigChanged, r#move, |it| repeat_of_write(it.session.as_ref()));
controller_request!(ForgetRequest => ForgetResponse, forget, |it| repeat_of_write(it.session.as_ref()));
controller_request!(RetireRequest => RetireResponse, retire, |it| repeat_of_write(it.session.as_ref()));
controller_request!(ReportRequest => ReportResponse, report, |_| Repeat::Freely);
controller_request!(CutRequest => CutResponse, cut, |_| Repeat::Freely);
controller_request!(OpenSessionRequest => OpenSessionResponse, open_session, |_| Repeat::Freely);
