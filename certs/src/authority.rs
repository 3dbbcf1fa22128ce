//! The federation's certificate authority: a directory of PEM files.
//!
//! ```text
//! root.pem          the roots that are trusted: one, or two while one replaces the other
//! coordinator.pem   coordinator.key   30 days; server use only, with the coordinator's names
//! operator.pem      operator.key       1 year; client use only
//! ca-1/root.pem     ca-1/root.key     20 years; move root.key off the machine after init
//! ca-1/issuing.pem  ca-1/issuing.key   5 years; signs operators and the coordinator
//! ca-1/countries/KR.pem  KR.key        5 years; signs the clients of KR and nothing else
//! ca-1/crl/         who was revoked: one list of the root and of each issuing CA, signed by it
//! rotation.toml     which of the ca-N are trusted, and which one signs
//! retired/          those that no longer are
//! ```
//!
//! Keys are ECDSA P-256 in PKCS#8, readable by their owner only.

use std::path::{Path, PathBuf};

use comity_federation::Country;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType,
};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use crate::ca::{CLOCK_SKEW, Ca, ROOT_VALIDITY, is_label, issuing_ca};
use crate::files::{Lock, create_dir, read_key_pem, replace, write_new};
use crate::generation::Generation;
use crate::identity::client_host;
use crate::rotation::State;
use crate::tls::certificates;
use crate::{CertError, Identity, IssuingCa, Role, Serial, SigningRequest, check_own};

/// How long a certificate of the coordinator is valid.
pub const COORDINATOR_VALIDITY: Duration = Duration::days(30);
/// How long a certificate of a client is valid, unless somebody asks for less or more.
pub const CLIENT_VALIDITY: Duration = Duration::hours(24);
pub(crate) const OPERATOR_VALIDITY: Duration = Duration::days(365);
/// Name of the operator whose certificate `init` makes.
const FIRST_OPERATOR: &str = "operator";
/// The members whose certificates lie beside the authority.
pub(crate) const MEMBERS: [&str; 2] = ["coordinator", "operator"];

/// The certificate authority of a federation, ready to sign.
///
/// It is what its folder said when it was opened; issuing CAs of countries and revocation lists are read
/// when they are needed. Whoever lives long opens it anew each time.
#[derive(Debug)]
pub struct Authority {
    pub(crate) dir: PathBuf,
    pub(crate) state: State,
    pub(crate) federation: String,
    /// The issuing CA of operators and the coordinator.
    issuing: Ca,
    root_pem: String,
}

/// A certificate that was just made, and what is needed to revoke it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certified {
    /// The member's certificate, then the issuing CA's.
    pub certificate_pem: String,
    /// The certificate's number.
    pub serial: Serial,
    /// Until when it is valid.
    pub not_after: OffsetDateTime,
}

/// A certificate with its key, as it is handed to a member.
#[derive(Clone)]
pub struct Issued {
    /// The member's certificate, then the issuing CA's.
    pub certificate_pem: String,
    /// The private key, PKCS#8.
    pub key_pem: Zeroizing<String>,
    /// The federation's root, or roots.
    pub root_pem: String,
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the key.
        f.debug_struct("Issued")
            .field("certificate_pem", &self.certificate_pem)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes the authority of a new `federation` in `dir`, and the coordinator's and the first
    /// operator's certificates.
    ///
    /// `server_names`: DNS names and IP addresses by which clients reach the coordinator, at
    /// least one.  `now`: start of validity, less some minutes for clocks that are behind.
    ///
    /// # Errors
    /// [`CertError::AlreadyThere`] if one of the files exists; nothing is then changed.
    pub fn init(
        dir: impl AsRef<Path>,
        federation: &str,
        server_names: &[String],
        now: OffsetDateTime,
    ) -> Result<Self, CertError> {
        let dir = dir.as_ref();
        // It becomes a part of a DNS name.
        if !is_label(federation) {
            return Err(CertError::Name { what: "federation", name: federation.to_owned() });
        }
        let server_names = parse_server_names(server_names)?;
        let generation = Generation::new(dir, 1);
        let members = MEMBERS.map(|name| [format!("{name}.pem"), format!("{name}.key")]);
        let files = members.iter().flatten().map(|name| dir.join(name));
        let others = [dir.join("root.pem"), State::path(dir), generation.dir().to_owned()];
        for path in files.chain(others) {
            if path.exists() {
                return Err(CertError::AlreadyThere { path });
            }
        }

        create_dir(dir)?;
        let root = generation.make_root(federation, now)?;
        let issuing = generation.make_issuing(&root, federation, IssuingCa::Federation, now)?;
        let authority = Self {
            dir: dir.to_owned(),
            state: State::first(now.unix_timestamp()),
            federation: federation.to_owned(),
            issuing,
            root_pem: root.pem,
        };
        let start = now - CLOCK_SKEW;
        let end = now + COORDINATOR_VALIDITY;
        let coordinator = authority.make(&Role::Coordinator, server_names, start, end)?;
        let role = Role::Operator(FIRST_OPERATOR.to_owned());
        let operator = authority.make(&role, Vec::new(), start, now + OPERATOR_VALIDITY)?;
        for (name, issued) in MEMBERS.into_iter().zip([coordinator, operator]) {
            write_new(&dir.join(format!("{name}.key")), &issued.key_pem, true)?;
            write_new(&dir.join(format!("{name}.pem")), &issued.certificate_pem, false)?;
        }
        write_new(&dir.join("root.pem"), &authority.root_pem, false)?;
        // Without this file there is no authority.
        authority.state.write(dir)?;
        Ok(authority)
    }

