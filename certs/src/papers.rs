//! Whose signatures are under receipts, records and countersignatures: the same checks at the coordinator, at
//! a client, and offline years later.
//!
//! A paper's certificate need not be valid today: short-lived ones never are when somebody looks. It has to
//! lead to the root at the time that the paper names or, where that lies outside the certificate's own life
//! (a machine's clock was wrong), at the end of that life which is nearer.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use comity_federation::{
    ClientId, Export, KeyFingerprint, Receipt, RoundRecord, Signature, SignedRecord, Time,
};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::calendar;
use crate::explain::verify_chain;
use crate::key::{fingerprint_of_certificate, sha256};
use crate::tls::{certificates, roots};
use crate::{CertError, Document, Identity, Role, SignedBy};

/// Chains that are remembered; beyond that all are forgotten, and looked at again.
const CHAINS_MAX: usize = 4_096;

/// Checks signatures of one federation's members; a chain that comes again is not followed again.
#[derive(Debug)]
pub struct Verifier {
    federation: String,
    roots: RootCertStore,
    known: Mutex<BTreeMap<[u8; 32], Known>>,
}

#[derive(Clone, Debug)]
struct Known {
    by: SignedBy,
    /// The public key's point.
    point: Vec<u8>,
}

/// What an export's signatures came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Records, each signed by the coordinator and chained to the one before.
    pub n_records: usize,
    /// Clients' signatures under them.
    pub n_countersignatures: usize,
    /// Receipts that the coordinator signed.
    pub n_receipts: usize,
}

impl Verifier {
    /// Checks signatures of `federation`, whose certificates lead to `root_pem`.
    ///
    /// # Errors
    /// [`CertError::Pem`] if there is no root in it.
    pub fn new(federation: &str, root_pem: &str) -> Result<Self, CertError> {
        let roots = roots(root_pem)?;
        Ok(Self { federation: federation.to_owned(), roots, known: Mutex::default() })
    }

    /// [`new`](Self::new) with root certificates in DER.
    ///
    /// # Errors
    /// [`CertError::Tls`] if one of them is none.
    pub fn of_roots(federation: &str, ders: &[Vec<u8>]) -> Result<Self, CertError> {
        let mut roots = RootCertStore::empty();
        for der in ders {
            roots.add(CertificateDer::from(&der[..]))?;
        }
        Ok(Self { federation: federation.to_owned(), roots, known: Mutex::default() })
    }

    /// The federation.
    #[must_use]
    pub fn federation(&self) -> &str {
        &self.federation
    }

