//! The search finds an order exactly if there is one.

use super::*;

fn put(value: &str) -> Action {
    Action::Put {
        value: Value::of(value.as_bytes()),
    }
}
fn get(value: Option<&str>) -> Action {
    Action::Get {
        value: value.map(|value| Value::of(value.as_bytes())),
    }
}
fn append(suffix: &str, length: Option<u64>) -> Action {
    Action::Append {
        suffix: suffix.as_bytes().to_vec(),
        length,
    }
}
fn cas(expected: Option<&str>, new: Option<&str>, swapped: Option<bool>) -> Action {
    Action::CompareAndSwap {
        expected: expected.map(|value| Value::of(value.as_bytes())),
        new: new.map(|value| Value::of(value.as_bytes())),
        swapped,
    }
}

/// Checks operations given as (invoked, returned, action). A return of 0 is unknown.
fn verdict(history: &[(u64, u64, Action)]) -> Verdict {
    let history: Vec<Operation> = history
        .iter()
        .map(|(invoked, returned, action)| Operation {
            invoked: *invoked,
            returned: (*returned > 0).then_some(*returned),
            action: action.clone(),
            hint: None,
        })
        .collect();
    check(&history, 100_000)
}

#[track_caller]
fn good(history: &[(u64, u64, Action)]) {
    assert!(
        matches!(verdict(history), Verdict::Linearizable(_)),
        "{:?}",
        verdict(history)
    );
}
#[track_caller]
fn bad(history: &[(u64, u64, Action)]) {
    assert_eq!(verdict(history), Verdict::Violated);
}

#[test]
fn one_after_the_other() {
    good(&[]);
    good(&[
        (1, 2, get(None)),
        (3, 4, put("a")),
        (5, 6, append("b", Some(2))),
        (7, 8, get(Some("ab"))),
        (
            9,
            10,
            Action::Delete {
                existed: Some(true),
            },
        ),
        (11, 12, get(None)),
    ]);
}

#[test]
fn a_read_of_an_old_value_after_the_write_returned_is_stale() {
    bad(&[(1, 2, put("a")), (3, 4, put("b")), (5, 6, get(Some("a")))]);
    bad(&[(1, 2, put("a")), (3, 4, get(None))]);
}

#[test]
fn a_concurrent_read_may_see_either() {
    good(&[(1, 2, put("a")), (3, 6, put("b")), (4, 5, get(Some("a")))]);
    good(&[(1, 2, put("a")), (3, 6, put("b")), (4, 5, get(Some("b")))]);
}

#[test]
fn reads_do_not_run_backwards() {
    bad(&[
        (1, 2, put("a")),
        (3, 10, put("b")),
        (4, 5, get(Some("b"))),
        (6, 7, get(Some("a"))),
    ]);
}

#[test]
fn two_clients_do_not_see_two_orders() {
    bad(&[
        (1, 20, put("a")),
        (2, 21, put("b")),
        (3, 4, get(Some("a"))),
        (5, 6, get(Some("b"))),
        (7, 8, get(Some("a"))),
    ]);
}

#[test]
fn an_unknown_write_may_happen_late_or_never() {
    good(&[(1, 0, put("a")), (2, 3, get(None)), (4, 5, get(None))]);
    good(&[(1, 0, put("a")), (2, 3, get(None)), (4, 5, get(Some("a")))]);
    bad(&[(1, 0, put("a")), (2, 3, get(Some("a"))), (4, 5, get(None))]);
    bad(&[(4, 0, put("a")), (2, 3, get(Some("a")))]);
}

#[test]
fn a_double_append_shows() {
    bad(&[(1, 2, append("x", Some(1))), (3, 4, get(Some("xx")))]);
    bad(&[(1, 0, append("x", None)), (3, 4, get(Some("xx")))]);
    bad(&[(1, 2, append("x", Some(2)))]);
}

#[test]
fn a_lost_write_shows() {
    bad(&[
        (1, 2, append("x", Some(1))),
        (3, 4, append("y", Some(2))),
        (5, 6, get(Some("y"))),
    ]);
}

#[test]
fn compare_and_swap_is_one_step() {
    good(&[
        (1, 2, cas(None, Some("a"), Some(true))),
        (3, 8, cas(Some("a"), Some("b"), Some(true))),
        (4, 9, cas(Some("a"), Some("c"), Some(false))),
        (10, 11, get(Some("b"))),
    ]);
    bad(&[
        (1, 2, put("a")),
        (3, 8, cas(Some("a"), Some("b"), Some(true))),
        (4, 9, cas(Some("a"), Some("c"), Some(true))),
    ]);
    bad(&[(1, 2, cas(Some("a"), None, Some(true)))]);
    good(&[
        (1, 2, put("a")),
        (3, 0, cas(Some("a"), None, None)),
        (4, 5, get(None)),
    ]);
    bad(&[(
        1,
        2,
        Action::Delete {
            existed: Some(true),
        },
    )]);
}

#[test]
fn the_budget_is_kept() {
    // No order of these concurrent appends fits the read, so the search must try every order.
    let mut history: Vec<Operation> = (0..14)
        .map(|n| Operation {
            invoked: n + 1,
            returned: Some(100 + n),
            action: append(&"x".repeat(usize::try_from(n).unwrap() + 1), None),
            hint: None,
        })
        .collect();
    history.push(Operation {
        invoked: 200,
        returned: Some(201),
        action: get(Some("nothing like it")),
        hint: None,
    });
    assert_eq!(check(&history, 1_000), Verdict::Unknown);
}

#[test]
fn wrong_hints_change_no_verdict() {
    let writes = [put("a"), append("b", None), append("c", None)];
    let mut history: Vec<Operation> = (0..3)
        .zip(writes)
        .map(|(n, action)| Operation {
            invoked: n + 1,
            returned: (n != 1).then_some(20 + n),
            action,
            hint: Some(9 - n),
        })
        .collect();
    let read = |value| Operation {
        invoked: 30,
        returned: Some(31),
        action: get(Some(value)),
        hint: Some(0),
    };
    history.push(read("abc"));
    assert!(matches!(check(&history, 1_000), Verdict::Linearizable(_)));
    history.pop();
    history.push(read("acbc"));
    assert_eq!(check(&history, 1_000), Verdict::Violated);
}

#[test]
fn a_long_busy_history_is_quick() {
    // Eight clients append by turns, each overlapping the next ones.
    let mut text = String::new();
    let mut history = Vec::new();
    for n in 0..400u64 {
        let suffix = format!("<{n}>");
        text.push_str(&suffix);
        let returned = if n % 7 == 0 { None } else { Some(n * 10 + 78) };
        history.push(Operation {
            invoked: n * 10 + 1,
            returned,
            action: append(&suffix, None),
            hint: Some(n),
        });
        if n % 5 == 0 {
            history.push(Operation {
                invoked: n * 10 + 3,
                returned: Some(n * 10 + 79),
                action: get(Some(&text)),
                hint: None,
            });
        }
    }
    assert!(matches!(
        check(&history, 100_000),
        Verdict::Linearizable(steps) if steps < 5_000
    ));
}
