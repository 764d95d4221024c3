//! Fake stores: the real state machine of the controllers, with simulated groups that move shards in [`Model::tick`].
//!
//! Each shard's data belong to one group. A shard whose target isn't its owner is cut while both groups run, as the target does
//! once its copy has caught up. Then the data move to the new owner while both groups run, and only then do the groups report that
//! they have settled. So a group that is deleted too early still has data, and the test detects it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use raft::{EntryId, Index, Term};
use replica::memory::MemoryState;
use replica::{Applied, Applying, StateMachine, StateStore, Transaction};
use shardctrler::{Change as Request, Command, Genesis, GroupKind, Response, Shardctrler};
use shardkv_operator::build::{Component, names};
use shardkv_operator::plan;
use shardkv_operator::store::{Change, Health, Store, StoreError, View};
use shardkv_operator::validate::Cluster;
use types::{Cut, Gid, Incarnation, JournalId, LogTime, MAX_CUTS, ShardConfig, ShardId};

use crate::faults::FaultInjector;
use crate::keyspaces::Keyspaces;

/// The store of one cluster.
pub(crate) struct Model {
    machine: Shardctrler,
    state: MemoryState,
    /// The group that has each shard's data; 0 for a shard without data.
    holders: Vec<u64>,
    /// The groups that were forgotten: their volumes may have the only copy of their data.
    forgotten: BTreeSet<u64>,
    /// The parts whose nodes run.
    up: BTreeSet<Component>,
    /// No request is answered.
    pub(crate) unreachable: bool,
    /// No shard moves.
    pub(crate) frozen: bool,
    /// The reason why the controllers refuse that groups join; empty if they don't.
    pub(crate) unproven: String,
    /// Problems that nodes report.
    pub(crate) troubles: BTreeMap<Component, BTreeMap<String, String>>,
    /// The keyspaces.
    pub(crate) keyspaces: Keyspaces,
}

impl Model {
    fn new(shards: u32) -> Self {
        let genesis = Genesis {
            kind: GroupKind::Controller,
            shards,
            session_ttl_ms: 60_000,
            max_sessions_per_shard: 100,
            max_results_per_session: 100,
        };
        let mut state = MemoryState::new();
        state
            .commit(genesis.to_batch(), Applied::default())
            .unwrap();
        let mut machine = Shardctrler::new();
        machine.reload(&state).unwrap();
        Self {
            machine,
            state,
            holders: vec![0; shards as usize],
            forgotten: BTreeSet::new(),
            up: BTreeSet::new(),
            unreachable: false,
            frozen: false,
            unproven: String::new(),
            troubles: BTreeMap::new(),
            keyspaces: Keyspaces::default(),
        }
    }

    fn apply(&mut self, change: Request) -> Result<Change, StoreError> {
        let mut applied = self.state.applied();
        let index = Index(applied.last.index.0 + 1);
        let at = Applying {
            awaited: true,
            entry: EntryId::new(Term(1), index),
            feature_level: 0,
            time: LogTime(1_000_000),
            max_value_bytes: 0,
        };
        let operation: Bytes = Command {
            session: None,
            change,
        }
        .encode();
        let mut transaction = Transaction::new(&self.state);
        let response = self.machine.apply(at, operation, &mut transaction).unwrap();
        self.machine.finish_batch(&mut transaction).unwrap();
        let batch = transaction.into_batch();
        applied.last = at.entry;
        applied.time = at.time;
        self.state.commit(batch, applied).unwrap();
        match response {
            Response::Changed {
                num, moved_shards, ..
            } => Ok(Change {
                num: num.0,
                moved: moved_shards,
            }),
            Response::Reported | Response::Cut { .. } | Response::Retired => Ok(Change::default()),
            Response::Forgotten { num, .. } => Ok(Change {
                num: num.0,
                moved: 0,
            }),
            Response::Refused(error) => Err(StoreError::Refused(error.to_string())),
            other => panic!("{other:?}"),
        }
    }

    /// Forgets a group as a person does whose group has lost its disks. Its data are nowhere else, and stay on its volumes.
    pub(crate) fn forget(&mut self, gid: u64) {
        let forget = Request::Forget {
            gids: [Gid(gid)].into(),
            accept_data_loss: true,
        };
        self.apply(forget).unwrap();
        for holder in self.holders.iter_mut().filter(|holder| **holder == gid) {
            *holder = 0;
        }
        self.forgotten.insert(gid);
    }

    /// Advances time while the nodes of these parts run. Returns true if anything changed.
    pub(crate) fn tick(&mut self, up: BTreeSet<Component>) -> bool {
        let changed = self.up != up;
        self.up = up;
        let controllers = self.up.contains(&Component::Controller);
        if self.frozen || self.unreachable || !controllers {
            return changed;
        }
        // One step a tick, so that the operator sees what is between: cuts, then data, then reports.
        changed || self.cut() || self.hand_over() || self.report()
    }

