//! The server's step: from the updates of a round to the next model, chunk by chunk.
//!
//! Coordinator and simulator run this very code; they differ only in where an update's bytes lie
//! ([`Updates`]).  Every strategy ends in an integer sum and a total weight a coordinate, so the next
//! model is the same to the bit wherever it is computed, in whatever order the updates arrived.
//! What a strategy remembers from round to round lies in the model's blob, behind the parameters.
//! Memory is bounded by [`CHUNKS_BYTES_MAX`], whatever the model's size and the cohort's.
//!
//! Deliberately not here: who counts and with which weight ([`Run`](crate::Run) says so).

mod adaptive;
mod fedadagrad;
mod fedadam;
mod fedavg;
mod fedavgm;
pub(crate) mod fednova;
mod fedyogi;
mod krum;
mod median;
mod norm_capped_mean;
mod scaffold;
mod trimmed_mean;

pub(crate) use krum::UPDATES_MAX as KRUM_UPDATES_MAX;

use std::ops::Range;

use crate::accumulator::WEIGHT_TOTAL_MAX;
use crate::{Parameters, ServerStep, Strategy, UpdateEncoding};

/// Most coordinates that are folded at once: few enough that their sum stays in the processor's cache.
const CHUNK_COORDINATES_MAX: usize = 1 << 14;
/// Most bytes of updates that are held at once.
const CHUNKS_BYTES_MAX: usize = 16 << 20;

/// Where the bytes of a round's updates lie.
pub trait Updates {
    /// Why bytes cannot be read.
    type Error;

    /// Copies into `into` the little-endian bytes, four a coordinate, of the update at `index` from
    /// the coordinate `from` on.
    ///
    /// # Errors
    /// If they cannot be read.
    fn read(&mut self, index: usize, from: usize, into: &mut [u8]) -> Result<(), Self::Error>;

    /// The sum of all updates over `range`, each as often as its weight says, if it is known without
    /// reading them one by one; `None` otherwise, which is the default.
    ///
    /// # Errors
    /// If it cannot be had.
    fn weighted_sum(
        &mut self,
        range: &Range<usize>,
        weights: &[u64],
    ) -> Result<Option<Vec<i64>>, Self::Error> {
        let _ = (range, weights);
        Ok(None)
    }
}

/// Where the values of a round's model lie.
pub trait Base<E> {
    /// Copies into `into` the values of the model from position `from` on.
    ///
    /// # Errors
    /// If they cannot be read.
    fn read(&mut self, from: usize, into: &mut [f32]) -> Result<(), E>;
}

/// A model in memory.
impl<E> Base<E> for &[f32] {
    fn read(&mut self, from: usize, into: &mut [f32]) -> Result<(), E> {
        into.copy_from_slice(&self[from..from + into.len()]);
        Ok(())
    }
}

/// Updates in memory.
impl Updates for [&[u8]] {
    type Error = std::convert::Infallible;

    fn read(&mut self, index: usize, from: usize, into: &mut [u8]) -> Result<(), Self::Error> {
        into.copy_from_slice(&self[index][4 * from..4 * from + into.len()]);
        Ok(())
    }
}

/// Encoded updates in memory, of so many coordinates each.
#[derive(Debug)]
pub struct Encoded<'a> {
    /// The bytes of each.
    pub updates: &'a [&'a [u8]],
    /// How they are encoded.
    pub encoding: UpdateEncoding,
    /// How many coordinates each has.
    pub n_coordinates: usize,
}

impl Updates for Encoded<'_> {
    type Error = std::convert::Infallible;

    fn read(&mut self, index: usize, from: usize, into: &mut [u8]) -> Result<(), Self::Error> {
        let range = from..from + into.len() / 4;
        let span = self.encoding.span(&range, self.n_coordinates);
        let bytes = &self.updates[index][span.start as usize..span.end as usize];
        self.encoding.decode(&range, bytes, into);
        Ok(())
    }
}

