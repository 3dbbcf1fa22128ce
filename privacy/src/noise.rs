//! Where noise comes from: integer, keyed from the operating system.
//!
//! Gradients get this crate's own discrete Gaussian, exact and fast because σ is a power of two of
//! the grid; models too large for it get a Gaussian computed in floats, and every statement says so.
//! Single numbers get OpenDP's, which takes any σ. A backend's random numbers are never noise: those
//! of a GPU library are statistically fine and cryptographically broken.

use chacha20::ChaCha20Rng;
use opendp::{
    domains::AtomDomain, measurements::make_gaussian, measures::ZeroConcentratedDivergence,
    metrics::AbsoluteDistance,
};
use rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};

use crate::{
    discrete_gaussian::{DiscreteGaussian, LOG2_SIGMA_MAX},
    error::PrivacyError,
};

/// Trained parameters up to which gradients get [`NoiseKind::DiscreteGaussian`]: beyond, its 100 ns a
/// coordinate would be longer than the step.
pub const EXACT_PARAMETERS_MAX: u64 = 1_000_000;

/// How a gradient's noise is made. Every statement names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoiseKind {
    /// The discrete Gaussian, sampled exactly in integers (Canonne, Kamath and Steinke 2020).
    DiscreteGaussian,
    /// A Gaussian computed in floats from ChaCha20, rounded to the grid. Each draw is half the sum
    /// of four normals, so that an attacker who sees it cannot solve for the state of one
    /// (Holohan and Braghin 2021); that the result is a Gaussian to the last bit is not proved.
    FloatGaussian,
}

impl NoiseKind {
    /// What a model of so many trained parameters gets.
    pub fn for_parameters(n_parameters: u64) -> Self {
        if n_parameters <= EXACT_PARAMETERS_MAX {
            Self::DiscreteGaussian
        } else {
            Self::FloatGaussian
        }
    }
}

/// A source of privacy noise. Deployed code has one, [`KeyedNoise`]; the simulator brings a seeded
/// one, which promises nothing.
pub trait Noise: Send + Sync {
    /// The source number `index` under this one. Its draws are independent of this one's and of
    /// those of every other index; the same index gives the same source.
    fn fork(&self, index: u64) -> Box<dyn Noise>;

    /// Fills `values` with independent Gaussians of σ = `2^log2_sigma`.
    ///
    /// # Errors
    /// [`PrivacyError::OutOfRange`] if `log2_sigma` is above 40; `values` is then unchanged.
    fn draw(
        &mut self,
        kind: NoiseKind,
        log2_sigma: u32,
        values: &mut [i64],
    ) -> Result<(), PrivacyError>;

    /// Adds what was drawn to the values that it protects, saturating. A method of the source, so
    /// that an audit can see the values as they are without it.
    fn add(&mut self, drawn: &[i64], values: &mut [i64]) {
        for (value, drawn) in values.iter_mut().zip(drawn) {
            *value = value.saturating_add(*drawn);
        }
    }

    /// `value` plus a discrete Gaussian of any `sigma`; `1 / (2 sigma²)`-zCDP at sensitivity 1.
    ///
    /// # Errors
    /// [`PrivacyError::OutOfRange`] unless `sigma` is positive and finite;
    /// [`PrivacyError::Noise`] if the mechanism fails.
    fn release_integer(&mut self, value: i64, sigma: f64) -> Result<i64, PrivacyError>;
}

/// Noise from a ChaCha20 stream under a key of the operating system.
///
/// Every instance has a key of its own and none can be saved, so a restart never repeats noise.
pub struct KeyedNoise {
    key: [u8; 32],
    sampler: DiscreteGaussian<ChaCha20Rng>,
}

impl KeyedNoise {
    /// A source under a fresh key.
    ///
    /// # Errors
    /// [`PrivacyError::NoRandomness`] if the operating system gives no key.
    pub fn from_os() -> Result<Self, PrivacyError> {
        Ok(Self::under(key_from_os()?))
    }

    pub(crate) fn under(key: [u8; 32]) -> Self {
        let seed = blake3::derive_key("comity noise stream v1", &key);
        Self { key, sampler: DiscreteGaussian::new(ChaCha20Rng::from_seed(seed)) }
    }
}

impl Noise for KeyedNoise {
    fn fork(&self, index: u64) -> Box<dyn Noise> {
        let mut hasher = blake3::Hasher::new_derive_key("comity noise fork v1");
        hasher.update(&self.key).update(&index.to_le_bytes());
        Box::new(Self::under(*hasher.finalize().as_bytes()))
    }

