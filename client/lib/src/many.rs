//! Reads and writes of many keys at once.

use bytes::Bytes;
use futures::{StreamExt as _, stream};

use crate::{Client, Error};

/// The most calls of one batch that are under way at the same time. The client's options bound their share of each group.
const MAX_AT_ONCE: usize = 2_048;

impl Client {
    /// Returns the values of many keys, in the order of `keys`; `None` where there is no such key. The keys go to their groups at
    /// the same time, and share messages there. Each is read linearizably by itself; together they are **not** one cut. Fails with
    /// the first error.
    ///
    /// ```no_run
    /// # async fn example(client: shardkv_client::Client) -> Result<(), shardkv_client::Error> {
    /// let values = client.get_many(["a", "b"]).await?;
    /// assert_eq!(values.len(), 2);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn get_many<K: Into<Bytes>>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<Vec<Option<Bytes>>, Error> {
        let keys: Vec<Bytes> = keys.into_iter().map(Into::into).collect();
        let calls = keys.into_iter().map(|key| self.get(key));
        let mut answers = stream::iter(calls).buffered(MAX_AT_ONCE);
        let mut values = Vec::new();
        while let Some(value) = answers.next().await {
            values.push(value?);
        }
        Ok(values)
    }

    /// Sets many keys, and returns the result of each, in the order of `pairs`. The pairs go to their groups at the same time, and
    /// share messages there. They are **not** atomic: each takes effect or fails by itself, and of two values for the same key
    /// either may win.
    pub async fn put_many<K: Into<Bytes>, V: Into<Bytes>>(
        &self,
        pairs: impl IntoIterator<Item = (K, V)>,
    ) -> Vec<Result<(), Error>> {
        let pairs: Vec<(Bytes, Bytes)> = pairs
            .into_iter()
            .map(|(key, value)| (key.into(), value.into()))
            .collect();
        let calls = pairs.into_iter().map(|(key, value)| self.put(key, value));
        stream::iter(calls).buffered(MAX_AT_ONCE).collect().await
    }
}
