//! Finds pods that don't run, or can't be created, and explains the reason. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ContainerStatus, Event, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use crate::build::names;
use crate::parts::Component;
use crate::validate::Cluster;

/// Seconds for which an unscheduled pod is normal: volumes are created and machines are added.
const USUAL_SECONDS: i64 = 20;

/// Seconds for which a pod may start and catch up before somebody should look at it.
const LATE_SECONDS: i64 = 600;

/// Waiting reasons of a container that don't resolve by themselves.
const LASTING: &[&str] = &[
    "CrashLoopBackOff",
    "CreateContainerConfigError",
    "CreateContainerError",
    "ErrImageNeverPull",
    "ErrImagePull",
    "ImageInspectError",
    "ImagePullBackOff",
    "InvalidImageName",
    "RunContainerError",
];

/// A pod that needs attention.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    pub(super) pod: String,
    /// A sentence without its full stop. Stays the same between rounds while the problem is the same.
    pub(super) why: String,
    /// True if a change of the pods' template may end it.
    pub(super) curable: bool,
}

/// Returns the pods that need attention, by part.
pub(super) fn troubles(
    cluster: &Cluster,
    pods: &[Pod],
    now: &Time,
) -> BTreeMap<Component, Vec<Trouble>> {
    let mut found: BTreeMap<Component, Vec<Trouble>> = BTreeMap::new();
    for pod in pods {
        let name = pod.name_any();
        let why = waiting(pod).or_else(|| unscheduled(pod, now));
        let curable = why.is_some();
        let why = why.or_else(|| late(pod, now));
        if let (Some(part), Some(why)) = (names::part_of_pod(cluster, &name), why) {
            let trouble = Trouble {
                pod: name,
                why,
                curable,
            };
            found.entry(part).or_default().push(trouble);
        }
    }
    for list in found.values_mut() {
        list.sort_by(|a, b| a.pod.cmp(&b.pod));
    }
    found
}

/// Returns the pods that Kubernetes can't create, by part: a quota or an admission webhook refuses them or their volumes.
/// `lacking` are the parts with too few pods, with the uids of their `StatefulSet`s.
pub(super) fn unmade(
    cluster: &Cluster,
    lacking: &BTreeMap<Component, String>,
    pods: &[Pod],
    events: &[Event],
) -> BTreeMap<Component, Trouble> {
    let find = |(part, uid): (&Component, &String)| {
        let of_part = |pod: &&Pod| names::part_of_pod(cluster, &pod.name_any()) == Some(*part);
        let pods = pods.iter().filter(of_part);
        let newest = pods.filter_map(ResourceExt::creation_timestamp).max();
        let events = events
            .iter()
            .filter(|event| event.involved_object.uid.as_ref() == Some(uid));
        let last = events.max_by_key(|event| told_at(event))?;
        // A pod that was created since shows that what was refused then isn't any more.
        let stands = newest.is_none_or(|newest| told_at(last) >= Some(newest.0));
        let trouble = || refusal(last.message.as_deref()?);
        Some((*part, trouble().filter(|_| stands)?))
    };
    lacking.iter().filter_map(find).collect()
}

fn told_at(event: &Event) -> Option<Timestamp> {
    let last = event.last_timestamp.as_ref().map(|time| time.0);
    let first = event.event_time.as_ref().map(|time| time.0);
    last.or(first)
        .or(event.metadata.creation_timestamp.as_ref().map(|it| it.0))
}

/// Reads a message of the StatefulSet controller, such as `create Pod a-group-1-0 in StatefulSet a-group-1 failed error: ...`.
fn refusal(message: &str) -> Option<Trouble> {
    let (what, why) = message.split_once(" failed error: ")?;
    let pod = what.split("Pod ").nth(1)?.split_whitespace().next()?;
    let what = if what.starts_with("create Claim ") {
        "its volume"
    } else {
        "it"
    };
    Some(Trouble {
        pod: pod.to_owned(),
        why: format!("{what} can't be created: {why}"),
        curable: true,
    })
}

