//! Random histories against a model: duplicates, restarts at any point, groups that lag, limits that are reached; and the
//! same history in other batches gives the same bytes.

// The numbers here are small, and helpers of tests may panic as tests do.
#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used
)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use common::{GENESIS, Random, Replica, addresses, assert_balanced};
use shardctrler::{
    Change, Command, CtrlError, Cut, Drained, HistoryLimits, Loss, Query, Response, SessionRef,
    ShardList,
};
use types::{
    ClientId, ConfigDelta, ConfigNum, Gid, Incarnation, JournalId, LogTime, Sequence, ShardConfig,
    ShardId, ShardSet,
};

const LIMITS: HistoryLimits = HistoryLimits {
    keep: 3,
    keep_cuts: 4,
    step: 2,
    max_bytes: 400,
};

/// The specification of the controllers, written as plainly as possible: nothing is ever forgotten.
struct Model {
    configs: Vec<Arc<ShardConfig>>,
    /// Of all groups of the latest configuration: how far they are, and the last configuration that concerned them.
    waited: BTreeMap<Gid, (u64, u64)>,
    /// Every incarnation of each gid that ever was.
    lives: BTreeMap<Gid, BTreeSet<Incarnation>>,
    drained: BTreeMap<Gid, Drained>,
    /// Each change of a session that was carried out, and its answer.
    answered: BTreeMap<(ClientId, Sequence), Response>,
}

impl Model {
    fn new() -> Self {
        Self {
            configs: vec![Arc::new(ShardConfig::empty(GENESIS.shards))],
            waited: BTreeMap::new(),
            lives: BTreeMap::new(),
            drained: BTreeMap::new(),
            answered: BTreeMap::new(),
        }
    }

    fn latest(&self) -> &ShardConfig {
        self.configs.last().unwrap()
    }

    fn num(&self) -> u64 {
        self.latest().num().0
    }

    /// The groups that a change leads to, each with whether it is leaving, or why it isn't allowed. All generated addresses
    /// are well formed.
    fn groups_after(&self, change: &Change) -> Result<Groups, CtrlError> {
        let mut groups: Groups = self
            .latest()
            .groups()
            .iter()
            .map(|(gid, group)| (*gid, (group.addresses.clone(), group.leaving)))
            .collect();
        match change {
            Change::Join { groups: joining } => {
                if joining.is_empty() {
                    return Err(CtrlError::NoGroups);
                }
                if joining.contains_key(&Gid::NONE) {
                    return Err(CtrlError::GidZero);
                }
                for (gid, addresses) in joining {
                    for (other, theirs) in joining.range(..gid) {
                        refuse_common(*other, theirs, addresses)?;
                    }
                }
                let retired = |gid: &&Gid| self.drained.get(gid).is_some_and(|it| it.retired);
                if let Some(gid) = joining.keys().find(retired) {
                    return Err(CtrlError::Retired(*gid));
                }
                let joined = joining.iter();
                groups.extend(joined.map(|(gid, list)| (*gid, (list.clone(), false))));
                for (other, (theirs, _)) in &groups {
                    if !joining.contains_key(other) {
                        for addresses in joining.values() {
                            refuse_common(*other, theirs, addresses)?;
                        }
                    }
                }
            }
            Change::Leave { gids } => {
                if gids.is_empty() {
                    return Err(CtrlError::NoGroups);
                }
                if gids.contains(&Gid::NONE) {
                    return Err(CtrlError::GidZero);
                }
                for gid in gids {
                    let group = groups.get_mut(gid);
                    group.ok_or(CtrlError::UnknownGroup(*gid))?.1 = true;
                }
                if groups.values().all(|(_, leaving)| *leaving) {
                    return Err(CtrlError::LastGroup);
                }
            }
            Change::Move { shard, gid } => {
                if *gid == Gid::NONE {
                    return Err(CtrlError::GidZero);
                }
                if shard.0 >= GENESIS.shards {
                    let (shard, shards) = (*shard, GENESIS.shards);
                    return Err(CtrlError::NoShard { shard, shards });
                }
                match groups.get(gid) {
                    None => return Err(CtrlError::UnknownGroup(*gid)),
                    Some((_, true)) => return Err(CtrlError::Leaving(*gid)),
                    Some(_) => {}
                }
            }
            Change::Forget { gids, .. } => {
                if gids.is_empty() {
                    return Err(CtrlError::NoGroups);
                }
                if gids.contains(&Gid::NONE) {
                    return Err(CtrlError::GidZero);
                }
                for gid in gids {
                    groups.remove(gid).ok_or(CtrlError::UnknownGroup(*gid))?;
                }
                if groups.values().all(|(_, leaving)| *leaving) {
                    return Err(CtrlError::LastGroup);
                }
            }
            Change::Retire { .. } | Change::Report { .. } | Change::Cut { .. } => {}
        }
        Ok(groups)
    }

