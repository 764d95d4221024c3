//! Policies as bytes, in the log and on disk.

use bytes::Bytes;
use types::{DecodeError, Reader, Writer, known_version};

use crate::{Grant, Issuer, Policy, PolicyNum, PublicKey, Subject, Tokens, Verbs, VerifyingKey};

const VERSION: u8 = 1;

const ACCOUNT: u8 = 1;
const COMMON_NAME: u8 = 2;
const DNS_NAME: u8 = 3;
const URI: u8 = 4;
const ALL_ACCOUNTS: u8 = 5;
const NAMESPACE: u8 = 6;
const ANYBODY: u8 = 7;

const RS256: u8 = 1;
const ES256: u8 = 2;
const ES384: u8 = 3;

impl Policy {
    /// Returns the policy as bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = Writer::with_capacity(64 + 64 * self.grants.len());
        out.byte(VERSION)
            .number(self.num.0)
            .number(self.grants.len() as u64);
        for grant in &self.grants {
            grant.encode(&mut out);
        }
        out.byte(self.tokens.is_some().into());
        if let Some(tokens) = &self.tokens {
            tokens.encode(&mut out);
        }
        out.finish()
    }

    /// Reads what [`Policy::encode`] wrote.
    pub fn decode(input: Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(input);
        known_version("policy version", input.byte("policy version")?, VERSION)?;
        let num = PolicyNum(input.number("policy number")?);
        let grants = list(&mut input, "grants", Grant::decode)?;
        let tokens = input.flag("tokens")?;
        let tokens = tokens.then(|| Tokens::decode(&mut input)).transpose()?;
        input.finish()?;
        Self::new(num, grants, tokens).map_err(|_| DecodeError::OutOfRange("policy"))
    }
}

impl Grant {
    fn encode(&self, out: &mut Writer) {
        self.subject.encode(out);
        let Verbs { read, write, admin } = self.verbs;
        out.byte(u8::from(read) | u8::from(write) << 1 | u8::from(admin) << 2);
        for names in [&self.keyspaces, &self.prefixes] {
            out.number(names.len() as u64);
            for name in names {
                out.bytes(name.as_bytes());
            }
        }
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let subject = Subject::decode(input)?;
        let verbs = input.byte("verbs")?;
        if verbs > 7 {
            let value = verbs.into();
            return Err(DecodeError::Unknown {
                what: "verbs",
                value,
            });
        }
        Ok(Self {
            subject,
            verbs: Verbs {
                read: verbs & 1 > 0,
                write: verbs & 2 > 0,
                admin: verbs & 4 > 0,
            },
            keyspaces: list(input, "keyspaces", |input| text(input, "keyspace"))?,
            prefixes: list(input, "prefixes", |input| text(input, "prefix"))?,
        })
    }
}

impl Subject {
    fn encode(&self, out: &mut Writer) {
        match self {
            Self::ServiceAccount {
                namespace,
                name,
                uid,
            } => {
                out.byte(ACCOUNT)
                    .bytes(namespace.as_bytes())
                    .bytes(name.as_bytes());
                // A UID isn't empty.
                out.bytes(uid.as_deref().unwrap_or_default().as_bytes())
            }
            Self::CommonName(name) => out.byte(COMMON_NAME).bytes(name.as_bytes()),
            Self::DnsName(name) => out.byte(DNS_NAME).bytes(name.as_bytes()),
            Self::Uri(name) => out.byte(URI).bytes(name.as_bytes()),
            Self::Accounts { namespace: None } => out.byte(ALL_ACCOUNTS),
            Self::Accounts {
                namespace: Some(name),
            } => out.byte(NAMESPACE).bytes(name.as_bytes()),
            Self::AnyAuthenticated => out.byte(ANYBODY),
        };
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(match input.byte("subject")? {
            ACCOUNT => Self::ServiceAccount {
                namespace: text(input, "namespace")?,
                name: text(input, "name")?,
                uid: Some(text(input, "uid")?).filter(|uid| !uid.is_empty()),
            },
            COMMON_NAME => Self::CommonName(text(input, "common name")?),
            DNS_NAME => Self::DnsName(text(input, "DNS name")?),
            URI => Self::Uri(text(input, "URI")?),
            ALL_ACCOUNTS => Self::Accounts { namespace: None },
            NAMESPACE => Self::Accounts {
                namespace: Some(text(input, "namespace")?),
            },
            ANYBODY => Self::AnyAuthenticated,
            value => return Err(unknown("subject", value)),
        })
    }
}

impl Tokens {
    fn encode(&self, out: &mut Writer) {
        out.bytes(self.audience.as_bytes())
            .number(self.issuers.len() as u64);
        for Issuer { issuer, keys } in &self.issuers {
            out.bytes(issuer.as_bytes()).number(keys.len() as u64);
            for VerifyingKey { id, key } in keys {
                out.bytes(id.as_bytes());
                match key {
                    PublicKey::Rs256 { n, e } => out.byte(RS256).bytes(n).bytes(e),
                    PublicKey::Es256(point) => out.byte(ES256).bytes(point),
                    PublicKey::Es384(point) => out.byte(ES384).bytes(point),
                };
            }
        }
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let audience = text(input, "audience")?;
        let issuers = list(input, "issuers", |input| {
            let issuer = text(input, "issuer")?;
            let keys = list(input, "keys", VerifyingKey::decode)?;
            Ok(Issuer { issuer, keys })
        })?;
        Ok(Self { audience, issuers })
    }
}

impl VerifyingKey {
    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let id = text(input, "key id")?;
        let key = match input.byte("algorithm")? {
            RS256 => PublicKey::Rs256 {
                n: input.bytes("modulus")?,
                e: input.bytes("exponent")?,
            },
            ES256 => PublicKey::Es256(input.bytes("point")?),
            ES384 => PublicKey::Es384(input.bytes("point")?),
            value => return Err(unknown("algorithm", value)),
        };
        Ok(Self { id, key })
    }
}

fn list<T>(
    input: &mut Reader,
    what: &'static str,
    mut item: impl FnMut(&mut Reader) -> Result<T, DecodeError>,
) -> Result<Vec<T>, DecodeError> {
    // The list grows as it is read: a count costs nothing until its items are there.
    let mut items = Vec::new();
    for _ in 0..input.count(what)? {
        items.push(item(input)?);
    }
    Ok(items)
}

fn text(input: &mut Reader, what: &'static str) -> Result<String, DecodeError> {
    let bytes = input.bytes(what)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| DecodeError::OutOfRange(what))?;
    Ok(text.to_owned())
}

fn unknown(what: &'static str, value: u8) -> DecodeError {
    let value = value.into();
    DecodeError::Unknown { what, value }
}
