//! A member's key: made where it is used, readable by its owner only, and never sent anywhere.

use std::path::Path;

use aws_lc_rs::digest;
use comity_federation::KeyFingerprint;
use rcgen::{CertificateParams, KeyPair, PublicKeyData};
use rustls::pki_types::CertificateSigningRequestDer;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use crate::CertError;
use crate::files::{read_key_pem, write_new};

/// A private key, ECDSA P-256.
pub struct MemberKey(KeyPair);

impl std::fmt::Debug for MemberKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the key.
        write!(f, "MemberKey({})", self.fingerprint())
    }
}

impl MemberKey {
    /// A new key, from the operating system's randomness.
    ///
    /// # Errors
    /// [`CertError::Make`] if there is none.
    pub fn generate() -> Result<Self, CertError> {
        Ok(Self(KeyPair::generate()?))
    }

    /// Reads the key at `path`.
    ///
    /// # Errors
    /// [`CertError::KeyReadable`] if others than its owner can read the file.
    pub fn read(path: &Path) -> Result<Self, CertError> {
        let pem = read_key_pem(path)?;
        KeyPair::from_pem(&pem)
            .map(Self)
            .map_err(|error| CertError::Pem { what: "private key", reason: error.to_string() })
    }

    /// Reads the key at `path`, or makes it there: `join` can be interrupted and repeated.
    ///
    /// # Errors
    /// As [`read`](Self::read), and [`CertError::Io`] if it cannot be written.
    pub fn read_or_make(path: &Path) -> Result<Self, CertError> {
        if path.exists() {
            return Self::read(path);
        }
        let key = Self::generate()?;
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(CertError::io("create", dir))?;
        }
        key.write_new(path)?;
        Ok(key)
    }

    /// Writes the key to a new file that only its owner can read.
    ///
    /// # Errors
    /// [`CertError::AlreadyThere`] if there is one.
    pub fn write_new(&self, path: &Path) -> Result<(), CertError> {
        write_new(path, &Zeroizing::new(self.0.serialize_pem()), true)
    }

    /// What the public key is known by.
    #[must_use]
    pub fn fingerprint(&self) -> KeyFingerprint {
        fingerprint_of_spki(&self.0.subject_public_key_info())
    }

    /// A certificate signing request, DER: the public key, and the proof that the private one is here.
    ///
    /// # Errors
    /// [`CertError::Make`] if it cannot be signed.
    pub fn signing_request(&self) -> Result<Vec<u8>, CertError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        Ok(params.serialize_request(&self.0)?.der().to_vec())
    }
}

/// A request for a certificate whose sender holds the private key.
pub struct SigningRequest {
    pub(crate) key: rcgen::PublicKey,
}

impl std::fmt::Debug for SigningRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningRequest({})", self.fingerprint())
    }
}

/// Longest request that is looked at, in bytes; ours have some 200.
const REQUEST_BYTES_MAX: usize = 4096;

impl SigningRequest {
    /// Reads a PKCS#10 request, DER, and checks its signature. Names and extensions in it count for
    /// nothing: who somebody is follows from the invitation, not from what they ask for.
    ///
    /// # Errors
    /// [`CertError::Request`] unless it is well-formed, of a P-256 key, and signed with that key.
    pub fn of_der(der: &[u8]) -> Result<Self, CertError> {
        let refuse = |reason: String| CertError::Request { reason };
        if der.len() > REQUEST_BYTES_MAX {
            return Err(refuse(format!("it has more than {REQUEST_BYTES_MAX} bytes")));
        }
        let der = CertificateSigningRequestDer::from(der);
        let request = rcgen::CertificateSigningRequestParams::from_der(&der)
            .map_err(|error| refuse(error.to_string()))?;
        if *request.public_key.algorithm() != rcgen::PKCS_ECDSA_P256_SHA256 {
            return Err(refuse("its key is not ECDSA P-256".to_owned()));
        }
        Ok(Self { key: request.public_key })
    }

    /// What the public key is known by.
    #[must_use]
    pub fn fingerprint(&self) -> KeyFingerprint {
        fingerprint_of_spki(&self.key.subject_public_key_info())
    }
}

/// What the key of an X.509 certificate, DER, is known by.
///
/// # Errors
/// [`CertError::Pem`] if it is none.
pub fn fingerprint_of_certificate(der: &[u8]) -> Result<KeyFingerprint, CertError> {
    let (_, certificate) = X509Certificate::from_der(der)
        .map_err(|error| CertError::Pem { what: "certificate", reason: error.to_string() })?;
    Ok(fingerprint_of_spki(certificate.public_key().raw))
}

pub(crate) fn fingerprint_of_spki(spki: &[u8]) -> KeyFingerprint {
    KeyFingerprint(sha256(spki))
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = digest::digest(&digest::SHA256, bytes);
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_proves_its_key_and_nothing_else() {
        let key = MemberKey::generate().unwrap();
        let request = key.signing_request().unwrap();
        assert_eq!(SigningRequest::of_der(&request).unwrap().fingerprint(), key.fingerprint());
        for at in [20, request.len() / 2, request.len() - 1] {
            let mut altered = request.clone();
            altered[at] ^= 1;
            assert!(SigningRequest::of_der(&altered).is_err(), "byte {at}");
        }
        assert!(SigningRequest::of_der(&[0; 5000]).is_err());
        assert!(SigningRequest::of_der(b"").is_err());
        let other = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let request = CertificateParams::default().serialize_request(&other).unwrap();
        let error = SigningRequest::of_der(request.der()).unwrap_err();
        assert!(error.to_string().contains("P-256"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn a_key_that_others_can_read_is_refused_with_the_remedy() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        let key = MemberKey::generate().unwrap();
        key.write_new(&path).unwrap();
        assert_eq!(MemberKey::read(&path).unwrap().fingerprint(), key.fingerprint());
        assert!(key.write_new(&path).is_err(), "never overwritten");
        for mode in [0o640, 0o604, 0o620] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let error = MemberKey::read(&path).unwrap_err();
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
    }
}