    /// Checks the answer to a change that is carried out now, and takes it in. `now` is the configuration after it.
    fn carry_out(&mut self, change: &Change, response: &Response, now: &Arc<ShardConfig>) {
        let before = Arc::clone(self.configs.last().unwrap());
        let groups = match self.groups_after(change) {
            Ok(groups) => groups,
            Err(error) => {
                assert_eq!(*response, Response::Refused(error), "{change:?}");
                assert_eq!(*now, before);
                return;
            }
        };
        if let Change::Forget {
            gids,
            accept_data_loss,
        } = change
        {
            self.forget(gids, *accept_data_loss, &groups, response, now);
            return;
        }
        if let Change::Retire { gid, incarnation } = change {
            self.retire(*gid, *incarnation, response);
            assert_eq!(*now, before);
            return;
        }
        let target_changes =
            matches!(change, Change::Move { shard, gid } if before.target(*shard) != *gid);
        let same = |groups: &Groups| {
            let known = before.groups().iter();
            known
                .map(|(gid, group)| (gid, &group.addresses, group.leaving))
                .eq(groups
                    .iter()
                    .map(|(gid, (list, leaving))| (gid, list, *leaving)))
        };
        if same(&groups) && !target_changes {
            let same = Response::Changed {
                num: before.num(),
                changed: false,
                moved_shards: 0,
            };
            assert_eq!(*response, same, "{change:?}");
            assert_eq!(*now, before);
            return;
        }
        let moved = common::moves(before.targets(), now.targets());
        let changed = Response::Changed {
            num: before.num().next(),
            changed: true,
            moved_shards: moved as u32,
        };
        assert_eq!(*response, changed, "{change:?}");
        let members = |groups: &Groups| -> Vec<Gid> {
            let members = groups.iter().filter(|(_, (_, leaving))| !leaving);
            members.map(|(gid, _)| *gid).collect()
        };
        match change {
            Change::Move { shard, gid } => {
                assert_eq!(now.target(*shard), *gid);
                assert_eq!(moved, 1);
            }
            _ if before.members().eq(members(&groups)) => assert_eq!(moved, 0),
            _ => assert_balanced(now),
        }
        self.take(&groups, now, &BTreeSet::new(), &BTreeMap::new());
    }

