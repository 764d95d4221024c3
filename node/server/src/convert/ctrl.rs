//! Conversion of requests to the controllers and their answers, to and from the wire.

use std::collections::{BTreeMap, BTreeSet};

use api::v1::{self, ErrorDetail};
use api::{config_to_wire, cut_from_wire, delta_to_wire, errors, shards_to_wire};
use replica::{Answer, Request};
use shardctrler::{
    Change, Command, Configs, CtrlError, Loss, MAX_CUTS, Query, QueryAnswer, Response, ShardList,
};
use types::{ClusterId, ConfigNum, Gid, Incarnation, NodeId, ShardId};

use crate::convert::kv;
use crate::machine::{self, MachineRequest, MachineResult};

/// Returns a read of one configuration.
pub(crate) fn query(wire: v1::QueryRequest) -> Result<MachineRequest, ErrorDetail> {
    let num = match wire.num {
        -1 => None,
        num => Some(ConfigNum(u64::try_from(num).map_err(|_| {
            errors::bad_request(
                "num",
                "it must be -1 for the latest configuration, or a number from 0 on",
            )
        })?)),
    };
    let query = Query::Config { num };
    Ok(Request::Read(machine::Query::Controller(query)))
}

/// Returns a read of the steps after a configuration, at this very node. A group that `begins` asks the leader, because a
/// state that is behind might hide from it that it has settled a configuration, and so has lost its data.
pub(crate) fn after(num: ConfigNum, limit: u32, gid: Option<Gid>, begins: bool) -> MachineRequest {
    let query = machine::Query::Controller(Query::After { num, limit, gid });
    if begins {
        Request::Read(query)
    } else {
        Request::ReadLocal(query)
    }
}

pub(crate) fn join(wire: v1::JoinRequest) -> Result<MachineRequest, ErrorDetail> {
    let mut groups = BTreeMap::new();
    for group in wire.groups {
        if groups.insert(Gid(group.gid), group.addresses).is_some() {
            let reason = format!("g{} is given twice", group.gid);
            return Err(errors::bad_request("groups", reason));
        }
    }
    change(wire.session.as_ref(), Change::Join { groups })
}

pub(crate) fn leave(wire: &v1::LeaveRequest) -> Result<MachineRequest, ErrorDetail> {
    let gids: BTreeSet<Gid> = wire.gids.iter().copied().map(Gid).collect();
    change(wire.session.as_ref(), Change::Leave { gids })
}

pub(crate) fn move_shard(wire: &v1::MoveRequest) -> Result<MachineRequest, ErrorDetail> {
    let (shard, gid) = (ShardId(wire.shard), Gid(wire.gid));
    change(wire.session.as_ref(), Change::Move { shard, gid })
}

pub(crate) fn forget(wire: &v1::ForgetRequest) -> Result<MachineRequest, ErrorDetail> {
    let gids: BTreeSet<Gid> = wire.gids.iter().copied().map(Gid).collect();
    let accept_data_loss = wire.accept_data_loss;
    let forget = Change::Forget {
        gids,
        accept_data_loss,
    };
    change(wire.session.as_ref(), forget)
}

pub(crate) fn retire(wire: &v1::RetireRequest) -> Result<MachineRequest, ErrorDetail> {
    let (gid, incarnation) = (Gid(wire.gid), Incarnation(wire.incarnation));
    change(wire.session.as_ref(), Change::Retire { gid, incarnation })
}

/// Converts what was lost with forgotten groups to the wire.
pub(crate) fn forget_response(num: ConfigNum, loss: &Loss) -> v1::ForgetResponse {
    let list = |list: &ShardList| v1::ShardList {
        count: list.count,
        listed: shards_to_wire(&list.listed),
    };
    v1::ForgetResponse {
        num: num.0,
        emptied: Some(list(&loss.emptied)),
        returned: Some(list(&loss.returned)),
    }
}

/// Returns the write for a report of a group that follows the controllers `own`. This node is one of these controllers.
pub(crate) fn report(
    wire: v1::ReportRequest,
    own: Option<ClusterId>,
) -> Result<MachineRequest, ErrorDetail> {
    check_cluster(wire.cluster_id, own)?;
    let report = Change::Report {
        gid: Gid(wire.gid),
        settled: ConfigNum(wire.settled),
        held: ConfigNum(wire.held),
    };
    change(None, report)
}

