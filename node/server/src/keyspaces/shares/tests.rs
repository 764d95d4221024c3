use futures::FutureExt as _;

use super::*;

fn budget(total: usize, percent: u32) -> Arc<FairBudget> {
    FairBudget::new(Bounds {
        what: "units",
        total,
        max_each: usize::MAX,
        percent,
        max_waiting: 2,
        patience: Duration::from_secs(10),
    })
}

/// Takes one unit after the other until a keyspace is refused.
fn fill(budget: &Arc<FairBudget>, keyspace: &str) -> Vec<Share> {
    std::iter::from_fn(|| budget.try_take(keyspace, 1).ok()).collect()
}

#[test]
fn a_keyspace_alone_gets_its_percentage_and_a_newcomer_finds_room() {
    let budget = budget(900, 66);
    let first = fill(&budget, "a");
    assert_eq!(first.len(), 594);
    let mut all = Vec::new();
    for n in 0..5 {
        let share = fill(&budget, &format!("tenant-{n}"));
        assert!(!share.is_empty(), "keyspace {n} finds no room");
        all.push(share);
    }
    assert!(budget.used() < 900);
    assert!(
        budget.try_take("a", 1).is_err(),
        "it holds more than its part"
    );
    drop(first);
    assert!(budget.try_take("a", 1).is_ok());
    drop(all);
    assert_eq!(budget.used(), 0);
    assert!(budget.lock().all.is_empty(), "nothing held, nothing kept");
}

#[test]
fn keyspaces_that_all_want_everything_end_with_equal_parts() {
    let budget = budget(1_000, 50);
    let mut held: Vec<Vec<Share>> = (0..4).map(|_| Vec::new()).collect();
    for _ in 0..1_000 {
        for (n, shares) in held.iter_mut().enumerate() {
            shares.extend(budget.try_take(&format!("t{n}"), 1));
        }
    }
    let lengths: Vec<_> = held.iter().map(Vec::len).collect();
    assert_eq!(lengths, [200, 200, 200, 200], "and as much is free");
}

#[test]
fn a_bound_for_each_keyspace_holds_whatever_is_free() {
    let few = FairBudget::new(Bounds {
        max_each: 3,
        ..budget(1_000, 66).bounds
    });
    assert_eq!(fill(&few, "a").len(), 3);
    let whole = FairBudget::new(budget(10, 100).bounds);
    assert_eq!(fill(&whole, "a").len(), 10, "100 percent is the whole");
}

#[tokio::test(start_paused = true)]
async fn a_call_waits_behind_those_of_its_keyspace_only() {
    let budget = budget(100, 50);
    let first = budget.take("a", 50).await.unwrap();
    let mut second = Box::pin(budget.take("a", 30));
    assert!((&mut second).now_or_never().is_none(), "it waits");
    assert!(budget.try_take("a", 1).is_err(), "it would pass the second");
    assert!(budget.take("b", 25).now_or_never().is_some(), "a neighbour");
    let third = budget.take("a", 30);
    drop(first);
    assert!(second.await.is_ok());
    assert!(third.await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn calls_that_wait_are_bounded_and_end() {
    let budget = budget(100, 50);
    let held = budget.try_take("a", 50).unwrap();
    let mut waiting: Vec<_> = (0..2).map(|_| Box::pin(budget.take("a", 10))).collect();
    for call in &mut waiting {
        assert!(call.now_or_never().is_none());
    }
    let refused = budget.take("a", 10).now_or_never();
    assert!(refused.unwrap().is_err(), "two wait already");
    drop(waiting);
    let late = budget.take("a", 10).await;
    assert!(late.is_err(), "its time is over");
    drop(held);
    assert_eq!(budget.used(), 0);
    assert!(budget.lock().all.is_empty());
    assert!(budget.lock().waiting.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_call_that_goes_leaves_its_turn_to_those_behind_it() {
    let budget = budget(100, 50);
    let _held = budget.take("a", 40).await.unwrap();
    let mut large = Box::pin(budget.take("a", 30));
    assert!((&mut large).now_or_never().is_none());
    let mut small = Box::pin(budget.take("a", 5));
    assert!((&mut small).now_or_never().is_none(), "behind the large");
    drop(large);
    let small = small.now_or_never().expect("it fits");
    assert!(small.is_ok());
    assert!(budget.try_take("a", 5).is_ok(), "nothing waits");
    drop(small);

    // One that has waited too long, while the other may wait on.
    let mut large = Box::pin(budget.take("a", 30));
    assert!((&mut large).now_or_never().is_none());
    tokio::time::advance(Duration::from_secs(6)).await;
    let small = async {
        let small = budget.take("a", 5).await;
        (small.is_ok(), tokio::time::Instant::now())
    };
    let end = tokio::time::Instant::now() + Duration::from_secs(5);
    let (large, (granted, when)) = tokio::join!(large, small);
    assert!(large.is_err() && granted && when < end);
    assert!(budget.lock().waiting.is_empty());
}

#[tokio::test(start_paused = true)]
async fn keyspaces_with_many_calls_that_wait_take_turns() {
    let budget = budget(100, 100);
    let mut held = budget.try_take("x", 100).unwrap();
    let wait = |keyspace: &'static str| {
        let mut call = Box::pin(budget.take(keyspace, 100));
        assert!((&mut call).now_or_never().is_none(), "{keyspace} waits");
        (keyspace, call)
    };
    // Each always has two calls, the last of which came after its last turn.
    let mut waiting = vec![wait("a"), wait("a"), wait("b"), wait("b")];
    let mut turns = String::new();
    for _ in 0..6 {
        drop(held);
        let mut ready = None;
        for (at, (_, call)) in waiting.iter_mut().enumerate() {
            if let Some(share) = call.now_or_never() {
                assert!(ready.is_none(), "there is room for one");
                ready = Some((at, share.unwrap()));
            }
        }
        let (at, share) = ready.expect("one has its turn");
        let (keyspace, call) = waiting.remove(at);
        drop(call);
        turns.push_str(keyspace);
        held = share;
        waiting.push(wait(keyspace));
    }
    assert_eq!(turns, "ababab");
}

#[tokio::test(start_paused = true)]
async fn a_share_that_nobody_waits_for_any_more_is_given_back() {
    let budget = budget(100, 50);
    let held = budget.try_take("a", 50).unwrap();
    let mut call = Box::pin(budget.take("a", 10));
    assert!((&mut call).now_or_never().is_none());
    drop(held);
    assert_eq!(budget.used(), 10, "it is granted");
    drop(call);
    assert_eq!(budget.used(), 0);
}

#[test]
fn shares_shrink_and_merge() {
    let budget = budget(100, 50);
    let mut share = budget.try_take("a", 40).unwrap();
    share.shrink(5);
    share.shrink(7);
    assert_eq!((share.amount(), budget.used()), (5, 5));
    share.merge(budget.try_take("a", 2).unwrap());
    assert_eq!((share.amount(), budget.used()), (7, 7));
    drop(share);
    assert_eq!(budget.used(), 0);
}