    /// Checks that each shard that a forgotten group owned or had to hand over goes on without it, and takes that in.
    fn forget(
        &mut self,
        gids: &BTreeSet<Gid>,
        accept_data_loss: bool,
        groups: &Groups,
        response: &Response,
        now: &Arc<ShardConfig>,
    ) {
        let before = Arc::clone(self.configs.last().unwrap());
        let mut resets = BTreeMap::new();
        let (mut emptied, mut returned) = (Vec::new(), Vec::new());
        for (shard, row) in (0..).map(ShardId).zip(before.rows()) {
            let waits = |gid| {
                self.waited
                    .get(&gid)
                    .is_some_and(|it| it.0 < row.owner_since.0)
            };
            if gids.contains(&row.owner) {
                let back = waits(row.owner) && waits(row.previous) && !gids.contains(&row.previous);
                let (to, list) = if back {
                    (row.previous, &mut returned)
                } else {
                    (now.target(shard), &mut emptied)
                };
                list.push(shard);
                resets.insert(shard, to);
            } else if gids.contains(&row.previous) && waits(row.owner) {
                emptied.push(shard);
                resets.insert(shard, row.owner);
            }
        }
        let list = |shards: Vec<ShardId>| ShardList {
            count: shards.len() as u32,
            listed: shards.into_iter().collect::<ShardSet>(),
        };
        let (emptied, returned) = (list(emptied), list(returned));
        let loss = Loss { emptied, returned };
        if !accept_data_loss && !resets.is_empty() {
            let refused = Response::Refused(CtrlError::DataLoss(loss));
            assert_eq!(*response, refused);
            assert_eq!(*now, before);
            return;
        }
        let num = before.num().next();
        assert_eq!(*response, Response::Forgotten { num, loss });
        if before.members().any(|gid| gids.contains(&gid)) {
            assert_balanced(now);
        } else {
            assert_eq!(now.targets(), before.targets());
        }
        self.take(groups, now, &BTreeSet::new(), &resets);
        for gid in gids {
            self.waited.remove(gid);
            let ended = Drained {
                incarnation: before.groups()[gid].incarnation,
                gone_in: num,
                forgotten: true,
                retired: false,
            };
            self.drained.insert(*gid, ended);
        }
    }

    fn retire(&mut self, gid: Gid, incarnation: Incarnation, response: &Response) {
        let is_part = self.latest().groups().contains_key(&gid);
        let drained = self.drained.get_mut(&gid);
        let drained = drained.filter(|it| it.incarnation >= incarnation && !is_part);
        let expected = match drained {
            _ if gid == Gid::NONE => Response::Refused(CtrlError::GidZero),
            None => Response::Refused(CtrlError::NotDrained(gid)),
            Some(drained) => {
                drained.retired = true;
                Response::Retired
            }
        };
        assert_eq!(*response, expected);
    }

    /// Checks that the owners of the next configuration are the targets for shards that are cut or that nobody owned, and the same as
    /// before for all others; and that the groups are the planned ones without the drained ones. Takes the configuration in.
    /// Shards of `resets` have the owner there, and nobody before.
    fn take(
        &mut self,
        groups: &Groups,
        now: &Arc<ShardConfig>,
        cut: &BTreeSet<ShardId>,
        resets: &BTreeMap<ShardId, Gid>,
    ) {
        let before = Arc::clone(self.configs.last().unwrap());
        let num = before.num().next();
        assert_eq!(now.num(), num);
        for (shard, (was, is)) in (0..).map(ShardId).zip(before.rows().zip(now.rows())) {
            if let Some(owner) = resets.get(&shard) {
                let since = (is.owner_since, is.previous);
                assert_eq!((is.owner, since), (*owner, (num, Gid::NONE)));
                let stays = was.target == is.target && !is.is_moving();
                let since = if stays { was.target_since } else { num };
                assert_eq!(is.target_since, since);
                continue;
            }
            let goes = was.owner == Gid::NONE || cut.contains(&shard);
            let owner = if goes { is.target } else { was.owner };
            assert_eq!(is.owner, owner, "{shard}: {was:?} to {is:?}");
            let changed = |changed: bool, since| if changed { num } else { since };
            assert_eq!(
                is.owner_since,
                changed(was.owner != is.owner, was.owner_since)
            );
            assert_eq!(
                is.target_since,
                changed(was.target != is.target, was.target_since)
            );
            let previous = if was.owner == is.owner {
                was.previous
            } else {
                was.owner
            };
            assert_eq!(is.previous, previous);
        }
        let owning: BTreeSet<Gid> = before.owners().iter().copied().collect();
        for (gid, (addresses, leaving)) in groups {
            let done = self
                .waited
                .get(gid)
                .is_none_or(|(settled, due)| settled >= due);
            let Some(group) = now.groups().get(gid) else {
                assert!(
                    *leaving && !owning.contains(gid) && done,
                    "{gid} goes too early"
                );
                let incarnation = before.groups()[gid].incarnation;
                let drained = Drained {
                    incarnation,
                    gone_in: num,
                    forgotten: false,
                    retired: false,
                };
                self.drained.insert(*gid, drained);
                self.waited.remove(gid);
                continue;
            };
            assert!(
                !*leaving || owning.contains(gid) || !done,
                "{gid} stays too long"
            );
            assert_eq!((&group.addresses, group.leaving), (addresses, *leaving));
            if let Some(known) = before.groups().get(gid) {
                assert_eq!(group.incarnation, known.incarnation);
            } else {
                assert_eq!(group.incarnation, Incarnation(num.0));
                assert!(
                    self.lives
                        .entry(*gid)
                        .or_default()
                        .insert(group.incarnation)
                );
                self.waited.insert(*gid, (num.0 - 1, num.0 - 1));
            }
        }
        assert!(now.groups().keys().all(|gid| groups.contains_key(gid)));
        let owners = before.owners().iter().zip(now.owners());
        for (shard, (was, is)) in (0..).map(ShardId).zip(owners) {
            for gid in [was, is] {
                if (was != is || resets.contains_key(&shard))
                    && let Some((_, due)) = self.waited.get_mut(gid)
                {
                    *due = num.0;
                }
            }
        }
        self.configs.push(Arc::clone(now));
    }

