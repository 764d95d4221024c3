//! The handle that applications hold.

use std::time::Duration;

use bytes::Bytes;

use crate::{Admin, ClientOptions, ConnectError, Error, NodeStatus, Scan, ScanOptions};

/// A connection to a cluster: cheap to clone, shared by any number of tasks.
#[derive(Clone, Debug)]
pub struct Client {}

impl Client {
    /// Checks the options and that at least one node accepts a connection. Must be called within a tokio runtime.
    pub async fn connect(_options: ClientOptions) -> Result<Self, ConnectError> {
        todo!()
    }

    /// Like [`Client::connect`], but reaches no node before the first call.
    pub fn lazy(_options: ClientOptions) -> Result<Self, ConnectError> {
        todo!()
    }

    /// The same client with another deadline for its calls.
    #[must_use]
    pub fn with_timeout(&self, _request_timeout: Duration) -> Self {
        todo!()
    }

    /// The value of `key`, or `None` if there is no such key. Linearizable.
    pub async fn get(&self, _key: impl Into<Bytes>) -> Result<Option<Bytes>, Error> {
        todo!()
    }

    /// Sets the value of `key`.
    pub async fn put(&self, _key: impl Into<Bytes>, _value: impl Into<Bytes>) -> Result<(), Error> {
        todo!()
    }

    /// Adds `suffix` to the end of the value of `key` (a missing key counts as empty), and returns the value's
    /// length in bytes afterwards.
    pub async fn append(
        &self,
        _key: impl Into<Bytes>,
        _suffix: impl Into<Bytes>,
    ) -> Result<u64, Error> {
        todo!()
    }

    /// Removes `key` and returns whether it existed.
    pub async fn delete(&self, _key: impl Into<Bytes>) -> Result<bool, Error> {
        todo!()
    }

    /// Sets `key` to `new` (`None`: removes it) if its value is `expected` (`None`: if there is no such key).
    /// Returns whether it was.
    pub async fn compare_and_swap(
        &self,
        _key: impl Into<Bytes>,
        _expected: Option<Bytes>,
        _new: Option<Bytes>,
    ) -> Result<bool, Error> {
        todo!()
    }

    /// The pairs of a range in key order.
    pub fn scan(&self, _options: ScanOptions) -> Scan {
        todo!()
    }

    /// Where the leader is reached now: `host:port`.
    pub async fn leader(&self) -> Result<String, Error> {
        todo!()
    }

    /// The node at `address`, to be asked directly.
    pub fn admin(&self, _address: &str) -> Result<Admin, ConnectError> {
        todo!()
    }

    /// The status of every node that is configured or known as a member, sorted by address, asked at the same
    /// time.
    pub async fn status_all(&self) -> Vec<(String, Result<NodeStatus, Error>)> {
        todo!()
    }
}