    /// Makes targets the owners of the shards that their owners serve, while both groups run.
    fn cut(&mut self) -> bool {
        let latest = self.machine.latest();
        let shards = (0..).map(ShardId).zip(&self.holders);
        let served = shards.filter(|(shard, holder)| latest.owner(*shard).0 == **holder);
        let cuts = served.filter_map(|(shard, _)| Some((shard, cut(&latest, shard)?)));
        let up = |gid: Gid| self.up.contains(&Component::Group(gid.0));
        let cuts = cuts.filter(|(_, cut)| up(cut.owner) && up(cut.target));
        let cuts: BTreeMap<ShardId, Cut> = cuts.take(MAX_CUTS).collect();
        if cuts.is_empty() {
            return false;
        }
        let num = self.num();
        self.apply(Request::Cut { cuts }).unwrap();
        assert!(self.num() > num, "the controllers ignore cuts that hold");
        true
    }

    /// Moves data to the owners, while both groups run.
    fn hand_over(&mut self) -> bool {
        let latest = self.machine.latest();
        let mut changed = false;
        for (shard, holder) in (0..).map(ShardId).zip(&mut self.holders) {
            let owner = latest.owner(shard).0;
            let up = |gid: u64| gid == 0 || self.up.contains(&Component::Group(gid));
            if *holder != owner && owner != 0 && up(owner) && up(*holder) {
                *holder = owner;
                changed = true;
            }
        }
        changed
    }

    /// Reports groups that run and have settled.
    fn report(&mut self) -> bool {
        let mut changed = false;
        let waits: Vec<Gid> = self.machine.progress().keys().copied().collect();
        for gid in waits {
            let settled = self.machine.latest().num();
            let late = self
                .machine
                .progress()
                .get(&gid)
                .is_some_and(|it| it.settled < settled);
            if late && self.up.contains(&Component::Group(gid.0)) && self.is_done(gid.0) {
                self.apply(Request::Report {
                    gid,
                    settled,
                    held: settled,
                })
                .unwrap();
                changed = true;
            }
        }
        changed
    }

    /// Returns true if a group has exactly the shards that the configuration gives it.
    fn is_done(&self, gid: u64) -> bool {
        let latest = self.machine.latest();
        let mut holders = self.holders.iter().enumerate();
        holders.all(|(shard, holder)| {
            let owner = latest.owner(ShardId(u32::try_from(shard).unwrap())).0;
            (owner == gid) == (*holder == gid)
        })
    }

    /// Returns true if the loss of the group would lose data.
    pub(crate) fn needs(&self, gid: u64) -> bool {
        self.machine.progress().contains_key(&Gid(gid)) || self.holders.contains(&gid)
    }

    /// Returns true if the group's volumes must stay: it has data, had some when it was forgotten, or may join again.
    pub(crate) fn needs_volumes(&self, gid: u64) -> bool {
        let retired = self.machine.drained().get(&Gid(gid));
        let retired = retired.is_some_and(|it| it.retired);
        self.needs(gid) || self.forgotten.contains(&gid) || !retired
    }

    /// Returns the groups of the configuration that aren't leaving, with the number of shards that each is to have.
    pub(crate) fn members(&self) -> BTreeMap<u64, u32> {
        let latest = self.machine.latest();
        let groups = latest.members();
        let shards = |gid: &Gid| latest.targets().iter().filter(|it| *it == gid).count();
        groups
            .map(|gid| (gid.0, u32::try_from(shards(&gid)).unwrap()))
            .collect()
    }

    /// Returns a group's addresses in the configuration.
    pub(crate) fn addresses(&self, gid: u64) -> Vec<String> {
        self.machine.latest().addresses(Gid(gid)).to_vec()
    }

    /// Returns the number of the latest configuration.
    pub(crate) fn num(&self) -> u64 {
        self.machine.latest().num().0
    }

    fn view(&self) -> View {
        let progress = self.machine.progress().iter();
        let latest = self.machine.latest();
        let mut unserved = 0;
        let mut planned = Vec::new();
        for (row, holder) in latest.rows().zip(&self.holders) {
            if row.owner.0 != *holder {
                unserved += 1;
            } else if row.is_moving() {
                planned.push(row);
            }
        }
        let targets: BTreeSet<u64> = planned.iter().map(|row| row.target.0).collect();
        let owners = planned.iter().map(|row| row.owner.0);
        let mut shards: BTreeMap<u64, u32> = latest.members().map(|gid| (gid.0, 0)).collect();
        for owner in latest.owners().iter().filter(|owner| **owner != Gid::NONE) {
            *shards.entry(owner.0).or_default() += 1;
        }
        let awaiting = targets.iter().filter(|gid| shards.get(gid) == Some(&0));
        let awaiting = awaiting.copied().collect();
        let removed = self.machine.drained().iter().map(|(gid, it)| {
            let removed = plan::Removed {
                incarnation: it.incarnation.0,
                forgotten: it.forgotten,
                retired: it.retired,
            };
            (gid.0, removed)
        });
        View {
            plan: plan::Progress {
                num: self.num(),
                members: self.members().into_keys().collect(),
                settled: progress.map(|(gid, it)| (gid.0, it.settled.0)).collect(),
                awaiting,
                removed: removed.collect(),
            },
            shards,
            copying: u32::try_from(planned.len()).unwrap(),
            copiers: owners.chain(targets).collect(),
            unserved,
        }
    }

