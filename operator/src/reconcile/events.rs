//! Publishes events: each step that changed something, once, when it is done. Events inform users. An event that is
//! lost with the operator isn't published again, and a failure to publish stops nothing.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};

use super::notes::Note;

/// Maximum length of a note, as the API server accepts it.
const MAX_NOTE: usize = 1_000;

/// Publishes events about one resource.
pub(super) struct Events<'a> {
    client: &'a Client,
    reporter: &'a Reporter,
    about: ObjectReference,
}

impl<'a> Events<'a> {
    pub(super) fn new(
        client: &'a Client,
        reporter: &'a Reporter,
        resource: &impl Resource<DynamicType = ()>,
    ) -> Self {
        Self {
            client,
            reporter,
            about: resource.object_ref(&()),
        }
    }

    /// Publishes a note.
    pub(super) async fn publish(&self, note: Note) {
        let event = Event {
            type_: if note.warns {
                EventType::Warning
            } else {
                EventType::Normal
            },
            reason: note.reason.clone(),
            note: Some(truncated(note.text)),
            action: note.action.to_owned(),
            secondary: None,
        };
        // Each event gets a new recorder: a reused one treats events that differ only in their notes as duplicates.
        let recorder = Recorder::new(self.client.clone(), self.reporter.clone());
        if let Err(error) = recorder.publish(&event, &self.about).await {
            tracing::warn!(%error, reason = note.reason, "an event could not be told");
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