/// What a strategy has found out of whole updates before the first coordinate is folded.
#[derive(Clone, Debug, PartialEq)]
enum Prepared {
    /// Nothing was needed.
    Plain,
    /// The updates that count, by index.
    Selected(Vec<usize>),
    /// A factor an update, in units of 2^-32.
    Scaled(Vec<u64>),
}

/// The fold of one round's updates into the next model.
#[derive(Clone, Debug)]
pub struct Fold {
    step: ServerStep,
    /// The server's learning rate, with the factor that the round's updates give it.
    rate: f64,
    weights: Vec<u64>,
    prepared: Prepared,
    /// Bytes of updates between two steps: a fresh buffer a step costs a tenth of the time.
    buffer: Vec<u8>,
}

impl Fold {
    /// A fold of updates by `step`, with one positive weight an update; a strategy that looks at whole
    /// updates reads them here, once.  `gain` is the round's factor on the server's learning rate, 1 but
    /// with FedNova: [`Effect::Aggregate`](crate::Effect::Aggregate) says it with the weights.
    ///
    /// Updates stand in the order of their clients' ids, so that a tie is broken as in the papers.
    ///
    /// # Errors
    /// If the updates cannot be read.
    ///
    /// # Panics
    /// If nobody contributed, the total weight passes 2^32, or fewer contributed than the strategy
    /// stands: the plan and [`Run`](crate::Run) have checked it.
    pub fn new<U: Updates + ?Sized>(
        step: ServerStep,
        weights: Vec<u64>,
        gain: f64,
        updates: &mut U,
    ) -> Result<Self, U::Error> {
        let total: u64 = weights.iter().sum();
        assert!((1..=WEIGHT_TOTAL_MAX).contains(&total), "the plan bounds the total weight");
        let strategy = step.strategy;
        let rate = step.server_learning_rate * gain;
        let mut fold = Self { step, rate, weights, prepared: Prepared::Plain, buffer: Vec::new() };
        fold.prepared = match strategy {
            Strategy::Krum { byzantine } => {
                Prepared::Selected(krum::select(&fold, byzantine, 1, updates)?)
            }
            Strategy::MultiKrum { byzantine, keep } => {
                Prepared::Selected(krum::select(&fold, byzantine, keep, updates)?)
            }
            Strategy::NormCappedMean { norm_max_l2 } => {
                Prepared::Scaled(norm_capped_mean::factors(&fold, norm_max_l2, updates)?)
            }
            _ => Prepared::Plain,
        };
        Ok(fold)
    }

