//! The server's step: from the updates of a round to the next model, chunk by chunk.
//!
//! Coordinator and simulator run this very code; they differ only in where an update's bytes lie
//! ([`Updates`]).  Every strategy ends in an integer sum and a total weight a coordinate, so the next
//! model is the same to the bit wherever it is computed, in whatever order the updates arrived.
//! Memory is bounded by [`CHUNKS_BYTES_MAX`], whatever the model's size and the cohort's.
//!
//! Deliberately not here: who counts and with which weight ([`Run`](crate::Run) says so).

mod fedavg;
mod krum;
mod median;
mod norm_capped_mean;
mod trimmed_mean;

pub(crate) use krum::UPDATES_MAX as KRUM_UPDATES_MAX;

use std::ops::Range;

use crate::accumulator::WEIGHT_TOTAL_MAX;
use crate::{Aggregation, FixedPoint, Strategy, UpdateEncoding};

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
    strategy: Strategy,
    server_learning_rate: f64,
    grid: FixedPoint,
    weights: Vec<u64>,
    n_coordinates: usize,
    prepared: Prepared,
    /// Bytes of updates between two steps: a fresh buffer a step costs a tenth of the time.
    buffer: Vec<u8>,
}

impl Fold {
    /// A fold of updates of `n_coordinates` each, with one positive weight an update; a strategy that
    /// looks at whole updates reads them here, once.
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
        settings: &Aggregation,
        weights: Vec<u64>,
        n_coordinates: usize,
        updates: &mut U,
    ) -> Result<Self, U::Error> {
        let total: u64 = weights.iter().sum();
        assert!((1..=WEIGHT_TOTAL_MAX).contains(&total), "the plan bounds the total weight");
        let mut fold = Self {
            strategy: settings.strategy,
            server_learning_rate: settings.server_learning_rate,
            grid: FixedPoint::new(settings.fixed_point_bits).expect("the plan was validated"),
            weights,
            n_coordinates,
            prepared: Prepared::Plain,
            buffer: Vec::new(),
        };
        fold.prepared = match settings.strategy {
            Strategy::Fedavg
            | Strategy::Fedbuff { .. }
            | Strategy::Median
            | Strategy::TrimmedMean { .. } => Prepared::Plain,
            Strategy::Krum { byzantine } => {
                Prepared::Selected(krum::select(&fold, byzantine, 1, updates)?)
            }
            Strategy::MultiKrum { byzantine, keep } => {
                Prepared::Selected(krum::select(&fold, byzantine, keep, updates)?)
            }
            Strategy::NormCappedMean { norm_max_l2 } => {
                Prepared::Scaled(norm_capped_mean::factors(&fold, norm_max_l2, updates)?)
            }
        };
        Ok(fold)
    }

    /// Ranges of coordinates that together are all of them: what to give to [`step`](Self::step).
    pub fn chunks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let at_once = match self.strategy {
            Strategy::Median | Strategy::TrimmedMean { .. } => self.all_at_once(),
            _ => CHUNK_COORDINATES_MAX,
        };
        ranges(self.n_coordinates, at_once)
    }

    /// The next model's values of the coordinates `range`, of which `base` holds the last ones:
    /// `base + server_learning_rate * mean`, with what the strategy takes for the mean.
    ///
    /// # Errors
    /// If the updates cannot be read.
    ///
    /// # Panics
    /// If `base` has another length than `range`.
    pub fn step<U: Updates + ?Sized>(
        &mut self,
        range: Range<usize>,
        base: &[f32],
        updates: &mut U,
    ) -> Result<Vec<f32>, U::Error> {
        assert_eq!(base.len(), range.len(), "base and range have the same coordinates");
        let (sum, weight_total) = match (&self.prepared, self.strategy) {
            (Prepared::Selected(kept), _) => {
                let once = kept.iter().map(|index| (*index, 1));
                fedavg::sum(&range, updates, once, &mut self.buffer)?
            }
            (Prepared::Scaled(factors), _) => {
                norm_capped_mean::sum(&range, updates, &self.weights, factors)?
            }
            (Prepared::Plain, Strategy::Median) => median::sum(self, &range, updates)?,
            (Prepared::Plain, Strategy::TrimmedMean { trim }) => {
                trimmed_mean::sum(self, &range, updates, trim)?
            }
            (Prepared::Plain, _) => {
                if let Some(sum) = updates.weighted_sum(&range, &self.weights)? {
                    let total = self.weights.iter().sum();
                    return Ok(self.grid.stepped(base, &sum, total, self.server_learning_rate));
                }
                let weighted = self.weights.iter().copied().enumerate();
                fedavg::sum(&range, updates, weighted, &mut self.buffer)?
            }
        };
        Ok(self.grid.stepped(base, &sum, weight_total, self.server_learning_rate))
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

/// `0..n` in pieces of at most `at_once`.
fn ranges(n: usize, at_once: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n).step_by(at_once).map(move |from| from..(from + at_once).min(n))
}

#[cfg(test)]
mod tests;
