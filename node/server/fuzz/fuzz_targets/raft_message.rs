//! Raft messages of peers: converting any message never panics, and what was converted survives the way back.
//!
//! The conversion is compiled in from its file. So this target doesn't link the server, and RocksDB with it.
#![no_main]

#[allow(dead_code)]
#[path = "../../src/convert/peer.rs"]
mod peer;

use api::v1::RaftMessage;
use libfuzzer_sys::fuzz_target;
use prost::Message as _;

fuzz_target!(|input: &[u8]| {
    let Ok(wire) = RaftMessage::decode(input) else {
        return;
    };
    if let Ok(envelope) = peer::from_wire(wire) {
        let _ = peer::size(&envelope);
        let wire = peer::to_wire(envelope.clone());
        assert_eq!(peer::from_wire(wire), Ok(envelope));
    }
});
