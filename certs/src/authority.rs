//! The federation's certificate authority: a directory of PEM files.
//!
//! ```text
//! root.pem        root.key         20 years; move root.key off the machine after init
//! issuing.pem     issuing.key       5 years; signs the members' certificates, path length 0
//! coordinator.pem coordinator.key   1 year; server use only, with the coordinator's names
//! operator.pem    operator.key      1 year; client use only
//! ```
//!
//! Keys are ECDSA P-256 in PKCS#8, readable by their owner only.  Nothing is ever overwritten.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::files::write_new;
use crate::identity::is_name;
use crate::tls::certificates;
use crate::{CertError, Identity, Role, SigningRequest, check_own};

const ROOT_DAYS: i64 = 20 * 365;
const ISSUING_DAYS: i64 = 5 * 365;
const MEMBER_DAYS: i64 = 365;
/// How far a partner's clock may be behind ours without its refusing a new certificate.
const CLOCK_SKEW: Duration = Duration::minutes(5);
/// Name of the operator whose certificate `init` makes.
const FIRST_OPERATOR: &str = "operator";
const MEMBERS: [&str; 4] = ["root", "issuing", "coordinator", "operator"];

/// The issuing CA of a federation, ready to sign.
#[derive(Debug)]
pub struct Authority {
    dir: PathBuf,
    federation: String,
    issuer: Issuer<'static, KeyPair>,
    issuing_pem: String,
    root_pem: String,
    /// Until when the issuing CA is valid.
    not_after: OffsetDateTime,
}

/// A certificate with its key, as it is handed to a member.
#[derive(Clone)]
pub struct Issued {
    /// The member's certificate, then the issuing CA's.
    pub certificate_pem: String,
    /// The private key, PKCS#8.
    pub key_pem: String,
    /// The federation's root.
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
        if !is_name(federation) {
            return Err(CertError::Name { what: "federation", name: federation.to_owned() });
        }
        let server_names = parse_server_names(server_names)?;
        for name in MEMBERS {
            for path in [dir.join(format!("{name}.pem")), dir.join(format!("{name}.key"))] {
                if path.exists() {
                    return Err(CertError::AlreadyThere { path });
                }
            }
        }

        let start = now - CLOCK_SKEW;
        let root_key = KeyPair::generate()?;
        let root_params =
            authority_params(federation, "root", 1, start, now + Duration::days(ROOT_DAYS));
        let root = root_params.self_signed(&root_key)?;
        let root_issuer = Issuer::new(root_params, root_key);

        let issuing_key = KeyPair::generate()?;
        let not_after = now + Duration::days(ISSUING_DAYS);
        let issuing_params = authority_params(federation, "issuing CA", 0, start, not_after);
        let issuing = issuing_params.signed_by(&issuing_key, &root_issuer)?;

        let authority = Self {
            dir: dir.to_owned(),
            federation: federation.to_owned(),
            issuer: Issuer::new(issuing_params, issuing_key),
            issuing_pem: issuing.pem(),
            root_pem: root.pem(),
            not_after,
        };
        let end = now + Duration::days(MEMBER_DAYS);
        let coordinator = authority.make(&Role::Coordinator, server_names, start, end)?;
        let operator =
            authority.make(&Role::Operator(FIRST_OPERATOR.to_owned()), Vec::new(), start, end)?;

