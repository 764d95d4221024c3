//! The specification of the controllers, as plain as possible.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use shardctrler::{Change, Command, CtrlError, Cut, Drained, Loss, Response, ShardList};
use types::{
    ClientId, ConfigNum, Gid, Incarnation, LogTime, Sequence, ShardConfig, ShardId, ShardSet,
};

use crate::common::{self, GENESIS, Replica, assert_balanced};

/// The specification of the controllers, written as plainly as possible: nothing is ever forgotten.
pub(crate) struct Model {
    pub(crate) configs: Vec<Arc<ShardConfig>>,
    /// Of all groups of the latest configuration: how far they are, and the last configuration that concerned them.
    pub(crate) waited: BTreeMap<Gid, (u64, u64)>,
    /// Every incarnation of each gid that ever was.
    pub(crate) lives: BTreeMap<Gid, BTreeSet<Incarnation>>,
    pub(crate) drained: BTreeMap<Gid, Drained>,
    /// Each change of a session that was carried out, and its answer.
    pub(crate) answered: BTreeMap<(ClientId, Sequence), Response>,
}

impl Model {
    pub(crate) fn new() -> Self {
        Self {
            configs: vec![Arc::new(ShardConfig::empty(GENESIS.shards))],
            waited: BTreeMap::new(),
            lives: BTreeMap::new(),
            drained: BTreeMap::new(),
            answered: BTreeMap::new(),
        }
    }

    pub(crate) fn latest(&self) -> &ShardConfig {
        self.configs.last().unwrap()
    }

    pub(crate) fn num(&self) -> u64 {
        self.latest().num().0
    }

    /// The groups that a change leads to, each with whether it is leaving, or why it isn't allowed. All generated addresses
    /// are well formed.
    pub(crate) fn groups_after(&self, change: &Change) -> Result<Groups, CtrlError> {
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
    pub(crate) fn carry_out(
        &mut self,
        change: &Change,
        response: &Response,
        now: &Arc<ShardConfig>,
    ) {
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
    pub(crate) fn forget(
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

    pub(crate) fn retire(&mut self, gid: Gid, incarnation: Incarnation, response: &Response) {
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
    pub(crate) fn take(
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
    pub(crate) fn same_groups(&self) -> Groups {
        let report = Change::Report {
            gid: Gid(1),
            settled: ConfigNum(0),
            held: ConfigNum(0),
        };
        self.groups_after(&report).unwrap()
    }

    /// Takes in what a report or a cut made, if it made a configuration.
    pub(crate) fn follow(&mut self, now: &Arc<ShardConfig>, cut: &BTreeSet<ShardId>) {
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

    pub(crate) fn cut(
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

    pub(crate) fn report(
        &mut self,
        gid: Gid,
        settled: u64,
        response: &Response,
        replica: &Replica,
    ) {
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
    pub(crate) fn check(
        &mut self,
        command: &Command,
        response: &Response,
        replica: &Replica,
    ) -> &'static str {
        let now = replica.machine.latest();
        match &command.change {
            Change::Report { gid, settled, .. } => {
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
}

/// Groups with their addresses, and whether they are leaving.
pub(crate) type Groups = BTreeMap<Gid, (Vec<String>, bool)>;

pub(crate) fn refuse_common(
    owner: Gid,
    theirs: &[String],
    addresses: &[String],
) -> Result<(), CtrlError> {
    match theirs.iter().find(|it| addresses.contains(it)) {
        Some(address) => Err(CtrlError::AddressTaken {
            address: address.clone(),
            owner,
        }),
        None => Ok(()),
    }
}
