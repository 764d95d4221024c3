//! Clusters of chance: a model of Kubernetes and of the controllers under random changes of the spec, failures of pods, lost volumes,
//! refused writes, and operators that die. The operator's steps are those of the product.
//!
//! At each write the model checks that no volume is deleted whose group isn't drained, and that no change of a template takes a majority
//! away or begins while another part is being replaced. At the end the cluster must be as wished.

mod kube;

use std::collections::{BTreeMap, BTreeSet};

use ::kube::ResourceExt;

use self::kube::{BAD, Kube, ModelPart};
use super::writes::now;
use super::*;
use crate::build::{STAGE_ANNOTATION, names};
use crate::plan::{Progress, Removed};
use crate::reconcile::build::Write;
use crate::store::Change;

/// Rounds in which a cluster without faults must be as wished.
const MAX_ROUNDS: u32 = 400;

/// The number of clusters. Each takes some hundred rounds.
const SEEDS: u64 = if cfg!(debug_assertions) { 20 } else { 100 };

struct World {
    seed: u64,
    random: u64,
    desired: Desired,
    resource: ShardKvCluster,
    kube: Kube,
    store: Progress,
    /// The groups of the configuration when the round began. One that joins in the round has no shards yet.
    serving: BTreeSet<u64>,
    /// True while writes may fail, and operators die.
    faulty: bool,
    /// Writes until the operator dies.
    life: Option<u64>,
}

impl World {
    fn new(seed: u64) -> Self {
        let scene = Scene::new();
        let mut world = Self {
            seed,
            random: seed,
            desired: scene.desired,
            resource: scene.observed.resource,
            kube: Kube::default(),
            store: Progress::default(),
            serving: BTreeSet::new(),
            faulty: false,
            life: None,
        };
        let delete = world.one_in(2);
        let storage = &mut world.desired.cluster.spec.storage;
        storage.on_group_removal = if delete {
            Retention::Delete
        } else {
            Retention::Retain
        };
        world
    }

    fn below(&mut self, bound: u64) -> u64 {
        // Knuth's generator: random enough for these choices, and reproducible on every platform.
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % bound
    }

    fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }

    /// Returns what the operator sees.
    fn scene(&self) -> Scene {
        let cluster = &self.desired.cluster;
        let mut observed = Observed::new(self.resource.clone());
        for (kind, object) in self.kube.objects(cluster) {
            observed.add_object(cluster, kind, object, &now()).unwrap();
        }
        let pods = self.kube.pods(cluster);
        observed.add_pods(cluster, &self.kube.claims(), &pods, &now());
        for (of, part) in &self.kube.parts {
            let health = Health {
                leader: part.has_majority().then(|| "leader".to_owned()),
                answering: part.ready(),
                whole: part.is_whole(),
                ..Health::default()
            };
            observed.health.insert(*of, health);
        }
        let shards = self.store.members.iter().map(|gid| (*gid, 1));
        observed.view = Some(if self.answers() {
            Ok(View {
                plan: self.store.clone(),
                shards: shards.collect(),
                ..View::default()
            })
        } else {
            Err(unreachable())
        });
        Scene {
            desired: self.desired.clone(),
            observed,
            applied: Applied::default(),
        }
    }

    fn answers(&self) -> bool {
        let controllers = self.kube.parts.get(&Component::Controller);
        controllers.is_some_and(ModelPart::has_majority)
    }

    /// Runs a round of the operator. Returns true if it changed something, or has something left to do.
    fn round(&mut self) -> bool {
        let scene = self.scene();
        let plan = scene.plan();
        assert!(plan.lost.is_empty(), "seed {}: {:?}", self.seed, plan.lost);
        self.serving = self.store.settled.keys().copied().collect();
        self.life = (self.faulty && self.one_in(4)).then(|| self.below(12));
        let applied = scene.perform(|_, write| self.write(write));
        if self.life == Some(0) {
            return true;
        }
        let facts = Facts {
            desired: &scene.desired,
            observed: &scene.observed,
            plan: &plan,
            applied: &applied,
        };
        let told = status(&facts, &now());
        let recorded = self.resource.status.as_ref().and_then(|it| it.last_gid);
        assert!(told.last_gid >= recorded, "seed {}", self.seed);
        self.resource.status = Some(told);
        applied.changed() || applied.held() > 0 || !applied.problems().is_empty()
    }

    /// Performs a write, unless it is refused or the operator is dead.
    fn write(&mut self, write: &Write) -> Written {
        match &mut self.life {
            Some(0) => return Written::Raced,
            Some(left) => *left -= 1,
            None => {}
        }
        if self.faulty && self.one_in(12) {
            return match self.below(2) {
                0 => Written::Raced,
                _ => Written::Refused("a quota".to_owned()),
            };
        }
        let cluster = self.desired.cluster.clone();
        match write {
            Write::Create(wanted) => {
                self.kube.apply(&cluster, wanted);
                return Written::Created;
            }
            Write::Apply(wanted, _) => {
                if wanted.kind == Kind::Set {
                    let part = names::part_of(&cluster, &wanted.name).unwrap();
                    self.check_change(part, &Kube::revision_of(wanted));
                }
                self.kube.apply(&cluster, wanted);
            }
            Write::SetStage(live, stage) => {
                self.kube.annotate(live, STAGE_ANNOTATION, stage.name());
            }
            Write::Join(_) | Write::Leave(_) | Write::Retire(..) => return self.ask(write),
            Write::Confirm(part) => {
                let permitted = |gid| self.store.permits_deletion(gid);
                return if part.gid().is_some_and(permitted) {
                    Written::Unchanged
                } else {
                    Written::Raced
                };
            }
            Write::DeleteSet(part, _) => {
                let known = part.gid().is_none_or(|gid| self.store.knows(gid));
                assert!(!known, "seed {}: {part:?} holds data", self.seed);
                self.kube.delete_part(&cluster, *part);
            }
            Write::Delete(kind, live) => {
                self.kube.children.remove(&(*kind, live.name_any()));
            }
            Write::DeleteVolume { name, .. } => {
                let (part, _) = self.kube.volumes[name];
                let drained = part.gid().is_some_and(|it| self.store.permits_deletion(it));
                assert!(drained, "seed {}: {name} isn't drained", self.seed);
                self.kube.volumes.remove(name);
            }
            Write::Status(status) => self.resource.status = Some((**status).clone()),
            Write::Finalizers(_) | Write::Known(_) => {}
        }
        Written::Changed
    }

    /// Panics if the change of a part's template may take a majority away.
    fn check_change(&self, of: Component, revision: &str) {
        let serves = |it: &Component| it.gid().is_none_or(|gid| self.serving.contains(&gid));
        let part = &self.kube.parts[&of];
        if part.update == revision || !serves(&of) || !part.has_majority() {
            return;
        }
        let why = format!("seed {}: {of:?} is changed", self.seed);
        assert!(part.survives_a_change(), "{why}, and loses its majority");
        // A part that is being replaced, or that a change may mend, is changed beside others.
        if part.rolls() || part.has_bad_pods() {
            return;
        }
        for (other, it) in self.kube.parts.iter().filter(|(other, _)| **other != of) {
            let well = it.is_whole() && !it.rolls();
            assert!(well || !serves(other), "{why} beside {other:?}");
        }
    }

    /// Changes the configuration as the controllers do.
    fn ask(&mut self, write: &Write) -> Written {
        if !self.answers() {
            return Written::Store(unreachable());
        }
        let num = self.store.num + 1;
        match write {
            Write::Join(gids) => {
                for gid in gids {
                    let removed = self.store.removed.get(gid);
                    assert!(removed.is_none_or(|it| !it.retired), "seed {}", self.seed);
                    self.store.members.insert(*gid);
                    self.store.settled.entry(*gid).or_insert(num - 1);
                }
            }
            Write::Leave(gids) => {
                self.store.members.retain(|gid| !gids.contains(gid));
                assert!(!self.store.members.is_empty(), "seed {}", self.seed);
            }
            Write::Retire(gid, _) => {
                let removed = self.store.removed.get_mut(gid).expect("a removed group");
                removed.retired = true;
                return Written::Changed;
            }
            _ => unreachable!("no request"),
        }
        self.store.num = num;
        Written::Configured(Change::default())
    }

    /// Advances time. Groups with a majority hand shards over.
    fn tick(&mut self) {
        self.kube.tick(&self.desired.cluster);
        let led = |gid: &u64| {
            let part = self.kube.parts.get(&Component::Group(*gid));
            part.is_some_and(ModelPart::has_majority)
        };
        let num = self.store.num;
        let led: BTreeSet<u64> = self.store.settled.keys().copied().filter(led).collect();
        let all = self.store.members.iter().all(|gid| led.contains(gid));
        for gid in &led {
            self.store.settled.insert(*gid, num);
        }
        let (members, removed) = (&self.store.members, &mut self.store.removed);
        self.store.settled.retain(|gid, settled| {
            let stays = members.contains(gid) || *settled < num || !all;
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

    /// Something happens that the operator hasn't asked for.
    fn disturb(&mut self) {
        let (kind, groups, image) = (self.below(10), self.below(4) + 1, self.below(4));
        let parts: Vec<Component> = self.kube.parts.keys().copied().collect();
        let at = usize::try_from(self.below(parts.len().max(1) as u64)).unwrap();
        let (ordinal, ticks) = (self.below(3), self.below(8) + 1);
        let (ordinal, ticks) = (
            u32::try_from(ordinal).unwrap(),
            u32::try_from(ticks).unwrap(),
        );
        match (kind, parts.get(at)) {
            (0, _) => self.desired.intent = Intent::Run(u32::try_from(groups).unwrap()),
            (1 | 2, _) => {
                let spec = &mut self.desired.cluster.spec;
                spec.image = match image {
                    0 => BAD.to_owned(),
                    image => format!("image-{image}"),
                };
            }
            (3, _) => {
                let options = &mut self.desired.cluster.spec.options;
                options.lease_reads = Some(options.lease_reads != Some(true));
            }
            (4 | 5, Some(of)) => {
                let part = self.kube.parts.get_mut(of).unwrap();
                if let Some(pod) = part.pods.get_mut(&ordinal) {
                    pod.away = ticks;
                }
            }
            // A person must not lose a second disk before the first is restored.
            (6, Some(of)) if self.kube.parts[of].is_whole() => {
                let cluster = self.desired.cluster.clone();
                self.kube.lose_volume(&cluster, *of, ordinal);
            }
            (7, _) => self.faulty = !self.faulty,
            _ => {}
        }
    }

    /// Ends all faults, and runs until nothing changes any more.
    fn settle(&mut self) {
        self.faulty = false;
        self.desired.cluster.spec.image = "good".to_owned();
        let mut quiet = 0;
        for _ in 0..MAX_ROUNDS {
            let parts = self.kube.parts.values();
            let well = parts.into_iter().all(|it| it.is_whole() && !it.rolls());
            quiet = if self.round() || !well { 0 } else { quiet + 1 };
            if quiet > 5 {
                return;
            }
            self.tick();
        }
        let scene = self.scene();
        panic!(
            "seed {}: no rest: {:#?}",
            self.seed,
            scene.told().conditions
        );
    }
}

fn unreachable() -> StoreError {
    StoreError::Unreachable("no quorum".to_owned())
}

fn live(seed: u64) -> BTreeMap<Component, u32> {
    let mut world = World::new(seed);
    for _ in 0..world.below(120) {
        world.disturb();
        for _ in 0..world.below(3) {
            world.round();
        }
        world.tick();
    }
    world.settle();
    let Intent::Run(groups) = world.desired.intent else {
        unreachable!("it runs");
    };
    let scene = world.scene();
    assert_eq!(scene.prepared().steps, [], "seed {seed}");
    let parts = world.kube.parts.iter();
    let parts: BTreeMap<Component, u32> = parts.map(|(of, part)| (*of, part.ready())).collect();
    assert_eq!(parts.len(), groups as usize + 1, "seed {seed}: {parts:?}");
    let members = world.store.members.iter().map(|gid| Component::Group(*gid));
    assert!(
        members.eq(parts.keys().copied().filter(|it| it.gid().is_some())),
        "seed {seed}"
    );
    parts
}

#[test]
fn clusters_of_chance_end_as_wished_and_lose_nothing() {
    for seed in 0..SEEDS {
        live(seed);
    }
}