fn waiting(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let init = status.init_container_statuses.iter().flatten();
    let mut all = init.chain(status.container_statuses.iter().flatten());
    all.find_map(container)
}

fn container(status: &ContainerStatus) -> Option<String> {
    let state = status.state.as_ref()?;
    let reason = state.waiting.as_ref()?.reason.as_deref()?;
    if !LASTING.contains(&reason) {
        return None;
    }
    // Kubernetes' messages contain seconds and retry counts; this text must not change while the problem is the same.
    Some(match reason {
        "CrashLoopBackOff" => {
            let last = status.last_state.as_ref();
            let ended = last.and_then(|last| last.terminated.as_ref());
            let how = ended.map_or(String::new(), |ended| {
                let reason = ended.reason.as_deref().unwrap_or("Error");
                format!(", after {reason} with exit code {}", ended.exit_code)
            });
            format!("CrashLoopBackOff{how}; see `kubectl logs --previous`")
        }
        // Kubernetes alternates between these two reasons: pulling, and waiting to retry.
        "ErrImagePull" | "ImagePullBackOff" => format!("ImagePullBackOff of {}", status.image),
        _ if reason.contains("Image") => format!("{reason} of {}", status.image),
        _ => format!("{reason}; see `kubectl describe pod`"),
    })
}

fn unscheduled(pod: &Pod, now: &Time) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let condition = conditions.iter().find(|condition| {
        condition.type_ == "PodScheduled"
            && condition.status == "False"
            && condition.reason.as_deref() == Some("Unschedulable")
    })?;
    let since = condition.last_transition_time.as_ref()?;
    if now.0.as_second() - since.0.as_second() < USUAL_SECONDS {
        return None;
    }
    let why = condition.message.as_deref().unwrap_or("no reason is given");
    Some(format!("no machine takes it: {why}"))
}

