//! Policies as people write them, and what they are told of mistakes.

#![allow(clippy::unwrap_used)]

use access::{Policy, PolicyNum, PublicKey, Subject, Verbs};

const WHOLE: &str = r#"
grants:
- subject: {certificate: {commonName: shop}}
  verbs: [read, write]
  prefixes: [orders/, "7"]
- subject:
    serviceAccount: {namespace: shop, name: app, uid: u-1}
  verbs: [read]
  keyspaces: [shop, "team-x.*"]
- subject: {group: "system:serviceaccounts:shop"}
  verbs: [read]
- subject: {anyAuthenticated: true}
  verbs: [admin]
tokens:
  audience: shardkv.io/shop/store
  issuers:
  - issuer: https://kubernetes.default.svc.cluster.local
    keys:
    - {kty: EC, kid: k1, alg: ES256, crv: P-256, use: sig, x5t: abc,
       x: AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA, y: AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA}
"#;

#[test]
fn a_whole_policy_is_read() {
    let policy = Policy::parse(PolicyNum(3), WHOLE).unwrap();
    let grants = policy.grants();
    assert_eq!(grants.len(), 4);
    assert_eq!(grants[0].subject, Subject::CommonName("shop".into()));
    assert_eq!(
        grants[0].verbs,
        Verbs {
            read: true,
            write: true,
            admin: false
        }
    );
    assert_eq!(grants[0].prefixes, ["orders/", "7"]);
    assert_eq!(grants[1].keyspaces, ["shop", "team-x.*"]);
    assert_eq!(
        grants[2].subject,
        Subject::Accounts {
            namespace: Some("shop".into())
        }
    );
    let tokens = policy.tokens().unwrap();
    assert_eq!(tokens.audience, "shardkv.io/shop/store");
    assert!(matches!(&tokens.issuers[0].keys[0].key, PublicKey::Es256(point) if point[32] == 1));
    assert_eq!(
        Policy::parse(PolicyNum(3), &policy.to_yaml()),
        Ok(policy.clone())
    );
    assert_eq!(Policy::decode(policy.encode()), Ok(policy));
}

#[test]
fn an_empty_policy_grants_nothing() {
    for text in ["{}", "grants: []"] {
        assert!(
            Policy::parse(PolicyNum(0), text)
                .unwrap()
                .grants()
                .is_empty()
        );
    }
}

#[track_caller]
fn assert_told(text: &str, expected: &str) {
    let error = Policy::parse(PolicyNum(1), text).unwrap_err().to_string();
    assert!(error.starts_with(expected), "{text}\n{error}");
}

#[test]
fn mistakes_are_named_with_their_field() {
    let grant = |rest: &str| format!("grants:\n- {rest}\n");
    for (text, expected) in [
        (
            String::new(),
            "the text: expected a structure with grants, tokens",
        ),
        ("grants: [".into(), "the text: not YAML: "),
        ("grants: []\ngrants: []".into(), "the text: not YAML: "),
        ("grants: 7".into(), "grants: expected a list"),
        (
            "grant: []".into(),
            "grant: unknown field: the fields here are grants, tokens",
        ),
        (
            grant("7"),
            "grants[0]: expected a structure with subject, verbs",
        ),
        (
            grant("verbs: [read]"),
            "grants[0].subject: the field is missing",
        ),
        (
            grant("subject: {group: g}\n  verbs: [read]"),
            "grants[0].subject.group: the groups are `system:service",
        ),
        (
            grant("subject: {group: system:serviceaccountsx}\n  verbs: [read]"),
            "grants[0].subject.group: the groups",
        ),
        (
            grant("subject: {group: 'system:serviceaccounts:'}\n  verbs: [read]"),
            "grants[0].subject.group: use a name",
        ),
        (
            grant("subject: {}\n  verbs: [read]"),
            "grants[0].subject: name one of ",
        ),
        (
            grant("subject: {anyAuthenticated: false}\n  verbs: [read]"),
            "grants[0].subject: name one of ",
        ),
        (
            grant("subject: {anyAuthenticated: true, group: g}\n  verbs: [read]"),
            "grants[0].subject: name one of ",
        ),
        (
            grant("subject: {certificate: {dnsName: a, uri: b}}\n  verbs: [read]"),
            "grants[0].subject.certificate: name one of commonName, dnsName and uri",
        ),
        (
            grant("subject: {certificate: {commonName: 7}}\n  verbs: [read]"),
            "grants[0].subject.certificate.commonName: expected a text: put numbers",
        ),
        (
            grant("subject: {serviceAccount: {name: a}}\n  verbs: [read]"),
            "grants[0].subject.serviceAccount.namespace: the field is missing",
        ),
        (
            grant("subject: {anyAuthenticated: true}"),
            "grants[0].verbs: the field is missing",
        ),
        (
            grant("subject: {anyAuthenticated: true}\n  verbs: []"),
            "grants[0].verbs: name at least one",
        ),
        (
            grant("subject: {anyAuthenticated: true}\n  verbs: [read, delete]"),
            "grants[0].verbs[1]: the verbs are read, write and admin",
        ),
        (
            grant("subject: {anyAuthenticated: true}\n  verbs: [read]\n  keyspaces: []"),
            "grants[0].keyspaces: the list is empty",
        ),
        (
            grant("subject: {anyAuthenticated: true}\n  verbs: [read]\n  prefixes: [a, b: c]"),
            "grants[0].prefixes[1]: expected a text",
        ),
    ] {
        assert_told(&text, expected);
    }
}

#[test]
fn mistakes_in_keys_are_named_with_their_field() {
    let key =
        |rest: &str| format!("tokens: {{audience: a, issuers: [{{issuer: i, keys: [{rest}]}}]}}");
    for (text, expected) in [
        (
            "tokens: {audience: a, issuers: []}".into(),
            "tokens.issuers: name 1 to 16 issuers",
        ),
        (
            key("{kid: k, kty: oct, k: AAAA}"),
            "tokens.issuers[0].keys[0].kty: the keys are RSA, and EC",
        ),
        (
            key("{kid: k, kty: RSA, n: AQ, e: AQAB}"),
            "tokens.issuers[0].keys[0]: use an RSA key of 2,048",
        ),
        (
            key("{kid: k, kty: EC, crv: P-256, x: AA, y: AA}"),
            "tokens.issuers[0].keys[0].x: this curve has",
        ),
        (
            key("{kid: k, kty: RSA, n: '!', e: AQAB}"),
            "tokens.issuers[0].keys[0].n: expected base64",
        ),
        (
            key("{kid: k, kty: RSA, d: AQ}"),
            "tokens.issuers[0].keys[0].d: this is a private key",
        ),
        (
            key("{kid: k, kty: RSA, use: enc}"),
            "tokens.issuers[0].keys[0].use: only keys for signatures",
        ),
        (
            key("{kty: RSA}"),
            "tokens.issuers[0].keys[0].kid: the field is missing",
        ),
    ] {
        let error = Policy::parse(PolicyNum(1), &text).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{text}\n{error}");
    }
}

#[test]
fn hostile_yaml_is_an_error() {
    let bomb = "a: &a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n\
                d: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e]\n\
                g: &g [*f,*f,*f,*f,*f,*f,*f,*f]\nh: [*g,*g,*g,*g,*g,*g,*g,*g]\n";
    for text in [bomb, &"[".repeat(100_000), "grants: !x []", "? [a]\n: b"] {
        assert!(Policy::parse(PolicyNum(1), text).is_err());
    }
}