    /// The groups of the latest configuration, as a change would leave them that changes none.
    fn same_groups(&self) -> Groups {
        let report = Change::Report {
            gid: Gid(1),
            settled: ConfigNum(0),
        };
        self.groups_after(&report).unwrap()
    }

    /// Takes in what a report or a cut made, if it made a configuration.
    fn follow(&mut self, now: &Arc<ShardConfig>, cut: &BTreeSet<ShardId>) {
        let before = Arc::clone(self.configs.last().unwrap());
        if now.num() != before.num() {
            assert_eq!(now.targets(), before.targets());
            self.take(&self.same_groups(), now, cut, &BTreeMap::new());
            assert_ne!(
                (now.groups(), now.owners()),
                (before.groups(), before.owners()),
                "it changes nothing"
            );
            return;
        }
        assert_eq!(*now, before);
        assert!(cut.is_empty(), "the cut was due");
        let owning: BTreeSet<Gid> = before.owners().iter().copied().collect();
        for (gid, group) in before.groups() {
            let (settled, due) = self.waited[gid];
            assert!(
                !group.leaving || owning.contains(gid) || settled < due,
                "{gid} is drained"
            );
        }
    }

    fn cut(
        &mut self,
        cuts: &BTreeMap<ShardId, Cut>,
        response: &Response,
        now: &Arc<ShardConfig>,
    ) -> &'static str {
        let before = Arc::clone(self.configs.last().unwrap());
        let fits = |(shard, cut): (&ShardId, &Cut)| {
            let row = before.row(*shard);
            let incarnation = |gid| before.groups().get(&gid).map(|group| group.incarnation);
            let fits = row.is_moving()
                && (row.owner, row.owner_since) == (cut.owner, cut.owner_since)
                && (row.target, row.target_since) == (cut.target, cut.target_since)
                && incarnation(cut.owner) == Some(cut.owner_incarnation)
                && incarnation(cut.target) == Some(cut.target_incarnation);
            fits.then_some(*shard)
        };
        let due: BTreeSet<ShardId> = cuts.iter().filter_map(fits).collect();
        self.follow(now, &due);
        let expected = Response::Cut {
            num: now.num(),
            cut: due.len() as u32,
        };
        assert_eq!(*response, expected);
        if due.is_empty() {
            return "void";
        }
        "cut"
    }

    fn report(&mut self, gid: Gid, settled: u64, response: &Response, replica: &Replica) {
        let now = replica.machine.latest();
        if gid == Gid::NONE {
            assert_eq!(*response, Response::Refused(CtrlError::GidZero));
            return;
        }
        if settled > self.num() {
            let (num, latest) = (ConfigNum(settled), self.latest().num());
            let future = CtrlError::Future { num, latest };
            assert_eq!(*response, Response::Refused(future));
            return;
        }
        assert_eq!(*response, Response::Reported);
        let Some((known, _)) = self.waited.get_mut(&gid).filter(|it| it.0 < settled) else {
            assert_eq!(now.as_ref(), self.latest());
            return;
        };
        *known = settled;
        self.follow(&now, &BTreeSet::new());
    }

    /// Checks an answer, and takes the change in if it was carried out now.
    fn check(&mut self, command: &Command, response: &Response, replica: &Replica) -> &'static str {
        let now = replica.machine.latest();
        match &command.change {
            Change::Report { gid, settled } => {
                self.report(*gid, settled.0, response, replica);
                return "reported";
            }
            Change::Cut { cuts } => {
                return self.cut(cuts, response, &now);
            }
            _ => {}
        }
        let Some(session) = command.session else {
            self.carry_out(&command.change, response, &now);
            return "executed";
        };
        let name = (session.client, session.sequence);
        match response {
            Response::Refused(CtrlError::SessionExpired) => {
                let age = LogTime(replica.time).since(session.client.birth);
                assert!(age > GENESIS.session_ttl_ms);
                return "expired";
            }
            Response::Refused(CtrlError::StaleSequence { .. }) => return "stale",
            Response::Refused(CtrlError::SessionLimit { .. }) => return "limit",
            _ => {}
        }
        if let Some(first) = self.answered.get(&name) {
            assert_eq!(first, response, "{command:?}");
            assert_eq!(now.as_ref(), self.latest());
            return "replayed";
        }
        self.carry_out(&command.change, response, &now);
        self.answered.insert(name, response.clone());
        match response {
            Response::Refused(CtrlError::DataLoss(_)) => "loss",
            Response::Refused(CtrlError::Retired(_)) => "retired",
            Response::Refused(_) => "refused",
            Response::Forgotten { loss, .. } if loss.is_empty() => "dropped",
            Response::Forgotten { loss, .. } if loss.returned.count == 0 => "forgotten",
            Response::Forgotten { .. } => "returned",
            Response::Retired => "retires",
            _ => "executed",
        }
    }

    /// Checks that the kept state is correct, that it is all that is needed, and that it isn't more.
    fn check_state(&self, replica: &Replica) {
        let found = replica.machine.progress().iter();
        let found: Vec<_> = found
            .map(|(gid, it)| (*gid, (it.settled.0, it.due.0)))
            .collect();
        let waited: Vec<_> = self.waited.iter().map(|(gid, it)| (*gid, *it)).collect();
        assert_eq!(found, waited);
        assert_eq!(*replica.machine.drained(), self.drained);
        let (latest, oldest) = (self.num(), replica.machine.oldest().0);
        let recent = self.recent();
        assert!(oldest <= recent, "{oldest} is kept, {recent} is wanted");
        assert!(recent < oldest + LIMITS.step);
        assert!(self.bytes_from(oldest) <= LIMITS.max_bytes);
        for num in 0..=latest + 1 {
            let query = Query::Config {
                num: Some(ConfigNum(num)),
            };
            let response = replica.query(&query);
            match response {
                Response::Config(answer) => {
                    assert!((oldest..=latest).contains(&num));
                    assert_eq!(answer.config, self.configs[num as usize]);
                }
                Response::Refused(CtrlError::Compacted { .. }) => assert!(num < oldest),
                Response::Refused(CtrlError::Future { .. }) => assert!(num > latest),
                other => panic!("{other:?}"),
            }
        }
        for num in 0..=latest {
            let groups = self.waited.keys().map(|gid| Some(*gid));
            for gid in groups.chain([Some(Gid(99)), None]) {
                self.check_after(replica, num, gid);
            }
        }
    }

    /// The deltas between all configurations.
    fn deltas(&self) -> impl DoubleEndedIterator<Item = ConfigDelta> + '_ {
        self.configs.windows(2).map(|pair| {
            let (owners, targets) = (pair[1].owners(), pair[1].targets());
            let rows = (0..).map(ShardId).zip(pair[0].rows().zip(pair[1].rows()));
            let reset = |(was, is): (types::Assignment, types::Assignment)| {
                let is_new = is.owner_since == pair[1].num() && is.previous == Gid::NONE;
                is_new && was.owner != Gid::NONE
            };
            let resets = rows.filter(|(_, rows)| reset(*rows));
            let resets: ShardSet = resets.map(|(shard, _)| shard).collect();
            let delta = ConfigDelta::new(&pair[0], pair[1].groups(), targets, owners);
            delta.with_resets(&pair[0], owners, &resets)
        })
    }

    /// The size of all deltas after a configuration.
    fn bytes_from(&self, num: u64) -> usize {
        let after = self.deltas().skip(num as usize);
        after.map(|delta| delta.encode().len()).sum()
    }

    /// The oldest configuration that people may want: the last few of their changes, not too many cuts, and not too many bytes.
    fn recent(&self) -> u64 {
        let (mut changes, mut cuts, mut bytes) = (0, 0, 0);
        for delta in self.deltas().rev() {
            if delta.is_cut() {
                cuts += 1;
            } else {
                changes += 1;
            }
            bytes += delta.encode().len();
            if changes > LIMITS.keep || cuts > LIMITS.keep_cuts || bytes > LIMITS.max_bytes {
                return delta.num.0;
            }
        }
        0
    }

    /// A caller that has a configuration gets to the latest, a group in one step if it is far behind.
    fn check_after(&self, replica: &Replica, num: u64, gid: Option<Gid>) {
        let waited = gid.and_then(|gid| self.waited.get(&gid));
        let settled = waited.map_or(self.num(), |(settled, _)| *settled);
        let oldest = replica.machine.oldest();
        let mut mine = ShardConfig::clone(&self.configs[num as usize]);
        for round in 0.. {
            let at = mine.num().0;
            if at == self.num() {
                return;
            }
            let configs = replica.after(at, 2, gid.map(|gid| gid.0));
            assert_eq!(configs.latest.0, self.num());
            assert_eq!(configs.settled.0, settled);
            let is_whole = configs.full.is_some();
            let begins = gid.is_some() && at == 0;
            assert_eq!(is_whole, begins || at < oldest.0, "{gid:?} at {at}");
            if let Some(full) = configs.full {
                assert_eq!(round, 0);
                assert_eq!(full, self.configs[full.num().0 as usize]);
                mine = (*full).clone();
                let expected = if gid.is_some() {
                    ConfigNum(self.num())
                } else {
                    oldest
                };
                assert_eq!(full.num(), expected);
            } else {
                assert!(!configs.deltas.is_empty());
            }
            for delta in &configs.deltas {
                mine.apply(delta).unwrap();
                assert_eq!(mine, *self.configs[delta.num.0 as usize]);
            }
        }
    }
}

