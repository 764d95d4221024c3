//! Runs the scripts in `tests/goldens`: one scenario a file, with the messages and events that it causes.
//!
//! Time passes and messages arrive only when a script says so. Nodes are numbers. A line of output like
//! `n1 → n2 t3 vote last=5@t2` is a message at the moment when it *arrives*; `5@t2` is the entry of term 2 at index 5.
//! Regenerate with `UPDATE_GOLDENFILES=1 cargo test -p shardkv-raft --test suite`, and read the diff.

use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;

use goldenscript::{ArgumentConsumer, Command, Context};
use raft::{
    Entry, EntryId, Envelope, Index, LeasePromise, Membership, MembershipChange, Message, Options,
    Payload, SnapshotChunk, SnapshotMeta, Term,
};
use test_each_file::test_each_path;
use types::NodeId;

use crate::cluster::{Cluster, command, node, voters};
use crate::show;
use crate::store::MemoryStore;

test_each_path! { in "node/raft/tests/goldens" as goldens => run_script }

fn run_script(path: &Path) {
    // Shown when the script fails.
    println!(
        "If the change is meant: UPDATE_GOLDENFILES=1 cargo test -p shardkv-raft --test suite"
    );
    let mut script = Script::default();
    goldenscript::run(&mut script, path).unwrap();
}

type Said = Result<String, Box<dyn Error>>;

#[derive(Default)]
struct Script {
    cluster: Cluster,
    options: Options,
    /// True if the script forges messages, so that the oracle's violations don't count.
    lies: bool,
}

impl goldenscript::Runner for Script {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Said {
        let mut args = command.consume_args();
        let said = self.obey(&command.name, &mut args);
        let unused = args.reject_next();
        let mut out: String = self
            .cluster
            .story
            .drain(..)
            .map(|line| line + "\n")
            .collect();
        out.push_str(&said?);
        unused?;
        if !self.lies && !self.cluster.oracle.violations.is_empty() {
            return Err(self.cluster.oracle.violations.join("\n").into());
        }
        Ok(out)
    }
}

