//! Policies as YAML or JSON.
//!
//! ```yaml
//! grants:
//! - subject: {certificate: {commonName: shop}}
//!   verbs: [read, write]
//!   prefixes: [orders/]
//! - subject: {serviceAccount: {namespace: shop, name: app}}
//!   verbs: [read]
//!   keyspaces: [shop, "team-x.*"]
//! ```

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::{
    Grant, Issuer, MAX_POLICY_BYTES, Policy, PolicyError, PolicyNum, PublicKey, Subject, Tokens,
    Verbs, VerifyingKey,
};

const SUBJECTS: &str = "name one of `serviceAccount: {namespace, name}`, `certificate: {commonName | dnsName | uri}`, `group` and \
                        `anyAuthenticated: true`";

type Read<T> = Result<T, PolicyError>;

impl Policy {
    /// Reads a policy from YAML or JSON. The text doesn't have the number.
    pub fn parse(num: PolicyNum, text: &str) -> Read<Self> {
        // Encoded, a policy is shorter than its text.
        let most = 4 * MAX_POLICY_BYTES;
        if text.len() > most {
            return Err(PolicyError::new(
                "the text",
                format!("{} bytes, and {most} are the limit", text.len()),
            ));
        }
        let yaml: serde_yaml::Value = serde_yaml::from_str(text)
            .map_err(|error| PolicyError::new("the text", format!("not YAML: {error}")))?;
        let value = serde_json::to_value(yaml).map_err(|error| {
            PolicyError::new("the text", format!("not a structure of JSON: {error}"))
        })?;
        Self::from_json(num, value)
    }

    /// Reads a policy from a structure, as [`Policy::to_json`] makes it.
    pub fn from_json(num: PolicyNum, value: Value) -> Read<Self> {
        let mut fields = Fields::new("", value, &["grants", "tokens"])?;
        let grants = fields
            .take("grants")
            .map_or(Ok(Vec::new()), |field| field.list(grant))?;
        let tokens = fields.take("tokens").map(tokens).transpose()?;
        Self::new(num, grants, tokens)
    }

    /// Returns the policy as a structure, without its number.
    pub fn to_json(&self) -> Value {
        let mut all = Map::new();
        let grants = self.grants.iter().map(grant_to_json).collect();
        all.insert("grants".to_owned(), Value::Array(grants));
        if let Some(tokens) = &self.tokens {
            let issuers: Vec<Value> = tokens.issuers.iter().map(issuer_to_json).collect();
            all.insert(
                "tokens".to_owned(),
                json!({"audience": tokens.audience, "issuers": issuers}),
            );
        }
        Value::Object(all)
    }

    /// Returns the policy as YAML, without its number.
    pub fn to_yaml(&self) -> String {
        // Such a structure always has a text.
        serde_yaml::to_string(&self.to_json()).unwrap_or_default()
    }
}

/// A value, and the path to it for errors.
struct Field {
    path: String,
    value: Value,
}

impl Field {
    fn wrong<T>(&self, reason: impl Into<String>) -> Read<T> {
        let path = if self.path.is_empty() {
            "the text"
        } else {
            &self.path
        };
        Err(PolicyError::new(path, reason))
    }

    fn list<T>(self, mut item: impl FnMut(Field) -> Read<T>) -> Read<Vec<T>> {
        let Self { path, value } = self;
        let Value::Array(values) = value else {
            return Err(PolicyError::new(path, "expected a list"));
        };
        let items = values.into_iter().enumerate();
        items
            .map(|(at, value)| {
                item(Field {
                    path: format!("{path}[{at}]"),
                    value,
                })
            })
            .collect()
    }

    fn text(self) -> Read<String> {
        match self.value {
            Value::String(text) => Ok(text),
            _ => self.wrong("expected a text: put numbers and words like `true` between quotes"),
        }
    }

    fn texts(self) -> Read<Vec<String>> {
        self.list(Field::text)
    }
}

/// The fields of a structure that weren't read yet.
struct Fields {
    path: String,
    values: Map<String, Value>,
}

impl Fields {
    fn new(path: &str, value: Value, known: &[&str]) -> Read<Self> {
        let field = Field {
            path: path.to_owned(),
            value,
        };
        let Value::Object(values) = field.value else {
            return field.wrong(format!("expected a structure with {}", known.join(", ")));
        };
        if let Some(other) = values.keys().find(|key| !known.contains(&key.as_str())) {
            let path = child(path, other);
            return Err(PolicyError::new(
                path,
                format!("unknown field: the fields here are {}", known.join(", ")),
            ));
        }
        Ok(Self {
            path: path.to_owned(),
            values,
        })
    }

