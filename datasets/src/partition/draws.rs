//! Random draws that are the same on every machine.

use chacha20::ChaCha20Rng;
use rand_core::Rng;

/// Shares that sum to one, from Gamma variates; in logarithms, because for a small `alpha` the
/// variates themselves are below the smallest `f64`.
pub(super) fn dirichlet_shares(n: usize, alpha: f64, rng: &mut ChaCha20Rng) -> Vec<f64> {
    let logs: Vec<f64> = (0..n).map(|_| log_gamma_variate(alpha, rng)).collect();
    let largest = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = logs.iter().map(|log| libm::exp(log - largest)).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

/// Logarithm of a Gamma(`alpha`, 1) variate; Marsaglia & Tsang 2000, with their boost for
/// `alpha < 1`: Gamma(a) = Gamma(a + 1) U^(1/a).
pub(super) fn log_gamma_variate(alpha: f64, rng: &mut ChaCha20Rng) -> f64 {
    if alpha < 1.0 {
        return log_gamma_variate(alpha + 1.0, rng) + libm::log(open_unit(rng)) / alpha;
    }
    let d = alpha - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = normal_variate(rng);
        let v = 1.0 + c * x;
        if v <= 0.0 {
            continue;
        }
        let log_v = 3.0 * libm::log(v);
        let u = open_unit(rng);
        if libm::log(u) < 0.5 * x * x + d - d * v * v * v + d * log_v {
            return libm::log(d) + log_v;
        }
    }
}

/// Standard normal, by Marsaglia's polar method.
fn normal_variate(rng: &mut ChaCha20Rng) -> f64 {
    loop {
        let (x, y) = (2.0 * open_unit(rng) - 1.0, 2.0 * open_unit(rng) - 1.0);
        let s = x * x + y * y;
        if s > 0.0 && s < 1.0 {
            return x * (-2.0 * libm::log(s) / s).sqrt();
        }
    }
}

/// Uniform in the open interval (0, 1).
fn open_unit(rng: &mut ChaCha20Rng) -> f64 {
    ((rng.next_u64() >> 12) as f64 + 0.5) * (1.0 / (1u64 << 52) as f64)
}

/// Fisher–Yates.
pub(super) fn shuffle(values: &mut [usize], rng: &mut ChaCha20Rng) {
    for i in (1..values.len()).rev() {
        values.swap(i, below(i as u64 + 1, rng) as usize);
    }
}

/// Uniform in `0..n`, without bias (Lemire 2019).
pub(super) fn below(n: u64, rng: &mut ChaCha20Rng) -> u64 {
    let threshold = n.wrapping_neg() % n;
    loop {
        let product = u128::from(rng.next_u64()) * u128::from(n);
        if product as u64 >= threshold {
            return (product >> 64) as u64;
        }
    }
}