    /// Who signed `document`, which names the time `at`.
    ///
    /// # Errors
    /// [`CertError::Signature`] if nobody of this federation did; other variants if the certificates do not
    /// lead to the root.
    pub fn who(
        &self,
        signature: &Signature,
        kind: Document,
        document: &[u8],
        at: Time,
    ) -> Result<SignedBy, CertError> {
        let Known { by, point } = self.known(&signature.chain, at)?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &point)
            .verify(&kind.message(document), &signature.signature)
            .map_err(|_| {
                refuse(format!(
                    "{} did not sign this, or it was altered after that",
                    by.identity.role
                ))
            })?;
        if by.identity.federation != self.federation {
            return Err(refuse(format!("{} is of another federation", by.identity)));
        }
        Ok(by)
    }

    fn known(&self, chain: &[Vec<u8>], at: Time) -> Result<Known, CertError> {
        let mut bytes = Vec::new();
        for der in chain {
            bytes.extend_from_slice(&(der.len() as u64).to_le_bytes());
            bytes.extend_from_slice(der);
        }
        let key = sha256(&bytes);
        // A thread that panicked left a map that is whole.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.get(&key) {
            return Ok(known.clone());
        }
        let leaf = chain.first().ok_or_else(|| refuse("it has no certificate".to_owned()))?;
        let (_, certificate) = X509Certificate::from_der(leaf)
            .map_err(|error| CertError::Pem { what: "certificate", reason: error.to_string() })?;
        let identity = Identity::of_certificate(leaf)?;
        let life = certificate.validity();
        // Not `clamp`: somebody else wrote these dates, and their order too.
        let at = calendar(at).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let at = at.min(life.not_after.to_datetime()).max(life.not_before.to_datetime());
        let certificates: Vec<CertificateDer<'_>> =
            chain.iter().map(|der| CertificateDer::from(&der[..])).collect();
        verify_chain(&identity, &certificates, self.roots.clone(), at)?;
        let point = certificate.public_key().subject_public_key.data.to_vec();
        let by = SignedBy { identity, key: fingerprint_of_certificate(leaf)? };
        if known.len() >= CHAINS_MAX {
            known.clear();
        }
        known.insert(key, Known { by: by.clone(), point: point.clone() });
        Ok(Known { by, point })
    }

    /// Whether the coordinator signed `document`.
    ///
    /// # Errors
    /// As [`who`](Self::who), and [`CertError::Signature`] if somebody else did.
    pub fn coordinator(
        &self,
        signature: &Signature,
        kind: Document,
        document: &[u8],
        at: Time,
    ) -> Result<SignedBy, CertError> {
        let by = self.who(signature, kind, document, at)?;
        match by.identity.role {
            Role::Coordinator => Ok(by),
            other => Err(refuse(format!("it is of {other}, not of the coordinator"))),
        }
    }

    /// Whether the coordinator signed `receipt`.
    ///
    /// # Errors
    /// As [`coordinator`](Self::coordinator).
    pub fn receipt(&self, receipt: &Receipt, signature: &Signature) -> Result<(), CertError> {
        let document = receipt.to_json();
        self.coordinator(signature, Document::Receipt, &document, receipt.accepted).map(drop)
    }

    /// Whether the coordinator signed `record`.
    ///
    /// # Errors
    /// As [`coordinator`](Self::coordinator).
    pub fn record(&self, record: &RoundRecord, signature: &Signature) -> Result<(), CertError> {
        let document = record.to_json();
        self.coordinator(signature, Document::Record, &document, record.closed).map(drop)
    }

    /// Whether `client` signed `record`.
    ///
    /// # Errors
    /// As [`who`](Self::who), and [`CertError::Signature`] if somebody else did.
    pub fn countersignature(
        &self,
        record: &RoundRecord,
        client: &ClientId,
        signature: &Signature,
    ) -> Result<(), CertError> {
        let document = record.to_json();
        let by = self.who(signature, Document::Record, &document, record.closed)?;
        match by.identity.client() == Some(client) {
            true => Ok(()),
            false => Err(refuse(format!("it is of {}, not of {client}", by.identity.role))),
        }
    }

    /// Checks every signature in `export` and every link of its chain.
    ///
    /// # Errors
    /// [`CertError::Signature`] names the round and the signer.
    pub fn export(&self, export: &Export) -> Result<Checked, CertError> {
        if export.federation != self.federation {
            return Err(refuse(format!("the papers are of federation {}", export.federation)));
        }
        export.check_chain().map_err(|breach| refuse(breach.to_string()))?;
        let mut checked = Checked { n_records: 0, n_countersignatures: 0, n_receipts: 0 };
        for SignedRecord { record, signature, countersignatures } in &export.records {
            let of = |what: String| {
                move |error: CertError| refuse(format!("{what}, round {}: {error}", record.round))
            };
            self.record(record, signature).map_err(of("the record".to_owned()))?;
            checked.n_records += 1;
            for countersignature in countersignatures {
                let client = &countersignature.client;
                if export.plan.client(client).is_none() {
                    let why = format!("round {}: the plan does not name {client}", record.round);
                    return Err(refuse(why));
                }
                self.countersignature(record, client, &countersignature.signature)
                    .map_err(of(format!("{client}'s countersignature")))?;
                checked.n_countersignatures += 1;
            }
        }
        for signed in &export.receipts {
            let Receipt { run, client, round, .. } = &signed.receipt;
            if *run != export.run {
                return Err(refuse(format!("a receipt is of run {run}")));
            }
            self.receipt(&signed.receipt, &signed.signature)
                .map_err(|error| refuse(format!("receipt of {client}, round {round}: {error}")))?;
            checked.n_receipts += 1;
        }
        Ok(checked)
    }
}

/// SHA-256 of `bytes`: what a person compares.
#[must_use]
pub fn fingerprint(bytes: &[u8]) -> KeyFingerprint {
    KeyFingerprint(sha256(bytes))
}

/// The certificates in `pem`, DER.
///
/// # Errors
/// [`CertError::Pem`] if there is none.
pub fn certificates_of_pem(pem: &str) -> Result<Vec<Vec<u8>>, CertError> {
    Ok(certificates(pem, "certificate")?.into_iter().map(|der| der.to_vec()).collect())
}

