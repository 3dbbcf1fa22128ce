//! All the randomness of one round, as an argument.

use rand_core::Rng;

use crate::{
    error::PrivacyError,
    noise::{ExactGaussian, Noise, rng_from_os},
};

/// The random choices of one [`Session`](crate::session::Session).
///
/// The fields are public so that the simulator can bring seeded ones; what it then makes is
/// reproducible and *not* private. Deployed code calls [`Randomness::from_os`].
pub struct Randomness {
    /// Decides which records are in a batch.
    pub sampling: Box<dyn Rng + Send>,
    /// Is added to what leaves.
    pub noise: Box<dyn Noise>,
}

impl Randomness {
    /// Independent ChaCha20 streams under fresh keys of the operating system.
    ///
    /// # Errors
    /// [`PrivacyError::NoRandomness`] if the operating system gives no keys.
    pub fn from_os() -> Result<Self, PrivacyError> {
        Ok(Self { sampling: Box::new(rng_from_os()?), noise: Box::new(ExactGaussian::from_os()?) })
    }

    #[cfg(test)]
    pub(crate) fn seeded(seed: u8) -> Self {
        use chacha20::ChaCha20Rng;
        use rand_core::SeedableRng;

        Self {
            sampling: Box::new(ChaCha20Rng::from_seed([seed; 32])),
            noise: Box::new(ExactGaussian::seeded([seed ^ 0xff; 32])),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_gives_different_streams_each_time() {
        let mut first = Randomness::from_os().unwrap();
        let mut second = Randomness::from_os().unwrap();
        assert_ne!(first.sampling.next_u64(), second.sampling.next_u64());
        let (mut a, mut b) = ([0; 8], [0; 8]);
        first.noise.add_gaussian(30, &mut a).unwrap();
        second.noise.add_gaussian(30, &mut b).unwrap();
        assert_ne!(a, b);
    }
}
