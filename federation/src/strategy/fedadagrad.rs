//! FedAdagrad (Reddi et al. 2021, algorithm 2, <https://arxiv.org/abs/2003.00295>).

/// The next second moment: `v + mean²`.
pub(super) fn second(v: f64, mean: f64) -> f64 {
    v + mean * mean
}
