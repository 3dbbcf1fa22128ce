//! A signature as data; making and checking one is in `certs`, which knows keys.

use serde::{Deserialize, Serialize};

/// A signature under a document that stands beside it, and the certificates that say whose it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// DER: the signer's own certificate, then the issuing CA's.
    #[serde(with = "list")]
    pub chain: Vec<Vec<u8>>,
    /// ECDSA P-256 with SHA-256, ASN.1.
    #[serde(with = "bytes")]
    pub signature: Vec<u8>,
}

/// Bytes as base64 text.
mod bytes {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        STANDARD.decode(text).map_err(serde::de::Error::custom)
    }
}

/// A list of byte strings as base64 texts.
pub(crate) mod list {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(list: &[Vec<u8>], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(list.iter().map(|bytes| STANDARD.encode(bytes)))
    }
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<Vec<u8>>, D::Error> {
        let list = Vec::<String>::deserialize(from)?;
        let decoded = list.into_iter().map(|text| STANDARD.decode(text));
        decoded.collect::<Result<_, _>>().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_round_trips_through_json_as_text() {
        let signature = Signature { chain: vec![vec![1, 2], vec![3]], signature: vec![255; 70] };
        let text = serde_json::to_string(&signature).unwrap();
        assert!(text.contains("\"AQI=\""), "{text}");
        assert_eq!(serde_json::from_str::<Signature>(&text).unwrap(), signature);
        assert!(serde_json::from_str::<Signature>(r#"{"chain":["?"],"signature":""}"#).is_err());
    }
}
