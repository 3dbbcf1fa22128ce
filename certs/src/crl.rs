//! Revocation lists: one of each authority, signed by it, and no other is believed.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevocationReason, RevokedCertParams};
use rustls::RootCertStore;
use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::server::WebPkiClientVerifier;
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{CertificateRevocationList, FromDer, ReasonCode, X509Certificate};

use crate::ca::{CLOCK_SKEW, Ca, has_signed};
use crate::files::{read_bytes, read_text};
use crate::tls::{certificates, provider};
use crate::{CertError, IssuingCa, Serial};

/// How long the list of an issuing CA is valid; the running coordinator signs it anew long before.
pub(crate) const ISSUING_CRL_VALIDITY: Duration = Duration::days(7);
/// How long the root's list is valid; its key is offline.
pub(crate) const ROOT_CRL_VALIDITY: Duration = Duration::days(395);

/// Why a certificate was revoked, as far as X.509 has a word for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// None is given.
    Unspecified,
    /// Somebody else has the key, or may have it.
    KeyCompromise,
    /// The member is now another's.
    AffiliationChanged,
    /// There is a newer certificate.
    Superseded,
    /// The member takes part no more.
    CessationOfOperation,
    /// The member may take part no more.
    PrivilegeWithdrawn,
}

const REASONS: [(Reason, &str, RevocationReason, u8); 6] = [
    (Reason::Unspecified, "unspecified", RevocationReason::Unspecified, 0),
    (Reason::KeyCompromise, "key-compromise", RevocationReason::KeyCompromise, 1),
    (Reason::AffiliationChanged, "affiliation-changed", RevocationReason::AffiliationChanged, 3),
    (Reason::Superseded, "superseded", RevocationReason::Superseded, 4),
    (Reason::CessationOfOperation, "cessation", RevocationReason::CessationOfOperation, 5),
    (Reason::PrivilegeWithdrawn, "privilege-withdrawn", RevocationReason::PrivilegeWithdrawn, 9),
];

impl Reason {
    fn entry(self) -> &'static (Self, &'static str, RevocationReason, u8) {
        REASONS.iter().find(|(reason, ..)| *reason == self).expect("all are listed")
    }

    fn of_code(code: ReasonCode) -> Self {
        let known = REASONS.iter().find(|(.., number)| *number == code.0);
        known.map_or(Self::Unspecified, |(reason, ..)| *reason)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.entry().1)
    }
}

impl FromStr for Reason {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        REASONS.iter().find(|(_, name, ..)| *name == text).map(|(reason, ..)| *reason).ok_or_else(
            || {
                let names: Vec<_> = REASONS.iter().map(|(_, name, ..)| *name).collect();
                format!("{text:?} is no reason; one of {}", names.join(", "))
            },
        )
    }
}

/// A certificate that must no longer be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevokedCertificate {
    /// Who signed it.
    pub issuer: IssuingCa,
    /// Its serial number.
    pub serial: Serial,
    /// Since when.
    pub at: OffsetDateTime,
    /// Why.
    pub reason: Reason,
}

/// How long a revocation list lasts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrlHealth {
    /// Its file.
    pub path: PathBuf,
    /// When it was signed.
    pub this_update: OffsetDateTime,
    /// After that every connection is refused whose certificates it covers.
    pub next_update: OffsetDateTime,
    /// What signs it anew.
    pub remedy: &'static str,
}

impl CrlHealth {
    /// What to tell the operator, from half of the list's life on.
    #[must_use]
    pub fn warning(&self, now: OffsetDateTime) -> Option<String> {
        let (path, date) = (self.path.display(), self.next_update.date());
        if now > self.next_update {
            return Some(format!(
                "{path} expired on {date}: everybody whom it covers is refused; {}",
                self.remedy
            ));
        }
        let half = self.this_update + (self.next_update - self.this_update) / 2;
        (now > half).then(|| {
            format!(
                "{path} expires on {date}, and then everybody whom it covers is refused; {}",
                self.remedy
            )
        })
    }
}

/// One entry of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) serial: Serial,
    pub(crate) at: OffsetDateTime,
    pub(crate) reason: Reason,
}