        std::fs::create_dir_all(dir).map_err(CertError::io("create", dir))?;
        let files = [
            ("root", root.pem(), root_issuer.key().serialize_pem()),
            ("issuing", issuing.pem(), authority.issuer.key().serialize_pem()),
            ("coordinator", coordinator.certificate_pem, coordinator.key_pem),
            ("operator", operator.certificate_pem, operator.key_pem),
        ];
        for (name, certificate, key) in files {
            write_new(&dir.join(format!("{name}.key")), &key, true)?;
            write_new(&dir.join(format!("{name}.pem")), &certificate, false)?;
        }
        Ok(authority)
    }

    /// Opens the authority in `dir`; the root's key need not be there.
    ///
    /// # Errors
    /// [`CertError::NotAnAuthority`] if the directory was not made by [`init`](Self::init).
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, CertError> {
        let dir = dir.as_ref();
        let refuse = |reason: String| CertError::NotAnAuthority { dir: dir.to_owned(), reason };
        let read = |name: &str| {
            std::fs::read_to_string(dir.join(name))
                .map_err(|error| refuse(format!("{name}: {error}")))
        };
        let (root_pem, issuing_pem) = (read("root.pem")?, read("issuing.pem")?);
        let key = KeyPair::from_pem(&read("issuing.key")?)
            .map_err(|error| refuse(format!("issuing.key: {error}")))?;
        let der = certificates(&issuing_pem, "issuing.pem")?.remove(0);
        let (_, certificate) = X509Certificate::from_der(&der)
            .map_err(|error| refuse(format!("issuing.pem: {error}")))?;
        let federation = certificate
            .subject()
            .iter_organization()
            .next()
            .and_then(|name| name.as_str().ok())
            .filter(|name| is_name(name))
            .ok_or_else(|| refuse("issuing.pem does not name a federation".to_owned()))?
            .to_owned();
        if certificate.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(refuse("issuing.key does not belong to issuing.pem".to_owned()));
        }
        let not_after = certificate.validity().not_after.to_datetime();
        let issuer = Issuer::from_ca_cert_der(&der, key)?;
        Ok(Self { dir: dir.to_owned(), federation, issuer, issuing_pem, root_pem, not_after })
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

    /// The federation's root certificate, PEM.
    #[must_use]
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// Makes a key and a certificate for a client or an operator, valid for `days` from `now`.
    ///
    /// # Errors
    /// [`CertError::NeedsServerNames`] for the coordinator, [`CertError::Validity`] if the
    /// issuing CA would expire first.
    pub fn issue(&self, role: &Role, days: i64, now: OffsetDateTime) -> Result<Issued, CertError> {
        let end = now.checked_add(Duration::days(days.clamp(0, ROOT_DAYS))).unwrap_or(now);
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

    fn make(
        &self,
        role: &Role,
        names: Vec<SanType>,
        not_before: OffsetDateTime,
        not_after: OffsetDateTime,
    ) -> Result<Issued, CertError> {
        let key = KeyPair::generate()?;
        let certificate_pem = self.certify(&key, role, names, not_before, not_after)?;
        Ok(Issued {
            certificate_pem,
            key_pem: key.serialize_pem(),
            root_pem: self.root_pem.clone(),
        })
    }

    /// Makes the certificate of a client or an operator for the key of `request`, valid from now, less some
    /// minutes for clocks that are behind, for `lifetime`: PEM, followed by the issuing CA's.
    ///
    /// # Errors
    /// [`CertError::NeedsServerNames`] for the coordinator, [`CertError::Validity`] if the
    /// issuing CA would expire first.
    pub fn sign(
        &self,
        request: &SigningRequest,
        role: &Role,
        lifetime: Duration,
        now: OffsetDateTime,
    ) -> Result<String, CertError> {
        if *role == Role::Coordinator {
            return Err(CertError::NeedsServerNames);
        }
        self.certify(&request.key, role, Vec::new(), now - CLOCK_SKEW, now + lifetime)
    }

    fn certify(
        &self,
        key: &impl PublicKeyData,
        role: &Role,
        mut names: Vec<SanType>,
        not_before: OffsetDateTime,
        not_after: OffsetDateTime,
    ) -> Result<String, CertError> {
        let refuse = |reason: String| CertError::Validity {
            not_before: not_before.date().to_string(),
            not_after: not_after.date().to_string(),
            reason,
        };
        if not_after <= not_before {
            return Err(refuse("it would end before it starts; give at least one day".to_owned()));
        }
        if not_after > self.not_after {
            return Err(refuse(format!(
                "the issuing CA itself expires on {}; ask for fewer days",
                self.not_after.date()
            )));
        }
        let identity = Identity { federation: self.federation.clone(), role: role.clone() };
        // What cannot be read back must not be signed.
        if identity.to_string().parse::<Identity>()? != identity {
            return Err(CertError::Name { what: "member", name: identity.role.to_string() });
        }
        names.push(SanType::URI(identity.to_string().try_into()?));

        let mut params = CertificateParams::default();
        params.distinguished_name = subject(&self.federation, &role.to_string());
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
        let certificate = params.signed_by(key, &self.issuer)?;
        Ok(certificate.pem() + &self.issuing_pem)
    }
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
            (dir.join("key.pem"), &self.key_pem, true),
            (dir.join("certificate.pem"), &self.certificate_pem, false),
            (dir.join("root.pem"), &self.root_pem, false),
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

fn authority_params(
    federation: &str,
    name: &str,
    path_length: u8,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(federation, &format!("Comity {name}"));
    params.not_before = not_before;
    params.not_after = not_after;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params
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
mod tests {
    use super::*;

    fn names() -> Vec<String> {
        vec!["localhost".to_owned(), "127.0.0.1".to_owned()]
    }

    #[test]
    fn init_makes_eight_files_and_never_overwrites() {
        let dir = tempfile::tempdir().unwrap();
        let now = OffsetDateTime::now_utc();
        Authority::init(dir.path(), "demo", &names(), now).unwrap();
        let read = || {
            let mut files: Vec<_> = std::fs::read_dir(dir.path())
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .map(|path| (path.clone(), std::fs::read(&path).unwrap()))
                .collect();
            files.sort();
            files
        };
        let before = read();
        assert_eq!(before.len(), 8);
        let error = Authority::init(dir.path(), "demo", &names(), now).unwrap_err();
        assert!(matches!(error, CertError::AlreadyThere { .. }), "{error}");
        assert_eq!(read(), before);

        // One left over is enough, and nothing is added to it.
        let other = tempfile::tempdir().unwrap();
        std::fs::write(other.path().join("operator.key"), "mine").unwrap();
        assert!(Authority::init(other.path(), "demo", &names(), now).is_err());
        assert_eq!(std::fs::read_dir(other.path()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn keys_are_readable_by_their_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let now = OffsetDateTime::now_utc();
        let authority = Authority::init(dir.path().join("ca"), "demo", &names(), now).unwrap();
        let role = Role::Client("KR/seoul-lab".parse().unwrap());
        let member = dir.path().join("kr");
        authority.issue(&role, 30, now).unwrap().write(&member).unwrap();
        let keys = MEMBERS.map(|name| dir.path().join(format!("ca/{name}.key")));
        for key in keys.iter().chain([&member.join("key.pem")]) {
            let mode = std::fs::metadata(key).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{}", key.display());
        }
        let error = authority.issue(&role, 30, now).unwrap().write(&member).unwrap_err();
        assert!(matches!(error, CertError::AlreadyThere { .. }));
    }

    #[test]
    fn reopened_authority_issues_without_the_root_key() {
        let dir = tempfile::tempdir().unwrap();
        let now = OffsetDateTime::now_utc();
        Authority::init(dir.path(), "demo", &names(), now).unwrap();
        std::fs::remove_file(dir.path().join("root.key")).unwrap();
        let authority = Authority::open(dir.path()).unwrap();
        assert_eq!(authority.federation(), "demo");
        let role = Role::Client("JP/osaka".parse().unwrap());
        let issued = authority.issue(&role, 30, now).unwrap();
        let summary =
            crate::check_own(&issued.certificate_pem, &issued.key_pem, &issued.root_pem, now)
                .unwrap();
        assert_eq!(summary.identity.to_string(), "comity://demo/client/JP/osaka");
    }

    #[test]
    fn what_is_not_an_authority_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let text = Authority::open(dir.path()).unwrap_err().to_string();
        assert!(text.contains("root.pem") && text.contains("init"), "{text}");
        let now = OffsetDateTime::now_utc();
        Authority::init(dir.path(), "demo", &names(), now).unwrap();
        std::fs::copy(dir.path().join("operator.key"), dir.path().join("issuing.key")).unwrap();
        let text = Authority::open(dir.path()).unwrap_err().to_string();
        assert!(text.contains("does not belong"), "{text}");
    }

    #[test]
    fn bad_names_and_periods_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let now = OffsetDateTime::now_utc();
        for federation in ["", "Demo", "a/b", "..", "de mo"] {
            assert!(Authority::init(dir.path(), federation, &names(), now).is_err());
        }
        for server in [vec![], vec!["a b".to_owned()], vec!["https://x".to_owned()]] {
            assert!(Authority::init(dir.path(), "demo", &server, now).is_err());
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let authority = Authority::init(dir.path(), "demo", &names(), now).unwrap();
        let client = Role::Client("KR/x".parse().unwrap());
        assert!(authority.issue(&client, 6 * 365, now).unwrap_err().to_string().contains("fewer"));
        assert!(authority.issue_between(&client, now, now).is_err());
        assert!(authority.issue(&Role::Operator("../x".to_owned()), 1, now).is_err());
        assert!(matches!(
            authority.issue(&Role::Coordinator, 1, now),
            Err(CertError::NeedsServerNames)
        ));
    }
}
