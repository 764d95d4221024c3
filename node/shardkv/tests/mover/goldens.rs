//! Runs the scripts in `tests/goldens`: what groups and their movers say to each other, with nothing made up but the
//! controllers, as documentation of the protocol.
//!
//! Regenerate with `UPDATE_GOLDENFILES=1 cargo test -p shardkv --test mover`, and read the diff.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use goldenscript::{ArgumentConsumer, Command};
use shardkv::mover::{Action, ActionId, Outcome as ActionOutcome};
use shardkv::{MoverOptions, Ownership, Query, Response, SessionRef, ShardState, Write};
use types::{ClientId, Gid, LogTime, Sequence, ShardId};

use crate::cluster::Cluster;
use crate::show;
use crate::stage::failed;

#[test]
fn hand_off() {
    run("hand_off");
}

#[test]
fn dead_source() {
    run("dead_source");
}

#[test]
fn useless_copy() {
    run("useless_copy");
}

fn run(name: &str) {
    // Shown when the script fails.
    println!("If the change is meant: UPDATE_GOLDENFILES=1 cargo test -p shardkv --test mover");
    let path = format!("{}/tests/goldens/{name}", env!("CARGO_MANIFEST_DIR"));
    let mut script = Script {
        cluster: Cluster::new(0, 1, MoverOptions::default()),
        waiting: BTreeMap::new(),
        held: None,
        writes: Vec::new(),
    };
    goldenscript::run(&mut script, path).unwrap();
}

type Said = Result<String, Box<dyn Error>>;

struct Script {
    cluster: Cluster,
    /// Questions to the controllers that wait for news.
    waiting: BTreeMap<(Gid, ActionId), Action>,
    /// Reports of copies that are on their way, if they come late.
    held: Option<Vec<(Gid, Action)>>,
    /// The writes so far.
    writes: Vec<shardkv::Command>,
}

impl goldenscript::Runner for Script {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &goldenscript::Context) -> Said {
        let mut args = command.consume_args();
        let said = self.obey(&command.name, &mut args)?;
        args.reject_next()?;
        Ok(said)
    }
}

impl Script {
    fn obey(&mut self, name: &str, args: &mut ArgumentConsumer<'_>) -> Said {
        let mut said = String::new();
        match name {
            "groups" => {
                let options = MoverOptions {
                    chunk_bytes: 12,
                    ..MoverOptions::default()
                };
                let groups = args.next_pos().ok_or("how many?")?.parse()?;
                let shards = args.take_key("shards").map_or(Ok(1), str::parse)?;
                self.cluster = Cluster::new(groups, shards, options);
            }
            "aim" => {
                let moves = std::iter::from_fn(|| args.next_key());
                let moves = moves.map(|(it, to)| Ok((ShardId(number("s", it)?), gid(to)?)));
                let moves = moves.collect::<Result<Vec<_>, Box<dyn Error>>>()?;
                self.cluster.controllers.aim(&moves);
            }
            "hold" => self.held = Some(Vec::new()),
            "deliver" => {
                for (gid, report) in self.held.take().into_iter().flatten() {
                    writeln!(said, "{gid}: {}", show::action(&report))?;
                    self.cluster.carry_out(gid, &report);
                }
            }
            "pass" => {
                let ms: u64 = args.take_key("ms").ok_or("how long?")?.parse()?;
                self.cluster.now += ms;
            }
            "down" => self.set_up(who(args)?, false),
            "up" => self.set_up(who(args)?, true),
            "put" => {
                let gid = who(args)?;
                while let Some((key, value)) = args.next_key() {
                    said += &self.put(gid, key, value);
                }
            }
            "again" => {
                let gid = who(args)?;
                for write in self.writes.clone() {
                    said += &self.write(gid, &write);
                }
            }
            "get" => {
                let gid = who(args)?;
                while let Some(key) = args.next_pos() {
                    said += &self.get(gid, key);
                }
            }
            "why" => {
                let gid = who(args)?;
                let shard = ShardId(number("s", args.next_pos().ok_or("which?")?)?);
                let mover = &self.cluster.members[&gid].mover;
                let why = mover.waits_for(self.cluster.now, shard);
                writeln!(said, "{shard}: {}", why.as_deref().unwrap_or("goes on"))?;
            }
            "run" => {
                let ms = args.take_key("ms").map_or(Ok(200), str::parse)?;
                self.run_for(ms, &mut said)?;
            }
            other => return Err(format!("what is `{other}`?").into()),
        }
        Ok(said)
    }

