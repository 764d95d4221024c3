//! Options of clusters of several groups: the role, the controllers, and the hand-off of shards.

use shardkv::GroupKind;
use types::Gid;

use super::read::{OptionError, Values};
use super::{Handoff, Limits, addresses, largest_operation, millis};

/// Reads the kind of the group.
pub(super) fn role(values: &mut Values) -> Result<GroupKind, OptionError> {
    let text = values.text_or_default("role");
    let kind = GroupKind::ALL.into_iter().find(|kind| kind.name() == text);
    kind.ok_or_else(|| {
        let reason = format!("`{text}` is not a role: use standalone, shards or controller");
        values.error("role", reason)
    })
}

/// Reads the id of the group.
pub(super) fn gid(values: &mut Values, kind: GroupKind) -> Result<Gid, OptionError> {
    let given: Option<u64> = values.optional_number("gid", 0, u64::MAX)?;
    match (kind, given) {
        (GroupKind::Controller, None | Some(0)) => Ok(Gid::NONE),
        (GroupKind::Controller, Some(gid)) => {
            let reason = format!("the controllers' group is 0, not {gid}: leave the option out");
            Err(values.error("gid", reason))
        }
        (_, Some(0)) => {
            let reason = "0 is the controllers' group: number replica groups from 1";
            Err(values.error("gid", reason))
        }
        (GroupKind::Shards, None) => {
            let reason =
                "is required for the role shards: give the number of this node's replica group";
            Err(values.error("gid", reason))
        }
        (GroupKind::Standalone, None) => Ok(Gid(1)),
        (_, Some(gid)) => Ok(Gid(gid)),
    }
}

/// Reads the controllers' addresses. They are required for groups of the kind shards, and refused for others.
pub(super) fn controllers(
    values: &mut Values,
    kind: GroupKind,
) -> Result<Vec<String>, OptionError> {
    let controllers = addresses(values, "controllers")?;
    match (kind, controllers.is_empty()) {
        (GroupKind::Shards, true) => Err(values.error(
            "controllers",
            "is required for the role shards: give the controllers' addresses",
        )),
        (GroupKind::Standalone | GroupKind::Controller, false) => Err(values.error(
            "controllers",
            format!(
                "is only for the role shards, and this node's role is {kind}: leave the option out"
            ),
        )),
        _ => Ok(controllers),
    }
}

/// Reads the options of hand-offs.
pub(super) fn handoff(
    values: &mut Values,
    limits: &Limits,
    max_entry_bytes: usize,
) -> Result<Handoff, OptionError> {
    // A chunk ends after the pair that reaches its size, and is one operation of an entry.
    let largest = max_entry_bytes.saturating_sub(largest_operation(limits) / 2 + 4_096);
    let largest = u32::try_from(largest).unwrap_or(u32::MAX);
    let default = shardkv::MoverOptions::default();
    let chunk_bytes = values.optional_number("handoff_chunk_bytes", 1, shardkv::MAX_SCAN_BYTES)?;
    if chunk_bytes.is_some_and(|bytes| bytes > largest) {
        let reason = format!(
            "must be at most {largest}, so that a chunk and one of the largest values fit into max_entry_bytes"
        );
        return Err(values.error("handoff_chunk_bytes", reason));
    }
    let mover = shardkv::MoverOptions {
        max_concurrent_pulls: values.number("handoff_max_concurrent", 1, 1_024)?,
        max_bytes_per_second: values.number("handoff_bytes_per_second", 0, u64::MAX)?,
        chunk_bytes: chunk_bytes.unwrap_or(default.chunk_bytes.min(largest).max(1)),
        min_retry_ms: values.number("handoff_min_retry_ms", 1, 60_000)?,
        max_retry_ms: values.number("handoff_max_retry_ms", 1, 3_600_000)?,
    };
    if mover.max_retry_ms < mover.min_retry_ms {
        let reason = "must be at least handoff_min_retry_ms";
        return Err(values.error("handoff_max_retry_ms", reason));
    }
    Ok(Handoff {
        mover,
        timeout: millis(values, "handoff_timeout_ms", 10, 9_000)?,
    })
}
