//! Conditions: what people and `kubectl wait` look at.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// Every key can be read and written.
pub const AVAILABLE: &str = "Available";
/// Something is being changed.
pub const PROGRESSING: &str = "Progressing";
/// Something needs a look.
pub const DEGRADED: &str = "Degraded";
/// Nothing is changed because the user asked so.
pub const PAUSED: &str = "Paused";

/// What holds of a cluster now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// One of the types above.
    pub of: &'static str,
    /// Whether it is so; `None` when that can't be told.
    pub holds: Option<bool>,
    /// One word in camel case, for programs.
    pub reason: &'static str,
    /// A sentence that explains the reason.
    pub message: String,
}

/// The conditions from now on. Each keeps the time of its last transition unless it really changes, so that nothing is
/// written when nothing has changed; conditions of other types stay as they are.
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
    fn only_a_transition_changes_the_time() {
        let first = merge(&[], &[available(Some(true), "a")], Some(1), &at(1));
        assert_eq!(
            (first[0].status.as_str(), &first[0].last_transition_time),
            ("True", &at(1))
        );
        let same = merge(&first, &[available(Some(true), "a")], Some(1), &at(2));
        assert_eq!(same, first, "nothing to write");
        let told = merge(&first, &[available(Some(true), "b")], Some(2), &at(2));
        assert_eq!(
            (told[0].message.as_str(), told[0].observed_generation),
            ("b", Some(2))
        );
        assert_eq!(told[0].last_transition_time, at(1));
        let unknown = merge(&told, &[available(None, "c")], Some(2), &at(3));
        assert_eq!(
            (unknown[0].status.as_str(), &unknown[0].last_transition_time),
            ("Unknown", &at(3))
        );
    }

    #[test]
    fn each_type_stands_once_and_those_of_others_stay() {
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
