//! How much privacy may be spent: a validated pair (ε, δ).

use serde::{Deserialize, Serialize};

use crate::error::PrivacyError;

/// The ε of a budget: positive and finite.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Epsilon(f64);

impl Epsilon {
    /// Validates an ε.
    ///
    /// # Errors
    /// [`PrivacyError::OutOfRange`] unless `value` is positive and finite.
    pub fn new(value: f64) -> Result<Self, PrivacyError> {
        if value.is_finite() && value > 0.0 {
            Ok(Self(value))
        } else {
            Err(PrivacyError::OutOfRange { what: "epsilon", value, allowed: "positive and finite" })
        }
    }

    /// The number itself.
    pub fn get(self) -> f64 {
        self.0
    }
}

/// The δ of a budget: strictly between 0 and 1.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Delta(f64);

impl Delta {
    /// Validates a δ.
    ///
    /// # Errors
    /// [`PrivacyError::OutOfRange`] unless `0 < value < 1`.
    pub fn new(value: f64) -> Result<Self, PrivacyError> {
        if value > 0.0 && value < 1.0 {
            Ok(Self(value))
        } else {
            Err(PrivacyError::OutOfRange { what: "delta", value, allowed: "above 0 and below 1" })
        }
    }

    /// The number itself.
    pub fn get(self) -> f64 {
        self.0
    }
}

impl TryFrom<f64> for Epsilon {
    type Error = PrivacyError;

    fn try_from(value: f64) -> Result<Self, PrivacyError> {
        Self::new(value)
    }
}

impl From<Epsilon> for f64 {
    fn from(epsilon: Epsilon) -> Self {
        epsilon.0
    }
}

impl TryFrom<f64> for Delta {
    type Error = PrivacyError;

    fn try_from(value: f64) -> Result<Self, PrivacyError> {
        Self::new(value)
    }
}

impl From<Delta> for f64 {
    fn from(delta: Delta) -> Self {
        delta.0
    }
}

/// How much privacy a plan or an institution may spend in all.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// The largest ε.
    pub epsilon: Epsilon,
    /// The δ at which ε is reckoned.
    pub delta: Delta,
}

impl Budget {
    /// Validates a pair (ε, δ).
    ///
    /// # Errors
    /// [`PrivacyError::OutOfRange`] unless ε is positive and finite and `0 < δ < 1`.
    pub fn new(epsilon: f64, delta: f64) -> Result<Self, PrivacyError> {
        Ok(Self { epsilon: Epsilon::new(epsilon)?, delta: Delta::new(delta)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meaningless_budgets_are_refused() {
        for epsilon in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(Budget::new(epsilon, 1e-5).is_err(), "{epsilon}");
        }
        for delta in [0.0, 1.0, 2.0, -1e-9, f64::NAN] {
            assert!(Budget::new(1.0, delta).is_err(), "{delta}");
        }
        assert!(Budget::new(1.0, 1e-5).is_ok());
    }

    #[test]
    fn deserialising_validates() {
        let budget: Budget = serde_json::from_str(r#"{"epsilon":3.0,"delta":1e-5}"#).unwrap();
        assert_eq!(budget, Budget::new(3.0, 1e-5).unwrap());
        let text = serde_json::to_string(&budget).unwrap();
        assert_eq!(serde_json::from_str::<Budget>(&text).unwrap(), budget);
        for text in [
            r#"{"epsilon":-3.0,"delta":1e-5}"#,
            r#"{"epsilon":3.0,"delta":1.0}"#,
            r#"{"epsilon":3.0}"#,
            r#"{"epsilon":3.0,"delta":1e-5,"more":1}"#,
        ] {
            assert!(serde_json::from_str::<Budget>(text).is_err(), "{text}");
        }
    }
}