    fn take(&mut self, name: &str) -> Option<Field> {
        let value = self.values.remove(name)?;
        Some(Field {
            path: child(&self.path, name),
            value,
        })
    }

    fn need(&mut self, name: &str) -> Read<Field> {
        self.take(name)
            .ok_or_else(|| PolicyError::new(child(&self.path, name), "the field is missing"))
    }
}

fn child(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

fn grant(field: Field) -> Read<Grant> {
    let known = ["subject", "verbs", "keyspaces", "prefixes"];
    let mut fields = Fields::new(&field.path, field.value, &known)?;
    let subject = subject(fields.need("subject")?)?;
    let mut verbs = Verbs::default();
    for Field { path, value } in fields.need("verbs")?.list(Ok)? {
        match value.as_str() {
            Some("read") => verbs.read = true,
            Some("write") => verbs.write = true,
            Some("admin") => verbs.admin = true,
            _ => {
                return Err(PolicyError::new(
                    path,
                    "the verbs are read, write and admin",
                ));
            }
        }
    }
    // An empty list would be read as no limit.
    let mut names = |name| match fields.take(name) {
        None => Ok(Vec::new()),
        Some(field) if field.value == json!([]) => {
            field.wrong("the list is empty: name at least one, or leave the field out")
        }
        Some(field) => field.texts(),
    };
    Ok(Grant {
        subject,
        verbs,
        keyspaces: names("keyspaces")?,
        prefixes: names("prefixes")?,
    })
}

fn subject(field: Field) -> Read<Subject> {
    let path = field.path.clone();
    let known = ["serviceAccount", "certificate", "group", "anyAuthenticated"];
    let mut fields = Fields::new(&path, field.value, &known)?;
    if fields.values.len() != 1 {
        return Err(PolicyError::new(path, SUBJECTS));
    }
    if let Some(account) = fields.take("serviceAccount") {
        let mut fields = Fields::new(&account.path, account.value, &["namespace", "name", "uid"])?;
        return Ok(Subject::ServiceAccount {
            namespace: fields.need("namespace")?.text()?,
            name: fields.need("name")?.text()?,
            uid: fields.take("uid").map(Field::text).transpose()?,
        });
    }
    if let Some(certificate) = fields.take("certificate") {
        return certificate_name(certificate);
    }
    if let Some(group) = fields.take("group") {
        let path = group.path.clone();
        let reason =
            "the groups are `system:serviceaccounts` and `system:serviceaccounts:<namespace>`";
        return Subject::group(&group.text()?).ok_or_else(|| PolicyError::new(path, reason));
    }
    match fields.take("anyAuthenticated") {
        Some(Field {
            value: Value::Bool(true),
            ..
        }) => Ok(Subject::AnyAuthenticated),
        _ => Err(PolicyError::new(path, SUBJECTS)),
    }
}

fn certificate_name(field: Field) -> Read<Subject> {
    let path = field.path.clone();
    let mut fields = Fields::new(&path, field.value, &["commonName", "dnsName", "uri"])?;
    let found = (
        fields.take("commonName"),
        fields.take("dnsName"),
        fields.take("uri"),
    );
    match found {
        (Some(name), None, None) => Ok(Subject::CommonName(name.text()?)),
        (None, Some(name), None) => Ok(Subject::DnsName(name.text()?)),
        (None, None, Some(name)) => Ok(Subject::Uri(name.text()?)),
        _ => Err(PolicyError::new(
            path,
            "name one of commonName, dnsName and uri",
        )),
    }
}

fn tokens(field: Field) -> Read<Tokens> {
    let mut fields = Fields::new(&field.path, field.value, &["audience", "issuers"])?;
    let audience = fields.need("audience")?.text()?;
    let issuers = fields.need("issuers")?.list(|field| {
        let mut fields = Fields::new(&field.path, field.value, &["issuer", "keys"])?;
        let issuer = fields.need("issuer")?.text()?;
        Ok(Issuer {
            issuer,
            keys: fields.need("keys")?.list(key)?,
        })
    })?;
    Ok(Tokens { audience, issuers })
}

/// Reads a key as JWKS have it. As RFC 7517 asks, fields that aren't known are ignored.
fn key(field: Field) -> Read<VerifyingKey> {
    let Value::Object(values) = field.value else {
        return field.wrong("expected a key of a JWKS");
    };
    let mut fields = Fields {
        path: field.path,
        values,
    };
    if let Some(private) = fields.take("d") {
        return private.wrong(
            "this is a private key: give the public one, and replace this key, which was shown",
        );
    }
    let id = fields.need("kid")?.text()?;
    if let Some(other) = fields
        .take("use")
        .filter(|purpose| purpose.value != json!("sig"))
    {
        return other.wrong("only keys for signatures (`sig`) are of use");
    }
    let kind = fields.need("kty")?;
    let curve = fields.take("crv");
    let curve = curve.as_ref().and_then(|curve| curve.value.as_str());
    let key = match (kind.value.as_str(), curve) {
        (Some("RSA"), None) => PublicKey::Rs256 {
            n: binary(fields.need("n")?)?,
            e: binary(fields.need("e")?)?,
        },
        (Some("EC"), Some("P-256")) => PublicKey::Es256(point(&mut fields, 32)?),
        (Some("EC"), Some("P-384")) => PublicKey::Es384(point(&mut fields, 48)?),
        _ => return kind.wrong("the keys are RSA, and EC on the curves P-256 and P-384"),
    };
    match fields.take("alg") {
        Some(alg) if alg.value != json!(key.algorithm()) => {
            alg.wrong(format!("this key is used with {} only", key.algorithm()))
        }
        _ => Ok(VerifyingKey { id, key }),
    }
}

fn point(fields: &mut Fields, bytes: usize) -> Read<Bytes> {
    let mut point = Vec::with_capacity(2 * bytes);
    for name in ["x", "y"] {
        let field = fields.need(name)?;
        let path = field.path.clone();
        let half = binary(field)?;
        if half.len() != bytes {
            return Err(PolicyError::new(
                path,
                format!("this curve has coordinates of {bytes} bytes"),
            ));
        }
        point.extend(half);
    }
    Ok(point.into())
}

fn binary(field: Field) -> Read<Bytes> {
    let path = field.path.clone();
    let bytes = URL_SAFE_NO_PAD.decode(field.text()?);
    bytes
        .map(Bytes::from)
        .map_err(|_| PolicyError::new(path, "expected base64 for URLs, without padding"))
}

fn grant_to_json(grant: &Grant) -> Value {
    let Verbs { read, write, admin } = grant.verbs;
    let verbs = [(read, "read"), (write, "write"), (admin, "admin")];
    let verbs: Vec<&str> = verbs
        .into_iter()
        .filter_map(|(granted, verb)| granted.then_some(verb))
        .collect();
    let mut fields = Map::new();
    fields.insert("subject".to_owned(), subject_to_json(&grant.subject));
    fields.insert("verbs".to_owned(), json!(verbs));
    for (field, names) in [
        ("keyspaces", &grant.keyspaces),
        ("prefixes", &grant.prefixes),
    ] {
        if !names.is_empty() {
            fields.insert(field.to_owned(), json!(names));
        }
    }
    Value::Object(fields)
}

fn subject_to_json(subject: &Subject) -> Value {
    match subject {
        Subject::ServiceAccount {
            namespace,
            name,
            uid: None,
        } => {
            json!({"serviceAccount": {"namespace": namespace, "name": name}})
        }
        Subject::ServiceAccount {
            namespace,
            name,
            uid,
        } => {
            json!({"serviceAccount": {"namespace": namespace, "name": name, "uid": uid}})
        }
        Subject::CommonName(name) => json!({"certificate": {"commonName": name}}),
        Subject::DnsName(name) => json!({"certificate": {"dnsName": name}}),
        Subject::Uri(name) => json!({"certificate": {"uri": name}}),
        Subject::Accounts { .. } => json!({"group": subject.group_name()}),
        Subject::AnyAuthenticated => json!({"anyAuthenticated": true}),
    }
}

fn issuer_to_json(issuer: &Issuer) -> Value {
    let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let point = |kid: &str, curve: &str, point: &[u8]| {
        let (x, y) = point.split_at(point.len() / 2);
        json!({"kid": kid, "kty": "EC", "crv": curve, "x": text(x), "y": text(y)})
    };
    let keys = issuer
        .keys
        .iter()
        .map(|VerifyingKey { id, key }| match key {
            PublicKey::Rs256 { n, e } => {
                json!({"kid": id, "kty": "RSA", "n": text(n), "e": text(e)})
            }
            PublicKey::Es256(bytes) => point(id, "P-256", bytes),
            PublicKey::Es384(bytes) => point(id, "P-384", bytes),
        });
    json!({"issuer": issuer.issuer, "keys": keys.collect::<Vec<Value>>()})
}
