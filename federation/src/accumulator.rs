//! The exact sum of updates, chunk by chunk.
//!
//! An accumulator holds one chunk of coordinates at a time, so that memory does not grow with
//! the model or with the number of clients.

/// Largest total weight: 2^32 times an `i32` still fits an `i64`.
pub(crate) const WEIGHT_TOTAL_MAX: u64 = 1 << 32;

/// Weighted integer sum of one range of coordinates.
#[derive(Clone, Debug)]
pub struct Accumulator {
    sum: Vec<i64>,
    weight_total: u64,
}

impl Accumulator {
    /// Zeros for `n_coordinates` coordinates.
    #[must_use]
    pub fn new(n_coordinates: usize) -> Self {
        Self { sum: vec![0; n_coordinates], weight_total: 0 }
    }

    /// Adds `weight` times the delta whose little-endian bytes, four a coordinate, are `bytes`.
    ///
    /// # Panics
    /// If the length differs from the accumulator's, or the total weight passes 2^32: the plan
    /// and [`Run`](crate::Run) have checked both.
    pub fn add(&mut self, bytes: &[u8], weight: u64) {
        let (words, rest) = bytes.as_chunks::<4>();
        assert!(rest.is_empty() && words.len() == self.sum.len(), "a chunk of another length");
        self.weight_total += weight;
        assert!(self.weight_total <= WEIGHT_TOTAL_MAX, "the plan bounds the total weight");
        let weight = weight as i64;
        for (sum, word) in self.sum.iter_mut().zip(words) {
            *sum += weight * i64::from(i32::from_le_bytes(*word));
        }
    }

    /// The weighted sum, `[n_coordinates]`.
    #[must_use]
    pub fn sum(&self) -> &[i64] {
        &self.sum
    }

    /// The sum of weights.
    #[must_use]
    pub fn weight_total(&self) -> u64 {
        self.weight_total
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn extreme_updates_at_the_weight_limit_do_not_overflow() {
        let mut accumulator = Accumulator::new(1);
        accumulator.add(&i32::MIN.to_le_bytes(), WEIGHT_TOTAL_MAX);
        assert_eq!(accumulator.sum(), [i64::MIN]);
    }

    proptest! {
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
                accumulator.sum().to_vec()
            };
            let mut turned = updates.clone();
            turned.rotate_left(turn % updates.len());
            prop_assert_eq!(fold(&updates), fold(&turned));
        }
    }
}
