//! The notation of actions in tests.

use shardkv::mover::Action;
use shardkv::{Chunk, Cursor, Next, Step};
use types::{ConfigNum, ShardId};

pub(crate) fn action(action: &Action) -> String {
    match action {
        Action::FetchConfigs { after } => format!("fetch configurations after {after}"),
        Action::Pull {
            shard,
            config,
            source,
            after,
            ..
        } => format!(
            "pull {} from {source} after {}",
            hand_off(*shard, *config),
            cursor(after)
        ),
        Action::Delete {
            shard,
            config,
            source,
            ..
        } => format!("tell {source} to delete {}", hand_off(*shard, *config)),
        Action::Propose(proposed) => format!("propose: {}", step(proposed)),
        Action::Copy {
            source, request, ..
        } => format!(
            "copy {} from {source} after {:?}",
            request.shard, request.after
        ),
        Action::Journal { source, step, .. } => format!("tell {source}: {step:?}"),
        Action::ReportCut { shard, .. } => format!("tell the controllers that {shard} may be cut"),
        Action::Report { settled } => format!("report {settled}"),
    }
}

pub(crate) fn step(step: &Step) -> String {
    match step {
        Step::Begin { num, .. } => format!("begin at configuration {num}"),
        Step::Configure { delta, .. } => format!("configuration {}", delta.num),
        Step::Install(part) => format!("install {}", chunk(part)),
        Step::Delete { shard, config } => format!("delete {}", hand_off(*shard, *config)),
        Step::Deleted { shard, config } => {
            format!("{} is deleted at its source", hand_off(*shard, *config))
        }
        Step::Copy(step) => format!("copy {step:?}"),
    }
}

pub(crate) fn chunk(chunk: &Chunk) -> String {
    let what = hand_off(chunk.shard, chunk.config);
    format!(
        "{what} from {} to {}",
        cursor(&chunk.after),
        next(&chunk.next)
    )
}

pub(crate) fn next(next: &Next) -> String {
    match next {
        Next::Chunk(next) => cursor(next),
        Next::Done { .. } => "the end".to_owned(),
    }
}

/// The shard, and the configuration that moves it.
fn hand_off(shard: ShardId, config: ConfigNum) -> String {
    format!("{shard}@{config}")
}

pub(crate) fn cursor(cursor: &Cursor) -> String {
    match cursor {
        Cursor::Data(key) if key.is_empty() => "start".to_owned(),
        Cursor::Data(key) => format!("key {}", key.escape_ascii()),
        Cursor::Sessions(None) => "data".to_owned(),
        Cursor::Sessions(Some(client)) => format!("session {client}"),
    }
}
