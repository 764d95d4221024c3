//! Tokens: reading any text never panics, and an accepted token is within its time. The first byte says whether the signature holds.
#![no_main]

use access::{Issuer, PublicKey, Tokens, VerifyingKey};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (bool, u64, &str)| {
    let (holds, now, token) = input;
    let key = VerifyingKey {
        id: "k".to_owned(),
        key: PublicKey::Es256(vec![2; 64].into()),
    };
    let issuer = Issuer {
        issuer: "i".to_owned(),
        keys: vec![key],
    };
    let tokens = Tokens {
        audience: "a".to_owned(),
        issuers: vec![issuer],
    };
    if let Ok(verified) = tokens.verify(token, now, |_, _, _| holds) {
        assert!(holds && now < verified.expires);
    }
});
