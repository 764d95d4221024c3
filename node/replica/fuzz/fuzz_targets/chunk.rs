//! Chunks of a snapshot: decoding any bytes never panics. Half of the chunks get a valid checksum, so that the fuzzer
//! reaches the records behind it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use replica::Applied;
use replica::chunk::ChunkDecoder;

/// The version that a chunk begins with.
const VERSION: u8 = 1;

fuzz_target!(|input: (Vec<u8>, Vec<Vec<u8>>)| {
    let (applied, chunks) = input;
    let Ok(applied) = Applied::decode(applied.into()) else {
        return;
    };
    let mut decoder = ChunkDecoder::new(applied.meta());
    for body in chunks {
        let mut framed = vec![VERSION];
        framed.extend(crc32fast::hash(&body).to_le_bytes());
        framed.extend(&body);
        let chunk = if body.len() % 2 == 0 { framed } else { body };
        // After an error the snapshot starts over with a new decoder.
        if decoder.chunk(&chunk).is_err() {
            return;
        }
    }
});
