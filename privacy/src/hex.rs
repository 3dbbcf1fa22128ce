//! Digests as hexadecimal text in JSON.

use serde::{Deserialize, Deserializer, Serializer, de::Error};

/// Writes a digest as 64 hexadecimal digits.
pub(crate) fn serialize<S: Serializer>(digest: &[u8; 32], to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(blake3::Hash::from_bytes(*digest).to_hex().as_str())
}

/// Reads a digest from 64 hexadecimal digits.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<[u8; 32], D::Error> {
    let text = String::deserialize(from)?;
    blake3::Hash::from_hex(&text)
        .map(|hash| *hash.as_bytes())
        .map_err(|_| D::Error::custom("a digest is 64 hexadecimal digits"))
}

/// The same for a digest that may be absent: `null`.
pub(crate) mod optional {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Hex(#[serde(with = "super")] [u8; 32]);

    pub(crate) fn serialize<S: Serializer>(
        digest: &Option<[u8; 32]>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        digest.map(Hex).serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<[u8; 32]>, D::Error> {
        Ok(Option::<Hex>::deserialize(from)?.map(|hex| hex.0))
    }
}
