//! Finds pods that don't run and explains the reason. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use crate::build::names;
use crate::parts::Component;
use crate::validate::Cluster;

/// Seconds for which an unscheduled pod is normal: volumes are created and machines are added.
const USUAL_SECONDS: i64 = 20;

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
        if let (Some(part), Some(why)) = (names::part_of_pod(cluster, &name), why) {
            let trouble = Trouble { pod: name, why };
            found.entry(part).or_default().push(trouble);
        }
    }
    for list in found.values_mut() {
        list.sort_by(|a, b| a.pod.cmp(&b.pod));
    }
    found
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
            };
            assert_eq!(found, [(Component::Group(2), vec![expected])].into());
        }
        for reason in ["ContainerCreating", "PodInitializing"] {
            assert_eq!(seen(&waiting_for(reason)), BTreeMap::new());
        }
        assert_eq!(seen(&json!({})), BTreeMap::new());
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
