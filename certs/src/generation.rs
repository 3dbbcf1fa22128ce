//! The files of one root and the issuing CAs below it: a folder `ca-N`.

use std::path::{Path, PathBuf};

use comity_federation::Country;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::ca::{Ca, has_signed};
use crate::crl::{self, Entry, ISSUING_CRL_VALIDITY, Place, ROOT_CRL_VALIDITY};
use crate::files::{create_dir, list, read_text, replace};
use crate::tls::certificates;
use crate::{CertError, IssuingCa};

const ROOT_REMEDY: &str = "put it back from a backup, or sign it anew with `comity-coordinator certs refresh-crl --root-key FILE`";
const ISSUING_REMEDY: &str =
    "the running coordinator signs it anew by itself: look in its log why it did not, or start it";

/// Paths of one generation of authorities.
#[derive(Clone, Debug)]
pub(crate) struct Generation {
    dir: PathBuf,
}

impl Generation {
    pub(crate) fn new(authority: &Path, number: u32) -> Self {
        Self { dir: authority.join(format!("ca-{number}")) }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn root_pem(&self) -> PathBuf {
        self.dir.join("root.pem")
    }

    pub(crate) fn root_key(&self) -> PathBuf {
        self.dir.join("root.key")
    }

    /// Certificate and key of an issuing CA.
    pub(crate) fn issuing(&self, what: IssuingCa) -> (PathBuf, PathBuf) {
        let dir = match what {
            IssuingCa::Federation => self.dir.clone(),
            IssuingCa::Country(_) => self.dir.join("countries"),
        };
        let name = what.file_name();
        (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")))
    }

    /// A certificate of a member that waits for this generation to sign.
    pub(crate) fn prepared(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.pem"))
    }

    /// The countries that have an issuing CA, in order.
    pub(crate) fn countries(&self) -> Result<Vec<Country>, CertError> {
        let named = |path: &PathBuf| {
            path.file_name()?.to_str()?.strip_suffix(".pem")?.parse::<Country>().ok()
        };
        Ok(list(&self.dir.join("countries"))?.iter().filter_map(named).collect())
    }

    pub(crate) fn issuing_cas(&self) -> Result<Vec<IssuingCa>, CertError> {
        let countries = self.countries()?.into_iter().map(IssuingCa::Country);
        Ok(std::iter::once(IssuingCa::Federation).chain(countries).collect())
    }

    /// The revocation list of the root.
    pub(crate) fn root_crl(&self) -> Place {
        Place { path: self.dir.join("crl/root.crl.pem"), ca: self.root_pem(), remedy: ROOT_REMEDY }
    }

    /// The revocation list of an issuing CA.
    pub(crate) fn crl(&self, what: IssuingCa) -> Place {
        let path = self.dir.join(format!("crl/{}.crl.pem", what.file_name()));
        Place { path, ca: self.issuing(what).0, remedy: ISSUING_REMEDY }
    }

    /// All revocation lists without which nobody is let in.
    pub(crate) fn crls(&self) -> Result<Vec<Place>, CertError> {
        let issuing = self.issuing_cas()?.into_iter().map(|what| self.crl(what));
        Ok(std::iter::once(self.root_crl()).chain(issuing).collect())
    }

    /// The root with its key, from `key` or from where `init` wrote it.
    pub(crate) fn root(&self, key: Option<&Path>) -> Result<Ca, CertError> {
        let own = self.root_key();
        match key {
            Some(key) => Ca::read(&self.root_pem(), key),
            None if own.exists() => Ca::read(&self.root_pem(), &own),
            None => Err(CertError::RootKey { path: own }),
        }
    }

    pub(crate) fn has(&self, what: IssuingCa) -> bool {
        self.issuing(what).0.exists()
    }

    pub(crate) fn read(&self, what: IssuingCa) -> Result<Ca, CertError> {
        let (certificate, key) = self.issuing(what);
        Ca::read(&certificate, &key)
    }

    /// Makes a root in a new folder, with an empty revocation list.
    pub(crate) fn make_root(&self, federation: &str, now: OffsetDateTime) -> Result<Ca, CertError> {
        create_dir(&self.dir.join("countries"))?;
        create_dir(&self.dir.join("crl"))?;
        let root = Ca::root(federation, now)?;
        replace(&self.root_crl().path, &crl::sign(&root, [], ROOT_CRL_VALIDITY, now)?)?;
        root.write(&self.root_pem(), &self.root_key())?;
        Ok(root)
    }

    /// Makes an issuing CA below `root`, with an empty revocation list; its certificate is written last.
    pub(crate) fn make_issuing(
        &self,
        root: &Ca,
        federation: &str,
        what: IssuingCa,
        now: OffsetDateTime,
    ) -> Result<Ca, CertError> {
        let ca = Ca::issuing(root, federation, what, now)?;
        self.sign_crl(&ca, what, [], now)?;
        let (certificate, key) = self.issuing(what);
        ca.write(&certificate, &key)?;
        Ok(ca)
    }

    pub(crate) fn sign_crl(
        &self,
        ca: &Ca,
        what: IssuingCa,
        entries: impl IntoIterator<Item = Entry>,
        now: OffsetDateTime,
    ) -> Result<(), CertError> {
        replace(&self.crl(what).path, &crl::sign(ca, entries, ISSUING_CRL_VALIDITY, now)?)
    }

    pub(crate) fn sign_root_crl(
        &self,
        root: &Ca,
        entries: impl IntoIterator<Item = Entry>,
        now: OffsetDateTime,
    ) -> Result<(), CertError> {
        replace(&self.root_crl().path, &crl::sign(root, entries, ROOT_CRL_VALIDITY, now)?)
    }

    /// The root's certificate, PEM, after a look at whether it and the issuing CA below it are still what
    /// was signed: what the disk altered must not spread.
    pub(crate) fn checked_root(&self) -> Result<String, CertError> {
        let pem = self.root_text()?;
        let (root_path, issuing_path) = (self.root_pem(), self.issuing(IssuingCa::Federation).0);
        let damaged = |path: &Path| CertError::Ca {
            path: path.to_owned(),
            reason: format!("{} did not sign it, or it was altered", root_path.display()),
        };
        let der = |path: &Path, pem: &str| {
            certificates(pem, "certificate")
                .map(|mut all| all.remove(0))
                .map_err(|e| CertError::Ca { path: path.to_owned(), reason: e.to_string() })
        };
        let root_der = der(&root_path, &pem)?;
        let issuing_der = der(&issuing_path, &read_text(&issuing_path)?)?;
        let (_, root) = X509Certificate::from_der(&root_der).map_err(|_| damaged(&root_path))?;
        let (_, issuing) =
            X509Certificate::from_der(&issuing_der).map_err(|_| damaged(&issuing_path))?;
        for (path, certificate) in [(&root_path, &root), (&issuing_path, &issuing)] {
            let signed = has_signed(
                &root,
                &certificate.signature_algorithm,
                certificate.tbs_certificate.as_ref(),
                &certificate.signature_value,
            );
            if !signed {
                return Err(damaged(path));
            }
        }
        Ok(pem)
    }

    pub(crate) fn root_text(&self) -> Result<String, CertError> {
        read_text(&self.root_pem())
    }
}
