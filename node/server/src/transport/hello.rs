//! The first message between two nodes, and the checks that end the connection.

use api::errors;
use api::v1::{ErrorDetail, Hello, WrongCluster, error_detail::Kind};
use replica::are_strangers;
use types::{ClusterId, Gid, NodeId};

use crate::peers::Peers;

/// The version of the protocol between peers.
const VERSION: u32 = 1;

/// Returns this node's hello for the node that is expected at an address. `to` is zero for any node.
pub(crate) fn hello(peers: &Peers, to: NodeId) -> Hello {
    Hello {
        version: VERSION,
        cluster_id: peers.identity().cluster().map_or(0, |cluster| cluster.0),
        gid: peers.identity().gid().0,
        from: peers.node().0,
        to: to.0,
        cluster_name: peers.identity().name().to_owned(),
        address: peers.address().to_owned(),
    }
}

/// The identity of the node that checks a hello.
pub(crate) struct OwnIdentity<'a> {
    pub(crate) node: NodeId,
    pub(crate) gid: Gid,
    pub(crate) name: &'a str,
    /// The cluster; `None` while this node waits to join a group.
    pub(crate) cluster: Option<ClusterId>,
}

impl<'a> OwnIdentity<'a> {
    pub(crate) fn of(peers: &'a Peers) -> Self {
        Self {
            node: peers.node(),
            gid: peers.identity().gid(),
            name: peers.identity().name(),
            cluster: peers.identity().cluster(),
        }
    }

    /// Refuses a name or group that isn't this node's.
    pub(crate) fn check_group(&self, name: &str, gid: u64) -> Result<(), ErrorDetail> {
        if name == self.name && gid == self.gid.0 {
            return Ok(());
        }
        let theirs = format!("{name} group {gid}");
        let ours = format!("{} group {}", self.name, self.gid.0);
        Err(errors::wrong_cluster(&theirs, &ours))
    }

    /// Refuses a node of another cluster or group, and a node that expects another node here.
    pub(crate) fn check(&self, hello: &Hello) -> Result<(), ErrorDetail> {
        if hello.version != VERSION {
            let reason = format!(
                "this node supports protocol version {VERSION}, not {}",
                hello.version
            );
            return Err(errors::bad_request("hello.version", reason));
        }
        if hello.from == 0 || hello.from == self.node.0 {
            let reason = "it must be the id of another node";
            return Err(errors::bad_request("hello.from", reason));
        }
        self.check_group(&hello.cluster_name, hello.gid)?;
        let theirs = (hello.cluster_id != 0).then_some(ClusterId(hello.cluster_id));
        if let Some(cluster) = self.cluster
            && are_strangers(self.cluster, theirs)
        {
            let theirs = format!("{} incarnation {}", self.name, ClusterId(hello.cluster_id));
            let ours = format!("{} incarnation {cluster}", self.name);
            return Err(errors::wrong_cluster(&theirs, &ours));
        }
        if hello.to != 0 && hello.to != self.node.0 {
            return Err(another_node(NodeId(hello.to), self.node));
        }
        Ok(())
    }
}

fn another_node(expected: NodeId, actual: NodeId) -> ErrorDetail {
    ErrorDetail {
        message: format!(
            "this address belongs to node {actual}, not to node {expected}: that node's disk was replaced, or its address was given to another node"
        ),
        kind: Some(Kind::WrongCluster(WrongCluster {
            expected: expected.to_string(),
            actual: actual.to_string(),
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Hello {
        Hello {
            version: VERSION,
            cluster_id: 50,
            gid: 1,
            from: 2,
            to: 1,
            cluster_name: "prod".to_owned(),
            address: "b:1".to_owned(),
        }
    }

    fn check(cluster: Option<u64>, change: impl FnOnce(&mut Hello)) -> Option<Kind> {
        let listener = OwnIdentity {
            node: NodeId(1),
            gid: Gid(1),
            name: "prod",
            cluster: cluster.map(ClusterId),
        };
        let mut hello = good();
        change(&mut hello);
        listener.check(&hello).err().and_then(|detail| detail.kind)
    }

    #[test]
    fn who_belongs_here_is_welcome() {
        assert_eq!(check(Some(50), |_| ()), None);
        assert_eq!(check(Some(50), |h| h.to = 0), None, "a hello for any node");
        assert_eq!(check(Some(50), |h| h.cluster_id = 0), None, "a joiner");
        assert_eq!(check(None, |_| ()), None, "a joiner hears its group");
    }

    #[test]
    fn strangers_are_refused_with_a_typed_error() {
        let wrong = |kind| matches!(kind, Some(Kind::WrongCluster(_)));
        assert!(wrong(check(Some(50), |h| h.cluster_id = 51)));
        assert!(wrong(check(Some(50), |h| h.gid = 2)));
        assert!(wrong(
            check(Some(50), |h| h.cluster_name = "test".to_owned())
        ));
        assert!(wrong(check(Some(50), |h| h.to = 3)));
        let bad = |kind| matches!(kind, Some(Kind::BadRequest(_)));
        assert!(bad(check(Some(50), |h| h.version = 2)));
        assert!(bad(check(Some(50), |h| h.from = 0)));
        assert!(bad(check(Some(50), |h| h.from = 1)));
    }
}
