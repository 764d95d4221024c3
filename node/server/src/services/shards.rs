//! `Admin.Shards`: the shards that this node's group has to do with, as this node knows them.

use std::collections::{BTreeMap, BTreeSet};

use api::v1::error_detail::Kind;
use api::v1::{ErrorDetail, ShardStatus, ShardsRequest, ShardsResponse};
use api::{errors, v1};
use bytes::Bytes;
use replica::StateReader;
use shardkv::mover::Driver;
use shardkv::{
    GroupKind, KvError, Ownership, PlannedMove, Query, Response, Shard, ShardState, read_count,
};
use types::{ConfigNum, Gid, LogTime, ShardId};

use crate::convert::kv;
use crate::mover::SharedMover;
use crate::reads::Readers;
use crate::replica_handle::ReplicaHandle;
use crate::routing::Routing;

/// The maximum number of shards whose sizes are read at once, because the replica answers no other request meanwhile.
const SIZES_AT_ONCE: usize = 256;

/// The content of a shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Size {
    keys: u64,
    bytes: u64,
}

/// The sources of the answer to `Admin.Shards`.
pub(crate) struct Sources<'a> {
    pub(crate) replica: &'a ReplicaHandle,
    pub(crate) readers: &'a Readers,
    pub(crate) routing: &'a Routing,
    pub(crate) mover: &'a SharedMover,
}

/// Answers `Admin.Shards`.
pub(crate) async fn shards(
    sources: &Sources<'_>,
    request: &ShardsRequest,
) -> Result<ShardsResponse, ErrorDetail> {
    let Sources {
        replica,
        readers,
        routing,
        mover,
    } = sources;
    if routing.kind() == GroupKind::Controller {
        let what = "a controller has no shards: send the request to a node of a replica group";
        return Err(errors::conflict(what));
    }
    let wanted = api::shards_from_wire(&request.shards)
        .map_err(|error| errors::bad_request("shards", error))?;
    catch_up(replica).await?;
    let ownership = routing.ownership();
    let listed: Vec<ShardId> = if wanted.is_empty() {
        concerned(&ownership).into_iter().collect()
    } else {
        let wanted = wanted.shards();
        wanted.filter(|it| is_concerned(&ownership, *it)).collect()
    };
    let sizes = if request.exact {
        count(readers, &ownership, &listed).await?
    } else {
        estimates(replica, &ownership, &listed).await?
    };
    let (driver, now_ms) = mover.lock();
    let mover = driver.as_ref().map(Driver::mover);
    let now = log_time(replica);
    let status = |shard: &ShardId| {
        let size = sizes.get(shard).copied().unwrap_or_default();
        let waits_for = mover.and_then(|mover| mover.waits_for(now_ms, *shard));
        let progress = mover.and_then(|mover| mover.progress(now_ms, *shard));
        let progress = progress.unwrap_or_default();
        ShardStatus {
            whole_bytes: progress.whole_bytes,
            bytes_per_second: progress.bytes_per_second,
            keys: size.keys,
            bytes: size.bytes,
            waits_for: waits_for.unwrap_or_default(),
            ..describe(&ownership, *shard, now)
        }
    };
    Ok(ShardsResponse {
        gid: routing.gid().0,
        config_num: ownership.config.0,
        settled: ownership.settled().0,
        shards: listed.iter().map(status).collect(),
    })
}

/// Waits until a leader has applied all that its group has committed. Right after a start it may lead before that, and would name a
/// past configuration. Other nodes answer by what they know.
async fn catch_up(replica: &ReplicaHandle) -> Result<(), ErrorDetail> {
    match replica.confirm().await {
        Err(error) if !matches!(error.kind, Some(Kind::NotLeader(_))) => Err(error),
        _ => Ok(()),
    }
}

/// Returns the shards that the group owns, copies, pulls, gives away, is to get, or still has to have deleted at their source.
pub(crate) fn concerned(ownership: &Ownership) -> BTreeSet<ShardId> {
    let deletes = ownership.pending_deletes.keys().map(|(shard, _)| *shard);
    let planned = ownership.planned.keys().copied();
    let here = ownership.shards.keys().copied();
    here.chain(deletes).chain(planned).collect()
}

