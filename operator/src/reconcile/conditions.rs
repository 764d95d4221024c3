//! The conditions: a table of rules that gives the state of a cluster, its reason, and the remedy. Pure.

use super::facts::Facts;
use super::messages as m;
use crate::crd::condition::{AVAILABLE, DEGRADED, PAUSED, PROGRESSING, Verdict};

/// Maximum length of a message; the API server accepts 32768 bytes.
const MAX_MESSAGE: usize = 2_000;

/// A rule of a condition.
pub(super) struct Rule {
    /// Type of the condition.
    pub(super) of: &'static str,
    /// Its status; `None` is `Unknown`.
    pub(super) holds: Option<bool>,
    /// Its reason.
    pub(super) reason: &'static str,
    /// True if the message is added to those of earlier rules of the condition; otherwise the rule applies only if no
    /// earlier one does.
    adds: bool,
    /// Returns the message if the rule applies.
    pub(super) message: Message,
}

/// Returns the message of a rule that applies.
type Message = fn(&Facts<'_>) -> Option<String>;

const fn is(of: &'static str, reason: &'static str, message: Message) -> Rule {
    rule(of, Some(true), reason, message)
}

const fn is_not(of: &'static str, reason: &'static str, message: Message) -> Rule {
    rule(of, Some(false), reason, message)
}

const fn unknown(of: &'static str, reason: &'static str, message: Message) -> Rule {
    rule(of, None, reason, message)
}

/// A problem. All problems are in the message, and the first, which is most likely the cause, is the reason.
const fn problem(reason: &'static str, message: Message) -> Rule {
    Rule {
        adds: true,
        ..rule(DEGRADED, Some(true), reason, message)
    }
}

const fn rule(
    of: &'static str,
    holds: Option<bool>,
    reason: &'static str,
    message: Message,
) -> Rule {
    Rule {
        of,
        holds,
        reason,
        adds: false,
        message,
    }
}

/// All rules. The first rule of a condition that applies gives its status and reason.
pub(super) const RULES: &[Rule] = &[
    unknown(AVAILABLE, "InvalidSpec", m::invalid),
    is_not(AVAILABLE, "Deleting", m::being_deleted),
    unknown(AVAILABLE, "StoreUnreachable", m::unanswered),
    is_not(AVAILABLE, "GroupsLost", m::forgotten),
    is_not(AVAILABLE, "Creating", m::not_serving),
    is_not(AVAILABLE, "NoLeader", m::headless),
    is_not(AVAILABLE, "Stalled", m::keys_wait),
    is(AVAILABLE, "AllServing", m::all_serving),
    //
    is_not(PROGRESSING, "InvalidSpec", m::invalid),
    is_not(PROGRESSING, "Paused", m::paused),
    is_not(PROGRESSING, "GroupsLost", m::changes_stopped),
    is(PROGRESSING, "Deleting", m::deleting),
    is(PROGRESSING, "Creating", m::creating),
    is(PROGRESSING, "ScalingOut", m::arriving),
    is(PROGRESSING, "ScalingIn", m::leaving),
    is(PROGRESSING, "Creating", m::disappearing),
    is(PROGRESSING, "ScalingOut", m::too_few),
    is(PROGRESSING, "ScalingIn", m::too_many),
    is(PROGRESSING, "RollingOut", m::rolling),
    is(PROGRESSING, "Rebalancing", m::rebalancing),
    is(PROGRESSING, "Starting", m::starting),
    is(PROGRESSING, "RollingOut", m::rolled),
    is_not(PROGRESSING, "Stable", m::stable),
    //
    problem("InvalidSpec", m::invalid),
    problem("GroupsLost", m::lost),
    problem("NameTaken", m::taken),
    problem("NewerOperator", m::outranked),
    problem("ApplyRefused", m::apply_refused),
    problem("Refused", m::change_refused),
    problem("PodsNotReady", m::broken_pods),
    problem("StoreUnreachable", m::unreachable),
    problem("Stalled", m::stalled),
    problem("NodesInTrouble", m::troubled_nodes),
    is(DEGRADED, "PodsNotReady", m::missing_pods),
    is_not(DEGRADED, "AsExpected", m::as_expected),
    //
    is_not(PAUSED, "Running", m::invalid_runs),
    is(PAUSED, "Paused", m::paused),
    is_not(PAUSED, "Running", m::running),
];

/// Computes the four conditions.
pub(super) fn verdicts(facts: &Facts<'_>) -> Vec<Verdict> {
    let types = [AVAILABLE, PROGRESSING, DEGRADED, PAUSED];
    types
        .into_iter()
        .filter_map(|of| verdict(of, facts))
        .collect()
}

fn verdict(of: &str, facts: &Facts<'_>) -> Option<Verdict> {
    let mut first: Option<&Rule> = None;
    let mut messages: Vec<String> = Vec::new();
    for rule in RULES.iter().filter(|rule| rule.of == of) {
        if (first.is_none() || rule.adds)
            && let Some(message) = (rule.message)(facts)
        {
            first.get_or_insert(rule);
            messages.push(message);
        }
    }
    messages.dedup();
    first.map(|rule| Verdict {
        of: rule.of,
        holds: rule.holds,
        reason: rule.reason,
        message: truncated(messages.join(" ")),
    })
}

fn truncated(mut message: String) -> String {
    let mut ends = (0..=MAX_MESSAGE).rev();
    if let Some(end) = ends.find(|end| message.is_char_boundary(*end)) {
        message.truncate(end);
    }
    message
}
