//! FedNova (Wang et al. 2020, <https://arxiv.org/abs/2007.07481>): updates count by step.
//!
//! A client that takes more steps goes farther, and federated averaging then ends in the optimum of another
//! objective.  FedNova divides each update by how far its steps reach, `a_i`, and goes as far as they do in the
//! mean (equation 7): `x' = x + rate * tau_eff * sum p_i D_i / a_i` with `tau_eff = sum p_i a_i`, where the `p_i`
//! are the contributors' shares of their weight.
//!
//! As a weighted mean it is `x' = x + rate * gain * (sum u_i D_i) / (sum u_i)` with `u_i = w_i / a_i` and
//! `gain = tau_eff * sum u_i / sum w_i`: so the fold sums integers as ever, with other weights.

use crate::accumulator::WEIGHT_TOTAL_MAX;
use crate::{Optimizer, Plan};

/// How far `n_steps` local steps with gradients of 1 and a learning rate of 1 go: the paper's `|a_i|_1`.  For
/// plain SGD it is their number, with momentum and with a proximal term of weight `mu` the sums of its sections
/// 4.1 and A.1, as the recurrence that they solve.
fn reach(plan: &Plan, n_steps: u32) -> f64 {
    let Optimizer::Sgd { learning_rate, momentum } = plan.training.optimizer else {
        return f64::from(n_steps);
    };
    let pull = plan.aggregation.strategy.proximal_mu() * learning_rate;
    let (mut gone, mut velocity) = (0.0, 0.0);
    if momentum == 0.0 && pull == 0.0 {
        return f64::from(n_steps);
    }
    for _ in 0..n_steps {
        velocity = momentum * velocity + 1.0 - pull * gone;
        gone += velocity;
    }
    gone
}

/// The weights of `counted`, each a weight and a number of local steps, by which the fold makes FedNova's step,
/// and the gain that goes with them.
///
/// # Panics
/// If a client's steps reach nowhere, which the plan rules out.
pub(crate) fn normalised(plan: &Plan, counted: &[(u64, u32)]) -> (Vec<u64>, f64) {
    let mut last = (0, 0.0);
    let mut reaches = Vec::with_capacity(counted.len());
    for (_, n_steps) in counted {
        if last.0 != *n_steps {
            last = (*n_steps, reach(plan, *n_steps));
        }
        assert!(last.1 > 0.0, "the plan's steps go forward");
        reaches.push(last.1);
    }
    let all = || counted.iter().map(|(weight, _)| *weight as f64).zip(&reaches);
    let total: f64 = all().map(|(weight, _)| weight).sum();
    let effective = all().map(|(weight, reach)| weight * reach).sum::<f64>() / total;
    let by_step: f64 = all().map(|(weight, reach)| weight / reach).sum();
    let scale = (WEIGHT_TOTAL_MAX / 2) as f64 / by_step;
    let weights = all().map(|(weight, reach)| ((weight / reach * scale) as u64).max(1)).collect();
    (weights, effective * by_step / total)
}
