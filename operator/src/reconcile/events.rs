//! Publishes events: each step that changed something, once, when it is done. Events inform users. An event that is
//! lost with the operator isn't published again, and a failure to publish stops nothing.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};

use crate::crd::ShardKvCluster;

/// Maximum length of a note, as the API server accepts it.
const MAX_NOTE: usize = 1_000;

/// Publishes events about one resource.
pub(super) struct Events {
    client: Client,
    reporter: Reporter,
    about: ObjectReference,
}

impl Events {
    pub(super) fn new(client: Client, reporter: Reporter, resource: &ShardKvCluster) -> Self {
        Self {
            client,
            reporter,
            about: resource.object_ref(&()),
        }
    }

    /// Publishes a completed step. `action` and `reason` are words in camel case, `note` is a sentence.
    pub(super) async fn step(&self, action: &str, reason: &str, note: String) {
        self.publish(EventType::Normal, action, reason, note).await;
    }

    /// Publishes a warning that needs attention; the parameters are those of `step`.
    pub(super) async fn warn(&self, action: &str, reason: &str, note: String) {
        self.publish(EventType::Warning, action, reason, note).await;
    }

    async fn publish(&self, type_: EventType, action: &str, reason: &str, note: String) {
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(truncated(note)),
            action: action.to_owned(),
            secondary: None,
        };
        // Each event gets a new recorder: a reused one treats events that differ only in their notes as duplicates.
        let recorder = Recorder::new(self.client.clone(), self.reporter.clone());
        if let Err(error) = recorder.publish(&event, &self.about).await {
            tracing::warn!(%error, reason, "an event could not be told");
        }
    }
}

/// Returns the note, truncated to `MAX_NOTE` bytes at a character boundary.
fn truncated(mut text: String) -> String {
    if let Some(end) = (0..=MAX_NOTE).rev().find(|end| text.is_char_boundary(*end)) {
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_notes_are_cut_between_characters() {
        assert_eq!(truncated("short".to_owned()), "short");
        assert_eq!(truncated("é".repeat(800)).len(), MAX_NOTE);
        assert_eq!(
            truncated(format!("a{}", "é".repeat(800))).len(),
            MAX_NOTE - 1
        );
    }
}
