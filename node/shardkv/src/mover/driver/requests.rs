//! The request of an action.

use super::pending::Pending;
use super::{Action, Driver, Request};
use crate::Ownership;

impl Driver {
    /// Returns the request of an action. Only a fetch is possible before the group follows controllers.
    pub(super) fn request(&self, ownership: &Ownership, pending: &Pending) -> Option<Request> {
        let gid = self.gid;
        Some(match &pending.action {
            Action::FetchConfigs { after } => Request::Configs {
                gid,
                after: *after,
                begun: ownership.controller.is_some(),
                wait_ms: self.options.news_wait_ms,
            },
            Action::Pull {
                shard,
                config,
                source,
                after,
                max_bytes,
                ..
            } => Request::Pull {
                controller: ownership.controller?,
                source: *source,
                shard: *shard,
                config: *config,
                after: after.clone(),
                max_bytes: *max_bytes,
            },
            Action::Delete {
                shard,
                config,
                source,
                ..
            } => Request::Delete {
                controller: ownership.controller?,
                source: *source,
                shard: *shard,
                config: *config,
            },
            Action::Copy {
                source, request, ..
            } => Request::Copy {
                controller: ownership.controller?,
                source: *source,
                request: request.clone(),
            },
            Action::Journal { source, step, .. } => Request::Journal {
                controller: ownership.controller?,
                source: *source,
                step: *step,
            },
            Action::ReportCut { cuts } => Request::ReportCut {
                controller: ownership.controller?,
                cuts: cuts.clone(),
            },
            Action::Report { settled, held } => Request::Report {
                controller: ownership.controller?,
                gid,
                settled: *settled,
                held: *held,
            },
            // A proposal is not a call.
            Action::Propose(_) => return None,
        })
    }
}
