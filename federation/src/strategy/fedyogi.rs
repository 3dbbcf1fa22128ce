//! FedYogi (Reddi et al. 2021, algorithm 2, <https://arxiv.org/abs/2003.00295>): the second moment falls only
//! as fast as it rises.

/// The next second moment: `v - (1 - beta2) mean² sign(v - mean²)`.
pub(super) fn second(beta2: f64, v: f64, mean: f64) -> f64 {
    let square = mean * mean;
    let sign = match v.total_cmp(&square) {
        std::cmp::Ordering::Less => -1.0,
        std::cmp::Ordering::Equal => 0.0,
        std::cmp::Ordering::Greater => 1.0,
    };
    v - (1.0 - beta2) * square * sign
}
