//! FedAdam (Reddi et al. 2021, algorithm 2, <https://arxiv.org/abs/2003.00295>).

/// The next second moment: `beta2 v + (1 - beta2) mean²`.
pub(super) fn second(beta2: f64, v: f64, mean: f64) -> f64 {
    beta2 * v + (1.0 - beta2) * mean * mean
}
