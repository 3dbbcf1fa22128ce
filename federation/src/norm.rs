//! L2 norms and distances of updates, exact: sums of squares of integers do not depend on any order.

use crate::FixedPoint;

/// A sum of squares of 32-bit magnitudes, exact up to 2^32 of them.
///
/// The low and the high halves of the squares are summed apart, so that neither overflows and the
/// compiler can take several coordinates at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SquareSum {
    low: u64,
    high: u64,
}

impl SquareSum {
    /// Adds the squares of the delta whose little-endian bytes, four a coordinate, are `bytes`.
    ///
    /// # Panics
    /// If `bytes` do not end with a whole coordinate.
    pub fn add(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<4>();
        assert!(rest.is_empty(), "a chunk ends with a whole coordinate");
        for word in words {
            self.add_magnitude(i32::from_le_bytes(*word).unsigned_abs());
        }
    }

    /// Adds the squares of the differences of two deltas of one length.
    ///
    /// # Panics
    /// As [`add`](Self::add), and if the lengths differ.
    pub fn add_difference(&mut self, one: &[u8], other: &[u8]) {
        let ((one, rest), (other, rest_of_other)) = (one.as_chunks::<4>(), other.as_chunks::<4>());
        assert!(rest.is_empty() && rest_of_other.is_empty(), "a chunk ends with a coordinate");
        assert_eq!(one.len(), other.len(), "two deltas of one length");
        for (one, other) in one.iter().zip(other) {
            self.add_magnitude(i32::from_le_bytes(*one).abs_diff(i32::from_le_bytes(*other)));
        }
    }

    fn add_magnitude(&mut self, magnitude: u32) {
        let square = u64::from(magnitude) * u64::from(magnitude);
        self.low += square & 0xffff_ffff;
        self.high += square >> 32;
    }

    /// The sum.
    #[must_use]
    pub fn total(&self) -> u128 {
        (u128::from(self.high) << 32) + u128::from(self.low)
    }

    /// The square root, rounded up: compared with an integer it decides as the exact norm would.
    #[must_use]
    pub fn norm(&self) -> u64 {
        let total = self.total();
        let root = total.isqrt();
        let norm = if root * root == total { root } else { root + 1 };
        u64::try_from(norm).expect("2^32 squares below 2^64 have a root below 2^48")
    }
}

impl FixedPoint {
    /// An L2 bound in grid steps, rounded down; saturates.
    #[must_use]
    pub fn norm_steps(&self, norm_l2: f64) -> u64 {
        (norm_l2 * self.steps_per_unit()).floor() as u64
    }

    /// A norm of so many grid steps, in the units of the model.
    #[must_use]
    pub fn norm_l2(&self, steps: u64) -> f64 {
        steps as f64 / self.steps_per_unit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(values: &[i32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    // BAD_INPUTS 42
    #[test]
    fn a_norm_is_told_from_its_neighbours_to_the_last_grid_step() {
        let grid = FixedPoint::new(22).unwrap();
        for (values, norm) in [
            (vec![3, -4], 5),
            (vec![3, -4, 1], 6),
            (vec![], 0),
            (vec![i32::MIN], 1 << 31),
            (vec![i32::MIN, 1], (1 << 31) + 1),
        ] {
            let mut sum = SquareSum::default();
            sum.add(&bytes(&values));
            assert_eq!(sum.norm(), norm, "{values:?}");
        }
        assert_eq!(grid.norm_steps(1.0), 1 << 22);
        assert_eq!(grid.norm_steps(f64::from_bits(1.0f64.to_bits() - 1)), (1 << 22) - 1);
        assert_eq!(grid.norm_l2(3 << 21), 1.5);
    }

    proptest! {
        #[test]
        fn squares_and_distances_are_exact(pairs in prop::collection::vec(any::<(i32, i32)>(), 0..64)) {
            let (one, other): (Vec<i32>, Vec<i32>) = pairs.iter().copied().unzip();
            let mut squares = SquareSum::default();
            squares.add(&bytes(&one));
            let expected: i128 = one.iter().map(|v| i128::from(*v).pow(2)).sum();
            prop_assert_eq!(squares.total(), expected as u128);
            let mut distance = SquareSum::default();
            distance.add_difference(&bytes(&one), &bytes(&other));
            let expected: i128 =
                pairs.iter().map(|(a, b)| (i128::from(*a) - i128::from(*b)).pow(2)).sum();
            prop_assert_eq!(distance.total(), expected as u128);
        }
    }
}