/// Returns true if a shard is among the [`concerned`] ones.
fn is_concerned(ownership: &Ownership, shard: ShardId) -> bool {
    let deletes = (shard, ConfigNum(0))..=(shard, ConfigNum(u64::MAX));
    ownership.shards.contains_key(&shard)
        || ownership.planned.contains_key(&shard)
        || ownership.pending_deletes.range(deletes).next().is_some()
}

/// Returns the state of a shard at log time `now`, without its size.
pub(crate) fn describe(ownership: &Ownership, shard: ShardId, now: LogTime) -> ShardStatus {
    let mut deletes = ownership
        .pending_deletes
        .range((shard, ConfigNum(0))..=(shard, ConfigNum(u64::MAX)));
    let delete = deletes
        .next()
        .map(|((_, config), source)| (*config, *source));
    let mut status = ShardStatus {
        shard: shard.0,
        ..ShardStatus::default()
    };
    if let Some((config, source)) = delete {
        status.set_state(v1::ShardState::Owed);
        status.config_num = config.0;
        status.other_gid = source.0;
    }
    let planned = ownership.planned.get(&shard);
    match (ownership.shards.get(&shard), planned) {
        (Some(here), planned) => present(&mut status, here, planned, now),
        (None, Some(planned)) if planned.target.to == ownership.gid => {
            status.set_state(v1::ShardState::Copying);
            status.config_num = planned.target.since.0;
            status.other_gid = planned.owner.0;
        }
        _ => {}
    }
    status
}

fn present(status: &mut ShardStatus, shard: &Shard, planned: Option<&PlannedMove>, now: LogTime) {
    status.config_num = shard.state.config().0;
    let moves = |status: &mut ShardStatus, with: &Gid| {
        status.other_gid = with.0;
        status.handoff_age_ms = now.since(shard.since);
    };
    match &shard.state {
        ShardState::Serving { .. } => {
            status.set_state(v1::ShardState::Serving);
            status.other_gid = planned.map_or(0, |planned| planned.target.to.0);
        }
        ShardState::Copying { source, bytes, .. } => {
            status.set_state(v1::ShardState::Copying);
            status.pulled_bytes = *bytes;
            moves(status, source);
        }
        ShardState::Pulling { source, bytes, .. }
        | ShardState::Completing { source, bytes, .. } => {
            status.set_state(v1::ShardState::Pulling);
            status.pulled_bytes = *bytes;
            moves(status, source);
        }
        ShardState::Fenced { to, .. } => {
            status.set_state(v1::ShardState::Fenced);
            moves(status, to);
        }
    }
}

/// Returns this node's measure of log time.
pub(crate) fn log_time(replica: &ReplicaHandle) -> LogTime {
    let status = replica.view().status;
    status.map_or(LogTime(0), |status| status.log_time)
}

/// Returns the approximate bytes of shards. The shards are in order, each once.
pub(crate) async fn estimate(
    replica: &ReplicaHandle,
    shards: impl IntoIterator<Item = ShardId>,
) -> Result<BTreeMap<ShardId, u64>, ErrorDetail> {
    let shards: Vec<ShardId> = shards.into_iter().collect();
    let mut found = BTreeMap::new();
    for page in shards.chunks(SIZES_AT_ONCE) {
        let shards = page.iter().copied().collect();
        match ask(replica, Query::Sizes { shards }).await? {
            Response::Sizes(sizes) => found.extend(page.iter().copied().zip(sizes)),
            _ => return Err(kv::mismatch()),
        }
    }
    Ok(found)
}

async fn estimates(
    replica: &ReplicaHandle,
    ownership: &Ownership,
    listed: &[ShardId],
) -> Result<BTreeMap<ShardId, Size>, ErrorDetail> {
    let here = listed.iter().filter(|it| ownership.shards.contains_key(it));
    let sizes = estimate(replica, here.copied()).await?;
    let size = |(shard, bytes)| (shard, Size { keys: 0, bytes });
    Ok(sizes.into_iter().map(size).collect())
}

