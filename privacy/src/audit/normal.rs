//! The normal distribution, and the tails of the binomial and the chi-square.
//!
//! `libm` rather than `std`, as in the accountants: the same figures on every platform.

use std::f64::consts::{PI, SQRT_2};

use crate::log_math::{log_add, log_erfcx};

/// Halley steps after the first guess, which is good to 4.5e-4; each triples the digits.
const HALLEY_STEPS: u32 = 4;

/// `Φ(x)`, also where it is tiny.
pub fn normal_cdf(x: f64) -> f64 {
    0.5 * libm::erfc(-x / SQRT_2)
}

/// The probability that a standard normal variable is further from 0 than `x` on either side.
pub fn two_sided(x: f64) -> f64 {
    libm::erfc(x.abs() / SQRT_2)
}

/// `Φ⁻¹(p)`: `-∞` at 0, `∞` at 1, NaN outside.
///
/// The rational guess of Abramowitz and Stegun 26.2.23, improved by Halley's method; relative error
/// about 1e-14.
pub fn normal_quantile(p: f64) -> f64 {
    if !(p > 0.0 && p < 1.0) {
        return match p {
            0.0 => f64::NEG_INFINITY,
            1.0 => f64::INFINITY,
            _ => f64::NAN,
        };
    }
    if p > 0.5 {
        return -normal_quantile(1.0 - p);
    }
    let t = (-2.0 * libm::log(p)).sqrt();
    let mut x = (2.515_517 + t * (0.802_853 + t * 0.010_328))
        / (1.0 + t * (1.432_788 + t * (0.189_269 + t * 0.001_308)))
        - t;
    for _ in 0..HALLEY_STEPS {
        // Φ(x) / φ(x) is a Mills ratio, so that nothing underflows far out.
        let log_cdf_over_density = log_erfcx(-x / SQRT_2) + 0.5 * libm::log(PI / 2.0);
        let log_density = -0.5 * x * x - 0.5 * libm::log(2.0 * PI);
        let step = libm::exp(log_cdf_over_density) - libm::exp(libm::log(p) - log_density);
        x -= step / (1.0 + x * step / 2.0);
    }
    x
}

/// The probability of at least `k` successes in `n` trials of probability `p`.
///
/// Summed in logarithms; the largest term comes first, so nothing is lost to underflow.
pub fn binomial_upper_tail(n: u64, k: u64, p: f64) -> f64 {
    if k == 0 || p >= 1.0 {
        return 1.0;
    }
    if k > n || p <= 0.0 {
        return 0.0;
    }
    if (k as f64) < n as f64 * p {
        // The lower tail is the shorter sum.
        return (1.0 - libm::exp(log_tail(n, k - 1, 1.0 - p, p))).max(0.0);
    }
    libm::exp(log_tail(n, n - k, p, 1.0 - p)).min(1.0)
}

/// `ln P(failures ≤ failures_max)` where a success has probability `p` and a failure `not_p`, for
/// a `failures_max` below the mean: terms fall from the last to the first.
fn log_tail(n: u64, failures_max: u64, p: f64, not_p: f64) -> f64 {
    let (n, f) = (n as f64, failures_max as f64);
    let log_choose = libm::lgamma(n + 1.0) - libm::lgamma(f + 1.0) - libm::lgamma(n - f + 1.0);
    let first = log_choose + f * libm::log(not_p) + (n - f) * libm::log(p);
    let mut sum = first;
    let mut term = first;
    let log_odds = libm::log(p) - libm::log(not_p);
    let mut failures = f;
    while failures > 0.0 {
        // C(n, f-1) / C(n, f) = f / (n - f + 1).
        term += libm::log(failures / (n - failures + 1.0)) + log_odds;
        failures -= 1.0;
        sum = log_add(sum, term);
        if term < sum - 50.0 {
            break;
        }
    }
    sum
}

/// About the probability that a chi-square variable of `df` degrees of freedom is at least
/// `statistic` (Wilson and Hilferty 1931).
pub fn chi_square_upper_tail(statistic: f64, df: f64) -> f64 {
    let k = 2.0 / (9.0 * df);
    let z = (libm::cbrt(statistic / df) - (1.0 - k)) / k.sqrt();
    0.5 * libm::erfc(z / SQRT_2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_scipy() {
        for (p, expected) in [
            (0.5, 0.0),
            (0.975, 1.959_963_984_540_054),
            (0.01, -2.326_347_874_040_841),
            (1e-10, -6.361_340_902_404_056),
            (1e-100, -21.273_453_560_965_32),
            (1e-300, -37.047_096_299_361_2),
        ] {
            let x = normal_quantile(p);
            assert!((x - expected).abs() < 1e-9 * expected.abs().max(1e-3), "{p}: {x}");
        }
        assert_eq!(normal_quantile(0.0), f64::NEG_INFINITY);
        assert_eq!(normal_quantile(1.0), f64::INFINITY);
        assert!(normal_quantile(1.5).is_nan() && normal_quantile(f64::NAN).is_nan());
    }

    #[test]
    fn quantile_and_distribution_are_inverse() {
        for k in -70..=70 {
            let x = f64::from(k) / 10.0;
            // Above 0, `Φ(x)` itself has few digits left.
            let back = normal_quantile(normal_cdf(x));
            let tolerance = if x > 0.0 { 1e-15 * libm::exp(x * x / 2.0) * 10.0 } else { 0.0 };
            assert!((back - x).abs() < 1e-11 + tolerance, "{x}: {back}");
        }
    }

    #[test]
    fn binomial_tails_are_exact_sums() {
        for (n, p) in [(1_u64, 0.5_f64), (10, 0.3), (60, 0.9), (100, 0.5)] {
            for k in 0..=n + 1 {
                let sum: f64 = (k..=n)
                    .map(|i| {
                        let choose = (0..i).map(|j| (n - j) as f64 / (j + 1) as f64);
                        choose.product::<f64>() * p.powi(i as i32) * (1.0 - p).powi((n - i) as i32)
                    })
                    .sum();
                let tail = binomial_upper_tail(n, k, p);
                assert!((tail - sum).abs() < 1e-11 * sum.max(1e-3), "{n} {k} {p}: {tail} {sum}");
            }
        }
    }

    #[test]
    fn far_tails_keep_their_digits() {
        let tail = binomial_upper_tail(10_000_000, 60, 1e-6);
        // scipy.stats.binom.sf(59, 10**7, 1e-6).
        assert!((tail / 6.521_101_33e-27 - 1.0).abs() < 1e-6, "{tail:e}");
        assert!((chi_square_upper_tail(18.307, 10.0) - 0.05).abs() < 1e-3);
        assert!((two_sided(1.959_963_984_540_054) - 0.05).abs() < 1e-12);
    }
}
