//! Hashes of passwords (bcrypt). One takes tens of milliseconds, so they run on threads of their own, few at a time.

use std::sync::Arc;
use std::time::Duration;

use api::errors;
use api::v1::ErrorDetail;
use bytes::Bytes;
use tokio::task::spawn_blocking;
use tonic::Code;

use super::status::{Failure, finally};
use crate::keyspaces::shares::{Bounds, FairBudget};

/// The cost of a new hash, as in etcd: two to this power is the number of rounds.
const COST: u32 = 10;
/// The highest cost of a hash that is compared. A client may bring a hash of its own, and its cost is the node's time.
const MAX_COST: u32 = 12;
/// The most bytes of a password. bcrypt ignores the rest, and etcd refuses it.
const MAX_BYTES: usize = 72;
/// A hash of no password that anybody knows, of the same cost as others.
const NOBODYS: &str = "$2b$10$QQiMIDkpm3pIphIVcNtpOeXqbNOXAYIPTo4vQPUxQeKWlqGs1RLmi";

/// The bounds of hashes of a node. One keyspace makes one at a time, and two at most are made at once, because a third is kept free.
const BOUNDS: Bounds = Bounds {
    what: "passwords",
    total: 3,
    max_each: 1,
    percent: 66,
    max_waiting: 64,
    patience: Duration::from_secs(10),
};

/// Makes and compares hashes.
pub(crate) struct Passwords(Arc<FairBudget>);

impl Default for Passwords {
    fn default() -> Self {
        Self(FairBudget::new(BOUNDS))
    }
}

impl Passwords {
    /// Returns the hash of a password.
    pub(super) async fn hash(&self, keyspace: &str, password: String) -> Result<Bytes, Failure> {
        if password.len() > MAX_BYTES {
            let text = "bcrypt: password length exceeds 72 bytes";
            return Err(Failure::Status(Box::new(finally(Code::Unknown, text))));
        }
        let hashed = self
            .run(keyspace, move || bcrypt::hash(password, COST))
            .await?;
        let hashed = hashed.map_err(|error| {
            errors::unavailable(format!("the password can't be hashed: {error}"), 1_000)
        })?;
        Ok(hashed.into())
    }

    /// Returns true if a hash is that of a password. Without a hash, it takes as long and returns false: the time tells nobody which users
    /// there are.
    pub(super) async fn matches(
        &self,
        keyspace: &str,
        password: String,
        hash: Option<Bytes>,
    ) -> Result<bool, Failure> {
        let hash = hash.and_then(|hash| String::from_utf8(hash.to_vec()).ok());
        let hash = hash.filter(|hash| {
            let parts = hash.parse::<bcrypt::HashParts>();
            parts.is_ok_and(|parts| parts.get_cost() <= MAX_COST)
        });
        let exists = hash.is_some();
        let hash = hash.unwrap_or_else(|| NOBODYS.to_owned());
        let same = self
            .run(keyspace, move || bcrypt::verify(password, &hash))
            .await?;
        Ok(exists && same.unwrap_or(false))
    }

    async fn run<T: Send + 'static>(
        &self,
        keyspace: &str,
        make: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ErrorDetail> {
        let share = self.0.take(keyspace, 1).await?;
        // The share goes along, because the thread goes on when the caller is gone.
        let making = spawn_blocking(move || {
            let hash = make();
            drop(share);
            hash
        });
        making.await.map_err(|error| {
            errors::unavailable(format!("the password can't be hashed: {error}"), 1_000)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_hash_is_that_of_its_password_only() {
        let passwords = Passwords::default();
        let hash = passwords.hash("a", "secret".to_owned()).await.unwrap();
        let matches = async |password: &str, hash: Option<&Bytes>| {
            let matches = passwords.matches("a", password.to_owned(), hash.cloned());
            matches.await.unwrap()
        };
        assert!(matches("secret", Some(&hash)).await);
        assert!(!matches("Secret", Some(&hash)).await);
        assert!(!matches("secret", None).await);
        assert!(NOBODYS.parse::<bcrypt::HashParts>().is_ok());
        for bad in [
            "",
            "x",
            "$2b$31$QQiMIDkpm3pIphIVcNtpOeXqbNOXAYIPTo4vQPUxQeKWlqGs1RLmi",
        ] {
            let bad = Bytes::from_static(bad.as_bytes());
            assert!(!matches("secret", Some(&bad)).await, "it ends at once");
        }
        // A hash that Go's library has made, by the name of its version.
        let gos = Bytes::from(String::from_utf8_lossy(&hash).replace("$2b$", "$2a$"));
        assert!(matches("secret", Some(&gos)).await);
    }

    #[tokio::test]
    async fn a_password_that_bcrypt_would_cut_is_refused() {
        let passwords = Passwords::default();
        assert!(passwords.hash("a", "x".repeat(72)).await.is_ok());
        let Err(Failure::Status(status)) = passwords.hash("a", "x".repeat(73)).await else {
            panic!("it is too long");
        };
        assert_eq!(status.code(), Code::Unknown);
    }
}
