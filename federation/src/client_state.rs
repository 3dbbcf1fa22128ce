//! What a client keeps of its own from one round of a run to the next.
//!
//! Most plans keep nothing: then a client's part in a round follows from the round's model, its
//! records and its noise alone.  Others train parameters that stay with the client, or correct its
//! steps by what it learnt earlier.  The values lie in one flat vector whose length follows from the
//! plan ([`Plan::client_state_len`](crate::Plan::client_state_len)); what they mean is the business of
//! whoever trains.
//!
//! A state never leaves its client: there is no message for it.

use crate::StateDigest;
use crate::parameters::{from_bytes, to_bytes};

/// A client's state between two rounds, `[client_state_len]`.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientState(Vec<f32>);

impl ClientState {
    /// Wraps `values`, `[client_state_len]`.
    #[must_use]
    pub fn new(values: Vec<f32>) -> Self {
        Self(values)
    }

    /// The values, `[client_state_len]`.
    #[must_use]
    pub fn values(&self) -> &[f32] {
        &self.0
    }

    /// Little-endian bytes, four a value: what is stored.
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
    pub fn digest(&self) -> StateDigest {
        StateDigest(*blake3::hash(&self.to_bytes()).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_round_trips_through_bytes() {
        let state = ClientState::new(vec![0.5, -0.0, f32::MAX]);
        let bytes = state.to_bytes();
        assert_eq!(ClientState::from_bytes(&bytes).unwrap(), state);
        assert_eq!(state.digest().0, *blake3::hash(&bytes).as_bytes());
        assert!(ClientState::from_bytes(&bytes[..5]).is_none());
    }
}
