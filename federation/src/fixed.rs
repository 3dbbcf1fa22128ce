//! Fixed point: updates are integers from the moment they leave the trainer.
//!
//! A sum of integers does not depend on the order of arrival, so simulation and deployment end
//! in the same bits, and secure aggregation is modular addition.  Both directions of the
//! conversion are in this file.

use fearless_simd::{Level, dispatch};

use crate::Delta;

/// A value that fixed point cannot hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FixedPointError {
    /// NaN or infinite.
    #[error(
        "the trained model is not finite at parameter {index}; lower training.optimizer.learning_rate"
    )]
    NotFinite {
        /// Position in the flat vector.
        index: usize,
    },
    /// Past the range of 32 bits.
    #[error(
        "the model's change at parameter {index} passes the range of ±{limit}; lower \
         training.optimizer.learning_rate or aggregation.fixed_point_bits"
    )]
    OutOfRange {
        /// Position in the flat vector.
        index: usize,
        /// Largest change that the plan's fixed point holds.
        limit: u32,
    },
    /// Vectors of different length.
    #[error("the trained model has {after} parameters, its start {before}")]
    Length {
        /// Of the starting model.
        before: usize,
        /// Of the trained model.
        after: usize,
    },
}

/// The grid of updates: multiples of 2^-`bits`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FixedPoint {
    bits: u32,
}

impl FixedPoint {
    /// Most fractional bits: a change of ±2 must fit.
    pub const BITS_MAX: u32 = 30;

    /// A grid with `bits` fractional bits, at most [`BITS_MAX`](Self::BITS_MAX).
    #[must_use]
    pub fn new(bits: u32) -> Option<Self> {
        (bits <= Self::BITS_MAX).then_some(Self { bits })
    }

    /// `after - before`, both `[n_parameters]`, rounded to the grid (half to even).
    ///
    /// # Errors
    /// [`FixedPointError`] if a coordinate is not finite or out of range.
    pub fn delta(&self, before: &[f32], after: &[f32]) -> Result<Delta, FixedPointError> {
        if before.len() != after.len() {
            return Err(FixedPointError::Length { before: before.len(), after: after.len() });
        }
        let scale = self.steps_per_unit();
        let limit = (1u32 << 31) >> self.bits;
        let mut values = vec![0; before.len()];
        if dispatch!(Level::new(), _ => round(before, after, scale, &mut values)) {
            return Ok(Delta::new(values));
        }
        // One of them does not fit; the first is named.
        for (index, (b, a)) in before.iter().zip(after).enumerate() {
            let change = f64::from(*a) - f64::from(*b);
            if !change.is_finite() {
                return Err(FixedPointError::NotFinite { index });
            }
            if rounded(change * scale).abs() > f64::from(i32::MAX) {
                return Err(FixedPointError::OutOfRange { index, limit });
            }
        }
        unreachable!("one of them did not fit")
    }

    /// Grid steps in one unit of the model's values.
    pub(crate) fn steps_per_unit(&self) -> f64 {
        f64::from(1u32 << self.bits)
    }

    /// The weighted mean of deltas: `sum / weight_total`, back from the grid.
    #[must_use]
    pub fn mean(&self, sum: i64, weight_total: u64) -> f64 {
        sum as f64 / (weight_total as f64 * self.steps_per_unit())
    }

    /// What `rate` times the [`mean`](Self::mean) of each of `sums` makes of `base`; no sum passes
    /// `weight_total` times an `i32`.
    pub(crate) fn stepped(
        &self,
        base: &[f32],
        sums: &[i64],
        weight_total: u64,
        rate: f64,
    ) -> Vec<f32> {
        let steps = weight_total as f64 * self.steps_per_unit();
        let mut next = vec![0.0; base.len()];
        if weight_total <= SMALL_WEIGHT_MAX {
            dispatch!(Level::new(), _ => step(base, sums, steps, rate, small, &mut next));
        } else {
            step(base, sums, steps, rate, |sum| sum as f64, &mut next);
        }
        next
    }
}

/// 1.5 * 2^52: what is at most 2^51 in size and added to it stands in its mantissa, in whole numbers.
const MIDDLE: f64 = 6_755_399_441_055_744.0;
/// Largest total weight whose sums are at most 2^51 in size.
const SMALL_WEIGHT_MAX: u64 = 1 << 20;

