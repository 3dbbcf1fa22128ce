//! Where noise comes from: exact, integer, keyed from the operating system.
//!
//! Two mechanisms. Gradients get this crate's own discrete Gaussian, fast because σ is a power of
//! two of the grid. Single numbers get OpenDP's, which takes any σ. A backend's random numbers are
//! never noise: those of a GPU library are statistically fine and cryptographically broken.

use chacha20::ChaCha20Rng;
use opendp::{
    domains::AtomDomain, measurements::make_gaussian, measures::ZeroConcentratedDivergence,
    metrics::AbsoluteDistance,
};
use rand_core::SeedableRng;

use crate::{
    discrete_gaussian::{DiscreteGaussian, LOG2_SIGMA_MAX},
    error::PrivacyError,
};

/// A source of privacy noise. Deployed code has one, [`ExactGaussian`]; the simulator brings a
/// seeded one, which promises nothing.
pub trait Noise: Send {
    /// Adds an independent discrete Gaussian of σ = `2^log2_sigma` to every value, saturating.
    ///
    /// # Errors
    /// [`PrivacyError::OutOfRange`] if `log2_sigma` is above 40; `values` is then unchanged.
    fn add_gaussian(&mut self, log2_sigma: u32, values: &mut [i64]) -> Result<(), PrivacyError>;

    /// `value` plus a discrete Gaussian of any `sigma`; `1 / (2 sigma²)`-zCDP at sensitivity 1.
    ///
    /// # Errors
    /// [`PrivacyError::OutOfRange`] unless `sigma` is positive and finite;
    /// [`PrivacyError::Noise`] if the mechanism fails.
    fn release_integer(&mut self, value: i64, sigma: f64) -> Result<i64, PrivacyError>;
}

/// Exact discrete Gaussian noise from a ChaCha20 stream under a key of the operating system.
///
/// Every instance has a fresh key and none can be saved, so a restart never repeats noise.
pub struct ExactGaussian {
    sampler: DiscreteGaussian<ChaCha20Rng>,
}

impl ExactGaussian {
    /// A source under a fresh key.
    ///
    /// # Errors
    /// [`PrivacyError::NoRandomness`] if the operating system gives no key.
    pub fn from_os() -> Result<Self, PrivacyError> {
        Ok(Self { sampler: DiscreteGaussian::new(rng_from_os()?) })
    }

    #[cfg(test)]
    pub(crate) fn seeded(seed: [u8; 32]) -> Self {
        Self { sampler: DiscreteGaussian::new(ChaCha20Rng::from_seed(seed)) }
    }
}

impl Noise for ExactGaussian {
    fn add_gaussian(&mut self, log2_sigma: u32, values: &mut [i64]) -> Result<(), PrivacyError> {
        if log2_sigma > LOG2_SIGMA_MAX {
            return Err(PrivacyError::OutOfRange {
                what: "log2 of sigma",
                value: f64::from(log2_sigma),
                allowed: "at most 40",
            });
        }
        for value in values {
            *value = value.saturating_add(self.sampler.sample(log2_sigma));
        }
        Ok(())
    }

    fn release_integer(&mut self, value: i64, sigma: f64) -> Result<i64, PrivacyError> {
        // OpenDP allows a scale of 0, which would release the value itself.
        if !(sigma > 0.0 && sigma.is_finite()) {
            return Err(PrivacyError::OutOfRange {
                what: "sigma",
                value: sigma,
                allowed: "positive and finite",
            });
        }
        // Built for each call: a `Measurement` is not `Send`, a `Noise` has to be.
        make_gaussian::<_, _, ZeroConcentratedDivergence>(
            AtomDomain::<i64>::default(),
            AbsoluteDistance::<f64>::default(),
            sigma,
            None,
        )
        .and_then(|measurement| measurement.invoke(&value))
        .map_err(|error| PrivacyError::Noise { reason: format!("{:?}", error.variant) })
    }
}

/// A ChaCha20 generator under a fresh key of the operating system.
pub(crate) fn rng_from_os() -> Result<ChaCha20Rng, PrivacyError> {
    let mut key = [0_u8; 32];
    getrandom::fill(&mut key)
        .map_err(|error| PrivacyError::NoRandomness { reason: error.to_string() })?;
    Ok(ChaCha20Rng::from_seed(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_sources_from_the_system_never_agree() {
        let (mut first, mut second) = ([0_i64; 64], [0_i64; 64]);
        ExactGaussian::from_os().unwrap().add_gaussian(30, &mut first).unwrap();
        ExactGaussian::from_os().unwrap().add_gaussian(30, &mut second).unwrap();
        assert_ne!(first, second);
        assert!(first.iter().zip(&second).filter(|(a, b)| a == b).count() <= 1);
    }

    #[test]
    fn one_source_never_repeats_itself() {
        let mut noise = ExactGaussian::seeded([1; 32]);
        let (mut first, mut second) = ([0_i64; 64], [0_i64; 64]);
        noise.add_gaussian(30, &mut first).unwrap();
        noise.add_gaussian(30, &mut second).unwrap();
        assert_ne!(first, second);
    }

    #[test]
    fn noise_saturates_instead_of_wrapping() {
        let mut values = [i64::MAX, i64::MIN];
        for _ in 0..8 {
            ExactGaussian::from_os().unwrap().add_gaussian(30, &mut values).unwrap();
        }
        assert!(values[0] > 0 && values[1] < 0);
    }

    #[test]
    fn sigmas_that_do_not_protect_are_refused() {
        let mut noise = ExactGaussian::seeded([2; 32]);
        for sigma in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(noise.release_integer(5, sigma).is_err(), "{sigma}");
        }
        assert!(noise.add_gaussian(41, &mut [0]).is_err());
    }

    /// OpenDP cannot be seeded; bounds are 6 standard errors, false-alarm rate 2e-9 each.
    #[test]
    fn a_released_integer_has_the_right_mean_and_spread() {
        let mut noise = ExactGaussian::seeded([3; 32]);
        let (n, sigma) = (20_000, 7.3);
        let draws: Vec<f64> =
            (0..n).map(|_| noise.release_integer(100, sigma).unwrap() as f64 - 100.0).collect();
        let mean = draws.iter().sum::<f64>() / f64::from(n);
        let variance = draws.iter().map(|draw| draw * draw).sum::<f64>() / f64::from(n);
        assert!(mean.abs() < 6.0 * sigma / f64::from(n).sqrt(), "{mean}");
        let relative = variance / (sigma * sigma) - 1.0;
        assert!(relative.abs() < 6.0 * (2.0 / f64::from(n)).sqrt(), "{relative}");
    }
}