    fn draw(
        &mut self,
        kind: NoiseKind,
        log2_sigma: u32,
        values: &mut [i64],
    ) -> Result<(), PrivacyError> {
        if log2_sigma > LOG2_SIGMA_MAX {
            return Err(PrivacyError::OutOfRange {
                what: "log2 of sigma",
                value: f64::from(log2_sigma),
                allowed: "at most 40",
            });
        }
        match kind {
            NoiseKind::DiscreteGaussian => {
                values.fill_with(|| self.sampler.sample(log2_sigma));
            }
            NoiseKind::FloatGaussian => {
                let half_sigma = (1_u64 << log2_sigma) as f64 / 2.0;
                let rng = self.sampler.rng();
                values.fill_with(|| {
                    let sum: f64 = (0..4).map(|_| -> f64 { StandardNormal.sample(rng) }).sum();
                    (sum * half_sigma).round() as i64
                });
            }
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

/// A fresh key of the operating system.
pub(crate) fn key_from_os() -> Result<[u8; 32], PrivacyError> {
    let mut key = [0_u8; 32];
    getrandom::fill(&mut key)
        .map_err(|error| PrivacyError::NoRandomness { reason: error.to_string() })?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    use NoiseKind::{DiscreteGaussian, FloatGaussian};

    fn drawn(noise: &mut dyn Noise, kind: NoiseKind) -> [i64; 64] {
        let mut values = [0; 64];
        noise.draw(kind, 30, &mut values).unwrap();
        values
    }

    #[test]
    fn two_sources_from_the_system_never_agree() {
        for kind in [DiscreteGaussian, FloatGaussian] {
            let first = drawn(&mut KeyedNoise::from_os().unwrap(), kind);
            let second = drawn(&mut KeyedNoise::from_os().unwrap(), kind);
            assert!(first.iter().zip(&second).filter(|(a, b)| a == b).count() <= 1);
        }
    }

    #[test]
    fn one_source_never_repeats_itself() {
        let mut noise = KeyedNoise::under([1; 32]);
        assert_ne!(drawn(&mut noise, DiscreteGaussian), drawn(&mut noise, DiscreteGaussian));
        assert_ne!(drawn(&mut noise, FloatGaussian), drawn(&mut noise, FloatGaussian));
    }

    #[test]
    fn forks_differ_from_one_another_and_from_their_source() {
        let mut noise = KeyedNoise::under([1; 32]);
        let mut forks: std::collections::BTreeSet<_> =
            (0..100).map(|index| drawn(&mut *noise.fork(index), DiscreteGaussian)).collect();
        forks.insert(drawn(&mut noise, DiscreteGaussian));
        assert_eq!(forks.len(), 101);
        let again = drawn(&mut *noise.fork(7), DiscreteGaussian);
        assert!(forks.contains(&again));
    }

    /// Seeded; the bounds are 5 standard errors, false-alarm rate 6e-7 each.
    #[test]
    fn the_float_gaussian_has_the_right_moments() {
        let n = 400_000;
        let mut values = vec![0_i64; n];
        KeyedNoise::under([4; 32]).draw(FloatGaussian, 30, &mut values).unwrap();
        let scaled: Vec<f64> = values.iter().map(|v| *v as f64 / 2.0_f64.powi(30)).collect();
        let moment = |k: i32| scaled.iter().map(|v| v.powi(k)).sum::<f64>() / n as f64;
        for (k, expected, variance) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (4, 3.0, 96.0_f64)] {
            let error = (variance / n as f64).sqrt();
            assert!((moment(k) - expected).abs() < 5.0 * error, "{k}: {}", moment(k));
        }
    }

    #[test]
    fn large_models_get_float_noise() {
        assert_eq!(NoiseKind::for_parameters(EXACT_PARAMETERS_MAX), DiscreteGaussian);
        assert_eq!(NoiseKind::for_parameters(EXACT_PARAMETERS_MAX + 1), FloatGaussian);
    }

    #[test]
    fn noise_saturates_instead_of_wrapping() {
        let mut values = [i64::MAX, i64::MIN];
        KeyedNoise::under([5; 32]).add(&[1, -1], &mut values);
        assert_eq!(values, [i64::MAX, i64::MIN]);
    }

    #[test]
    fn sigmas_that_do_not_protect_are_refused() {
        let mut noise = KeyedNoise::under([2; 32]);
        for sigma in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(noise.release_integer(5, sigma).is_err(), "{sigma}");
        }
        for kind in [DiscreteGaussian, FloatGaussian] {
            assert!(noise.draw(kind, 41, &mut [0]).is_err());
        }
    }

    /// OpenDP cannot be seeded; bounds are 6 standard errors, false-alarm rate 2e-9 each.
    #[test]
    fn a_released_integer_has_the_right_mean_and_spread() {
        let mut noise = KeyedNoise::under([3; 32]);
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
