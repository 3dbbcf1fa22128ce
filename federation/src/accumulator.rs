//! The exact sum of updates, chunk by chunk.
//!
//! An accumulator holds one chunk of coordinates at a time, so that memory does not grow with
//! the model or with the number of clients.  Its loops are compiled for several processors and the widest
//! instructions are chosen at run time; integers make every choice give the same bits.

use fearless_simd::{Level, dispatch};

/// Largest total weight: 2^32 times an `i32` still fits an `i64`.
pub(crate) const WEIGHT_TOTAL_MAX: u64 = 1 << 32;

/// Updates that are added in one pass over the sum.
pub(crate) const LANES: usize = 4;

/// Weighted integer sum of one range of coordinates.
#[derive(Clone, Debug)]
pub struct Accumulator {
    /// The sum of `weight * (value + 2^31)`, modulo 2^64: unsigned products of 32 bits are what every
    /// processor multiplies several at a time.  [`into_sum`](Self::into_sum) takes the shift off.
    shifted: Vec<u64>,
    weight_total: u64,
}

impl Accumulator {
    /// Zeros for `n_coordinates` coordinates.
    #[must_use]
    pub fn new(n_coordinates: usize) -> Self {
        Self { shifted: vec![0; n_coordinates], weight_total: 0 }
    }

    /// Adds `weight` times the delta whose little-endian bytes, four a coordinate, are `bytes`.
    ///
    /// # Panics
    /// If the length differs from the accumulator's, or the total weight passes 2^32: the plan
    /// and [`Run`](crate::Run) have checked both.
    pub fn add(&mut self, bytes: &[u8], weight: u64) {
        let words = self.words(bytes);
        self.weigh(weight);
        let sums = &mut self.shifted;
        dispatch!(Level::new(), _ => add_one(sums, words, weight));
    }

    /// Adds four deltas, each times its weight, in one pass over the sum: half as long as one by one.
    ///
    /// # Panics
    /// As [`add`](Self::add).
    pub fn add_four(&mut self, deltas: [&[u8]; LANES], weights: [u64; LANES]) {
        let Ok(narrow) = weights.map(u32::try_from).into_iter().collect::<Result<Vec<_>, _>>()
        else {
            // One of them has all the weight there may be.
            deltas.into_iter().zip(weights).for_each(|(bytes, weight)| self.add(bytes, weight));
            return;
        };
        let [a, b, c, d] = deltas.map(|bytes| self.words(bytes));
        weights.into_iter().for_each(|weight| self.weigh(weight));
        let narrow: [u32; LANES] = std::array::from_fn(|lane| narrow[lane]);
        let sums = &mut self.shifted;
        dispatch!(Level::new(), _ => add_all(sums, [a, b, c, d], narrow));
    }

    fn words<'a>(&self, bytes: &'a [u8]) -> &'a [[u8; 4]] {
        let (words, rest) = bytes.as_chunks::<4>();
        let same = rest.is_empty() && words.len() == self.shifted.len();
        assert!(same, "a chunk of another length");
        words
    }

    fn weigh(&mut self, weight: u64) {
        self.weight_total += weight;
        assert!(self.weight_total <= WEIGHT_TOTAL_MAX, "the plan bounds the total weight");
    }

    /// The weighted sum, `[n_coordinates]`.
    #[must_use]
    pub fn into_sum(self) -> Vec<i64> {
        let shift = self.weight_total << 31;
        self.shifted.into_iter().map(|sum| sum.wrapping_sub(shift) as i64).collect()
    }

    /// The sum of weights.
    #[must_use]
    pub fn weight_total(&self) -> u64 {
        self.weight_total
    }
}

#[inline(always)]
fn add_one(sums: &mut [u64], words: &[[u8; 4]], weight: u64) {
    for (sum, word) in sums.iter_mut().zip(words) {
        *sum = sum.wrapping_add(shifted(word).wrapping_mul(weight));
    }
}

/// Weights of 32 bits: a product of two such is one instruction for several coordinates.
#[inline(always)]
fn add_all(sums: &mut [u64], [a, b, c, d]: [&[[u8; 4]]; LANES], weights: [u32; LANES]) {
    let w = weights.map(u64::from);
    for ((((sum, a), b), c), d) in sums.iter_mut().zip(a).zip(b).zip(c).zip(d) {
        *sum = sum
            .wrapping_add(shifted(a).wrapping_mul(w[0]))
            .wrapping_add(shifted(b).wrapping_mul(w[1]))
            .wrapping_add(shifted(c).wrapping_mul(w[2]))
            .wrapping_add(shifted(d).wrapping_mul(w[3]));
    }
}

/// The value of `word` plus 2^31.
#[inline(always)]
fn shifted(word: &[u8; 4]) -> u64 {
    u64::from(u32::from_le_bytes(*word) ^ (1 << 31))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn extreme_updates_at_the_weight_limit_do_not_overflow() {
        let mut accumulator = Accumulator::new(1);
        accumulator.add(&i32::MIN.to_le_bytes(), WEIGHT_TOTAL_MAX);
        assert_eq!(accumulator.into_sum(), [i64::MIN]);
        let mut accumulator = Accumulator::new(1);
        let largest = i32::MAX.to_le_bytes();
        accumulator.add_four([&largest; 4], [WEIGHT_TOTAL_MAX, 0, 0, 0]);
        assert_eq!(accumulator.into_sum(), [i64::from(i32::MAX) << 32]);
    }

    proptest! {
        #[test]
        fn four_at_once_are_four_one_by_one(
            values in any::<[[i32; 3]; 4]>(),
            weights in prop::array::uniform4(0u64..=1 << 30),
        ) {
            let bytes = values.map(|v| v.map(i32::to_le_bytes).concat());
            let mut at_once = Accumulator::new(3);
            at_once.add_four(bytes.each_ref().map(Vec::as_slice), weights);
            let mut one_by_one = Accumulator::new(3);
            for (bytes, weight) in bytes.iter().zip(weights) {
                one_by_one.add(bytes, weight);
            }
            let expected: Vec<i64> = (0..3)
                .map(|i| (0..4).map(|u| i64::from(values[u][i]) * weights[u] as i64).sum())
                .collect();
            prop_assert_eq!(&at_once.into_sum(), &expected);
            prop_assert_eq!(&one_by_one.into_sum(), &expected);
        }

        #[test]
        fn the_sum_does_not_depend_on_the_order(
            updates in prop::collection::vec((any::<[i32; 3]>(), 0u64..1 << 24), 1..8),
            turn in any::<usize>(),
        ) {
            let fold = |updates: &[([i32; 3], u64)]| {
                let mut accumulator = Accumulator::new(3);
                for (values, weight) in updates {
                    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                    accumulator.add(&bytes, *weight);
                }
                accumulator.into_sum()
            };
            let mut turned = updates.clone();
            turned.rotate_left(turn % updates.len());
            prop_assert_eq!(fold(&updates), fold(&turned));
        }
    }
}
