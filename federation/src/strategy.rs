//! The server's step: from the exact sum of updates to the next model.

use crate::{Accumulator, Aggregation, FixedPoint};

/// The next model's values for one range of coordinates: `base`, `[n_coordinates]`, plus the
/// server's step on the weighted mean of the updates.
///
/// FedAvg (McMahan et al. 2017, Algorithm 1): `base + server_learning_rate * mean`.
///
/// # Panics
/// If `base` and `updates` differ in length, or nobody contributed: [`Run`](crate::Run) never
/// asks for it.
#[must_use]
pub fn aggregate(settings: &Aggregation, base: &[f32], updates: &Accumulator) -> Vec<f32> {
    assert_eq!(base.len(), updates.sum().len(), "base and sum have the same coordinates");
    assert!(updates.weight_total() > 0, "a round closes with at least one contribution");
    let grid = FixedPoint::new(settings.fixed_point_bits).expect("the plan was validated");
    base.iter()
        .zip(updates.sum())
        .map(|(value, sum)| {
            let mean = grid.mean(*sum, updates.weight_total());
            (f64::from(*value) + settings.server_learning_rate * mean) as f32
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Strategy;

    #[test]
    fn fedavg_is_the_weighted_mean() {
        let settings = Aggregation {
            strategy: Strategy::Fedavg,
            server_learning_rate: 1.0,
            fixed_point_bits: 22,
        };
        let grid = FixedPoint::new(22).unwrap();
        let base = [1.0f32, -2.0];
        let mut updates = Accumulator::new(2);
        for (after, weight) in [([2.0f32, -2.0], 1), ([5.0, 0.0], 3)] {
            updates.add(&grid.delta(&base, &after).unwrap().to_bytes(), weight);
        }
        assert_eq!(aggregate(&settings, &base, &updates), [4.25, -0.5]);
    }
}
