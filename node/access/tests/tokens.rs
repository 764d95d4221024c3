//! Tokens, and the reason why each bad one is refused. The signature of a test is the key's id.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use access::{
    Account, Issuer, MAX_TOKEN_BYTES, PublicKey, TokenError, Tokens, Verified, VerifyingKey, bearer,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

const NOW: u64 = 1_800_000_000;

fn tokens() -> Tokens {
    let key = |id: &str, key| VerifyingKey {
        id: id.to_owned(),
        key,
    };
    let keys = vec![
        key(
            "k1",
            PublicKey::Rs256 {
                n: vec![1; 256].into(),
                e: vec![1, 0, 1].into(),
            },
        ),
        key("k2", PublicKey::Es256(vec![2; 64].into())),
        key("k3", PublicKey::Es384(vec![3; 96].into())),
    ];
    let issuer = |name: &str, keys| Issuer {
        issuer: name.to_owned(),
        keys,
    };
    Tokens {
        audience: "shardkv.io/shop/store".to_owned(),
        issuers: vec![issuer("https://a", keys), issuer("https://b", Vec::new())],
    }
}

fn header() -> Value {
    json!({"alg": "ES256", "kid": "k2", "typ": "JWT"})
}

fn claims() -> Value {
    json!({
        "iss": "https://a",
        "sub": "system:serviceaccount:shop:app",
        "aud": ["x", "shardkv.io/shop/store"],
        "iat": NOW - 60, "nbf": NOW - 60, "exp": NOW + 3_540,
        "kubernetes.io": {
            "namespace": "shop",
            "pod": {"name": "app-1", "uid": "p"},
            "serviceaccount": {"name": "app", "uid": "u1"},
        },
    })
}

fn signed(header: &Value, claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let id = header["kid"].as_str().unwrap_or_default();
    format!(
        "{}.{}.{}",
        part(header),
        part(claims),
        URL_SAFE_NO_PAD.encode(id)
    )
}

fn verify(token: &str) -> Result<Verified, TokenError> {
    let tokens = tokens();
    tokens.verify(token, NOW, |key, message, signature| {
        assert!(token.as_bytes().starts_with(message));
        let id = match key {
            PublicKey::Rs256 { .. } => "k1",
            PublicKey::Es256(_) => "k2",
            PublicKey::Es384(_) => "k3",
        };
        signature == id.as_bytes()
    })
}

/// Returns the decision about a token with other claims.
fn with(name: &str, value: Value) -> Result<Verified, TokenError> {
    let mut claims = claims();
    claims[name] = value;
    verify(&signed(&header(), &claims))
}

#[test]
fn a_good_token_names_its_account() {
    let expected = Verified {
        account: Account {
            namespace: "shop".into(),
            name: "app".into(),
            uid: "u1".into(),
        },
        expires: NOW + 3_540,
    };
    for (alg, kid) in [("RS256", "k1"), ("ES256", "k2"), ("ES384", "k3")] {
        let token = signed(&json!({"alg": alg, "kid": kid}), &claims());
        assert_eq!(verify(&token), Ok(expected.clone()), "{alg}");
    }
    assert_eq!(
        with("aud", json!("shardkv.io/shop/store")),
        Ok(expected.clone())
    );
    assert_eq!(
        with("nbf", json!(NOW + 30)),
        Ok(expected),
        "clocks differ a little"
    );
}

#[test]
fn the_key_says_the_algorithm_and_never_the_token() {
    for (header, expected) in [
        (json!({"alg": "none", "kid": "k2"}), TokenError::Algorithm),
        (json!({"alg": "HS256", "kid": "k2"}), TokenError::Algorithm),
        (json!({"alg": "RS384", "kid": "k1"}), TokenError::Algorithm),
        (json!({"alg": "es256", "kid": "k2"}), TokenError::Algorithm),
        (json!({"alg": "ES256", "kid": "k1"}), TokenError::Algorithm),
        (json!({"alg": "RS256", "kid": "k2"}), TokenError::Algorithm),
        (json!({"alg": "ES256", "kid": "k9"}), TokenError::UnknownKey),
        (json!({"alg": "ES256"}), TokenError::Malformed),
        (json!({"kid": "k2"}), TokenError::Malformed),
        (
            json!({"alg": "ES256", "kid": "k2", "crit": ["b64"]}),
            TokenError::Malformed,
        ),
    ] {
        assert_eq!(
            verify(&signed(&header, &claims())),
            Err(expected),
            "{header}"
        );
    }
    assert_eq!(
        with("iss", json!("https://b")),
        Err(TokenError::UnknownKey),
        "another issuer's key"
    );
}

