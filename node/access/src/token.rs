//! Tokens of service accounts: JSON web tokens (RFC 7519), checked without asking anybody.
//!
//! A node has no way to the API server, and must have none: a cluster may keep that server's data. So it checks a token by the public keys of
//! its issuer. This module reads the token and decides; the signature is checked by the caller, who has the cryptography.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use crate::{Account, PublicKey, Tokens};

/// The most bytes of a token. The headers of a call have a limit, too.
pub const MAX_TOKEN_BYTES: usize = 12 << 10;
/// The longest time between the issue and the end of a token, in seconds. A stolen token is of use for at most that long.
const MAX_LIFETIME_SECS: u64 = 2 * 60 * 60;
/// The difference between the clocks of the issuer and of this node that is tolerated for tokens of the future, in seconds.
const SKEW_SECS: u64 = 30;

/// A token that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The account.
    pub account: Account,
    /// The end of the token, in seconds since 1970.
    pub expires: u64,
}

/// The reason why a token isn't accepted. None says anything of the token's content that its sender doesn't know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The bytes are no token.
    #[error(
        "the token is malformed: send the whole content of a projected token of a service account, and nothing else"
    )]
    Malformed,
    /// The algorithm isn't one of the three.
    #[error("the token is signed by an algorithm other than RS256, ES256 and ES384")]
    Algorithm,
    /// No such issuer is trusted.
    #[error("the token is of an issuer that this cluster doesn't trust")]
    Issuer,
    /// The key is not known, or not yet.
    #[error("the token is signed by a key that this node doesn't know yet: try again in a minute")]
    UnknownKey,
    /// The signature is wrong.
    #[error("the signature of the token is wrong")]
    Signature,
    /// The token is for somebody else.
    #[error("the token has another audience: project one with the audience of this cluster")]
    Audience,
    /// The token's time is over.
    #[error("the token has expired: read the file of the projected token again")]
    Expired,
    /// The token's time has not begun.
    #[error("the token isn't valid yet: check the clocks of this node and of the API server")]
    NotYetValid,
    /// The token is valid for too long.
    #[error(
        "the token is valid for more than two hours: project one with `expirationSeconds` of at most 7200"
    )]
    Lifetime,
    /// The token is of no service account.
    #[error("the token isn't one of a service account with a name and a UID")]
    Subject,
}

impl TokenError {
    /// Returns true if the same token may be accepted later.
    pub fn is_retriable(self) -> bool {
        matches!(self, Self::UnknownKey | Self::NotYetValid)
    }
}

/// The parts of a token. It has no `Debug`, so that no token is printed.
struct Parts<'a> {
    /// The header and the claims, as they are signed.
    signed: &'a str,
    signature: Vec<u8>,
    header: Map<String, Value>,
    claims: Map<String, Value>,
}

impl<'a> Parts<'a> {
    fn read(token: &'a str) -> Option<Self> {
        if token.len() > MAX_TOKEN_BYTES {
            return None;
        }
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        Some(Self {
            signed,
            signature: URL_SAFE_NO_PAD.decode(signature).ok()?,
            header: object(header)?,
            claims: object(claims)?,
        })
    }

    fn key<'k>(&self, tokens: &'k Tokens) -> Result<&'k PublicKey, TokenError> {
        // An extension that must be understood.
        if self.header.contains_key("crit") {
            return Err(TokenError::Malformed);
        }
        let algorithm = text(&self.header, "alg").ok_or(TokenError::Malformed)?;
        if !matches!(algorithm, "RS256" | "ES256" | "ES384") {
            return Err(TokenError::Algorithm);
        }
        let issuer = text(&self.claims, "iss").ok_or(TokenError::Issuer)?;
        let issuer = tokens.issuers.iter().find(|it| it.issuer == issuer);
        let id = text(&self.header, "kid").ok_or(TokenError::Malformed)?;
        let mut keys = issuer.ok_or(TokenError::Issuer)?.keys.iter();
        let key = keys
            .find(|key| key.id == id)
            .ok_or(TokenError::UnknownKey)?;
        // The key says how it is used, never the token.
        if key.key.algorithm() != algorithm {
            return Err(TokenError::Algorithm);
        }
        Ok(&key.key)
    }

    fn check_audience(&self, audience: &str) -> Result<(), TokenError> {
        let named = match self.claims.get("aud") {
            Some(Value::Array(all)) => all.iter().any(|one| one.as_str() == Some(audience)),
            Some(one) => one.as_str() == Some(audience),
            None => false,
        };
        named.then_some(()).ok_or(TokenError::Audience)
    }

    /// Returns the end of the token.
    fn check_times(&self, now: u64) -> Result<u64, TokenError> {
        let time = |name| self.claims.get(name).and_then(Value::as_u64);
        let (Some(expires), Some(issued)) = (time("exp"), time("iat")) else {
            return Err(TokenError::Lifetime);
        };
        if now >= expires {
            return Err(TokenError::Expired);
        }
        if expires.saturating_sub(issued) > MAX_LIFETIME_SECS {
            return Err(TokenError::Lifetime);
        }
        let begins = match self.claims.get("nbf") {
            Some(begins) => begins.as_u64().ok_or(TokenError::Malformed)?.max(issued),
            None => issued,
        };
        if begins > now.saturating_add(SKEW_SECS) {
            return Err(TokenError::NotYetValid);
        }
        Ok(expires)
    }

    fn account(&self) -> Option<Account> {
        let kubernetes = self.claims.get("kubernetes.io")?.as_object()?;
        let account = kubernetes.get("serviceaccount")?.as_object()?;
        let own = |fields, name| {
            text(fields, name)
                .filter(|it| !it.is_empty())
                .map(str::to_owned)
        };
        let account = Account {
            namespace: own(kubernetes, "namespace")?,
            name: own(account, "name")?,
            uid: own(account, "uid")?,
        };
        let subject = format!(
            "system:serviceaccount:{}:{}",
            account.namespace, account.name
        );
        (text(&self.claims, "sub") == Some(&subject)).then_some(account)
    }
}

impl Tokens {
    /// Checks a token at a time in seconds since 1970. `verify` checks the signature of a message by a key.
    ///
    /// # Errors
    ///
    /// The token isn't accepted.
    pub fn verify(
        &self,
        token: &str,
        now: u64,
        verify: impl FnOnce(&PublicKey, &[u8], &[u8]) -> bool,
    ) -> Result<Verified, TokenError> {
        let parts = Parts::read(token).ok_or(TokenError::Malformed)?;
        let key = parts.key(self)?;
        if !verify(key, parts.signed.as_bytes(), &parts.signature) {
            return Err(TokenError::Signature);
        }
        parts.check_audience(&self.audience)?;
        let expires = parts.check_times(now)?;
        let account = parts.account().ok_or(TokenError::Subject)?;
        Ok(Verified { account, expires })
    }
}

/// Returns the token of a header `authorization`, if it has one.
pub fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn object(part: &str) -> Option<Map<String, Value>> {
    match serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?) {
        Ok(Value::Object(fields)) => Some(fields),
        _ => None,
    }
}

fn text<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    fields.get(name)?.as_str()
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.account.fmt(f)
    }
}