    pub(crate) fn answers(&self) -> Result<(), StoreError> {
        if self.unreachable || !self.up.contains(&Component::Controller) {
            return Err(StoreError::Unreachable("no node answers".to_owned()));
        }
        Ok(())
    }
}

/// Returns the state in which a moving shard's target becomes its owner; `None` if the shard isn't moving.
fn cut(config: &ShardConfig, shard: ShardId) -> Option<Cut> {
    let is_moving = config.row(shard).is_moving();
    config.cut_of(shard, JournalId(1)).filter(|_| is_moving)
}

/// The stores of all clusters. They outlive a crash of the operator.
#[derive(Default)]
pub(crate) struct Stores {
    models: Mutex<BTreeMap<(String, String), Model>>,
}

impl Stores {
    pub(crate) fn with<T>(&self, cluster: &Cluster, act: impl FnOnce(&mut Model) -> T) -> T {
        let mut models = self.models.lock().unwrap();
        let key = (cluster.namespace.clone(), names::base(cluster));
        act(models
            .entry(key)
            .or_insert_with(|| Model::new(cluster.shards)))
    }
}

/// An operator's access to the stores.
#[derive(Clone)]
pub(crate) struct FakeStore {
    pub(crate) stores: Arc<Stores>,
    pub(crate) faults: Arc<FaultInjector>,
    /// The clusters whose connections the operator closed.
    pub(crate) forgotten: Arc<Mutex<Vec<String>>>,
}

impl FakeStore {
    async fn change(
        &self,
        cluster: &Cluster,
        verb: &str,
        gids: &[u64],
        request: Request,
    ) -> Result<Change, StoreError> {
        self.stores.with(cluster, |model| model.answers())?;
        let path = format!("{} {gids:?}", names::base(cluster));
        let change = || self.stores.with(cluster, |model| model.apply(request));
        let lost = || Err(StoreError::Unreachable("the answer was lost".to_owned()));
        self.faults
            .store(verb, &path, change)
            .await
            .unwrap_or_else(lost)
    }
}

impl Store for FakeStore {
    async fn view(&self, cluster: &Cluster) -> Result<View, StoreError> {
        self.stores.with(cluster, |model| {
            model.answers()?;
            Ok(model.view())
        })
    }

    async fn health(
        &self,
        cluster: &Cluster,
        parts: &BTreeSet<Component>,
    ) -> BTreeMap<Component, Health> {
        let replicas = |part: &Component| match part {
            Component::Controller => cluster.controllers,
            Component::Group(_) => cluster.replicas,
        };
        self.stores.with(cluster, |model| {
            let up = parts.iter().filter(|part| model.up.contains(part));
            let health = |part: &Component| Health {
                leader: Some(format!("{}-0", names::part(cluster, *part))),
                answering: u32::try_from(replicas(part)).unwrap(),
                whole: true,
                troubles: model.troubles.get(part).cloned().unwrap_or_default(),
                incoming_bytes: 0,
            };
            if model.unreachable {
                return BTreeMap::new();
            }
            up.map(|part| (*part, health(part))).collect()
        })
    }

    async fn join(&self, cluster: &Cluster, gids: &[u64]) -> Result<Change, StoreError> {
        let unproven = self.stores.with(cluster, |model| model.unproven.clone());
        if !unproven.is_empty() {
            return Err(StoreError::Refused(unproven));
        }
        let nodes = |gid: &u64| (Gid(*gid), names::addresses(cluster, Component::Group(*gid)));
        let groups = gids.iter().map(nodes).collect();
        self.change(cluster, "join", gids, Request::Join { groups })
            .await
    }

    async fn leave(&self, cluster: &Cluster, gids: &[u64]) -> Result<Change, StoreError> {
        let leaving = gids.iter().copied().map(Gid).collect();
        self.change(cluster, "leave", gids, Request::Leave { gids: leaving })
            .await
    }

    async fn retire(
        &self,
        cluster: &Cluster,
        gid: u64,
        incarnation: u64,
    ) -> Result<(), StoreError> {
        let retire = Request::Retire {
            gid: Gid(gid),
            incarnation: Incarnation(incarnation),
        };
        self.change(cluster, "retire", &[gid], retire)
            .await
            .map(drop)
    }

    fn forget(&self, _: &str, name: &str) {
        self.forgotten.lock().unwrap().push(name.to_owned());
    }
}
