//! The check of a call's destination. Addresses are reused: without this check a write could be acknowledged by another
//! cluster's group that happens to own a shard of the same number.

use api::v1::ErrorDetail;
use api::{CLUSTER_METADATA_KEY, GID_METADATA_KEY, errors};
use shardkv::GroupKind;
use tonic::metadata::MetadataMap;
use types::{ClusterId, Gid};

use crate::routing::Routing;

/// Refuses a call that names another cluster or group. Accepts calls that name no destination.
pub(crate) fn check(routing: &Routing, metadata: &MetadataMap) -> Result<(), ErrorDetail> {
    let (cluster, gid) = read(metadata)?;
    if let (Some(wanted), Some(own)) = (cluster, cluster.and_then(|_| own_cluster(routing)))
        && wanted != own
    {
        return Err(errors::wrong_cluster(&wanted.to_string(), &own.to_string()));
    }
    match gid {
        Some(gid) if gid != routing.gid() => Err(wrong_group(routing)),
        _ => Ok(()),
    }
}

/// Returns the cluster as clients know it. A group that follows no controllers yet belongs to no cluster, and owns nothing.
fn own_cluster(routing: &Routing) -> Option<ClusterId> {
    match routing.kind() {
        GroupKind::Shards => routing.ownership().controller,
        GroupKind::Standalone | GroupKind::Controller => routing.identity().cluster(),
    }
}

fn wrong_group(routing: &Routing) -> ErrorDetail {
    match routing.kind() {
        GroupKind::Shards => errors::wrong_group(routing.ownership().config.0),
        // A store without controllers has only this configuration.
        GroupKind::Standalone => errors::wrong_group(1),
        GroupKind::Controller => routing.wrong_group(),
    }
}

fn read(metadata: &MetadataMap) -> Result<(Option<ClusterId>, Option<Gid>), ErrorDetail> {
    let cluster = number(
        metadata,
        CLUSTER_METADATA_KEY,
        16,
        "must be 16 hexadecimal digits",
    )?;
    let gid = number(metadata, GID_METADATA_KEY, 10, "must be a decimal number")?;
    Ok((cluster.map(ClusterId), gid.map(Gid)))
}

fn number(
    metadata: &MetadataMap,
    key: &'static str,
    radix: u32,
    why: &str,
) -> Result<Option<u64>, ErrorDetail> {
    let Some(value) = metadata.get(key) else {
        return Ok(None);
    };
    let text = value.to_str().ok();
    let number = text.and_then(|text| u64::from_str_radix(text, radix).ok());
    number
        .map(Some)
        .ok_or_else(|| errors::bad_request(key, why))
}

#[cfg(test)]
mod tests {
    use api::v1::error_detail::Kind;

    use super::*;

    fn metadata(pairs: &[(&'static str, &'static str)]) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        for (key, value) in pairs {
            metadata.insert(*key, value.parse().unwrap());
        }
        metadata
    }

    #[test]
    fn what_is_said_is_read_and_may_be_missing() {
        assert_eq!(read(&metadata(&[])), Ok((None, None)));
        let both = metadata(&[
            (CLUSTER_METADATA_KEY, "00000000000000ff"),
            (GID_METADATA_KEY, "12"),
        ]);
        assert_eq!(read(&both), Ok((Some(ClusterId(255)), Some(Gid(12)))));
    }

    #[test]
    fn nonsense_is_refused() {
        for (key, value) in [
            (CLUSTER_METADATA_KEY, "c00000000000000zz"),
            (CLUSTER_METADATA_KEY, ""),
            (GID_METADATA_KEY, "ff"),
            (GID_METADATA_KEY, "99999999999999999999"),
        ] {
            let refused = read(&metadata(&[(key, value)])).unwrap_err();
            assert!(matches!(refused.kind, Some(Kind::BadRequest(it)) if it.field == key));
        }
    }
}
