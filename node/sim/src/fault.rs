//! The classes of faults, and how often each happens in a world.

use crate::queue::Micros;

/// A class of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Links are cut.
    Partition,
    /// The links between one group and all others are slow.
    SlowGroup,
    /// A process hears that a connection broke, when none did.
    FalseDisconnect,
    /// A process is killed.
    Crash,
    /// One group is killed or cut off.
    Outage,
    /// All processes are killed.
    Blackout,
    /// A process is paused.
    Pause,
    /// A disk is slow.
    SlowDisk,
    /// A disk is full, or nearly full.
    FullDisk,
    /// A disk comes back empty.
    Wipe,
    /// A record on a disk becomes unreadable.
    Damage,
    /// A wall clock jumps.
    ClockJump,
    /// The administrator changes a membership.
    Membership,
    /// The administrator transfers a leadership.
    Transfer,
    /// A leader is cut off, killed or paused.
    DisturbLeader,
    /// A group that left and is drained is stopped.
    Retirement,
    /// A call between groups comes a second time, late.
    LateCall,
}

impl Fault {
    /// All classes, in the order in which a world schedules their first faults.
    pub const ALL: [Self; 17] = [
        Self::Partition,
        Self::FalseDisconnect,
        Self::Crash,
        Self::Blackout,
        Self::Pause,
        Self::SlowDisk,
        Self::FullDisk,
        Self::Wipe,
        Self::Damage,
        Self::ClockJump,
        Self::Membership,
        Self::Transfer,
        Self::DisturbLeader,
        Self::Outage,
        Self::Retirement,
        Self::SlowGroup,
        Self::LateCall,
    ];
}

/// The frequency and the duration of a fault. The simulator draws the actual values around these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recurrence {
    /// The mean time between two faults.
    pub every: Micros,
    /// The longest duration of a fault.
    pub lasts: Micros,
}

/// The faults of a world. A class that is `None` never happens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Partitions of all shapes.
    pub partitions: Option<Recurrence>,
    /// Hints that a connection broke when none did.
    pub false_disconnects: Option<Recurrence>,
    /// Slow links between one group and all others.
    pub slow_groups: Option<Recurrence>,
    /// Nodes killed between two steps, or inside one, and down for a while.
    pub crashes: Option<Recurrence>,
    /// All nodes of one group killed at once, and down for a while.
    pub outages: Option<Recurrence>,
    /// All nodes killed at once.
    pub blackouts: Option<Recurrence>,
    /// Paused processes.
    pub pauses: Option<Recurrence>,
    /// Slow disks.
    pub slow_disks: Option<Recurrence>,
    /// Disks without space.
    pub full_disks: Option<Recurrence>,
    /// Disks that come back empty.
    pub wipes: Option<Recurrence>,
    /// Records that become unreadable.
    pub damage: Option<Recurrence>,
    /// Wall clocks that jump.
    pub clock_jumps: Option<Recurrence>,
    /// Membership changes: members added, promoted, removed.
    pub membership: Option<Recurrence>,
    /// Leadership transfers.
    pub transfers: Option<Recurrence>,
    /// Leaders cut off, killed or paused, so that terms pass quickly.
    pub leader_faults: Option<Recurrence>,
    /// Groups that are stopped as soon as they have left and are drained, as an operator does, although another group
    /// still waits for the answer to a delete.
    pub retirements: Option<Recurrence>,
    /// Calls between groups that come a second time. Without this none are kept.
    pub late_calls: Option<Recurrence>,
}

impl Faults {
    /// Returns the recurrence of a class.
    pub fn recurrence(&self, fault: Fault) -> Option<Recurrence> {
        match fault {
            Fault::Partition => self.partitions,
            Fault::SlowGroup => self.slow_groups,
            Fault::FalseDisconnect => self.false_disconnects,
            Fault::Crash => self.crashes,
            Fault::Outage => self.outages,
            Fault::Blackout => self.blackouts,
            Fault::Pause => self.pauses,
            Fault::SlowDisk => self.slow_disks,
            Fault::FullDisk => self.full_disks,
            Fault::Wipe => self.wipes,
            Fault::Damage => self.damage,
            Fault::ClockJump => self.clock_jumps,
            Fault::Membership => self.membership,
            Fault::Transfer => self.transfers,
            Fault::DisturbLeader => self.leader_faults,
            Fault::Retirement => self.retirements,
            Fault::LateCall => self.late_calls,
        }
    }
}
