//! The per-example clipping rule of DP-SGD (Abadi et al. 2016, algorithm 1, line 6).
//!
//! The rule is here so that there is one; the gradients are scaled where they are made.

use crate::error::PrivacyError;

/// The factor that brings an example of L2 norm `norm` to at most `clip_norm_l2`: `min(1, C/norm)`.
///
/// An example whose norm is not finite gets 0 and so contributes nothing (its coordinates must then
/// be dropped, not multiplied: `0 * NaN` is NaN). A zero norm gets 1. A negative norm, or a
/// `clip_norm_l2` that is not positive and finite, gets 0: no rule, no contribution.
pub fn clip_factor(norm: f64, clip_norm_l2: f64) -> f64 {
    let meaningful =
        norm.is_finite() && norm >= 0.0 && clip_norm_l2.is_finite() && clip_norm_l2 > 0.0;
    if !meaningful {
        0.0
    } else if norm <= clip_norm_l2 {
        1.0
    } else {
        clip_norm_l2 / norm
    }
}

/// Clips `values` to L2 norm at most `norm_max` and returns the norm before clipping.
///
/// The norm is taken in f64; rounding the result to f32 may exceed `norm_max` by 2⁻²⁴, which the
/// plan's slack covers.
///
/// # Errors
/// [`PrivacyError::NotFinite`] if a coordinate is NaN or infinite, [`PrivacyError::OutOfRange`]
/// unless `norm_max` is positive and finite; `values` is then unchanged.
pub fn clip_in_place(values: &mut [f32], norm_max: f64) -> Result<f64, PrivacyError> {
    if !(norm_max.is_finite() && norm_max > 0.0) {
        return Err(PrivacyError::OutOfRange {
            what: "clipping norm",
            value: norm_max,
            allowed: "positive and finite",
        });
    }
    if let Some(index) = values.iter().position(|value| !value.is_finite()) {
        return Err(PrivacyError::NotFinite { index });
    }
    let norm = values.iter().map(|&value| f64::from(value) * f64::from(value)).sum::<f64>().sqrt();
    let factor = clip_factor(norm, norm_max);
    if factor < 1.0 {
        for value in values {
            *value = (f64::from(*value) * factor) as f32;
        }
    }
    Ok(norm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_norm_that_is_not_finite_contributes_zero() {
        for norm in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0] {
            assert_eq!(clip_factor(norm, 1.0), 0.0, "{norm}");
        }
        for clip_norm_l2 in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(clip_factor(1.0, clip_norm_l2), 0.0, "{clip_norm_l2}");
        }
    }

    #[test]
    fn small_examples_are_left_alone_and_large_ones_scaled() {
        assert_eq!(clip_factor(0.0, 1.0), 1.0);
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert_eq!(clip_factor(4.0, 1.0), 0.25);
        assert!((clip_factor(f64::MAX, 1.0) * f64::MAX - 1.0).abs() < 1e-15);
    }

    #[test]
    fn clipping_keeps_the_direction_and_bounds_the_norm() {
        let mut values = vec![3.0_f32, 0.0, -4.0];
        assert_eq!(clip_in_place(&mut values, 1.0).unwrap(), 5.0);
        assert_eq!(values, [0.6, 0.0, -0.8]);
        assert!(clip_in_place(&mut values, 1.0).unwrap() <= 1.0 + 1e-6);
    }

    #[test]
    fn a_refused_vector_is_unchanged() {
        let mut values = vec![3.0, f32::NAN];
        assert_eq!(clip_in_place(&mut values, 1.0), Err(PrivacyError::NotFinite { index: 1 }));
        assert_eq!(values[0], 3.0);
        assert!(clip_in_place(&mut [1.0], 0.0).is_err());
    }
}