/// Returns the write for the cuts that a group reports which follows the controllers `own`. This node is one of these controllers.
pub(crate) fn cut(
    wire: &v1::CutRequest,
    own: Option<ClusterId>,
) -> Result<MachineRequest, ErrorDetail> {
    check_cluster(wire.cluster_id, own)?;
    if wire.cuts.len() > MAX_CUTS {
        let limit = MAX_CUTS as u64;
        return Err(ctrl_error(&CtrlError::TooManyCuts { limit }));
    }
    let mut cuts = BTreeMap::new();
    for wire in &wire.cuts {
        let (shard, cut) = cut_from_wire(wire);
        if cuts.insert(shard, cut).is_some() {
            let reason = format!("{shard} is given twice");
            return Err(errors::bad_request("cuts", reason));
        }
    }
    change(None, Change::Cut { cuts })
}

/// Refuses a call of a group that follows other controllers than `own`.
fn check_cluster(theirs: u64, own: Option<ClusterId>) -> Result<(), ErrorDetail> {
    let own =
        own.ok_or_else(|| errors::unavailable("this node does not know its group yet", 100))?;
    let theirs = ClusterId(theirs);
    if theirs != own {
        let name = |cluster: ClusterId| format!("controllers {cluster}");
        return Err(errors::wrong_cluster(&name(theirs), &name(own)));
    }
    Ok(())
}

fn change(session: Option<&v1::Session>, change: Change) -> Result<MachineRequest, ErrorDetail> {
    // Reports must get through on a full disk: they let leaving groups go. Their records are small, and the history is bounded.
    let frees_space = matches!(change, Change::Report { .. } | Change::Cut { .. });
    let session = session.map(kv::session_ref).transpose()?;
    Ok(Request::Write {
        operation: Command { session, change }.encode(),
        frees_space,
    })
}

/// Returns the controllers' answer, or the typed error of a refusal.
pub(crate) fn outcome(
    result: MachineResult,
    address: impl Fn(NodeId) -> String,
) -> Result<Response, ErrorDetail> {
    match result {
        Ok(Answer::Machine(machine::Response::Controller(Response::Refused(error)))) => {
            Err(ctrl_error(&error))
        }
        Ok(Answer::Machine(machine::Response::Controller(response))) => Ok(response),
        Ok(_) => Err(kv::mismatch()),
        Err(refusal) => Err(kv::refused(&refusal, address)),
    }
}

/// Converts a configuration and the groups' progress to the wire.
pub(crate) fn query_response(answer: &QueryAnswer, cluster: ClusterId) -> v1::QueryResponse {
    let progress = answer.progress.iter();
    v1::QueryResponse {
        config: Some(config_to_wire(&answer.config)),
        latest: answer.latest.0,
        oldest: answer.oldest.0,
        cluster_id: cluster.0,
        progress: progress
            .map(|(gid, it)| v1::GroupProgress {
                gid: gid.0,
                settled: it.settled.0,
                due: it.due.0,
            })
            .collect(),
        drained: answer
            .drained
            .iter()
            .map(|(gid, it)| v1::DrainedGroup {
                gid: gid.0,
                incarnation: it.incarnation.0,
                gone_in: it.gone_in.0,
                forgotten: it.forgotten,
                retired: it.retired,
            })
            .collect(),
    }
}

/// Converts the steps that a watcher lacks to the wire.
pub(crate) fn watch_response(
    configs: &Configs,
    cluster: ClusterId,
    shards: u32,
) -> v1::WatchResponse {
    v1::WatchResponse {
        full: configs.full.as_deref().map(config_to_wire),
        deltas: configs.deltas.iter().map(delta_to_wire).collect(),
        cluster_id: cluster.0,
        shards,
        latest: configs.latest.0,
        settled: configs.settled.0,
        held: configs.held.0,
    }
}

