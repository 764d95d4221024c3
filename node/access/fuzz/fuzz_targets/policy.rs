//! Policies as bytes: decoding any bytes never panics, and what was decoded survives encoding and printing.
#![no_main]

use access::{Authorizer, Caller, Policy, Space, Verb};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    if let Ok(policy) = Policy::decode(Bytes::copy_from_slice(input)) {
        assert_eq!(Policy::decode(policy.encode()), Ok(policy.clone()));
        assert_eq!(Policy::from_json(policy.num(), policy.to_json()), Ok(policy.clone()));
        let authorizer = Authorizer::new(&policy);
        assert!(!authorizer.rights(&Caller::Anonymous, None).some(Space::Flat, Verb::Read));
    }
});
