//! Texts of events about keyspaces. Pure.

use shardkv_client::Keyspace;

use super::plan::id;
use crate::reconcile::notes::Note;

/// The keyspace was created.
pub(super) fn created(keyspace: &Keyspace) -> Note {
    let Keyspace {
        name, shard, gid, ..
    } = keyspace;
    let text = format!("Keyspace {name} is created, in shard {shard} of group {gid}.");
    Note::step("Create", "KeyspaceCreated", text)
}

/// The keyspace was there already. `known` is the id that it had before.
pub(super) fn adopted(keyspace: &Keyspace, known: Option<&str>) -> Note {
    let (name, new) = (&keyspace.name, id(keyspace));
    match known {
        None => {
            let text =
                format!("Keyspace {name} was there already, and is taken over with all keys.");
            Note::step("Adopt", "KeyspaceAdopted", text)
        }
        Some(old) => {
            let text = format!(
                "Keyspace {name} has id {new} instead of {old}: it was created again in the store."
            );
            Note::warning("Adopt", "KeyspaceReplaced", text)
        }
    }
}

/// The keyspace was deleted.
pub(super) fn deleted(name: &str) -> Note {
    let text = format!("Keyspace {name} is deleted with all keys.");
    Note::step("Delete", "KeyspaceDeleted", text)
}

/// The resource is released without a deletion of the keyspace.
pub(super) fn left(name: &str, why: &str) -> Note {
    let text = format!(
        "Keyspace {name} was not deleted, and may still be in the store: {why}. \
        `shardkv keyspace delete {name}` deletes it there."
    );
    Note::warning("Delete", "KeyspaceLeft", text)
}

/// The options were replaced.
pub(super) fn configured(name: &str) -> Note {
    let text = format!("The options of keyspace {name} are changed.");
    Note::step("Configure", "OptionsChanged", text)
}
