//! Orderly stops: a process answers what it can't serve any more, makes its state durable, and ends.

use raft::StoreError;

use super::World;
use crate::host::ProcessOutput;
use crate::network::HostId;
use crate::queue::Micros;
use crate::violation::{Checked, Violation};

impl World {
    /// Stops a process in order, and starts it again after `down`. Checks that the next process finds all that this one applied.
    pub(super) fn stop_orderly(
        &mut self,
        number: HostId,
        incarnation: u64,
        down: Micros,
    ) -> Checked {
        let host = &mut self.hosts[number];
        if host.incarnation != incarnation || !host.is_up() {
            return Ok(());
        }
        let Some(mut process) = host.process.take() else {
            return Ok(());
        };
        host.disk.begin(self.now);
        let mut output = ProcessOutput::new(&host.disk);
        let stopped = process.stop(&mut output);
        let ProcessOutput { answers, .. } = output;
        host.process = Some(process);
        self.observe_disk(number)?;
        for (after, id, outcome) in answers {
            self.send_answer(number, after, id, outcome)?;
        }
        self.trace(number, || format!("stops in order: {stopped:?}"));
        let disk = self.hosts[number].disk.clone();
        let (before, dead) = (disk.position(), disk.is_dead());
        self.count("orderly stops");
        self.crash(number, Some(down));
        match stopped {
            Ok(()) if !dead && disk.position() != before => Err(Violation::new(
                "an orderly stop loses nothing",
                format!(
                    "host {number} stopped at {before:x?}, and starts at {:x?}",
                    disk.position()
                ),
            )),
            Ok(()) | Err(StoreError::Full(_)) => Ok(()),
            Err(_) if dead || disk.is_damaged() => Ok(()),
            Err(error) => Err(Violation::new(
                "a healthy disk returns no errors",
                format!("host {number}, when it stopped: {error}"),
            )),
        }
    }
}
