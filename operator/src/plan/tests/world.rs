//! A simulated cluster of `StatefulSet`s, volumes and controllers that panics on requests the operator must never send.

use super::*;

/// Rounds after which a cluster that still changes fails the test.
const MAX_ROUNDS: usize = 200;

pub(super) struct World {
    /// State that the operator observes. Its store is hidden until the controllers run.
    pub(super) seen: State,
    store: Progress,
    /// True while no group hands over shards.
    pub(super) frozen: bool,
    /// All gids that were ever assigned.
    pub(super) ever: BTreeSet<u64>,
    /// Number of actions done.
    pub(super) done: usize,
    /// True once the resource is deleted.
    pub(super) finished: bool,
    /// Indices of the actions after which the operator dies.
    pub(super) kills: BTreeSet<usize>,
    late: bool,
    /// A delayed request to the store, and the rounds until it arrives.
    delayed: Option<(usize, Action)>,
    versions: u64,
}

impl World {
    pub(super) fn new(retention: Retention, kill: Option<usize>, late: bool) -> Self {
        Self {
            seen: State {
                intent: Intent::Run(1),
                has_finalizer: retention == Retention::Delete,
                left_alone: false,
                on_group_removal: retention,
                on_cluster_deletion: retention,
                recorded_gid: 0,
                controllers: None,
                controller_volumes: false,
                sets: BTreeMap::new(),
                pods: BTreeMap::new(),
                volumes: BTreeSet::new(),
                satellites: BTreeSet::new(),
                unused_options: BTreeSet::new(),
                store: None,
            },
            store: Progress::default(),
            frozen: false,
            ever: BTreeSet::new(),
            done: 0,
            finished: false,
            kills: kill.into_iter().collect(),
            late,
            delayed: None,
            versions: 0,
        }
    }

    pub(super) fn sets(&self) -> Vec<u64> {
        self.seen.sets.keys().copied().collect()
    }

    pub(super) fn live_volumes(&self) -> Vec<u64> {
        self.seen.volumes.iter().copied().collect()
    }

    /// Returns the configuration's groups; none once the cluster is deleted.
    pub(super) fn members(&self) -> Vec<u64> {
        if self.finished {
            Vec::new()
        } else {
            self.store.members.iter().copied().collect()
        }
    }

    fn object(&mut self) -> Object {
        self.versions += 1;
        let version = self.versions.to_string();
        Object {
            uid: version.clone(),
            version,
            terminating: false,
        }
    }

    /// Performs an action; panics if the operator must never ask for it.
    fn act(&mut self, action: &Action) {
        let deleting = self.seen.intent == Intent::Delete;
        let empty = |world: &Self, gid: &u64| !world.store.knows(*gid);
        let permitted = |world: &Self, gid: &u64| world.store.permits_deletion(*gid);
        match action {
            Action::RecordGid(gid) => self.seen.recorded_gid = self.seen.recorded_gid.max(*gid),
            Action::CreateControllers => {
                self.seen.controllers = Some(self.object());
                self.seen.controller_volumes = true;
            }
            Action::CreateGroup { gid, stage } => {
                let first = self.ever.insert(*gid);
                assert!(first || *stage != Stage::New, "gid {gid} is given again");
                let object = self.object();
                let set = Set {
                    object,
                    stage: *stage,
                    has_leader: false,
                    has_served: false,
                };
                assert!(self.seen.sets.insert(*gid, set).is_none(), "{gid} is there");
                self.seen.volumes.insert(*gid);
            }
            Action::SetStage { gid, stage } => {
                let object = self.object();
                let set = self.seen.sets.get_mut(gid).expect("a set");
                set.stage = *stage;
                set.object.version = object.version;
            }
            Action::Join(_) | Action::Leave(_) | Action::Retire { .. } => self.ask(action),
            Action::DeleteVolumes(gid) => {
                assert!(
                    deleting || permitted(self, gid),
                    "the volumes of {gid} hold data, or it may join again"
                );
                self.seen.volumes.remove(gid);
            }
            Action::DeleteGroup(gid, object) => {
                assert!(deleting || empty(self, gid), "{gid} holds data");
                assert!(
                    deleting || self.seen.recorded_gid >= *gid,
                    "{gid} would be forgotten"
                );
                let set = self.seen.sets.get_mut(gid).expect("a set");
                assert_eq!(set.object, *object, "a precondition fails");
                set.object.terminating = true;
            }
            Action::DeleteControllerVolumes => {
                assert!(deleting && self.seen.sets.is_empty());
                self.seen.controller_volumes = false;
            }
            Action::DeleteControllers(object) => {
                assert!(deleting && self.seen.sets.is_empty());
                assert_eq!(self.seen.controllers.as_ref(), Some(object));
                self.seen.controllers = Some(Object {
                    terminating: true,
                    ..object.clone()
                });
            }
            Action::AddFinalizer
            | Action::DropFinalizer
            | Action::DeleteStray(..)
            | Action::DeleteOptions(_) => {
                unreachable!("the world has its finalizer, no strays and one options file")
            }
            Action::UpdateShared(_) | Action::Update(..) => unreachable!("no change"),
            Action::RemoveFinalizer => {
                assert!(deleting && self.seen.sets.is_empty() && self.seen.controllers.is_none());
                self.finished = true;
            }
        }
    }