/// Writes each change times `scale`, rounded, to `values`; `false` if one is not finite or passes an `i32`.
#[inline(always)]
fn round(before: &[f32], after: &[f32], scale: f64, values: &mut [i32]) -> bool {
    let mut fits = true;
    for ((value, before), after) in values.iter_mut().zip(before).zip(after) {
        let steps = rounded((f64::from(*after) - f64::from(*before)) * scale);
        // False for NaN too.
        fits &= steps.abs() <= f64::from(i32::MAX);
        *value = steps as i32;
    }
    fits
}

/// `steps` rounded half to even, exactly up to 2^51 in size and to something as large beyond: the sum with
/// 1.5 * 2^52 has no digits below 1. The library's function is a call for each value.
#[inline(always)]
fn rounded(steps: f64) -> f64 {
    (steps + MIDDLE) - MIDDLE
}

#[inline(always)]
fn step(
    base: &[f32],
    sums: &[i64],
    steps: f64,
    rate: f64,
    number: impl Fn(i64) -> f64,
    next: &mut [f32],
) {
    for ((next, base), sum) in next.iter_mut().zip(base).zip(sums) {
        *next = (f64::from(*base) + rate * (number(*sum) / steps)) as f32;
    }
}

/// `sum`, at most 2^51 in size, as the number that it is: added to 1.5 * 2^52 in the bits of its mantissa.
/// The conversion is one at a time; of these, several are one instruction.
#[inline(always)]
fn small(sum: i64) -> f64 {
    f64::from_bits(MIDDLE.to_bits().wrapping_add_signed(sum)) - MIDDLE
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn steps_at_the_edges_of_small_sums_are_the_means() {
        let grid = FixedPoint::new(22).unwrap();
        for weight in [1, 3, SMALL_WEIGHT_MAX - 1, SMALL_WEIGHT_MAX, SMALL_WEIGHT_MAX + 1, 1 << 32]
        {
            let weighted = |value: i32| i64::from(value) * weight as i64;
            let (low, high) = (weighted(i32::MIN), weighted(i32::MAX));
            let sums = [low, low + 1, -1, 0, 1, high - 1, high, low / 3, high / 7];
            let base = [0.1, -3.0, 1e-9, -0.0, 7.5, 0.0, 1e9, f32::MIN_POSITIVE, -1.0];
            let expected = base.iter().zip(sums).map(|(base, sum)| {
                ((f64::from(*base) + 0.7 * grid.mean(sum, weight)) as f32).to_bits()
            });
            let next = grid.stepped(&base, &sums, weight, 0.7);
            assert!(next.iter().map(|value| value.to_bits()).eq(expected), "{weight}");
        }
    }

    #[test]
    fn not_finite_and_out_of_range_are_named() {
        let grid = FixedPoint::new(22).unwrap();
        let error = grid.delta(&[0.0, 0.0], &[1.0, f32::NAN]).unwrap_err();
        assert_eq!(error, FixedPointError::NotFinite { index: 1 });
        let error = grid.delta(&[0.0], &[600.0]).unwrap_err();
        assert_eq!(error, FixedPointError::OutOfRange { index: 0, limit: 512 });
        assert!(grid.delta(&[0.0], &[511.0]).is_ok());
    }

    #[test]
    fn halves_are_rounded_to_even_and_large_values_stay_large() {
        let limit = f64::from(i32::MAX);
        for steps in
            [0.0, 0.5, 1.5, 2.5, -0.5, -1.5, 0.49999999999999994, limit, limit + 0.5, -limit]
        {
            assert_eq!(rounded(steps), steps.round_ties_even(), "{steps}");
        }
        for steps in [1e16, -1e16, 1e300, -1e300, f64::INFINITY, f64::NEG_INFINITY] {
            assert!(rounded(steps).abs() > limit, "{steps}");
        }
        assert!(rounded(f64::NAN).is_nan());
    }

    proptest! {
        #[test]
        fn one_delta_comes_back_within_half_a_grid_step(b in -8f32..8., a in -8f32..8.) {
            let grid = FixedPoint::new(22).unwrap();
            let delta = grid.delta(&[b], &[a]).unwrap();
            let back = grid.mean(i64::from(delta.values()[0]), 1);
            prop_assert!((back - (f64::from(a) - f64::from(b))).abs() <= 0.5 / f64::from(1 << 22));
        }
    }
}
