//! Performs the steps of a keyspace's round, and writes its status.

use kube::ResourceExt as _;
use shardkv_client::Keyspace;

use super::conditions::Verdict;
use super::observe::Seen;
use super::plan::{Plan, Step};
use super::{KEYSPACE_FINALIZER, key, notes};
use crate::crd::{ShardKvKeyspace, ShardKvKeyspaceStatus};
use crate::reconcile::context::{Context, ReconcileError};
use crate::reconcile::events::Events;
use crate::reconcile::notes::Note;
use crate::reconcile::objects::{Failure, Objects};
use crate::reconcile::observe::bounded;
use crate::store::{KeyspaceStore, StoreError};

/// Results of the steps.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Applied {
    /// The condition.
    pub(super) verdict: Verdict,
    /// The keyspace, if the store has told of it in this round.
    pub(super) keyspace: Option<Keyspace>,
    /// True if anything was changed.
    pub(super) changed: bool,
    /// True if an observation was out of date.
    pub(super) raced: bool,
    /// True if the resource has lost the operator's finalizer while it was being deleted.
    pub(super) released: bool,
}

/// Performs the steps of one round.
pub(super) struct Writer<'a, S> {
    context: &'a Context<S>,
    objects: Objects<'a>,
    events: Events<'a>,
    seen: &'a Seen,
    /// The resource as last read or written.
    resource: ShardKvKeyspace,
}

impl<'a, S: KeyspaceStore> Writer<'a, S> {
    pub(super) fn new(context: &'a Context<S>, seen: &'a Seen) -> Self {
        let namespace = &seen.names.namespace;
        Self {
            context,
            objects: Objects::new(&context.client, &context.metrics, namespace),
            events: Events::new(&context.client, &context.reporter, &seen.resource),
            seen,
            resource: seen.resource.clone(),
        }
    }

    /// Performs the steps up to the first that fails. Returns an error only if the rest of the round is pointless.
    pub(super) async fn apply(&mut self, plan: Plan) -> Result<Applied, ReconcileError> {
        let mut applied = Applied {
            verdict: plan.verdict,
            keyspace: self.seen.state.found().cloned(),
            changed: false,
            raced: false,
            released: self.seen.state.deleting && !self.seen.state.has_finalizer,
        };
        for step in plan.steps {
            applied.changed = true;
            let Err(failure) = self.perform(step, &mut applied).await else {
                continue;
            };
            match failure {
                Failure::Race => applied.raced = true,
                Failure::Refused(why) => applied.verdict = Verdict::object_refused(&why),
                Failure::Store(StoreError::Refused(why)) => {
                    applied.verdict = Verdict::refused(&why);
                }
                Failure::Store(StoreError::Unreachable(why)) => {
                    applied.verdict = Verdict::unavailable(&why);
                }
                Failure::Kube(error) => return Err(error.into()),
            }
            break;
        }
        Ok(applied)
    }

    async fn perform(&mut self, step: Step, applied: &mut Applied) -> Result<(), Failure> {
        let store = &self.context.store;
        match step {
            Step::AddFinalizer => self.set_finalizer(true).await?,
            Step::RemoveFinalizer => {
                self.set_finalizer(false).await?;
                applied.released = self.seen.state.deleting;
            }
            Step::Create(options) => {
                let created =
                    store.create_keyspace(self.cluster()?, &self.seen.names.keyspace, options);
                let keyspace = bounded(created).await?;
                self.tell(notes::created(&keyspace)).await;
                applied.keyspace = Some(keyspace);
            }
            Step::Adopt(keyspace) => {
                let known = self.seen.state.known_id.as_deref();
                self.tell(notes::adopted(&keyspace, known)).await;
            }
            Step::SetOptions(keyspace, options) => {
                let changed = store.set_keyspace_options(self.cluster()?, &keyspace, options);
                let keyspace = bounded(changed).await?;
                self.tell(notes::configured(&keyspace.name)).await;
                applied.verdict = Verdict::of(&keyspace);
                applied.keyspace = Some(keyspace);
            }
            Step::ApplyService => self.apply_service().await?,
            Step::Delete { keyspace, hurries } => {
                let deleted = store.delete_keyspace(self.cluster()?, &keyspace);
                match bounded(deleted).await {
                    Ok(()) => self.tell(notes::deleted(&keyspace.name)).await,
                    Err(error) if hurries => {
                        self.tell(notes::left(&keyspace.name, &error.to_string()))
                            .await;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            Step::ReportLeft(why) => {
                self.tell(notes::left(&self.seen.names.keyspace, &why))
                    .await;
            }
        }
        Ok(())
    }

    fn cluster(&self) -> Result<&crate::validate::Cluster, Failure> {
        self.seen.cluster.as_ref().ok_or(Failure::Race)
    }

    async fn tell(&self, note: Note) {
        self.events.publish(note).await;
    }

    async fn set_finalizer(&mut self, wanted: bool) -> Result<(), Failure> {
        let mut finalizers = self.resource.finalizers().to_vec();
        finalizers.retain(|it| it != KEYSPACE_FINALIZER);
        finalizers.extend(wanted.then(|| KEYSPACE_FINALIZER.to_owned()));
        let changed = self.objects.set_finalizers(&self.resource, &finalizers);
        self.resource = changed.await?;
        Ok(())
    }

    /// Applies the service, and remembers if that changed nothing.
    async fn apply_service(&self) -> Result<(), Failure> {
        let wanted = self.seen.wanted.clone().ok_or(Failure::Race)?;
        let (object, hash) = (wanted.key(), wanted.hash().to_owned());
        let live = self.seen.live.as_ref();
        let applied = self.objects.apply(wanted, live).await?;
        let version = applied.resource_version();
        let in_vain = live.is_some_and(|live| live.resource_version() == version);
        let fruitless = in_vain.then(|| (hash, version.unwrap_or_default()));
        let (namespace, name) = (&self.seen.names.namespace, key(&self.seen.resource));
        let memory = &self.context.memory;
        memory.set_fruitless(namespace, &name, object, fruitless);
        Ok(())
    }

    /// Writes the status if it differs. Returns true if somebody else has written the resource since.
    pub(super) async fn report(
        &mut self,
        status: &ShardKvKeyspaceStatus,
    ) -> Result<bool, ReconcileError> {
        if self.resource.status.as_ref() == Some(status) {
            return Ok(false);
        }
        match self.objects.set_status(&self.resource, status).await {
            Ok(resource) => self.resource = resource,
            Err(Failure::Race) => return Ok(true),
            Err(Failure::Refused(why)) => return Err(ReconcileError::Refused(why)),
            Err(Failure::Kube(error)) => return Err(error.into()),
            Err(Failure::Store(_)) => {}
        }
        Ok(false)
    }
}
