//! Names of things: clients, countries, runs, and digests of plans, models and updates.
//!
//! Each is validated when made, so that an id can be used in a path, a certificate or a log
//! line without escaping.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest institution name and longest run id, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// Why a text is not an id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// A country is two capital letters (ISO 3166-1 alpha-2).
    #[error("country {0:?} is not two capital letters; use the ISO 3166 code, such as KR")]
    Country(String),
    /// An institution is 1 to 64 of `a-z`, `0-9` and `-`.
    #[error(
        "institution {0:?} must be 1 to 64 of a-z, 0-9 and '-', starting with a letter or digit"
    )]
    Institution(String),
    /// A client is `COUNTRY/institution`.
    #[error("client {0:?} is not of the form COUNTRY/institution, such as KR/seoul-lab")]
    Client(String),
    /// A run id is 1 to 64 of `a-z`, `0-9` and `-`.
    #[error("run {0:?} must be 1 to 64 of a-z, 0-9 and '-'; `run list` shows the runs there are")]
    Run(String),
    /// A digest is 64 hexadecimal digits.
    #[error("digest {0:?} is not 64 hexadecimal digits")]
    Digest(String),
}

/// Whether `text` may name an institution, a run or a plan.
pub(crate) fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= NAME_BYTES_MAX
        && !text.starts_with('-')
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// A country by its ISO 3166-1 alpha-2 code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Country([u8; 2]);

impl Country {
    /// The two letters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("a country is made of two ASCII letters")
    }
}

impl FromStr for Country {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        match *text.as_bytes() {
            [a, b] if a.is_ascii_uppercase() && b.is_ascii_uppercase() => Ok(Self([a, b])),
            _ => Err(IdError::Country(text.to_owned())),
        }
    }
}

impl fmt::Display for Country {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A client: the node of one institution in one country, written `KR/seoul-lab`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId {
    country: Country,
    institution: String,
}

impl ClientId {
    /// The client of `institution` in `country`.
    ///
    /// # Errors
    /// [`IdError::Institution`] if the name has other characters than `a-z`, `0-9`, `-`.
    pub fn new(country: Country, institution: &str) -> Result<Self, IdError> {
        if !is_name(institution) {
            return Err(IdError::Institution(institution.to_owned()));
        }
        Ok(Self { country, institution: institution.to_owned() })
    }

    /// The country to which the client belongs.
    #[must_use]
    pub fn country(&self) -> Country {
        self.country
    }

    /// The institution's short name.
    #[must_use]
    pub fn institution(&self) -> &str {
        &self.institution
    }
}

impl FromStr for ClientId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let (country, institution) =
            text.split_once('/').ok_or_else(|| IdError::Client(text.to_owned()))?;
        Self::new(country.parse()?, institution)
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", self.country.as_str(), self.institution))
    }
}

/// One run in one federation, such as `fashion-1f0c9a2e`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId(String);

impl RunId {
    /// The id of the run of the plan `name` with digest `plan`, launched at `now` in `federation`.
    ///
    /// The suffix makes ids of different coordinators and launches differ, because a client's
    /// ledger is shared between them.
    #[must_use]
    pub fn derive(name: &str, plan: &PlanDigest, federation: &str, now: crate::Time) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("comity run id v1");
        hasher.update(&plan.0);
        hasher.update(&now.0.to_le_bytes());
        hasher.update(federation.as_bytes());
        let suffix = &hasher.finalize().to_hex()[..8];
        let name = &name[..name.len().min(NAME_BYTES_MAX - 9)];
        Self(format!("{name}-{suffix}"))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RunId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        if is_name(text) { Ok(Self(text.to_owned())) } else { Err(IdError::Run(text.to_owned())) }
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Serialises a type as its text.
macro_rules! as_text {
    ($($id:ty),*) => {$(
        impl Serialize for $id {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $id {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

/// Defines a 32-byte BLAKE3 digest with a name of its own.
macro_rules! digest {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 32]);

        impl $name {
            /// The first eight hexadecimal digits, for tables and logs.
            #[must_use]
            pub fn short(&self) -> String {
                self.to_string()[..8].to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(blake3::Hash::from_bytes(self.0).to_hex().as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.short())
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                blake3::Hash::from_hex(text)
                    .map(|hash| Self(*hash.as_bytes()))
                    .map_err(|_| IdError::Digest(text.to_owned()))
            }
        }
    };
}

digest! {
    /// BLAKE3 of a plan's canonical JSON: what clients agree to.
    PlanDigest
}
digest! {
    /// BLAKE3 of a model's little-endian `f32` bytes; also the name of its blob.
    ModelDigest
}
digest! {
    /// BLAKE3 of an update's little-endian `i32` bytes; also the name of its blob.
    UpdateDigest
}

digest! {
    /// BLAKE3 of the little-endian `f32` bytes of what a client keeps of its own; also the name of its blob.
    StateDigest
}

digest! {
    /// BLAKE3 of the canonical JSON of a round's record, chained to the record before.
    RecordDigest
}
digest! {
    /// SHA-256 of a public key's SubjectPublicKeyInfo, DER: what a person compares to know a key.
    KeyFingerprint
}
as_text!(
    Country,
    ClientId,
    RunId,
    PlanDigest,
    ModelDigest,
    UpdateDigest,
    StateDigest,
    RecordDigest,
    KeyFingerprint
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip_through_text() {
        let client: ClientId = "KR/seoul-lab".parse().unwrap();
        assert_eq!(client.to_string(), "KR/seoul-lab");
        assert_eq!(client.country().as_str(), "KR");
        let digest = ModelDigest([7; 32]);
        assert_eq!(digest.to_string().parse::<ModelDigest>().unwrap(), digest);
    }

    #[test]
    fn names_that_could_escape_a_path_are_refused() {
        for bad in
            ["KR", "kr/x", "KOR/x", "KR/", "KR/..", "KR/a/b", "KR/A", "KR/\u{202e}x", "KR/-x"]
        {
            assert!(bad.parse::<ClientId>().is_err(), "{bad:?} was accepted");
        }
        for bad in ["", "../x", "a b", "A", "run\0"] {
            assert!(bad.parse::<RunId>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn run_ids_of_two_launches_differ() {
        let plan = PlanDigest([1; 32]);
        let first = RunId::derive("fashion", &plan, "demo", crate::Time(1));
        let second = RunId::derive("fashion", &plan, "demo", crate::Time(2));
        assert_ne!(first, second);
        assert_eq!(first.as_str().parse::<RunId>().unwrap(), first);
    }
}