/// Groups with their addresses, and whether they are leaving.
type Groups = BTreeMap<Gid, (Vec<String>, bool)>;

fn refuse_common(owner: Gid, theirs: &[String], addresses: &[String]) -> Result<(), CtrlError> {
    match theirs.iter().find(|it| addresses.contains(it)) {
        Some(address) => Err(CtrlError::AddressTaken {
            address: address.clone(),
            owner,
        }),
        None => Ok(()),
    }
}

/// Draws commands as people and groups with unreliable networks would send them.
struct Source {
    random: Random,
    clients: Vec<(ClientId, u64)>,
    sent: Vec<Command>,
    /// A group that isn't heard of for a while.
    silent: Gid,
}

impl Source {
    fn command(&mut self, time: u64, model: &Model) -> Command {
        if !self.sent.is_empty() && self.random.one_in(5) {
            let at = self.random.below(self.sent.len() as u64) as usize;
            return self.sent[at].clone();
        }
        if self.random.one_in(40) {
            self.silent = Gid(self.random.below(8));
        }
        let change = self.change(model);
        let session = match change {
            Change::Report { .. } | Change::Cut { .. } => None,
            _ if self.random.one_in(4) => None,
            _ => Some(self.session(time)),
        };
        let command = Command { session, change };
        self.sent.push(command.clone());
        if self.sent.len() > 20 {
            self.sent.remove(0);
        }
        command
    }

