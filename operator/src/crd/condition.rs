//! Conditions of a cluster, which users read and `kubectl wait` waits for.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// Type of the condition: every key can be read and written.
pub const AVAILABLE: &str = "Available";
/// Type of the condition: a change is in progress.
pub const PROGRESSING: &str = "Progressing";
/// Type of the condition: something is wrong and needs attention.
pub const DEGRADED: &str = "Degraded";
/// Type of the condition: the operator changes nothing because `spec.paused` is true.
pub const PAUSED: &str = "Paused";

/// Type of the condition of a keyspace: clients can read and write.
pub const READY: &str = "Ready";

/// New value of a condition, without its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Type of the condition: one of the constants above.
    pub of: &'static str,
    /// Status: true, false, or `None` for unknown.
    pub holds: Option<bool>,
    /// Reason as one word in camel case, for programs.
    pub reason: &'static str,
    /// A sentence that explains the reason.
    pub message: String,
}

/// Returns the new conditions. A condition whose status is unchanged keeps the time of its last transition, so that the
/// operator writes nothing when nothing has changed. Conditions of other types stay as they are.
pub fn merge(
    before: &[Condition],
    verdicts: &[Verdict],
    generation: Option<i64>,
    now: &Time,
) -> Vec<Condition> {
    let ours = |condition: &&Condition| verdicts.iter().any(|it| it.of == condition.type_);
    let others = before.iter().filter(|condition| !ours(condition)).cloned();
    let judged = verdicts.iter().map(|verdict| {
        let status = match verdict.holds {
            Some(true) => "True",
            Some(false) => "False",
            None => "Unknown",
        };
        let same = |old: &&Condition| old.type_ == verdict.of && old.status == status;
        let since = before.iter().find(same);
        Condition {
            type_: verdict.of.to_owned(),
            status: status.to_owned(),
            reason: verdict.reason.to_owned(),
            message: verdict.message.clone(),
            observed_generation: generation,
            last_transition_time: since.map_or(now, |old| &old.last_transition_time).clone(),
        }
    });
    let mut conditions: Vec<Condition> = judged.chain(others).collect();
    conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
    conditions
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).unwrap())
    }

    fn available(holds: Option<bool>, message: &str) -> Verdict {
        let message = message.to_owned();
        Verdict {
            of: AVAILABLE,
            holds,
            reason: "AllServing",
            message,
        }
    }

    #[test]
    fn only_a_change_of_the_status_changes_the_time() {
        let first = merge(&[], &[available(Some(true), "a")], Some(1), &at(1));
        assert_eq!(
            (first[0].status.as_str(), &first[0].last_transition_time),
            ("True", &at(1))
        );
        let same = merge(&first, &[available(Some(true), "a")], Some(1), &at(2));
        assert_eq!(same, first, "nothing to write");
        let new_message = merge(&first, &[available(Some(true), "b")], Some(2), &at(2));
        assert_eq!(
            (
                new_message[0].message.as_str(),
                new_message[0].observed_generation
            ),
            ("b", Some(2))
        );
        assert_eq!(new_message[0].last_transition_time, at(1));
        let unknown = merge(&new_message, &[available(None, "c")], Some(2), &at(3));
        assert_eq!(
            (unknown[0].status.as_str(), &unknown[0].last_transition_time),
            ("Unknown", &at(3))
        );
    }

    #[test]
    fn a_type_occurs_once_and_other_types_stay() {
        let paused = Verdict {
            of: PAUSED,
            holds: Some(false),
            reason: "Running",
            message: String::new(),
        };
        let first = merge(&[], &[paused, available(Some(false), "a")], None, &at(1));
        let second = merge(&first, &[available(Some(true), "a")], None, &at(2));
        let shown: Vec<_> = second
            .iter()
            .map(|it| (it.type_.as_str(), it.status.as_str()))
            .collect();
        assert_eq!(shown, [("Available", "True"), ("Paused", "False")]);
        assert_eq!(second[1], first[1]);
    }
}
