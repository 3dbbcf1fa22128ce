//! Federated averaging (McMahan et al. 2017, Algorithm 1, <https://arxiv.org/abs/1602.05629>): the
//! weighted mean of the updates.

use std::ops::Range;

use super::Updates;
use crate::Accumulator;
use crate::accumulator::LANES;

/// The weighted sum of the updates at those indices over `range`, and the total weight; `buffer` is
/// overwritten.
pub(super) fn sum<U: Updates + ?Sized>(
    range: &Range<usize>,
    updates: &mut U,
    weighted: impl Iterator<Item = (usize, u64)>,
    buffer: &mut Vec<u8>,
) -> Result<(Vec<i64>, u64), U::Error> {
    let n_bytes = 4 * range.len();
    buffer.resize(LANES * n_bytes, 0);
    let mut sum = Accumulator::new(range.len());
    let weighted: Vec<(usize, u64)> = weighted.collect();
    for group in weighted.chunks(LANES) {
        for ((index, _), bytes) in group.iter().zip(buffer.chunks_exact_mut(n_bytes)) {
            updates.read(*index, range.start, bytes)?;
        }
        let chunk = |lane: usize| &buffer[lane * n_bytes..(lane + 1) * n_bytes];
        match group {
            [(_, a), (_, b), (_, c), (_, d)] => {
                sum.add_four([chunk(0), chunk(1), chunk(2), chunk(3)], [*a, *b, *c, *d]);
            }
            few => (0..).zip(few).for_each(|(lane, (_, weight))| sum.add(chunk(lane), *weight)),
        }
    }
    let weight_total = sum.weight_total();
    Ok((sum.into_sum(), weight_total))
}
