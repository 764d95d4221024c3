//! The calls of a [`Script`] on worlds with several groups.

use std::sync::Arc;

use bytes::Bytes;
use replica::{Request, RequestId};
use shardctrler::Change;
use types::{Gid, ShardConfig, ShardId};

use super::Script;
use crate::client::{Client, ScriptedOperation, Timing};
use crate::config_client::{Changed, ConfigClient};
use crate::machine::to_ctrl;
use crate::network::HostId;
use crate::violation::Checked;

impl Script {
    /// Returns the hosts of a group, or of the controllers for [`Gid::NONE`].
    pub fn hosts_of(&self, gid: Gid) -> Vec<HostId> {
        let groups = &self.world().groups;
        let group = groups.iter().find(|group| group.gid == gid);
        group.map_or_else(Vec::new, |group| group.hosts.clone().collect())
    }

    /// Kills all processes of a group.
    pub fn stop_group(&mut self, gid: Gid) {
        for host in self.hosts_of(gid) {
            self.crash(host);
        }
    }

    /// Starts all processes of a group.
    pub fn start_group(&mut self, gid: Gid) -> Checked {
        self.hosts_of(gid)
            .into_iter()
            .try_for_each(|host| self.start(host))
    }

    /// Queues a join of these groups, with all their hosts, at a config client.
    pub fn join(&mut self, config_client: usize, gids: &[Gid]) {
        if let Some(it) = self.world().config_clients.get(config_client) {
            let change = it.join(gids.iter().copied());
            self.order(config_client, change);
        }
    }

    /// Queues a change at a config client.
    pub fn order(&mut self, config_client: usize, change: Change) {
        if let Some(it) = self.world_mut().config_clients.get_mut(config_client) {
            it.queue(change);
            self.world_mut().plan_config_client(config_client);
        }
    }

    /// Returns the finished changes of a config client, in order.
    pub fn changes(&self, config_client: usize) -> &[Changed] {
        let config_client = self.world().config_clients.get(config_client);
        config_client
            .map(|it| it.finished.as_slice())
            .unwrap_or_default()
    }

    /// Returns true if all queued changes are finished.
    pub fn changes_are_over(&self) -> bool {
        self.world()
            .config_clients
            .iter()
            .all(ConfigClient::is_idle)
    }

    /// Returns the latest configuration.
    pub fn config(&self) -> Option<Arc<ShardConfig>> {
        self.world().shard_checker.config().cloned()
    }

    /// Returns true if a group serves a shard, by the most advanced log.
    pub fn serves(&self, gid: Gid, shard: ShardId) -> bool {
        self.world().shard_checker.is_served(shard, gid)
    }

    /// Describes a shard or a group that hasn't reached the latest configuration; `None` if all have.
    pub fn unsettled(&self) -> Option<String> {
        self.world().unsettled()
    }

    /// Returns the number of complete hand-offs so far, from fence to delete.
    pub fn hand_offs(&self) -> u64 {
        self.world().shard_checker.hand_offs()
    }

    /// Sends a request to a controller without the network.
    pub fn ask_controller(
        &mut self,
        host: HostId,
        request: Request<shardctrler::Query>,
    ) -> RequestId {
        self.world_mut().admin_request(host, to_ctrl(request))
    }

    /// Gives a client these operations to run in order. From now on it starts no others.
    pub fn tell(&mut self, client: usize, steps: impl IntoIterator<Item = ScriptedOperation>) {
        if let Some(it) = self.world_mut().clients.get_mut(client) {
            it.script(steps);
            self.world_mut().plan_client(client);
        }
    }

    /// Returns true if a client has finished all its operations.
    pub fn is_idle(&self, client: usize) -> bool {
        self.world().clients.get(client).is_none_or(Client::is_idle)
    }

    /// Describes the operations that a client has in flight.
    pub fn describe_client(&self, client: usize) -> String {
        let client = self.world().clients.get(client);
        client.map_or_else(String::new, Client::describe)
    }

    /// Returns the value of a key that a client saw last.
    pub fn seen(&self, client: usize, key: &[u8]) -> Option<Bytes> {
        self.world().clients.get(client)?.seen(key)
    }

    /// Returns the durations of a client's answered requests.
    pub fn timings(&self, client: usize) -> &[Timing] {
        let client = self.world().clients.get(client);
        client.map(Client::timings).unwrap_or_default()
    }
}
