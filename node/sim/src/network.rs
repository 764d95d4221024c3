//! The network between addresses: it cuts, delays, loses, duplicates and reorders messages.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::queue::Micros;
use crate::rng::SimRng;

/// The number of an address at which a node can run.
pub type HostId = usize;

/// Returns the address of a host.
pub fn address(number: HostId) -> String {
    format!("host-{number}:7000")
}

/// Returns the host of an address.
pub fn host_at(address: &str) -> Option<HostId> {
    let (host, _) = address.strip_prefix("host-")?.split_once(':')?;
    host.parse().ok()
}

/// The behaviour of links that are not cut. Shares are of a million messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkOptions {
    /// The shortest delay of a message, and the longest of one that is not late.
    pub delay: (Micros, Micros),
    /// The share of messages that are late, by at most `late_by`.
    pub late: u32,
    /// The longest delay of a late message.
    pub late_by: Micros,
    /// The share of messages that are lost.
    pub loss: u32,
    /// The share of messages that arrive twice.
    pub duplication: u32,
    /// The longest extra delay of the second copy.
    pub duplicate_late_by: Micros,
    /// True if messages on one link overtake each other. Otherwise each link keeps their order.
    pub reordering: bool,
    /// The bytes of snapshot chunks that a link carries in a second; `None` for any number. Chunks have a connection of
    /// their own, so they delay nothing else.
    pub snapshot_bytes_per_second: Option<u64>,
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self {
            delay: (100, 2_000),
            late: 0,
            late_by: 0,
            loss: 0,
            duplication: 0,
            duplicate_late_by: 0,
            reordering: false,
            snapshot_bytes_per_second: None,
        }
    }
}

/// The network of one world.
#[derive(Debug)]
pub struct Network {
    options: LinkOptions,
    rng: SimRng,
    /// Directed links that carry nothing.
    cut: BTreeSet<(HostId, HostId)>,
    /// Hosts whose links to all other hosts are slow, and the extra delay of each message.
    slow: Option<(Range<HostId>, Micros)>,
    /// The arrival of the last message on each link that keeps order, by sender, then receiver.
    last_arrival: Vec<Vec<Micros>>,
    /// The time until which each link carries the snapshot chunks that were sent.
    busy_until: Vec<Vec<Micros>>,
}

impl Network {
    /// Creates a network of `hosts` addresses without cuts.
    pub fn new(options: LinkOptions, hosts: usize, rng: SimRng) -> Self {
        Self {
            options,
            rng,
            cut: BTreeSet::new(),
            slow: None,
            last_arrival: vec![vec![0; hosts]; hosts],
            busy_until: vec![vec![0; hosts]; hosts],
        }
    }

    /// Returns the arrivals at `to` of a message that leaves `from` at `at`: none, one, or two.
    pub fn arrivals(&mut self, from: HostId, to: HostId, at: Micros) -> [Option<Micros>; 2] {
        if self.is_cut(from, to) || self.rng.chance(self.options.loss) {
            return [None, None];
        }
        let first = self.arrival(from, to, at);
        let second = self.rng.chance(self.options.duplication).then(|| {
            let echo = self.rng.below(self.options.duplicate_late_by + 1);
            self.delay() + at + self.slowness(from, to) + echo
        });
        [Some(first), second]
    }

    /// Returns the arrivals at `to` of a snapshot chunk of `bytes` bytes that `from` sends at `at`: none, one, or two.
    pub fn chunk_arrivals(
        &mut self,
        (from, to): (HostId, HostId),
        at: Micros,
        bytes: usize,
    ) -> [Option<Micros>; 2] {
        let Some(rate) = self.options.snapshot_bytes_per_second else {
            return self.arrivals(from, to, at);
        };
        let lane = self
            .busy_until
            .get_mut(from)
            .and_then(|row| row.get_mut(to));
        let Some(lane) = lane else {
            return [None, None];
        };
        let left = at.max(*lane) + bytes as u64 * 1_000_000 / rate.max(1);
        *lane = left;
        if self.is_cut(from, to) || self.rng.chance(self.options.loss) {
            return [None, None];
        }
        let twice = self.rng.chance(self.options.duplication);
        [Some(left), twice.then_some(left)].map(|left| {
            let left = left?;
            Some(left + self.delay() + self.slowness(from, to))
        })
    }

