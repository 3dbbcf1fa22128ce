//! Krum and Multi-Krum (Blanchard et al. 2017, <https://papers.nips.cc/paper/6617>): the updates
//! nearest to their neighbours count, the others do not.

use super::{Fold, Updates, ranges};
use crate::norm::SquareSum;

/// Most updates whose distances are held: one a pair.
pub(crate) const UPDATES_MAX: usize = 1000;

/// Indices of the `keep` updates with the smallest scores, ascending.
///
/// The score of an update is the sum of its squared distances to its `n - byzantine - 2` nearest
/// others (section 4); of equal scores the one of the smaller client id counts, as there.  Distances
/// are exact integers, so no rounding decides.
pub(super) fn select<U: Updates + ?Sized>(
    fold: &Fold,
    byzantine: u32,
    keep: u32,
    updates: &mut U,
) -> Result<Vec<usize>, U::Error> {
    let n = fold.n_updates();
    let byzantine = byzantine as usize;
    assert!((2 * byzantine + 3..=UPDATES_MAX).contains(&n), "the plan bounds both");
    let mut distances = vec![SquareSum::default(); n * n];
    let mut bytes = Vec::new();
    for range in ranges(fold.step.n_shared, fold.all_at_once()) {
        fold.read_all(&range, updates, &mut bytes)?;
        let chunk = |index: usize| &bytes[4 * range.len() * index..4 * range.len() * (index + 1)];
        for one in 0..n {
            for other in 0..one {
                distances[n * one + other].add_difference(chunk(one), chunk(other));
            }
        }
    }
    let score = |one: usize| -> u128 {
        let others = (0..n).filter(|other| *other != one);
        let mut distances: Vec<u128> =
            others.map(|other| distances[n * one.max(other) + one.min(other)].total()).collect();
        distances.sort_unstable();
        distances[..n - byzantine - 2].iter().sum()
    };
    let mut ranked: Vec<(u128, usize)> = (0..n).map(|index| (score(index), index)).collect();
    ranked.sort_unstable();
    let mut kept: Vec<usize> =
        ranked.into_iter().take(keep as usize).map(|(_, index)| index).collect();
    kept.sort_unstable();
    Ok(kept)
}
