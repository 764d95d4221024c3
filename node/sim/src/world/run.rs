//! The loop of a world: takes each event from the queue, in the order of virtual time, and handles it.

use raft::Membership;
use replica::initialise;
use types::NodeId;

use super::{Phase, World};
use crate::event::Event;
use crate::host::Input;
use crate::queue::Micros;
use crate::report::{Failure, Report};
use crate::rng::mix;
use crate::scenario::Scenario;
use crate::violation::{Checked, Violation};

impl World {
    /// Creates a world, initialises the members, and starts all processes.
    pub(crate) fn begin(scenario: Scenario) -> Result<Self, Failure> {
        let mut world = Self::new(scenario);
        let started = world.start_all();
        world.fail_now(started)?;
        Ok(world)
    }

    fn start_all(&mut self) -> Checked {
        if let Some(within) = self.scenario.first_starts {
            self.plan_first_starts(within);
            self.start_rest();
            return Ok(());
        }
        for group in &mut self.groups {
            let voters = || self.hosts[group.hosts.clone()].iter().take(group.members);
            let named = voters().map(|host| (host.node, host.address.clone()));
            let membership = Membership::of_voters(named);
            let genesis = group.genesis.to_batch();
            for host in voters() {
                let (mut log, mut state) = host.disk.open();
                initialise(&mut log, &mut state, &membership, genesis.clone()).map_err(
                    |error| Violation::new("an empty disk can be initialised", error.to_string()),
                )?;
                for event in host.disk.take_journal() {
                    group.invariants.wrote(host.node, event)?;
                }
            }
        }
        for number in 0..self.hosts.len() {
            self.start(number)?;
        }
        self.start_rest();
        Ok(())
    }

    fn start_rest(&mut self) {
        for number in 0..self.clients.len() {
            self.plan_client(number);
        }
        for number in 0..self.config_clients.len() {
            self.plan_config_client(number);
        }
        for number in 0..self.keyspace_clients.len() {
            self.plan_keyspace_client(number);
        }
        self.plan_faults();
    }

    /// Runs the phase with faults, then the liveness phase.
    pub(crate) fn run(&mut self) -> Result<Report, Failure> {
        let duration = self.scenario.duration;
        self.run_until(duration)?;
        self.run_liveness_phase()
    }

    /// Runs the liveness phase and the last checks.
    pub(crate) fn run_liveness_phase(&mut self) -> Result<Report, Failure> {
        let result = self.begin_liveness_phase();
        self.fail_now(result)?;
        while self.phase != Phase::Done {
            self.step()?;
        }
        let result = self.check_end();
        self.fail_now(result)?;
        Ok(self.report.clone())
    }

    /// Runs all events until `until`.
    pub(crate) fn run_until(&mut self, until: Micros) -> Result<(), Failure> {
        loop {
            match self.queue.pop() {
                Some((at, event)) if at <= until => {
                    self.now = at;
                    let result = self.handle(event);
                    self.fail_now(result)?;
                }
                Some((at, event)) => {
                    // The event is later than `until`. It becomes the last of its moment, in each run of the seed.
                    self.queue.push(at, event);
                    break;
                }
                None => break,
            }
        }
        self.now = until;
        Ok(())
    }

    /// Runs the next event.
    pub(super) fn step(&mut self) -> Result<(), Failure> {
        let Some((at, event)) = self.queue.pop() else {
            let still = Violation::new("liveness", "no event is left in the queue");
            return self.fail_now(Err(still));
        };
        self.now = at;
        let result = self.handle(event);
        self.fail_now(result)
    }

    fn fail_now(&self, result: Checked) -> Result<(), Failure> {
        result.map_err(|violation| {
            if self.tracing {
                self.print(&format!("!! {}: {}", violation.invariant, violation.detail));
            }
            Failure {
                at: self.now,
                violation,
            }
        })
    }

    fn handle(&mut self, event: Event) -> Checked {
        self.take_event(event)?;
        self.strike_steps();
        Ok(())
    }

    fn take_event(&mut self, event: Event) -> Checked {
        self.report.fingerprint = mix(self.report.fingerprint ^ self.now);
        match event {
            Event::Tick { host, incarnation } => self.tick(host, incarnation),
            Event::Work { host, incarnation } => {
                if self.hosts[host].incarnation != incarnation {
                    return Ok(());
                }
                self.hosts[host].work_due = false;
                self.wake(host)
            }
            Event::Arrive { host, envelope } => {
                let here = self.hosts[host].node;
                if envelope.to != here && envelope.to != NodeId(0) {
                    self.count("messages for a node that is gone");
                    return Ok(());
                }
                if !self.greets(host, &envelope) {
                    return Ok(());
                }
                self.deliver(host, Input::Message(envelope))
            }
            Event::Ask { host, id, request } => self.request_arrived(host, id, request),
            Event::Forward { id, request } => self.forward_request(id, request),
            Event::Answer { id, outcome } => self.answer_arrived(id, outcome),
            Event::Disconnect {
                host,
                incarnation,
                node,
            } => {
                if self.hosts[host].incarnation == incarnation {
                    self.deliver(host, Input::Disconnect(node))
                } else {
                    Ok(())
                }
            }
            Event::Client { number } => {
                self.wake_client(number);
                Ok(())
            }
            Event::KeyspaceClient { number } => {
                self.wake_keyspace_client(number);
                Ok(())
            }
            Event::ConfigClient { number } => {
                self.wake_config_client(number);
                Ok(())
            }
            Event::ReadPage {
                host,
                incarnation,
                id,
            } => self.read_page(host, incarnation, id),
            Event::Mover { host, incarnation } => {
                let up = self.hosts[host].is_up();
                if self.hosts[host].incarnation != incarnation || !up {
                    return Ok(());
                }
                self.mover_due(host)
            }
            Event::First { host, event } => self.take_first(host, event),
            Event::Start { host, incarnation } => {
                if self.hosts[host].incarnation == incarnation {
                    self.start(host)
                } else {
                    Ok(())
                }
            }
            Event::Stop {
                host,
                incarnation,
                down,
            } => self.stop_orderly(host, incarnation, down),
            Event::Forwarded { host, id, request } => self.take_request(host, id, request),
            Event::Resume { host, incarnation } => {
                if self.hosts[host].incarnation == incarnation {
                    self.resume(host)
                } else {
                    Ok(())
                }
            }
            Event::BeginFault(fault) => {
                self.begin_fault(fault);
                Ok(())
            }
            Event::EndFault(fault, host) => self.end_fault(fault, host),
            Event::CheckRecovery => self.check_recovery(),
        }
    }
}
