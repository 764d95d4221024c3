//! Keyspaces: created, listed, changed and deleted.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use api::v1::keyspace_options::AutoCompaction as WireCompaction;
use api::v1::{
    self, CreateKeyspaceRequest, DeleteKeyspaceRequest, GetKeyspaceRequest, ListKeyspacesRequest,
    ListKeyspacesResponse, SetKeyspaceOptionsRequest,
};
use request::{Failure, Rejection, Repeat, SingleCall};
use tokio::time::{Instant, sleep, timeout_at};
use tonic::Status;
use types::{Gid, ShardId, hash_key};

use crate::Error;
use crate::clock::jitter;
use crate::failure::{self, mismatch};
use crate::route::{KeyspacesService, Router, Slot};
use crate::unary::{failed, policy};

/// The keyspaces of a cluster: named stores that etcd's clients use. Made by [`crate::Client::keyspaces`]. Cheap to clone.
///
/// Calls are retried until the client's deadline. Options and deletions name the keyspace by its random cluster id, so a retry never
/// hits a later keyspace with the same name. Options whose outcome is unknown are not set again ([`Error::OutcomeUnknown`]), because another client
/// may have set others since. A creation that is retried knows what it has made before. If another client has deleted that
/// meanwhile, a new keyspace is created, with a cluster id of its own.
///
/// ```no_run
/// use shardkv_client::{Client, KeyspaceOptions};
///
/// # async fn example(client: Client) -> Result<(), shardkv_client::Error> {
/// let keyspaces = client.keyspaces();
/// let made = keyspaces.create("orders", KeyspaceOptions::default()).await?;
/// assert_eq!(keyspaces.get("orders").await?, made);
/// keyspaces.delete(&made).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Keyspaces {
    router: Router,
    timeout: Duration,
}

impl std::fmt::Debug for Keyspaces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keyspaces").finish_non_exhaustive()
    }
}

/// A keyspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyspace {
    /// The name.
    pub name: String,
    /// The cluster id of its answers, which no other keyspace has.
    pub cluster_id: u64,
    /// The options.
    pub options: KeyspaceOptions,
    /// The newest revision; 1 if nothing was ever written.
    pub revision: i64,
    /// The compacted revision, if there was a compaction.
    pub compacted: Option<i64>,
    /// The bytes that count against the quota.
    pub bytes: u64,
    /// True if a write was refused because of the quota, and there is no room for it yet.
    pub no_space: bool,
    /// True if its clients must log in as users (etcd's Auth).
    pub auth_enabled: bool,
    /// The shard in which it lives.
    pub shard: ShardId,
    /// The group that owns the shard.
    pub gid: Gid,
}

/// The options of a keyspace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyspaceOptions {
    /// The most bytes of keys, values and versions that are not compacted; `None` for the default of 2 GiB.
    pub quota_bytes: Option<u64>,
    /// The automatic compaction.
    pub auto_compaction: AutoCompaction,
}

/// The way in which a keyspace is compacted without a request. Nodes refuse all but [`AutoCompaction::None`] yet
/// ([`Error::BadRequest`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AutoCompaction {
    /// Not at all.
    #[default]
    None,
    /// Keeps the revisions of this time, in whole seconds.
    Retention(Duration),
    /// Keeps this many revisions.
    Revisions(u64),
}

/// The pause before a creation whose outcome is unknown is made again.
const CREATE_PAUSE: Duration = Duration::from_millis(50);

/// A page of keyspaces, and the place of the next page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyspacePage {
    /// The keyspaces.
    pub keyspaces: Vec<Keyspace>,
    /// The place of the next page; `None` if this is the last.
    pub next: Option<(ShardId, u64)>,
}

/// A call of the service `Keyspaces`.
enum Call {
    Create(CreateKeyspaceRequest),
    Get(GetKeyspaceRequest),
    List(ListKeyspacesRequest),
    SetOptions(SetKeyspaceOptionsRequest),
    Delete(DeleteKeyspaceRequest),
}

/// The answer to a [`Call`].
enum Answer {
    Keyspace(v1::Keyspace),
    Page(ListKeyspacesResponse),
    Deleted,
}