    fn set_up(&mut self, gid: Gid, up: bool) {
        self.cluster.members.get_mut(&gid).unwrap().up = up;
        self.waiting.retain(|(of, _), _| *of != gid);
    }

    fn put(&mut self, gid: Gid, key: &str, value: &str) -> String {
        let write = Write::Put {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::copy_from_slice(value.as_bytes()),
        };
        let client = ClientId {
            birth: LogTime(1_000),
            nonce: 7,
        };
        let session = Some(SessionRef {
            client,
            sequence: Sequence(self.writes.len() as u64 + 1),
            acked_below: Sequence(1),
        });
        let command = shardkv::Command { session, write };
        self.writes.push(command.clone());
        self.write(gid, &command)
    }

    fn write(&mut self, gid: Gid, command: &shardkv::Command) -> String {
        let now = self.cluster.now;
        let group = &mut self.cluster.members.get_mut(&gid).unwrap().replica;
        let key = command.write.key().escape_ascii();
        let number = command.session.map_or(Sequence(0), |it| it.sequence);
        let said = format!("{gid}: write {number} of {key}");
        match group.apply_bytes(now, 100, command.encode()) {
            Response::Written(_) => format!("{said}: done\n"),
            Response::Refused(error) => format!("{said}: {error}\n"),
            other => panic!("{other:?}"),
        }
    }

    fn get(&self, gid: Gid, key: &str) -> String {
        let query = Query::Get {
            key: Bytes::copy_from_slice(key.as_bytes()),
        };
        match self.cluster.members[&gid].replica.query(&query) {
            Response::Value(Some(value)) => format!("{gid}: {key}={}\n", value.escape_ascii()),
            Response::Value(None) => format!("{gid}: {key} is not there\n"),
            Response::Refused(error) => format!("{gid}: {key}: {error}\n"),
            other => panic!("{other:?}"),
        }
    }

    /// Rounds in which every group gets a turn, until the time is over.
    fn run_for(&mut self, ms: u64, said: &mut String) -> Result<(), Box<dyn Error>> {
        let (begin, end) = (self.cluster.now, self.cluster.now + ms);
        let mut told_at = begin;
        loop {
            let mut round = String::new();
            for gid in self.gids() {
                self.turn(gid, &mut round)?;
            }
            if !round.is_empty() {
                if self.cluster.now > told_at {
                    writeln!(said, "-- after {} ms", self.cluster.now - begin)?;
                    told_at = self.cluster.now;
                }
                *said += &round;
                continue;
            }
            let members = self.cluster.members.values();
            let due = members.filter_map(|it| it.mover.next_due()).min();
            match due {
                Some(due) if due <= end => self.cluster.now = self.cluster.now.max(due),
                _ => break,
            }
        }
        self.cluster.now = end;
        Ok(())
    }

    fn gids(&self) -> Vec<Gid> {
        self.cluster.members.keys().copied().collect()
    }

    fn turn(&mut self, gid: Gid, said: &mut String) -> Result<(), Box<dyn Error>> {
        let mut actions = self.cluster.poll(gid);
        let waiting = self.waiting.extract_if(.., |(of, _), _| *of == gid);
        actions.extend(waiting.map(|((_, id), action)| (id, action)));
        for (id, action) in actions {
            if let (Some(held), Action::ReportCut { .. }) = (&mut self.held, &action) {
                writeln!(said, "{gid}: {} -> on its way", show::action(&action))?;
                held.push((gid, action));
                self.cluster.ended(gid, id, failed("no answer"));
                continue;
            }
            let before = self.ownerships();
            let Some(outcome) = self.cluster.carry_out(gid, &action) else {
                self.waiting.insert((gid, id), action);
                continue;
            };
            let shown = match &outcome {
                ActionOutcome::Configs { full, deltas, .. } => {
                    let full = full.iter().map(|it| format!("{}, whole", it.num()));
                    let deltas = deltas.iter().map(|it| it.num.to_string());
                    full.chain(deltas).collect::<Vec<_>>().join(", ")
                }
                ActionOutcome::Pulled(chunk) => format!(
                    "{} pairs, {} sessions, up to {}",
                    chunk.pairs.len(),
                    chunk.sessions.len(),
                    show::next(&chunk.next)
                ),
                ActionOutcome::Part(part) => format!(
                    "{} rows, up to {}",
                    part.changes.len(),
                    show::part_next(&part.next)
                ),
                ActionOutcome::Begun(journal) => format!("journal {journal}"),
                ActionOutcome::Refused(error) => format!("refused: {error}"),
                ActionOutcome::Done => "done".to_owned(),
                ActionOutcome::Failed(why) | ActionOutcome::Busy(why) => format!("failed: {why}"),
            };
            writeln!(said, "{gid}: {} -> {shown}", show::action(&action))?;
            for (before, (of, after)) in before.iter().zip(self.ownerships()) {
                for change in changes(&before.1, &after) {
                    writeln!(said, "    {of}: {change}")?;
                }
            }
            self.cluster.ended(gid, id, outcome);
        }
        Ok(())
    }

