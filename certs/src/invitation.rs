//! The one word that a new member needs: where to ask, whom to trust there, and a secret that works once.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use comity_federation::{KeyFingerprint, Time};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::key::sha256;
use crate::{CertError, Identity};

/// How a token begins.
const PREFIX: &str = "comity1-";
/// Bytes of the checksum, which tells a mistyped token from one of another coordinator.
const CHECKSUM_BYTES: usize = 4;
/// Longest token that is looked at.
const TOKEN_BYTES_MAX: usize = 2048;

/// An invitation, as it is handed to a new member. Its text is a secret until it was used.
#[derive(Clone, PartialEq, Eq)]
pub struct Invitation {
    /// `https://HOST:PORT` where members join.
    pub url: String,
    /// SHA-256 of the federation's root certificate, DER: whoever answers there must have a certificate
    /// that leads to it.
    pub root: [u8; 32],
    /// The one-time secret.
    pub secret: Zeroizing<[u8; 32]>,
    /// Who is invited.
    pub identity: Identity,
    /// Until when.
    pub expires: Time,
    /// The operator who invites, and its key: its orders are the ones that a new node trusts.
    pub operator_name: String,
    /// See [`operator_name`](Self::operator_name).
    pub operator: KeyFingerprint,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    url: String,
    root: KeyFingerprint,
    secret: Zeroizing<String>,
    identity: String,
    expires: Time,
    operator_name: String,
    operator: KeyFingerprint,
}

impl fmt::Debug for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the secret.
        write!(f, "Invitation({} at {} until {})", self.identity, self.url, self.expires)
    }
}

impl Invitation {
    /// SHA-256 of the secret: what the coordinator keeps of it.
    #[must_use]
    pub fn secret_digest(secret: &[u8; 32]) -> [u8; 32] {
        sha256(secret)
    }

    /// The token, a word without spaces.
    #[must_use]
    pub fn token(&self) -> Zeroizing<String> {
        let fields = Fields {
            url: self.url.clone(),
            root: KeyFingerprint(self.root),
            secret: Zeroizing::new(URL_SAFE_NO_PAD.encode(*self.secret)),
            identity: self.identity.to_string(),
            expires: self.expires,
            operator_name: self.operator_name.clone(),
            operator: self.operator,
        };
        let mut bytes =
            Zeroizing::new(serde_json::to_vec(&fields).expect("texts and numbers are JSON"));
        let sum = sha256(&bytes);
        bytes.extend_from_slice(&sum[..CHECKSUM_BYTES]);
        Zeroizing::new(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(&*bytes)))
    }
}

impl FromStr for Invitation {
    type Err = CertError;

    fn from_str(token: &str) -> Result<Self, CertError> {
        let refuse = |reason: &str| CertError::Token { reason: reason.to_owned() };
        let token = token.trim();
        if token.len() > TOKEN_BYTES_MAX {
            return Err(refuse("it is too long"));
        }
        let text = token.strip_prefix(PREFIX).ok_or_else(|| refuse("it does not begin so"))?;
        let broken = || refuse("a part of it is missing or mistyped");
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(text).map_err(|_| broken())?);
        let (bytes, sum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or_else(broken)?;
        if sha256(bytes)[..CHECKSUM_BYTES] != *sum {
            return Err(broken());
        }
        let newer = || refuse("it was made by another version of this software");
        let fields: Fields = serde_json::from_slice(bytes).map_err(|_| newer())?;
        let mut secret = Zeroizing::new([0; 32]);
        let n = URL_SAFE_NO_PAD
            .decode_slice(fields.secret.as_bytes(), &mut *secret)
            .map_err(|_| newer())?;
        if n != secret.len() {
            return Err(newer());
        }
        Ok(Self {
            url: fields.url,
            root: fields.root.0,
            secret,
            identity: fields.identity.parse()?,
            expires: fields.expires,
            operator_name: fields.operator_name,
            operator: fields.operator,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Invitation {
        Invitation {
            url: "https://coordinator.example.org:7444".to_owned(),
            root: [1; 32],
            secret: Zeroizing::new([2; 32]),
            identity: "comity://demo/client/VN/hanoi-lab".parse().unwrap(),
            expires: Time(1_800_000_000_000),
            operator_name: "alice".to_owned(),
            operator: KeyFingerprint([3; 32]),
        }
    }

    #[test]
    fn a_token_is_one_word_and_says_everything_but_in_debug() {
        let token = sample().token();
        assert!(token.len() < 700 && !token.contains(char::is_whitespace), "{}", token.len());
        assert_eq!(format!(" {}\n", *token).parse::<Invitation>().unwrap(), sample());
        assert!(!format!("{:?}", sample()).contains("02"));
    }

    #[test]
    fn a_mistyped_or_cut_token_is_told_as_such() {
        let token = sample().token();
        for at in PREFIX.len()..token.len() {
            let mut altered = token.as_bytes().to_vec();
            altered[at] = if altered[at] == b'A' { b'B' } else { b'A' };
            let altered = String::from_utf8(altered).unwrap();
            assert!(altered.parse::<Invitation>().is_err(), "letter {at}");
        }
        let error = token[..token.len() - 3].parse::<Invitation>().unwrap_err();
        assert!(error.to_string().contains("mistyped"), "{error}");
        assert!("".parse::<Invitation>().is_err());
        assert!("A".repeat(5000).parse::<Invitation>().is_err());
    }
}