impl Call {
    /// Returns the right to make the call again as it is: its cluster id names a deletion. A creation needs a new cluster id each time,
    /// because another client may have deleted what it has made. Options made again would replace those that another client has set since.
    fn repeat(&self) -> Repeat {
        match self {
            Self::Get(_) | Self::List(_) => Repeat::Freely,
            Self::Delete(_) => Repeat::ByName,
            Self::Create(_) | Self::SetOptions(_) => Repeat::Never,
        }
    }

    /// Waits for the owner of the call's shard.
    async fn owner(&self, router: &Router) -> Gid {
        let name = match self {
            Self::Create(it) => &it.name,
            Self::Get(it) => &it.name,
            Self::SetOptions(it) => &it.name,
            Self::Delete(it) => &it.name,
            Self::List(it) => return router.owner_of_shard(ShardId(it.shard)).await,
        };
        router.owner(hash_key(name.as_bytes())).await
    }

    async fn send(&self, mut service: KeyspacesService) -> Result<Answer, Status> {
        let answer = match self {
            Self::Create(it) => service.create(it.clone()).await?,
            Self::Get(it) => service.get(it.clone()).await?,
            Self::SetOptions(it) => service.set_options(it.clone()).await?,
            Self::List(it) => return Ok(Answer::Page(service.list(*it).await?.into_inner())),
            Self::Delete(it) => {
                service.delete(it.clone()).await?;
                return Ok(Answer::Deleted);
            }
        };
        Ok(Answer::Keyspace(answer.into_inner()))
    }
}

impl Keyspaces {
    pub(crate) fn new(router: Router, timeout: Duration) -> Self {
        Self { router, timeout }
    }

    /// Creates a keyspace. [`Error::AlreadyExists`] if there is one with the name.
    pub async fn create(&self, name: &str, options: KeyspaceOptions) -> Result<Keyspace, Error> {
        let deadline = Instant::now() + self.timeout;
        let mut drawn = Vec::new();
        let failure = loop {
            let cluster_id = random();
            drawn.push(cluster_id);
            let call = Call::Create(CreateKeyspaceRequest {
                name: name.to_owned(),
                options: Some(options_to_wire(options)),
                cluster_id,
            });
            let failure = match self.try_until(&call, deadline).await {
                Ok(Answer::Keyspace(made)) => return Ok(keyspace(made)),
                Ok(_) => return Err(mismatch(true)),
                Err(failure) => failure,
            };
            match After::of(&failure, drawn.len() > 1) {
                After::Repeat if Instant::now() < deadline => sleep(CREATE_PAUSE).await,
                After::Look => {
                    let name = name.to_owned();
                    let look = Call::Get(GetKeyspaceRequest { name });
                    match self.try_until(&look, deadline).await {
                        Ok(Answer::Keyspace(found)) if drawn.contains(&found.cluster_id) => {
                            return Ok(keyspace(found));
                        }
                        _ => break failure,
                    }
                }
                After::Repeat | After::Fail => break failure,
            }
        };
        let failure = in_doubt(failure, drawn.len() > 1);
        Err(self.error(failure))
    }

    /// Returns the keyspace with a name. [`Error::NotFound`] if there is none.
    pub async fn get(&self, name: &str) -> Result<Keyspace, Error> {
        let name = name.to_owned();
        self.keyspace(Call::Get(GetKeyspaceRequest { name })).await
    }

    /// Returns a page of keyspaces, from the place that the page before named, or the first page. Pages are in the order of shards, and
    /// no page is of the same moment as another.
    pub async fn page(&self, place: Option<(ShardId, u64)>) -> Result<KeyspacePage, Error> {
        let (shard, after) = place.unwrap_or_default();
        let request = ListKeyspacesRequest {
            shard: shard.0,
            after,
            limit: 0,
        };
        let Answer::Page(page) = self.call(Call::List(request)).await? else {
            return Err(mismatch(false));
        };
        let next = (ShardId(page.next_shard), page.next_after);
        if !page.last && next <= (shard, after) {
            return Err(Error::Protocol {
                message: "the next page of keyspaces isn't behind the last".to_owned(),
                maybe_applied: false,
            });
        }
        Ok(KeyspacePage {
            keyspaces: page.keyspaces.into_iter().map(keyspace).collect(),
            next: (!page.last).then_some(next),
        })
    }

