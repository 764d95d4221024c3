//! Turns of parts in a rollout.

use super::table::world;
use super::*;
use crate::parts::Component;

const CONTROLLERS: Component = Component::Controller;

fn group(gid: u64) -> Component {
    Component::Group(gid)
}

/// Returns the turns in a cluster of two groups whose pods are whole but for these.
fn turns(pods: &[(Component, Pods)]) -> Rollout {
    let mut seen = world(2, "1 member, 2 member", &[1, 2], &[(1, 5), (2, 5)]);
    seen.pods.extend(pods.iter().copied());
    decide(&seen).rollout
}

fn set(parts: &[Component]) -> BTreeSet<Component> {
    parts.iter().copied().collect()
}

/// A name, the parts whose pods aren't whole, and the parts that may change, are held, and are waited for.
type Row = (
    &'static str,
    &'static [(Component, Pods)],
    &'static [Component],
    &'static [Component],
    &'static [Component],
);

#[test]
fn parts_change_one_after_the_other_and_only_while_the_others_are_whole() {
    use Pods::{Broken, Curable, Rolling, Short};
    const ONE: Component = Component::Group(1);
    const TWO: Component = Component::Group(2);
    const ALL: &[Component] = &[CONTROLLERS, ONE, TWO];
    #[rustfmt::skip]
    let rows: &[Row] = &[
        ("all are whole", &[], ALL, &[], &[]),
        ("one is being replaced: a correction may reach it", &[(ONE, Rolling)], &[], &[CONTROLLERS, TWO], &[ONE]),
        ("so are two", &[(CONTROLLERS, Rolling), (TWO, Rolling)], &[], &[ONE], &[CONTROLLERS, TWO]),
        ("one lacks a pod", &[(TWO, Short)], &[], ALL, &[TWO]),
        ("a change may mend it", &[(TWO, Curable)], &[TWO], &[CONTROLLERS, ONE], &[TWO]),
        ("or both, one after the other", &[(ONE, Curable), (TWO, Curable)], &[ONE, TWO], &[CONTROLLERS], &[ONE, TWO]),
        ("but not while a third is being replaced", &[(CONTROLLERS, Rolling), (TWO, Curable)], &[], &[ONE, TWO], &[CONTROLLERS, TWO]),
        ("and not the one that lacks a pod", &[(ONE, Short), (TWO, Curable)], &[TWO], &[CONTROLLERS, ONE], &[ONE, TWO]),
        ("those without a majority have nothing to lose", &[(ONE, Broken), (TWO, Broken)], &[], &[CONTROLLERS], &[ONE, TWO]),
        ("also while a third is being replaced", &[(CONTROLLERS, Rolling), (TWO, Broken)], &[], &[ONE], &[CONTROLLERS, TWO]),
    ];
    for (name, pods, next, held, unwell) in rows {
        let expected = Rollout {
            next: set(next),
            held: set(held),
            unwell: set(unwell),
        };
        assert_eq!(turns(pods), expected, "{name}");
    }
}

#[test]
fn groups_without_shards_neither_wait_nor_are_waited_for() {
    // 1 serves, 2 joins, 3 is new, 4 is drained, 5 hands over.
    let settled = [(1, 5), (2, 4), (5, 4)];
    let mut seen = world(
        2,
        "1 member, 2 member, 3 new, 4 leaving, 5 leaving",
        &[1, 2],
        &settled,
    );
    seen.pods = seen
        .pods
        .into_keys()
        .map(|part| (part, Pods::Short))
        .collect();
    let rollout = decide(&seen).rollout;
    let counted = set(&[CONTROLLERS, group(1), group(2), group(5)]);
    assert_eq!((rollout.held, rollout.unwell), (counted.clone(), counted));
    // A member whose `StatefulSet` is gone, and is made again, lacks all its pods.
    let mut seen = world(2, "1 member", &[1, 2], &[(1, 5), (2, 5)]);
    assert_eq!(decide(&seen).rollout.unwell, set(&[group(2)]));
    seen.pods.remove(&CONTROLLERS);
    assert_eq!(decide(&seen).rollout.unwell, set(&[CONTROLLERS, group(2)]));
    // A group that seems to be new may have joined, if the controllers don't say so.
    let mut seen = world(2, "1 member, 2 new", &[1], &[(1, 5)]);
    seen.pods.insert(group(2), Pods::Short);
    assert_eq!(decide(&seen).rollout.unwell, set(&[]));
    seen.store = None;
    assert_eq!(decide(&seen).rollout.unwell, set(&[group(2)]));
    for intent in [Intent::Pause, Intent::Delete] {
        seen.intent = intent;
        assert_eq!(decide(&seen).rollout, Rollout::default());
    }
}
