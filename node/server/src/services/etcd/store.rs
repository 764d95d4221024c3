//! The keyspaces as services use them: find, read and write one by its name.
//!
//! - [`Keyspaces::read`] finds the keyspace in the same state that it reads, so no cache can mislead it.
//! - [`Keyspaces::write`] needs the keyspace's id before the log. It remembers ids, and looks a name up again when the keyspace with
//!   the id is gone. A write whose outcome isn't known is never proposed again.
//!
//! All of it works at the leader of the group that owns the keyspace's shard; reads for clients ([`Freshness::ReadIndex`],
//! [`Freshness::Serializable`]) also at the group's other nodes.
//! Other nodes get [`Failure::Node`] with a refusal that [`serve`](super::serve) follows.

use std::num::NonZeroU64;
use std::sync::Arc;

use api::etcd::etcdserverpb::ResponseHeader;
use api::v1::ErrorDetail;
use keyspace::{
    Action, Answer, Limits, Op, Operation, Outcome, Place, Record, Refusal, Txn, Write,
};
use raft::StoreError;
use replica::{PairReader, Request};
use shardkv::{GroupKind, KvError, encode_keyspace_operation, read_keyspaces};
use types::{ConfigNum, ShardId, shard_of};

use super::credentials::Credentials;
use super::known::Known;
use super::status::Failure;
use crate::admission::Admission;
use crate::convert::kv;
use crate::forward::no_config;
use crate::keyspaces::budgets::{Held, ProposalShare};
use crate::machine::{MachineRequest, MachineResult};
use crate::reads::{ReadKind, Readers};
use crate::replica_handle::ReplicaHandle;
use crate::routing::Routing;

/// The bounds of reads of single keys and of records. Clients wait for their turn up to a number that no burst of theirs should reach.
pub(crate) const READ_KIND: ReadKind = ReadKind {
    what: "reads of keyspaces",
    max_running: 2,
    max_admitted: 16 << 10,
};

/// The bounds of ranges.
pub(crate) const RANGE_KIND: ReadKind = ReadKind {
    what: "ranges of keyspaces",
    max_running: 4,
    max_admitted: 16 << 10,
};

/// The bounds of reads of whole keyspaces.
pub(crate) const LONG_READ_KIND: ReadKind = ReadKind {
    what: "hashes of keyspaces",
    max_running: 1,
    max_admitted: 8,
};

/// The keyspaces of this node's group.
pub(crate) struct Keyspaces {
    pub(crate) replica: Arc<ReplicaHandle>,
    pub(crate) routing: Arc<Routing>,
    /// For reads of single keys and of records.
    pub(crate) readers: Readers,
    pub(crate) range_readers: Readers,
    /// For reads that take as long as the keyspace is large.
    pub(crate) long_readers: Readers,
    pub(crate) known: Known,
    pub(crate) admission: Arc<Admission>,
    /// The limits that are stamped into each operation.
    pub(crate) limits: Limits,
}

/// A keyspace in one state.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) place: Place,
    pub(crate) record: Record,
}

/// The identity of a keyspace, which stays while it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) place: Place,
    pub(crate) cluster_id: u64,
}

/// The size of a read. Each has reader threads and shares of its own, so that no look-up waits for ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// A keyspace's record, a single key, or the like.
    Single,
    /// As much as a range or a list may have.
    Many,
}

/// The state that a read wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freshness {
    /// All that was acknowledged before, at the leader.
    Linearizable,
    /// All that was acknowledged before, at any replica. A follower asks its leader for the read index.
    ReadIndex,
    /// The state of any replica, which may lag.
    Serializable,
}

impl Found {
    pub(crate) fn identity(&self) -> Identity {
        Identity {
            place: self.place,
            cluster_id: self.record.cluster_id(),
        }
    }
}

impl Keyspaces {
    /// Returns the number of shards.
    pub(crate) fn shards(&self) -> Result<u32, ErrorDetail> {
        let shards = match self.routing.kind() {
            GroupKind::Standalone => self.replica.view().genesis.map(|genesis| genesis.shards),
            GroupKind::Shards | GroupKind::Controller => {
                let known = self.routing.configs().known();
                known.map(|known| known.config.shards())
            }
        };
        shards.ok_or_else(no_config)
    }

    /// Returns the shard of a keyspace.
    pub(crate) fn shard(&self, name: &str) -> Result<ShardId, ErrorDetail> {
        let shards = self.shards()?;
        // The braces make the name the part of the key that is hashed.
        Ok(shard_of(format!("{{{name}}}").as_bytes(), shards))
    }

