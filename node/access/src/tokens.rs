//! The rules by which tokens are accepted: issuers and their public keys.

use std::fmt;

use bytes::Bytes;

use crate::PolicyError;

/// The most issuers, and the most keys of one.
const MAX_ISSUERS: usize = 16;
const MAX_KEYS: usize = 64;
/// The most bytes of an issuer, an audience or the id of a key.
const MAX_TEXT_BYTES: usize = 1_024;
/// The lengths of RSA's moduli that are accepted: 2,048 to 8,192 bits.
const MODULUS_BYTES: std::ops::RangeInclusive<usize> = 256..=1_024;
const MAX_EXPONENT_BYTES: usize = 8;

/// The issuers whose tokens are accepted, and for whom the tokens must be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// The audience that each token must name: `shardkv.io/<namespace>/<cluster>`, so that a token for another service is no use here.
    pub audience: String,
    /// The issuers.
    pub issuers: Vec<Issuer>,
}

/// An issuer of tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issuer {
    /// The exact claim `iss`.
    pub issuer: String,
    /// The keys that sign its tokens.
    pub keys: Vec<VerifyingKey>,
}

/// A public key of an issuer.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifyingKey {
    /// The id by which tokens name it (`kid`).
    pub id: String,
    /// The key.
    pub key: PublicKey,
}

/// A public key, by the only algorithm that it is used with.
#[derive(Clone, PartialEq, Eq)]
pub enum PublicKey {
    /// RSA with PKCS #1 v1.5 and SHA-256: modulus and exponent, big-endian.
    Rs256 {
        /// The modulus.
        n: Bytes,
        /// The exponent.
        e: Bytes,
    },
    /// ECDSA on P-256 with SHA-256: x and y, 32 bytes each.
    Es256(Bytes),
    /// ECDSA on P-384 with SHA-384: x and y, 48 bytes each.
    Es384(Bytes),
}

impl PublicKey {
    /// Returns the algorithm, as tokens name it.
    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::Rs256 { .. } => "RS256",
            Self::Es256(_) => "ES256",
            Self::Es384(_) => "ES384",
        }
    }

    /// Checks the lengths, or says what is wrong.
    fn check(&self) -> Result<(), &'static str> {
        let valid = match self {
            Self::Rs256 { n, e } => {
                let exponent = (1..=MAX_EXPONENT_BYTES).contains(&e.len());
                MODULUS_BYTES.contains(&n.len()) && n.first() != Some(&0) && exponent
            }
            Self::Es256(point) => point.len() == 64,
            Self::Es384(point) => point.len() == 96,
        };
        if valid {
            Ok(())
        } else {
            Err("use an RSA key of 2,048 to 8,192 bits, or a point on P-256 or P-384")
        }
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.key.algorithm(), self.id)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.algorithm())
    }
}

impl Tokens {
    pub(crate) fn check(&self) -> Result<(), PolicyError> {
        text("tokens.audience", &self.audience)?;
        if !(1..=MAX_ISSUERS).contains(&self.issuers.len()) {
            let reason = format!("name 1 to {MAX_ISSUERS} issuers, or leave `tokens` out");
            return Err(PolicyError::new("tokens.issuers", reason));
        }
        for (at, issuer) in self.issuers.iter().enumerate() {
            let field = format!("tokens.issuers[{at}]");
            text(&format!("{field}.issuer"), &issuer.issuer)?;
            let earlier = self.issuers.iter().take(at);
            if earlier
                .into_iter()
                .any(|other| other.issuer == issuer.issuer)
            {
                return Err(PolicyError::new(field, "an issuer is named once"));
            }
            if issuer.keys.len() > MAX_KEYS {
                let reason = format!("{MAX_KEYS} keys are the limit");
                return Err(PolicyError::new(format!("{field}.keys"), reason));
            }
            for (at_key, key) in issuer.keys.iter().enumerate() {
                let field = format!("{field}.keys[{at_key}]");
                text(&format!("{field}.kid"), &key.id)?;
                key.key
                    .check()
                    .map_err(|reason| PolicyError::new(&field, reason))?;
                if issuer
                    .keys
                    .iter()
                    .take(at_key)
                    .any(|other| other.id == key.id)
                {
                    return Err(PolicyError::new(
                        format!("{field}.kid"),
                        "the id of a key is used once",
                    ));
                }
            }
        }
        Ok(())
    }
}

fn text(field: &str, value: &str) -> Result<(), PolicyError> {
    if (1..=MAX_TEXT_BYTES).contains(&value.len()) {
        return Ok(());
    }
    Err(PolicyError::new(
        field,
        format!("use a text of 1 to {MAX_TEXT_BYTES} bytes"),
    ))
}
