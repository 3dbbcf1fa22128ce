//! Momentum at the server (FedAvgM, Hsu et al. 2019, section 4.3, <https://arxiv.org/abs/1909.06335>):
//! `m' = momentum m + mean`, `x' = x + rate m'`.

use super::Moved;

/// The step of one coordinate from the last momentum `m`.
pub(super) fn moved(momentum: f64, m: f64, mean: f64) -> Moved {
    let m = momentum * m + mean;
    Moved { direction: m, states: [m, 0.0] }
}
