//! Reproducible randomness for simulations: *not private*.
//!
//! Whoever knows the seed can subtract this noise.  It exists so that an experiment can be
//! repeated to the bit, and it exists in this crate only, so that no deployed binary links it.

use std::fmt::Display;

use chacha20::ChaCha20Rng;
use comity_privacy::{Noise, NoiseKind, PrivacyError, Randomness};
use rand_core::{Rng, SeedableRng};
use rand_distr::{Distribution, StandardNormal};

/// Largest `log2` of a standard deviation; the same bound as the exact mechanism's.
const LOG2_SIGMA_MAX: u32 = 40;

/// Where a simulation's noise and batches come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoiseMode {
    /// [`seeded_randomness`]: reproducible, not private.
    Seeded,
    /// The operating system's randomness and the exact mechanisms, as deployed.
    Exact,
}

impl NoiseMode {
    /// How a table or a report names it.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Seeded => "simulated noise (seeded, not private)",
            Self::Exact => "exact noise",
        }
    }

    /// The random choices of `client` in `round`.
    ///
    /// # Errors
    /// [`PrivacyError::NoRandomness`] if exact noise was asked for and the system has none.
    pub fn randomness(
        self,
        seed: u64,
        who: impl Display,
        round: u32,
    ) -> Result<Randomness, PrivacyError> {
        match self {
            Self::Seeded => Ok(seeded_randomness(seed, who, round)),
            Self::Exact => Randomness::from_os(),
        }
    }
}

/// Gaussian noise from a seeded ChaCha20 stream, rounded to whole grid units: **not private**.
///
/// A rounded normal and the discrete Gaussian of the same σ differ by far less than an experiment
/// can see at the σ in use (2^30 grid units).
pub struct SeededNoise {
    seed: [u8; 32],
    rng: ChaCha20Rng,
}

impl SeededNoise {
    /// The noise stream under `seed`.
    #[must_use]
    pub fn new(seed: [u8; 32]) -> Self {
        Self { seed, rng: ChaCha20Rng::from_seed(seed) }
    }

    fn normal(&mut self, sigma: f64) -> i64 {
        let normal: f64 = StandardNormal.sample(&mut self.rng);
        (normal * sigma).round() as i64
    }
}

impl Noise for SeededNoise {
    fn fork(&self, index: u64) -> Box<dyn Noise> {
        let mut hasher = blake3::Hasher::new_derive_key("comity simulation noise fork v1");
        hasher.update(&self.seed).update(&index.to_le_bytes());
        Box::new(Self::new(*hasher.finalize().as_bytes()))
    }

    /// The same whatever the kind: a simulation sees no difference between them.
    fn draw(
        &mut self,
        _kind: NoiseKind,
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
        let sigma = (1_u64 << log2_sigma) as f64;
        values.fill_with(|| self.normal(sigma));
        Ok(())
    }

    fn release_integer(&mut self, value: i64, sigma: f64) -> Result<i64, PrivacyError> {
        if !(sigma > 0.0 && sigma.is_finite()) {
            return Err(PrivacyError::OutOfRange {
                what: "sigma",
                value: sigma,
                allowed: "positive and finite",
            });
        }
        Ok(value.saturating_add(self.normal(sigma)))
    }
}

/// The random choices of `client` in `round` of a simulation under `seed`: **not private**.
///
/// Batches and noise come from two independent streams, and every client and round has its own,
/// so a result does not depend on the order in which clients are simulated.
#[must_use]
pub fn seeded_randomness(seed: u64, who: impl Display, round: u32) -> Randomness {
    let key = |purpose: &str| {
        let mut hasher = blake3::Hasher::new_derive_key("comity simulation randomness v1");
        hasher.update(&seed.to_le_bytes()).update(&round.to_le_bytes());
        hasher.update(purpose.as_bytes()).update(b"\0").update(who.to_string().as_bytes());
        *hasher.finalize().as_bytes()
    };
    let sampling: Box<dyn Rng + Send> = Box::new(ChaCha20Rng::from_seed(key("sampling")));
    Randomness { sampling, noise: Box::new(SeededNoise::new(key("noise"))), id: key("id") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: NoiseKind = NoiseKind::DiscreteGaussian;

    fn noise_of(seed: u64, client: &str, round: u32) -> Vec<i64> {
        let mut values = vec![0; 16];
        let mut randomness = seeded_randomness(seed, client, round);
        randomness.noise.draw(KIND, 30, &mut values).unwrap();
        values
    }

    #[test]
    fn seeded_randomness_depends_on_seed_client_and_round_only() {
        let first = noise_of(1, "KR/a", 1);
        assert_eq!(first, noise_of(1, "KR/a", 1));
        for other in [noise_of(2, "KR/a", 1), noise_of(1, "JP/a", 1), noise_of(1, "KR/a", 2)] {
            assert_ne!(first, other);
        }
    }

    /// Seeded, so no false alarms; the bound is 6 standard errors.
    #[test]
    fn seeded_noise_has_the_asked_for_spread() {
        let mut values = vec![0_i64; 100_000];
        SeededNoise::new([3; 32]).draw(KIND, 20, &mut values).unwrap();
        let sigma = (1_u64 << 20) as f64;
        let variance = values.iter().map(|v| (*v as f64 / sigma).powi(2)).sum::<f64>() / 1e5;
        assert!((variance - 1.0).abs() < 6.0 * (2.0 / 1e5_f64).sqrt(), "{variance}");
    }

    #[test]
    fn exact_noise_is_never_repeated() {
        let draw = || {
            let mut values = [0_i64; 16];
            let mut randomness = NoiseMode::Exact.randomness(1, "KR/a", 1).unwrap();
            randomness.noise.draw(KIND, 30, &mut values).unwrap();
            values
        };
        assert_ne!(draw(), draw());
    }

    #[test]
    fn sigmas_that_mean_nothing_are_refused() {
        let mut noise = SeededNoise::new([0; 32]);
        assert!(noise.draw(KIND, 41, &mut [0]).is_err());
        assert!(noise.release_integer(1, 0.0).is_err());
        assert!(noise.release_integer(1, f64::NAN).is_err());
    }
}