    fn arrival(&mut self, from: HostId, to: HostId, at: Micros) -> Micros {
        let arrival = at + self.delay() + self.slowness(from, to);
        if self.options.reordering {
            return arrival;
        }
        let Some(last) = self
            .last_arrival
            .get_mut(from)
            .and_then(|row| row.get_mut(to))
        else {
            return arrival;
        };
        *last = arrival.max(*last);
        *last
    }

    fn slowness(&self, from: HostId, to: HostId) -> Micros {
        match &self.slow {
            Some((hosts, by)) if hosts.contains(&from) != hosts.contains(&to) => *by,
            _ => 0,
        }
    }

    /// Draws the delay of a message. Clients' traffic, which crosses no link, uses it directly.
    pub fn delay(&mut self) -> Micros {
        let (least, most) = self.options.delay;
        if self.rng.chance(self.options.late) {
            self.rng.between(most, most.max(self.options.late_by))
        } else {
            self.rng.between(least, most)
        }
    }

    /// Draws the loss of a message on a link that isn't cut. Returns true if the message is lost.
    pub fn loses(&mut self) -> bool {
        self.rng.chance(self.options.loss)
    }

    /// Returns true if the link from `from` to `to` is cut.
    pub fn is_cut(&self, from: HostId, to: HostId) -> bool {
        !self.cut.is_empty() && self.cut.contains(&(from, to))
    }

    /// Returns true if no link is cut.
    pub fn is_whole(&self) -> bool {
        self.cut.is_empty()
    }

    /// Cuts these links, and only these.
    pub fn set_cuts(&mut self, cut: BTreeSet<(HostId, HostId)>) {
        self.cut = cut;
    }

    /// Restores all links.
    pub fn heal(&mut self) {
        self.cut.clear();
    }

    /// Slows the links between these hosts and all others, and only these. `None` ends it.
    pub fn set_slow(&mut self, slow: Option<(Range<HostId>, Micros)>) {
        self.slow = slow;
    }

    /// Sets the behaviour of links from now on.
    pub fn set_options(&mut self, options: LinkOptions) {
        self.options = options;
    }
}

/// Draws the cut links of a partition, in one of six shapes.
pub fn draw_cuts(
    rng: &mut SimRng,
    hosts: usize,
    leader: Option<HostId>,
) -> BTreeSet<(HostId, HostId)> {
    let mut order: Vec<HostId> = (0..hosts).collect();
    rng.shuffle(&mut order);
    // In half of the draws the leader comes first in the order, where every shape isolates it.
    if let Some(leader) = leader
        && rng.coin()
    {
        order.retain(|host| *host != leader);
        order.insert(0, leader);
    }
    let mut cut = BTreeSet::new();
    let both = |a: HostId, b: HostId, cut: &mut BTreeSet<_>| {
        cut.insert((a, b));
        cut.insert((b, a));
    };
    let (Some(first), rest) = (order.first().copied(), order.get(1..).unwrap_or_default()) else {
        return cut;
    };
    match rng.below(6) {
        // Isolates one host.
        0 => rest.iter().for_each(|other| both(first, *other, &mut cut)),
        // Separates two sides.
        1 => {
            let (left, right) = order.split_at(order.len() / 2);
            for (a, b) in left.iter().flat_map(|a| right.iter().map(move |b| (a, b))) {
                both(*a, *b, &mut cut);
            }
        }
        // Separates two sides, and keeps `first` as the only bridge between them.
        2 => {
            let (left, right) = rest.split_at(rest.len() / 2);
            for (a, b) in left.iter().flat_map(|a| right.iter().map(move |b| (a, b))) {
                both(*a, *b, &mut cut);
            }
        }
        // Lets one host only receive, or only send.
        3 => {
            let speaks = rng.coin();
            for other in rest {
                cut.insert(if speaks {
                    (*other, first)
                } else {
                    (first, *other)
                });
            }
        }
        // Cuts one link, both ways or one way.
        4 => {
            if let Some(other) = rest.first() {
                cut.insert((first, *other));
                if rng.coin() {
                    cut.insert((*other, first));
                }
            }
        }
        // Cuts links at random.
        _ => {
            let share = u32::try_from(rng.between(100_000, 600_000)).unwrap_or(300_000);
            for from in 0..hosts {
                for to in (0..hosts).filter(|to| *to != from) {
                    if rng.chance(share) {
                        cut.insert((from, to));
                    }
                }
            }
        }
    }
    cut
}