    /// Ranges of the round's model that together are all of it, in order: what to give to
    /// [`step`](Self::step).  What the strategy remembers comes last, and is made from the updates a second
    /// and a third time, so that nothing as large as a model is ever held.
    pub fn chunks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let at_once = match self.step.strategy {
            Strategy::Median | Strategy::TrimmedMean { .. } => self.all_at_once(),
            _ => CHUNK_COORDINATES_MAX,
        };
        let (n_shared, n_kept) = (self.step.n_shared, self.step.n_kept);
        let kept = ranges(n_kept, CHUNK_COORDINATES_MAX).map(move |range| moved(range, n_shared));
        let states: Vec<usize> =
            (0..self.step.n_states).map(|state| self.step.state(state).start).collect();
        let states = states
            .into_iter()
            .flat_map(move |start| ranges(n_shared, at_once).map(move |range| moved(range, start)));
        ranges(n_shared, at_once).chain(kept).chain(states)
    }

    /// The next model's values of `range`, which lies in one section of the model's layout: shared
    /// parameters, what no update touches, or one thing that the strategy remembers.  `base` is the round's
    /// model.
    ///
    /// # Errors
    /// If updates or model cannot be read.
    ///
    /// # Panics
    /// If `range` lies in two sections, or outside of the model.
    pub fn step<U: Updates + ?Sized, B: Base<U::Error> + ?Sized>(
        &mut self,
        range: Range<usize>,
        base: &mut B,
        updates: &mut U,
    ) -> Result<Vec<f32>, U::Error> {
        let mut own = vec![0.0; range.len()];
        base.read(range.start, &mut own)?;
        let Some((state, coordinates)) = self.locate(&range) else { return Ok(own) };
        let (sum, weight_total) = self.sum(&coordinates, updates)?;
        let n_states = self.step.n_states;
        if n_states == 0 {
            return Ok(self.step.grid.stepped(&own, &sum, weight_total, self.rate));
        }
        let mut states = vec![vec![0.0; own.len()]; n_states];
        for (index, values) in states.iter_mut().enumerate() {
            base.read(self.step.state(index).start + coordinates.start, values)?;
        }
        let share = weight_total as f64 / self.step.control.weight_named;
        for (position, (own, sum)) in own.iter_mut().zip(sum).enumerate() {
            let before = |index: usize| states.get(index).map_or(0.0, |s| f64::from(s[position]));
            let mean = self.step.grid.mean(sum, weight_total);
            let moved = self.step.moved([before(0), before(1)], mean, share);
            *own = match state {
                None => (f64::from(*own) + self.rate * moved.direction) as f32,
                Some(state) => moved.states[state] as f32,
            };
        }
        Ok(own)
    }

    /// Of which remembered thing, if of any, and of which coordinates `range` is; `None` where no update
    /// touches it.
    fn locate(&self, range: &Range<usize>) -> Option<(Option<usize>, Range<usize>)> {
        let contains = |section: &Range<usize>| {
            assert!(
                range.end <= section.start
                    || range.start >= section.end
                    || (section.start <= range.start && range.end <= section.end),
                "a range lies in one section"
            );
            section.contains(&range.start)
        };
        assert!(range.end <= self.step.n_values(), "a range lies in the model");
        if contains(&(0..self.step.n_shared)) {
            return Some((None, range.clone()));
        }
        (0..self.step.n_states).find_map(|state| {
            let section = self.step.state(state);
            let coordinates = || range.start - section.start..range.end - section.start;
            contains(&section).then(|| (Some(state), coordinates()))
        })
    }

    /// The sum that the strategy makes of the updates over `range`, and what it is to be divided by.
    fn sum<U: Updates + ?Sized>(
        &mut self,
        range: &Range<usize>,
        updates: &mut U,
    ) -> Result<(Vec<i64>, u64), U::Error> {
        match (&self.prepared, self.step.strategy) {
            (Prepared::Selected(kept), _) => {
                let once = kept.iter().map(|index| (*index, 1));
                fedavg::sum(range, updates, once, &mut self.buffer)
            }
            (Prepared::Scaled(factors), _) => {
                norm_capped_mean::sum(range, updates, &self.weights, factors)
            }
            (Prepared::Plain, Strategy::Median) => median::sum(self, range, updates),
            (Prepared::Plain, Strategy::TrimmedMean { trim }) => {
                trimmed_mean::sum(self, range, updates, trim)
            }
            (Prepared::Plain, _) => {
                if let Some(sum) = updates.weighted_sum(range, &self.weights)? {
                    return Ok((sum, self.weights.iter().sum()));
                }
                let weighted = self.weights.iter().copied().enumerate();
                fedavg::sum(range, updates, weighted, &mut self.buffer)
            }
        }
    }

    fn n_updates(&self) -> usize {
        self.weights.len()
    }

    /// How many coordinates of every update may be held together.
    fn all_at_once(&self) -> usize {
        (CHUNKS_BYTES_MAX / (4 * self.n_updates())).clamp(1, CHUNK_COORDINATES_MAX)
    }

    /// Reads the same `range` of every update, one after the other, into `into`.
    fn read_all<U: Updates + ?Sized>(
        &self,
        range: &Range<usize>,
        updates: &mut U,
        into: &mut Vec<u8>,
    ) -> Result<(), U::Error> {
        let n_bytes = 4 * range.len();
        into.resize(n_bytes * self.n_updates(), 0);
        for (index, chunk) in into.chunks_exact_mut(n_bytes).enumerate() {
            updates.read(index, range.start, chunk)?;
        }
        Ok(())
    }

    /// The sums of what `of_column` makes of each coordinate's values of all updates.
    fn by_column<U: Updates + ?Sized>(
        &self,
        range: &Range<usize>,
        updates: &mut U,
        of_column: impl Fn(&mut [i32]) -> i64,
    ) -> Result<Vec<i64>, U::Error> {
        let mut bytes = Vec::new();
        self.read_all(range, updates, &mut bytes)?;
        let (words, _) = bytes.as_chunks::<4>();
        let mut column = vec![0; self.n_updates()];
        let sums = (0..range.len()).map(|coordinate| {
            for (value, row) in column.iter_mut().zip(words.chunks_exact(range.len())) {
                *value = i32::from_le_bytes(row[coordinate]);
            }
            of_column(&mut column)
        });
        Ok(sums.collect())
    }
}

