//! The operator dies, or loses its connections, at each write of each transition; and the end is always the same.
//!
//! A cluster's life is lived through again and again: in the first one nothing happens, in the `n`th one each of its transitions is
//! disturbed at its `n`th write. After each transition the world must be as it was in the first life at that time.

use std::collections::BTreeMap;

use futures::StreamExt;
use serde_json::{Value, json};

use crate::gate::Cut;
use crate::rounds::{same, small};
use crate::world::World;

/// How many lives are lived side by side.
const SIDE_BY_SIDE: usize = 4;

/// What happens to a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transition {
    Create,
    Change,
    ScaleOut,
    CancelScaleIn,
    ScaleIn,
    Delete,
    DeleteDuringScaleOut,
}

use Transition::{CancelScaleIn, Change, Create, Delete, DeleteDuringScaleOut, ScaleIn, ScaleOut};

/// A cluster's life.
#[derive(Clone, Copy)]
struct Life {
    name: &'static str,
    /// What becomes of the volumes of groups that go, and of all in the end.
    volumes: [&'static str; 2],
    transitions: &'static [Transition],
    /// From which transition on it is disturbed.
    from: usize,
}

impl Transition {
    /// Brings about what the transition begins with.
    async fn before(self, world: &mut World) {
        let half_way = match self {
            CancelScaleIn => json!({"groups": 2}),
            DeleteDuringScaleOut => json!({"groups": 4}),
            _ => return,
        };
        world.store(|it| it.frozen = true);
        world.ask(&half_way).await;
        world.rest().await;
        let phases: Vec<String> = world.phases().await.into_values().collect();
        let phase = match self {
            CancelScaleIn => "Draining",
            _ => "Joining",
        };
        assert!(phases.iter().any(|it| it == phase), "{phases:?}");
    }

    /// The user asks for it.
    async fn begin(self, world: &mut World) {
        match self {
            Create => {}
            Change => {
                world
                    .ask(&json!({"image": "other", "podDisruptionBudget": {"enabled": false}, "options": {"leaseReads": true}}))
                    .await;
            }
            ScaleOut => world.ask(&json!({"groups": 3})).await,
            CancelScaleIn => {
                world.store(|it| it.frozen = false);
                world.ask(&json!({"groups": 3})).await;
            }
            ScaleIn => world.ask(&json!({"groups": 1})).await,
            Delete | DeleteDuringScaleOut => world.delete().await,
        }
    }

    fn ends(self) -> bool {
        matches!(self, Delete | DeleteDuringScaleOut)
    }

    /// What must be there in the end, in the first life too.
    fn check(self, end: &End) {
        let names = |kind: &str| -> Vec<&str> {
            let names = end.objects.keys();
            names.filter_map(|name| name.strip_prefix(kind)).collect()
        };
        if self.ends() {
            let left = names("").into_iter();
            let others: Vec<_> = left.filter(|it| !it.starts_with("persistent")).collect();
            assert!(others.is_empty(), "{others:?}");
            return;
        }
        let groups: &[u64] = match self {
            Create | Change => &[1, 2],
            ScaleOut | CancelScaleIn => &[1, 2, 3],
            _ => &[1],
        };
        let members: Vec<u64> = end.members.keys().copied().collect();
        assert_eq!(members, groups);
        let sets = groups.iter().map(|gid| format!("demo-group-{gid}"));
        let sets: Vec<String> = ["demo-controller".to_owned()]
            .into_iter()
            .chain(sets)
            .collect();
        assert_eq!(names("statefulsets/"), sets);
        assert_eq!(names("services/").len(), sets.len() + 1);
    }
}

/// How the world is after a transition.
struct End {
    objects: BTreeMap<String, Value>,
    members: BTreeMap<u64, u32>,
    /// How many writes it took.
    writes: usize,
}

impl Life {
    /// Lives through so many transitions.
    async fn live(self, transitions: usize, cut: Option<(usize, Cut)>) -> Vec<End> {
        let mut spec = small(2);
        let [removed, deleted] = self.volumes;
        spec["storage"] = json!({"onGroupRemoval": removed, "onClusterDeletion": deleted});
        let mut world = World::new(self.name, &spec).await;
        let mut ends = Vec::new();
        for (number, transition) in self.transitions[..transitions].iter().enumerate() {
            transition.before(&mut world).await;
            transition.begin(&mut world).await;
            let before = world.gate.count();
            let cut = cut.filter(|_| number >= self.from);
            if let Some((write, cut)) = cut {
                world.gate.cut_at(write, cut);
            }
            world.rest().await;
            world.gate.forget_cut();
            let end = End {
                objects: world.objects().await,
                members: world.store(|it| it.members()),
                writes: world.gate.count() - before,
            };
            transition.check(&end);
            ends.push(end);
        }
        ends
    }