    fn change(&mut self, model: &Model) -> Change {
        let gid = Gid(self.random.below(8));
        match self.random.below(16) {
            14 => {
                let gids: BTreeSet<Gid> = (0..=self.random.below(2))
                    .map(|_| Gid(self.random.below(8)))
                    .collect();
                Change::Forget {
                    gids,
                    accept_data_loss: !self.random.one_in(3),
                }
            }
            15 => {
                let known = model.drained.get(&gid).map_or(1, |it| it.incarnation.0);
                // Seldom what works: the gid is of no use afterwards.
                let more = u64::from(!self.random.one_in(4));
                let incarnation = Incarnation(known + more);
                Change::Retire { gid, incarnation }
            }
            0 | 1 => {
                let count = self.random.below(3) + u64::from(!self.random.one_in(8));
                let groups = (0..count).map(|_| self.group()).collect();
                Change::Join { groups }
            }
            2 | 3 => {
                let gids: BTreeSet<Gid> = (0..self.random.below(3))
                    .map(|_| Gid(self.random.below(8)))
                    .collect();
                Change::Leave { gids }
            }
            4 | 5 => Change::Move {
                shard: ShardId(self.random.below(u64::from(GENESIS.shards) + 1) as u32),
                gid,
            },
            6 | 7 => self.cuts(model),
            _ => {
                let settled = match self.random.below(10) {
                    0 => model.num() + 1,
                    1 | 2 => self.random.below(model.num() + 1),
                    _ => model.num(),
                };
                // News of a silent group is news of another.
                let gid = if gid == self.silent { Gid(9) } else { gid };
                let settled = ConfigNum(settled);
                Change::Report { gid, settled }
            }
        }
    }