#[test]
fn each_bad_claim_has_its_reason() {
    let lifetime = |from: u64, to: u64| {
        let mut claims = claims();
        (claims["iat"], claims["nbf"], claims["exp"]) = (json!(from), json!(from), json!(to));
        verify(&signed(&header(), &claims)).map(|verified| verified.expires)
    };
    assert_eq!(lifetime(NOW, NOW + 7_200), Ok(NOW + 7_200));
    assert_eq!(lifetime(NOW, NOW + 7_201), Err(TokenError::Lifetime));
    assert_eq!(lifetime(NOW - 7_200, NOW), Err(TokenError::Expired));
    assert_eq!(lifetime(NOW + 31, NOW + 60), Err(TokenError::NotYetValid));
    assert_eq!(lifetime(u64::MAX, u64::MAX), Err(TokenError::NotYetValid));
    let account = |name: &str, uid: &str| json!({"namespace": "shop", "serviceaccount": {"name": name, "uid": uid}});
    for (name, value, expected) in [
        ("iss", json!("https://a/"), TokenError::Issuer),
        ("iss", json!(7), TokenError::Issuer),
        ("aud", json!("shardkv.io/shop/other"), TokenError::Audience),
        ("aud", json!([]), TokenError::Audience),
        ("aud", Value::Null, TokenError::Audience),
        ("exp", json!("soon"), TokenError::Lifetime),
        ("exp", json!(-1), TokenError::Lifetime),
        ("iat", Value::Null, TokenError::Lifetime),
        ("nbf", json!("soon"), TokenError::Malformed),
        ("nbf", json!(NOW + 31), TokenError::NotYetValid),
        (
            "sub",
            json!("system:serviceaccount:shop:other"),
            TokenError::Subject,
        ),
        ("sub", json!("admin"), TokenError::Subject),
        ("kubernetes.io", Value::Null, TokenError::Subject),
        ("kubernetes.io", account("app", ""), TokenError::Subject),
        ("kubernetes.io", account("other", "u"), TokenError::Subject),
    ] {
        let found = with(name, value.clone());
        assert_eq!(found, Err(expected), "{name}: {value}");
        assert_eq!(expected.is_retriable(), expected == TokenError::NotYetValid);
    }
    assert!(TokenError::UnknownKey.is_retriable());
}

#[test]
fn a_token_that_was_changed_is_refused() {
    let token = signed(&header(), &claims());
    let (rest, _) = token.rsplit_once('.').unwrap();
    assert_eq!(verify(&format!("{rest}.")), Err(TokenError::Signature));
    assert_eq!(verify(&format!("{rest}.AAAA")), Err(TokenError::Signature));
    for malformed in [
        "",
        ".",
        "..",
        "a.b",
        "a.b.c",
        rest,
        &format!("{token}."),
        &format!("{token} "),
        &format!("{token}="),
    ] {
        assert_eq!(
            verify(malformed),
            Err(TokenError::Malformed),
            "{malformed:?}"
        );
    }
    let long = format!("{}.{}", "A".repeat(MAX_TOKEN_BYTES), "A");
    assert_eq!(verify(&long), Err(TokenError::Malformed));
    let list = URL_SAFE_NO_PAD.encode("[]");
    assert_eq!(
        verify(&format!("{list}.{list}.")),
        Err(TokenError::Malformed)
    );
}

#[test]
fn a_header_has_a_token_by_its_scheme() {
    for (header, expected) in [
        ("Bearer a.b.c", Some("a.b.c")),
        ("bearer  a.b.c ", Some("a.b.c")),
        ("Basic a", None),
        ("Bearer", None),
        ("", None),
    ] {
        assert_eq!(bearer(header), expected, "{header:?}");
    }
}
