//! Configurations and deltas that a node sends to watchers: converting any message never panics, nor does applying its deltas,
//! and what was converted survives the way back.
#![no_main]

use api::v1::WatchResponse;
use libfuzzer_sys::fuzz_target;
use prost::Message as _;
use types::ShardConfig;

/// The shards of a watcher that has no configuration yet.
const SHARDS: u32 = 64;

fuzz_target!(|input: &[u8]| {
    let Ok(message) = WatchResponse::decode(input) else {
        return;
    };
    let full = message.full.map(api::config_from_wire);
    let Ok(full) = full.transpose() else {
        return;
    };
    if let Some(config) = &full {
        let wire = api::config_to_wire(config);
        assert_eq!(api::config_from_wire(wire).as_ref(), Ok(config));
    }
    let mut config = full.unwrap_or_else(|| ShardConfig::empty(SHARDS));
    for delta in message.deltas {
        let Ok(delta) = api::delta_from_wire(delta) else {
            continue;
        };
        let wire = api::delta_to_wire(&delta);
        assert_eq!(api::delta_from_wire(wire).as_ref(), Ok(&delta));
        // A delta that doesn't fit is refused.
        let _ = config.apply(&delta);
    }
});
