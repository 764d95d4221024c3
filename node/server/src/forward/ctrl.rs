//! Requests for the configuration centre on their way to the controllers' leader.

use api::v1::shardctrler_client::ShardctrlerClient;
use api::v1::{
    ConfigChanged, ErrorDetail, JoinRequest, LeaveRequest, MoveRequest, OpenSessionRequest,
    OpenSessionResponse, QueryRequest, QueryResponse, ReportRequest, ReportResponse,
};
use shardctrler::GroupKind;
use tonic::Status;
use tonic::transport::Channel;
use types::Gid;

use super::{Destination, Repeat, call, once, own_group, reach};
use crate::hub::Hub;

/// What may be asked of the controllers, and is answered with [`Ask::Answer`].
pub(crate) trait Ask: Clone + Send {
    type Answer;

    /// Whether it may be asked again.
    fn repeat(&self) -> Repeat;

    /// Asks.
    fn ask(
        self,
        client: ShardctrlerClient<Channel>,
    ) -> impl Future<Output = Result<Self::Answer, Status>> + Send;
}

/// Has the controllers' leader answer.
pub(crate) async fn controllers<A: Ask>(hub: &Hub, ask: A) -> Result<A::Answer, ErrorDetail> {
    let repeat = ask.repeat();
    call(
        hub,
        || Ok(centre(hub)),
        repeat,
        |channel, _| ask.clone().ask(client(channel)),
    )
    .await
}

/// The same for what this node asks by itself: clients don't share their bounds with it.
pub(crate) async fn controllers_at_once<A: Ask>(
    hub: &Hub,
    ask: A,
) -> Result<A::Answer, ErrorDetail> {
    let repeat = ask.repeat();
    reach(
        hub,
        || Ok(centre(hub)),
        repeat,
        |channel, _| ask.clone().ask(client(channel)),
    )
    .await
}

fn client(channel: Channel) -> ShardctrlerClient<Channel> {
    ShardctrlerClient::new(channel).max_decoding_message_size(usize::MAX)
}

fn centre(hub: &Hub) -> Destination {
    if hub.kind() == GroupKind::Controller {
        return own_group(hub);
    }
    Destination {
        gid: Gid::NONE,
        addresses: hub.options.controllers.clone(),
    }
}

macro_rules! ask {
    ($request:ty => $answer:ty, $method:ident, $repeat:expr) => {
        impl Ask for $request {
            type Answer = $answer;

            fn repeat(&self) -> Repeat {
                let repeat: fn(&Self) -> Repeat = $repeat;
                repeat(self)
            }

            async fn ask(
                self,
                mut client: ShardctrlerClient<Channel>,
            ) -> Result<Self::Answer, Status> {
                Ok(client.$method(once(self)).await?.into_inner())
            }
        }
    };
}

ask!(QueryRequest => QueryResponse, query, |_| Repeat::Freely);
ask!(JoinRequest => ConfigChanged, join, |it| Repeat::of_write(it.session.as_ref()));
ask!(LeaveRequest => ConfigChanged, leave, |it| Repeat::of_write(it.session.as_ref()));
ask!(MoveRequest => ConfigChanged, r#move, |it| Repeat::of_write(it.session.as_ref()));
ask!(ReportRequest => ReportResponse, report, |_| Repeat::Freely);
ask!(OpenSessionRequest => OpenSessionResponse, open_session, |_| Repeat::Freely);