async fn count(
    readers: &Readers,
    ownership: &Ownership,
    listed: &[ShardId],
) -> Result<BTreeMap<ShardId, Size>, ErrorDetail> {
    let mut sizes = BTreeMap::new();
    for shard in listed.iter().filter(|it| ownership.shards.contains_key(it)) {
        if let Some(size) = count_one(readers, *shard).await? {
            sizes.insert(*shard, size);
        }
    }
    Ok(sizes)
}

/// Counts the content of a shard page by page. Returns `None` if the shard goes away meanwhile.
async fn count_one(readers: &Readers, shard: ShardId) -> Result<Option<Size>, ErrorDetail> {
    let mut size = Size::default();
    let mut after = Bytes::new();
    loop {
        let read = move |state: &dyn StateReader| read_count(state, shard, &after);
        let answer = match readers.read(read).await? {
            Ok(answer) => answer,
            Err(KvError::WrongGroup { .. }) => return Ok(None),
            Err(error) => return Err(kv::kv_error(&error)),
        };
        let Response::Count { keys, bytes, next } = answer else {
            return Err(kv::mismatch());
        };
        size.keys += keys;
        size.bytes += bytes;
        match next {
            Some(next) => after = next,
            None => return Ok(Some(size)),
        }
    }
}

async fn ask(replica: &ReplicaHandle, query: Query) -> Result<Response, ErrorDetail> {
    let result = replica.ask(kv::read_local(query)).await?;
    kv::outcome(result, |node| replica.address_or_empty(node))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use raft::Index;
    use shardkv::{CopyCursor, CopyId, Target};

    use super::*;

    fn shard(state: ShardState) -> Arc<Shard> {
        Arc::new(Shard::new(state, LogTime(5)))
    }

    #[test]
    fn each_state_is_told_with_the_other_group() {
        let config = ConfigNum(4);
        let source = Gid(7);
        let pulling = ShardState::Pulling {
            config,
            source,
            after: shardkv::Cursor::default(),
            bytes: 33,
        };
        let fenced = ShardState::Fenced { config, to: Gid(8) };
        let copying = ShardState::Copying {
            source,
            copy: CopyId {
                since: ConfigNum(6),
                journal: Index(1),
            },
            cursor: CopyCursor::default(),
            bytes: 44,
        };
        let moves = |owner, to| PlannedMove {
            owner: Gid(owner),
            owner_since: config,
            target: Target {
                to: Gid(to),
                since: ConfigNum(6),
            },
        };
        let ownership = Ownership {
            shards: shardkv::ShardMap::from([
                (ShardId(0), shard(ShardState::Serving { config })),
                (ShardId(1), shard(pulling)),
                (ShardId(2), shard(fenced)),
                (ShardId(4), shard(copying)),
            ]),
            gid: Gid(1),
            planned: Arc::new(BTreeMap::from([
                (ShardId(0), moves(1, 9)),
                (ShardId(4), moves(7, 1)),
                (ShardId(5), moves(7, 1)),
            ])),
            pending_deletes: Arc::new([((ShardId(3), ConfigNum(2)), Gid(6))].into()),
            ..Ownership::default()
        };
        let told = |shard| {
            let it = describe(&ownership, ShardId(shard), LogTime(9));
            (it.state(), it.config_num, it.other_gid, it.pulled_bytes)
        };
        assert_eq!(told(0), (v1::ShardState::Serving, 4, 9, 0));
        assert_eq!(told(1), (v1::ShardState::Pulling, 4, 7, 33));
        assert_eq!(told(2), (v1::ShardState::Fenced, 4, 8, 0));
        assert_eq!(told(3), (v1::ShardState::Owed, 2, 6, 0));
        assert_eq!(told(4), (v1::ShardState::Copying, 6, 7, 44));
        assert_eq!(told(5), (v1::ShardState::Copying, 6, 7, 0));
        assert!(describe(&ownership, ShardId(1), LogTime(9)).handoff_age_ms == 4);
        let all: Vec<u32> = concerned(&ownership).iter().map(|it| it.0).collect();
        assert_eq!(all, [0, 1, 2, 3, 4, 5]);
        let each = (0..9).filter(|shard| is_concerned(&ownership, ShardId(*shard)));
        assert!(each.eq(all), "one by one as all at once");
    }
}