    fn ownerships(&self) -> Vec<(Gid, Arc<Ownership>)> {
        let members = self.cluster.members.iter();
        members
            .map(|(gid, it)| (*gid, it.replica.machine.ownership()))
            .collect()
    }
}

/// Describes the changes that an entry made.
fn changes(before: &Ownership, after: &Ownership) -> Vec<String> {
    let mut changes = Vec::new();
    if before.config != after.config {
        changes.push(format!("accepted configuration {}", after.config));
    }
    let shards: BTreeSet<&ShardId> = before.shards.keys().chain(after.shards.keys()).collect();
    for shard in shards {
        let (old, new) = (before.shards.get(shard), after.shards.get(shard));
        if old == new {
            continue;
        }
        let state = match new.map(|it| &it.state) {
            None => "absent".to_owned(),
            Some(ShardState::Serving { config }) => format!("serving since {config}"),
            Some(ShardState::Pulling {
                config,
                source,
                bytes,
                after,
            }) => format!(
                "pulling for {config} from {source}, has {bytes} bytes up to {}",
                show::cursor(after)
            ),
            Some(ShardState::Fenced { config, to }) => format!("fenced by {config} for {to}"),
            Some(ShardState::Copying {
                source,
                bytes,
                cursor,
                ..
            }) => format!(
                "copying from {source}, has {bytes} bytes up to {}",
                show::copy_cursor(cursor)
            ),
            Some(ShardState::Completing {
                config,
                source,
                bytes,
                cursor,
                ..
            }) => format!(
                "completing for {config} from {source}, has {bytes} bytes up to {}",
                show::copy_cursor(cursor)
            ),
        };
        changes.push(format!("{shard} {state}"));
    }
    let shards: BTreeSet<&ShardId> = before.planned.keys().chain(after.planned.keys()).collect();
    for shard in shards {
        let (old, new) = (before.planned.get(shard), after.planned.get(shard));
        if let Some(new) = new.filter(|_| old != new) {
            let (to, since) = (new.target.to, new.target.since);
            changes.push(format!(
                "{shard} is to go from {} to {to} since {since}",
                new.owner
            ));
        }
    }
    for ((shard, config), source) in after.pending_deletes.iter() {
        if !before.pending_deletes.contains_key(&(*shard, *config)) {
            changes.push(format!("owes {source} the delete of {shard}@{config}"));
        }
    }
    for ((shard, config), source) in before.pending_deletes.iter() {
        if !after.pending_deletes.contains_key(&(*shard, *config)) {
            changes.push(format!("owes {source} nothing for {shard}@{config}"));
        }
    }
    changes
}

fn who(args: &mut ArgumentConsumer<'_>) -> Result<Gid, Box<dyn Error>> {
    gid(args.next_pos().ok_or("who?")?)
}

fn gid(word: &str) -> Result<Gid, Box<dyn Error>> {
    number("g", word).map(|number| Gid(number.into()))
}

fn number(letter: &str, word: &str) -> Result<u32, Box<dyn Error>> {
    let number = word.strip_prefix(letter);
    Ok(number
        .ok_or_else(|| format!("`{word}` begins with {letter}"))?
        .parse()?)
}
