//! Keyspaces of a running store.

use shardkv_client::{Error, Keyspace, KeyspaceOptions, Keyspaces};

use super::{CHANGE, LiveStore, VIEW, refusal};
use crate::store::{KeyspaceStore, StoreError};
use crate::validate::Cluster;

impl LiveStore {
    fn keyspaces(
        &self,
        cluster: &Cluster,
        timeout: std::time::Duration,
    ) -> Result<Keyspaces, StoreError> {
        Ok(self.client(cluster)?.with_timeout(timeout).keyspaces())
    }
}

impl KeyspaceStore for LiveStore {
    async fn keyspace(
        &self,
        cluster: &Cluster,
        name: &str,
    ) -> Result<Option<Keyspace>, StoreError> {
        self.counted("keyspace", async {
            match self.keyspaces(cluster, VIEW)?.get(name).await {
                Ok(keyspace) => Ok(Some(keyspace)),
                Err(Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(refusal(&error)),
            }
        })
        .await
    }

    async fn create_keyspace(
        &self,
        cluster: &Cluster,
        name: &str,
        options: KeyspaceOptions,
    ) -> Result<Keyspace, StoreError> {
        self.counted("create_keyspace", async {
            let created = self.keyspaces(cluster, CHANGE)?.create(name, options).await;
            created.map_err(|error| refusal(&error))
        })
        .await
    }

    async fn set_keyspace_options(
        &self,
        cluster: &Cluster,
        keyspace: &Keyspace,
        options: KeyspaceOptions,
    ) -> Result<Keyspace, StoreError> {
        self.counted("set_keyspace_options", async {
            let keyspaces = self.keyspaces(cluster, CHANGE)?;
            let changed = keyspaces.set_options(keyspace, options).await;
            changed.map_err(|error| refusal(&error))
        })
        .await
    }

    async fn delete_keyspace(
        &self,
        cluster: &Cluster,
        keyspace: &Keyspace,
    ) -> Result<(), StoreError> {
        self.counted("delete_keyspace", async {
            let deleted = self.keyspaces(cluster, CHANGE)?.delete(keyspace).await;
            deleted.map_err(|error| refusal(&error))
        })
        .await
    }
}