    /// Opens the authority in `dir`; the root's key need not be there. A change of authorities that a crash
    /// interrupted is brought to its end first, forwards or backwards.
    ///
    /// # Errors
    /// [`CertError::NotAnAuthority`] if the directory was not made by [`init`](Self::init).
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, CertError> {
        loop {
            let authority = Self::read(dir.as_ref())?;
            if authority.settle()? {
                return Ok(authority);
            }
        }
    }

    fn read(dir: &Path) -> Result<Self, CertError> {
        let refuse = |reason: String| CertError::NotAnAuthority { dir: dir.to_owned(), reason };
        let state = State::read(dir)?;
        let mut root_pem = String::new();
        for number in state.trusted() {
            root_pem += &Generation::new(dir, number).checked_root()?;
        }
        let generation = Generation::new(dir, state.signing());
        let issuing = generation.read(IssuingCa::Federation)?;
        let (path, _) = generation.issuing(IssuingCa::Federation);
        let der = certificates(&issuing.pem, "issuing CA's certificate")?.remove(0);
        let (_, certificate) = X509Certificate::from_der(&der)
            .map_err(|error| refuse(format!("{}: {error}", path.display())))?;
        let federation = match issuing_ca(&certificate) {
            Ok((federation, IssuingCa::Federation)) => federation,
            Ok((_, other)) => {
                return Err(refuse(format!("{} is of {other}", path.display())));
            }
            Err(what) => return Err(refuse(format!("{}: {what}", path.display()))),
        };
        Ok(Self { dir: dir.to_owned(), state, federation, issuing, root_pem })
    }

    /// Short name of the federation.
    #[must_use]
    pub fn federation(&self) -> &str {
        &self.federation
    }

    /// Where the authority's files are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The federation's root certificate, PEM; two of them while the authority is replaced.
    #[must_use]
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// The certificate of the issuing CA of operators and the coordinator, PEM.
    pub(crate) fn issuing_pem(&self) -> &str {
        &self.issuing.pem
    }

    /// The authorities that are trusted, the one that signs first.
    pub(crate) fn generations(&self) -> Vec<Generation> {
        self.state.trusted().map(|number| Generation::new(&self.dir, number)).collect()
    }

    pub(crate) fn signing(&self) -> Generation {
        Generation::new(&self.dir, self.state.signing())
    }

    /// Makes the issuing CA of `country`, with the root's key from `root_key` or from where
    /// [`init`](Self::init) wrote it; `false` if it is there already.
    ///
    /// Clients of a country need it; it is made by itself with the first of them as long as the root's key
    /// is in the folder.
    ///
    /// # Errors
    /// [`CertError::NoCountry`] if the root's key is not there, [`CertError::Ca`] if it is another's.
    pub fn add_country(
        &self,
        country: Country,
        root_key: Option<&Path>,
        now: OffsetDateTime,
    ) -> Result<bool, CertError> {
        let _lock = Lock::of(&self.dir)?;
        let what = IssuingCa::Country(country);
        let mut made = false;
        let mut missing = None;
        for generation in self.generations() {
            if generation.has(what) {
                continue;
            }
            match generation.root(root_key) {
                Ok(root) => {
                    generation.make_issuing(&root, &self.federation, what, now)?;
                    made = true;
                }
                Err(error) => missing = missing.or(Some((generation, error))),
            }
        }
        match missing {
            // While one authority replaces another, one root's key at a time will do.
            Some((generation, error)) if !made || !self.signing().has(what) => Err(match error {
                CertError::RootKey { .. } => {
                    CertError::NoCountry { country, root_key: generation.root_key() }
                }
                other => other,
            }),
            _ => Ok(made),
        }
    }

