//! Draws the clients.

use super::{Scenario, large, small};
use crate::queue::{MILLI, SECOND};
use crate::rng::SimRng;

impl Scenario {
    pub(super) fn draw_clients(&mut self, rng: &mut SimRng) {
        self.clients = large(rng.between(1, 6));
        let client = &mut self.client;
        client.keys = rng.between(1, 6);
        client.pipeline = large(rng.magnitude(1, 8));
        // The approximate number of operations of all clients together.
        let least = if self.stormy { 500 } else { 60 };
        let operations = rng.magnitude(least, 1_500);
        let pause = 2 * self.duration * self.clients as u64 / operations;
        client.think = (MILLI, pause.max(2 * MILLI));
        client.unary = 250_000;
        client.patience = rng.between(50 * MILLI, 600 * MILLI);
        client.deadline = rng.between(500 * MILLI, 6 * SECOND);
        client.reads = small(rng.between(100_000, 700_000));
        client.scans = small(rng.between(0, 150_000));
        if rng.coin() {
            client.copies = small(rng.magnitude(10_000, 400_000));
            client.copies_late_by = rng.magnitude(MILLI, 5 * SECOND);
        }
        if rng.chance(400_000) {
            client.silences = small(rng.magnitude(2_000, 50_000));
            client.silence = self.genesis.session_ttl_ms.min(4_000) * MILLI + 500 * MILLI;
        }
        if rng.chance(300_000) {
            client.sessionless = small(rng.between(10_000, 300_000));
        }
        if rng.coin() {
            client.renew_after = Some(self.genesis.session_ttl_ms * MILLI / 2);
        }
        if rng.chance(20_000) {
            client.padding = 20_000;
        }
    }
}
