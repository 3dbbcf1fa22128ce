//! One certificate authority: its certificate, what it may sign, and its key.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use comity_federation::Country;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    NameConstraints, PublicKeyData,
};
use time::{Duration, OffsetDateTime};
use x509_parser::asn1_rs::BitString;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{AlgorithmIdentifier, FromDer, GeneralName, X509Certificate};
use zeroize::Zeroizing;

use crate::files::{read_key_pem, read_text, replace, replace_secret};
use crate::identity::is_name;
use crate::key::fingerprint_of_spki;
use crate::tls::certificates;
use crate::{CertError, Role, Serial};

/// How long a root is valid.
pub(crate) const ROOT_VALIDITY: Duration = Duration::days(20 * 365);
/// How long an issuing CA is valid.
pub(crate) const ISSUING_VALIDITY: Duration = Duration::days(5 * 365);
/// How far a partner's clock may be behind ours without its refusing a new certificate.
pub(crate) const CLOCK_SKEW: Duration = Duration::minutes(5);
/// Below this domain are the names of clients; no host has one.
const DOMAIN: &str = "comity.internal";
const ECDSA_WITH_SHA256: &str = "1.2.840.10045.4.3.2";

/// Who of a federation's issuing CAs: the one of operators and the coordinator, or a country's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IssuingCa {
    /// It signs operators and the coordinator, and no client.
    Federation,
    /// It signs the clients of this country, and nobody else.
    Country(Country),
}

impl IssuingCa {
    /// Which one signs the certificate of `role`.
    #[must_use]
    pub fn of(role: &Role) -> Self {
        match role {
            Role::Client(client) => Self::Country(client.country()),
            Role::Operator(_) | Role::Coordinator => Self::Federation,
        }
    }

    /// How its files are called.
    pub(crate) fn file_name(self) -> String {
        match self {
            Self::Federation => "issuing".to_owned(),
            Self::Country(country) => country.to_string(),
        }
    }
}

impl fmt::Display for IssuingCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Federation => f.pad("federation"),
            Self::Country(country) => country.fmt(f),
        }
    }
}

impl FromStr for IssuingCa {
    type Err = comity_federation::IdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "federation" => Ok(Self::Federation),
            country => country.parse().map(Self::Country),
        }
    }
}

/// The DNS name under which all clients of `country` are.
pub(crate) fn country_domain(federation: &str, country: Country) -> String {
    format!("{}.{federation}.{DOMAIN}", country.as_str().to_ascii_lowercase())
}

/// Whether `name` can be one label of a DNS name.
pub(crate) fn is_label(name: &str) -> bool {
    is_name(name) && name.len() <= 63 && !name.ends_with('-')
}

/// A certificate authority that can sign.
pub(crate) struct Ca {
    pub(crate) issuer: Issuer<'static, KeyPair>,
    /// Its own certificate.
    pub(crate) pem: String,
    pub(crate) not_before: OffsetDateTime,
    pub(crate) not_after: OffsetDateTime,
}

impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the key.
        f.debug_struct("Ca").field("pem", &self.pem).finish_non_exhaustive()
    }
}

impl Ca {
    /// A new root of `federation`.
    pub(crate) fn root(federation: &str, now: OffsetDateTime) -> Result<Self, CertError> {
        let key = KeyPair::generate()?;
        let mut params = params(federation, None, "Comity root", &key);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        (params.not_before, params.not_after) = (now - CLOCK_SKEW, now + ROOT_VALIDITY);
        let pem = params.self_signed(&key)?.pem();
        let (not_before, not_after) = (params.not_before, params.not_after);
        Ok(Self { issuer: Issuer::new(params, key), pem, not_before, not_after })
    }

    /// A new issuing CA below `root`, valid as long as that is but at most some years from `now`.
    pub(crate) fn issuing(
        root: &Self,
        federation: &str,
        what: IssuingCa,
        now: OffsetDateTime,
    ) -> Result<Self, CertError> {
        let key = KeyPair::generate()?;
        let mut params = match what {
            IssuingCa::Federation => {
                let mut params = params(federation, None, "Comity issuing CA", &key);
                params.name_constraints = Some(NameConstraints {
                    permitted_subtrees: Vec::new(),
                    excluded_subtrees: vec![GeneralSubtree::DnsName(format!(
                        "{federation}.{DOMAIN}"
                    ))],
                });
                params
            }
            IssuingCa::Country(country) => {
                let name = format!("Comity issuing CA of {country}");
                let mut params = params(federation, Some(country), &name, &key);
                params.name_constraints = Some(NameConstraints {
                    permitted_subtrees: vec![GeneralSubtree::DnsName(country_domain(
                        federation, country,
                    ))],
                    excluded_subtrees: vec![
                        GeneralSubtree::IpAddress(CidrSubnet::V4([0; 4], [0; 4])),
                        GeneralSubtree::IpAddress(CidrSubnet::V6([0; 16], [0; 16])),
                    ],
                });
                // Nobody can pose as the coordinator with what it signs.
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
                params
            }
        };
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.not_before = root.not_before;
        params.not_after = (now + ISSUING_VALIDITY).min(root.not_after);
        let pem = params.signed_by(&key, &root.issuer)?.pem();
        let (not_before, not_after) = (params.not_before, params.not_after);
        Ok(Self { issuer: Issuer::new(params, key), pem, not_before, not_after })
    }