    /// The countries that have an issuing CA, in order.
    ///
    /// # Errors
    /// [`CertError::Io`] if the folder cannot be read.
    pub fn countries(&self) -> Result<Vec<Country>, CertError> {
        self.signing().countries()
    }

    /// Makes a key and a certificate for a client or an operator, valid for `days` from `now`.
    ///
    /// # Errors
    /// [`CertError::NeedsServerNames`] for the coordinator, [`CertError::Validity`] if the
    /// issuing CA would expire first, [`CertError::NoCountry`] if a client's country has none.
    pub fn issue(&self, role: &Role, days: i64, now: OffsetDateTime) -> Result<Issued, CertError> {
        let days = days.clamp(0, ROOT_VALIDITY.whole_days());
        let end = now.checked_add(Duration::days(days)).unwrap_or(now);
        let issued = self.issue_between(role, now - CLOCK_SKEW, end)?;
        // If the disk altered the issuing certificate, nobody would accept what it signs.
        check_own(&issued.certificate_pem, &issued.key_pem, &self.root_pem, now)?;
        Ok(issued)
    }

    /// Like [`issue`](Self::issue), with the exact period of validity.
    ///
    /// # Errors
    /// As [`issue`](Self::issue).
    pub fn issue_between(
        &self,
        role: &Role,
        not_before: OffsetDateTime,
        not_after: OffsetDateTime,
    ) -> Result<Issued, CertError> {
        if *role == Role::Coordinator {
            return Err(CertError::NeedsServerNames);
        }
        self.make(role, Vec::new(), not_before, not_after)
    }

    /// Makes a key and a certificate for the coordinator under `server_names`.
    ///
    /// # Errors
    /// [`CertError::ServerName`] if a name is malformed or there is none.
    pub fn issue_server(
        &self,
        server_names: &[String],
        not_before: OffsetDateTime,
        not_after: OffsetDateTime,
    ) -> Result<Issued, CertError> {
        self.make(&Role::Coordinator, parse_server_names(server_names)?, not_before, not_after)
    }

    /// Replaces `coordinator.pem` by a new certificate for the same key, valid for
    /// [`COORDINATOR_VALIDITY`] from `now`.
    ///
    /// # Errors
    /// [`CertError::ServerName`] if a name is malformed or there is none, and what reading the key says.
    pub fn renew_coordinator(
        &self,
        server_names: &[String],
        now: OffsetDateTime,
    ) -> Result<Certified, CertError> {
        let names = parse_server_names(server_names)?;
        let _lock = Lock::of(&self.dir)?;
        let path = self.dir.join("coordinator.key");
        let key = KeyPair::from_pem(&read_key_pem(&path)?)
            .map_err(|error| CertError::Ca { path, reason: error.to_string() })?;
        let (start, end) = (now - CLOCK_SKEW, now + COORDINATOR_VALIDITY);
        let certified = self.certify(&key, &Role::Coordinator, names, start, end)?;
        replace(&self.dir.join("coordinator.pem"), &certified.certificate_pem)?;
        Ok(certified)
    }

    fn make(
        &self,
        role: &Role,
        names: Vec<SanType>,
        not_before: OffsetDateTime,
        not_after: OffsetDateTime,
    ) -> Result<Issued, CertError> {
        let key = KeyPair::generate()?;
        let certified = self.certify(&key, role, names, not_before, not_after)?;
        Ok(Issued {
            certificate_pem: certified.certificate_pem,
            key_pem: Zeroizing::new(key.serialize_pem()),
            root_pem: self.root_pem.clone(),
        })
    }

    /// Makes the certificate of a client or an operator for the key of `request`, valid from now, less some
    /// minutes for clocks that are behind, for `lifetime`.
    ///
    /// # Errors
    /// As [`issue`](Self::issue).
    pub fn sign(
        &self,
        request: &SigningRequest,
        role: &Role,
        lifetime: Duration,
        now: OffsetDateTime,
    ) -> Result<Certified, CertError> {
        if *role == Role::Coordinator {
            return Err(CertError::NeedsServerNames);
        }
        self.certify(&request.key, role, Vec::new(), now - CLOCK_SKEW, now + lifetime)
    }

