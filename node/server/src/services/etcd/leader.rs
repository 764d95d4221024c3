//! Streams that need a leader: etcd's clients ask for it by metadata, so that a stream ends when its node is cut off.

use std::time::Duration;

use tokio::time::timeout;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

use super::status::{Failure, finally};
use crate::lifecycle::Lifecycle;

/// The metadata with which a client asks that its stream ends without a leader.
pub(super) const REQUIRE_LEADER_METADATA_KEY: &str = "hasleader";
/// The election timeouts without a leader after which a stream ends.
const PATIENCE: u32 = 3;

/// Returns true if a client asks that its stream ends when there is no leader.
pub(super) fn is_required(metadata: &MetadataMap) -> bool {
    let value = metadata.get(REQUIRE_LEADER_METADATA_KEY);
    value.is_some_and(|value| value.as_encoded_bytes() == b"true")
}

/// Refuses a stream while this node knows no leader.
pub(super) fn check(lifecycle: &Lifecycle) -> Result<(), Failure> {
    if *lifecycle.watch_leader().borrow() {
        return Ok(());
    }
    Err(Failure::Status(Box::new(none())))
}

/// Resolves once this node has known no leader for three election timeouts.
pub(super) async fn lost(lifecycle: &Lifecycle, election_timeout: Duration) -> Status {
    let mut leader = lifecycle.watch_leader();
    loop {
        // The sender lives in the lifecycle.
        let _ = leader.wait_for(|has_leader| !has_leader).await;
        let found = leader.wait_for(|has_leader| *has_leader);
        if timeout(election_timeout * PATIENCE, found).await.is_err() {
            return none();
        }
    }
}

/// Final, because a node that passes the stream on must not take it for a broken connection.
fn none() -> Status {
    finally(Code::Unavailable, "etcdserver: no leader")
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;
    use types::NodeId;

    use super::super::status::is_final;
    use super::*;

    #[test]
    fn a_node_without_a_leader_refuses_in_etcds_words_for_good() {
        let (fail, _) = oneshot::channel();
        let lifecycle = Lifecycle::new(NodeId(1), fail);
        let Err(Failure::Status(status)) = check(&lifecycle) else {
            panic!("it knows no leader");
        };
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(status.message(), "etcdserver: no leader");
        assert!(is_final(&status));
    }
}