    /// Lives it again for every write, with this way to fail.
    async fn again(self, way: fn(usize) -> Cut) {
        let first = self.live(self.transitions.len(), None).await;
        let volumes = |end: &End| {
            let names = end.objects.keys();
            names.filter(|it| it.starts_with("persistent")).count()
        };
        // The last transition leaves volumes only if it is to; before it there are those of groups that are gone, or there aren't.
        let last = first.last().unwrap();
        assert_eq!(volumes(last) > 0, self.volumes[1] == "Retain");
        let most = first[self.from..].iter().map(|end| end.writes).max();
        // What comes after the last transition with so many writes wouldn't be disturbed.
        let transitions = |number| {
            let disturbed = first.iter().rposition(|end| end.writes >= number);
            disturbed.unwrap() + 1
        };
        let lives = (1..=most.unwrap()).map(async |number| {
            let cut = Some((number, way(number)));
            (number, self.live(transitions(number), cut).await)
        });
        let mut lives = futures::stream::iter(lives).buffer_unordered(SIDE_BY_SIDE);
        while let Some((number, ends)) = lives.next().await {
            for ((transition, first), end) in self.transitions.iter().zip(&first).zip(&ends) {
                let what = format!("{transition:?}, {:?} at write {number}", way(number));
                assert_eq!(first.members, end.members, "{what}");
                same(&first.objects, &end.objects, &what);
            }
        }
    }
}

fn dies(_: usize) -> Cut {
    Cut::Dies
}

/// To lose the request of a write is, for the world, to lose the answer to the one before: by turns is enough.
fn loses(write: usize) -> Cut {
    match write % 2 {
        0 => Cut::LosesRequest,
        _ => Cut::LosesAnswer,
    }
}

const TO_THE_FULL: Life = Life {
    name: "full-life",
    volumes: ["Delete", "Retain"],
    transitions: &[
        Create,
        Change,
        ScaleOut,
        CancelScaleIn,
        ScaleIn,
        DeleteDuringScaleOut,
    ],
    from: 0,
};
const OTHERWISE: Life = Life {
    name: "other-life",
    volumes: ["Retain", "Delete"],
    transitions: &[Create, Change, ScaleOut, CancelScaleIn, ScaleIn, Delete],
    from: 0,
};
const CUT_SHORT: Life = Life {
    name: "short-life",
    volumes: ["Retain", "Delete"],
    transitions: &[Create, Delete],
    from: 1,
};
const NIPPED: Life = Life {
    name: "nipped-life",
    volumes: ["Delete", "Delete"],
    transitions: &[Create, DeleteDuringScaleOut],
    from: 1,
};

#[tokio::test]
async fn it_dies_at_each_write_of_a_life() {
    TO_THE_FULL.again(dies).await;
}

#[tokio::test]
async fn its_connections_break_at_each_write_of_a_life() {
    OTHERWISE.again(loses).await;
}

#[tokio::test]
async fn it_dies_at_each_write_of_a_deletion() {
    CUT_SHORT.again(dies).await;
}

#[tokio::test]
async fn its_connections_break_at_each_write_of_a_deletion_during_a_scale_out() {
    NIPPED.again(loses).await;
}
