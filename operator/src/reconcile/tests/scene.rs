//! A cluster and its observed state, for tests of what is planned, written and told.

use super::*;
use crate::reconcile::build::Write;

/// A cluster `a` with three nodes of each kind, and its observed state.
pub(super) struct Scene {
    pub(super) desired: Desired,
    pub(super) observed: Observed,
    pub(super) applied: Applied,
}

pub(super) fn set(stage: Stage, ready: i32) -> ObservedSet {
    ObservedSet {
        object: Object {
            uid: "u".to_owned(),
            version: "1".to_owned(),
            terminating: false,
        },
        stage,
        replicas: 3,
        existing: 3,
        ready,
        rolling: None,
        revision: String::new(),
        unseen: false,
        young: false,
    }
}

pub(super) fn led(pod: &str) -> Health {
    Health {
        leader: Some(pod.to_owned()),
        answering: 3,
        whole: true,
        troubles: BTreeMap::new(),
        incoming_bytes: 0,
    }
}

impl Scene {
    /// Returns a scene in which no object has been created yet.
    pub(super) fn new() -> Self {
        let mut resource = ShardKvCluster::new("a", ShardKvClusterSpec::default());
        resource.metadata.generation = Some(7);
        resource.metadata.finalizers = Some(vec![crate::reconcile::FINALIZER.to_owned()]);
        let mut cluster = named("a");
        cluster.spec.storage.on_cluster_deletion = Retention::Delete;
        Self {
            desired: Desired {
                cluster,
                intent: Intent::Run(2),
                invalid: None,
            },
            observed: Observed::new(resource),
            applied: Applied::default(),
        }
    }

    /// Returns a scene in which two groups serve six shards each, as they did before.
    pub(super) fn serving() -> Self {
        let mut scene = Self::new();
        scene.observed.sets = [
            (Component::Controller, set(Stage::Member, 3)),
            (Component::Group(1), set(Stage::Member, 3)),
            (Component::Group(2), set(Stage::Member, 3)),
        ]
        .into();
        scene.observed.health = [
            (Component::Controller, led("a-controller-0")),
            (Component::Group(1), led("a-group-1-0")),
            (Component::Group(2), led("a-group-2-1")),
        ]
        .into();
        scene.observed.view = Some(Ok(View {
            plan: plan::Progress {
                num: 5,
                members: [1, 2].into(),
                settled: [(1, 5), (2, 5)].into(),
                ..plan::Progress::default()
            },
            shards: [(1, 6), (2, 6)].into(),
            ..View::default()
        }));
        scene.observed.resource.status = Some(scene.told());
        scene
    }

    pub(super) fn view(&mut self) -> &mut View {
        self.observed.view.as_mut().unwrap().as_mut().unwrap()
    }

    pub(super) fn set(&mut self, part: Component) -> &mut ObservedSet {
        self.observed.sets.get_mut(&part).unwrap()
    }

    /// Sets the results of an apply step in which these writes of shared objects were tried.
    pub(super) fn tried(&mut self, results: Vec<Written>) {
        let results = results.into_iter();
        let update = Action::UpdateShared(Kind::Config);
        let results = results.map(|result| (update.clone(), vec![result]));
        self.applied.results = results.collect();
    }

    /// Sets the results of an apply step in which the `StatefulSet`s of these groups waited for their turn.
    pub(super) fn held(&mut self, gids: &[u64]) {
        let update = |gid: &u64| Action::Update(Component::Group(*gid), Kind::Set);
        let held = gids.iter().map(|gid| (update(gid), vec![Written::Held]));
        self.applied.results = held.collect();
    }

    /// Performs the prepared writes as the apply step does. `answer` stands for the API server and the store.
    pub(super) fn perform(&self, mut answer: impl FnMut(&Action, &Write) -> Written) -> Applied {
        let mut applied = Applied::default();
        for step in self.prepared().steps {
            if !applied.allows(&step.action) {
                continue;
            }
            let mut results = Vec::new();
            for write in &step.writes {
                results.push(match write {
                    _ if applied.holds(step.turn) => Written::Held,
                    Write::Known(known) => known.clone(),
                    write => answer(&step.action, write),
                });
                if results.last().is_some_and(Written::stops) {
                    break;
                }
            }
            applied.add(step.action, step.turn, results);
        }
        applied
    }

    pub(super) fn plan(&self) -> Plan {
        plan::decide(&self.observed.state(&self.desired))
    }

    pub(super) fn facts<'a>(&'a self, plan: &'a Plan) -> Facts<'a> {
        Facts {
            desired: &self.desired,
            observed: &self.observed,
            plan,
            applied: &self.applied,
        }
    }

    pub(super) fn told(&self) -> ShardKvClusterStatus {
        let plan = self.plan();
        let now = Time(Timestamp::from_second(1_000).unwrap());
        status(&self.facts(&plan), &now)
    }

    /// Checks the conditions `Available`, `Progressing` and `Degraded`, each with its reason, and a part of one
    /// message. Returns the status.
    pub(super) fn shows(&self, conditions: [&str; 3], message: &str) -> ShardKvClusterStatus {
        let told = self.told();
        let of = |type_: &str| {
            let mut all = told.conditions.iter();
            let condition = all.find(|it| it.type_ == type_).unwrap();
            format!("{} {}", condition.status, condition.reason)
        };
        let shown = ["Available", "Progressing", "Degraded"].map(of);
        assert_eq!(shown, conditions, "{:#?}", told.conditions);
        let mut messages = told.conditions.iter().map(|it| it.message.as_str());
        assert!(
            messages.any(|it| it.contains(message)),
            "{message}: {:#?}",
            told.conditions
        );
        told
    }
}
