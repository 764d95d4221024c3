//! The credentials of a call, and the tokens that they consist of.
//!
//! A token says which user it was given to, when, and as of which password. It ends with a code (HMAC-SHA256) over that and the
//! keyspace's cluster id, by a secret of the keyspace. So every node that has the keyspace's state can check it, and nobody
//! keeps a list of tokens. A token ends when its time is over, when its user is deleted or gets another password, and when authentication
//! is disabled.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use keyspace::{Access, Principal, Record, Refusal, check_access, read_user};
use raft::StoreError;
use replica::PairReader;
use ring::hmac;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use types::{DecodeError, Reader, Writer};

use super::store::Found;

/// The metadata with the token, as etcd's clients send it.
const TOKEN_METADATA_KEY: &str = "token";
/// The metadata with the token of HTTP clients, which may have a prefix.
const AUTHORIZATION_METADATA_KEY: &str = "authorization";
const PREFIX: &str = "Bearer ";

/// The time for which a token is valid. etcd's simple tokens end 5 minutes after their last use, which nodes that keep no list don't know.
const LIFETIME_S: u64 = 24 * 60 * 60;
/// The time by which the clock of the node that gave a token may be ahead.
const MAX_AHEAD_S: u64 = 60 * 60;
/// The most bytes of a token. The name of a user has at most 1 KiB.
const MAX_TOKEN_BYTES: usize = 2_048;
/// The bytes of the secret of a keyspace.
const SECRET_BYTES: usize = 32;
const CODE_BYTES: usize = 32;
const VERSION: u8 = 1;

/// The credentials of a call: a token, or none.
#[derive(Clone, Default)]
pub(crate) struct Credentials(Option<Arc<str>>);

/// Shows no token.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = if self.is_none() { "none" } else { "a token" };
        write!(f, "Credentials({what})")
    }
}

impl Credentials {
    /// Reads the credentials of a call.
    pub(super) fn of(metadata: &MetadataMap) -> Self {
        let token = metadata.get(TOKEN_METADATA_KEY);
        let token = token.or_else(|| metadata.get(AUTHORIZATION_METADATA_KEY));
        let token = token.map(|value| value.to_str().unwrap_or_default());
        let token = token.map(|token| token.strip_prefix(PREFIX).unwrap_or(token));
        Self(token.map(Into::into))
    }

    pub(super) fn is_none(&self) -> bool {
        self.0.is_none()
    }

    /// Adds the credentials to a call that is passed on.
    pub(super) fn pass_on(&self, metadata: &mut MetadataMap) {
        let token: Option<MetadataValue<Ascii>> =
            self.0.as_ref().and_then(|token| token.parse().ok());
        if let Some(token) = token {
            metadata.insert(TOKEN_METADATA_KEY, token);
        }
    }

    /// Returns the user who calls; `None` if the call has no token, or the keyspace asks for none.
    pub(super) fn principal(
        &self,
        reader: &dyn PairReader,
        found: &Found,
    ) -> Result<Result<Option<Principal>, Refusal>, StoreError> {
        let oldest = now().saturating_sub(LIFETIME_S);
        self.principal_since(reader, found, oldest)
    }

    fn principal_since(
        &self,
        reader: &dyn PairReader,
        found: &Found,
        oldest: u64,
    ) -> Result<Result<Option<Principal>, Refusal>, StoreError> {
        let auth = &found.record.auth;
        let Some(token) = self.0.as_deref().filter(|_| auth.enabled) else {
            return Ok(Ok(None));
        };
        let token = read(token, &found.record);
        let in_time = |token: &Token| (oldest..=now() + MAX_AHEAD_S).contains(&token.given);
        let Some(token) = token.filter(in_time) else {
            return Ok(Err(Refusal::InvalidAuthToken));
        };
        let user = read_user(reader, found.place, &token.user)?;
        if user.is_none_or(|user| user.since != token.since) {
            return Ok(Err(Refusal::InvalidAuthToken));
        }
        Ok(Ok(Some(Principal {
            user: token.user,
            revision: auth.revision,
        })))
    }

    /// Checks that the call may do something, in the state that it is done in.
    pub(super) fn allow(
        &self,
        reader: &dyn PairReader,
        found: &Found,
        access: Access<'_>,
    ) -> Result<Result<(), Refusal>, StoreError> {
        self.allow_each(reader, found, [access])
    }

    /// Reads if the call may do so.
    pub(super) fn guard<T>(
        &self,
        reader: &dyn PairReader,
        found: &Found,
        access: Access<'_>,
        read: impl FnOnce() -> Result<Result<T, Refusal>, StoreError>,
    ) -> Result<Result<T, Refusal>, StoreError> {
        match self.allow(reader, found, access)? {
            Ok(()) => read(),
            Err(refusal) => Ok(Err(refusal)),
        }
    }

    /// As [`Credentials::allow`], for several things.
    pub(super) fn allow_each<'a>(
        &self,
        reader: &dyn PairReader,
        found: &Found,
        wanted: impl IntoIterator<Item = Access<'a>>,
    ) -> Result<Result<(), Refusal>, StoreError> {
        if !found.record.auth.enabled {
            return Ok(Ok(()));
        }
        let principal = match self.principal(reader, found)? {
            Ok(principal) => principal,
            Err(refusal) => return Ok(Err(refusal)),
        };
        for access in wanted {
            let (place, record) = (found.place, &found.record);
            if let Err(refusal) = check_access(reader, place, record, principal.as_ref(), access)? {
                return Ok(Err(refusal));
            }
        }
        Ok(Ok(()))
    }

    /// As [`Credentials::allow`], for a stream that goes on: as in etcd, it may be older than its token is valid.
    pub(super) fn still_allow(
        &self,
        reader: &dyn PairReader,
        found: &Found,
        access: Access<'_>,
    ) -> Result<Result<(), Refusal>, StoreError> {
        let principal = match self.principal_since(reader, found, 0)? {
            Ok(principal) => principal,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let (place, record) = (found.place, &found.record);
        check_access(reader, place, record, principal.as_ref(), access)
    }
}

