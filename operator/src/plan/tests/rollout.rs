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

#[test]
fn parts_change_one_after_the_other_and_only_while_the_others_are_whole() {
    use Pods::{Broken, Rolling, Short};
    let (one, two) = (group(1), group(2));
    let all = [CONTROLLERS, one, two];
    #[rustfmt::skip]
    let rows: &[(&str, &[(Component, Pods)], &[Component], &[Component], &[Component])] = &[
        ("all are whole", &[], &all, &[], &[]),
        ("one is being replaced: a correction may reach it", &[(one, Rolling)], &[], &[CONTROLLERS, two], &[one]),
        ("so are two", &[(CONTROLLERS, Rolling), (two, Rolling)], &[], &[one], &[CONTROLLERS, two]),
        ("one lacks a pod", &[(two, Short)], &[], &all, &[two]),
        ("a change may mend it", &[(two, Broken)], &[two], &[CONTROLLERS, one], &[two]),
        ("or both, one after the other", &[(one, Broken), (two, Broken)], &[one, two], &[CONTROLLERS], &[one, two]),
        ("but not while a third is being replaced", &[(CONTROLLERS, Rolling), (two, Broken)], &[], &[one, two], &[CONTROLLERS, two]),
        ("and not the one that lacks a pod", &[(one, Short), (two, Broken)], &[two], &[CONTROLLERS, one], &[one, two]),
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
    for intent in [Intent::Pause, Intent::Delete] {
        seen.intent = intent;
        assert_eq!(decide(&seen).rollout, Rollout::default());
    }
}