    fn certify(
        &self,
        key: &impl PublicKeyData,
        role: &Role,
        names: Vec<SanType>,
        not_before: OffsetDateTime,
        not_after: OffsetDateTime,
    ) -> Result<Certified, CertError> {
        let country = match IssuingCa::of(role) {
            IssuingCa::Federation => {
                return certify(
                    &self.issuing,
                    &self.federation,
                    key,
                    role,
                    names,
                    (not_before, not_after),
                );
            }
            IssuingCa::Country(country) => country,
        };
        let what = IssuingCa::Country(country);
        if !self.signing().has(what) {
            self.add_country(country, None, not_before + CLOCK_SKEW)?;
        }
        let ca = self.signing().read(what)?;
        certify(&ca, &self.federation, key, role, names, (not_before, not_after))
    }
}

/// Signs the certificate of `role` with `ca`, which has to be the one for it.
pub(crate) fn certify(
    ca: &Ca,
    federation: &str,
    key: &impl PublicKeyData,
    role: &Role,
    mut names: Vec<SanType>,
    (not_before, not_after): (OffsetDateTime, OffsetDateTime),
) -> Result<Certified, CertError> {
    let refuse = |reason: String| CertError::Validity {
        not_before: not_before.date().to_string(),
        not_after: not_after.date().to_string(),
        reason,
    };
    if not_after <= not_before {
        return Err(refuse("it would end before it starts; give at least one day".to_owned()));
    }
    if not_after > ca.not_after {
        return Err(refuse(format!(
            "the issuing CA itself expires on {}; ask for fewer days",
            ca.not_after.date()
        )));
    }
    let identity = Identity { federation: federation.to_owned(), role: role.clone() };
    // What cannot be read back must not be signed.
    if identity.to_string().parse::<Identity>()? != identity {
        return Err(CertError::Name { what: "member", name: identity.role.to_string() });
    }
    names.push(SanType::URI(identity.to_string().try_into()?));
    if let Role::Client(client) = role {
        if !is_label(client.institution()) {
            let name = client.institution().to_owned();
            return Err(CertError::Name { what: "institution", name });
        }
        names.push(SanType::DnsName(client_host(federation, client).try_into()?));
    }

    let serial = Serial::random();
    let mut params = CertificateParams::default();
    params.serial_number = Some(serial.number());
    params.distinguished_name = subject(federation, &role.to_string());
    params.subject_alt_names = names;
    params.not_before = not_before;
    params.not_after = not_after;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![match role {
        Role::Coordinator => ExtendedKeyUsagePurpose::ServerAuth,
        Role::Client(_) | Role::Operator(_) => ExtendedKeyUsagePurpose::ClientAuth,
    }];
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(key, &ca.issuer)?;
    Ok(Certified { certificate_pem: certificate.pem() + &ca.pem, serial, not_after })
}

impl Issued {
    /// Writes `certificate.pem`, `key.pem` (readable by the owner only) and `root.pem` into
    /// `dir`, which is created if it does not exist.
    ///
    /// # Errors
    /// [`CertError::AlreadyThere`] if one of the files exists; nothing is then changed.
    pub fn write(&self, dir: impl AsRef<Path>) -> Result<(), CertError> {
        let dir = dir.as_ref();
        let files = [
            (dir.join("key.pem"), self.key_pem.as_str(), true),
            (dir.join("certificate.pem"), self.certificate_pem.as_str(), false),
            (dir.join("root.pem"), self.root_pem.as_str(), false),
        ];
        if let Some((path, ..)) = files.iter().find(|(path, ..)| path.exists()) {
            return Err(CertError::AlreadyThere { path: path.clone() });
        }
        std::fs::create_dir_all(dir).map_err(CertError::io("create", dir))?;
        files.iter().try_for_each(|(path, text, secret)| write_new(path, text, *secret))
    }
}

fn subject(federation: &str, name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, federation);
    // X.520's upper bound for a common name is 64 characters; the URI carries the identity.
    subject.push(DnType::CommonName, name.chars().take(64).collect::<String>());
    subject
}

fn parse_server_names(names: &[String]) -> Result<Vec<SanType>, CertError> {
    if names.is_empty() {
        return Err(CertError::ServerName(String::new()));
    }
    names
        .iter()
        .map(|name| {
            let refuse = || CertError::ServerName(name.clone());
            match rustls::pki_types::ServerName::try_from(name.as_str()).map_err(|_| refuse())? {
                rustls::pki_types::ServerName::IpAddress(address) => {
                    Ok(SanType::IpAddress(address.into()))
                }
                _ => Ok(SanType::DnsName(name.as_str().try_into().map_err(|_| refuse())?)),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests;
