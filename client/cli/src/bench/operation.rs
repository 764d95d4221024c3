//! One operation of the load: what it asks, and how it is drawn.

use bytes::Bytes;
use shardkv_client::{Client, Error};

use crate::random::Random;

/// Kinds of writes that a load can mix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum WriteKind {
    /// Set a value
    Put,
    /// Add to a value: a few bytes, whatever --value-bytes says
    Append,
    /// Remove a key
    Delete,
    /// Compare and swap, mostly with a value that this client saw
    Cas,
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Get {
        key: Bytes,
    },
    Put {
        key: Bytes,
        value: Bytes,
    },
    Append {
        key: Bytes,
        suffix: Bytes,
    },
    Delete {
        key: Bytes,
    },
    Cas {
        key: Bytes,
        expected: Option<Bytes>,
        new: Bytes,
    },
}

/// The result of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Value(Option<Bytes>),
    Done,
    Length(u64),
    /// The key existed, or the swap took place.
    Was(bool),
}

impl Operation {
    pub(super) fn is_read(&self) -> bool {
        matches!(self, Self::Get { .. })
    }

    pub(super) fn key(&self) -> &Bytes {
        match self {
            Self::Get { key }
            | Self::Put { key, .. }
            | Self::Append { key, .. }
            | Self::Delete { key }
            | Self::Cas { key, .. } => key,
        }
    }

    /// Asks the cluster.
    pub(super) async fn run(&self, client: &Client) -> Result<Answer, Error> {
        match self.clone() {
            Self::Get { key } => client.get(key).await.map(Answer::Value),
            Self::Put { key, value } => client.put(key, value).await.map(|()| Answer::Done),
            Self::Append { key, suffix } => client.append(key, suffix).await.map(Answer::Length),
            Self::Delete { key } => client.delete(key).await.map(Answer::Was),
            Self::Cas { key, expected, new } => client
                .compare_and_swap(key, expected, Some(new))
                .await
                .map(Answer::Was),
        }
    }
}

/// Draws the operations of one task.
pub(super) struct Source {
    random: Random,
    seed: u64,
    task: u64,
    drawn: u64,
    shape: Shape,
    /// A key with the value that this task saw there last, so that some compare-and-swaps succeed.
    seen: Option<(Bytes, Option<Bytes>)>,
}

/// The parameters that all tasks of a run share.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) prefix: String,
    pub(super) key_space: u64,
    pub(super) value_bytes: usize,
    pub(super) reads_per_million: u32,
    pub(super) writes: Vec<WriteKind>,
    /// Readable values of which no two are equal, for a history.
    pub(super) unique: bool,
    /// Random bytes that values are cut from without copying: incompressible, as a store's worst case is.
    pub(super) noise: Bytes,
}

/// Bytes of noise at which a value may begin.
const NOISE_BYTES: usize = 1 << 16;

impl Shape {
    /// Noise for values of `value_bytes`.
    pub(super) fn noise(value_bytes: usize, seed: u64) -> Bytes {
        let mut random = Random::new(seed);
        let words = (NOISE_BYTES + value_bytes).div_ceil(8);
        (0..words)
            .flat_map(|_| random.next().to_le_bytes())
            .collect()
    }

    /// The key of a number.
    pub(super) fn key(&self, number: u64) -> Bytes {
        Bytes::from(format!("{}{number}", self.prefix))
    }
}

impl Source {
    /// The operations of task `task`.
    pub(super) fn new(shape: Shape, task: u64, seed: u64) -> Self {
        let mut mixer = Random::new(seed);
        let random = Random::new(mixer.next() ^ Random::new(task).next());
        Self {
            random,
            seed,
            task,
            drawn: 0,
            shape,
            seen: None,
        }
    }

    /// The next operation.
    pub(super) fn draw(&mut self) -> Operation {
        self.drawn += 1;
        let key = self.shape.key(self.random.below(self.shape.key_space));
        if self.random.chance(self.shape.reads_per_million) {
            return Operation::Get { key };
        }
        let kinds = &self.shape.writes;
        let chosen = usize::try_from(self.random.below(kinds.len() as u64)).unwrap_or(0);
        match kinds.get(chosen).copied().unwrap_or(WriteKind::Put) {
            WriteKind::Put => Operation::Put {
                key,
                value: self.value(),
            },
            WriteKind::Append => Operation::Append {
                key,
                suffix: self.token().into(),
            },
            WriteKind::Delete => Operation::Delete { key },
            WriteKind::Cas => {
                let (key, expected) = self.seen.take().unwrap_or((key, None));
                Operation::Cas {
                    key,
                    expected,
                    new: self.value(),
                }
            }
        }
    }