fn refuse(reason: String) -> CertError {
    CertError::Signature { reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Authority, Signer};
    use comity_federation::{ModelDigest, PlanDigest};

    struct Federation {
        dir: tempfile::TempDir,
        verifier: Verifier,
        now: Time,
    }

    impl Federation {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let now = OffsetDateTime::now_utc();
            let names = ["localhost".to_owned()];
            let authority = Authority::init(dir.path(), "demo", &names, now).unwrap();
            let client = Role::Client("KR/a".parse().unwrap());
            authority.issue(&client, 1, now).unwrap().write(dir.path().join("a")).unwrap();
            let verifier = Verifier::new("demo", authority.root_pem()).unwrap();
            let now = Time((now.unix_timestamp() * 1000) as u64);
            Self { dir, verifier, now }
        }

        fn signer(&self, name: &str) -> Signer {
            let file = |end: &str| self.dir.path().join(format!("{name}{end}"));
            Signer::read(&file(".pem"), &file(".key")).unwrap()
        }

        fn client(&self) -> Signer {
            let dir = self.dir.path().join("a");
            Signer::read(&dir.join("certificate.pem"), &dir.join("key.pem")).unwrap()
        }
    }

    fn record(closed: Time) -> RoundRecord {
        RoundRecord {
            federation: "demo".to_owned(),
            run: "x-1".parse().unwrap(),
            plan: PlanDigest([1; 32]),
            round: 1,
            previous: None,
            opened: Time(0),
            closed,
            base: ModelDigest([2; 32]),
            model: ModelDigest([3; 32]),
            cohort: Vec::new(),
            contributions: Vec::new(),
            missing: Vec::new(),
        }
    }

    #[test]
    fn only_the_coordinator_signs_records_and_only_a_client_under_its_own_name() {
        let federation = Federation::new();
        let verifier = &federation.verifier;
        let record = record(federation.now);
        let json = record.to_json();
        let coordinator = federation.signer("coordinator").sign(Document::Record, &json);
        verifier.record(&record, &coordinator).unwrap();
        let client = federation.client().sign(Document::Record, &json);
        let (a, b) = ("KR/a".parse().unwrap(), "KR/b".parse().unwrap());
        verifier.countersignature(&record, &a, &client).unwrap();
        for refused in [
            verifier.record(&record, &client),
            verifier.record(&record, &federation.signer("operator").sign(Document::Record, &json)),
            verifier
                .record(&record, &federation.signer("coordinator").sign(Document::Receipt, &json)),
            verifier.countersignature(&record, &b, &client),
            verifier.countersignature(&record, &a, &coordinator),
            verifier.record(&self::record(Time(7)), &coordinator),
            Verifier::new("else", &root(&federation)).unwrap().record(&record, &coordinator),
        ] {
            assert!(matches!(refused, Err(CertError::Signature { .. })), "{refused:?}");
        }
    }

    fn root(federation: &Federation) -> String {
        std::fs::read_to_string(federation.dir.path().join("root.pem")).unwrap()
    }

    #[test]
    fn a_paper_is_good_after_its_certificate_has_expired_and_under_a_wrong_clock() {
        let federation = Federation::new();
        let (signer, year) = (federation.client(), 365 * 86_400_000);
        for closed in [Time(0), Time(federation.now.0 + year), Time(u64::MAX)] {
            let record = record(closed);
            let signature = signer.sign(Document::Record, &record.to_json());
            let verifier = Verifier::new("demo", &root(&federation)).unwrap();
            verifier.countersignature(&record, &"KR/a".parse().unwrap(), &signature).unwrap();
        }
    }

    #[test]
    fn every_altered_byte_of_a_signature_or_its_certificates_is_found() {
        let federation = Federation::new();
        let record = record(federation.now);
        let signature = federation.signer("coordinator").sign(Document::Record, &record.to_json());
        for at in 0..signature.signature.len() {
            let mut altered = signature.clone();
            altered.signature[at] ^= 1;
            assert!(federation.verifier.record(&record, &altered).is_err(), "signature {at}");
        }
        for index in 0..signature.chain.len() {
            for at in (0..signature.chain[index].len()).step_by(3) {
                let mut altered = signature.clone();
                altered.chain[index][at] ^= 1;
                let refused = federation.verifier.record(&record, &altered);
                assert!(refused.is_err(), "certificate {index}, byte {at}");
            }
        }
    }
}