fn ctrl_error(error: &CtrlError) -> ErrorDetail {
    match error {
        CtrlError::UnknownGroup(_)
        | CtrlError::NoShard { .. }
        | CtrlError::Future { .. }
        | CtrlError::Compacted { .. } => errors::not_found(error),
        CtrlError::GidZero => errors::bad_request("gid", error),
        CtrlError::NoGroups => errors::bad_request("groups", error),
        CtrlError::BadAddresses { .. } => errors::bad_request("addresses", error),
        CtrlError::AddressTaken { .. }
        | CtrlError::LastGroup
        | CtrlError::TooManyGroups { .. }
        | CtrlError::TooManyAddressBytes { .. }
        | CtrlError::DataLoss(_)
        | CtrlError::NotDrained(_)
        | CtrlError::Retired(_)
        | CtrlError::Leaving(_) => errors::conflict(error),
        CtrlError::TooManyCuts { .. } => errors::bad_request("cuts", error),
        CtrlError::SessionExpired => errors::session_expired(),
        CtrlError::SessionFromFuture { ahead_ms } => errors::session_from_future(*ahead_ms),
        CtrlError::StaleSequence { .. } | CtrlError::BadSequence { .. } => {
            errors::bad_request("session.sequence", error)
        }
        CtrlError::SessionLimit { what, limit, .. } => errors::overloaded(what, *limit, 1_000),
        CtrlError::Malformed(_) => errors::bad_request("request", error),
    }
}

#[cfg(test)]
mod tests {
    use api::v1::error_detail::Kind;

    use super::*;

    #[test]
    fn the_latest_is_minus_one_and_other_negatives_are_refused() {
        let asked = |num| match query(v1::QueryRequest { num }) {
            Ok(Request::Read(machine::Query::Controller(Query::Config { num }))) => Some(num),
            _ => None,
        };
        assert_eq!(asked(-1), Some(None));
        assert_eq!(asked(0), Some(Some(ConfigNum(0))));
        assert_eq!(asked(-2), None);
    }

    #[test]
    fn a_refused_session_leaves_no_doubt() {
        for error in [
            CtrlError::SessionExpired,
            CtrlError::SessionFromFuture { ahead_ms: 9 },
        ] {
            let refusal = api::refused(ctrl_error(&error)).refusal;
            let verdict = refusal.judge();
            assert!(!verdict.doubt, "{error}");
            assert_eq!(verdict.action, request::Action::RenewSession, "{error}");
        }
    }

    #[test]
    fn news_for_other_controllers_are_refused() {
        let told = |cluster_id, own| {
            let progress = v1::ReportRequest {
                gid: 1,
                settled: 5,
                held: 5,
                cluster_id,
            };
            let cuts = v1::CutRequest {
                cuts: Vec::new(),
                cluster_id,
            };
            [report(progress, own), cut(&cuts, own)]
        };
        assert!(told(7, Some(ClusterId(7))).iter().all(Result::is_ok));
        for (cluster, own) in [(8, Some(ClusterId(7))), (0, Some(ClusterId(7))), (7, None)] {
            for told in told(cluster, own) {
                let error = told.unwrap_err();
                let wrong = matches!(error.kind, Some(Kind::WrongCluster(_)));
                assert_eq!(wrong, own.is_some(), "{error:?}");
            }
        }
    }

    #[test]
    fn cuts_that_name_a_shard_twice_or_too_many_are_refused() {
        let asked = |shards: &[u32]| {
            let of = |shard: &u32| v1::ShardCut {
                shard: *shard,
                ..v1::ShardCut::default()
            };
            let wire = v1::CutRequest {
                cuts: shards.iter().map(of).collect(),
                cluster_id: 7,
            };
            cut(&wire, Some(ClusterId(7)))
        };
        let most: Vec<u32> = (0..1_024).collect();
        assert!(asked(&most).is_ok());
        let more: Vec<u32> = (0..=1_024).collect();
        for bad in [&more[..], &[3, 3]] {
            let error = asked(bad).unwrap_err();
            assert!(matches!(error.kind, Some(Kind::BadRequest(_))), "{error:?}");
        }
    }

    #[test]
    fn a_join_that_names_a_group_twice_is_refused() {
        let group = |gid| v1::GroupAddresses {
            gid,
            addresses: vec!["a:1".to_owned()],
            ..v1::GroupAddresses::default()
        };
        let wire = |gids: [u64; 2]| v1::JoinRequest {
            force: false,
            groups: gids.map(group).to_vec(),
            session: None,
        };
        assert!(join(wire([1, 2])).is_ok());
        let error = join(wire([1, 1])).unwrap_err();
        assert!(matches!(error.kind, Some(Kind::BadRequest(_))), "{error:?}");
    }
}