    /// Cuts of some of the shards that move, now and then with a field that is wrong.
    fn cuts(&mut self, model: &Model) -> Change {
        let config = model.latest();
        let mut cuts = BTreeMap::new();
        for (shard, row) in (0..).map(ShardId).zip(config.rows()) {
            if !row.is_moving() || self.random.one_in(3) {
                continue;
            }
            let incarnation = |gid| config.groups()[&gid].incarnation;
            let mut cut = Cut {
                owner: row.owner,
                owner_incarnation: incarnation(row.owner),
                owner_since: row.owner_since,
                target: row.target,
                target_incarnation: incarnation(row.target),
                target_since: row.target_since,
                journal: JournalId(self.random.below(9)),
            };
            match self.random.below(30) {
                0 => cut.owner = Gid(self.random.below(8)),
                1 => cut.owner_incarnation.0 ^= 1,
                2 => cut.owner_since.0 ^= 1,
                3 => cut.target = Gid(self.random.below(8)),
                4 => cut.target_incarnation.0 ^= 1,
                5 => cut.target_since.0 ^= 1,
                _ => {}
            }
            cuts.insert(shard, cut);
        }
        Change::Cut { cuts }
    }

    /// A group with its usual addresses, rarely others, and rarely those of another group.
    fn group(&mut self) -> (Gid, Vec<String>) {
        let gid = 1 + self.random.below(7);
        let gid = if self.random.one_in(30) { 0 } else { gid };
        let addresses = match self.random.below(10) {
            0 => vec![format!("moved-{gid}-{}:1", self.random.below(2))],
            1 => addresses(1 + self.random.below(7)),
            _ => addresses(gid),
        };
        (Gid(gid), addresses)
    }

