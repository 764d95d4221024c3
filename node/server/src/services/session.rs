//! Opens sessions. A session's id holds its time of birth by the leader's log.

use api::v1::{ErrorDetail, OpenSessionRequest, OpenSessionResponse};
use api::{encode_client_id, errors};
use replica::{Answer, Request};
use types::ClientId;

use crate::births::Births;
use crate::convert::kv;
use crate::random;
use crate::replica_handle::ReplicaHandle;

/// Opens a session if this node leads its group.
pub(crate) async fn open(
    replica: &ReplicaHandle,
    births: &Births,
    asked: OpenSessionRequest,
) -> Result<OpenSessionResponse, ErrorDetail> {
    let at_least = births.least(asked.min_birth);
    let birth = match replica.ask(Request::Birth { at_least }).await? {
        Ok(Answer::Birth(birth)) => birth,
        Ok(_) => return Err(kv::mismatch()),
        Err(refusal) => return Err(kv::refused(&refusal, |node| replica.address_or_empty(node))),
    };
    let Some(genesis) = replica.view().genesis else {
        let why = "this node does not know the group's settings yet";
        return Err(errors::unavailable(why, 100));
    };
    let nonce = random::number().map_err(|error| {
        errors::unavailable(
            format!("the operating system gave no randomness: {error}"),
            1_000,
        )
    })?;
    Ok(OpenSessionResponse {
        client_id: encode_client_id(ClientId { birth, nonce }),
        ttl_ms: genesis.session_ttl_ms,
    })
}