    /// Calls `read` with a keyspace and the state that it was found in, on a reader thread. The read looks at a
    /// [single](Extent::Single) thing.
    pub(crate) async fn read<T, F>(
        &self,
        name: &str,
        freshness: Freshness,
        read: F,
    ) -> Result<(Found, T), Failure>
    where
        T: Send + 'static,
        F: FnOnce(&dyn PairReader, &Found) -> Result<Result<T, Refusal>, StoreError>
            + Clone
            + Send
            + 'static,
    {
        self.read_extent(Extent::Single, name, freshness, read)
            .await
    }

    /// As [`Keyspaces::read`], for a read of this size.
    pub(crate) async fn read_extent<T, F>(
        &self,
        extent: Extent,
        name: &str,
        freshness: Freshness,
        read: F,
    ) -> Result<(Found, T), Failure>
    where
        T: Send + 'static,
        F: FnOnce(&dyn PairReader, &Found) -> Result<Result<T, Refusal>, StoreError>
            + Clone
            + Send
            + 'static,
    {
        if freshness == Freshness::Serializable {
            match self.read_here(extent, name, read.clone()).await {
                // A state that lags may not have it yet, or not its user.
                Err(Failure::Refused(Refusal::KeyspaceNotFound | Refusal::InvalidAuthToken)) => {}
                answer => return answer,
            }
        }
        let at_leader = match freshness {
            Freshness::Serializable => Freshness::Linearizable,
            freshness => freshness,
        };
        self.freshen(name, at_leader).await?;
        self.read_here(extent, name, read).await
    }

    /// Returns when the state here is as fresh as a read of the keyspace wants it. The read may then be
    /// [serializable](Freshness::Serializable).
    pub(crate) async fn freshen(&self, name: &str, freshness: Freshness) -> Result<(), Failure> {
        match freshness {
            Freshness::Linearizable => self.replica.confirm().await?,
            Freshness::ReadIndex => {
                self.check_owned(name)?;
                self.replica.confirm_here().await?;
            }
            Freshness::Serializable => {}
        }
        Ok(())
    }

    /// Refuses a call for a keyspace of another group, as far as this node knows. So a call that another group answers needs no round
    /// among the nodes of this one. What comes from the state is checked there again.
    fn check_owned(&self, name: &str) -> Result<(), ErrorDetail> {
        self.replica.check_running()?;
        if self.routing.kind() != GroupKind::Shards {
            return Ok(());
        }
        match self.routing.ownership().check_served(self.shard(name)?) {
            Err(error @ KvError::WrongGroup { .. }) => Err(kv::kv_error(&error)),
            _ => Ok(()),
        }
    }

    /// As [`Keyspaces::read`], for a read that takes long, from the state of this replica.
    pub(crate) async fn read_long<T, F>(&self, name: &str, read: F) -> Result<(Found, T), Failure>
    where
        T: Send + 'static,
        F: FnOnce(&dyn PairReader, &Found) -> Result<Result<T, Refusal>, StoreError>
            + Send
            + 'static,
    {
        self.read_with(&self.long_readers, name, read).await
    }

    async fn read_here<T, F>(
        &self,
        extent: Extent,
        name: &str,
        read: F,
    ) -> Result<(Found, T), Failure>
    where
        T: Send + 'static,
        F: FnOnce(&dyn PairReader, &Found) -> Result<Result<T, Refusal>, StoreError>
            + Send
            + 'static,
    {
        let shares = &self.admission.keyspaces;
        let (readers, reads) = match extent {
            Extent::Single => (&self.readers, &shares.reads),
            Extent::Many => (&self.range_readers, &shares.range_reads),
        };
        // A keyspace has few reads at the threads. The others wait behind their own.
        let turn = reads.take(name, 1).await?;
        // It goes along, because the thread reads on when the caller is gone.
        let read = move |reader: &dyn PairReader, found: &Found| {
            let answer = read(reader, found);
            drop(turn);
            answer
        };
        self.read_with(readers, name, read).await
    }

    async fn read_with<T, F>(
        &self,
        readers: &Readers,
        name: &str,
        read: F,
    ) -> Result<(Found, T), Failure>
    where
        T: Send + 'static,
        F: FnOnce(&dyn PairReader, &Found) -> Result<Result<T, Refusal>, StoreError>
            + Send
            + 'static,
    {
        self.replica.check_running()?;
        let (shard, name) = (self.shard(name)?, name.to_owned());
        let answer = readers.read(move |state| {
            read_keyspaces(state, shard, |reader| {
                let found = match find(reader, shard, &name)? {
                    Ok(found) => found,
                    Err(refusal) => return Ok(Err(refusal)),
                };
                let answer = read(reader, &found)?;
                Ok(answer.map(|answer| (found, answer)))
            })
        });
        let served = answer.await?.map_err(|error| kv::kv_error(&error))?;
        Ok(served?)
    }

