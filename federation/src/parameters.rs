//! A model's values: one flat vector in the manifest's order.

use crate::ModelDigest;

/// All parameters of a model, `[n_parameters]`, laid out as its [`Manifest`](crate::Manifest) says.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameters(Vec<f32>);

impl Parameters {
    /// Wraps `values`, `[n_parameters]`.
    #[must_use]
    pub fn new(values: Vec<f32>) -> Self {
        Self(values)
    }

    /// The values, `[n_parameters]`.
    #[must_use]
    pub fn values(&self) -> &[f32] {
        &self.0
    }

    /// Little-endian bytes, four a parameter: what is stored, sent and hashed.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        to_bytes(&self.0)
    }

    /// The inverse of [`to_bytes`](Self::to_bytes); `None` if the length is not a multiple of four.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        from_bytes(bytes).map(Self)
    }

    /// BLAKE3 of the bytes.
    #[must_use]
    pub fn digest(&self) -> ModelDigest {
        ModelDigest(*blake3::hash(&self.to_bytes()).as_bytes())
    }
}

/// Little-endian bytes, four a value.
pub(crate) fn to_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().map(|v| v.to_le_bytes()).collect::<Vec<_>>().into_flattened()
}

/// The inverse of [`to_bytes`]; `None` if the length is not a multiple of four.
pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Vec<f32>> {
    let (words, rest) = bytes.as_chunks::<4>();
    rest.is_empty().then(|| words.iter().map(|w| f32::from_le_bytes(*w)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_round_trip_through_bytes() {
        let parameters = Parameters::new(vec![1.5, -0.0, f32::MIN_POSITIVE]);
        let bytes = parameters.to_bytes();
        assert_eq!(Parameters::from_bytes(&bytes).unwrap().digest(), parameters.digest());
        assert!(Parameters::from_bytes(&bytes[1..]).is_none());
    }
}