    fn session(&mut self, time: u64) -> SessionRef {
        if self.clients.len() < 3 || self.random.one_in(30) {
            let client = ClientId {
                birth: LogTime(time),
                nonce: self.random.next(),
            };
            self.clients.push((client, 0));
        }
        let at = self.random.below(self.clients.len().min(5) as u64) as usize;
        let at = self.clients.len() - 1 - at;
        let (client, sequence) = &mut self.clients[at];
        *sequence += 1;
        let acked_below = sequence.saturating_sub(self.random.below(4)).max(1);
        SessionRef {
            client: *client,
            sequence: Sequence(*sequence),
            acked_below: Sequence(acked_below),
        }
    }
}

/// Lives through one random history for each seed; returns how often each kind of answer was given, and the most configurations
/// that were forgotten.
fn live(
    seeds: std::ops::Range<u64>,
    new: impl Fn() -> Replica,
) -> (BTreeMap<&'static str, u32>, u64) {
    let mut seen: BTreeMap<&str, u32> = BTreeMap::new();
    let mut most_forgotten = 0;
    for seed in seeds {
        let mut replica = new();
        let mut others = [new(), new()];
        let mut model = Model::new();
        let mut source = Source {
            random: Random(seed),
            clients: Vec::new(),
            sent: Vec::new(),
            silent: Gid(8),
        };
        let mut waiting: Vec<Vec<bytes::Bytes>> = vec![Vec::new(), Vec::new()];
        for _ in 0..300 {
            if source.random.one_in(20) {
                replica.time += match source.random.below(3) {
                    0 => source.random.below(12_000),
                    _ => source.random.below(150),
                };
                for (other, waiting) in others.iter_mut().zip(&mut waiting) {
                    other.batch(waiting);
                    waiting.clear();
                    other.time = replica.time;
                }
            }
            let command = source.command(replica.time, &model);
            let response = replica.apply_bytes(command.encode());
            let kind = model.check(&command, &response, &replica);
            *seen.entry(kind).or_default() += 1;
            if source.random.one_in(10) {
                replica.restart();
            }
            if source.random.one_in(30) {
                model.check_state(&replica);
            }
            for (other, waiting) in others.iter_mut().zip(&mut waiting) {
                waiting.push(command.encode());
                if source.random.one_in(12) {
                    other.batch(waiting);
                    waiting.clear();
                    if source.random.one_in(3) {
                        other.restart();
                    }
                }
            }
        }
        model.check_state(&replica);
        for (other, waiting) in others.iter_mut().zip(&waiting) {
            other.batch(waiting);
            assert_eq!(other.stored(), replica.stored(), "seed {seed}");
        }
        most_forgotten = most_forgotten.max(replica.machine.oldest().0);
    }
    (seen, most_forgotten)
}

#[test]
fn random_histories_are_what_the_model_says() {
    let (seen, most_forgotten) = live(0..100, || Replica::with_limits(GENESIS, LIMITS));
    for kind in [
        "executed", "replayed", "refused", "reported", "stale", "expired", "cut", "void",
    ] {
        assert!(
            seen.get(kind).is_some_and(|count| *count > 50),
            "{kind}: {seen:?}"
        );
    }
    for kind in [
        "loss",
        "retired",
        "dropped",
        "forgotten",
        "returned",
        "retires",
    ] {
        assert!(
            seen.get(kind).is_some_and(|count| *count > 10),
            "{kind}: {seen:?}"
        );
    }
    assert!(most_forgotten > 20, "{most_forgotten}");
}

/// The model finds each bug of the rules of owners, targets and groups.
#[cfg(feature = "bugs")]
#[test]
fn the_model_finds_known_bugs() {
    use shardctrler::Bug;
    for bug in Bug::ALL
        .into_iter()
        .chain(Bug::OF_CUTS)
        .chain(Bug::OF_FORGETTING)
    {
        let new = || Replica::with_bug(GENESIS, LIMITS, bug);
        let found = std::panic::catch_unwind(|| live(0..20, new));
        assert!(found.is_err(), "{bug:?}");
    }
}