    /// Returns the configuration since which the group serves the shard, as it was published.
    pub(crate) fn served_since(&self, shard: ShardId) -> Option<ConfigNum> {
        self.routing.ownership().served_since(shard)
    }

    /// Returns the identity of a keyspace. It may have been deleted since.
    pub(crate) async fn resolve(&self, name: &str) -> Result<Identity, Failure> {
        match self.known.get(name) {
            Some(identity) => Ok(identity),
            None => self.look_up(name).await,
        }
    }

    async fn look_up(&self, name: &str) -> Result<Identity, Failure> {
        let found = self.read(name, Freshness::Linearizable, |_, _| Ok(Ok(())));
        let identity = found.await?.0.identity();
        self.known.insert(name, identity);
        Ok(identity)
    }

    /// Proposes a write to a keyspace, and returns its answer with the identity of the keyspace. The write keeps what its call holds until it
    /// is answered, also when the caller is gone.
    pub(crate) async fn write(
        &self,
        (name, held, credentials): (&str, &Held, &Credentials),
        write: Write,
    ) -> Result<(Identity, Answer), Failure> {
        let (identity, proposed) = self.identify(name, credentials, write.clone()).await?;
        let shares = &self.admission.keyspaces;
        let share = shares.proposal(name, held.clone()).await?;
        match self.write_to(identity, proposed, share).await {
            Ok(answer) => Ok((identity, answer)),
            // It was deleted, and perhaps created again.
            Err(Failure::Refused(Refusal::KeyspaceNotFound)) => {
                self.known.forget(name);
                let (identity, proposed) = self.identify(name, credentials, write).await?;
                let share = shares.proposal(name, held.clone()).await?;
                let answer = self.write_to(identity, proposed, share).await?;
                Ok((identity, answer))
            }
            Err(failure) => Err(failure),
        }
    }

    /// Returns the identity of a keyspace, and a write to it for the user who calls. Apply refuses it if anything has changed since that
    /// concerns users, and if the keyspace asks for a user and there is none.
    async fn identify(
        &self,
        name: &str,
        credentials: &Credentials,
        write: Write,
    ) -> Result<(Identity, Write), Failure> {
        if credentials.is_none() {
            return Ok((self.resolve(name).await?, write));
        }
        let credentials = credentials.clone();
        let principal =
            move |reader: &dyn PairReader, found: &Found| credentials.principal(reader, found);
        let read = self.read(name, Freshness::Serializable, principal);
        let (found, principal) = read.await?;
        let write = match principal {
            Some(caller) => Write::As {
                caller,
                write: Box::new(write),
            },
            None => write,
        };
        Ok((found.identity(), write))
    }

    /// Proposes a write to the keyspace at a place, whichever it is.
    pub(crate) async fn write_in(&self, place: Place, write: Write) -> Result<Answer, Failure> {
        let outcome = self.propose(place.shard, Action::In(place.id, write));
        Ok(outcome.await?.answer?)
    }

    /// Proposes a write to exactly this keyspace. An id that is given again, after a shard was lost, doesn't lead it to another one.
    async fn write_to(
        &self,
        identity: Identity,
        write: Write,
        share: ProposalShare,
    ) -> Result<Answer, Failure> {
        let Identity { place, cluster_id } = identity;
        let action = Action::In(place.id, write);
        let request = self.request(place.shard, NonZeroU64::new(cluster_id), action)?;
        let result = self.replica.propose(request, share).await?;
        Ok(self.outcome(result)?.answer?)
    }

    /// As [`Keyspaces::write_in`], for the leader's own tasks. They skip the limits of the budget, because one client's load
    /// must not keep the leases of others alive, or leave what was compacted. Each task has few writes on the way.
    pub(crate) async fn write_as_leader(
        &self,
        place: Place,
        write: Write,
    ) -> Result<Answer, Failure> {
        let request = self.request(place.shard, None, Action::In(place.id, write))?;
        let answer = self.replica.submit_step(request)?;
        let result = self.replica.answered(answer, true).await?;
        Ok(self.outcome(result)?.answer?)
    }

    /// Checks an operation, and proposes it with this node's limits. The outcome may be a refusal by the keyspace.
    pub(crate) async fn propose(&self, shard: ShardId, action: Action) -> Result<Outcome, Failure> {
        let request = self.request(shard, None, action)?;
        self.outcome(self.replica.ask(request).await?)
    }

    fn request(
        &self,
        shard: ShardId,
        cluster_id: Option<NonZeroU64>,
        action: Action,
    ) -> Result<MachineRequest, Failure> {
        let frees_space = frees_space(&action);
        let operation = Operation {
            shard,
            cluster_id,
            limits: self.limits,
            action,
        };
        let encoded = encode_keyspace_operation(&operation);
        operation.check(encoded.len())?;
        Ok(Request::Write {
            operation: encoded,
            frees_space,
        })
    }