impl Script {
    #[allow(clippy::too_many_lines)] // A table of commands.
    fn obey(&mut self, name: &str, args: &mut ArgumentConsumer<'_>) -> Said {
        match name {
            // Setting up.
            "options" => self.set_options(args)?,
            "cluster" => self.make_cluster(args)?,
            "boot" => {
                let id = id(args)?;
                let term = key(args, "term")?.unwrap_or(0);
                let terms: Option<Vec<u64>> = match args.take_key("log") {
                    None => None,
                    Some("") => Some(Vec::new()),
                    Some(list) => Some(list.split('-').map(str::parse).collect::<Result<_, _>>()?),
                };
                self.cluster.boot(id, term, terms.as_deref());
            }
            "lies" => self.lies = true,
            "auto-snapshots" => self.cluster.send_snapshots = word(args)? == "on",
            // Time and failures.
            "tick" => {
                let count = key(args, "count")?.unwrap_or(1);
                let ids = self.ids(args)?;
                for _ in 0..count {
                    for id in &ids {
                        self.cluster.tick(*id);
                    }
                }
            }
            "campaign" => self.cluster.campaign(id(args)?),
            "elect" => self.cluster.elect(id(args)?),
            "crash" => self.cluster.crash(id(args)?),
            "restart" => self.cluster.restart(id(args)?),
            "slow" => self.cluster.node_mut(id(args)?).slow = true,
            "write" => {
                let id = id(args)?;
                if !self.cluster.finish_write(id) {
                    return Err("nothing is being written".into());
                }
                self.cluster.story.push(format!("{id} has written"));
                self.cluster.turn(id);
            }
            "disconnect" => {
                let (at, from) = (id(args)?, id(args)?);
                self.cluster.raft_mut(at).handle_disconnect(from);
                self.cluster.turn(at);
            }
            "isolate" => self.cluster.isolate(id(args)?),
            "cut" => {
                let pair = (id(args)?, id(args)?);
                self.cluster.cut.insert(pair);
            }
            "heal" => self.cluster.heal(),
            "lost-time" => self.cluster.raft_mut(id(args)?).handle_pause(),
            // The wire.
            "settle" => self.cluster.settle(),
            "deliver" => return self.take(args, "deliver"),
            "drop" => return self.take(args, "drop"),
            "duplicate" => return self.take(args, "duplicate"),
            "wire" => {
                let lines = self.cluster.wire.iter().map(|m| show::envelope(m) + "\n");
                return Ok(lines.collect());
            }
            "send" => return self.forge(args),
            // Requests.
            "propose" => {
                let id = id(args)?;
                let text = match key::<usize>(args, "bytes")? {
                    Some(bytes) => "x".repeat(bytes),
                    None => word(args)?.to_owned(),
                };
                self.cluster.propose(id, &text)?;
            }
            "read" => {
                let ticket = self.cluster.read(id(args)?)?;
                return Ok(format!("ticket {}\n", ticket.0));
            }
            "ask-to-read" => {
                let ticket = self.cluster.raft_mut(id(args)?).read_index()?;
                return Ok(format!("ticket {}\n", ticket.0));
            }
            "add-learner" => {
                let (at, node) = (id(args)?, id(args)?);
                let address = format!("a{}", node.0);
                self.change(at, &MembershipChange::AddLearner { node, address })?;
            }
            "replace" => {
                let (at, replaces, node) = (id(args)?, id(args)?, id(args)?);
                self.change(at, &MembershipChange::AddReplacement { node, replaces })?;
            }
            "promote" => {
                let (at, node) = (id(args)?, id(args)?);
                self.change(at, &MembershipChange::Promote { node })?;
            }
            "remove" => {
                let (at, node) = (id(args)?, id(args)?);
                self.change(at, &MembershipChange::Remove { node })?;
            }
            "transfer" => {
                let at = id(args)?;
                let to = args.next_pos().map(parse_id).transpose()?;
                let to = self.cluster.transfer(at, to)?;
                return Ok(format!("to {to}\n"));
            }
            "compact" => {
                let (at, index) = (id(args)?, Index(word(args)?.parse()?));
                return Ok(match self.cluster.compact(at, index) {
                    Some(base) => format!("{at}'s log starts after {}\n", base.last),
                    None => format!("{at} keeps its log\n"),
                });
            }
            "snapshot" => {
                let (from, to) = (id(args)?, id(args)?);
                self.cluster.send_snapshot(from, to);
                self.cluster.turn(from);
            }
            "snapshot-failed" => {
                let (at, to) = (id(args)?, id(args)?);
                self.cluster.raft_mut(at).handle_snapshot_failed(to);
                self.cluster.turn(at);
            }
            // Inspection.
            "status" => return self.status(args),
            "log" => return self.log(args),
            "progress" => return self.progress(id(args)?),
            "state" => {
                let id = id(args)?;
                return Ok(format!(
                    "{id}: {}\n",
                    show::entries(&self.cluster.node(id).state)
                ));
            }
            name => return Err(format!("no such command: {name}").into()),
        }
        Ok(String::new())
    }

    fn set_options(&mut self, args: &mut ArgumentConsumer<'_>) -> Result<(), Box<dyn Error>> {
        while let Some((name, value)) = args.next_key() {
            let options = &mut self.options;
            match name {
                "election_ticks" => options.election_ticks = value.parse()?,
                "heartbeat_ticks" => options.heartbeat_ticks = value.parse()?,
                "max_append_bytes" => options.max_append_bytes = value.parse()?,
                "max_inflight_appends" => options.max_inflight_appends = value.parse()?,
                "max_inflight_bytes" => options.max_inflight_bytes = value.parse()?,
                "max_uncommitted_bytes" => options.max_uncommitted_bytes = value.parse()?,
                "max_cached_bytes" => options.max_cached_bytes = value.parse()?,
                "check_quorum" => options.check_quorum = value.parse()?,
                "lease_reads" => options.lease_reads = value.parse()?,
                name => return Err(format!("no such option: {name}").into()),
            }
        }
        self.options.validate()?;
        Ok(())
    }

    /// Creates the cluster of `voters=3 learners=1 spare=1`: members numbered from 1, then nodes outside of the group.
    fn make_cluster(&mut self, args: &mut ArgumentConsumer<'_>) -> Result<(), Box<dyn Error>> {
        let count = key(args, "voters")?.unwrap_or(3);
        let learners: u64 = key(args, "learners")?.unwrap_or(0);
        let spare: u64 = key(args, "spare")?.unwrap_or(0);
        let mut members = voters(count);
        for id in count + 1..=count + learners {
            members = members.apply(&MembershipChange::AddLearner {
                node: node(id),
                address: format!("a{id}"),
            })?;
        }
        let seed = key(args, "seed")?.unwrap_or(0);
        self.cluster = Cluster::of_members(&members, &self.options, seed);
        let first = count + learners + 1;
        for id in first..first + spare {
            let store = MemoryStore::of_members(&Membership::nobody());
            self.cluster.add_node(node(id), store, self.options.clone());
        }
        self.cluster.story.clear();
        Ok(())
    }

