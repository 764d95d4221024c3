//! The notation of actions in tests.

use shardkv::mover::Action;
use shardkv::{
    Chunk, CopyCursor, CopyStep, Cursor, JournalStep, Next, Part, PartNext, Position, Step, Upto,
};
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
            "copy {} from {source} after {}{}",
            request.shard,
            copy_cursor(&request.after),
            match request.fence {
                Some(config) => format!(", fenced by {config}"),
                None => String::new(),
            }
        ),
        Action::Journal { source, step, .. } => format!("tell {source} to {}", journal(step)),
        Action::ReportCut { cuts } => {
            let cuts = cuts.iter().map(|(shard, cut)| {
                format!(
                    "{shard} of {} since {} may be cut for {} since {}",
                    cut.owner, cut.owner_since, cut.target, cut.target_since
                )
            });
            let cuts: Vec<String> = cuts.collect();
            format!("tell the controllers: {}", cuts.join(", "))
        }
        Action::Report { settled, held } if held > settled => {
            format!("report {settled}, served by {held}")
        }
        Action::Report { settled, .. } => format!("report {settled}"),
    }
}

pub(crate) fn step(step: &Step) -> String {
    match step {
        Step::Configure(step) => format!("configuration {}", step.num),
        Step::ConfigurePart(part) => format!(
            "part {} of {} of configuration {}",
            part.index, part.whole.count, part.whole.num
        ),
        Step::Install(part) => format!("install {}", chunk(part)),
        Step::Delete { shard, config } => format!("delete {}", hand_off(*shard, *config)),
        Step::Deleted { shard, config } => {
            format!("{} is deleted at its source", hand_off(*shard, *config))
        }
        Step::Copy(step) => copy_step(step),
    }
}

fn copy_step(step: &CopyStep) -> String {
    match step {
        CopyStep::Start {
            shard,
            source,
            copy,
        } => format!(
            "begin to copy {shard} from {source} by journal {}",
            copy.journal
        ),
        CopyStep::Take(part) => format!("take {}", part_of(part)),
        CopyStep::Drop { shard, copy } => {
            format!("drop the copy of {shard} by journal {}", copy.journal)
        }
        CopyStep::Restart {
            shard,
            config,
            copy,
        } => format!(
            "pull {} whole, since journal {} has ended",
            hand_off(*shard, *config),
            copy.journal
        ),
    }
}

fn journal(step: &JournalStep) -> String {
    match step {
        JournalStep::Begin { shard, target } => format!(
            "begin a journal of {shard} for {} since {}",
            target.to, target.since
        ),
        JournalStep::Seal {
            shard, generation, ..
        } => format!("seal generation {generation} of {shard}"),
        JournalStep::Drop {
            shard, generation, ..
        } => format!("drop generation {generation} of {shard}"),
        JournalStep::Renew { shard, .. } => format!("renew the journal of {shard}"),
    }
}

fn part_of(part: &Part) -> String {
    let changes = part.changes.len();
    format!(
        "{} from {} to {}, {changes} rows",
        part.shard,
        copy_cursor(&part.after),
        part_next(&part.next)
    )
}

pub(crate) fn part_next(next: &PartNext) -> String {
    match next {
        PartNext::At(next) => copy_cursor(next),
        PartNext::Done { .. } => "the end".to_owned(),
    }
}

pub(crate) fn copy_cursor(at: &CopyCursor) -> String {
    match at {
        CopyCursor::Base(base) => cursor(base),
        CopyCursor::Page { generation, after } => {
            format!("generation {generation}{}", position(after))
        }
    }
}

fn position(Position { name, upto }: &Position) -> String {
    let shown = name.escape_ascii();
    match upto {
        Upto::End if name.is_empty() => String::new(),
        Upto::End => format!(" name {shown}"),
        Upto::Row(row) => format!(" name {shown} row {}", row.escape_ascii()),
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
        Cursor::Rows(key) => format!("row {}", key.escape_ascii()),
    }
}
