//! What the adaptive server steps have in common (Reddi et al. 2021, algorithm 2,
//! <https://arxiv.org/abs/2003.00295>): `m' = beta1 m + (1 - beta1) mean`, `x' = x + rate m' / (sqrt(v') + tau)`,
//! with a `v'` of each one's own that starts at tau squared, and no correction of the bias.

use super::Moved;

/// The step of one coordinate from the last first moment `m` and the next second moment `v`.
pub(super) fn moved(beta1: f64, tau: f64, m: f64, v: f64, mean: f64) -> Moved {
    let m = beta1 * m + (1.0 - beta1) * mean;
    Moved { direction: m / (v.sqrt() + tau), states: [m, v] }
}