    /// Returns all keyspaces in the order of their names.
    pub async fn list(&self) -> Result<Vec<Keyspace>, Error> {
        let mut all = Vec::new();
        let mut place = None;
        loop {
            let page = self.page(place).await?;
            all.extend(page.keyspaces);
            place = page.next;
            if place.is_none() {
                break;
            }
        }
        all.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(all)
    }

    /// Replaces the options of a keyspace. [`Error::NotFound`] if it was deleted, also if there is another with its name by now.
    /// [`Error::OutcomeUnknown`] if an attempt got no answer: look before you try again.
    pub async fn set_options(
        &self,
        keyspace: &Keyspace,
        options: KeyspaceOptions,
    ) -> Result<Keyspace, Error> {
        self.keyspace(Call::SetOptions(SetKeyspaceOptionsRequest {
            name: keyspace.name.clone(),
            options: Some(options_to_wire(options)),
            cluster_id: keyspace.cluster_id,
        }))
        .await
    }

    /// Deletes a keyspace with all that is in it. Succeeds if it was deleted already. Another keyspace that got its name stays.
    pub async fn delete(&self, keyspace: &Keyspace) -> Result<(), Error> {
        let request = DeleteKeyspaceRequest {
            name: keyspace.name.clone(),
            cluster_id: keyspace.cluster_id,
        };
        match self.try_call(&Call::Delete(request)).await {
            // If it isn't found, an earlier attempt or another client has deleted it.
            Err(Failure::Rejected {
                rejection: Rejection::NotFound { .. },
                ..
            })
            | Ok(Answer::Deleted) => Ok(()),
            Err(failure) => Err(self.error(failure)),
            Ok(_) => Err(mismatch(true)),
        }
    }

    async fn keyspace(&self, call: Call) -> Result<Keyspace, Error> {
        let changes = call.repeat() != Repeat::Freely;
        match self.call(call).await? {
            Answer::Keyspace(it) => Ok(keyspace(it)),
            _ => Err(mismatch(changes)),
        }
    }

    async fn call(&self, call: Call) -> Result<Answer, Error> {
        let answer = self.try_call(&call).await;
        answer.map_err(|failure| self.error(failure))
    }

    fn error(&self, failure: Failure) -> Error {
        self.router.explain(failure::error(failure, self.timeout))
    }

    async fn try_call(&self, call: &Call) -> Result<Answer, Failure> {
        self.try_until(call, Instant::now() + self.timeout).await
    }

    async fn try_until(&self, call: &Call, deadline: Instant) -> Result<Answer, Failure> {
        let policy = policy(self.router.options());
        let mut attempts = SingleCall::new(call.repeat(), policy, jitter());
        match timeout_at(deadline, self.run(call, &mut attempts)).await {
            Ok(result) => result,
            Err(_) => Err(attempts.handle_deadline()),
        }
    }

    async fn run(&self, call: &Call, attempts: &mut SingleCall) -> Result<Answer, Failure> {
        let (router, slot) = (&self.router, Slot::Control);
        loop {
            let gid = call.owner(router).await;
            let outage = attempts.outage(router.clock().now());
            let (leader, channel) = match router.connection(gid, slot, outage).await {
                Ok(connected) => connected,
                Err(error) => {
                    let now = router.clock().now();
                    let pause = attempts.handle_unreachable(now, error.to_string())?;
                    sleep(pause).await;
                    continue;
                }
            };
            attempts.handle_sent();
            let sending = call.send(router.keyspaces(&leader, channel));
            match router.unless_superseded(&leader, sending).await {
                Ok(answer) => return Ok(answer),
                Err(status) => failed(router, attempts, &leader, slot, &status).await?,
            }
        }
    }
}

/// The step after an attempt of a creation that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    /// Create it under another cluster id.
    Repeat,
    /// Look whether an earlier attempt has made what is there.
    Look,
    Fail,
}