    /// Changes the configuration as the controllers do for Join, Leave and Retire.
    fn ask(&mut self, action: &Action) {
        let num = self.store.num + 1;
        let mut changed = false;
        match action {
            Action::Join(gids) => {
                let retired = |gid: &u64| self.store.removed.get(gid).is_some_and(|it| it.retired);
                if gids.iter().any(retired) {
                    return;
                }
                for gid in gids {
                    changed |= self.store.members.insert(*gid);
                    self.store.settled.entry(*gid).or_insert(num - 1);
                }
            }
            Action::Leave(gids) => {
                let stay = self
                    .store
                    .members
                    .iter()
                    .filter(|gid| !gids.contains(gid))
                    .count();
                assert!(stay > 0, "the last group is asked to leave");
                for gid in gids {
                    changed |= self.store.members.remove(gid);
                }
            }
            Action::Retire { gid, .. } => {
                let removed = self.store.removed.get_mut(gid).expect("a removed group");
                removed.retired = true;
            }
            _ => unreachable!("no request"),
        }
        self.store.num += u64::from(changed);
    }

    /// Advances time: pods start, groups elect leaders and hand over shards, objects that are being deleted disappear.
    fn tick(&mut self) {
        if let Some((rounds, action)) = self.delayed.take() {
            match rounds.checked_sub(1) {
                Some(rounds) => self.delayed = Some((rounds, action)),
                // The controllers are deleted with the cluster, and refuse to remove the last group.
                None if self.seen.intent == Intent::Delete => {}
                None => self.ask(&action),
            }
        }
        if self.seen.intent == Intent::Delete && !self.seen.has_finalizer {
            // Kubernetes deletes the objects with their owner.
            self.seen.sets.clear();
            self.seen.controllers = None;
            self.finished = true;
        }
        self.seen.sets.retain(|_, set| !set.object.terminating);
        if self
            .seen
            .controllers
            .as_ref()
            .is_some_and(|object| object.terminating)
        {
            self.seen.controllers = None;
        }
        for set in self.seen.sets.values_mut() {
            set.has_leader = true;
        }
        if !self.frozen {
            let num = self.store.num;
            let (sets, members) = (&self.seen.sets, &self.store.members);
            let removed = &mut self.store.removed;
            self.store.settled.retain(|gid, settled| {
                *settled = if sets.contains_key(gid) {
                    num
                } else {
                    *settled
                };
                let stays = members.contains(gid) || *settled < num;
                if !stays {
                    let drained = Removed {
                        incarnation: num,
                        forgotten: false,
                        retired: false,
                    };
                    removed.insert(*gid, drained);
                }
                stays
            });
        }
        self.seen.store = self.seen.controllers.is_some().then(|| self.store.clone());
    }
}

/// Runs rounds of the operator until nothing changes any more.
pub(super) fn run(world: &mut World) {
    let mut idle = 0;
    for _ in 0..MAX_ROUNDS {
        if world.finished || idle > 5 {
            return;
        }
        let rests = round(world) == 0 && world.delayed.is_none();
        idle = if rests { idle + 1 } else { 0 };
    }
    panic!("no rest: {:?}", decide(&world.seen));
}

/// Runs one round: the operator observes and performs the plan, unless it dies; then time advances. Returns the number
/// of planned actions.
pub(super) fn round(world: &mut World) -> usize {
    let plan = decide(&world.seen);
    assert!(plan.lost.is_empty(), "{:?}", plan.lost);
    // Updates change nothing in this world.
    let changes = || plan.actions.iter().filter(|action| !action.updates());
    for action in changes() {
        let dies = world.kills.contains(&world.done);
        world.done += 1;
        let asks = matches!(
            action,
            Action::Join(_) | Action::Leave(_) | Action::Retire { .. }
        );
        if dies && asks && world.late {
            world.delayed = Some((3, action.clone()));
        } else {
            world.act(action);
        }
        if dies {
            break;
        }
    }
    world.tick();
    changes().count()
}
