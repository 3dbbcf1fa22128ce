//! What a certificate is revoked by.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::CertError;

/// Longest serial number that X.509 allows.
const BYTES_MAX: usize = 20;

/// The serial number of a certificate; those made here have 16 random bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial(Vec<u8>);

impl Serial {
    /// A new one, from the operating system's randomness.
    pub(crate) fn random() -> Self {
        let mut bytes = [0; 16];
        SystemRandom::new().fill(&mut bytes).expect("the operating system has randomness");
        // A positive number that has all its bytes when it is written as an integer.
        bytes[0] = (bytes[0] & 0x7f) | 0x40;
        Self(bytes.to_vec())
    }

    /// The one of a certificate, DER.
    ///
    /// # Errors
    /// [`CertError::Pem`] if it is none.
    pub fn of_certificate(der: &[u8]) -> Result<Self, CertError> {
        let (_, certificate) = X509Certificate::from_der(der)
            .map_err(|error| CertError::Pem { what: "certificate", reason: error.to_string() })?;
        Ok(Self::of_integer(certificate.raw_serial()))
    }

    pub(crate) fn of_integer(bytes: &[u8]) -> Self {
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        Self(bytes[zeros.min(bytes.len().saturating_sub(1))..].to_vec())
    }

    pub(crate) fn number(&self) -> rcgen::SerialNumber {
        rcgen::SerialNumber::from_slice(&self.0)
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Serial {
    type Err = CertError;

    fn from_str(text: &str) -> Result<Self, CertError> {
        let refuse = || CertError::Serial(text.to_owned());
        let proper = !text.is_empty()
            && text.len().is_multiple_of(2)
            && text.len() <= 2 * BYTES_MAX
            && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !proper {
            return Err(refuse());
        }
        let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| refuse());
        (0..text.len()).step_by(2).map(byte).collect::<Result<_, _>>().map(Self)
    }
}

impl Serialize for Serial {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Serial {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_numbers_round_trip_and_are_positive() {
        for _ in 0..100 {
            let serial = Serial::random();
            assert_eq!((serial.0.len(), serial.0[0] >> 6), (16, 1));
            assert_eq!(serial.to_string().parse::<Serial>().unwrap(), serial);
        }
        for bad in ["", "a", "A0", "0x", "g0", &"00".repeat(21)] {
            assert!(bad.parse::<Serial>().is_err(), "{bad:?}");
        }
        assert_eq!(Serial::of_integer(&[0, 0x80]).to_string(), "80");
        assert_eq!(Serial::of_integer(&[0]).to_string(), "00");
    }
}
