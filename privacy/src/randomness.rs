//! All the randomness of one round, as an argument.

use chacha20::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};

use crate::{
    error::PrivacyError,
    noise::{KeyedNoise, Noise, key_from_os},
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
    /// Names the keys without telling them. The ledger records it before they are used, so that
    /// anyone can check that none was used twice.
    pub id: [u8; 32],
}

impl Randomness {
    /// Independent ChaCha20 streams under fresh keys of the operating system.
    ///
    /// # Errors
    /// [`PrivacyError::NoRandomness`] if the operating system gives no keys.
    pub fn from_os() -> Result<Self, PrivacyError> {
        Ok(Self::under(key_from_os()?))
    }

    /// Both keys and their name are derived from one, which is not kept.
    fn under(key: [u8; 32]) -> Self {
        let sampling = blake3::derive_key("comity sampling key v1", &key);
        let noise = blake3::derive_key("comity noise key v1", &key);
        Self {
            sampling: Box::new(ChaCha20Rng::from_seed(sampling)),
            noise: Box::new(KeyedNoise::under(noise)),
            id: blake3::derive_key("comity randomness id v1", &key),
        }
    }

    #[cfg(test)]
    pub(crate) fn seeded(seed: u8) -> Self {
        Self::under([seed; 32])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::NoiseKind;

    #[test]
    fn the_system_gives_different_streams_each_time() {
        let mut first = Randomness::from_os().unwrap();
        let mut second = Randomness::from_os().unwrap();
        assert_ne!(first.sampling.next_u64(), second.sampling.next_u64());
        let (mut a, mut b) = ([0; 8], [0; 8]);
        first.noise.draw(NoiseKind::DiscreteGaussian, 30, &mut a).unwrap();
        second.noise.draw(NoiseKind::DiscreteGaussian, 30, &mut b).unwrap();
        assert_ne!(a, b);
        assert_ne!(first.id, second.id);
    }
}