    /// Remembers what an operation showed of its key.
    pub(super) fn learn(&mut self, operation: &Operation, answer: &Answer) {
        let seen = match (operation, answer) {
            (Operation::Get { key }, Answer::Value(value)) => (key.clone(), value.clone()),
            (Operation::Put { key, value }, Answer::Done) => (key.clone(), Some(value.clone())),
            (Operation::Delete { key }, _) => (key.clone(), None),
            (Operation::Cas { key, new, .. }, Answer::Was(true)) => {
                (key.clone(), Some(new.clone()))
            }
            _ => return,
        };
        self.seen = Some(seen);
    }

    /// Text that no other operation of the run has, nor of a run with another seed.
    fn token(&self) -> String {
        format!("{}.{}.{};", self.seed, self.task, self.drawn)
    }

    fn value(&mut self) -> Bytes {
        let length = self.shape.value_bytes;
        if self.shape.unique {
            let token = self.token();
            return format!("{token:x<length$}").into();
        }
        let start = usize::try_from(self.random.below(NOISE_BYTES as u64)).unwrap_or(0);
        self.shape.noise.slice(start..start + length)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn shape(unique: bool, reads_per_million: u32, writes: &[WriteKind]) -> Shape {
        Shape {
            prefix: "k".into(),
            key_space: 10,
            value_bytes: 32,
            reads_per_million,
            writes: writes.to_vec(),
            unique,
            noise: Shape::noise(32, 1),
        }
    }

    #[test]
    fn equal_seeds_draw_equal_operations() {
        let draw = |task, seed| {
            let mut source = Source::new(shape(false, 500_000, &[WriteKind::Put]), task, seed);
            (0..100).map(|_| source.draw()).collect::<Vec<_>>()
        };
        assert_eq!(draw(3, 1), draw(3, 1));
        assert_ne!(draw(3, 1), draw(4, 1));
        assert_ne!(draw(3, 1), draw(3, 2));
    }

    #[test]
    fn the_mix_is_what_was_asked_for() {
        let all = [
            WriteKind::Put,
            WriteKind::Append,
            WriteKind::Delete,
            WriteKind::Cas,
        ];
        let mut source = Source::new(shape(false, 250_000, &all), 0, 1);
        let mut counts = [0u32; 5];
        for _ in 0..10_000 {
            let kind = match source.draw() {
                Operation::Get { .. } => 0,
                Operation::Put { value, .. } => {
                    assert_eq!(value.len(), 32);
                    1
                }
                Operation::Append { .. } => 2,
                Operation::Delete { .. } => 3,
                Operation::Cas { .. } => 4,
            };
            counts[kind] += 1;
        }
        assert!((2_300..2_700).contains(&counts[0]), "{counts:?}");
        assert!(
            counts[1..].iter().all(|n| (1_700..2_050).contains(n)),
            "{counts:?}"
        );
    }

    #[test]
    fn values_of_a_history_are_unique_text() {
        let mut values = HashSet::new();
        for task in 0..4 {
            let mut source = Source::new(
                shape(true, 0, &[WriteKind::Put, WriteKind::Append]),
                task,
                1,
            );
            for _ in 0..500 {
                let (Operation::Put { value, .. } | Operation::Append { suffix: value, .. }) =
                    source.draw()
                else {
                    panic!("only puts and appends");
                };
                assert!(value.is_ascii());
                assert!(values.insert(value));
            }
        }
    }

    #[test]
    fn swaps_build_on_what_was_seen() {
        let mut source = Source::new(shape(true, 0, &[WriteKind::Cas]), 0, 1);
        let first = source.draw();
        assert!(matches!(&first, Operation::Cas { expected: None, .. }));
        source.learn(&first, &Answer::Was(true));
        let (
            Operation::Cas { key, new, .. },
            Operation::Cas {
                key: again,
                expected,
                ..
            },
        ) = (first, source.draw())
        else {
            panic!("only swaps");
        };
        assert_eq!((key, Some(new)), (again, expected));
    }
}