/// The contents of a token.
struct Token {
    user: String,
    /// The auth revision of the user's password.
    since: u64,
    /// The time at which it was given, in seconds since 1970.
    given: u64,
}

/// Returns a token for a user whose password is that of this auth revision.
pub(super) fn give(user: &str, since: u64, record: &Record) -> String {
    sign(user, since, now(), record)
}

fn sign(user: &str, since: u64, given: u64, record: &Record) -> String {
    let mut out = Writer::default();
    out.byte(VERSION)
        .number(given)
        .number(since)
        .raw(user.as_bytes());
    let contents = out.finish();
    let code = hmac::sign(&key(record), &signed(&contents, record));
    hex(&[&contents, code.as_ref()].concat())
}

/// Reads a token that a node has given for this keyspace.
fn read(token: &str, record: &Record) -> Option<Token> {
    if token.len() > 2 * MAX_TOKEN_BYTES {
        return None;
    }
    let bytes = unhex(token)?;
    let (contents, code) = bytes.split_at_checked(bytes.len().checked_sub(CODE_BYTES)?)?;
    // In constant time.
    hmac::verify(&key(record), &signed(contents, record), code).ok()?;
    decode(Bytes::copy_from_slice(contents)).ok()
}

fn decode(contents: Bytes) -> Result<Token, DecodeError> {
    let mut input = Reader::new(contents);
    types::known_version("token version", input.byte("token version")?, VERSION)?;
    let given = input.number("time")?;
    let since = input.number("auth revision")?;
    let user = String::from_utf8(input.rest().to_vec());
    Ok(Token {
        user: user.map_err(|_| DecodeError::OutOfRange("user"))?,
        since,
        given,
    })
}

fn key(record: &Record) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, &record.auth.secret)
}

/// Returns the bytes that are signed. The cluster id is another after a shard has lost writes, and passwords with them.
fn signed(contents: &[u8], record: &Record) -> Vec<u8> {
    [&record.cluster_id().to_be_bytes(), contents].concat()
}

/// Draws the secret of a keyspace.
pub(super) fn secret() -> Result<Bytes, getrandom::Error> {
    let mut secret = [0; SECRET_BYTES];
    getrandom::fill(&mut secret)?;
    Ok(Bytes::copy_from_slice(&secret))
}

/// Decodes a hash that a client brings, as etcd's clients encode it.
pub(super) fn decode_base64(text: &str) -> Option<Bytes> {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD.decode(text);
    bytes.ok().map(Bytes::from)
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // A string takes all that is written.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |digit: u8| char::from(digit).to_digit(16);
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let byte = |[high, low]: &[u8; 2]| u8::try_from(digit(*high)? * 16 + digit(*low)?).ok();
    let bytes: Option<Vec<u8>> = pairs.iter().map(byte).collect();
    bytes.filter(|_| rest.is_empty())
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use keyspace::KeyspaceOptions;

    use super::*;

    fn record(nonce: u64, secret: &'static [u8]) -> Record {
        let nonce = NonZeroU64::new(nonce).unwrap();
        let mut record = Record::new("a".to_owned(), KeyspaceOptions::default(), nonce);
        record.auth.enabled = true;
        record.auth.secret = Bytes::from_static(secret);
        record
    }

    #[test]
    fn a_token_is_read_only_with_the_secret_of_its_keyspace() {
        let here = record(7, b"secret");
        let token = sign("ann", 5, 1_000, &here);
        let found = read(&token, &here).unwrap();
        assert_eq!(
            (found.user.as_str(), found.since, found.given),
            ("ann", 5, 1_000)
        );
        assert!(read(&token, &record(8, b"secret")).is_none());
        assert!(read(&token, &record(7, b"another")).is_none());
        for at in 0..token.len() {
            let mut forged = token.clone().into_bytes();
            forged[at] = if forged[at] == b'0' { b'1' } else { b'0' };
            let forged = String::from_utf8(forged).unwrap();
            assert!(read(&forged, &here).is_none(), "{at}");
        }
        for bad in [
            "",
            "0",
            "zz",
            "abc.12",
            "é",
            &token[2..],
            &format!("{token}00"),
        ] {
            assert!(read(bad, &here).is_none(), "{bad}");
        }
        assert!(read(&"0".repeat(1 << 20), &here).is_none());
    }

    #[test]
    fn credentials_are_those_of_etcds_clients_and_are_not_printed() {
        let mut metadata = MetadataMap::new();
        assert!(Credentials::of(&metadata).is_none());
        metadata.insert("authorization", "Bearer abc".parse().unwrap());
        assert_eq!(Credentials::of(&metadata).0.as_deref(), Some("abc"));
        metadata.insert("token", "def".parse().unwrap());
        let credentials = Credentials::of(&metadata);
        assert_eq!(credentials.0.as_deref(), Some("def"));
        assert!(!format!("{credentials:?}").contains("def"));
        let mut passed = MetadataMap::new();
        credentials.pass_on(&mut passed);
        assert_eq!(Credentials::of(&passed).0.as_deref(), Some("def"));
    }
}