    fn change(&mut self, at: NodeId, change: &MembershipChange) -> Result<(), Box<dyn Error>> {
        let id = self.cluster.change(at, change)?;
        let membership = self.cluster.raft(at).membership();
        let line = format!("{at} proposes members=({membership}) as {id}");
        self.cluster.story.push(line);
        Ok(())
    }

    fn ids(&self, args: &mut ArgumentConsumer<'_>) -> Result<Vec<NodeId>, Box<dyn Error>> {
        let mut ids = Vec::new();
        while let Some(word) = args.next_pos() {
            ids.push(parse_id(word)?);
        }
        Ok(if ids.is_empty() {
            self.cluster.ids()
        } else {
            ids
        })
    }

    /// Handles the messages on the wire that match `kind from= to= first= last=`, in order; `last=1` selects only the
    /// newest.
    fn take(&mut self, args: &mut ArgumentConsumer<'_>, what: &str) -> Said {
        let from = key(args, "from")?.map(NodeId);
        let to = key(args, "to")?.map(NodeId);
        let last: Option<usize> = key(args, "last")?;
        let first: Option<usize> = key(args, "first")?;
        let kinds: Vec<&str> = std::iter::from_fn(|| args.next_pos()).collect();
        let wanted = |m: &Envelope| {
            from.is_none_or(|from| from == m.from)
                && to.is_none_or(|to| to == m.to)
                && (kinds.is_empty() || kinds.contains(&show::kind(&m.message)))
        };
        let wire = std::mem::take(&mut self.cluster.wire);
        let count = wire.iter().filter(|m| wanted(m)).count();
        let range = count - last.unwrap_or(count).min(count)..first.unwrap_or(count).min(count);
        let mut taken = Vec::new();
        let mut position = 0;
        for envelope in wire {
            let chosen = wanted(&envelope) && {
                position += 1;
                range.contains(&(position - 1))
            };
            if chosen {
                taken.push(envelope.clone());
            }
            if !chosen || what == "duplicate" {
                self.cluster.wire.push_back(envelope);
            }
        }
        if taken.is_empty() && what != "drop" {
            return Err("no such message is on its way".into());
        }
        let mut out = String::new();
        for envelope in taken {
            match what {
                "deliver" => {
                    // The story shows a refusal.
                    let _ = self.cluster.deliver(envelope);
                }
                "drop" => writeln!(out, "{} is lost", show::envelope(&envelope))?,
                _ => self.cluster.wire.push_back(envelope),
            }
        }
        Ok(out)
    }

    /// Delivers a forged message, which perhaps no correct node would send:
    /// `send append from=2 to=1 term=3 prev=4@2 log=5@3 commit=4`.
    fn forge(&mut self, args: &mut ArgumentConsumer<'_>) -> Said {
        self.lies = true;
        let kind = word(args)?;
        let mut entry_id = |name: &str, default: &str| -> Result<EntryId, Box<dyn Error>> {
            parse_entry_id(args.take_key(name).unwrap_or(default))
        };
        let (prev, last) = (entry_id("prev", "0@0")?, entry_id("last", "0@0")?);
        let entries = match args.take_key("log") {
            None => Vec::new(),
            Some(ids) => ids
                .split('-')
                .map(|id| parse_entry_id(id).map(forged_entry))
                .collect::<Result<_, _>>()?,
        };
        let commit = Index(number(args, "commit", 0)?);
        let index = Index(number(args, "index", 0)?);
        let term = Term(number(args, "term", 0)?);
        let for_term = Term(number(args, "for", term.0.saturating_add(1))?);
        let granted = args
            .take_key("granted")
            .is_some_and(|value| value == "true");
        let transfer = args
            .take_key("transfer")
            .is_some_and(|value| value == "true");
        let message = match kind {
            "append" => Message::Append {
                prev,
                entries,
                commit,
            },
            "accepted" => Message::AppendAccepted { match_index: index },
            "rejected" => Message::AppendRejected {
                refused: index,
                hint: last,
            },
            "heartbeat" => Message::Heartbeat {
                commit,
                read_round: 0,
                lease: false,
                quiet: false,
                comparison: None,
                answers_reads: true,
            },
            "heartbeat-reply" => Message::HeartbeatReply {
                read_round: 0,
                feature_level: 0,
                lease: LeasePromise::default(),
                digest: None,
            },
            "vote" => Message::Vote { last, transfer },
            "vote-reply" => Message::VoteReply { granted },
            "prevote" => Message::PreVote {
                next_term: for_term,
                last,
            },
            "prevote-reply" => Message::PreVoteReply {
                next_term: for_term,
                granted,
            },
            "timeout-now" => Message::TimeoutNow,
            "snapshot" => Message::SnapshotChunk(SnapshotChunk {
                meta: SnapshotMeta {
                    last,
                    membership: voters(3),
                },
                number: 0,
                serial: 0,
                done: true,
                checksum: 0,
                feature_level: 0,
                data: command(""),
            }),
            "join" => Message::JoinRequest {
                address: "somewhere".to_owned(),
            },
            kind => return Err(format!("can't forge {kind}").into()),
        };
        let (from, to) = (
            NodeId(number(args, "from", 0)?),
            NodeId(number(args, "to", 0)?),
        );
        // `at` is the node that gets the message, if that is not the receiver in it.
        let at = NodeId(number(args, "at", to.0)?);
        let envelope = Envelope {
            from,
            to,
            term,
            message,
        };
        if at == to {
            self.cluster.deliver(envelope)?;
            return Ok(String::new());
        }
        self.cluster.raft_mut(at).step(envelope)?;
        self.cluster.turn(at);
        Ok(String::new())
    }