/// Returns the text for a pod that runs and hasn't been ready for long: a lost machine, or a node that doesn't catch up.
fn late(pod: &Pod, now: &Time) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let mut conditions = conditions.iter();
    let unready = conditions.find(|it| it.type_ == "Ready" && it.status != "True")?;
    let since = unready.last_transition_time.as_ref()?;
    let why = "it hasn't been ready for 10 minutes; see `kubectl describe pod`, `kubectl logs` and `shardkv status`";
    (now.0.as_second() - since.0.as_second() >= LATE_SECONDS).then(|| why.to_owned())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;
    use serde_json::{Value, json};

    use super::*;
    use crate::build::tests::named;

    fn seen(status: &Value) -> BTreeMap<Component, Vec<Trouble>> {
        let pod = json!({"metadata": {"name": "a-group-2-1"}, "status": status});
        let now = Time(Timestamp::from_second(1_000).unwrap());
        troubles(&named("a"), &[serde_json::from_value(pod).unwrap()], &now)
    }

    fn waiting_for(reason: &str) -> Value {
        json!({"containerStatuses": [{
            "name": "node", "image": "shardkv:9", "imageID": "", "ready": false, "restartCount": 3,
            "state": {"waiting": {"reason": reason, "message": "back-off 40s"}},
            "lastState": {"terminated": {"exitCode": 3, "reason": "Error"}},
        }]})
    }

    #[test]
    fn what_lasts_is_told_and_the_rest_is_not() {
        for (reason, text) in [
            ("ImagePullBackOff", "ImagePullBackOff of shardkv:9"),
            ("ErrImagePull", "ImagePullBackOff of shardkv:9"),
            (
                "CrashLoopBackOff",
                "CrashLoopBackOff, after Error with exit code 3; see `kubectl logs --previous`",
            ),
            (
                "CreateContainerConfigError",
                "CreateContainerConfigError; see `kubectl describe pod`",
            ),
        ] {
            let found = seen(&waiting_for(reason));
            let expected = Trouble {
                pod: "a-group-2-1".to_owned(),
                why: text.to_owned(),
                curable: true,
            };
            assert_eq!(found, [(Component::Group(2), vec![expected])].into());
        }
        for reason in ["ContainerCreating", "PodInitializing"] {
            assert_eq!(seen(&waiting_for(reason)), BTreeMap::new());
        }
        assert_eq!(seen(&json!({})), BTreeMap::new());
    }

    #[test]
    fn what_a_quota_refuses_is_told_until_a_pod_is_created() {
        let quota = r#"pods "a-group-2-1" is forbidden: exceeded quota: few, requested: pods=1, used: pods=2, limited: pods=2"#;
        let event = |uid: &str, second: i64, message: &str| -> Event {
            let last = Timestamp::from_second(second).unwrap().to_string();
            let event = json!({"metadata": {}, "involvedObject": {"uid": uid}, "message": message, "lastTimestamp": last});
            serde_json::from_value(event).unwrap()
        };
        let pod = |name: &str, second: i64| -> Pod {
            let made = Timestamp::from_second(second).unwrap().to_string();
            let pod = json!({"metadata": {"name": name, "creationTimestamp": made}});
            serde_json::from_value(pod).unwrap()
        };
        let of_pod =
            format!("create Pod a-group-2-1 in StatefulSet a-group-2 failed error: {quota}");
        let events = [
            event(
                "s",
                100,
                "create Claim data-a-group-2-1 Pod a-group-2-1 in StatefulSet a-group-2 failed error: too many",
            ),
            event("s", 200, &of_pod),
            event(
                "of another cluster",
                900,
                "create Pod x-0 in StatefulSet x failed error: no",
            ),
        ];
        let lacking = [(Component::Group(2), "s".to_owned())].into();
        let found = |pods: &[Pod], events: &[Event]| {
            unmade(&named("a"), &lacking, pods, events)
                .remove(&Component::Group(2))
                .map(|trouble| (trouble.pod, trouble.why))
        };
        let told = |why: &str| Some(("a-group-2-1".to_owned(), why.to_owned()));
        let refused = told(&format!("it can't be created: {quota}"));
        assert_eq!(found(&[], &events), refused);
        assert_eq!(found(&[pod("a-group-2-0", 200)], &events), refused);
        assert_eq!(found(&[pod("a-group-2-0", 201)], &events), None, "since");
        assert_eq!(found(&[pod("a-group-1-0", 300)], &events), refused);
        let volume = told("its volume can't be created: too many");
        assert_eq!(found(&[], &events[..1]), volume);
        assert_eq!(found(&[], &events[2..]), None);
        assert_eq!(found(&[], &[]), None);
    }

    #[test]
    fn a_pod_that_is_not_ready_for_long_is_told_and_no_template_is_blamed() {
        let unready = |status: &str, second: i64| {
            let since = Timestamp::from_second(second).unwrap().to_string();
            json!({"conditions": [{"type": "Ready", "status": status, "lastTransitionTime": since}]})
        };
        for (status, second, told) in [
            ("False", 400, true),
            ("Unknown", 400, true),
            ("False", 401, false),
            ("True", 0, false),
        ] {
            let found = seen(&unready(status, second));
            assert_eq!(found.len(), usize::from(told), "{status} {second}");
            let late = found.values().flatten();
            assert!(
                late.clone()
                    .all(|it| !it.curable && it.why.contains("10 minutes"))
            );
        }
        // What has a known reason may be mended by another template.
        let mut both = waiting_for("ImagePullBackOff");
        both["conditions"] = unready("False", 0)["conditions"].clone();
        let found = seen(&both);
        assert!(found[&Component::Group(2)][0].curable, "{found:?}");
    }

    #[test]
    fn a_machine_is_waited_for_in_silence_for_a_while() {
        let since = |second: i64| {
            let since = Timestamp::from_second(second).unwrap().to_string();
            json!({"conditions": [{
                "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                "message": "0/3 nodes are available", "lastTransitionTime": since,
            }]})
        };
        assert_eq!(seen(&since(990)), BTreeMap::new());
        let found = seen(&since(900));
        let why = &found[&Component::Group(2)][0].why;
        assert_eq!(why, "no machine takes it: 0/3 nodes are available");
    }
}
