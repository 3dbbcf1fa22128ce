//! The coordinate-wise trimmed mean (Yin et al. 2018, Algorithm 1, Option II,
//! <https://arxiv.org/abs/1803.01498>): right while at most `trim` clients are wrong.

use std::ops::Range;

use super::{Fold, Updates};

/// The sum of each coordinate without its `trim` smallest and largest values, and how many are left.
pub(super) fn sum<U: Updates + ?Sized>(
    fold: &Fold,
    range: &Range<usize>,
    updates: &mut U,
    trim: u32,
) -> Result<(Vec<i64>, u64), U::Error> {
    let trim = trim as usize;
    let n = fold.n_updates();
    assert!(2 * trim < n, "the plan wants more contributions than are trimmed");
    let sums = fold.by_column(range, updates, |column| {
        column.sort_unstable();
        column[trim..n - trim].iter().map(|value| i64::from(*value)).sum()
    })?;
    Ok((sums, (n - 2 * trim) as u64))
}