/// The list of `ca` with these entries, PEM.
pub(crate) fn sign(
    ca: &Ca,
    entries: impl IntoIterator<Item = Entry>,
    validity: Duration,
    now: OffsetDateTime,
) -> Result<String, CertError> {
    let revoked_certs = entries.into_iter().map(|entry| RevokedCertParams {
        serial_number: entry.serial.number(),
        revocation_time: entry.at,
        reason_code: Some(entry.reason.entry().2),
        invalidity_date: None,
    });
    let milliseconds = now.unix_timestamp_nanos() / 1_000_000;
    let params = CertificateRevocationListParams {
        this_update: now - CLOCK_SKEW,
        next_update: now + validity,
        // Later lists have larger numbers.
        crl_number: u64::try_from(milliseconds).unwrap_or_default().into(),
        issuing_distribution_point: None,
        revoked_certs: revoked_certs.collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    Ok(params.signed_by(&ca.issuer)?.pem()?)
}

/// A list that is whole and was signed by the authority that it is of.
#[derive(Debug)]
pub(crate) struct Crl {
    pub(crate) der: CertificateRevocationListDer<'static>,
    pub(crate) this_update: OffsetDateTime,
    pub(crate) next_update: OffsetDateTime,
    pub(crate) entries: Vec<Entry>,
}

/// Where a list lies, whose it is, and what to do when it is damaged.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) path: PathBuf,
    /// The authority's certificate.
    pub(crate) ca: PathBuf,
    pub(crate) remedy: &'static str,
}

impl Place {
    /// Reads and checks the list.
    pub(crate) fn read(&self) -> Result<Crl, CertError> {
        let bytes = read_bytes(&self.path).map_err(|error| self.refuse(error.to_string()))?;
        let ca_pem = read_text(&self.ca)?;
        read(&bytes, &ca_pem, &self.ca).map_err(|reason| self.refuse(reason))
    }

    fn refuse(&self, reason: String) -> CertError {
        CertError::Crl { path: self.path.clone(), reason, remedy: self.remedy }
    }

    pub(crate) fn health(&self) -> Result<CrlHealth, CertError> {
        let Crl { this_update, next_update, .. } = self.read()?;
        Ok(CrlHealth { path: self.path.clone(), this_update, next_update, remedy: self.remedy })
    }
}

fn read(bytes: &[u8], ca_pem: &str, ca_path: &Path) -> Result<Crl, String> {
    if bytes.is_empty() {
        return Err("it is empty".to_owned());
    }
    let der = if bytes.starts_with(b"-----BEGIN") {
        CertificateRevocationListDer::from_pem_slice(bytes)
            .map_err(|error| format!("it is not complete PEM text ({error})"))?
    } else {
        CertificateRevocationListDer::from(bytes.to_vec())
    };
    let malformed = |what: String| format!("it is not a whole revocation list ({what})");
    let (rest, list) =
        CertificateRevocationList::from_der(&der).map_err(|error| malformed(error.to_string()))?;
    if !rest.is_empty() {
        return Err(malformed("bytes follow it".to_owned()));
    }
    let not_ca = |error: String| format!("{}: {error}", ca_path.display());
    let ca_der = certificates(ca_pem, "certificate").map_err(|e| not_ca(e.to_string()))?.remove(0);
    let (_, ca) = X509Certificate::from_der(&ca_der).map_err(|e| not_ca(e.to_string()))?;
    let signed = list.issuer().as_raw() == ca.subject().as_raw()
        && has_signed(
            &ca,
            &list.signature_algorithm,
            list.tbs_cert_list.as_ref(),
            &list.signature_value,
        );
    if !signed {
        return Err(format!("{} did not sign it, or it was altered", ca_path.display()));
    }
    let next_update = list.next_update().ok_or("it does not say until when it is valid")?;
    let entries = list
        .iter_revoked_certificates()
        .map(|entry| Entry {
            serial: Serial::of_integer(entry.raw_serial()),
            at: entry.revocation_date.to_datetime(),
            reason: entry
                .reason_code()
                .map_or(Reason::Unspecified, |(_, code)| Reason::of_code(code)),
        })
        .collect();
    let (this_update, next_update) = (list.last_update().to_datetime(), next_update.to_datetime());
    // What does not fit TLS is found now, and not when somebody connects.
    let mut roots = RootCertStore::empty();
    roots.add(ca_der).map_err(|error| not_ca(error.to_string()))?;
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .with_crls([der.clone()])
        .build()
        .map_err(|error| malformed(error.to_string()))?;
    Ok(Crl { der, this_update, next_update, entries })
}