    fn outcome(&self, result: MachineResult) -> Result<Outcome, Failure> {
        match kv::outcome(result, |node| self.replica.address_or_empty(node))? {
            shardkv::Response::Keyspace(outcome) => Ok(*outcome),
            _ => Err(kv::mismatch().into()),
        }
    }

    /// Returns the header of an answer.
    pub(crate) fn header(&self, cluster_id: u64, revision: i64) -> ResponseHeader {
        let status = self.replica.view().status;
        ResponseHeader {
            cluster_id,
            member_id: self.routing.identity().node().0,
            revision,
            raft_term: status.map_or(0, |status| status.term.0),
        }
    }
}

/// Finds a keyspace by its name.
pub(crate) fn find(
    reader: &dyn PairReader,
    shard: ShardId,
    name: &str,
) -> Result<Result<Found, Refusal>, StoreError> {
    let Some(id) = keyspace::find(reader, shard, name)? else {
        return Ok(Err(Refusal::KeyspaceNotFound));
    };
    let place = Place { shard, id };
    let record = keyspace::record(reader, place)?;
    Ok(record.map(|record| Found { place, record }))
}

/// Returns true for an operation that only frees space, which a node with a nearly full disk accepts.
fn frees_space(action: &Action) -> bool {
    let Action::In(_, write) = action else {
        return false;
    };
    match write.caller().1 {
        Write::Put(_)
        | Write::Grant { .. }
        | Write::SetOptions(_)
        | Write::Auth(_)
        | Write::As { .. } => false,
        Write::Txn(txn) => !puts(txn),
        Write::DeleteRange(_)
        | Write::Compact { .. }
        | Write::Clear
        | Write::Revoke { .. }
        | Write::Expire { .. }
        | Write::Delete => true,
    }
}

fn puts(txn: &Txn) -> bool {
    let mut ops = txn.success.iter().chain(&txn.failure);
    ops.any(|op| match op {
        Op::Put(_) => true,
        Op::Txn(nested) => puts(nested),
        Op::Range(_) | Op::DeleteRange(_) => false,
    })
}

#[cfg(test)]
mod tests {
    use api::v1::error_detail::Kind;
    use futures::FutureExt as _;
    use keyspace::{DeleteRange, KeyspaceId, Put, Range, Span};
    use shardkv::{Ownership, Shard, ShardState};
    use types::{ClusterId, Gid, LogTime, ShardConfig};

    use super::super::testing::TestNode;
    use super::*;
    use crate::machine::Published;

    #[tokio::test]
    async fn a_fresh_read_asks_the_replica_only_for_shards_of_its_group() {
        let node = TestNode::new(GroupKind::Shards);
        let (keyspaces, routing) = (&node.etcd.keyspaces, &node.parts.routing);
        let groups = [(Gid(2), vec!["b:1".to_owned()])];
        let config = ShardConfig::new(ConfigNum(1), groups.into(), [(1, Gid(2))]);
        let config = Arc::new(config.unwrap());
        routing.configs().replace(ClusterId(7), config);
        // The replica doesn't run, so whoever asks it waits.
        let fresh = || keyspaces.freshen("a", Freshness::ReadIndex).now_or_never();
        let Some(Err(Failure::Node(error))) = fresh() else {
            panic!("it waits for the replica");
        };
        assert!(matches!(error.kind, Some(Kind::WrongGroup(_))), "{error:?}");
        let mut owned = Ownership::default();
        let config = ConfigNum(1);
        let shard = Shard::new(ShardState::Serving { config }, LogTime(0));
        owned.shards.insert(ShardId(0), Arc::new(shard));
        routing.update(Published::Ownership(Arc::new(owned)));
        assert!(fresh().is_none());
    }

    #[test]
    fn a_write_that_puts_frees_no_space_however_deep_the_put() {
        let id = KeyspaceId(1);
        let delete = Op::DeleteRange(DeleteRange {
            span: Span::Key("k".into()),
            prev_kv: false,
        });
        let range = Op::Range(Range::new(Span::Key("k".into())));
        let txn = |op: Op| Txn {
            failure: vec![op],
            ..Txn::default()
        };
        let frees = |write| frees_space(&Action::In(id, write));
        assert!(frees(Write::Txn(txn(delete.clone()))));
        assert!(frees(Write::Txn(txn(Op::Txn(txn(delete))))));
        assert!(!frees(Write::Txn(txn(Op::Put(Put::default())))));
        let nested = txn(Op::Txn(txn(Op::Put(Put::default()))));
        assert!(!frees(Write::Txn(nested)));
        assert!(frees(Write::Txn(txn(range))));
        assert!(frees(Write::Compact { revision: 1 }));
        assert!(!frees(Write::Put(Put::default())));
    }
}