    fn status(&self, args: &mut ArgumentConsumer<'_>) -> Said {
        let mut out = String::new();
        for id in self.ids(args)? {
            let Some(raft) = &self.cluster.node(id).raft else {
                writeln!(out, "{id} is down")?;
                continue;
            };
            let leader = raft
                .leader()
                .map_or("nobody".to_owned(), |leader| leader.to_string());
            writeln!(
                out,
                "{id} {:?} {} of {leader}, last={} commit={} emitted={} members=({})",
                raft.role(),
                raft.term(),
                raft.last_id(),
                raft.commit_index(),
                raft.applying_index(),
                raft.membership()
            )?;
        }
        Ok(out)
    }

    /// Prints the content of the disks.
    fn log(&self, args: &mut ArgumentConsumer<'_>) -> Said {
        let mut out = String::new();
        for id in self.ids(args)? {
            let store = &self.cluster.node(id).store;
            let after = if store.base.last == EntryId::default() {
                String::new()
            } else {
                format!(" after {}", store.base.last)
            };
            writeln!(
                out,
                "{id} {}{after} [{}]",
                store.hard_state,
                show::entries(&store.entries)
            )?;
        }
        Ok(out)
    }

    fn progress(&self, id: NodeId) -> Said {
        let mut out = String::new();
        for (node, match_index, state) in self.cluster.raft(id).progress() {
            writeln!(out, "{node} match_index={match_index} {state:?}")?;
        }
        Ok(out)
    }
}

fn forged_entry(id: EntryId) -> Entry {
    let text = format!("v{}.{}", id.index, id.term.0);
    Entry::new(id.term, id.index, Payload::Command(command(&text)))
}

fn parse_id(word: &str) -> Result<NodeId, Box<dyn Error>> {
    Ok(NodeId(word.parse()?))
}

/// Parses an entry id such as `5@2`: index 5 of term 2.
fn parse_entry_id(text: &str) -> Result<EntryId, Box<dyn Error>> {
    let (index, term) = text.split_once('@').ok_or("an entry is index@term")?;
    Ok(EntryId::new(Term(term.parse()?), Index(index.parse()?)))
}

fn word<'a>(args: &mut ArgumentConsumer<'a>) -> Result<&'a str, Box<dyn Error>> {
    args.next_pos()
        .ok_or_else(|| "an argument is missing".into())
}

fn id(args: &mut ArgumentConsumer<'_>) -> Result<NodeId, Box<dyn Error>> {
    parse_id(word(args)?)
}

fn key<T: std::str::FromStr>(
    args: &mut ArgumentConsumer<'_>,
    name: &str,
) -> Result<Option<T>, Box<dyn Error>>
where
    T::Err: Error + 'static,
{
    Ok(args.take_key(name).map(str::parse).transpose()?)
}

/// Parses a number; `max` is the greatest.
fn number(
    args: &mut ArgumentConsumer<'_>,
    name: &str,
    default: u64,
) -> Result<u64, Box<dyn Error>> {
    match args.take_key(name) {
        None => Ok(default),
        Some("max") => Ok(u64::MAX),
        Some(text) => Ok(text.parse()?),
    }
}