    /// Reads certificate and key, which have to belong together.
    pub(crate) fn read(certificate: &Path, key: &Path) -> Result<Self, CertError> {
        let refuse = |path: &Path, reason: String| CertError::Ca { path: path.to_owned(), reason };
        let pem = read_text(certificate)?;
        let key_pair = KeyPair::from_pem(&read_key_pem(key)?)
            .map_err(|error| refuse(key, error.to_string()))?;
        let der = certificates(&pem, "certificate")
            .map_err(|error| refuse(certificate, error.to_string()))?
            .remove(0);
        let (_, x509) = X509Certificate::from_der(&der)
            .map_err(|error| refuse(certificate, error.to_string()))?;
        if x509.public_key().subject_public_key.data.as_ref() != key_pair.public_key_raw() {
            let certificate = certificate.display();
            return Err(refuse(key, format!("it does not belong to {certificate}")));
        }
        let validity = x509.validity();
        let (not_before, not_after) =
            (validity.not_before.to_datetime(), validity.not_after.to_datetime());
        let issuer = Issuer::from_ca_cert_der(&der, key_pair)?;
        Ok(Self { issuer, pem, not_before, not_after })
    }

    /// Writes key and certificate, in this order: without the certificate a key is a leftover of a crash.
    pub(crate) fn write(&self, certificate: &Path, key: &Path) -> Result<(), CertError> {
        replace_secret(key, &Zeroizing::new(self.issuer.key().serialize_pem()))?;
        replace(certificate, &self.pem)
    }
}

fn params(
    federation: &str,
    country: Option<Country>,
    name: &str,
    key: &KeyPair,
) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    if let Some(country) = country {
        let code = country.as_str().try_into().expect("two letters are printable");
        subject.push(DnType::CountryName, DnValue::PrintableString(code));
    }
    subject.push(DnType::OrganizationName, federation);
    // Revocation lists are found by this name, so no two authorities may have the same.
    let key = fingerprint_of_spki(&key.subject_public_key_info()).to_string();
    subject.push(DnType::CommonName, format!("{name} {}", &key[..8]));
    params.distinguished_name = subject;
    params.serial_number = Some(Serial::random().number());
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params
}

/// Which issuing CA of which federation a certificate is of, strictly read.
pub(crate) fn issuing_ca(certificate: &X509Certificate<'_>) -> Result<(String, IssuingCa), String> {
    let constraints = certificate.basic_constraints().map_err(|error| error.to_string())?;
    if constraints.is_none_or(|c| !c.value.ca || c.value.path_len_constraint != Some(0)) {
        return Err("it is no issuing CA".to_owned());
    }
    let subject = certificate.subject();
    let texts = |mut values: Vec<Option<String>>| match values.len() {
        1 => values.remove(0),
        _ => None,
    };
    let federation = subject.iter_organization().map(|o| o.as_str().ok().map(str::to_owned));
    let federation = texts(federation.collect())
        .filter(|name| is_label(name))
        .ok_or("it names no federation")?;
    let country: Vec<_> =
        subject.iter_country().map(|c| c.as_str().ok().map(str::to_owned)).collect();
    let names = certificate
        .extensions()
        .iter()
        .find(|extension| {
            matches!(extension.parsed_extension(), ParsedExtension::NameConstraints(_))
        })
        .filter(|extension| extension.critical);
    let Some(ParsedExtension::NameConstraints(names)) =
        names.map(|extension| extension.parsed_extension())
    else {
        return Err("its name constraints are missing".to_owned());
    };
    let subtree =
        |names: &Option<Vec<x509_parser::extensions::GeneralSubtree<'_>>>| match names.as_deref() {
            Some([only]) => match only.base {
                GeneralName::DNSName(name) => Some(name.to_owned()),
                _ => None,
            },
            _ => None,
        };
    if country.is_empty() {
        let domain = format!("{federation}.{DOMAIN}");
        return match subtree(&names.excluded_subtrees) {
            Some(name) if name == domain && names.permitted_subtrees.is_none() => {
                Ok((federation, IssuingCa::Federation))
            }
            _ => Err("its name constraints are not those of a federation's issuing CA".to_owned()),
        };
    }
    let country: Country =
        texts(country).and_then(|code| code.parse().ok()).ok_or("it names no proper country")?;
    match subtree(&names.permitted_subtrees) {
        Some(name) if name == country_domain(&federation, country) => {
            Ok((federation, IssuingCa::Country(country)))
        }
        _ => Err(format!("its name constraints are not those of the issuing CA of {country}")),
    }
}

/// Whether the key of `ca` signed `signed`, with the one algorithm that is used here.
pub(crate) fn has_signed(
    ca: &X509Certificate<'_>,
    algorithm: &AlgorithmIdentifier<'_>,
    signed: &[u8],
    signature: &BitString<'_>,
) -> bool {
    algorithm.algorithm.to_id_string() == ECDSA_WITH_SHA256
        && algorithm.parameters.is_none()
        && signature.unused_bits == 0
        && UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &ca.public_key().subject_public_key.data)
            .verify(signed, &signature.data)
            .is_ok()
}
