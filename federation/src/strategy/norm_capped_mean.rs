//! The weighted mean of updates whose L2 norms are capped (Sun et al. 2019, section 4,
//! <https://arxiv.org/abs/1911.07963>): a scaled-up update moves the model by no more than the cap.

use std::ops::Range;

use super::{Fold, Updates, ranges};
use crate::Accumulator;
use crate::norm::SquareSum;

/// `1.0` in the units of [`factors`].
const ONE: u64 = 1 << 32;

/// By what each update is multiplied so that its norm is at most `norm_max_l2`, in units of 2^-32;
/// rounded down, so that the capped norm never passes the cap.
pub(super) fn factors<U: Updates + ?Sized>(
    fold: &Fold,
    norm_max_l2: f64,
    updates: &mut U,
) -> Result<Vec<u64>, U::Error> {
    let cap = fold.step.grid.norm_steps(norm_max_l2);
    let mut bytes = Vec::new();
    let mut factors = Vec::with_capacity(fold.n_updates());
    for index in 0..fold.n_updates() {
        let mut squares = SquareSum::default();
        for range in ranges(fold.step.n_shared, super::CHUNK_COORDINATES_MAX) {
            bytes.resize(4 * range.len(), 0);
            updates.read(index, range.start, &mut bytes)?;
            squares.add(&bytes);
        }
        factors.push(match squares.norm() {
            norm if norm <= cap => ONE,
            norm => u64::try_from(u128::from(cap) * u128::from(ONE) / u128::from(norm))
                .expect("the cap is below the norm"),
        });
    }
    Ok(factors)
}

/// The weighted sum of the capped updates over `range`, and the total weight.
pub(super) fn sum<U: Updates + ?Sized>(
    range: &Range<usize>,
    updates: &mut U,
    weights: &[u64],
    factors: &[u64],
) -> Result<(Vec<i64>, u64), U::Error> {
    let mut bytes = vec![0; 4 * range.len()];
    let mut sum = Accumulator::new(range.len());
    for (index, (weight, factor)) in weights.iter().zip(factors).enumerate() {
        updates.read(index, range.start, &mut bytes)?;
        if *factor < ONE {
            for word in bytes.as_chunks_mut::<4>().0 {
                *word = scaled(i32::from_le_bytes(*word), *factor).to_le_bytes();
            }
        }
        sum.add(&bytes, *weight);
    }
    let weight_total = sum.weight_total();
    Ok((sum.into_sum(), weight_total))
}

/// `value` times `factor`, which is below one, rounded towards zero.
fn scaled(value: i32, factor: u64) -> i32 {
    (i64::from(value) * factor as i64 / ONE as i64) as i32
}
