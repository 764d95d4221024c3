//! The client by which a node scans all groups.
//!
//! It routes by the configurations that the node itself has taken, as forwarding does: those of the controllers that the group
//! follows, and after a restart without controllers those that the node kept. It asks no address for others.

use std::sync::{Arc, Mutex, PoisonError};

use api::errors;
use api::v1::ErrorDetail;
use shardkv_client::{Client, ClientOptions, ShardConfig};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use types::ClusterId;

use crate::configs::{Configs, Known};
use crate::forward::no_config;

/// Creates the client at the first use, and again when the node follows other controllers.
pub(crate) struct AllGroups {
    options: ClientOptions,
    made: Mutex<Option<Made>>,
}

/// A client of one cluster.
struct Made {
    cluster: ClusterId,
    client: Client,
    /// Passes the node's configurations on to the client.
    passing: JoinHandle<()>,
}

impl AllGroups {
    pub(crate) fn new(options: ClientOptions) -> Self {
        Self {
            options,
            made: Mutex::default(),
        }
    }

    /// Returns the client, and the cluster of the configurations that it routes by.
    pub(crate) fn client(&self, configs: &Configs) -> Result<(Client, ClusterId), ErrorDetail> {
        let known = configs.known().ok_or_else(no_config)?;
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let usable = |made: &&Made| made.cluster == known.cluster && !made.passing.is_finished();
        if let Some(made) = made.as_ref().filter(usable) {
            return Ok((made.client.clone(), made.cluster));
        }
        let cluster = known.cluster;
        let (passed, followed) = watch::channel(Some(known.config));
        let client = Client::following(self.options.clone(), cluster, followed);
        let client = client.map_err(|error| errors::unavailable(error, 1_000))?;
        *made = Some(Made {
            cluster,
            client: client.clone(),
            passing: tokio::spawn(pass_on(configs.watch(), cluster, passed)),
        });
        Ok((client, cluster))
    }
}

/// Passes configurations of `cluster` on until the node knows those of another one, or the client is gone.
async fn pass_on(
    mut known: watch::Receiver<Option<Known>>,
    cluster: ClusterId,
    passed: watch::Sender<Option<Arc<ShardConfig>>>,
) {
    loop {
        let latest = known.borrow_and_update().clone();
        let Some(latest) = latest.filter(|latest| latest.cluster == cluster) else {
            return;
        };
        passed.send_if_modified(|before| {
            let num = before.as_ref().map(|before| before.num());
            let newer = num < Some(latest.config.num());
            if newer {
                *before = Some(latest.config);
            }
            newer
        });
        tokio::select! {
            changed = known.changed() => if changed.is_err() {
                return;
            },
            () = passed.closed() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use types::{ConfigNum, Gid};

    use super::*;

    fn config(num: u64) -> Arc<ShardConfig> {
        let groups = BTreeMap::from([(Gid(1), vec!["a:1".to_owned()])]);
        Arc::new(ShardConfig::new(ConfigNum(num), groups, [(4, Gid(1))]).unwrap())
    }

    async fn reaches(client: &Client, num: u64) {
        let mut configs = client.configs();
        let reached = configs.wait_for(|it| it.as_ref().is_some_and(|it| it.num().0 == num));
        reached.await.unwrap();
    }

    #[tokio::test]
    async fn scans_route_by_what_the_node_knows_and_by_nothing_else() {
        let configs = Configs::default();
        let scans = AllGroups::new(ClientOptions::new(Vec::<String>::new()));
        assert!(scans.client(&configs).is_err(), "nothing is known");
        configs.replace(ClusterId(7), config(1));
        let (client, cluster) = scans.client(&configs).unwrap();
        assert_eq!(cluster, ClusterId(7));
        reaches(&client, 1).await;
        configs.replace(ClusterId(7), config(2));
        reaches(&client, 2).await;
        let (same, _) = scans.client(&configs).unwrap();
        assert_eq!(same.config().unwrap().num(), ConfigNum(2));

        // The group's state names other controllers. The client of the strangers learns nothing of the others' configurations.
        assert!(configs.follow_only(ClusterId(8)));
        assert!(scans.client(&configs).is_err());
        configs.replace(ClusterId(8), config(1));
        let (other, cluster) = scans.client(&configs).unwrap();
        assert_eq!(cluster, ClusterId(8));
        reaches(&other, 1).await;
        configs.replace(ClusterId(8), config(3));
        reaches(&other, 3).await;
        assert_eq!(client.config().unwrap().num(), ConfigNum(2));
    }
}
