//! The operator crashes, or loses its connections, at each write of each transition, and always reaches the same final state.
//!
//! A test runs a sequence of transitions of a cluster many times. The first run has no faults; in run `n` each transition has a
//! fault at its `n`th write. After each transition the objects must be the same as in the first run.

use std::collections::BTreeMap;

use futures::StreamExt;
use serde_json::{Value, json};

use crate::faults::Fault;
use crate::rounds::{same, small};
use crate::world::World;

/// Number of runs at the same time.
const CONCURRENT_RUNS: usize = 4;

/// A change of a cluster.
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

/// A sequence of transitions.
#[derive(Clone, Copy)]
struct Sequence {
    name: &'static str,
    /// Retention of the volumes of removed groups, and of all volumes in the end.
    volumes: [&'static str; 2],
    transitions: &'static [Transition],
    /// Index of the first transition with faults.
    from: usize,
}

impl Transition {
    /// Brings the cluster into the state that the transition starts from.
    async fn before(self, world: &mut World) {
        let half_way = match self {
            CancelScaleIn => json!({"groups": 2}),
            DeleteDuringScaleOut => json!({"groups": 4}),
            _ => return,
        };
        world.store(|it| it.frozen = true);
        world.patch_spec(&half_way).await;
        world.settle().await;
        let phases: Vec<String> = world.phases().await.into_values().collect();
        let phase = match self {
            CancelScaleIn => "Draining",
            _ => "Joining",
        };
        assert!(phases.iter().any(|it| it == phase), "{phases:?}");
    }

    /// Makes the user's change that starts the transition.
    async fn begin(self, world: &mut World) {
        match self {
            Create => {}
            Change => {
                world
                    .patch_spec(&json!({"image": "other", "podDisruptionBudget": {"enabled": false}, "options": {"leaseReads": true}}))
                    .await;
            }
            ScaleOut => world.patch_spec(&json!({"groups": 3})).await,
            CancelScaleIn => {
                world.store(|it| it.frozen = false);
                world.patch_spec(&json!({"groups": 3})).await;
            }
            ScaleIn => world.patch_spec(&json!({"groups": 1})).await,
            Delete | DeleteDuringScaleOut => world.delete().await,
        }
    }

    fn ends(self) -> bool {
        matches!(self, Delete | DeleteDuringScaleOut)
    }

    /// Checks the state after the transition.
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

/// State after a transition.
struct End {
    objects: BTreeMap<String, Value>,
    members: BTreeMap<u64, u32>,
    /// Number of writes of the transition.
    writes: usize,
}

impl Sequence {
    /// Runs the first `transitions` transitions, each with the given fault.
    async fn run(self, transitions: usize, fault: Option<(usize, Fault)>) -> Vec<End> {
        let mut spec = small(2);
        let [removed, deleted] = self.volumes;
        spec["storage"] = json!({"onGroupRemoval": removed, "onClusterDeletion": deleted});
        let mut world = World::new(self.name, &spec).await;
        let mut ends = Vec::new();
        for (number, transition) in self.transitions[..transitions].iter().enumerate() {
            transition.before(&mut world).await;
            transition.begin(&mut world).await;
            let before = world.faults.count();
            let fault = fault.filter(|_| number >= self.from);
            if let Some((write, fault)) = fault {
                world.faults.inject_at(write, fault);
            }
            world.settle().await;
            world.faults.cancel();
            let end = End {
                objects: world.objects().await,
                members: world.store(|it| it.members()),
                writes: world.faults.count() - before,
            };
            transition.check(&end);
            ends.push(end);
        }
        ends
    }

    /// Runs the sequence once for every write, with a fault at that write.
    async fn run_with_faults(self, way: fn(usize) -> Fault) {
        let first = self.run(self.transitions.len(), None).await;
        let volumes = |end: &End| {
            let names = end.objects.keys();
            names.filter(|it| it.starts_with("persistent")).count()
        };
        // The last transition leaves volumes exactly if the policy retains them.
        let last = first.last().unwrap();
        assert_eq!(volumes(last) > 0, self.volumes[1] == "Retain");
        let most = first[self.from..].iter().map(|end| end.writes).max();
        // Transitions after the last one with enough writes would have no fault.
        let transitions = |number| {
            let disturbed = first.iter().rposition(|end| end.writes >= number);
            disturbed.unwrap() + 1
        };
        let runs = (1..=most.unwrap()).map(async |number| {
            let fault = Some((number, way(number)));
            (number, self.run(transitions(number), fault).await)
        });
        let mut runs = futures::stream::iter(runs).buffer_unordered(CONCURRENT_RUNS);
        while let Some((number, ends)) = runs.next().await {
            for ((transition, first), end) in self.transitions.iter().zip(&first).zip(&ends) {
                let what = format!("{transition:?}, {:?} at write {number}", way(number));
                assert_eq!(first.members, end.members, "{what}");
                same(&first.objects, &end.objects, &what);
            }
        }
    }
}

fn crashes(_: usize) -> Fault {
    Fault::Crash
}

/// A lost request has the same effect as the lost response to the write before it, so alternating between them is enough.
fn disconnects(write: usize) -> Fault {
    match write % 2 {
        0 => Fault::LoseRequest,
        _ => Fault::LoseResponse,
    }
}

const ALL_TRANSITIONS: Sequence = Sequence {
    name: "crash-all",
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
const ALL_TRANSITIONS_RETAIN: Sequence = Sequence {
    name: "disconnect-all",
    volumes: ["Retain", "Delete"],
    transitions: &[Create, Change, ScaleOut, CancelScaleIn, ScaleIn, Delete],
    from: 0,
};
const DELETION: Sequence = Sequence {
    name: "crash-deletion",
    volumes: ["Retain", "Delete"],
    transitions: &[Create, Delete],
    from: 1,
};
const DELETION_DURING_SCALE_OUT: Sequence = Sequence {
    name: "disconnect-deletion",
    volumes: ["Delete", "Delete"],
    transitions: &[Create, DeleteDuringScaleOut],
    from: 1,
};

#[tokio::test]
async fn crashes_at_each_write_of_all_transitions() {
    ALL_TRANSITIONS.run_with_faults(crashes).await;
}

#[tokio::test]
async fn disconnects_at_each_write_of_all_transitions() {
    ALL_TRANSITIONS_RETAIN.run_with_faults(disconnects).await;
}

#[tokio::test]
async fn crashes_at_each_write_of_a_deletion() {
    DELETION.run_with_faults(crashes).await;
}

#[tokio::test]
async fn disconnects_at_each_write_of_a_deletion_during_a_scale_out() {
    DELETION_DURING_SCALE_OUT.run_with_faults(disconnects).await;
}
