//! The exact ε of composed Gaussian releases without sampling.
//!
//! Source: Balle and Wang 2018 ([BW18], theorem 8). Compositions of Gaussians are Gaussian, with
//! `μ² = Σ 1/σ²`, also when each is chosen after seeing the last (Smith and Thakurta 2022).
//!
//! [BW18]: https://arxiv.org/abs/1805.06530

use std::f64::consts::{LN_2, SQRT_2};

use crate::log_math::{log_erfc, log_erfcx};

/// Bisections; each halves the error, so 200 exhaust a float whatever the bracket.
const BISECTIONS_MAX: u32 = 200;
/// Covers the float error of ε, upwards.
const RELATIVE_SLACK: f64 = 1e-9;
/// Covers the float error of the two tails' logarithmic ratio, upwards in δ.
const RATIO_SLACK: f64 = 1e-14;
/// Above this the tail bound is used, which is then exact to six digits.
const MU_MAX: f64 = 1e6;

/// The smallest ε at `delta` of a Gaussian release whose sensitivity is `mu` standard deviations.
///
/// Exact but for rounding upwards by 1e-9. `∞` for a `delta` outside `(0, 1)` or a `mu` that is
/// negative, infinite or NaN.
pub fn gaussian_epsilon(mu: f64, delta: f64) -> f64 {
    if !(mu >= 0.0 && mu.is_finite() && delta > 0.0 && delta < 1.0) {
        return f64::INFINITY;
    }
    let log_delta = libm::log(delta);
    let enough = |epsilon: f64| log_delta_at(mu, epsilon) <= log_delta;
    if mu == 0.0 || enough(0.0) {
        return 0.0;
    }
    // Enough by the tail bound of μ²/2-zCDP, up to rounding.
    let mut high = (mu * mu / 2.0 + mu * (-2.0 * log_delta).sqrt()) * (1.0 + RELATIVE_SLACK);
    if mu > MU_MAX || !enough(high) {
        return high;
    }
    let mut low = 0.0;
    for _ in 0..BISECTIONS_MAX {
        let middle = low + (high - low) / 2.0;
        if middle <= low || middle >= high {
            break;
        }
        if enough(middle) { high = middle } else { low = middle }
    }
    high * (1.0 + RELATIVE_SLACK)
}

/// `ln δ(ε)` with `δ(ε) = Φ(-z) - exp(ε) Φ(-z - μ)` and `z = ε/μ - μ/2`.
///
/// The densities at `z` and `z + μ` differ by `exp(ε)` exactly, so the ratio of the two tails is one
/// of Mills ratios, and no large ε is ever added to a large negative logarithm.
fn log_delta_at(mu: f64, epsilon: f64) -> f64 {
    let z = epsilon / mu - mu / 2.0;
    let log_ratio = log_erfcx((z + mu) / SQRT_2) - log_erfcx(z / SQRT_2);
    let first = log_erfc(z / SQRT_2) - LN_2;
    first + libm::log(-libm::expm1(log_ratio.min(0.0) - RATIO_SLACK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values_are_met() {
        for (mu, delta, expected) in
            [(1.0, 1e-5, 4.377_178_1), (2.0, 1e-5, 9.997_256_15), (10.0, 1e-5, 91.817_289_6)]
        {
            let epsilon = gaussian_epsilon(mu, delta);
            assert!((epsilon / expected - 1.0).abs() < 1e-7, "{mu}: {epsilon}");
        }
        // mpmath, 60 digits. A commonly quoted 793.058928 comes from a capped exponent.
        let epsilon = gaussian_epsilon((200.0_f64 / 0.16).sqrt(), 1e-6);
        assert!((epsilon / 792.120_865_812_999 - 1.0).abs() < 1e-8, "{epsilon}");
    }

    #[test]
    fn a_release_hidden_by_delta_alone_costs_nothing() {
        assert_eq!(gaussian_epsilon(1e-6, 1e-5), 0.0);
        assert_eq!(gaussian_epsilon(0.0, 1e-5), 0.0);
    }

    #[test]
    fn meaningless_parameters_promise_nothing() {
        for (mu, delta) in
            [(-1.0, 0.1), (f64::NAN, 0.1), (f64::INFINITY, 0.1), (1.0, 0.0), (1.0, 1.0)]
        {
            assert_eq!(gaussian_epsilon(mu, delta), f64::INFINITY);
        }
    }

    #[test]
    fn extremes_stay_between_the_trivial_bounds() {
        for mu in [1e-12_f64, 1e-6, 1e-3, 1e2, 1e4, 1e5, 1e6, 1e7, 1e100] {
            for delta in [1e-300_f64, 1e-20, 1e-5, 0.5] {
                let epsilon = gaussian_epsilon(mu, delta);
                let tail_bound = mu * mu / 2.0 + mu * (-2.0 * delta.ln()).sqrt();
                assert!(epsilon <= tail_bound * (1.0 + 1e-8), "{mu} {delta}: {epsilon}");
                if mu >= 100.0 {
                    assert!(epsilon >= 0.999 * mu * mu / 2.0, "{mu} {delta}: {epsilon}");
                }
            }
        }
    }

    #[test]
    fn epsilon_grows_with_mu_and_falls_with_delta() {
        let mut last = 0.0;
        for k in 1..60 {
            let epsilon = gaussian_epsilon(f64::from(k) * 0.25, 1e-6);
            assert!(epsilon > last);
            assert!(gaussian_epsilon(f64::from(k) * 0.25, 1e-7) > epsilon);
            last = epsilon;
        }
    }
}
