//! Policies as YAML: reading any text never panics, and a policy that was read survives encoding.
#![no_main]

use access::{Policy, PolicyNum};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(policy) = Policy::parse(PolicyNum(1), text) {
        assert_eq!(Policy::decode(policy.encode()), Ok(policy));
    }
});