/// What one coordinate's mean change makes of what is remembered of it, and where the parameter goes.
struct Moved {
    /// Times the server's learning rate it is the parameter's change.
    direction: f64,
    states: [f64; 2],
}

impl ServerStep {
    /// The step of one coordinate by its `mean` change, with what was remembered of it; `share` is that of the
    /// named clients' weight that contributed.  In f64, of numbers that are on the disk as f32.
    fn moved(&self, states: [f64; 2], mean: f64, share: f64) -> Moved {
        match self.strategy {
            Strategy::Fedavgm { momentum } => fedavgm::moved(momentum, states[0], mean),
            Strategy::Fedadagrad { beta1, tau } => {
                adaptive::moved(beta1, tau, states[0], fedadagrad::second(states[1], mean), mean)
            }
            Strategy::Fedadam { beta1, beta2, tau } => adaptive::moved(
                beta1,
                tau,
                states[0],
                fedadam::second(beta2, states[1], mean),
                mean,
            ),
            Strategy::Fedyogi { beta1, beta2, tau } => adaptive::moved(
                beta1,
                tau,
                states[0],
                fedyogi::second(beta2, states[1], mean),
                mean,
            ),
            Strategy::Scaffold => scaffold::moved(self.control.path, share, states[0], mean),
            _ => Moved { direction: mean, states },
        }
    }

    /// The next model after `base` by a mean change that was made elsewhere, `[n_shared]`: where noise was added
    /// to it, the step is post-processing.
    ///
    /// # Panics
    /// If `base` or `mean` has another length.
    #[must_use]
    pub fn follow(&self, base: &Parameters, mean: &[f32]) -> Parameters {
        let mut next = base.values().to_vec();
        assert_eq!((next.len(), mean.len()), (self.n_values(), self.n_shared), "one model's");
        for (coordinate, mean) in mean.iter().enumerate() {
            let place = |state: usize| self.state(state).start + coordinate;
            let before = |state: usize| match state < self.n_states {
                true => f64::from(next[place(state)]),
                false => 0.0,
            };
            let moved = self.moved([before(0), before(1)], f64::from(*mean), 1.0);
            let change = self.server_learning_rate * moved.direction;
            next[coordinate] = (f64::from(next[coordinate]) + change) as f32;
            for state in 0..self.n_states {
                next[place(state)] = moved.states[state] as f32;
            }
        }
        Parameters::new(next)
    }
}

/// `range`, so many places later.
fn moved(range: Range<usize>, by: usize) -> Range<usize> {
    range.start + by..range.end + by
}

/// `0..n` in pieces of at most `at_once`.
fn ranges(n: usize, at_once: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n).step_by(at_once).map(move |from| from..(from + at_once).min(n))
}

#[cfg(test)]
mod tests;
