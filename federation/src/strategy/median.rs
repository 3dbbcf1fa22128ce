//! The coordinate-wise median (Yin et al. 2018, Algorithm 1, Option I,
//! <https://arxiv.org/abs/1803.01498>): right while fewer than half of the clients are wrong.

use std::ops::Range;

use super::{Fold, Updates};

/// Twice the median of each coordinate, and 2: of an even number it is the mean of the middle two.
pub(super) fn sum<U: Updates + ?Sized>(
    fold: &Fold,
    range: &Range<usize>,
    updates: &mut U,
) -> Result<(Vec<i64>, u64), U::Error> {
    let sums = fold.by_column(range, updates, |column| {
        let n = column.len();
        let (below, upper, _) = column.select_nth_unstable(n / 2);
        let upper = i64::from(*upper);
        if n % 2 == 1 {
            return 2 * upper;
        }
        upper + i64::from(*below.iter().max().expect("an even number of updates is at least 2"))
    })?;
    Ok((sums, 2))
}
