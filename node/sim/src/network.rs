//! The network between addresses: who reaches whom, how late, how often.

use std::collections::BTreeSet;

use crate::queue::Micros;
use crate::rng::SimRng;

/// A place where a node may run: its number among the world's addresses.
pub type HostId = usize;

/// How links behave when they are not cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkOptions {
    /// The least and the usual most delay of a message.
    pub delay: (Micros, Micros),
    /// How many of a million messages are late, up to `late_by`.
    pub late: u32,
    /// The most delay of a late message.
    pub late_by: Micros,
    /// How many of a million messages are lost.
    pub loss: u32,
    /// How many of a million messages come twice.
    pub duplication: u32,
    /// How much later than usual the second of two comes, at most.
    pub echo_by: Micros,
    /// Messages of one link overtake each other. Otherwise each link is a stream.
    pub reordering: bool,
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self {
            delay: (100, 2_000),
            late: 0,
            late_by: 0,
            loss: 0,
            duplication: 0,
            echo_by: 0,
            reordering: false,
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
    /// When the last message of a link arrives, for links that keep order: by sender, then receiver.
    last_arrival: Vec<Vec<Micros>>,
}

impl Network {
    /// A whole network of `hosts` addresses.
    pub fn new(options: LinkOptions, hosts: usize, rng: SimRng) -> Self {
        Self {
            options,
            rng,
            cut: BTreeSet::new(),
            last_arrival: vec![vec![0; hosts]; hosts],
        }
    }

    /// When copies of a message that leaves `from` at `at` reach `to`: none, one or two moments.
    pub fn arrivals(&mut self, from: HostId, to: HostId, at: Micros) -> [Option<Micros>; 2] {
        if self.is_cut(from, to) || self.rng.chance(self.options.loss) {
            return [None, None];
        }
        let first = self.arrival(from, to, at);
        let second = self.rng.chance(self.options.duplication).then(|| {
            let echo = self.rng.below(self.options.echo_by + 1);
            self.delay() + at + echo
        });
        [Some(first), second]
    }

    fn arrival(&mut self, from: HostId, to: HostId, at: Micros) -> Micros {
        let arrival = at + self.delay();
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

    /// A delay such as messages have, for traffic that isn't between nodes.
    pub fn delay(&mut self) -> Micros {
        let (least, most) = self.options.delay;
        if self.rng.chance(self.options.late) {
            self.rng.between(most, most.max(self.options.late_by))
        } else {
            self.rng.between(least, most)
        }
    }

    /// Whether a message on a link that isn't cut is lost.
    pub fn loses(&mut self) -> bool {
        self.rng.chance(self.options.loss)
    }

    /// Whether `from` can't reach `to`.
    pub fn is_cut(&self, from: HostId, to: HostId) -> bool {
        !self.cut.is_empty() && self.cut.contains(&(from, to))
    }

    /// Whether any link is cut.
    pub fn is_whole(&self) -> bool {
        self.cut.is_empty()
    }

    /// Cuts these links, and only these.
    pub fn set_cuts(&mut self, cut: BTreeSet<(HostId, HostId)>) {
        self.cut = cut;
    }

    /// Mends all links.
    pub fn heal(&mut self) {
        self.cut.clear();
    }

    /// Sets how links behave from now on.
    pub fn set_options(&mut self, options: LinkOptions) {
        self.options = options;
    }
}

/// The shapes of a partition, drawn at random.
pub fn draw_cuts(
    rng: &mut SimRng,
    hosts: usize,
    leader: Option<HostId>,
) -> BTreeSet<(HostId, HostId)> {
    let mut order: Vec<HostId> = (0..hosts).collect();
    rng.shuffle(&mut order);
    // Half of the time the leader is where it hurts: first in the order.
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
        // One host alone.
        0 => rest.iter().for_each(|other| both(first, *other, &mut cut)),
        // Two parts.
        1 => {
            let (left, right) = order.split_at(order.len() / 2);
            for (a, b) in left.iter().flat_map(|a| right.iter().map(move |b| (a, b))) {
                both(*a, *b, &mut cut);
            }
        }
        // A bridge: two parts that only `first` sees both of.
        2 => {
            let (left, right) = rest.split_at(rest.len() / 2);
            for (a, b) in left.iter().flat_map(|a| right.iter().map(move |b| (a, b))) {
                both(*a, *b, &mut cut);
            }
        }
        // A host that hears and can't speak, or speaks and can't hear.
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
        // One link, both ways or one way.
        4 => {
            if let Some(other) = rest.first() {
                cut.insert((first, *other));
                if rng.coin() {
                    cut.insert((*other, first));
                }
            }
        }
        // Any links.
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
