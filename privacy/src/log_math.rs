//! Arithmetic on logarithms, for quantities that over- or underflow.
//!
//! `libm` rather than `std`: its results are the same on every platform, so two machines calibrate
//! the same plan to the same bits and its digest agrees.

use std::f64::consts::PI;

/// Where the asymptotic series of `erfc` takes over.
const SERIES_FROM: f64 = 20.0;

/// `ln(exp(x) + exp(y))`.
pub(crate) fn log_add(x: f64, y: f64) -> f64 {
    let (low, high) = if x < y { (x, y) } else { (y, x) };
    if low == f64::NEG_INFINITY || high == f64::INFINITY {
        return high;
    }
    high + libm::log1p(libm::exp(low - high))
}

/// `ln(exp(x) - 1)` for `x > 0`; `-∞` at 0.
pub(crate) fn log_expm1(x: f64) -> f64 {
    if x > 40.0 { x + libm::log1p(-libm::exp(-x)) } else { libm::log(libm::expm1(x)) }
}

/// `ln(erfc(x))`, also where `erfc(x)` underflows.
pub(crate) fn log_erfc(x: f64) -> f64 {
    if x < SERIES_FROM { libm::log(libm::erfc(x)) } else { log_erfcx(x) - x * x }
}

/// `ln(exp(x²) erfc(x))`, for large `x` without the cancellation in that formula.
///
/// From 20 on by the asymptotic series `1/(x√π) · (1 - 1/(2x²) + 3/(4x⁴) - …)`, whose first neglected
/// term is below 1e-12 there.
pub(crate) fn log_erfcx(x: f64) -> f64 {
    if x < SERIES_FROM {
        return x * x + libm::log(libm::erfc(x));
    }
    let y = 1.0 / (2.0 * x * x);
    let tail = -y * (1.0 - 3.0 * y * (1.0 - 5.0 * y * (1.0 - 7.0 * y * (1.0 - 9.0 * y))));
    libm::log1p(tail) - libm::log(x) - 0.5 * libm::log(PI)
}

#[cfg(test)]
mod tests {
    use std::f64::consts::LN_2;

    use super::*;

    #[test]
    fn log_erfc_agrees_with_known_values() {
        // mpmath, 30 digits.
        for (x, expected) in [
            (-3.0, 0.693_136_135_250_442_1),
            (0.0, 0.0),
            (1.0, -1.849_605_509_933_248),
            (10.0, -102.879_889_024_844_89),
            (30.0, -903.974_117_110_643_9),
            (1000.0, -1_000_007.480_120_721),
        ] {
            let error = (log_erfc(x) - expected).abs();
            assert!(error <= 1e-12 * f64::abs(expected).max(1.0), "{x}: {}", log_erfc(x));
        }
    }

    #[test]
    fn log_erfc_is_continuous_where_the_formula_changes() {
        let below = libm::log(libm::erfc(20.0_f64.next_down()));
        assert!((log_erfc(20.0) - below).abs() < 1e-10);
        assert!((log_erfc(25.0) - libm::log(libm::erfc(25.0))).abs() < 1e-10);
    }

    #[test]
    fn sums_and_differences_survive_extremes() {
        assert_eq!(log_add(f64::NEG_INFINITY, 3.0), 3.0);
        assert_eq!(log_add(f64::INFINITY, 3.0), f64::INFINITY);
        assert!((log_add(1000.0, 1000.0) - (1000.0 + LN_2)).abs() < 1e-12);
        assert!((log_expm1(1e-9) - libm::log(1e-9)).abs() < 1e-8);
        assert_eq!(log_expm1(800.0), 800.0);
        assert_eq!(log_expm1(0.0), f64::NEG_INFINITY);
    }
}
