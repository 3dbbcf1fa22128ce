//! Signatures over documents: orders, consents, receipts, records and certificates of models.
//!
//! A document is signed as the bytes that it is, together with what kind of document it is, so that a
//! signature under one cannot be shown under another. The certificates travel with the signature: whoever
//! has the federation's root can check it offline, years later, at the time that the document names.

use std::path::Path;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, UnparsedPublicKey,
};
use comity_federation::{KeyFingerprint, Signature};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::explain::verify_chain;
use crate::files::read_key_pem;
use crate::key::fingerprint_of_certificate;
use crate::tls::{certificates, key, roots};
use crate::{CertError, Identity};

/// What is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Document {
    /// An operator orders a run of a plan.
    Order,
    /// An institution consents to a plan.
    Consent,
    /// The coordinator has taken an update.
    Receipt,
    /// The coordinator says what happened in a round; clients countersign the same.
    Record,
    /// The coordinator says how a model came about.
    ModelCertificate,
    /// A node says what left it.
    Egress,
}

impl Document {
    fn prefix(self) -> &'static [u8] {
        match self {
            Self::Order => b"comity order v1\0",
            Self::Consent => b"comity consent v1\0",
            Self::Receipt => b"comity receipt v1\0",
            Self::Record => b"comity record v1\0",
            Self::ModelCertificate => b"comity model certificate v1\0",
            Self::Egress => b"comity egress v1\0",
        }
    }

    pub(crate) fn message(self, bytes: &[u8]) -> Vec<u8> {
        [self.prefix(), bytes].concat()
    }
}

/// Who signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedBy {
    /// As the certificate names them.
    pub identity: Identity,
    /// Their key.
    pub key: KeyFingerprint,
}

/// Whose `signature` is under `document`, by certificates that led to `root_pem` at `at`, the time at which
/// the document says that it was signed.
///
/// # Errors
/// [`CertError::Signature`] if it is not under this document, [`CertError::Chain`],
/// [`CertError::Expired`] or [`CertError::NotYetValid`] if the certificates do not lead to the root at that
/// time.
pub fn verify(
    signature: &Signature,
    kind: Document,
    document: &[u8],
    root_pem: &str,
    at: OffsetDateTime,
) -> Result<SignedBy, CertError> {
    let none = || CertError::Signature { reason: "it has no certificate".to_owned() };
    let leaf = signature.chain.first().ok_or_else(none)?;
    let identity = Identity::of_certificate(leaf)?;
    let chain: Vec<CertificateDer<'_>> =
        signature.chain.iter().map(|der| CertificateDer::from(&der[..])).collect();
    verify_chain(&identity, &chain, roots(root_pem)?, at)?;
    let (_, certificate) = X509Certificate::from_der(leaf)
        .map_err(|error| CertError::Pem { what: "certificate", reason: error.to_string() })?;
    let point = &certificate.public_key().subject_public_key.data;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point)
        .verify(&kind.message(document), &signature.signature)
        .map_err(|_| CertError::Signature {
            reason: format!(
                "{} did not sign this document, or it was altered after that",
                identity.role
            ),
        })?;
    Ok(SignedBy { identity, key: fingerprint_of_certificate(leaf)? })
}

/// A member's key and certificates, ready to sign documents.
pub struct Signer {
    key: EcdsaKeyPair,
    chain: Vec<Vec<u8>>,
    identity: Identity,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the key.
        write!(f, "Signer({})", self.identity)
    }
}

impl Signer {
    /// The signer whose certificates and key, PEM, these are.
    ///
    /// # Errors
    /// [`CertError`] if a text is not PEM, the key is not ECDSA P-256, or it is of another certificate.
    pub fn of_pem(chain_pem: &str, key_pem: &str) -> Result<Self, CertError> {
        let chain: Vec<Vec<u8>> = certificates(chain_pem, "certificate")?
            .into_iter()
            .map(|certificate| certificate.to_vec())
            .collect();
        let identity = Identity::of_certificate(&chain[0])?;
        let der = key(key_pem)?;
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der.secret_der())
            .map_err(|error| CertError::Pem { what: "private key", reason: error.to_string() })?;
        let (_, certificate) = X509Certificate::from_der(&chain[0])
            .map_err(|error| CertError::Pem { what: "certificate", reason: error.to_string() })?;
        use aws_lc_rs::signature::KeyPair as _;
        if certificate.public_key().subject_public_key.data.as_ref() != key.public_key().as_ref() {
            return Err(CertError::KeyMismatch);
        }
        Ok(Self { key, chain, identity })
    }

    /// The signer whose certificates and key lie in these files.
    ///
    /// # Errors
    /// As [`of_pem`](Self::of_pem), and [`CertError::KeyReadable`] if others can read the key.
    pub fn read(chain: &Path, key: &Path) -> Result<Self, CertError> {
        let chain_pem = std::fs::read_to_string(chain).map_err(CertError::io("read", chain))?;
        Self::of_pem(&chain_pem, &read_key_pem(key)?)
    }

    /// Who signs.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What the key is known by.
    #[must_use]
    pub fn fingerprint(&self) -> KeyFingerprint {
        fingerprint_of_certificate(&self.chain[0]).expect("it was read when the signer was made")
    }

    /// Signs `document`.
    #[must_use]
    pub fn sign(&self, kind: Document, document: &[u8]) -> Signature {
        let signature = self
            .key
            .sign(&SystemRandom::new(), &kind.message(document))
            .expect("P-256 signs any bytes, and the operating system has randomness");
        Signature { chain: self.chain.clone(), signature: signature.as_ref().to_vec() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Authority, Role};
    use time::Duration;

    #[test]
    fn a_signature_is_under_one_document_of_one_kind_by_one_member() {
        let dir = tempfile::tempdir().unwrap();
        let now = OffsetDateTime::now_utc();
        let names = ["localhost".to_owned()];
        let authority = Authority::init(dir.path(), "demo", &names, now).unwrap();
        let root = authority.root_pem().to_owned();
        let file = |name: &str| dir.path().join(name);
        let signer = Signer::read(&file("operator.pem"), &file("operator.key")).unwrap();
        let signature = signer.sign(Document::Order, b"train");
        let by = verify(&signature, Document::Order, b"train", &root, now).unwrap();
        assert_eq!(by.identity.role, Role::Operator("operator".to_owned()));
        assert_eq!(by.key, signer.fingerprint());
        let refused = |signature: &Signature, kind, document: &[u8], root: &str, at| {
            verify(signature, kind, document, root, at).unwrap_err().to_string()
        };
        let said = refused(&signature, Document::Order, b"trail", &root, now);
        assert!(said.contains("altered"), "{said}");
        refused(&signature, Document::Consent, b"train", &root, now);
        let later = now + Duration::days(400);
        let said = refused(&signature, Document::Order, b"train", &root, later);
        assert!(said.contains("expired"), "{said}");
        let other = tempfile::tempdir().unwrap();
        let other = Authority::init(other.path(), "demo", &names, now).unwrap();
        refused(&signature, Document::Order, b"train", other.root_pem(), now);
        let coordinator = Signer::read(&file("coordinator.pem"), &file("coordinator.key")).unwrap();
        let mut forged = coordinator.sign(Document::Order, b"train");
        let by = verify(&forged, Document::Order, b"train", &root, now).unwrap();
        assert_eq!(by.identity.role, Role::Coordinator);
        forged.chain = signature.chain.clone();
        refused(&forged, Document::Order, b"train", &root, now);
        forged.chain.clear();
        refused(&forged, Document::Order, b"train", &root, now);
    }
}
