use super::*;

fn after(detail: &ErrorDetail, repeat: Repeat) -> (Next, bool) {
    let mut engine = SingleCall::new(repeat, POLICY, Jitter::new(1));
    engine.handle_sent();
    let refused = api::refused(detail.clone());
    let known = Some(ConfigNum(1));
    let next = engine.handle_refusal(Duration::ZERO, refused, known, false);
    (next, engine.attempts.doubt)
}

fn is_followed(detail: &ErrorDetail, repeat: Repeat) -> bool {
    let (next, _) = after(detail, repeat);
    matches!(next, Next::Retry { .. } | Next::AwaitConfig { .. })
}

#[test]
fn refusals_are_followed_unless_harm_could_be_done() {
    let cases = [
        (errors::not_leader("a:1"), true, true),
        (errors::wrong_group(7), true, true),
        (errors::wrong_cluster("a", "b"), true, true),
        (errors::outcome_unknown(""), false, true),
        (errors::unavailable("stopping", 1), false, true),
        (errors::shard_not_ready(20), true, true),
        (errors::overloaded("requests", 1, 1), false, false),
        (errors::session_expired(), false, false),
        (errors::session_from_future(9), false, false),
    ];
    for (detail, always, repeatable) in cases {
        assert_eq!(is_followed(&detail, Repeat::Never), always, "{detail:?}");
        for repeat in [Repeat::Freely, Repeat::ByName] {
            assert_eq!(is_followed(&detail, repeat), repeatable, "{detail:?}");
        }
    }
}

#[test]
fn no_refusal_hides_that_an_earlier_attempt_is_in_doubt() {
    let doubtful = |detail: &ErrorDetail| after(detail, Repeat::ByName).1;
    for detail in [
        errors::wrong_group(7),
        errors::not_leader("a:1"),
        errors::shard_not_ready(20),
        errors::overloaded("requests", 1, 1),
        errors::session_from_future(9),
        errors::disk_full(),
    ] {
        assert!(!doubtful(&detail), "{detail:?}");
        let error = in_doubt(detail);
        assert!(matches!(error.kind, Some(Kind::OutcomeUnknown(_))));
    }
    assert_eq!(
        in_doubt(errors::session_expired()),
        errors::session_expired()
    );
    assert!(doubtful(&errors::outcome_unknown("")));
    assert!(doubtful(&errors::unavailable("stopping", 1)));
}

#[test]
fn forwarded_requests_say_so() {
    assert!(is_forbidden(once(()).metadata()));
    assert!(!is_forbidden(Request::new(()).metadata()));
}