impl After {
    /// Returns the step after a failure. `doubt` is true if an earlier attempt may have made the keyspace.
    fn of(failure: &Failure, doubt: bool) -> Self {
        match failure {
            Failure::Unrepeatable => Self::Repeat,
            Failure::Rejected {
                rejection: Rejection::AlreadyExists { .. },
                ..
            } if doubt => Self::Look,
            _ => Self::Fail,
        }
    }
}

/// Returns the failure of a creation. `earlier` is true if an attempt before it is in doubt.
fn in_doubt(failure: Failure, earlier: bool) -> Failure {
    match failure {
        Failure::Rejected { rejection, doubt } => Failure::Rejected {
            rejection,
            doubt: doubt || earlier,
        },
        Failure::TimedOut { doubt, last } => Failure::TimedOut {
            doubt: doubt || earlier,
            last,
        },
        // The deadline has passed.
        Failure::Unrepeatable | Failure::SessionExpired => Failure::TimedOut {
            doubt: true,
            last: None,
        },
    }
}

/// Returns a random number that is not 0.
fn random() -> u64 {
    RandomState::new().hash_one(0).max(1)
}

fn options_to_wire(options: KeyspaceOptions) -> v1::KeyspaceOptions {
    v1::KeyspaceOptions {
        quota_bytes: options.quota_bytes.unwrap_or(0),
        auto_compaction: match options.auto_compaction {
            AutoCompaction::None => None,
            AutoCompaction::Retention(time) => {
                Some(WireCompaction::RetentionSeconds(time.as_secs()))
            }
            AutoCompaction::Revisions(kept) => Some(WireCompaction::RetainedRevisions(kept)),
        },
    }
}

fn options_from_wire(options: v1::KeyspaceOptions) -> KeyspaceOptions {
    KeyspaceOptions {
        quota_bytes: (options.quota_bytes > 0).then_some(options.quota_bytes),
        auto_compaction: match options.auto_compaction {
            None => AutoCompaction::None,
            Some(WireCompaction::RetentionSeconds(secs)) => {
                AutoCompaction::Retention(Duration::from_secs(secs))
            }
            Some(WireCompaction::RetainedRevisions(kept)) => AutoCompaction::Revisions(kept),
        },
    }
}

fn keyspace(it: v1::Keyspace) -> Keyspace {
    Keyspace {
        name: it.name,
        cluster_id: it.cluster_id,
        options: options_from_wire(it.options.unwrap_or_default()),
        revision: it.revision,
        compacted: (it.compacted_revision >= 0).then_some(it.compacted_revision),
        bytes: it.bytes,
        no_space: it.no_space,
        auth_enabled: it.auth_enabled,
        shard: ShardId(it.shard),
        gid: Gid(it.gid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_creation_in_doubt_is_made_again_and_then_knows_what_it_has_made() {
        let rejected = |rejection| Failure::Rejected {
            rejection,
            doubt: false,
        };
        let exists = rejected(Rejection::AlreadyExists {
            what: "keyspace a".to_owned(),
            message: String::new(),
        });
        let full = rejected(Rejection::DiskFull {
            message: String::new(),
        });
        let late = Failure::TimedOut {
            doubt: false,
            last: None,
        };
        let table = [
            (Failure::Unrepeatable, false, After::Repeat),
            (Failure::Unrepeatable, true, After::Repeat),
            (exists.clone(), false, After::Fail),
            (exists, true, After::Look),
            (full, true, After::Fail),
            (late, true, After::Fail),
        ];
        for (failure, doubt, expected) in table {
            assert_eq!(After::of(&failure, doubt), expected, "{failure:?}");
            let sure = failure != Failure::Unrepeatable && !doubt;
            let told = in_doubt(failure, doubt);
            assert_eq!(told.maybe_applied(), !sure, "{told:?}");
        }
    }

    #[test]
    fn in_doubt_only_a_deletion_is_repeated() {
        let create = Call::Create(CreateKeyspaceRequest::default());
        assert_eq!(create.repeat(), Repeat::Never);
        let set = Call::SetOptions(SetKeyspaceOptionsRequest::default());
        assert_eq!(set.repeat(), Repeat::Never);
        let delete = Call::Delete(DeleteKeyspaceRequest::default());
        assert_eq!(delete.repeat(), Repeat::ByName);
    }
}
